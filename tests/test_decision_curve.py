"""Net benefit, and points of the ROC curve: by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from skinlesion.data.ham10000 import HAM10000
from skinlesion.evaluation import plots
from skinlesion.evaluation.bootstrap import draw_weights
from skinlesion.evaluation.decision_curve import SHOWN, THRESHOLDS, compute_decisions
from skinlesion.evaluation.metrics import find_malignant

MALIGNANT = find_malignant(HAM10000)


def sum_malignant(y_prob):
    return y_prob[:, MALIGNANT].sum(axis=1)


def compute_decision_curve(y_true, y_prob, weights):
    return compute_decisions(y_true, y_prob, weights, HAM10000)["curve"]


def compute_fixed_points(y_true, y_prob, weights):
    return compute_decisions(y_true, y_prob, weights, HAM10000)["fixed_points"]


def of_malignancy(p_malignant):
    """Probabilities (n, 7) of melanoma and nevus only."""
    y_prob = np.zeros((len(p_malignant), 7))
    y_prob[:, 4], y_prob[:, 5] = p_malignant, 1 - np.asarray(p_malignant)
    return y_prob


@pytest.fixture
def noisy():
    """Three hundred images of 150 lesions; scores in steps, so that many are equal."""
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 7, 300)
    logits = np.round(rng.normal(size=(300, 7)) + 1.5 * np.eye(7)[y_true])
    y_prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    weights, _ = draw_weights(300, np.arange(300) // 2, n_bootstrap=20)
    return y_true, y_prob, weights


class TestDecisionCurve:
    def test_hand_worked(self):
        # Ten images, four malignant. From 0.2 on: three found, two false alarms.
        y_true = np.array([4] * 4 + [5] * 6)
        y_prob = of_malignancy([0.9, 0.5, 0.2, 0.1, 0.6, 0.3, 0.1, 0.1, 0.0, 0.0])
        weights, _ = draw_weights(10, n_bootstrap=0)
        rows = {row["threshold"]: row for row in compute_decision_curve(y_true, y_prob, weights)}
        assert rows[0.2]["model"]["value"] == pytest.approx(3 / 10 - 2 / 10 * 0.25)
        assert rows[0.2]["all"]["value"] == pytest.approx(4 / 10 - 6 / 10 * 0.25)
        assert rows[0.2]["gain"]["value"] == pytest.approx(0)
        # From 0.5 on: two found, one false alarm; calling all malignant is worse than calling none.
        assert rows[0.5]["model"]["value"] == pytest.approx(2 / 10 - 1 / 10)
        assert rows[0.5]["all"]["value"] == pytest.approx(4 / 10 - 6 / 10)
        assert rows[0.5]["gain"]["value"] == pytest.approx(0.1)

    def test_a_perfect_model_gains_the_share_of_malignant_images_whatever_the_threshold(self):
        y_true = np.array([4, 5, 5, 5])
        weights, _ = draw_weights(4, n_bootstrap=0)
        rows = compute_decision_curve(y_true, of_malignancy([1, 0, 0, 0]), weights)
        assert [row["model"]["value"] for row in rows] == pytest.approx([0.25] * len(THRESHOLDS))

    def test_calling_all_malignant_is_the_model_that_says_so(self, noisy):
        y_true, _, weights = noisy
        for row in compute_decision_curve(y_true, of_malignancy(np.ones(300)), weights):
            assert row["model"] == pytest.approx(row["all"])
            assert row["gain"]["high"] <= 1e-9

    def test_intervals_are_of_the_resamples(self, noisy):
        y_true, y_prob, weights = noisy
        row = compute_decision_curve(y_true, y_prob, weights)[4]
        odds = row["threshold"] / (1 - row["threshold"])
        malignant, called = MALIGNANT[y_true], sum_malignant(y_prob) >= row["threshold"]
        values = [
            (w[called & malignant].sum() - odds * w[called & ~malignant].sum()) / w.sum()
            for w in weights
        ]
        low, high = np.percentile(values[1:], (2.5, 97.5))
        expected = {"value": values[0], "low": low, "high": high, "undefined_resamples": 0}
        assert row["model"] == pytest.approx(expected)

    def test_the_table_of_the_card_shows_thresholds_that_exist(self):
        assert set(SHOWN) <= set(THRESHOLDS.tolist())

    def test_the_plot_shows_model_all_and_none(self, noisy):
        rows = compute_decision_curve(*noisy)
        ax = plots.plot_decision_curve(rows)
        model, everyone, nobody = ax.lines
        assert list(model.get_ydata()) == [row["model"]["value"] for row in rows]
        assert list(everyone.get_ydata()) == [row["all"]["value"] for row in rows]
        assert set(nobody.get_ydata()) == {0}
        plots.plt.close(ax.figure)


class TestFixedPoints:
    def test_hand_worked(self):
        # Scores from the highest: malignant, malignant, benign, malignant, benign x 4.
        y_true = np.array([4, 4, 5, 4, 5, 5, 5, 5])
        y_prob = of_malignancy([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
        weights, _ = draw_weights(8, n_bootstrap=0)
        found = {
            (row["scope"], row["figure"], row["at"]): row["value"]
            for row in compute_fixed_points(y_true, y_prob, weights)
        }
        # Specificity 0.8 allows one false alarm of five benign images, 0.9 none.
        assert found["malignant", "sensitivity", 0.8] == 1
        assert found["malignant", "sensitivity", 0.9] == pytest.approx(2 / 3)
        assert found["malignant", "specificity", 0.9] == pytest.approx(4 / 5)
        assert found["mel", "sensitivity", 0.9] == pytest.approx(2 / 3)

    def test_equals_scikit_learn_for_each_resample(self, noisy):
        y_true, y_prob, weights = noisy
        for row in compute_fixed_points(y_true, y_prob, weights):
            cases = MALIGNANT[y_true] if row["scope"] == "malignant" else y_true == 4
            score = sum_malignant(y_prob) if row["scope"] == "malignant" else y_prob[:, 4]
            values = []
            for w in weights:
                fpr, tpr, _ = roc_curve(cases, score, sample_weight=w, drop_intermediate=False)
                figure, fixed = (tpr, 1 - fpr) if row["fixed"] == "specificity" else (1 - fpr, tpr)
                values.append(figure[fixed >= row["at"] - 1e-9].max())
            assert row["value"] == pytest.approx(values[0])
            ends = np.percentile(values[1:], (2.5, 97.5))
            assert [row["low"], row["high"]] == pytest.approx(list(ends))

    @pytest.mark.parametrize("label", [4, 5])
    def test_images_of_one_kind_only_leave_nan(self, label):
        weights, _ = draw_weights(3, n_bootstrap=0)
        rows = compute_fixed_points(np.full(3, label), of_malignancy([0.1, 0.5, 0.9]), weights)
        assert all(np.isnan(row["value"]) for row in rows)
