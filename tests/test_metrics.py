"""Figures held to hand-worked values and to scikit-learn's."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from skinlesion.data.ham10000 import HAM10000
from skinlesion.evaluation import metrics, subgroups
from skinlesion.evaluation.bootstrap import compute_share, draw_weights
from skinlesion.evaluation.metrics import find_malignant, format_figure, list_figures
from skinlesion.files import InputError

MALIGNANT = find_malignant(HAM10000)
compare_predictions, compute_classification_report, compute_metrics, compute_subgroups = (
    partial(function, info=HAM10000)
    for function in (
        metrics.compare_predictions,
        metrics.compute_classification_report,
        metrics.compute_metrics,
        subgroups.compute_subgroups,
    )
)


def certain(labels):
    """Probabilities of 1 for the given labels."""
    return np.eye(7)[labels]


@pytest.fixture
def noisy():
    """300 images of 120 lesions with probabilities that are right somewhat often."""
    rng = np.random.default_rng(4)
    y_true = rng.choice(7, 300, p=[0.05, 0.1, 0.1, 0.05, 0.1, 0.5, 0.1])
    y_prob = rng.dirichlet(np.ones(7), 300) + 0.3 * np.eye(7)[y_true]
    # Few decimals, so that many scores are tied.
    y_prob = (y_prob / y_prob.sum(axis=1, keepdims=True)).round(2)
    return y_true, y_prob, rng.integers(0, 120, 300)


def test_hand_worked():
    # nv (5): three right, one called mel (4). mel: one right, one called nv. bcc (1): one right.
    y_true = np.array([5, 5, 5, 5, 4, 4, 1])
    y_pred = np.array([5, 5, 5, 4, 4, 5, 1])
    result = compute_metrics(y_true, certain(y_pred), n_bootstrap=0)
    overall = {name: row["value"] for name, row in result["overall"].items()}
    assert overall["accuracy"] == pytest.approx(5 / 7)
    assert overall["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    # F1: nv 2*3/(4+4), mel 2*1/(2+2), bcc 1.
    assert overall["macro_f1"] == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert overall["weighted_f1"] == pytest.approx((4 * 0.75 + 2 * 0.5 + 1) / 7)
    mel = result["per_class"]["mel"]
    assert mel["support"] == 2
    assert mel["sensitivity"]["value"] == pytest.approx(1 / 2)
    assert mel["specificity"]["value"] == pytest.approx(4 / 5)
    assert mel["ppv"]["value"] == pytest.approx(1 / 2)
    assert mel["npv"]["value"] == pytest.approx(4 / 5)
    assert result["confusion_matrix"][4] == [0, 0, 0, 0, 1, 1, 0]
    assert result["n"] == result["lesions"] == 7
    # Kappa: agreement 5/7; by chance nv 4*4, mel 2*2, bcc 1*1 of 49.
    assert overall["cohen_kappa"] == pytest.approx((5 / 7 - 21 / 49) / (1 - 21 / 49))
    # Gorodkin's R_K: (7*5 - 21) / sqrt((49 - 21) * (49 - 21)).
    assert overall["mcc"] == pytest.approx(14 / 28)
    assert overall["brier"] == pytest.approx(2 * 2 / 7)
    # Confidence 1 throughout, right 5 of 7 times.
    assert overall["ece"] == pytest.approx(2 / 7)


def test_hand_worked_log_loss_brier_and_calibration_error():
    y_prob = np.zeros((4, 7))
    y_prob[:, 5] = [0.8, 0.8, 0.6, 0.3]
    y_prob[:, 4] = 1 - y_prob[:, 5]
    y_true = np.array([5, 4, 5, 4])
    overall = compute_metrics(y_true, y_prob, n_bootstrap=0)["overall"]
    logs = [0.8, 0.2, 0.6, 0.7]
    assert overall["log_loss"]["value"] == pytest.approx(-np.log(logs).mean())
    squares = [2 * 0.2**2, 2 * 0.8**2, 2 * 0.4**2, 2 * 0.3**2]
    assert overall["brier"]["value"] == pytest.approx(np.mean(squares))
    # Bins of 1/15: two at 0.8 with one right, one at 0.6 and one at 0.7, both right.
    gap = (abs(2 * 0.8 - 1) + abs(0.6 - 1) + abs(0.7 - 1)) / 4
    assert overall["ece"]["value"] == pytest.approx(gap)


def test_hand_worked_average_precision_with_a_tie():
    y_prob = np.zeros((4, 7))
    y_prob[:, 4] = [0.9, 0.5, 0.5, 0.1]
    y_prob[:, 5] = 1 - y_prob[:, 4]
    # Of mel at .9: precision 1 for half the cases; at .5: 2 of 3 for the other half.
    mel = compute_metrics(np.array([4, 4, 5, 5]), y_prob, n_bootstrap=0)["per_class"]["mel"]
    assert mel["average_precision"]["value"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_malignant_against_benign_takes_the_three_classes_together():
    # Each image's highest class is wrong, yet malignant ones get more malignancy altogether.
    y_prob = np.full((4, 7), 0.01)
    y_prob[0, [0, 1, 5]] = 0.3, 0.3, 0.36  # mel: malignancy 0.61
    y_prob[1, [4, 2]] = 0.45, 0.5  # akiec: 0.47
    y_prob[2, [4, 3]] = 0.3, 0.65  # nv: 0.32
    y_prob[3, [6]] = 0.94  # nv: 0.03
    result = compute_metrics(np.array([4, 0, 5, 5]), y_prob, n_bootstrap=0)["overall"]
    assert MALIGNANT.tolist() == [True, True, False, False, True, False, False]
    assert result["malignant_auc"]["value"] == 1
    assert result["malignant_average_precision"]["value"] == 1
    assert result["accuracy"]["value"] == 0


def test_hand_worked_auc_with_a_tie():
    y_prob = np.zeros((4, 7))
    y_prob[:, 4] = [0.9, 0.5, 0.5, 0.1]
    y_prob[:, 5] = 1 - y_prob[:, 4]
    # mel scores .9 and .5 against nv .5 and .1: pairs won 1, 1, 1/2, 1.
    result = compute_metrics(np.array([4, 4, 5, 5]), y_prob, n_bootstrap=0)
    assert result["per_class"]["mel"]["auc"]["value"] == pytest.approx(3.5 / 4)


def test_undefined_figures_are_nan_and_not_in_the_means():
    result = compute_metrics(np.array([5, 4]), certain([5, 4]), n_bootstrap=10)
    df = result["per_class"]["df"]
    assert df["support"] == 0
    for figure in ("sensitivity", "ppv", "f1", "auc", "average_precision"):
        assert np.isnan(df[figure]["value"])
        assert np.isnan(df[figure]["low"])
    assert df["specificity"]["value"] == 1
    assert result["overall"]["balanced_accuracy"]["value"] == 1


def test_a_class_that_is_never_predicted_has_f1_zero_and_no_ppv():
    mel = compute_metrics(np.array([4, 5]), certain([5, 5]), n_bootstrap=0)["per_class"]["mel"]
    assert mel["f1"]["value"] == 0
    assert np.isnan(mel["ppv"]["value"])


def test_equals_scikit_learn(noisy):
    y_true, y_prob, _ = noisy
    y_pred = y_prob.argmax(axis=1)
    result = compute_metrics(y_true, y_prob, n_bootstrap=0)
    expected = {
        "accuracy": sk.accuracy_score(y_true, y_pred),
        "balanced_accuracy": sk.balanced_accuracy_score(y_true, y_pred),
        "macro_f1": sk.f1_score(y_true, y_pred, average="macro"),
        "weighted_f1": sk.f1_score(y_true, y_pred, average="weighted"),
        "macro_auc": np.mean([sk.roc_auc_score(y_true == c, y_prob[:, c]) for c in range(7)]),
        "macro_average_precision": np.mean(
            [sk.average_precision_score(y_true == c, y_prob[:, c]) for c in range(7)]
        ),
        "cohen_kappa": sk.cohen_kappa_score(y_true, y_pred),
        "mcc": sk.matthews_corrcoef(y_true, y_pred),
        "malignant_auc": sk.roc_auc_score(MALIGNANT[y_true], y_prob[:, MALIGNANT].sum(axis=1)),
    }
    for name, value in expected.items():
        assert result["overall"][name]["value"] == pytest.approx(value, abs=1e-9)


def test_intervals_equal_scikit_learn_on_the_same_draws(noisy):
    y_true, y_prob, groups = noisy
    result = compute_metrics(y_true, y_prob, groups=groups, n_bootstrap=200, seed=9)
    lesions, group_of = np.unique(groups, return_inverse=True)
    chance = np.full(len(lesions), 1 / len(lesions))
    times = np.random.default_rng(9).multinomial(len(lesions), chance, size=200)
    kept = [np.repeat(np.arange(300), draw[group_of]) for draw in times]
    for name, score in {
        "accuracy": lambda t, p: sk.accuracy_score(t, p.argmax(axis=1)),
        "balanced_accuracy": lambda t, p: sk.balanced_accuracy_score(t, p.argmax(axis=1)),
        "macro_auc": lambda t, p: np.mean([sk.roc_auc_score(t == c, p[:, c]) for c in range(7)]),
    }.items():
        values = [score(y_true[rows], y_prob[rows]) for rows in kept]
        low, high = np.percentile(values, [2.5, 97.5])
        row = result["overall"][name]
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-6)
        assert row["low"] < row["value"] < row["high"]


def test_draws_that_lack_a_class_are_left_out_and_counted():
    # One lesion of df among ten: a draw lacks it with probability 0.9^10, about 0.35.
    y_true = np.array([3] + [5] * 9)
    result = compute_metrics(y_true, certain(y_true), n_bootstrap=1000, seed=1)
    assert 280 < result["overall"]["balanced_accuracy"]["undefined_resamples"] < 420
    assert result["overall"]["accuracy"]["undefined_resamples"] == 0
    assert result["overall"]["balanced_accuracy"]["low"] == 1


def test_lesions_are_drawn_not_images():
    """Copies of images add nothing: intervals stay as wide as with one image a lesion."""
    rng = np.random.default_rng(2)
    y_true = rng.integers(0, 2, 60) + 4
    y_prob = certain(np.where(rng.random(60) < 0.7, y_true, 9 - y_true))
    once = compute_metrics(y_true, y_prob, groups=np.arange(60), n_bootstrap=300)
    copies = compute_metrics(
        np.repeat(y_true, 5),
        np.repeat(y_prob, 5, axis=0),
        groups=np.repeat(np.arange(60), 5),
        n_bootstrap=300,
    )
    assert copies["lesions"] == 60
    for end in ("low", "high"):
        assert copies["overall"]["accuracy"][end] == pytest.approx(once["overall"]["accuracy"][end])


def test_classification_report_has_every_class_and_nan_where_undefined():
    report = compute_classification_report(np.array([5, 4]), np.array([5, 5]))
    assert set(HAM10000.labels) <= set(report.index)
    assert np.isnan(report.loc["df", "recall"])
    assert report.loc["nv", "precision"] == 0.5
    assert report.loc["mel", "support"] == 1


def test_the_table_for_readers_has_every_figure(noisy):
    y_true, y_prob, groups = noisy
    table = list_figures(compute_metrics(y_true, y_prob, groups=groups, n_bootstrap=20))
    assert set(table["scope"]) == {"overall", *HAM10000.labels}
    assert len(table) == 13 + 7 * 7


def test_log_loss_equals_scikit_learn_and_is_finite_for_a_certain_mistake():
    rng = np.random.default_rng(1)
    y_prob = rng.dirichlet(np.ones(7), 50)
    y_true = rng.integers(0, 7, 50)
    value = compute_metrics(y_true, y_prob, n_bootstrap=0)["overall"]["log_loss"]["value"]
    assert value == pytest.approx(sk.log_loss(y_true, y_prob, labels=range(7)))
    wrong = compute_metrics(np.array([4]), certain([5]), n_bootstrap=0)["overall"]["log_loss"][
        "value"
    ]
    assert np.isfinite(wrong) and wrong > 30


def test_one_class_only_leaves_nan_not_a_wrong_figure():
    overall = compute_metrics(np.array([5, 5]), certain([5, 5]), n_bootstrap=5)["overall"]
    for figure in ("cohen_kappa", "mcc", "macro_auc", "malignant_auc"):
        assert np.isnan(overall[figure]["value"])
    assert overall["balanced_accuracy"]["value"] == 1


def test_no_images_is_refused():
    with pytest.raises(InputError, match="no images"):
        compute_metrics(np.zeros(0, int), np.zeros((0, 7)))


def test_a_share_and_a_mean_with_their_cases():
    weights, lesions = draw_weights(4, np.array(["a", "a", "b", "c"]), n_bootstrap=50)
    assert lesions == 3
    assert (weights[:, 0] == weights[:, 1]).all()
    cases = np.array([True, True, True, False])
    assert compute_share([True, False, True, True], cases, weights)["value"] == pytest.approx(2 / 3)
    assert compute_share([1, 2, 6, 100], cases, weights)["value"] == pytest.approx(3)
    assert np.isnan(compute_share([True] * 4, np.zeros(4, bool), weights)["value"])


def test_a_figure_is_shown_with_its_interval_and_a_count_as_it_is():
    row = {"value": 0.7251, "low": 0.678, "high": float("nan"), "undefined_resamples": 0}
    assert format_figure(row) == "0.725 [0.678, nan]"
    assert format_figure(1503) == "1,503"


class TestSubgroups:
    def test_each_is_what_its_images_alone_would_give(self, noisy):
        y_true, y_prob, groups = noisy
        ages = np.resize([0.0, 29.0, 30.0, 49.0, 50.0, 70.0, 85.0, np.nan], 300)
        rows = pd.DataFrame(
            {
                "lesion_id": groups,
                "sex": np.resize(["male", "female", None], 300),
                "age": ages,
                "dx_type": "histo",
            }
        )
        table = compute_subgroups(y_true, y_prob, rows, n_bootstrap=20)
        counts = table.drop_duplicates(["attribute", "subgroup"]).set_index("subgroup")["images"]
        assert counts["male"] == counts["unknown"].iloc[0] == 100
        assert counts["0 to 29"] == (ages < 30).sum()
        assert counts["70 and more"] == (ages >= 70).sum()
        male = rows["sex"].to_numpy() == "male"
        alone = compute_metrics(y_true[male], y_prob[male], groups=groups[male], n_bootstrap=20)
        row = table[(table["subgroup"] == "male") & (table["figure"] == "balanced_accuracy")].iloc[
            0
        ]
        for end, value in alone["overall"]["balanced_accuracy"].items():
            assert row[end] == pytest.approx(value)
        assert row["malignant"] == MALIGNANT[y_true[male]].sum()

    def test_without_columns_there_are_none(self, noisy):
        y_true, y_prob, groups = noisy
        assert compute_subgroups(y_true, y_prob, pd.DataFrame({"lesion_id": groups})).empty


class TestComparison:
    def figure(self, found, name, scope="overall"):
        return next(f for f in found["figures"] if (f["scope"], f["figure"]) == (scope, name))

    def test_hand_worked(self):
        y_true = np.array([5] * 6 + [4] * 4)
        a = certain([5] * 6 + [5] * 4)
        b = certain([5, 5, 5, 5, 5, 4, 4, 4, 4, 5])
        found = compare_predictions(y_true, a, b, n_bootstrap=100)
        accuracy = self.figure(found, "accuracy")
        assert (accuracy["a"], accuracy["b"]) == (0.6, 0.8)
        assert accuracy["difference"] == pytest.approx(0.2)
        assert self.figure(found, "sensitivity", "mel")["difference"] == 0.75
        # Only A right once, only B right three times: 2 * (1 + 4) / 2**4.
        assert found["mcnemar"] == {
            "only_a_right": 1,
            "only_b_right": 3,
            "p_value": pytest.approx(0.625),
        }

    def test_a_model_against_itself_does_not_differ(self, noisy):
        y_true, y_prob, groups = noisy
        found = compare_predictions(y_true, y_prob, y_prob, groups=groups, n_bootstrap=50)
        for figure in found["figures"]:
            assert figure["difference"] == figure["low"] == figure["high"] == 0
        assert found["mcnemar"]["p_value"] == 1

    def test_pairing_makes_intervals_narrower(self, noisy):
        y_true, y_prob, groups = noisy
        other = y_prob.copy()
        other[:10] = 1 / 7
        paired = self.figure(compare_predictions(y_true, y_prob, other, groups=groups), "accuracy")
        single = compute_metrics(y_true, y_prob, groups=groups)["overall"]["accuracy"]
        assert paired["high"] - paired["low"] < (single["high"] - single["low"]) / 2
