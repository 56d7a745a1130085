"""Grad-CAM: where the heat is, held to a model whose answer is known."""

import keras
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from skinlesion.config import make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.evaluation.gradcam import compute_grad_cam, measure_heat, overlay_heat
from skinlesion.model.bundle import ModelInfo
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import build_classifier


def make_predictor(recipe="default", **changes):
    keras.utils.set_random_seed(3)
    config = make_config(recipe, **TINY | changes)
    info = ModelInfo(
        **HAM10000.model_dump(exclude={"synthetic"}),
        image_size=config.image_size,
        resize=config.resize,
        recipe=config.recipe,
        synthetic=True,
    )
    return Predictor(build_classifier(config, 7), info)


def explain(predictor, images, labels):
    maps = predictor.predict_images(images, maps=True).maps
    return compute_grad_cam(predictor, maps, np.array(labels))


@pytest.fixture(scope="module")
def model():
    return make_predictor(image_size=(64, 96))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)


def test_shape_and_range(model, images):
    heat = explain(model, images, [0, 4, 6])
    assert heat.shape == (3, 64, 96)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2))) <= {0.0, 1.0}


def test_each_image_is_explained_by_itself_and_for_its_own_class(model, images):
    together = explain(model, images, [0, 4, 4])
    alone = explain(model, images[1:2], [4])
    assert np.allclose(together[1], alone[0], atol=1e-3)
    other = explain(model, images[1:2], [5])
    assert not np.allclose(other, alone, atol=1e-2)


def test_equals_the_paper_for_a_head_that_pools(images):
    """With a pooled head on the explained stage, the gradient is the weights of the class."""
    predictor = make_predictor(image_size=(64, 64))
    pixels = images[:1, :, :64]
    maps = predictor.predict_images(pixels, maps=True).maps
    heat = compute_grad_cam(predictor, maps, np.array([2]))
    layer = predictor.model.get_layer("head").get_layer("probabilities")
    expected = np.maximum(maps[0] @ np.asarray(layer.kernel)[:, 2], 0)
    enlarged = np.asarray(keras.ops.image.resize(expected[..., None], (64, 64)))[..., 0]
    assert np.allclose(heat[0], enlarged / enlarged.max(), atol=1e-3)


def test_a_coarse_last_stage_is_explained_by_an_earlier_one():
    """At 64x64 the maps of conv4 are 4x4: those of conv3, 8x8, say more."""
    predictor = make_predictor(image_size=(64, 64), top_stage="conv4")
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    assert predictor.predict_images(image, maps=True).maps.shape == (1, 8, 8, 512)
    assert explain(predictor, image, [1]).shape == (1, 64, 64)


def test_the_originals_head_can_be_explained():
    predictor = make_predictor("original", image_size=(97, 97))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 97, 97, 3), np.uint8)
    assert explain(predictor, pixels, [0, 1]).shape == (2, 97, 97)


def test_the_model_is_left_as_it_was(model, images):
    before = [np.array(value) for value in model.model.get_weights()]
    explain(model, images, [0, 1, 2])
    after = model.model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_cold_places_keep_their_colour_and_hot_ones_change():
    image = np.full((40, 60, 3), 120, np.uint8)
    heat = np.zeros((20, 30), np.float32)
    heat[5:15, 20:] = 1
    shown = overlay_heat(image, heat)
    assert shown.shape == image.shape
    assert (shown[:, :30] == 120).all()
    assert (shown[20, 50] != 120).any()


def test_heat_inside_hand_worked(tmp_path):
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :10] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    heat = np.zeros((2, 10, 20))
    heat[0, 2, 1] = 3.0  # inside
    heat[0, 2, 15] = 1.0  # outside
    measured = measure_heat(heat, [tmp_path / "m.png"] * 2)
    assert measured["inside"] == pytest.approx(0.75, abs=0.01)
    assert measured["area"] == pytest.approx(0.25, abs=0.01)
    assert measured["images"] == 1  # the other has no heat
