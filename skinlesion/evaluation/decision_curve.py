"""What the probability of malignancy is worth: net benefit, and points of the ROC curve."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import divide, summarise
from skinlesion.evaluation.calibration import SENSITIVITIES, sum_malignant
from skinlesion.evaluation.markdown import make_markdown_table
from skinlesion.evaluation.metrics import find_malignant

THRESHOLDS = np.round(np.arange(0.02, 0.51, 0.02), 2)
"""Threshold probabilities of the decision curve. At 0.02, a missed cancer weighs as much as 49
needless excisions, at 0.5 as much as one."""
SHOWN = (0.02, 0.06, 0.1, 0.2, 0.3, 0.5)
"""Those of the table in the model card; `decision_curve.csv` has all."""
SPECIFICITIES = (0.80, 0.90)
"""Specificities at which the sensitivity is measured."""


def compute_decisions(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray, info: DatasetInfo
) -> dict[str, list[dict[str, Any]]]:
    """Measure the decision curve, and the fixed points of the ROC curve.

    Args:
        y_true: int (n,).
        y_prob: float (n, classes), calibrated where they can be: net benefit depends on it.
        weights: resamples of the same images, from `draw_weights`.
        info: of the dataset, which must say which classes are malignant.

    Returns:
        `curve`: see `compute_decision_curve`; `fixed_points`: see `compute_fixed_points`.
    """
    malignant = find_malignant(info)
    assert malignant is not None
    cases, score = malignant[y_true], sum_malignant(y_prob, malignant)
    scopes = {"malignant": (cases, score)}
    if info.focus:
        focus = info.label_of[info.focus]
        scopes[info.focus] = (y_true == focus, y_prob[:, focus])
    return {
        "curve": compute_decision_curve(cases, score, weights),
        "fixed_points": compute_fixed_points(scopes, weights),
    }


def compute_decision_curve(
    malignant: np.ndarray, p_malignant: np.ndarray, weights: np.ndarray
) -> list[dict[str, Any]]:
    """Measure the net benefit of calling images malignant, as Vickers and Elkin.

    Source: Medical Decision Making 26:565 (2006), doi:10.1177/0272989X06295361. Who acts from a
    probability t on takes (1 - t) / t false alarms for one cancer found. The net benefit is the
    share of true positives minus t / (1 - t) times the share of false positives. Calling no image
    malignant has a net benefit of 0.

    Returns:
        A row for each of `THRESHOLDS`: `threshold`; with intervals the net benefit of the `model`
        and of calling `all` images malignant; and `gain`, the model's over the better of all and
        none, paired.
    """
    worth = np.where(malignant[:, None], 1.0, -THRESHOLDS / (1 - THRESHOLDS))
    called = p_malignant[:, None] >= THRESHOLDS
    total = weights.sum(axis=1, dtype=np.float64)[:, None]
    model, everyone = (weights @ part / total for part in (worth * called, worth))
    gain = model - np.maximum(everyone, 0)
    return [
        {"threshold": float(threshold)}
        | {
            name: summarise(values[:, i])
            for name, values in (("model", model), ("all", everyone), ("gain", gain))
        }
        for i, threshold in enumerate(THRESHOLDS)
    ]


def compute_fixed_points(
    scopes: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> list[dict[str, Any]]:
    """Measure sensitivity at fixed specificities and specificity at fixed sensitivities.

    The threshold is the best one for the images themselves, and for each resample. The figures
    therefore describe the ROC curve; the operating points have thresholds from other images.

    Args:
        scopes: name to which images are cases, bool (n,), and their score, float (n,).
        weights: from `draw_weights`.

    Returns:
        Rows of `scope`, `figure`, `fixed` (the other
        figure), `at` (its least value), and the figure with its interval.
    """
    rows = []
    for scope, (cases, score) in scopes.items():
        sensitivity, specificity = _trace_roc(cases, score, weights)
        for at in SPECIFICITIES:
            fixed = {"scope": scope, "figure": "sensitivity", "fixed": "specificity", "at": at}
            rows.append(fixed | summarise(_find_best(sensitivity, specificity, at)))
        for at in SENSITIVITIES:
            fixed = {"scope": scope, "figure": "specificity", "fixed": "sensitivity", "at": at}
            rows.append(fixed | summarise(_find_best(specificity, sensitivity, at)))
    return rows


def _trace_roc(
    cases: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and specificity for every row of weights and every threshold, (d, points) each.

    The points are those of scikit-learn's `roc_curve`, to which a test holds them; it would need
    one call for each resample. The first point calls no image positive.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf)) + 1  # equal scores: one point
    called = [
        np.cumsum(weights[:, order] * part[order], axis=1, dtype=np.float64)
        for part in (cases, ~cases)
    ]
    found, false_alarms = (np.insert(part, 0, 0, axis=1)[:, [0, *ends]] for part in called)
    return divide(found, found[:, -1:]), 1 - divide(false_alarms, false_alarms[:, -1:])


def _find_best(figure: np.ndarray, fixed: np.ndarray, at: float) -> np.ndarray:
    """The largest value (d,) of a figure where the other one is `at` or more; NaN if undefined."""
    best = np.where(fixed >= at - 1e-9, figure, 0).max(axis=1)
    return np.where(np.isnan(figure[:, 0]) | np.isnan(fixed[:, 0]), np.nan, best)


def describe_decisions(found: Mapping[str, Any], info: DatasetInfo) -> list[str]:
    """Paragraphs of the model card, Markdown; arguments: `metrics["decisions"]`."""
    points: dict[str, list[Any]] = {}
    for row in found["fixed_points"]:  # those of the class in focus follow those of malignancy
        points.setdefault(f"{row['figure']} at {row['fixed']} {row['at']:.2f}", []).append(row)
    return [
        "### Points of the ROC curve",
        "With the best thresholds for the test images themselves:",
        make_markdown_table(
            (
                "figure",
                "malignant against benign",
                *([f"{info.focus_name} against the rest"] if info.focus else []),
            ),
            [(label, *rows) for label, rows in points.items()],
        ),
        "### Net benefit",
        "Calling an image malignant from a probability t on accepts (1 - t) / t false alarms for "
        "one malignant image that is found: nine at 0.10. Net benefit (Vickers and Elkin, "
        "[doi:10.1177/0272989X06295361](https://doi.org/10.1177/0272989X06295361)) counts what "
        "is found minus what the false alarms weigh. Calling no image malignant has 0. The gain is "
        "over the better of calling all and none; `decision_curve.csv` has all thresholds.",
        make_markdown_table(
            ("threshold", "model", "all called malignant", "gain"),
            [
                (f"{row['threshold']:.2f}", row["model"], row["all"], row["gain"])
                for row in found["curve"]
                if row["threshold"] in SHOWN
            ],
        ),
    ]
