"""A short run on the real HAM10000 with real pretrained weights: all steps, on few images."""

import pytest
from conftest import REAL_DATA, REAL_WEIGHTS, needs_real_data, needs_real_weights

from skinlesion.config import make_config
from skinlesion.data.copies import copy_images
from skinlesion.data.dataset import load_metadata
from skinlesion.evaluation.calibration import calibrate
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.model.train import train

pytestmark = [needs_real_data, needs_real_weights]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(REAL_DATA, tmp_path_factory.mktemp("real") / "images")


def test_all_images_are_copied_once(images):
    table = load_metadata(images)
    assert len(table) == 10_015
    assert table["lesion_id"].nunique() == 7_470


@pytest.mark.parametrize("recipe", ["default", "original"])
def test_a_short_run_from_split_to_figures(images, tmp_path, recipe):
    size = (97, 97) if recipe == "original" else (64, 64)
    small = {"image_size": size, "top_stage": "conv2", "epochs": 2, "limit": 64}
    config = make_config(recipe, weights=REAL_WEIGHTS, **small)
    run = train(images, tmp_path / "run", config)
    calibrate(run, images)
    evaluate(run, data=images)
    metrics = run.metrics
    assert metrics["n"] == {"default": 1503, "original": 1703}[recipe]
    assert metrics["synthetic"] is False
    assert run.description["weights"]["loaded_layers"] == 22
    if recipe == "default":
        # A few steps are enough to order the classes better than chance.
        assert metrics["overall"]["macro_auc"]["low"] > 0.5
