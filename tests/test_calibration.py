"""Temperature, operating points, prediction sets, selective prediction: by hand and simulated."""

import numpy as np
import pytest
import sklearn
from conftest import edit_bundle
from packaging.version import parse
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV

from skinlesion.config import make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.evaluation import calibration as steps
from skinlesion.evaluation import temperature as temperature_scaling
from skinlesion.evaluation.bootstrap import draw_weights
from skinlesion.evaluation.calibration import (
    Calibration,
    calibrate,
    find_prior,
    load_calibration,
    make_prediction_sets,
)
from skinlesion.evaluation.decision_metrics import (
    apply_calibrations,
    compute_calibration,
    compute_operating_point,
    compute_selective_prediction,
)
from skinlesion.evaluation.metrics import find_malignant
from skinlesion.evaluation.ood import OODDetector
from skinlesion.evaluation.quality import QualityLimits
from skinlesion.evaluation.tables import operating_points_table
from skinlesion.evaluation.temperature import apply_temperature
from skinlesion.files import InputError
from skinlesion.model.run import Run

UNIFORM = np.full(7, 1 / 7)
MALIGNANT = find_malignant(HAM10000)
PASSED_ON = {
    "ood": OODDetector(np.zeros(2), np.eye(2), 1.0),
    "quality": QualityLimits(0.0, 0.0, 0.0, 1.0),
}


def fit_temperature(y_true, y_prob):
    return temperature_scaling.fit_temperature(y_true, y_prob, UNIFORM)


def sum_malignant(y_prob):
    return steps.sum_malignant(y_prob, MALIGNANT)


def fit_calibration(y_true, y_prob, prior=UNIFORM):
    return steps.fit_calibration(y_true, y_prob, HAM10000, prior=prior, **PASSED_ON)


def make_calibration(set_threshold, prior=UNIFORM, temperature=1.0, thresholds=(0.5, 0.5)):
    cuts = dict(zip(("0.90", "0.95"), thresholds, strict=True))
    counts = 100, 0 if None in thresholds else 30
    shares = tuple(prior.tolist())
    return Calibration(temperature, cuts, set_threshold, *counts, shares, **PASSED_ON)


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


def log_loss(y_true, y_prob):
    return -np.log(np.maximum(y_prob[np.arange(len(y_true)), y_true], 1e-300)).mean()


def certain(y_true, confidence=0.988):
    """Probabilities of a model that is sure of the given labels."""
    y_prob = np.full((len(y_true), 7), (1 - confidence) / 6)
    y_prob[np.arange(len(y_true)), y_true] = confidence
    return y_prob


def simulate_errors(count, confidence, errors, rng):
    """Predictions of varied confidence, a given share of them wrong."""
    y_true = rng.integers(0, 7, count)
    wrong = rng.random(count) < errors
    top = np.where(wrong, (y_true + rng.integers(1, 7, count)) % 7, y_true)
    highest = rng.beta(20 * confidence, 20 * (1 - confidence), count).clip(0.3, 1 - 1e-7)
    y_prob = rng.dirichlet(np.ones(7), count)
    y_prob[np.arange(count), top] = 0
    y_prob *= ((1 - highest) / y_prob.sum(axis=1))[:, None]
    y_prob[np.arange(count), top] = highest
    return y_true, y_prob


class TestTemperatureOfFewImages:
    @pytest.mark.parametrize("count", [5, 20, 70])
    @pytest.mark.parametrize("confidence", [0.9, 0.988, 1 - 1e-6])
    def test_perfect_validation_images_do_not_make_it_more_confident(self, count, confidence):
        """As on the synthetic sample; a few test images in a hundred are wrong all the same."""
        rng = np.random.default_rng(count)
        y_val, y_test = rng.integers(0, 7, count), rng.integers(0, 7, 1000)
        wrong = np.where(rng.random(1000) < 0.03, (y_test + 1) % 7, y_test)
        temperature = fit_temperature(y_val, certain(y_val, confidence))
        y_prob = certain(wrong, confidence)
        calibrated = apply_temperature(y_prob, temperature)
        assert log_loss(y_test, calibrated) <= 1.02 * log_loss(y_test, y_prob)

    @pytest.mark.parametrize("count", [20, 40, 71, 150])
    @pytest.mark.parametrize("confidence", [0.8, 0.9, 0.97])
    def test_held_out_mistakes_after_perfect_validation_cost_little(self, count, confidence):
        """With 3 / count mistakes: as many as no mistake among `count` images allows for."""
        for seed in range(10):
            rng = np.random.default_rng(seed)
            fitted = fit_temperature(*simulate_errors(count, confidence, 0, rng))
            y_true, y_prob = simulate_errors(1000, confidence, 3 / count, rng)
            after = log_loss(y_true, apply_temperature(y_prob, fitted))
            assert after <= 1.02 * log_loss(y_true, y_prob)

    def test_constant_probabilities_are_left_alone(self):
        y_true = np.zeros(50, int)
        assert fit_temperature(y_true, np.full((50, 7), 1 / 7)) == pytest.approx(1, abs=1e-3)

    @pytest.mark.parametrize("count", [20, 70, 150])
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_it_never_costs_more_than_two_percent_on_average(self, count, temperature):
        ratios = []
        for seed in range(40):
            fitted = fit_temperature(*simulate(count, temperature=temperature, seed=seed))
            y_true, y_prob = simulate(2000, temperature=temperature, seed=1000 + seed)
            calibrated = apply_temperature(y_prob, fitted)
            ratios.append(log_loss(y_true, calibrated) / log_loss(y_true, y_prob))
        assert np.mean(ratios) <= 1.02

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_many_images_give_the_maximum_of_the_likelihood(self, temperature):
        y_true, y_prob = simulate(1500, temperature=temperature, seed=3)
        grid = np.exp(np.linspace(-1.5, 1.5, 601))
        losses = [log_loss(y_true, apply_temperature(y_prob, t)) for t in grid]
        fitted = fit_temperature(y_true, y_prob)
        assert fitted == pytest.approx(grid[np.argmin(losses)], rel=0.03)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose input is its probabilities."""

    classes_ = np.arange(7)

    def fit(self, x, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


class TestLibraries:
    @pytest.mark.skipif(parse(sklearn.__version__) < parse("1.8"), reason="scikit-learn is older")
    @pytest.mark.parametrize("temperature", [0.7, 1.5])
    def test_temperature_scaling_equals_scikit_learn(self, temperature):
        from sklearn.frozen import FrozenEstimator

        y_true, y_prob = simulate(20_000, temperature=temperature, seed=5)
        other = CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature")
        expected = other.fit(y_prob, y_true).predict_proba(y_prob)
        calibrated = apply_temperature(y_prob, fit_temperature(y_true, y_prob))
        assert np.abs(calibrated - expected).max() < 0.002

    def test_prediction_sets_equal_mapie(self):
        mapie = pytest.importorskip("mapie.classification", reason="install the extra [dev]")
        y_true, y_prob = simulate(300, temperature=1.5, seed=6)
        calibration = fit_calibration(y_true, y_prob)
        calibrated = apply_temperature(y_prob, calibration.temperature)
        other = mapie.SplitConformalClassifier(Given(), confidence_level=0.9, prefit=True)
        _, sets = other.conformalize(calibrated, y_true).predict_set(calibrated)
        # MAPIE leaves a set empty where ours has the most probable class.
        some = sets[..., 0].any(axis=1)
        ours = make_prediction_sets(calibrated, calibration)
        assert np.array_equal(ours[some], sets[some, :, 0])
        assert (ours[~some].sum(axis=1) == 1).all()


def test_a_model_that_is_always_right_stays_finite():
    calibration = fit_calibration(np.arange(7), np.eye(7))
    assert np.isfinite(apply_temperature(np.eye(7), calibration.temperature)).all()


def test_perfectly_separated_images_give_a_threshold_of_one_half():
    y_true = np.repeat([4, 5], 20)
    calibration = fit_calibration(y_true, certain(y_true))
    assert calibration.thresholds == {"0.90": 0.5, "0.95": 0.5}
    assert calibration.is_uncertain
    assert not fit_calibration(np.repeat(y_true, 2), certain(np.repeat(y_true, 2))).is_uncertain


def test_calibration_error_falls_on_other_images():
    calibration = fit_calibration(*simulate(2000, temperature=3.0, seed=1))
    y_true, y_prob = simulate(2000, temperature=3.0, seed=2)
    weights, _ = draw_weights(2000, n_bootstrap=100)
    calibrated = apply_calibrations([calibration], [y_prob])
    found = compute_calibration(y_true, y_prob, calibrated, HAM10000, weights)
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
    # Ten malignant images with malignancy 0.05, 0.1, ..., 0.5, and benign ones.
    malignancy = np.arange(1, 11) / 20
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
    weights, _ = draw_weights(5, n_bootstrap=0)
    point = compute_operating_point(
        MALIGNANT[y_true], sum_malignant(y_prob), np.full(5, 0.5), weights
    )
    values = {name: row["value"] for name, row in point.items()}
    assert values == pytest.approx(
        {"sensitivity": 1 / 2, "specificity": 2 / 3, "ppv": 1 / 2, "npv": 2 / 3}
    )


def test_each_fold_is_judged_by_its_own_calibration():
    # The first fold calls an image malignant from 0.5 on, the second from 0.3 on.
    first, second = (make_calibration(0.5, thresholds=(cut, cut)) for cut in (0.5, 0.3))
    y_prob = np.zeros((4, 7))
    y_prob[:, 4] = [0.4, 0.6, 0.4, 0.2]
    y_prob[:, 5] = 1 - y_prob[:, 4]
    y_true, weights = np.array([4, 4, 4, 5]), draw_weights(4, n_bootstrap=0)[0]
    calibrated = apply_calibrations([first, second], [y_prob[:2], y_prob[2:]])
    found = compute_calibration(y_true, y_prob, calibrated, HAM10000, weights)
    assert found["temperature"] == [1.0, 1.0]
    point = found["operating_points"][0]
    assert point["threshold"] == [0.5, 0.3]
    assert point["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert (
        operating_points_table({"calibration": found})["threshold"].tolist()
        == ["0.300 to 0.500"] * 2
    )
    # A fold without a threshold leaves none for all.
    nothing = make_calibration(0.5, thresholds=(None, None))
    calibrated = apply_calibrations([first, nothing], [y_prob[:2], y_prob[2:]])
    found = compute_calibration(y_true, y_prob, calibrated, HAM10000, weights)
    assert np.isnan(found["operating_points"][0]["sensitivity"]["value"])
    assert operating_points_table({"calibration": found})["threshold"].tolist() == ["none"] * 2


def test_without_malignant_images_there_is_no_threshold():
    calibration = fit_calibration(np.array([5, 5, 6]), np.full((3, 7), 1 / 7))
    assert calibration.thresholds == {"0.90": None, "0.95": None}
    weights, _ = draw_weights(3, n_bootstrap=10)
    point = compute_operating_point(
        np.zeros(3, bool), np.full(3, 3 / 7), np.full(3, np.nan), weights
    )
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
            make_calibration(0.35),
        )
        assert sets[:, :3].tolist() == [[True, False, False], [True, True, False]]
        alone = make_prediction_sets(np.full((1, 7), 1 / 7), make_calibration(0.5))
        assert alone.sum() == 1


RARE = np.array([0.04, 0.06, 0.1, 0.05, 0.1, 0.6, 0.05])
"""A prior in which melanoma (4) is six times as rare as nevus (5)."""


class TestPrior:
    """Networks that were trained with class weights take all classes for equally frequent."""

    def test_hand_worked(self):
        y_prob = np.zeros((1, 7))
        y_prob[0, [4, 5]] = 0.6, 0.4
        calibration = make_calibration(0.35, RARE)
        calibrated = calibration.apply(y_prob)
        # 0.6 * 0.1 = 0.06 against 0.4 * 0.6 = 0.24.
        assert calibrated[0, [4, 5]] == pytest.approx([0.2, 0.8])
        assert calibration.balance(calibrated) == pytest.approx(y_prob)
        # The decision and the prediction set give both classes the same weight.
        assert calibration.decide(calibrated) == [4]
        assert np.flatnonzero(make_prediction_sets(calibrated, calibration)[0]).tolist() == [4, 5]

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_the_decision_is_that_of_the_network(self, temperature):
        _, y_prob = simulate(500, temperature=1.0, seed=2)
        calibration = make_calibration(0.1, RARE, temperature)
        calibrated = calibration.apply(y_prob)
        assert calibrated.sum(axis=1) == pytest.approx(1)
        assert np.array_equal(calibration.decide(calibrated), y_prob.argmax(axis=1))

    def test_it_gives_the_probabilities_that_a_population_has(self):
        # Labels as frequent as in RARE, and a network that knows all but these shares.
        rng = np.random.default_rng(0)
        y_true = rng.choice(7, 20_000, p=RARE)
        evidence = rng.normal(size=(20_000, 7)) + 1.5 * np.eye(7)[y_true]
        y_prob = softmax(1.5 * evidence, axis=1)  # Bayes' rule for these normal distributions
        calibration = fit_calibration(y_true, y_prob, RARE)
        assert calibration.temperature == pytest.approx(1, abs=0.02)
        calibrated = calibration.apply(y_prob)
        assert calibrated.mean(axis=0) == pytest.approx(RARE, abs=0.01)
        assert y_prob.mean(axis=0)[5] < 0.5

    def test_it_is_that_of_the_training_images(self):
        labels = np.array([5, 5, 5, 4])
        weighted, plain = make_config("default"), make_config("original")
        assert find_prior(labels, weighted, 7) * 11 == pytest.approx([1, 1, 1, 1, 2, 4, 1])
        assert find_prior(labels, plain, 7) == pytest.approx(UNIFORM)


def test_the_rule_names_what_decides():
    weighted, plain = make_calibration(0.1, RARE), make_calibration(0.1, UNIFORM)
    assert weighted.rule == "decides by the highest probability relative to frequency"
    assert plain.rule == "decides by the highest probability"


def test_selective_prediction_hand_worked():
    y_prob = np.zeros((4, 7))
    y_prob[:, 5] = [0.9, 0.8, 0.7, 0.6]
    y_prob[:, 4] = 1 - y_prob[:, 5]
    weights, _ = draw_weights(4, n_bootstrap=0)
    rows = compute_selective_prediction(
        np.array([5, 5, 4, 4]), np.full(4, 5), y_prob, weights, MALIGNANT
    )
    everything = rows[0]
    assert everything["coverage"] == 1
    assert everything["error"]["value"] == everything["missed"]["value"] * 0.5 == 0.5
    half = next(row for row in rows if row["coverage"] == 0.5)
    assert (half["error"]["value"], half["missed"]["value"]) == (0, 0)
    assert half["confidence"] == 0.8
    quarter = next(row for row in rows if row["coverage"] == 0.75)
    assert quarter["error"]["value"] == pytest.approx(1 / 3)
    assert quarter["missed"]["value"] == 0.5


class TestStep:
    def test_it_is_fitted_on_the_validation_images(self, trained_run):
        run = Run(trained_run)
        rows = run.rows("validation")
        y_prob = run.read_predictions("validation", list(rows["image_id"]))
        calibration = load_calibration(run)
        assert calibration.n_validation == len(rows)
        prior = find_prior(run.rows("train")["label"].to_numpy(), run.config, 7)
        assert calibration.prior == pytest.approx(prior)
        temperature = temperature_scaling.fit_temperature(rows["label"], y_prob, prior)
        assert calibration.temperature == pytest.approx(temperature)
        malignant = rows["dx"].isin(["akiec", "bcc", "mel"]).sum()
        assert calibration.n_malignant == malignant
        assert "temperature" in calibration.summary().index

    def test_it_is_kept_and_few_malignant_images_are_told(self, run_copy, sample, capsys):
        run = Run(run_copy)
        before = run.read_calibration()[0]
        calibrate(run, sample)
        assert "calibrated already" in capsys.readouterr().out
        edit_bundle(run.model_dir, calibration=None)
        with pytest.raises(InputError, match="skinlesion calibrate --run"):
            load_calibration(run)
        calibrate(run, sample)
        said = capsys.readouterr().out
        assert f"only {before['n_malignant']} malignant images" in said
        assert run.read_calibration()[0] == before

    def test_ood_detection_is_fitted_on_the_training_images(self, trained_run, predictor, sample):
        run = Run(trained_run)
        from skinlesion.data.dataset import list_images

        images, detector = list_images(sample), load_calibration(run).ood
        parts = {
            part: predictor.predict_files([images[i] for i in run.rows(part)["image_id"]]).features
            for part in ("train", "validation")
        }
        assert np.allclose(detector.mean, parts["train"].mean(axis=0), atol=1e-3)
        assert (detector.compute_scores(parts["validation"]) > 1).mean() <= 0.05

    @pytest.mark.parametrize(
        ("changes", "arrays"),
        [
            ({"temperature": 0.0}, {}),
            ({"temperature": float("nan")}, {}),
            ({"set_threshold": 2.0}, {}),
            ({"thresholds": {"0.90": -1.0}}, {}),
            ({"quality": {"sharpness": 1.0}}, {}),
            ({"ood": {"threshold": 0.0}}, {}),
            ({"ood": {}}, {}),
            ({"surprise": 1}, {}),
            ({}, {"precision": np.eye(3, dtype="float32")}),
            ({}, {"precision": -np.eye(256, dtype="float32")}),
        ],
    )
    def test_another_calibration_is_refused(self, run_copy, changes, arrays):
        run = Run(run_copy)
        values, stored = run.read_calibration()
        run.save_calibration(values | changes, stored | arrays)
        with pytest.raises(InputError, match="does not fit this version") as caught:
            load_calibration(run)
        assert "\n" not in str(caught.value)

    def test_arrays_hold_no_python_objects(self, run_copy):
        """A file that would run code when it is loaded is not loaded."""
        run = Run(run_copy)
        values, stored = run.read_calibration()
        stored["mean"] = np.array([print], object)
        with pytest.raises(ValueError, match="allow_pickle"):
            run.save_calibration(values, stored)
