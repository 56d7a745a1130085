"""From predictions to the folder `evaluation/`: metrics.json, tables and figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from skinlesion.data.forms import is_by_image
from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation import plots
from skinlesion.evaluation.bootstrap import draw_weights
from skinlesion.evaluation.costs import compute_cost_decision
from skinlesion.evaluation.decision_curve import compute_decisions
from skinlesion.evaluation.decision_metrics import Calibrated, compute_calibration
from skinlesion.evaluation.examples import draw_mistakes, draw_samples, name_predictions
from skinlesion.evaluation.metrics import (
    compute_classification_report,
    compute_metrics,
    list_figures,
)
from skinlesion.evaluation.subgroups import ATTRIBUTES, SHOWN_FROM, compute_subgroups
from skinlesion.files import without_nan, write_csv, write_json, write_text

SOMETIMES = (
    *("reliability", "risk_coverage", "operating_points", "decision_curve", "fixed_points"),
    *("cost_decision", "variants", "subgroups", "sample_predictions", "confident_mistakes"),
)
"""Tables and figures that only some calls write."""

Drawn = dict[str, Figure | SubFigure]


def write_report(
    out: Path,
    rows: pd.DataFrame,
    y_prob: np.ndarray,
    info: DatasetInfo,
    *,
    calibrated: Calibrated | None = None,
    variants: Mapping[str, np.ndarray] | None = None,
    seed: int = 42,
    extra: Mapping[str, Any] | None = None,
    figures: Mapping[str, Figure | SubFigure] | None = None,
    make_pages: Callable[[dict[str, Any]], Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Compute all figures of predictions, and write them to a folder.

    Except for calibration and decisions, they are of the uncalibrated probabilities, as in `score`.

    Args:
        out: folder to fill.
        rows: n images: `label`; if known `lesion_id`, `path` and the columns of `ATTRIBUTES`.
        y_prob: float (n, classes), uncalibrated.
        info: of the dataset.
        calibrated: the same predictions, calibrated; what needs them is left out without them.
        variants: other predictions for the same images, by name.
        seed: of the choice of sample predictions.
        extra: more entries for `metrics.json`.
        figures: more plots to save, by name.
        make_pages: from what `metrics.json` will hold to pages in Markdown, by the file's name.

    Returns:
        What `metrics.json` holds: see `compute_metrics`, `compute_calibration`, `compute_decisions`
        and `compute_cost_decision`; `variants`, name to overall figures; `synthetic`; and `extra`.
    """
    _delete_earlier(out)
    y_true, groups = rows["label"].to_numpy(), rows.get("lesion_id", rows.index).to_numpy()
    metrics = compute_metrics(y_true, y_prob, info, groups=groups) | _describe_data(rows, info)
    drawn = _draw_curves(y_true, y_prob, metrics, info) | dict(figures or {})
    drawn |= _report_calibration(out, y_true, y_prob, calibrated, info, groups, metrics)
    drawn |= _report_decisions(out, y_true, y_prob, calibrated, info, groups, metrics)
    _report_variants(out, y_true, variants or {}, info, groups, metrics)
    drawn |= _report_subgroups(out, y_true, y_prob, rows, info, metrics)
    drawn |= _draw_examples(rows, y_prob, calibrated, info.labels, seed)
    _write_tables(out, y_true, y_prob, metrics, info)
    _save_figures(out, drawn, info.synthetic)
    metrics |= extra or {}
    for name, text in (make_pages(without_nan(metrics)) if make_pages else {}).items():
        write_text(out / name, text)
    # Written last: where metrics.json is, everything else is.
    write_json(out / "metrics.json", metrics)
    return metrics


def _delete_earlier(out: Path) -> None:
    """Delete what an earlier call wrote, and this one may not write again."""
    for path in (out / f"{name}{ending}" for name in SOMETIMES for ending in (".csv", ".png")):
        path.unlink(missing_ok=True)
    (out / "metrics.json").unlink(missing_ok=True)


def _describe_data(rows: pd.DataFrame, info: DatasetInfo) -> dict[str, bool]:
    by_image = "lesion_id" in rows and is_by_image(rows)
    return {"synthetic": info.synthetic} | ({"split_by_image": True} if by_image else {})


def _save_figures(out: Path, drawn: Drawn, synthetic: bool) -> None:
    for name, figure in drawn.items():
        plots.caption(figure, synthetic=synthetic)
        plots.save_figure(figure, out / f"{name}.png")


def _report_calibration(
    out: Path,
    y_true: np.ndarray,
    y_prob: np.ndarray,
    calibrated: Calibrated | None,
    info: DatasetInfo,
    groups: np.ndarray,
    metrics: dict[str, Any],
) -> Drawn:
    if calibrated is None:
        return {}
    weights, _ = draw_weights(len(y_true), groups)
    measured = compute_calibration(y_true, y_prob, calibrated, info, groups=groups, weights=weights)
    metrics["calibration"] = measured
    selective = list(measured["selective_prediction"])
    write_csv(out / "risk_coverage.csv", pd.json_normalize(selective, sep="_"))
    points = [
        {
            "target_sensitivity": point["target_sensitivity"],
            # Of folds, there are several; of images without a malignant one, there is none.
            "threshold": " ".join(
                str(cut) for cut in np.atleast_1d(point["threshold"]) if cut is not None
            ),
            "figure": name,
        }
        | row
        for point in measured["operating_points"]
        for name, row in point.items()
        if isinstance(row, dict)
    ]
    if points:
        write_csv(out / "operating_points.csv", pd.DataFrame(points))
    stages = {"before calibration": y_prob, "after calibration": calibrated.y_prob}
    return {
        "reliability": plots.plot_reliability(y_true, stages).figure,
        "risk_coverage": plots.plot_risk_coverage(selective).figure,
    }


def _join(threshold: float | list[float | None] | None) -> str:
    """A threshold as text: of folds there are several, without malignant images there is none."""
    cuts = threshold if isinstance(threshold, list) else [threshold]
    return " ".join(str(cut) for cut in cuts if cut is not None)


def _report_decisions(
    out: Path,
    y_true: np.ndarray,
    y_prob: np.ndarray,
    calibrated: Calibrated | None,
    info: DatasetInfo,
    groups: np.ndarray,
    metrics: dict[str, Any],
) -> Drawn:
    weights, _ = draw_weights(len(y_true), groups)
    by_ratio, probabilities = y_prob.argmax(axis=1), calibrated.y_prob if calibrated else y_prob
    drawn: Drawn = {}
    if info.malignant is not None:
        found = metrics["decisions"] = compute_decisions(y_true, probabilities, weights, info)
        write_csv(out / "decision_curve.csv", pd.json_normalize(found["curve"], sep="_"))
        write_csv(out / "fixed_points.csv", pd.DataFrame(found["fixed_points"]))
        drawn["decision_curve"] = plots.plot_decision_curve(found["curve"]).figure
    if calibrated and calibrated.costs:
        options: dict[str, Any] = {"by_ratio": by_ratio, "groups": groups, "weights": weights}
        paid = compute_cost_decision(y_true, probabilities, calibrated.costs, info, **options)
        metrics["cost_decision"] = paid
        rows = [
            {"rule": rule, "figure": name} | figure
            for rule, figures in paid["rules"].items()
            for name, figure in figures.items()
        ]
        write_csv(out / "cost_decision.csv", pd.DataFrame(rows))
    return drawn


def _report_variants(
    out: Path,
    y_true: np.ndarray,
    variants: Mapping[str, np.ndarray],
    info: DatasetInfo,
    groups: np.ndarray,
    metrics: dict[str, Any],
) -> None:
    if not variants:
        return
    metrics["variants"] = {
        name: compute_metrics(y_true, other, info, groups=groups)["overall"]
        for name, other in variants.items()
    }
    rows = [
        {"variant": variant, "figure": figure} | row
        for variant, overall in metrics["variants"].items()
        for figure, row in overall.items()
    ]
    write_csv(out / "variants.csv", pd.DataFrame(rows))


def _report_subgroups(
    out: Path,
    y_true: np.ndarray,
    y_prob: np.ndarray,
    rows: pd.DataFrame,
    info: DatasetInfo,
    metrics: Mapping[str, Any],
) -> Drawn:
    if "lesion_id" not in rows:
        return {}
    subgroups = compute_subgroups(y_true, y_prob, rows, info)
    if not len(subgroups):
        nothing = f"No subgroups: the dataset has no {', '.join(ATTRIBUTES.values())}."
        return {"subgroups": plots.plot_images([], [], nothing=nothing)}
    write_csv(out / "subgroups.csv", subgroups)
    shown = subgroups[subgroups["figure"] == "balanced_accuracy"]
    # A figure of a few images says nothing; but a small test set has no other subgroups.
    least = min(SHOWN_FROM, shown["images"].max())
    shown = shown[shown["images"] >= least]
    labels = (
        shown["attribute"].map(ATTRIBUTES)
        + ": "
        + shown["subgroup"]
        + shown["images"].map(" ({:,} images".format)
        + (shown["malignant"].map(", {:,} malignant".format) if info.malignant else "")
        + ")"
    )
    title = f"Balanced accuracy, subgroups of at least {least} images"
    overall = metrics["overall"]["balanced_accuracy"]["value"]
    ax = plots.plot_forest(shown.assign(label=labels), title=title, reference=overall)
    ax.set_xlim(right=1)
    return {"subgroups": ax.figure}


def _draw_examples(
    rows: pd.DataFrame,
    y_prob: np.ndarray,
    calibrated: Calibrated | None,
    labels: Sequence[str],
    seed: int,
) -> Drawn:
    if "path" not in rows:
        return {}
    shown = name_predictions(rows, y_prob, calibrated.y_prob if calibrated else y_prob)
    drawn: Drawn = {"sample_predictions": draw_samples(shown, labels, seed=seed)}
    if (shown["predicted"] != shown["label"]).any():
        drawn["confident_mistakes"] = draw_mistakes(shown, labels)
    return drawn


def _draw_curves(
    y_true: np.ndarray, y_prob: np.ndarray, metrics: Mapping[str, Any], info: DatasetInfo
) -> Drawn:
    matrix = np.asarray(metrics["confusion_matrix"])
    shares = plots.plot_confusion_matrix(matrix, info.labels, normalize=True)
    recall = plots.plot_precision_recall_curves(y_true, y_prob, metrics, info)
    return {
        "confusion_matrix": plots.plot_confusion_matrix(matrix, info.labels).figure,
        "confusion_matrix_normalized": shares.figure,
        "roc_curves": plots.plot_roc_curves(y_true, y_prob, metrics, info).figure,
        "precision_recall_curves": recall.figure,
    }


def _write_tables(
    out: Path, y_true: np.ndarray, y_prob: np.ndarray, metrics: dict[str, Any], info: DatasetInfo
) -> None:
    report = compute_classification_report(y_true, y_prob.argmax(axis=1), info)
    codes = list(info.labels)
    matrix = pd.DataFrame(metrics["confusion_matrix"], index=codes, columns=codes)
    write_csv(out / "classification_report.csv", report, index=True)
    write_csv(out / "confusion_matrix.csv", matrix, index=True)
    write_csv(out / "metrics.csv", list_figures(metrics))
