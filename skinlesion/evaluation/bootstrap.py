"""A bootstrap over lesions: from figures of weighted images to 95 % intervals."""

import numpy as np

from skinlesion.files import InputError

N_BOOTSTRAP = 1000
"""Resamples of the lesions."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the resamples: a 95 % interval (Efron and Tibshirani, 1993, chapter 13)."""

Figure = dict[str, float | int]
"""`value`; `low` and `high`, the ends of the 95 % interval; `undefined_resamples`."""


def draw_weights(
    count: int,
    groups: np.ndarray | None = None,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> tuple[np.ndarray, int]:
    """Draw a bootstrap over lesions, as the number of times that each image counts.

    Args:
        count: number of images.
        groups: (count,), the lesion of each image; None: every image is a lesion of its own.
        n_bootstrap: number of resamples.
        seed: of the resamples.

    Returns:
        float32 (1 + n_bootstrap, count), whose first row, all 1, is the data itself; and the
        number of lesions.

    Raises:
        InputError: there are no images.
    """
    if not count:
        raise InputError("there are no images to compute figures from")
    groups = np.arange(count) if groups is None else np.asarray(groups)
    _, group_of = np.unique(groups, return_inverse=True)
    lesions = int(group_of.max()) + 1
    rng = np.random.default_rng(seed)
    times = rng.multinomial(lesions, np.full(lesions, 1 / lesions), size=n_bootstrap)
    return np.vstack([np.ones(count), times[:, group_of]]).astype(np.float32), lesions


def summarise(values: np.ndarray) -> Figure:
    """Summarise a figure and its resamples.

    Args:
        values: float (1 + n_bootstrap,): of the data, then of the resamples; NaN if undefined.

    Returns:
        `value`; `low` and `high`, percentiles of the resamples; `undefined_resamples`, the number
        of resamples with NaN, which are left out.
    """
    resampled = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(resampled, INTERVAL) if len(resampled) else (np.nan, np.nan)
    return {
        "value": float(values[0]),
        "low": float(low),
        "high": float(high),
        "undefined_resamples": len(values) - 1 - len(resampled),
    }


def compute_share(hits: np.ndarray, cases: np.ndarray, weights: np.ndarray) -> Figure:
    """Compute the share of `cases` that are `hits`, or the mean of `hits` over the cases.

    Args:
        hits: (n,), bool, or numbers.
        cases: bool (n,); without any, the result is NaN.
        weights: from `draw_weights`.
    """
    cases = np.asarray(cases, np.float64)
    return summarise(divide(weights @ (np.asarray(hits) * cases), weights @ cases))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide elementwise; NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
