"""Temperature, operating points, prediction sets and referral: hand-worked, and by simulation."""

import numpy as np
import pytest
from scipy.special import softmax

from skinlesion.evaluation.calibration import (
    Calibration,
    apply_temperature,
    calibration_from_dict,
    compute_calibration,
    compute_operating_point,
    compute_referral,
    fit_calibration,
    fit_temperature,
    make_prediction_sets,
    sum_malignant,
)
from skinlesion.evaluation.metrics import draw_weights
from skinlesion.files import InputError


def simulate(count, *, temperature, seed):
    """Labels drawn from known probabilities, and what an over- or underconfident model says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 7)) * 2
    truth = softmax(logits, axis=1)
    y_true = (truth.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return y_true, softmax(logits * temperature, axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_model_is_found(temperature):
    y_true, y_prob = simulate(20_000, temperature=temperature, seed=1)
    assert fit_temperature(y_true, y_prob) == pytest.approx(temperature, rel=0.05)


def test_temperature_hand_worked():
    y_prob = np.array([[0.8, 0.2, 0, 0, 0, 0, 0]])
    cooled = apply_temperature(y_prob, 2.0)[0]
    # Square roots, normalised.
    assert cooled[0] == pytest.approx(np.sqrt(0.8) / (np.sqrt(0.8) + np.sqrt(0.2)))
    assert apply_temperature(y_prob, 1.0) == pytest.approx(y_prob)


def test_temperature_keeps_the_order_and_sums_to_one():
    y_prob = np.random.default_rng(0).dirichlet(np.ones(7), 100)
    cooled = apply_temperature(y_prob, 4.0)
    assert (cooled.argsort(axis=1) == y_prob.argsort(axis=1)).all()
    assert cooled.sum(axis=1) == pytest.approx(1)


def test_a_model_that_is_always_right_stays_finite():
    calibration = fit_calibration(np.arange(7), np.eye(7))
    assert np.isfinite(apply_temperature(np.eye(7), calibration.temperature)).all()


def test_calibration_error_falls_on_other_images():
    calibration = fit_calibration(*simulate(2000, temperature=3.0, seed=1))
    y_true, y_prob = simulate(2000, temperature=3.0, seed=2)
    weights, _ = draw_weights(2000, draws=100)
    found = compute_calibration(
        y_true, y_prob, calibration, groups=np.arange(2000), weights=weights
    )
    assert found["before"]["ece"]["low"] > found["after"]["ece"]["high"]
    for figure in ("log_loss", "brier"):
        assert found["after"][figure]["value"] < found["before"][figure]["value"]
    sets = found["prediction_sets"]
    # Exchangeable by construction: the guarantee holds, up to the draw of both sets.
    assert sets["coverage"]["value"] == pytest.approx(0.9, abs=0.02)
    assert sum(sets["sizes"].values()) == 2000
    for point, target in zip(found["operating_points"], (0.90, 0.95), strict=True):
        assert point["target_sensitivity"] == target
        assert point["sensitivity"]["value"] == pytest.approx(target, abs=0.03)
        assert 0 < point["specificity"]["value"] < 1


def test_thresholds_are_the_highest_that_find_enough():
    # Ten malignant images with malignancy 0.05, 0.15, ..., 0.95, and benign ones.
    malignancy = np.arange(10) / 10 + 0.05
    y_prob = np.zeros((12, 7))
    y_prob[:, 4] = [*malignancy, 0.5, 0.1]
    y_prob[:, 5] = 1 - y_prob[:, 4]
    y_true = np.array([4] * 10 + [5] * 2)
    calibration = fit_calibration(y_true, y_prob)
    calibrated = sum_malignant(apply_temperature(y_prob, calibration.temperature))
    # 90 %: nine of ten found, the second lowest is the threshold; 95 % needs all ten.
    assert calibration.thresholds["0.90"] == pytest.approx(calibrated[1])
    assert calibration.thresholds["0.95"] == pytest.approx(calibrated[0])


def test_an_operating_point_hand_worked():
    y_prob = np.zeros((5, 7))
    y_prob[:, 1] = [0.9, 0.4, 0.6, 0.2, 0.1]
    y_prob[:, 5] = 1 - y_prob[:, 1]
    y_true = np.array([1, 1, 5, 5, 5])
    weights, _ = draw_weights(5, draws=0)
    point = compute_operating_point(y_true, y_prob, 0.5, weights)
    values = {name: row["value"] for name, row in point.items()}
    assert values == pytest.approx(
        {"sensitivity": 1 / 2, "specificity": 2 / 3, "ppv": 1 / 2, "npv": 2 / 3}
    )


def test_without_malignant_images_there_is_no_threshold():
    calibration = fit_calibration(np.array([5, 5, 6]), np.full((3, 7), 1 / 7))
    assert calibration.thresholds == {"0.90": None, "0.95": None}
    weights, _ = draw_weights(3, draws=10)
    point = compute_operating_point(np.array([5, 5, 6]), np.full((3, 7), 1 / 7), None, weights)
    assert all(np.isnan(row["value"]) for row in point.values())


class TestPredictionSets:
    def test_the_quantile_hand_worked(self):
        # Nineteen images whose truth has 0.05, 0.10, ..., 0.95: ceil(20 * 0.9) = 18 of the 19
        # scores must be at most the quantile, so the second lowest probability is the threshold.
        y_prob = np.zeros((19, 7))
        y_prob[:, 0] = np.arange(1, 20) / 20
        y_prob[:, 1] = 1 - y_prob[:, 0]
        calibration = fit_calibration(np.zeros(19, int), y_prob)
        truth = apply_temperature(y_prob, calibration.temperature)[:, 0]
        assert calibration.set_threshold == pytest.approx(np.sort(truth)[1])

    def test_too_few_images_give_sets_of_everything(self):
        calibration = fit_calibration(np.array([5, 4]), np.full((2, 7), 1 / 7))
        assert calibration.set_threshold == 0
        assert make_prediction_sets(np.eye(7), calibration).all()

    def test_the_most_probable_class_is_always_in(self):
        sets = make_prediction_sets(
            np.array([[0.4, 0.3, 0.3, 0, 0, 0, 0], [0.6, 0.35, 0.05, 0, 0, 0, 0]]),
            Calibration(1.0, {}, 0.35, 100),
        )
        assert sets[:, :3].tolist() == [[True, False, False], [True, True, False]]
        alone = make_prediction_sets(np.full((1, 7), 1 / 7), Calibration(1.0, {}, 0.5, 100))
        assert alone.sum() == 1


def test_referral_hand_worked():
    y_prob = np.zeros((4, 7))
    y_prob[:, 5] = [0.9, 0.8, 0.7, 0.6]
    y_prob[:, 4] = 1 - y_prob[:, 5]
    weights, _ = draw_weights(4, draws=0)
    rows = compute_referral(np.array([5, 5, 4, 4]), y_prob, weights)
    everything = rows[0]
    assert everything["coverage"] == 1
    assert everything["error"]["value"] == everything["missed"]["value"] * 0.5 == 0.5
    half = next(row for row in rows if row["coverage"] == 0.5)
    assert (half["error"]["value"], half["missed"]["value"]) == (0, 0)
    assert half["confidence"] == 0.8
    quarter = next(row for row in rows if row["coverage"] == 0.75)
    assert quarter["error"]["value"] == pytest.approx(1 / 3)
    assert quarter["missed"]["value"] == 0.5


def test_round_trip_and_other_versions():
    calibration = Calibration(1.5, {"0.90": 0.2, "0.95": None}, 0.1, 10)
    assert calibration_from_dict(calibration.to_dict()) == calibration
    with pytest.raises(InputError, match="does not fit this version"):
        calibration_from_dict({"temperature": 1.0})
