import h5py
import keras
import numpy as np
import pytest
from conftest import REAL_WEIGHTS, needs_real_weights

from skinlesion.files import InputError
from skinlesion.model.resnet50 import (
    BACKBONE_NAME,
    WeightsUnavailableError,
    build_backbone,
    build_model,
    freeze_pretrained,
    top_stage_of,
    unfreeze,
)

HEAD = [
    "head_conv",
    "head_pool",
    "head_dropout_1",
    "head_flatten",
    "head_dense",
    "head_dropout_2",
    "probabilities",
]


@pytest.fixture(scope="module")
def partial_weights(tmp_path_factory):
    """A legacy HDF5 file with conv1 and conv2 of some ResNet50, as Keras 2 wrote it."""
    path = tmp_path_factory.mktemp("weights") / "partial.h5"
    backbone, _ = build_backbone((32, 32), "none")
    with h5py.File(path, "w") as file:
        layers = [q for q in backbone.layers if q.weights and q.name.startswith(("conv1", "conv2"))]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = np.full(weight.shape, 0.25, "float32")
    return path


def test_the_originals_parameter_count_and_head():
    model, loaded = build_model(image_size=(224, 224), weights="none", head="original")
    assert model.count_params() == 24_801_223
    assert [layer.name for layer in model.layers][-7:] == HEAD
    assert str(loaded) == "no pretrained weights: all 106 backbone layers start at random"


def test_probabilities_add_up():
    model, _ = build_model(image_size=(40, 48), weights="none", head="pooled")
    y_prob = model.predict_on_batch(np.full((2, 40, 48, 3), 128, "float32"))
    assert y_prob.shape == (2, 7)
    assert np.allclose(y_prob.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("head", "smallest"), [("original", 97), ("pooled", 32)])
def test_too_small_is_refused_with_the_smallest_size_that_works(head, smallest):
    with pytest.raises(InputError, match=rf"at least {smallest} pixels. Received: image_size="):
        build_model(image_size=(smallest - 1, 224), weights="none", head=head)
    build_model(image_size=(smallest, smallest), weights="none", head=head)


def test_imagenet_preprocessing_is_kerass_own():
    model, _ = build_model(image_size=(32, 32), weights="none", head="pooled")
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    backbone = model.get_layer(BACKBONE_NAME)
    rest = keras.Model(backbone.input, backbone.output)
    expected = rest.predict_on_batch(keras.applications.resnet50.preprocess_input(pixels.copy()))
    probe = keras.Model(model.input, model.get_layer("head_pool").input)
    assert np.allclose(probe.predict_on_batch(pixels), expected, rtol=1e-4, atol=1e-4)


def test_division_by_255_is_the_originals():
    model, _ = build_model(
        image_size=(32, 32), weights="none", head="pooled", preprocessing="divide_by_255"
    )
    probe = keras.Model(model.input, model.get_layer("divide_by_255").output)
    assert np.allclose(probe.predict_on_batch(np.full((1, 32, 32, 3), 51.0)), 0.2)


def test_a_partial_file_is_loaded_by_name_and_counted(partial_weights):
    backbone, loaded = build_backbone((32, 32), str(partial_weights))
    assert str(loaded).startswith("22 of 106 backbone layers loaded")
    for layer in backbone.layers:
        if layer.weights:
            full = all(np.allclose(weight, 0.25) for weight in layer.get_weights())
            assert full == (layer.name in loaded.layers)


def test_pretrained_stages_are_those_of_the_file(partial_weights):
    options = {"image_size": (32, 32), "head": "pooled", "top_stage": "pretrained"}
    model, loaded = build_model(weights=str(partial_weights), **options)
    assert top_stage_of(model) == "conv2"
    assert len(loaded.layers) == loaded.total
    assert top_stage_of(build_model(weights="none", **options)[0]) == "conv5"


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
    assert "--weights FILE" in str(caught.value)


def trained_names(model):
    return {
        layer.name
        for layer in model.get_layer(BACKBONE_NAME).layers
        if layer.weights and layer.trainable
    }


def test_frozen_means_exactly_the_loaded_layers(partial_weights):
    model, loaded = build_model(image_size=(32, 32), weights=str(partial_weights), head="pooled")
    freeze_pretrained(model, loaded)
    every = {q.name for q in model.get_layer(BACKBONE_NAME).layers if q.weights}
    assert trained_names(model) == every - loaded.layers


def test_fine_tuning_trains_from_a_stage_on_and_spares_pretrained_batch_norm(partial_weights):
    model, loaded = build_model(image_size=(32, 32), weights=str(partial_weights), head="pooled")
    unfreeze(model, loaded, fine_tune_from="conv2", train_batch_norm=False)
    names = trained_names(model)
    assert "conv1_conv" not in names
    assert "conv2_block1_1_conv" in names
    assert "conv2_block1_1_bn" not in names
    # Not pretrained: trained from the start, BatchNorm too.
    assert {"conv3_block1_1_conv", "conv3_block1_1_bn"} <= names


def test_the_original_trains_everything(partial_weights):
    model, loaded = build_model(image_size=(32, 32), weights=str(partial_weights), head="pooled")
    unfreeze(model, loaded, fine_tune_from="conv1", train_batch_norm=True)
    assert len(trained_names(model)) == 106


def test_momentum_is_set_where_nothing_was_loaded(partial_weights):
    backbone = build_model(
        image_size=(32, 32), weights=str(partial_weights), head="pooled", batch_norm_momentum=0.9
    )[0].get_layer(BACKBONE_NAME)
    assert backbone.get_layer("conv1_bn").momentum == 0.99
    assert backbone.get_layer("conv5_block3_3_bn").momentum == 0.9


@needs_real_weights
def test_the_real_weights_are_loaded():
    backbone, loaded = build_backbone((64, 64), REAL_WEIGHTS)
    assert len(loaded.layers) >= 86
    with h5py.File(REAL_WEIGHTS) as file:
        kernel = file["conv4_block6_3_conv/conv4_block6_3_conv/kernel:0"][:]
    assert (backbone.get_layer("conv4_block6_3_conv").get_weights()[0] == kernel).all()
