"""Is an image good enough? It is compared with the images that the model was validated on.

No threshold is typed here: the limits of sharpness, contrast and brightness are those that hardly
any validation image of the run exceeds.
"""

from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.ndimage import laplace

TAIL = 0.01
"""Share of the validation images beyond each limit."""
SMALLEST_SHARE = 0.5
"""An image is too small if the network's input is more than twice as long."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Share = Annotated[float, Field(ge=0, le=1, strict=True)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class QualityLimits:
    """Limits of the figures of `measure_quality`, from the validation images.

    Attributes:
        sharpness: the lowest.
        contrast: the lowest.
        darkest: the lowest brightness.
        brightest: the highest brightness.
    """

    sharpness: Annotated[float, Field(ge=0, strict=True)]
    contrast: Share
    darkest: Share
    brightest: Share


def measure_quality(image: np.ndarray) -> dict[str, float]:
    """Measure brightness, contrast and sharpness of an image.

    Args:
        image: uint8 (height, width, 3), RGB, at the network's size: sharpness depends on the size.

    Returns:
        `brightness`, the mean grey value, 0 to 1; `contrast`, the standard deviation of the grey
        values, 0 to 0.5; `sharpness`, the variance of the Laplacian of the grey values (J. L.
        Pech-Pacheco et al., ICPR 2000, doi:10.1109/ICPR.2000.903548) divided by their variance, so
        that low contrast is not taken for blur; 0 or more.
    """
    grey = image.astype(np.float32) @ np.array(_LUMA, np.float32) / 255
    variance = float(grey.var())
    sharpness = float(laplace(grey).var()) / variance if variance > 0 else 0.0
    return {"brightness": float(grey.mean()), "contrast": variance**0.5, "sharpness": sharpness}


def fit_quality_limits(measured: list[dict[str, float]]) -> QualityLimits:
    """Fit the limits to `measure_quality` of the validation images, one or more."""

    def quantile(name: str, share: float) -> float:
        return float(np.quantile([figures[name] for figures in measured], share))

    return QualityLimits(
        sharpness=quantile("sharpness", TAIL),
        contrast=quantile("contrast", TAIL),
        darkest=quantile("brightness", TAIL),
        brightest=quantile("brightness", 1 - TAIL),
    )


def find_problems(
    image: np.ndarray, limits: QualityLimits, *, original_size: tuple[int, int]
) -> list[str]:
    """Find the quality problems of an image.

    Args:
        image: as for `measure_quality`.
        limits: of the model.
        original_size: (height, width) of the picture in pixels before it was resized.

    Returns:
        Some of `small`, `blurred`, `low contrast`, `dark` and `bright`; empty if there is none.
    """
    figures = measure_quality(image)
    tests = {
        "small": min(original_size) < SMALLEST_SHARE * min(image.shape[:2]),
        "blurred": figures["sharpness"] < limits.sharpness,
        "low contrast": figures["contrast"] < limits.contrast,
        "dark": figures["brightness"] < limits.darkest,
        "bright": figures["brightness"] > limits.brightest,
    }
    return [name for name, failed in tests.items() if failed]
