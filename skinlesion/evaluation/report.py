"""From predictions to the folder `evaluation/`: metrics.json, tables and figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from skinlesion.data.forms import is_by_image
from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation import plots
from skinlesion.evaluation.bootstrap import draw_weights, summarise
from skinlesion.evaluation.costs import compute_cost_decision
from skinlesion.evaluation.decision_curve import compute_decisions
from skinlesion.evaluation.decision_metrics import Calibrated, compute_calibration
from skinlesion.evaluation.examples import draw_mistakes, draw_samples, name_predictions
from skinlesion.evaluation.metrics import (
    compute_classification_report,
    compute_figures,
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


@dataclass(frozen=True)
class _Predictions:
    """Predictions and what is known of their images, as the arguments of `write_report`."""

    rows: pd.DataFrame
    y_prob: np.ndarray
    info: DatasetInfo
    calibrated: Calibrated | None

    @property
    def y_true(self) -> np.ndarray:
        """Labels."""
        return self.rows["label"].to_numpy()

    @property
    def groups(self) -> np.ndarray:
        """The lesion of each image."""
        return self.rows.get("lesion_id", self.rows.index).to_numpy()

    @cached_property
    def weights(self) -> np.ndarray:
        """Resamples of the lesions."""
        return draw_weights(len(self.rows), self.groups)[0]

    @property
    def final_prob(self) -> np.ndarray:
        """The probabilities that a reader gets: calibrated, if they can be."""
        return self.calibrated.y_prob if self.calibrated else self.y_prob


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
    given = _Predictions(rows, y_prob, info, calibrated)
    metrics = compute_metrics(given.y_true, y_prob, info, groups=given.groups)
    metrics |= _describe_data(rows, info)
    drawn = _draw_curves(given, metrics) | _draw_examples(given, seed) | dict(figures or {})
    drawn |= _report_calibration(out, given, metrics)
    drawn |= _report_decisions(out, given, metrics)
    _report_variants(out, given, variants or {}, metrics)
    drawn |= _report_subgroups(out, given, metrics)
    _write_tables(out, given, metrics)
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


def _summarise_overall(given: _Predictions, y_prob: np.ndarray) -> dict[str, Any]:
    overall, _ = compute_figures(given.y_true, y_prob, given.weights, given.info)
    return {name: summarise(values) for name, values in overall.items()}


def _report_calibration(out: Path, given: _Predictions, metrics: dict[str, Any]) -> Drawn:
    if given.calibrated is None:
        return {}
    measured = compute_calibration(
        given.y_true, given.y_prob, given.calibrated, given.info, given.weights
    )
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
    stages = {"before calibration": given.y_prob, "after calibration": given.calibrated.y_prob}
    return {
        "reliability": plots.plot_reliability(given.y_true, stages).figure,
        "risk_coverage": plots.plot_risk_coverage(selective).figure,
    }


def _report_decisions(out: Path, given: _Predictions, metrics: dict[str, Any]) -> Drawn:
    y_true, info = given.y_true, given.info
    drawn: Drawn = {}
    if info.malignant is not None:
        found = metrics["decisions"] = compute_decisions(
            y_true, given.final_prob, given.weights, info
        )
        write_csv(out / "decision_curve.csv", pd.json_normalize(found["curve"], sep="_"))
        write_csv(out / "fixed_points.csv", pd.DataFrame(found["fixed_points"]))
        drawn["decision_curve"] = plots.plot_decision_curve(found["curve"]).figure
    if given.calibrated and given.calibrated.costs:
        paid = metrics["cost_decision"] = compute_cost_decision(
            y_true,
            given.final_prob,
            given.calibrated.costs,
            info,
            by_ratio=given.y_prob.argmax(axis=1),
            weights=given.weights,
        )
        rows = [
            {"rule": rule, "figure": name} | figure
            for rule, figures in paid["rules"].items()
            for name, figure in figures.items()
        ]
        write_csv(out / "cost_decision.csv", pd.DataFrame(rows))
    return drawn


def _report_variants(
    out: Path,
    given: _Predictions,
    variants: Mapping[str, np.ndarray],
    metrics: dict[str, Any],
) -> None:
    if not variants:
        return
    metrics["variants"] = {
        name: _summarise_overall(given, y_prob) for name, y_prob in variants.items()
    }
    rows = [
        {"variant": variant, "figure": figure} | row
        for variant, overall in metrics["variants"].items()
        for figure, row in overall.items()
    ]
    write_csv(out / "variants.csv", pd.DataFrame(rows))


def _report_subgroups(out: Path, given: _Predictions, metrics: Mapping[str, Any]) -> Drawn:
    if "lesion_id" not in given.rows:
        return {}
    subgroups = compute_subgroups(given.y_true, given.y_prob, given.rows, given.info)
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
        + (shown["malignant"].map(", {:,} malignant".format) if given.info.malignant else "")
        + ")"
    )
    title = f"Balanced accuracy, subgroups of at least {least} images"
    overall = metrics["overall"]["balanced_accuracy"]["value"]
    ax = plots.plot_forest(shown.assign(label=labels), title=title, reference=overall)
    ax.set_xlim(right=1)
    return {"subgroups": ax.figure}


def _draw_examples(given: _Predictions, seed: int) -> Drawn:
    if "path" not in given.rows:
        return {}
    shown = name_predictions(given.rows, given.y_prob, given.final_prob)
    drawn: Drawn = {"sample_predictions": draw_samples(shown, given.info.labels, seed=seed)}
    if (shown["predicted"] != shown["label"]).any():
        drawn["confident_mistakes"] = draw_mistakes(shown, given.info.labels)
    return drawn


def _draw_curves(given: _Predictions, metrics: Mapping[str, Any]) -> Drawn:
    matrix, info = np.asarray(metrics["confusion_matrix"]), given.info
    shares = plots.plot_confusion_matrix(matrix, info.labels, normalize=True)
    curves = (given.y_true, given.y_prob, metrics, info)
    return {
        "confusion_matrix": plots.plot_confusion_matrix(matrix, info.labels).figure,
        "confusion_matrix_normalized": shares.figure,
        "roc_curves": plots.plot_roc_curves(*curves).figure,
        "precision_recall_curves": plots.plot_precision_recall_curves(*curves).figure,
    }


def _write_tables(out: Path, given: _Predictions, metrics: dict[str, Any]) -> None:
    codes, y_pred = list(given.info.labels), given.y_prob.argmax(axis=1)
    report = compute_classification_report(given.y_true, y_pred, given.info)
    matrix = pd.DataFrame(metrics["confusion_matrix"], index=codes, columns=codes)
    write_csv(out / "classification_report.csv", report, index=True)
    write_csv(out / "confusion_matrix.csv", matrix, index=True)
    write_csv(out / "metrics.csv", list_figures(metrics))
