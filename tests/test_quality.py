"""The quality of images."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from skinlesion.evaluation.quality import (
    QualityLimits,
    find_problems,
    fit_quality_limits,
    measure_quality,
)

LOOSE = QualityLimits(sharpness=0.0, contrast=0.0, darkest=0.0, brightest=1.0)
LARGE = (450, 600)


def board(low=0, high=255, size=32):
    """A chess board of single pixels."""
    grey = np.where(np.indices((size, size)).sum(axis=0) % 2, high, low)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def test_figures_worked_by_hand():
    measured = measure_quality(board(51, 153))
    assert measured["brightness"] == pytest.approx(0.4, abs=1e-5)
    assert measured["contrast"] == pytest.approx(0.2, abs=1e-5)
    # Each pixel differs from its four neighbours by 0.4, so the Laplacian is +-1.6 in the middle;
    # at the edges, where SciPy repeats the outermost pixels, less. 1.6**2 / 0.2**2 is 64.
    assert 55 < measured["sharpness"] < 64


def test_a_flat_image_has_no_contrast_and_no_sharpness():
    assert measure_quality(np.full((8, 8, 3), 100, np.uint8))["contrast"] == 0
    assert measure_quality(np.full((8, 8, 3), 100, np.uint8))["sharpness"] == 0


def test_green_counts_more_than_blue():
    green, blue = np.zeros((2, 8, 8, 3), np.uint8)
    green[..., 1] = blue[..., 2] = 255
    assert measure_quality(green)["brightness"] == pytest.approx(0.587, abs=1e-5)
    assert measure_quality(blue)["brightness"] == pytest.approx(0.114, abs=1e-5)


def test_sharpness_does_not_depend_on_contrast():
    assert measure_quality(board(0, 254))["sharpness"] == pytest.approx(
        measure_quality(board(100, 120))["sharpness"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("limits", "image", "problem"),
    [
        ({"sharpness": 70.0}, board(), "blurred"),
        ({"contrast": 0.3}, board(100, 110), "low contrast"),
        ({"darkest": 0.3}, board(0, 100), "dark"),
        ({"brightest": 0.7}, board(200, 255), "bright"),
    ],
)
def test_each_limit_has_its_problem(limits, image, problem):
    assert find_problems(image, LOOSE, original_size=LARGE) == []
    tight = replace(LOOSE, **limits)
    assert find_problems(image, tight, original_size=LARGE) == [problem]


@pytest.mark.parametrize(("original_size", "found"), [((16, 90), []), ((90, 15), ["small"])])
def test_small_is_what_was_enlarged_more_than_twice(original_size, found):
    assert find_problems(board(size=32), LOOSE, original_size=original_size) == found


def test_limits_let_in_all_but_the_tails_they_were_fitted_on():
    rng = np.random.default_rng(0)
    measured = [
        {"brightness": b, "contrast": c, "sharpness": s}
        for b, c, s in rng.uniform(0.1, 0.9, (400, 3))
    ]
    limits = fit_quality_limits(measured)
    for name, low in (("sharpness", limits.sharpness), ("contrast", limits.contrast)):
        assert sum(one[name] < low for one in measured) == 4
    assert sum(one["brightness"] < limits.darkest for one in measured) == 4
    assert sum(one["brightness"] > limits.brightest for one in measured) == 4


def test_lesions_of_the_sample_pass_and_the_same_blurred_do_not(sample):
    def load(path, radius):
        with Image.open(path) as image:
            return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)).resize((96, 96)))

    paths = sorted(sample.glob("*_part_*/*.jpg"))
    limits = fit_quality_limits([measure_quality(load(path, 0)) for path in paths])
    sharp, blurred = (
        [
            "blurred" in find_problems(load(path, radius), limits, original_size=LARGE)
            for path in paths
        ]
        for radius in (0, 8)
    )
    assert np.mean(sharp) <= 0.02
    assert np.mean(blurred) >= 0.9
