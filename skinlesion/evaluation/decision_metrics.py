"""What the calibration gives on images that it was not fitted on, with 95 % intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import Figure, compute_share
from skinlesion.evaluation.calibration import (
    COVERAGE,
    Calibration,
    make_prediction_sets,
    sum_malignant,
)
from skinlesion.evaluation.metrics import compute_metrics, find_malignant, format_figure

LEFT_OUT = tuple(np.round(np.arange(0.0, 0.95, 0.05), 2))
"""Shares of images left to a doctor at which the risk among the rest is measured."""


def compute_calibration(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    calibration: Calibration,
    info: DatasetInfo,
    *,
    groups: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Measure temperature, operating points, prediction sets and selective prediction.

    Args:
        y_true: int (n,).
        y_prob: float (n, classes), uncalibrated.
        calibration: fitted on validation.
        info: of the dataset.
        groups: (n,), the lesion of each image.
        weights: resamples of the same images, from `draw_weights`.

    Returns:
        `temperature`, `validation_images`, `validation_malignant`; `before` and `after`: ece,
        brier, log_loss, malignant_auc; `operating_points`: a list of target_sensitivity, threshold,
        sensitivity, specificity, ppv, npv; `prediction_sets`: target_coverage, threshold, coverage,
        mean_size, sizes, per_class; `selective_prediction`, of `compute_selective_prediction`.
    """
    calibrated = calibration.apply(y_prob)
    before, after = (
        compute_metrics(y_true, p, info, groups=groups, n_bootstrap=len(weights) - 1)["overall"]
        for p in (y_prob, calibrated)
    )
    malignant = find_malignant(info)
    p_malignant = np.zeros(0) if malignant is None else sum_malignant(calibrated, malignant)
    figures = ["ece", "brier", "log_loss", *(["malignant_auc"] if malignant is not None else [])]
    return {
        "temperature": calibration.temperature,
        "validation_images": calibration.n_validation,
        **({} if malignant is None else {"validation_malignant": calibration.n_malignant}),
        "before": {name: before[name] for name in figures},
        "after": {name: after[name] for name in figures},
        "operating_points": [
            {"target_sensitivity": float(target), "threshold": cut}
            | compute_operating_point(malignant[y_true], p_malignant, cut, weights)
            for target, cut in calibration.thresholds.items()
            if malignant is not None
        ],
        "prediction_sets": _measure_sets(y_true, calibrated, calibration, weights, info),
        "selective_prediction": compute_selective_prediction(
            y_true, y_prob.argmax(axis=1), calibrated, weights, malignant
        ),
    }


def compute_operating_point(
    malignant: np.ndarray, p_malignant: np.ndarray, threshold: float | None, weights: np.ndarray
) -> dict[str, Figure]:
    """Measure sensitivity, specificity, PPV and NPV for malignancy at a threshold.

    Args:
        malignant: bool (n,), which images show something malignant.
        p_malignant: float (n,), its calibrated probability.
        threshold: images from here on are called malignant; None: every figure is undefined.
        weights: from `draw_weights`.
    """
    called = p_malignant >= (np.nan if threshold is None else threshold)
    nothing = np.zeros(len(malignant), bool)
    cases = (malignant, ~malignant, called, ~called) if threshold is not None else (nothing,) * 4
    hits = (called, ~called, malignant, ~malignant)
    names = ("sensitivity", "specificity", "ppv", "npv")
    return {
        name: compute_share(hit, case, weights)
        for name, hit, case in zip(names, hits, cases, strict=True)
    }


def compute_selective_prediction(
    y_true: np.ndarray,
    decided: np.ndarray,
    calibrated: np.ndarray,
    weights: np.ndarray,
    malignant: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Measure risk against coverage when the least confident images are left to a doctor.

    Source: Geifman and El-Yaniv, arXiv:1705.08500, with the probability of the decided class
    as confidence.

    Args:
        y_true: int (n,).
        decided: int (n,), the labels that the model decides on.
        calibrated: float (n, classes), calibrated probabilities.
        weights: from `draw_weights`.
        malignant: from `find_malignant`.

    Returns:
        A row for each of `LEFT_OUT`: `left_out` and `coverage` (shares), `confidence` (the lowest
        of the predicted images), `error` (share of wrong predictions) and `missed` (share of the
        malignant images that are predicted as benign; only with `malignant`), both with intervals.
    """
    confidence = calibrated[np.arange(len(decided)), decided]
    wrong = decided != y_true
    rows: list[dict[str, Any]] = []
    for share in LEFT_OUT:
        least = np.sort(confidence)[int(share * len(confidence))]
        kept = confidence >= least
        rows.append(
            {
                "left_out": float(1 - kept.mean()),
                "coverage": float(kept.mean()),
                "confidence": float(least),
                "error": compute_share(wrong, kept, weights),
            }
        )
        if malignant is not None:
            called_benign = ~malignant[decided] & kept
            rows[-1]["missed"] = compute_share(called_benign, malignant[y_true], weights)
    return rows


def _measure_sets(
    y_true: np.ndarray,
    calibrated: np.ndarray,
    calibration: Calibration,
    weights: np.ndarray,
    info: DatasetInfo,
) -> dict[str, Any]:
    sets = make_prediction_sets(calibrated, calibration)
    holds, sizes = sets[np.arange(len(y_true)), y_true], sets.sum(axis=1)
    everything = np.ones(len(y_true), bool)
    return {
        "target_coverage": COVERAGE,
        "threshold": calibration.set_threshold,
        "coverage": compute_share(holds, everything, weights),
        "mean_size": compute_share(sizes, everything, weights),
        "sizes": {str(size): int((sizes == size).sum()) for size in range(1, sets.shape[1] + 1)},
        "per_class": {
            code: {
                "support": int((y_true == label).sum()),
                "coverage": compute_share(holds, y_true == label, weights),
                "mean_size": compute_share(sizes, y_true == label, weights),
            }
            for label, code in enumerate(info.labels)
        },
    }


def tabulate_operating_points(calibration: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each threshold; arguments: `metrics["calibration"]`."""
    rows = [
        {
            "threshold chosen for": f"{point['target_sensitivity']:.0%} sensitivity",
            "threshold": "none" if point["threshold"] is None else f"{point['threshold']:.3f}",
            **{name: format_figure(point[name]) for name in ("sensitivity", "specificity")},
            **{name.upper(): format_figure(point[name]) for name in ("ppv", "npv")},
        }
        for point in calibration["operating_points"]
    ]
    return pd.DataFrame(rows).set_index("threshold chosen for") if rows else pd.DataFrame()


def tabulate_prediction_sets(calibration: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each class and one for all; arguments: `metrics["calibration"]`."""
    sets = calibration["prediction_sets"]
    everything = {"support": sum(row["support"] for row in sets["per_class"].values())}
    rows = {"all": everything | {name: sets[name] for name in ("coverage", "mean_size")}}
    table = pd.DataFrame(rows | sets["per_class"]).T.map(format_figure)
    return table.rename(columns={"support": "images", "mean_size": "classes in the set"})
