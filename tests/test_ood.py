"""OOD detection: the distance, what is fitted, and what is flagged."""

from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_DATA, REAL_WEIGHTS, needs_real_data, needs_real_weights
from PIL import Image

from skinlesion.config import make_config
from skinlesion.data.dataset import list_images
from skinlesion.evaluation.calibration import calibrate, load_calibration
from skinlesion.evaluation.export import generate_images
from skinlesion.evaluation.ood import (
    OODDetector,
    compute_distances,
    fit_ood_detector,
    is_in_distribution,
)
from skinlesion.model.predictor import Predictor
from skinlesion.model.train import train


def make_detector():
    precision = np.diag([1 / 4, 1 / 9]).astype(np.float32)  # deviations 2 and 3
    return OODDetector(np.array([1, 2], np.float32), precision, 2.0)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    mixing = np.eye(6) + rng.uniform(-0.3, 0.3, (6, 6))
    return [rng.normal(size=(n, 6)) @ mixing + 5 for n in (2000, 300, 1000)]


class TestScore:
    def test_worked_by_hand(self):
        # (3, 2) is one deviation away, (1, 8) two, (5, 8) sqrt(4 + 4); the threshold is 2.
        scores = make_detector().compute_scores(np.array([[1, 2], [3, 2], [1, 8], [5, 8]]))
        assert scores == pytest.approx([0, 0.5, 1, np.sqrt(2)], rel=1e-6)
        assert is_in_distribution(scores - 1e-6).tolist() == [True, True, True, False]

    def test_correlated_features_worked_by_hand(self):
        # Covariance [[2, 1], [1, 2]]: its inverse is [[2, -1], [-1, 2]] / 3. Along the correlation
        # (1, 1) is nearer than against it (1, -1): 2/3 and 6/3, squared.
        precision = np.array([[2, -1], [-1, 2]]) / 3
        distances = compute_distances(np.array([[1, 1], [1, -1]]), np.zeros(2), precision)
        assert distances**2 == pytest.approx([2 / 3, 2])

    def test_a_score_that_is_not_a_number_is_out_of_distribution(self):
        scores = np.array([np.nan, np.inf, 1.0, 0.0])
        assert is_in_distribution(scores).tolist() == [False, False, True, True]

    def test_each_image_by_itself(self, features):
        train, validation, other = features
        detector = fit_ood_detector(train, validation)
        assert np.allclose(
            detector.compute_scores(other)[::-1], detector.compute_scores(other[::-1])
        )
        assert detector.compute_scores(other[7:8]) == pytest.approx(
            detector.compute_scores(other)[7]
        )


class TestFit:
    def test_the_gaussian_is_that_of_the_training_images(self, features):
        train, validation, _ = features
        detector = fit_ood_detector(train, validation)
        assert np.allclose(detector.mean, train.mean(axis=0), atol=1e-4)
        # 2,000 images of 6 numbers: hardly anything is shrunk.
        assert np.allclose(detector.precision @ np.cov(train.T), np.eye(6), atol=0.05)

    @pytest.mark.parametrize("images", [1, 7, 19, 20, 21, 300])
    def test_at_most_5_percent_of_validation_are_flagged(self, features, images):
        train, validation, _ = features
        detector = fit_ood_detector(train, validation[:images])
        flagged = ~is_in_distribution(detector.compute_scores(validation[:images]))
        assert flagged.mean() <= 0.05
        # Not fewer than need be, either.
        assert flagged.sum() == int(0.05 * (images - 1) + 1e-9)

    def test_few_other_images_of_the_same_kind_are_flagged(self, features):
        train, validation, other = features
        flagged = ~is_in_distribution(fit_ood_detector(train, validation).compute_scores(other))
        assert 0.01 < flagged.mean() < 0.1

    def test_shift_and_scale_of_the_features_do_not_matter(self, features):
        train, validation, other = features
        one = fit_ood_detector(train, validation).compute_scores(other)
        moved = fit_ood_detector(8 * train - 3, 8 * validation - 3).compute_scores(8 * other - 3)
        assert np.allclose(one, moved, rtol=1e-3)

    def test_the_order_of_the_images_does_not_matter(self, features):
        train, validation, other = features
        one, turned = (
            fit_ood_detector(train, validation),
            fit_ood_detector(train[::-1], validation[::-1]),
        )
        assert np.allclose(one.compute_scores(other), turned.compute_scores(other), rtol=1e-4)

    def test_fewer_images_than_features(self):
        rng = np.random.default_rng(1)
        detector = fit_ood_detector(rng.normal(size=(20, 64)), rng.normal(size=(10, 64)))
        assert not is_in_distribution(detector.compute_scores(rng.normal(size=(50, 64)) + 4)).any()


def test_noise_and_plain_colours_are_flagged(trained_run, predictor, sample):
    """By a network of random weights and one epoch on the synthetic sample."""
    detector = load_calibration(trained_run).ood
    images = generate_images(predictor.info.image_size)
    green = np.full_like(images[:1], (20, 200, 40))
    strange = predictor.predict_images(np.concatenate([images[:2], images[-2:], green]))
    assert not is_in_distribution(detector.compute_scores(strange.features)).any()
    lesions = predictor.predict_files(sorted(sample.glob("HAM10000_images_part_*/*.jpg")))
    assert is_in_distribution(detector.compute_scores(lesions.features)).mean() > 0.8


@needs_real_data
@needs_real_weights
def test_photographs_are_flagged_and_real_lesions_are_not(tmp_path):
    """With ImageNet features of 400 lesions, before any fine-tuning."""
    from sklearn.datasets import load_sample_images

    settings = make_config("probe", weights=REAL_WEIGHTS, image_size=(64, 64), limit=400)
    run = train(REAL_DATA, tmp_path / "run", settings)
    detector, predictor = calibrate(run, REAL_DATA).ood, Predictor.load(run)
    images = list_images(Path(REAL_DATA))
    chosen = [images[name] for name in run.rows("test")["image_id"][::10]]
    scores = detector.compute_scores(predictor.predict_files(chosen).features)
    assert is_in_distribution(scores).mean() > 0.85
    photographs = []
    for number, photograph in enumerate(load_sample_images().images):
        photographs.append(tmp_path / f"{number}.jpg")
        Image.fromarray(photograph).save(photographs[-1])
    scores = detector.compute_scores(predictor.predict_files(photographs).features)
    assert not is_in_distribution(scores).any()
