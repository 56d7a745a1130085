import keras
import numpy as np
import pytest

from skinlesion.model.augmentation import (
    Mixing,
    RandomAffine,
    RandomFlipAndTurn,
    make_augmentation,
    make_feature_augmentation,
)


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


class TestFeatures:
    def test_all_eight_flips_and_turns_occur_and_nothing_else(self):
        maps = np.random.default_rng(0).normal(size=(200, 5, 5, 4)).astype("float32")
        out = np.asarray(RandomFlipAndTurn(seed=1)(maps, training=True))
        seen = []
        for before, after in zip(maps, out, strict=True):
            views = [v for k in range(4) for v in (np.rot90(before, k), np.rot90(before, k)[::-1])]
            seen.append([i for i, view in enumerate(views) if (view == after).all()])
        assert {len(found) for found in seen} == {1}
        counts = np.bincount(np.ravel(seen), minlength=8)
        assert counts.min() > 10

    def test_maps_that_are_not_square_are_not_turned(self):
        maps = np.random.default_rng(0).normal(size=(50, 4, 6, 2)).astype("float32")
        out = np.asarray(RandomFlipAndTurn(seed=1)(maps, training=True))
        for before, after in zip(maps, out, strict=True):
            views = [before, before[::-1], before[:, ::-1], before[::-1, ::-1]]
            assert any((view == after).all() for view in views)

    def test_outside_training_nothing_happens(self):
        maps = np.ones((2, 4, 4, 3), "float32") * np.arange(4)[:, None, None]
        assert (np.asarray(make_feature_augmentation("dermatoscopic", seed=1)(maps)) == maps).all()

    def test_small_angles_cannot_be_done_to_maps(self):
        assert make_feature_augmentation("original", seed=1) is None


class TestMixing:
    def batch(self):
        """Sixteen images, each of one value: its own number."""
        labels = np.eye(16, dtype="float32")
        images = np.arange(16, dtype="float32")[:, None, None, None] * np.ones((1, 20, 30, 3), "f")
        return images, labels

    def mixed(self, kind, seed):
        images, labels = Mixing(kind, alpha=1.0, seed=seed)(*self.batch())
        return np.asarray(images), np.asarray(labels)

    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_labels_say_what_the_pixels_show(self, kind):
        shares = []
        for seed in range(20):
            images, labels = self.mixed(kind, seed)
            assert np.allclose(labels.sum(axis=1), 1, atol=1e-5)
            assert np.allclose(images.mean(axis=(1, 2, 3)), labels @ np.arange(16), atol=1e-3)
            shares.append(labels.max())
        assert min(shares) < 0.7 < 0.9 < max(shares)

    def test_cutmix_pastes_one_rectangle(self):
        for seed in range(10):
            images, _ = self.mixed("cutmix", seed)
            foreign = (images[:, :, :, 0] != np.arange(16)[:, None, None]).any(axis=0)
            rows, columns = foreign.any(axis=1), foreign.any(axis=0)
            assert (foreign == rows[:, None] & columns[None, :]).all()
            assert set(np.unique(images)) <= set(range(16))

    def test_mixup_blends_the_whole_image(self):
        images, _ = self.mixed("mixup", 3)
        assert (images == images[:, :1, :1]).all()
