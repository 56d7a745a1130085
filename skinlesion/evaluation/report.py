"""From judged images to the folder `evaluation/`: metrics.json, tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from skinlesion.data.images import decode_image
from skinlesion.diagnoses import CLASS_CODES, SYNTHETIC_NOTE
from skinlesion.evaluation import plots
from skinlesion.evaluation.calibration import Calibration, apply_temperature, compute_calibration
from skinlesion.evaluation.metrics import (
    compute_classification_report,
    compute_metrics,
    compute_subgroups,
    draw_weights,
    format_figure,
    metrics_table,
)
from skinlesion.files import write_csv, write_json

if TYPE_CHECKING:
    from skinlesion.model.predictor import Predictor

SHOWN_IMAGES = 12
SHOWN_FROM = 20
"""Images that a subgroup needs to be drawn; `subgroups.csv` has all."""
PICTURE_SIZE = (150, 200)


def write_report(
    out: Path,
    rows: pd.DataFrame,
    y_prob: np.ndarray,
    *,
    calibration: Calibration | None = None,
    variants: Mapping[str, np.ndarray] | None = None,
    synthetic: bool = False,
    seed: int = 42,
    extra: Mapping[str, Any] | None = None,
    figures: Mapping[str, Figure | SubFigure] | None = None,
) -> dict[str, Any]:
    """Compute everything there is to say about predictions, and write it to a folder.

    Args:
        out: folder to fill.
        rows: n images: `label` (0 to 6); where known `lesion_id`, `path`, `sex`, `age`,
            `localization`, `dx_type`.
        y_prob: float (n, 7), uncalibrated.
        calibration: fitted on validation; without it, what needs it is left out.
        variants: other predictions for the same images, to stand beside these, by name.
        synthetic: whether the images are the synthetic sample's.
        seed: of the draw of sample predictions.
        extra: more entries for `metrics.json`.
        figures: more figures to save, by name.

    Returns:
        What `metrics.json` holds: `compute_metrics`' figures; `calibration`, see
        `compute_calibration`; `variants`, name to overall figures; `synthetic`; and `extra`.
    """
    y_true = rows["label"].to_numpy()
    groups = rows["lesion_id"].to_numpy() if "lesion_id" in rows else np.arange(len(rows))
    metrics = compute_metrics(y_true, y_prob, groups=groups) | {"synthetic": synthetic}
    drawn = _draw_curves(y_true, y_prob, metrics) | dict(figures or {})
    if calibration:
        weights, _ = draw_weights(len(rows), groups)
        metrics["calibration"] = compute_calibration(
            y_true, y_prob, calibration, groups=groups, weights=weights
        )
        drawn |= _draw_calibration(y_true, y_prob, metrics["calibration"])
        _write_operating_points(out, metrics["calibration"])
    if variants:
        metrics["variants"] = {
            name: compute_metrics(y_true, other, groups=groups)["overall"]
            for name, other in variants.items()
        }
        write_csv(out / "variants.csv", _tabulate_variants(metrics["variants"]))
    subgroups = compute_subgroups(y_true, y_prob, rows) if "lesion_id" in rows else pd.DataFrame()
    if len(subgroups):
        write_csv(out / "subgroups.csv", subgroups)
        drawn["subgroups"] = draw_subgroups(subgroups, metrics)
    if "path" in rows:
        drawn["sample_predictions"] = draw_samples(rows, y_prob, seed=seed)
        if (y_prob.argmax(axis=1) != y_true).any():
            drawn["confident_mistakes"] = draw_mistakes(rows, y_prob)
    _write_tables(out, y_true, y_prob, metrics)
    for name, figure in drawn.items():
        plots.caption(figure, synthetic=synthetic)
        plots.save_figure(figure, out / f"{name}.png")
    metrics |= extra or {}
    # Last: who finds metrics.json finds all the rest.
    write_json(out / "metrics.json", metrics)
    return metrics


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """The figures with their intervals, for readers."""
    lines = [
        f"{metrics['n']:,} test images of {metrics['lesions']:,} lesions; 95 % intervals from "
        f"{metrics['draws']:,} bootstrap draws of lesions"
    ]
    if metrics["synthetic"]:
        lines.append(SYNTHETIC_NOTE)
    rows = metrics["overall"] | {
        f"sensitivity {code}": metrics["per_class"][code]["sensitivity"] for code in CLASS_CODES
    }
    lines += [_line(name, row) for name, row in rows.items()]
    if "calibration" in metrics:
        lines += _describe_calibration(metrics["calibration"])
    if "foreign_image_gate" in metrics:
        let_in = _percent(metrics["foreign_image_gate"]["let_in"])
        lines.append(f"gate for foreign images: {let_in} of these images are let in")
    for name, overall in metrics.get("variants", {}).items():
        lines.append(f"{name}:")
        lines += [_line(f, overall[f]) for f in ("balanced_accuracy", "macro_f1", "macro_auc")]
    if "explanation" in metrics:
        heat = metrics["explanation"]
        lines.append(
            f"Grad-CAM heat inside the lesion: {heat['inside']:.1%}; the lesion covers "
            f"{heat['area']:.1%} of the image ({heat['images']:,} images)"
        )
    return "\n".join(lines)


def draw_samples(rows: pd.DataFrame, y_prob: np.ndarray, *, seed: int) -> Figure:
    """Images drawn at random, titled with true and predicted class. Arguments: `write_report`."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:SHOWN_IMAGES]
    return _draw_images(rows, y_prob, chosen)


def draw_mistakes(rows: pd.DataFrame, y_prob: np.ndarray) -> Figure:
    """The wrongly judged images with the highest confidence. Arguments: `write_report`."""
    wrong = np.flatnonzero(y_prob.argmax(axis=1) != rows["label"].to_numpy())
    chosen = wrong[np.argsort(-y_prob[wrong].max(axis=1), kind="stable")][:SHOWN_IMAGES]
    return _draw_images(rows, y_prob, chosen)


def draw_subgroups(subgroups: pd.DataFrame, metrics: Mapping[str, Any]) -> Figure | SubFigure:
    """Balanced accuracy of each subgroup, with support. Arguments: of `compute_subgroups`."""
    rows = subgroups[subgroups["figure"] == "balanced_accuracy"]
    # Of a few images a figure says nothing; but a small test set has no other subgroups.
    least = min(SHOWN_FROM, rows["images"].max())
    rows = rows[rows["images"] >= least]
    labels = (
        rows["attribute"].str.replace("localization", "site")
        + ": "
        + rows["subgroup"]
        + rows["images"].map(" ({:,} images, ".format)
        + rows["malignant"].map("{:,} malignant)".format)
    )
    overall = metrics["overall"]["balanced_accuracy"]["value"]
    title = f"Balanced accuracy, subgroups of at least {least} images"
    return plots.plot_forest(rows.assign(label=labels), title=title, reference=overall).figure


def draw_explanations(
    predictor: "Predictor",
    rows: pd.DataFrame,
    y_prob: np.ndarray,
    *,
    kinds: Sequence[bool] = (True, False),
) -> Figure:
    """Heat of the predicted class: of each class the most confident right and wrong image.

    Args:
        predictor: the model.
        rows: `path` and `label` of n images.
        y_prob: float (n, 7), what the model says about them.
        kinds: True shows right ones, False wrong ones.
    """
    from skinlesion.evaluation.gradcam import overlay_heat

    truth, top, confidence = rows["label"].to_numpy(), y_prob.argmax(axis=1), y_prob.max(axis=1)
    groups = [
        np.flatnonzero((truth == label) & ((top == truth) == kind))
        for kind in kinds
        for label in range(len(CLASS_CODES))
    ]
    chosen = np.array([group[confidence[group].argmax()] for group in groups if len(group)], int)
    paths = rows["path"].iloc[chosen].tolist()
    pictures, titles = [], []
    for path, heat, i in zip(paths, predictor.explain(paths, top[chosen]), chosen, strict=True):
        image = decode_image(path, image_size=PICTURE_SIZE)
        pictures += [image, overlay_heat(image, heat)]
        titles += [f"true {CLASS_CODES[truth[i]]}\nheat for {CLASS_CODES[top[i]]}", ""]
    return plots.plot_images(pictures, titles)


def _draw_images(rows: pd.DataFrame, y_prob: np.ndarray, chosen: np.ndarray) -> Figure:
    images = [decode_image(path, image_size=PICTURE_SIZE) for path in rows["path"].iloc[chosen]]
    return plots.plot_sample_predictions(images, rows["label"].to_numpy()[chosen], y_prob[chosen])


def _draw_curves(
    y_true: np.ndarray, y_prob: np.ndarray, metrics: dict[str, Any]
) -> dict[str, Figure | SubFigure]:
    matrix = np.asarray(metrics["confusion_matrix"])
    return {
        "confusion_matrix": plots.plot_confusion_matrix(matrix).figure,
        "confusion_matrix_normalized": plots.plot_confusion_matrix(matrix, normalize=True).figure,
        "roc_curves": plots.plot_roc_curves(y_true, y_prob, metrics).figure,
        "precision_recall_curves": plots.plot_precision_recall_curves(
            y_true, y_prob, metrics
        ).figure,
    }


def _draw_calibration(
    y_true: np.ndarray, y_prob: np.ndarray, calibration: Mapping[str, Any]
) -> dict[str, Figure | SubFigure]:
    stages = {
        "before": y_prob,
        "after temperature scaling": apply_temperature(y_prob, calibration["temperature"]),
    }
    return {
        "reliability": plots.plot_reliability(y_true, stages).figure,
        "risk_coverage": plots.plot_risk_coverage(calibration["referral"]).figure,
    }


def _tabulate_variants(variants: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {"variant": variant, "figure": figure} | row
        for variant, overall in variants.items()
        for figure, row in overall.items()
    ]
    return pd.DataFrame(rows)


def _write_operating_points(out: Path, calibration: Mapping[str, Any]) -> None:
    points = [
        {key: point[key] for key in ("target_sensitivity", "threshold")} | {"figure": name} | row
        for point in calibration["operating_points"]
        for name, row in point.items()
        if isinstance(row, dict)
    ]
    write_csv(out / "operating_points.csv", pd.DataFrame(points))
    write_csv(out / "risk_coverage.csv", pd.json_normalize(list(calibration["referral"]), sep="_"))


def _write_tables(
    out: Path, y_true: np.ndarray, y_prob: np.ndarray, metrics: dict[str, Any]
) -> None:
    report = compute_classification_report(y_true, y_prob.argmax(axis=1))
    codes = list(CLASS_CODES)
    matrix = pd.DataFrame(metrics["confusion_matrix"], index=codes, columns=codes)
    write_csv(out / "classification_report.csv", report, index=True)
    write_csv(out / "confusion_matrix.csv", matrix, index=True)
    write_csv(out / "metrics.csv", metrics_table(metrics))


def _describe_calibration(calibration: Mapping[str, Any]) -> list[str]:
    before, after = calibration["before"]["ece"], calibration["after"]["ece"]
    lines = [
        f"temperature {calibration['temperature']:.2f}: calibration error {before['value']:.3f} "
        f"before, {format_figure(after)} after"
    ]
    for point in calibration["operating_points"]:
        lines.append(
            f"malignant, threshold for {point['target_sensitivity']:.0%} on validation: "
            f"sensitivity {format_figure(point['sensitivity'])}, "
            f"specificity {format_figure(point['specificity'])}"
        )
    sets = calibration["prediction_sets"]
    lines.append(
        f"prediction sets for {sets['target_coverage']:.0%}: hold the truth for "
        f"{_percent(sets['coverage'])}, {sets['mean_size']['value']:.2f} classes on average. The "
        "guarantee is weakened: images of one lesion are not exchangeable, and validation also "
        "chose the epoch"
    )
    return lines


def _line(name: str, row: Mapping[str, float]) -> str:
    text = name.replace("_", " ")
    return f"{text:<28} {format_figure(row)}"


def _percent(row: Mapping[str, float]) -> str:
    return f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
