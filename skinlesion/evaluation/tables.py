"""The main figures of an evaluation for readers: tables for notebooks, lines for the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.diagnoses import BY_IMAGE_NOTE, SYNTHETIC_NOTE, DatasetInfo
from skinlesion.evaluation.calibration import FEW_MALIGNANT
from skinlesion.evaluation.costs import BY_COST, BY_RATIO
from skinlesion.evaluation.metrics import format_figure

OVERALL = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "accuracy": "accuracy",
    "malignant_auc": "AUC, malignant or benign",
}
"""Figures of the table for readers; `metrics.csv` has all."""


def metrics_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The main figures with 95 % intervals, for a notebook; a column for each variant."""
    columns = {"single": metrics["overall"]} | metrics.get("variants", {})
    rows = {
        label: [format_figure(column[name]) for column in columns.values()]
        for name, label in OVERALL.items()
        if name in metrics["overall"]
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))


def per_class_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The figures of each class with 95 % intervals, for a notebook."""
    names = ["support", "sensitivity", "specificity", "ppv", "auc"]
    table = pd.DataFrame(metrics["per_class"]).T[names].map(format_figure)
    return table.rename(columns={"support": "images", "ppv": "PPV", "auc": "AUC"})


def operating_points_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Malignant against benign at the thresholds chosen on validation, for a notebook."""
    rows = [
        {
            "threshold chosen for": f"{point['target_sensitivity']:.0%} sensitivity",
            "threshold": _format_threshold(point["threshold"]),
            **{name: format_figure(point[name]) for name in ("sensitivity", "specificity")},
            **{name.upper(): format_figure(point[name]) for name in ("ppv", "npv")},
        }
        for point in metrics["calibration"]["operating_points"]
    ]
    return pd.DataFrame(rows).set_index("threshold chosen for") if rows else pd.DataFrame()


def _format_threshold(value: float | list[float | None] | None) -> str:
    """One threshold, or the range of those of the folds."""
    values = np.array(value if isinstance(value, list) else [value], float)
    if np.isnan(values).any():
        return "none"
    return " to ".join(f"{end:.3f}" for end in dict.fromkeys([values.min(), values.max()]))


def prediction_sets_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Coverage and size of the prediction sets of each class, for a notebook."""
    sets = metrics["calibration"]["prediction_sets"]
    everything = {"support": sum(row["support"] for row in sets["per_class"].values())}
    rows = {"all": everything | {name: sets[name] for name in ("coverage", "mean_size")}}
    table = pd.DataFrame(rows | sets["per_class"]).T.map(format_figure)
    return table.rename(columns={"support": "images", "mean_size": "classes in the set"})


def describe_metrics(metrics: Mapping[str, Any], info: DatasetInfo) -> str:
    """The main figures in a few lines for the terminal."""
    overall = metrics["overall"]
    lines = [
        f"{metrics['n']:,} images of {metrics['lesions']:,} lesions; in brackets 95 % intervals",
        f"balanced accuracy {format_figure(overall['balanced_accuracy'])}, "
        f"macro AUC {format_figure(overall['macro_auc'])}",
    ]
    if info.focus:
        sensitivity = format_figure(metrics["per_class"][info.focus]["sensitivity"])
        lines.append(f"sensitivity to {info.focus_name} {sensitivity}")
    if metrics.get("split_by_image"):
        lines.append(BY_IMAGE_NOTE)
    if metrics["synthetic"]:
        lines.append(SYNTHETIC_NOTE)
    calibration = metrics.get("calibration", {})
    for point in calibration.get("operating_points", ()):
        lines.append(
            f"malignant, threshold for {point['target_sensitivity']:.0%} on validation: "
            f"sensitivity {format_figure(point['sensitivity'])}, "
            f"specificity {format_figure(point['specificity'])}"
        )
    if info.malignant and calibration and calibration["validation_malignant"] < FEW_MALIGNANT:
        lines.append(
            "these thresholds are uncertain: they rest on "
            f"{calibration['validation_malignant']} malignant validation images"
        )
    if "cost_decision" in metrics:
        rules = metrics["cost_decision"]["rules"]
        lines.append(
            f"mean cost by the {BY_COST} {format_figure(rules[BY_COST]['mean_cost'])}, by the "
            f"{BY_RATIO} {format_figure(rules[BY_RATIO]['mean_cost'])}"
        )
    if "gradcam" in metrics:
        heat = metrics["gradcam"]
        lines.append(
            f"Grad-CAM heat inside the lesion: {heat['inside']:.1%}; the lesion covers "
            f"{heat['area']:.1%} of the image"
        )
    if "shifts" in metrics:
        figures, worst = (metrics["shifts"][name] for name in ("figures", "worst"))
        name = worst["balanced_accuracy"]
        lines.append(
            "balanced accuracy under shifts: mean "
            f"{format_figure(figures['mean']['balanced_accuracy'])}, worst "
            f"{format_figure(figures[name]['balanced_accuracy'])} ({name})"
        )
    return "\n".join(lines)
