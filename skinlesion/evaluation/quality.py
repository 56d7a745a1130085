"""Is an image good enough to be judged? Compared with the images that the network learned from.

No threshold is typed here: what counts as blurred or too dark is what hardly any of the run's own
validation images is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.ndimage import laplace

from skinlesion.files import InputError

TAIL = 0.01
"""Share of the validation images that may lie beyond each limit."""
SMALLEST_SHARE = 0.5
"""An image is too small when the network's input is more than twice as long as it."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class QualityLimits:
    """Between which values 98 % of the validation images lie; those of `measure_quality`.

    Attributes:
        sharpness: the lowest.
        contrast: the lowest.
        darkest: the lowest brightness.
        brightest: the highest brightness.
    """

    sharpness: float
    contrast: float
    darkest: float
    brightest: float

    def to_dict(self) -> dict[str, float]:
        """JSON-ready values."""
        return asdict(self)


def limits_from(values: Mapping[str, Any]) -> QualityLimits:
    """The inverse of `QualityLimits.to_dict`. Raises: `InputError` if something does not fit."""
    try:
        return QualityLimits(**values)
    except TypeError as error:
        raise InputError(f"limits of quality do not fit this version ({error})") from error


def measure_quality(image: np.ndarray) -> dict[str, float]:
    """Figures of one image.

    Args:
        image: uint8 (height, width, 3), RGB, at the network's size: at another, sharpness differs.

    Returns:
        `brightness`, the mean grey value, 0 to 1; `contrast`, the standard deviation of the grey
        values, 0 to 0.5; `sharpness`, the variance of the Laplacian of the grey values (J. L.
        Pech-Pacheco et al., ICPR 2000, doi:10.1109/ICPR.2000.903548), divided by their variance, so
        that a pale image is not called blurred; 0 or more.
    """
    grey = image.astype(np.float32) @ np.array(_LUMA, np.float32) / 255
    variance = float(grey.var())
    sharpness = float(laplace(grey).var()) / variance if variance > 0 else 0.0
    return {"brightness": float(grey.mean()), "contrast": variance**0.5, "sharpness": sharpness}


def fit_limits(measured: list[dict[str, float]]) -> QualityLimits:
    """Limits from `measure_quality` of the validation images, one or more."""

    def quantile(name: str, share: float) -> float:
        return float(np.quantile([figures[name] for figures in measured], share))

    return QualityLimits(
        sharpness=quantile("sharpness", TAIL),
        contrast=quantile("contrast", TAIL),
        darkest=quantile("brightness", TAIL),
        brightest=quantile("brightness", 1 - TAIL),
    )


def find_problems(
    image: np.ndarray, limits: QualityLimits | None, *, taken_at: tuple[int, int]
) -> list[str]:
    """What is wrong with an image: none, or some of `small`, `blurred`, `pale`, `dark`, `bright`.

    Args:
        image: as for `measure_quality`.
        limits: None: only the size is looked at.
        taken_at: (height, width) of the file's picture in pixels, before it was resized.
    """
    found = []
    if min(taken_at) < SMALLEST_SHARE * min(image.shape[:2]):
        found.append("small")
    if limits is not None:
        measured = measure_quality(image)
        if measured["sharpness"] < limits.sharpness:
            found.append("blurred")
        if measured["contrast"] < limits.contrast:
            found.append("pale")
        if measured["brightness"] < limits.darkest:
            found.append("dark")
        if measured["brightness"] > limits.brightest:
            found.append("bright")
    return found
