"""Out-of-distribution (OOD) detection: does an image look like the training images?

The network answers any picture with one of its diagnoses. The detector measures how far the
picture is from the training images, in features of the network, and flags what is farther than 95 %
of the validation images. It is fitted without any out-of-distribution image. docs/ood.md compares
methods and says what is flagged.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import LedoitWolf

from skinlesion.files import InputError

FALSE_ALARMS = 0.05
"""Share of the validation images that may be flagged."""


@dataclass(frozen=True)
class OODDetector:
    """One Gaussian fitted to the training images, and a threshold for the distance from it.

    Source: the Mahalanobis distance of K. Lee et al., arXiv:1807.03888, with one Gaussian for all
    classes, and the covariance of O. Ledoit and M. Wolf, J. Multivariate Analysis 88 (2004), which
    can be inverted for any number of images.

    Attributes:
        mean: float32 (d,), of the features of the training images.
        precision: float32 (d, d), the inverse of their covariance.
        threshold: distance above which an image is out of distribution, above 0.
    """

    mean: np.ndarray
    precision: np.ndarray
    threshold: float

    def require_possible(self) -> None:
        """Raise `ValueError` unless the threshold and the precision can be those of a Gaussian."""
        if type(self.threshold) is not float or not 0 < self.threshold < np.inf:
            raise ValueError(f"ood.threshold: must be above 0, not {self.threshold}")
        if not (np.diag(self.precision) > 0).all():
            raise ValueError("precision: must be above 0 on its diagonal")

    def compute_scores(self, features: np.ndarray) -> np.ndarray:
        """Compute the OOD score of images.

        Args:
            features: float (n, d), see `predictor.Outputs`.

        Returns:
            float64 (n,): the distance as a multiple of the threshold, 0 or more; above 1 is out of
            distribution.

        Raises:
            InputError: the detector was fitted to other features, or gives what is not a number.
        """
        if features.shape[1:] != self.mean.shape:
            raise InputError(
                f"OOD detection was fitted to {len(self.mean)} features, and the network gives "
                f"{features.shape[1]}: calibrate the run again"
            )
        scores = compute_distances(features, self.mean, self.precision) / self.threshold
        if not np.isfinite(scores).all():
            raise InputError("OOD detection gives scores that are not numbers: calibrate again")
        return scores


def fit_ood_detector(train: np.ndarray, validation: np.ndarray) -> OODDetector:
    """Fit the Gaussian on training images and the threshold on validation images.

    Args:
        train: float (n, d), features of the training images, not augmented.
        validation: float (m, d), features of the validation images.
    """
    fitted = LedoitWolf().fit(np.asarray(train, np.float64))
    mean, precision = fitted.location_.astype(np.float32), fitted.precision_.astype(np.float32)
    distances = compute_distances(validation, mean, precision)
    # A distance that occurs, so that no more than the share is above it, however few there are.
    threshold = float(np.quantile(distances, 1 - FALSE_ALARMS, method="higher"))
    return OODDetector(mean, precision, threshold)


def compute_distances(features: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Compute Mahalanobis distances.

    Args:
        features: float (n, d).
        mean: float (d,).
        precision: float (d, d).

    Returns:
        float64 (n,); NaN where the precision is not that of a Gaussian.
    """
    offset = np.asarray(features, np.float64) - mean
    squared = np.einsum("nd,nd->n", offset @ np.asarray(precision, np.float64), offset)
    return np.sqrt(np.where(squared >= 0, squared, np.nan))


def is_in_distribution(scores: np.ndarray | float) -> np.ndarray:
    """Which OOD scores are in distribution, bool (n,); a score that is not a number is not."""
    return np.asarray(scores) <= 1
