import keras
import numpy as np
import pytest
from conftest import TINY
from scipy.special import softmax

from skinlesion.config import make_config
from skinlesion.data.dataset import list_images
from skinlesion.files import InputError
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import build_classifier


@pytest.fixture(scope="module")
def paths(sample):
    return list(list_images(sample).values())[:40]


@pytest.fixture(scope="module")
def images(predictor, paths):
    return np.stack([predictor.decode(path) for path in paths])


def test_it_gives_what_the_network_gives(predictor, images):
    outputs = predictor.predict_images(images, maps=True)
    expected = predictor.model.predict(images.astype("float32"), verbose=0)
    assert np.allclose(outputs.y_prob, expected, atol=1e-5)
    assert outputs.features.shape == (40, 256)
    assert outputs.maps.shape == (40, 8, 8, 256)
    # The network ends with conv2, so that both show the same stage.
    assert np.allclose(outputs.maps.mean(axis=(1, 2)), outputs.features, atol=1e-4)


def test_files_give_the_same_as_decoded_images_in_any_batch(predictor, paths, images):
    of_files = predictor.predict_files(paths)
    of_images = predictor.predict_images(images)
    assert of_files.maps is None
    assert np.allclose(of_files.y_prob, of_images.y_prob, atol=1e-6)
    alone = predictor.predict_images(images[7:8]).y_prob
    assert np.allclose(alone, of_images.y_prob[7:8], atol=1e-5)


def test_the_logits_go_on_from_the_maps(predictor, images):
    outputs = predictor.predict_images(images[:3], maps=True)
    logits = predictor.logits.predict_on_batch(outputs.maps)
    assert np.allclose(softmax(logits, axis=1), outputs.y_prob, atol=1e-5)


@pytest.mark.parametrize(("size", "views"), [((32, 32), 8), ((32, 48), 4)])
def test_augmentation_averages_over_mirrored_and_turned_images(predictor, size, views):
    classifier = build_classifier(make_config("default", **TINY | {"image_size": size}), 7)
    ours = Predictor(classifier, predictor.info.model_copy(update={"image_size": size}))
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    seen = [image, image[:, ::-1], image[:, :, ::-1], image[:, ::-1, ::-1]]
    if views == 8:
        seen += [view.swapaxes(1, 2) for view in seen]
    expected = np.mean([ours.predict_images(view).y_prob for view in seen], axis=0)
    averaged = ours.predict_images(image, tta=True)
    assert np.allclose(averaged.y_prob, expected, atol=1e-6)
    assert np.allclose(averaged.features, ours.predict_images(image).features, atol=1e-6)


def test_probabilities_that_are_not_numbers_are_an_error(predictor, images):
    """Otherwise a damaged network would call everything benign."""
    classifier = build_classifier(make_config("default", **TINY), 7)
    classifier.get_layer("head").get_layer("probabilities").bias.assign(np.full(7, np.nan))
    with pytest.raises(InputError, match="not numbers"):
        Predictor(classifier, predictor.info).predict_images(images[:1])


def test_what_does_not_add_up_to_1_is_an_error(predictor, images):
    """Such as the logits of a network whose softmax was cut off."""
    classifier = build_classifier(make_config("default", **TINY), 7)
    classifier.get_layer("head").get_layer("probabilities").activation = keras.activations.linear
    with pytest.raises(InputError, match="do not add up to 1"):
        Predictor(classifier, predictor.info).predict_images(images[:1])


def test_features_that_are_not_numbers_are_an_error(predictor, images):
    """A softmax can hide them, and OOD detection would compare nothing."""
    classifier = build_classifier(make_config("default", **TINY), 7)
    norm = classifier.get_layer("backbone").get_layer("conv2_block3_3_bn")
    norm.gamma.assign(np.full(256, np.inf))
    with pytest.raises(InputError, match="not numbers"):
        Predictor(classifier, predictor.info).predict_images(images[:1])


def test_a_file_that_is_no_image_is_named(predictor, paths, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("text")
    with pytest.raises(InputError, match=r"bad\.jpg"):
        predictor.predict_files([*paths[:2], bad])


def test_nothing_trained_is_told(tmp_path):
    with pytest.raises(InputError, match="train one first"):
        Predictor.load(tmp_path)
