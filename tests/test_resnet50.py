import h5py
import keras
import numpy as np
import pytest
from conftest import REAL_WEIGHTS, TINY, needs_real_weights

from skinlesion.config import make_config
from skinlesion.files import InputError
from skinlesion.model.resnet50 import (
    WeightsUnavailableError,
    build_backbone,
    build_classifier,
    build_model,
    find_part,
    freeze,
    pretrained_weights,
    top_stage_of,
)
from skinlesion.model.train import compile_model

HEAD = ["conv", "pool", "dropout_1", "flatten", "dense", "dropout_2", "probabilities"]


def tiny(**changes):
    return make_config("default", **TINY | {"epochs": 2} | changes)


def trained_names(backbone):
    return {layer.name for layer in backbone.layers if layer.weights and layer.trainable}


def test_the_originals_parameter_count_and_head():
    classifier = build_classifier(make_config("original", weights="none"), 7)
    assert classifier.count_params() == 24_801_223
    assert [layer.name for layer in classifier.layers] == ["preprocessing", "backbone", "head"]
    assert [layer.name for layer in classifier.get_layer("head").layers] == HEAD
    pretrained = pretrained_weights(classifier)
    assert str(pretrained) == "no pretrained weights: all 106 backbone layers start at random"


def test_the_model_is_augmentation_and_classifier():
    model = build_model(tiny(image_size=(40, 48)), 7)
    assert [layer.name for layer in model.layers] == ["augmentation", "classifier"]
    y_prob = model.predict_on_batch(np.full((2, 40, 48, 3), 128, "float32"))
    assert y_prob.shape == (2, 7)
    assert np.allclose(y_prob.sum(axis=1), 1, atol=1e-6)


def test_the_same_settings_give_the_same_initial_weights():
    one, other = (build_model(tiny(), 7).get_weights() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("recipe", "smallest"), [("original", 97), ("default", 32)])
def test_too_small_is_refused_with_the_smallest_size_that_works(recipe, smallest):
    small = {"weights": "none", "top_stage": "conv5"}
    with pytest.raises(InputError, match=rf"at least {smallest} pixels. Received: image_size="):
        build_classifier(make_config(recipe, **small, image_size=(smallest - 1, 224)), 7)
    build_classifier(make_config(recipe, **small, image_size=(smallest, smallest)), 7)


def test_imagenet_preprocessing_is_kerass_own():
    preprocessing = build_classifier(tiny(), 7).get_layer("preprocessing")
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = keras.applications.resnet50.preprocess_input(pixels.copy())
    assert np.allclose(preprocessing.predict_on_batch(pixels), expected, atol=1e-4)


def test_division_by_255_is_the_originals():
    preprocessing = build_classifier(tiny(preprocessing="divide_by_255"), 7).get_layer(
        "preprocessing"
    )
    assert np.allclose(preprocessing(np.full((1, 32, 32, 3), 51.0)), 0.2)


def test_a_partial_file_is_loaded_by_name_and_counted(conv2_weights):
    backbone = build_backbone((32, 32), str(conv2_weights))
    assert str(backbone.pretrained).startswith("22 of 106 backbone layers loaded")
    with h5py.File(conv2_weights) as file:
        for layer in backbone.layers:
            if layer.weights and layer.name in file:
                stored = file[layer.name][layer.name].values()
                values = {v.shape: float(v[()].sum()) for v in stored if v.ndim == 4}
                kernels = [w for w in layer.get_weights() if w.ndim == 4]
                assert all(np.isclose(k.sum(), values[k.shape], atol=1e-4) for k in kernels)
                assert layer.name in backbone.pretrained.layers


def test_a_network_that_ends_where_its_weights_end_is_pretrained_as_a_whole(conv2_weights):
    backbone = build_backbone((32, 32), str(conv2_weights), "conv2")
    assert top_stage_of(backbone) == "conv2"
    assert len(backbone.pretrained.layers) == backbone.pretrained.total
    assert top_stage_of(build_backbone((32, 32), "none")) == "conv5"


def test_a_file_without_any_layer_of_ours_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense_1"]
        file.create_group("dense_1")["kernel"] = np.zeros(3)
    with pytest.raises(InputError, match=r"other\.h5: holds no layer .* nothing was loaded"):
        build_backbone((32, 32), str(tmp_path / "other.h5"))


@pytest.mark.parametrize("name", ["absent.h5", "text.h5"])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path, name):
    (tmp_path / "text.h5").write_text("weights")
    with pytest.raises(InputError, match=name):
        build_backbone((32, 32), str(tmp_path / name))


def test_no_network_is_told_with_the_ways_out(monkeypatch):
    def fail(**arguments):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(WeightsUnavailableError, match="URL fetch failure") as caught:
        build_backbone((32, 32), "imagenet")
    assert "name a file as `weights`" in str(caught.value)


def test_frozen_means_exactly_the_pretrained_layers_below_the_stage(conv2_weights):
    settings = tiny(weights=str(conv2_weights), top_stage="conv3", fine_tune_from="conv2")
    names = trained_names(find_part(build_model(settings, 7), "backbone"))
    assert "conv1_conv" not in names
    assert "conv2_block1_1_conv" in names
    # Pretrained BatchNorm layers keep their statistics.
    assert "conv2_block1_1_bn" not in names
    # Layers without pretrained weights are trained from the start, BatchNorm too.
    assert {"conv3_block1_1_conv", "conv3_block1_1_bn"} <= names
    backbone = find_part(
        build_model(settings.model_copy(update={"fine_tune_from": "conv3"}), 7), "backbone"
    )
    every = {layer.name for layer in backbone.layers if layer.weights}
    assert trained_names(backbone) == every - backbone.pretrained.layers


def test_the_original_trains_everything(conv2_weights):
    backbone = build_backbone((32, 32), str(conv2_weights), "conv3")
    freeze(backbone, make_config("original"))
    assert trained_names(backbone) == {layer.name for layer in backbone.layers if layer.weights}


def test_momentum_is_set_where_nothing_was_loaded(conv2_weights):
    settings = tiny(weights=str(conv2_weights), top_stage="conv3", batch_norm_momentum=0.8)
    backbone = find_part(build_model(settings, 7), "backbone")
    assert backbone.get_layer("conv1_bn").momentum == 0.99
    assert backbone.get_layer("conv3_block1_1_bn").momentum == 0.8


def make_optimizer(settings):
    model = build_model(settings, 7)
    compile_model(model, settings, steps=50)
    return model.optimizer


def test_the_rate_depends_on_pretrained_weights_and_follows_the_schedule(conv2_weights):
    rates = {"learning_rate": 1e-4, "scratch_learning_rate": 1e-2}
    scratch = make_optimizer(tiny(**rates))
    tuned = make_optimizer(tiny(**rates, weights=str(conv2_weights)))
    for optimizer, rate in ((scratch, 1e-2), (tuned, 1e-4)):
        schedule = optimizer._learning_rate
        assert float(schedule(10)) == pytest.approx(rate)  # after 10 % of 2 x 50 steps
        assert float(schedule(0)) == pytest.approx(rate / 100)
        assert float(schedule(100)) == pytest.approx(rate / 100)
    flat = make_optimizer(tiny(**rates, schedule="plateau"))
    assert float(flat.learning_rate) == pytest.approx(1e-2)


@needs_real_weights
def test_the_real_weights_are_loaded():
    backbone = build_backbone((64, 64), REAL_WEIGHTS)
    assert len(backbone.pretrained.layers) >= 86
    with h5py.File(REAL_WEIGHTS) as file:
        kernel = file["conv4_block6_3_conv/conv4_block6_3_conv/kernel:0"][:]
    assert (backbone.get_layer("conv4_block6_3_conv").get_weights()[0] == kernel).all()
