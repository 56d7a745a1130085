"""What is fitted on the validation images: temperature, operating points, prediction sets.

Validation also chose the checkpoint, so everything fitted here looks a little better there than it
is; only the measurement on the test images counts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from skinlesion.diagnoses import CLASS_CODES
from skinlesion.evaluation.metrics import MALIGNANT, compute_metrics, compute_share
from skinlesion.files import InputError

SENSITIVITIES = (0.90, 0.95)
"""Sensitivities to malignancy for which a threshold is chosen."""
COVERAGE = 0.90
"""Share of images whose true class the prediction set should hold."""
REFERRED = tuple(np.round(np.arange(0.0, 0.95, 0.05), 2))
"""Shares of images referred to a doctor at which the risk among the rest is measured."""
TEMPERATURES = (0.05, 20.0)
"""Range in which the temperature is sought."""


@dataclass(frozen=True)
class Calibration:
    """What prediction has to know to give honest confidences.

    Attributes:
        temperature: logits are divided by it: above 1 makes the model less confident.
        thresholds: target sensitivity (as text, such as `0.90`) to the probability of malignancy
            from which an image is called malignant; None where validation had no malignant image.
        set_threshold: a class is in the prediction set when its probability is at least this.
        images: number of validation images that this was fitted on.
    """

    temperature: float
    thresholds: dict[str, float | None]
    set_threshold: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def calibration_from_dict(values: Mapping[str, Any]) -> Calibration:
    """The inverse of `Calibration.to_dict`.

    Raises:
        InputError: something is missing or unknown.
    """
    try:
        return Calibration(**values)
    except TypeError as error:
        raise InputError(f"calibration does not fit this version ({error})") from error


def fit_calibration(y_true: np.ndarray, y_prob: np.ndarray) -> Calibration:
    """Fit everything on validation images.

    Temperature scaling: Guo et al., arXiv:1706.04599, by the lowest log loss. Prediction sets:
    split conformal with the score 1 - p(true class), as in Sadinle et al., arXiv:1609.00451.

    Args:
        y_true: int (n,), labels 0 to 6.
        y_prob: float (n, 7), uncalibrated probabilities.
    """
    temperature = fit_temperature(y_true, y_prob)
    calibrated = apply_temperature(y_prob, temperature)
    malignancy = sum_malignant(calibrated)[MALIGNANT[y_true]]
    thresholds: dict[str, float | None] = {}
    for target in SENSITIVITIES:
        # The largest threshold that still finds the target share of the malignant images.
        missed = int(np.floor((1 - target) * len(malignancy) + 1e-9))
        found = np.sort(malignancy)[missed] if len(malignancy) else None
        thresholds[f"{target:.2f}"] = None if found is None else float(found)
    of_truth = np.sort(calibrated[np.arange(len(y_true)), y_true])
    # The quantile with the correction for finite samples, ceil((n + 1) * coverage) / n of the
    # scores: the same as the k-th smallest probability of the truth from below.
    below = len(y_true) - int(np.ceil((len(y_true) + 1) * COVERAGE))
    set_threshold = float(of_truth[below]) if below >= 0 else 0.0
    return Calibration(temperature, thresholds, set_threshold, len(y_true))


def fit_temperature(y_true: np.ndarray, y_prob: np.ndarray) -> float:
    """The temperature with the lowest log loss, within `TEMPERATURES`."""

    def log_loss(log_temperature: float) -> float:
        calibrated = apply_temperature(y_prob, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(calibrated[np.arange(len(y_true)), y_true], 1e-300)).mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))


def apply_temperature(y_prob: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n, 7) as they would be with the logits divided by the temperature; float64."""
    logits = np.log(np.maximum(np.asarray(y_prob, np.float64), 1e-38))
    return softmax(logits / temperature, axis=1)


def sum_malignant(y_prob: np.ndarray) -> np.ndarray:
    """Probability (n,) that an image shows mel, bcc or akiec."""
    return y_prob[:, MALIGNANT].sum(axis=1)


def make_prediction_sets(calibrated: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Which classes are in the prediction set: bool (n, 7); the most probable one always is."""
    sets = calibrated >= calibration.set_threshold
    sets[np.arange(len(sets)), calibrated.argmax(axis=1)] = True
    return sets


def compute_calibration(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    calibration: Calibration,
    *,
    groups: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Any]:
    """What the fitted calibration gives on other images, with 95 % intervals.

    Args:
        y_true: int (n,).
        y_prob: float (n, 7), uncalibrated.
        calibration: fitted on validation.
        groups: (n,), the lesion of each image.
        weights: bootstrap draws of the same images, from `evaluation.draw_weights`.

    Returns:
        `temperature`; `before` and `after`: ece, brier, log_loss; `operating_points`: a list with
        target, threshold, sensitivity, specificity, ppv, npv; `prediction_sets`: target,
        threshold, coverage, mean size, how many sets of each size, and the first two per class;
        `referral`: see `compute_referral`.
    """
    calibrated = apply_temperature(y_prob, calibration.temperature)
    draws = len(weights) - 1
    before, after = (
        compute_metrics(y_true, p, groups=groups, draws=draws)["overall"]
        for p in (y_prob, calibrated)
    )
    figures = ("ece", "brier", "log_loss")
    return {
        "temperature": calibration.temperature,
        "validation_images": calibration.images,
        "before": {name: before[name] for name in figures},
        "after": {name: after[name] for name in figures},
        "operating_points": [
            {"target_sensitivity": float(target), "threshold": threshold}
            | compute_operating_point(y_true, calibrated, threshold, weights)
            for target, threshold in calibration.thresholds.items()
        ],
        "prediction_sets": _measure_sets(y_true, calibrated, calibration, weights),
        "referral": compute_referral(y_true, calibrated, weights),
    }


def compute_operating_point(
    y_true: np.ndarray, calibrated: np.ndarray, threshold: float | None, weights: np.ndarray
) -> dict[str, dict[str, float | int]]:
    """Sensitivity, specificity, PPV and NPV to malignancy at a threshold, with intervals."""
    malignant = MALIGNANT[y_true]
    called = sum_malignant(calibrated) >= (np.nan if threshold is None else threshold)
    nothing = np.zeros(len(y_true), bool)
    cases = (malignant, ~malignant, called, ~called) if threshold is not None else (nothing,) * 4
    hits = (called, ~called, malignant, ~malignant)
    names = ("sensitivity", "specificity", "ppv", "npv")
    return {
        name: compute_share(hit, case, weights)
        for name, hit, case in zip(names, hits, cases, strict=True)
    }


def compute_referral(
    y_true: np.ndarray, calibrated: np.ndarray, weights: np.ndarray
) -> list[dict[str, Any]]:
    """Risk against coverage: the least confident images are referred, the rest is judged.

    Source: Geifman and El-Yaniv, arXiv:1705.08500, with the highest probability as confidence.

    Returns:
        A row for each of `REFERRED`: `referred` and `coverage` (shares), `confidence` (lowest that
        is judged), `error` (share judged wrongly) and `missed` (share of the malignant images that
        were judged benign without being referred), both with intervals.
    """
    confidence = calibrated.max(axis=1)
    wrong = calibrated.argmax(axis=1) != y_true
    called_benign = ~MALIGNANT[calibrated.argmax(axis=1)]
    rows = []
    for referred in REFERRED:
        least = np.sort(confidence)[int(referred * len(confidence))]
        kept = confidence >= least
        rows.append(
            {
                "referred": float(1 - kept.mean()),
                "coverage": float(kept.mean()),
                "confidence": float(least),
                "error": compute_share(wrong, kept, weights),
                "missed": compute_share(called_benign & kept, MALIGNANT[y_true], weights),
            }
        )
    return rows


def _measure_sets(
    y_true: np.ndarray, calibrated: np.ndarray, calibration: Calibration, weights: np.ndarray
) -> dict[str, Any]:
    sets = make_prediction_sets(calibrated, calibration)
    holds, sizes = sets[np.arange(len(y_true)), y_true], sets.sum(axis=1)
    everything = np.ones(len(y_true), bool)
    return {
        "target_coverage": COVERAGE,
        "threshold": calibration.set_threshold,
        "coverage": compute_share(holds, everything, weights),
        "mean_size": compute_share(sizes, everything, weights),
        "sizes": {str(size): int((sizes == size).sum()) for size in range(1, len(CLASS_CODES) + 1)},
        "per_class": {
            code: {
                "support": int((y_true == label).sum()),
                "coverage": compute_share(holds, y_true == label, weights),
                "mean_size": compute_share(sizes, y_true == label, weights),
            }
            for label, code in enumerate(CLASS_CODES)
        },
    }
