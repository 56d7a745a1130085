"""What the calibration gives on images that it was not fitted on, with 95 % intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import Figure, compute_share, summarise
from skinlesion.evaluation.calibration import (
    COVERAGE,
    Calibration,
    make_prediction_sets,
    sum_malignant,
)
from skinlesion.evaluation.costs import CostTable
from skinlesion.evaluation.metrics import compute_figures, find_malignant

LEFT_OUT = tuple(np.round(np.arange(0.0, 0.95, 0.05), 2))
"""Shares of images left to a doctor at which the risk among the rest is measured."""


class Calibrated(NamedTuple):
    """What calibration makes of the predictions of n images.

    Attributes:
        calibrations: that of the run; or, one after the other, those of the folds.
        y_prob: float (n, classes), calibrated.
        thresholds: target sensitivity to float (n,): from which probability of malignancy each
            image is called malignant. NaN for all images if a fold has no threshold.
        sets: bool (n, classes), the prediction sets.
    """

    calibrations: Sequence[Calibration]
    y_prob: np.ndarray
    thresholds: dict[str, np.ndarray]
    sets: np.ndarray

    @property
    def costs(self) -> CostTable | None:
        """From which the decision follows; None for folds, which may differ in them."""
        return self.calibrations[0].costs if len(self.calibrations) == 1 else None


def apply_calibrations(
    calibrations: Sequence[Calibration], y_probs: Sequence[np.ndarray]
) -> Calibrated:
    """Apply the calibration of a run, or of each fold, to its predictions.

    Args:
        calibrations: one or more.
        y_probs: for each calibration, float (images, classes), uncalibrated.
    """
    applied = [one.apply(y_prob) for one, y_prob in zip(calibrations, y_probs, strict=True)]
    sizes = [len(y_prob) for y_prob in applied]
    cuts = {
        target: np.array([one.thresholds[target] for one in calibrations], float)
        for target in calibrations[0].thresholds
    }
    for values in cuts.values():
        if np.isnan(values).any():
            values[:] = np.nan
    return Calibrated(
        calibrations,
        np.concatenate(applied),
        {target: np.repeat(values, sizes) for target, values in cuts.items()},
        np.concatenate(list(map(make_prediction_sets, applied, calibrations))),
    )


def compute_calibration(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    calibrated: Calibrated,
    info: DatasetInfo,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Measure temperature, operating points, prediction sets and selective prediction.

    Args:
        y_true: int (n,).
        y_prob: float (n, classes), uncalibrated.
        calibrated: the same predictions, calibrated.
        info: of the dataset.
        weights: from `draw_weights`.

    Returns:
        `temperature`, `validation_images`, `validation_malignant`; `before` and `after`: ece,
        brier, log_loss, malignant_auc; `operating_points`: a list of target_sensitivity, threshold,
        sensitivity, specificity, ppv, npv; `prediction_sets`: target_coverage, threshold, coverage,
        mean_size, sizes, per_class; `selective_prediction`, of `compute_selective_prediction`.
        Of folds, temperature and thresholds are lists, and the numbers of validation images are
        those of the fold with the fewest.
    """
    before, after = (
        compute_figures(y_true, probabilities, weights, info)[0]
        for probabilities in (y_prob, calibrated.y_prob)
    )
    malignant, fitted = find_malignant(info), calibrated.calibrations
    figures = ["ece", "brier", "log_loss", *(["malignant_auc"] if malignant is not None else [])]
    found = {
        "temperature": _one_or_all([one.temperature for one in fitted]),
        "validation_images": min(one.n_validation for one in fitted),
        "before": {name: summarise(before[name]) for name in figures},
        "after": {name: summarise(after[name]) for name in figures},
        "operating_points": [],
        "prediction_sets": _measure_sets(y_true, calibrated, weights, info),
        "selective_prediction": compute_selective_prediction(
            y_true, y_prob.argmax(axis=1), calibrated.y_prob, weights, malignant
        ),
    }
    if malignant is not None:
        found["validation_malignant"] = min(one.n_malignant for one in fitted)
        found["operating_points"] = _measure_thresholds(y_true, calibrated, weights, malignant)
    return found


def _measure_thresholds(
    y_true: np.ndarray, calibrated: Calibrated, weights: np.ndarray, malignant: np.ndarray
) -> list[dict[str, Any]]:
    p_malignant = sum_malignant(calibrated.y_prob, malignant)
    return [
        {
            "target_sensitivity": float(target),
            "threshold": _one_or_all([one.thresholds[target] for one in calibrated.calibrations]),
        }
        | compute_operating_point(malignant[y_true], p_malignant, thresholds, weights)
        for target, thresholds in calibrated.thresholds.items()
    ]


def _one_or_all(values: list[Any]) -> Any:
    """The value of a run, or the list of those of the folds."""
    return values[0] if len(values) == 1 else values


def compute_operating_point(
    malignant: np.ndarray, p_malignant: np.ndarray, thresholds: np.ndarray, weights: np.ndarray
) -> dict[str, Figure]:
    """Measure sensitivity, specificity, PPV and NPV for malignancy at a threshold.

    Args:
        malignant: bool (n,), which images show something malignant.
        p_malignant: float (n,), its calibrated probability.
        thresholds: float (n,), from where each image is called malignant; if one is NaN, every
            figure is undefined.
        weights: from `draw_weights`.
    """
    called = p_malignant >= thresholds
    nothing = np.zeros(len(malignant), bool)
    is_known = not np.isnan(thresholds).any()
    cases = (malignant, ~malignant, called, ~called) if is_known else (nothing,) * 4
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
    y_true: np.ndarray, calibrated: Calibrated, weights: np.ndarray, info: DatasetInfo
) -> dict[str, Any]:
    sets = calibrated.sets
    holds, sizes = sets[np.arange(len(y_true)), y_true], sets.sum(axis=1)
    everything = np.ones(len(y_true), bool)
    return {
        "target_coverage": COVERAGE,
        "threshold": _one_or_all([one.set_threshold for one in calibrated.calibrations]),
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
