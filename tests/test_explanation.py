"""Grad-CAM: where the heat is, held to a model whose answer is known."""

import numpy as np
import pytest
from PIL import Image

from skinlesion.evaluation.gradcam import compute_grad_cam, measure_heat, overlay_heat
from skinlesion.files import InputError
from skinlesion.model.resnet50 import build_model


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(3)
    return build_model(image_size=(64, 96), weights="none", head="pooled")[0]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)


def test_shape_and_range(model, images):
    heat = compute_grad_cam(model, images, np.array([0, 4, 6]))
    assert heat.shape == (3, 64, 96)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2))) <= {0.0, 1.0}


def test_each_image_is_explained_by_itself_and_for_its_own_class(model, images):
    together = compute_grad_cam(model, images, np.array([0, 4, 4]))
    alone = compute_grad_cam(model, images[1:2], np.array([4]))
    assert np.allclose(together[1], alone[0], atol=1e-3)
    other = compute_grad_cam(model, images[1:2], np.array([5]))
    assert not np.allclose(other, alone, atol=1e-2)


def test_equals_the_paper_for_a_head_that_pools(images):
    """At 224x224 the map is conv5's, and a pooled head makes its gradient the class's weights."""
    import keras

    model, _ = build_model(image_size=(224, 224), weights="none", head="pooled")
    pixels = np.repeat(np.repeat(images[:1, :, :64], 4, 1), 4, 2)[:, :224, :224]
    heat = compute_grad_cam(model, pixels, np.array([2]))
    backbone = model.get_layer("resnet50")
    ready = keras.applications.resnet50.preprocess_input(pixels.astype("float32"))
    maps = np.asarray(backbone(ready, training=False))[0]
    expected = np.maximum(maps @ np.asarray(model.layers[-1].kernel)[:, 2], 0)
    enlarged = np.asarray(keras.ops.image.resize(expected[..., None], (224, 224)))[..., 0]
    assert np.allclose(heat[0], enlarged / enlarged.max(), atol=1e-3)


def test_the_originals_head_can_be_explained(images):
    model, _ = build_model(image_size=(97, 97), weights="none", head="original")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 97, 97, 3), np.uint8)
    assert compute_grad_cam(model, pixels, np.array([0, 1])).shape == (2, 97, 97)


def test_the_model_is_left_as_it_was(model, images):
    before = [np.array(value) for value in model.get_weights()]
    compute_grad_cam(model, images, np.array([0, 1, 2]))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_no_images_and_bad_labels(model, images):
    assert compute_grad_cam(model, images[:0], np.zeros(0, int)).shape == (0, 64, 96)
    with pytest.raises(InputError, match="labels must be 0 to 6"):
        compute_grad_cam(model, images, np.array([0, 1, 7]))


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
