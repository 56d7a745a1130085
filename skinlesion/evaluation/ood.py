"""The gate for foreign images: does an image look like those that the network was trained on?

The network answers any picture with one of seven diagnoses. The gate measures how far the picture
is from the training images, in the network's own features, and turns away what is farther than 95 %
of the validation images. It knows no foreign images: whatever they are, none was used to fit it.
docs/foreign_images.md has the methods that were compared, and what it turns away.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.covariance import LedoitWolf

from skinlesion.files import InputError

STAGE = "conv3"
"""Stage of the network whose output, pooled, describes an image. Later ones tell the diagnoses
better apart and turn away more of the rare ones."""
FALSE_ALARMS = 0.05
"""Share of the validation images that may be turned away."""


@dataclass(frozen=True)
class ForeignGate:
    """One Gaussian around the training images, and the distance from which an image is foreign.

    Source: the Mahalanobis distance of K. Lee et al., arXiv:1807.03888, with one Gaussian for all
    classes, and the covariance of O. Ledoit and M. Wolf, J. Multivariate Analysis 88 (2004), which
    can be inverted however few the images are.

    Attributes:
        stage: of the network whose pooled output the features are, such as `conv3`.
        mean: float32 (d,), of the features of the training images.
        precision: float32 (d, d), the inverse of their covariance.
        threshold: distance above which an image is turned away.
        images: number of validation images that the threshold was fitted on.
    """

    stage: str
    mean: np.ndarray
    precision: np.ndarray
    threshold: float
    images: int

    def compute_scores(self, features: np.ndarray) -> np.ndarray:
        """How foreign images are.

        Args:
            features: float (n, d).

        Returns:
            float64 (n,): their distance as a multiple of the threshold; above 1 is foreign.
        """
        return compute_distances(features, self.mean, self.precision) / self.threshold

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; the arrays go into a file of their own."""
        return {
            "method": "mahalanobis",
            "stage": self.stage,
            "threshold": self.threshold,
            "false_alarms": FALSE_ALARMS,
            "images": self.images,
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by name."""
        return {"mean": self.mean, "precision": self.precision}


def gate_from(values: dict[str, Any], arrays: dict[str, np.ndarray]) -> ForeignGate:
    """The inverse of `ForeignGate.to_dict` and `ForeignGate.to_arrays`.

    Raises:
        InputError: something is missing, or made by another method.
    """
    try:
        if values["method"] != "mahalanobis":
            raise InputError(f"gate for foreign images: unknown method {values['method']!r}")
        fields = {name: values[name] for name in ("stage", "threshold", "images")}
        return ForeignGate(**fields, mean=arrays["mean"], precision=arrays["precision"])
    except KeyError as error:
        raise InputError(f"gate for foreign images does not fit this version ({error})") from error


def fit_gate(train: np.ndarray, validation: np.ndarray, *, stage: str = STAGE) -> ForeignGate:
    """Fit the Gaussian on training images and the threshold on validation images.

    Args:
        train: float (n, d), features of the training images, not augmented.
        validation: float (m, d), of the validation images.
        stage: that the features come from.
    """
    fitted = LedoitWolf().fit(np.asarray(train, np.float64))
    mean, precision = fitted.location_.astype(np.float32), fitted.precision_.astype(np.float32)
    distances = compute_distances(validation, mean, precision)
    # A distance that occurs, so that no more than the share is above it however few there are.
    threshold = float(np.quantile(distances, 1 - FALSE_ALARMS, method="higher"))
    return ForeignGate(stage, mean, precision, threshold, len(validation))


def compute_distances(features: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Mahalanobis distances.

    Args:
        features: float (n, d).
        mean: float (d,).
        precision: float (d, d).

    Returns:
        float64 (n,).
    """
    apart = np.asarray(features, np.float64) - mean
    return np.sqrt(np.einsum("nd,nd->n", apart @ np.asarray(precision, np.float64), apart))


def is_foreign(scores: np.ndarray | float) -> np.ndarray:
    """Which images to turn away, bool (n,); also those whose score is not a number."""
    return ~(np.asarray(scores) <= 1)
