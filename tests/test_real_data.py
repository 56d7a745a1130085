"""A short run on the real HAM10000 with real pretrained weights: all steps, on few images."""

import pandas as pd
import pytest
from conftest import REAL_DATA, REAL_WEIGHTS, needs_real_data, needs_real_weights

from skinlesion.config import make_config
from skinlesion.data.copies import copy_images
from skinlesion.data.dataset import load_metadata
from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.evaluation.calibration import calibrate
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.model.train import train

pytestmark = [needs_real_data, needs_real_weights]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(REAL_DATA, tmp_path_factory.mktemp("real") / "images")


@pytest.fixture(scope="module")
def some_images(images, tmp_path_factory):
    """A dataset of every fifth lesion."""
    folder = tmp_path_factory.mktemp("some")
    table = load_metadata(images)
    chosen = table[table["lesion_id"].isin(sorted(set(table["lesion_id"]))[::5])]
    for path in chosen["path"]:
        (folder / path.name).symlink_to(path)
    metadata = pd.read_csv(images / METADATA_NAME)
    metadata = metadata[metadata["image_id"].isin(chosen["image_id"])]
    metadata.to_csv(folder / METADATA_NAME, index=False)
    return folder


def test_all_images_are_copied_once(images):
    table = load_metadata(images)
    assert len(table) == 10_015
    assert table["lesion_id"].nunique() == 7_470


@pytest.mark.parametrize("recipe", ["default", "original"])
def test_a_short_run_from_split_to_figures(some_images, tmp_path, recipe):
    size = (97, 97) if recipe == "original" else (64, 64)
    small = {"image_size": size, "top_stage": "conv2", "epochs": 2, "limit": 64}
    config = make_config(recipe, weights=REAL_WEIGHTS, **small)
    run = train(some_images, tmp_path / "run", config)
    calibrate(run, some_images)
    evaluate(run, data=some_images)
    metrics = run.metrics
    assert metrics["n"] == len(run.rows("test")) > 250
    assert metrics["synthetic"] is False
    assert run.description["weights"]["loaded_layers"] == 22
    if recipe == "default":
        # A few steps are enough to order the classes better than chance.
        assert metrics["overall"]["macro_auc"]["low"] > 0.5
