import keras
import numpy as np
import pytest

from skinlesion.model.augmentation import RandomAffine, make_augmentation


def layer(**changes):
    still = {"rotation": 0, "zoom": 0, "keep_aspect": True, "flip": False}
    return RandomAffine(**still | changes, fill_mode="nearest", seed=3)


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(0, 255, (16, 9, 12, 3)).astype("float32")


@pytest.mark.parametrize("kind", ["original", "dermatoscopic", "none"])
def test_nothing_happens_outside_training(images, kind):
    assert (np.asarray(make_augmentation(kind, seed=1)(images, training=False)) == images).all()


@pytest.mark.parametrize("kind", ["original", "dermatoscopic"])
def test_training_changes_images_within_their_range(images, kind):
    out = np.asarray(make_augmentation(kind, seed=1)(images, training=True))
    assert out.shape == images.shape
    assert not np.allclose(out, images)
    assert out.min() >= 0
    assert out.max() <= 255


def test_without_ranges_the_transform_is_the_identity(images):
    assert np.allclose(layer()(images, training=True), images, atol=1e-3)


def test_flips_are_exact_mirrors_and_all_four_occur(images):
    out = np.asarray(layer(flip=True)(images, training=True))
    seen = set()
    for image, changed in zip(images, out, strict=True):
        for number, mirrored in enumerate([image, image[::-1], image[:, ::-1], image[::-1, ::-1]]):
            if np.allclose(changed, mirrored, atol=1e-2):
                seen.add(number)
    assert seen == {0, 1, 2, 3}


def test_transforms_stay_in_the_ranges_and_fix_the_centre():
    transforms = np.asarray(
        layer(rotation=10, zoom=0.1, keep_aspect=False).draw_transforms(2000, 9, 12)
    )
    a, b, shift_x, c, d, shift_y = transforms[:, :6].T
    zoom_x, zoom_y = np.hypot(a, c), np.hypot(b, d)
    angle = np.degrees(np.arctan2(c, a))
    for zoom in (zoom_x, zoom_y):
        assert 0.9 <= zoom.min() < 0.91
        assert 1.09 < zoom.max() <= 1.1 + 1e-6
    assert -10 - 1e-4 <= angle.min() < -9.5
    assert 9.5 < angle.max() <= 10 + 1e-4
    # Zooms of the two axes are drawn apart, as ImageDataGenerator does.
    assert abs(np.corrcoef(zoom_x, zoom_y)[0, 1]) < 0.1
    assert np.allclose(a * 5.5 + b * 4 + shift_x, 5.5, atol=1e-4)
    assert np.allclose(c * 5.5 + d * 4 + shift_y, 4, atol=1e-4)


def test_a_quarter_turn_moves_pixels_as_numpy_does():
    image = np.random.default_rng(1).uniform(0, 255, (1, 8, 8, 3)).astype("float32")
    turn = layer(rotation=90)
    turn._uniform = lambda count, largest: np.full(count, float(largest), "float32")
    out = np.asarray(turn(image, training=True))[0]
    assert any(np.allclose(out, np.rot90(image[0], k), atol=1e-2) for k in (1, 3))


def test_the_same_seed_gives_the_same_images(images):
    def augmented():
        return np.asarray(make_augmentation("dermatoscopic", seed=5)(images, training=True))

    assert (augmented() == augmented()).all()


def test_survives_saving(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layer(rotation=20)(inputs))
    model.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
