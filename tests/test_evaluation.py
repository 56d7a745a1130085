"""Figures held to hand-worked values and to scikit-learn's."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from skinlesion.errors import InputError
from skinlesion.evaluation import (
    compute_classification_report,
    compute_metrics,
    metrics_table,
    read_predictions,
    write_predictions,
)
from skinlesion.labels import CLASS_CODES


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
    result = compute_metrics(y_true, certain(y_pred), draws=0)
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


def test_hand_worked_auc_with_a_tie():
    y_prob = np.zeros((4, 7))
    y_prob[:, 4] = [0.9, 0.5, 0.5, 0.1]
    y_prob[:, 5] = 1 - y_prob[:, 4]
    # mel scores .9 and .5 against nv .5 and .1: pairs won 1, 1, 1/2, 1.
    result = compute_metrics(np.array([4, 4, 5, 5]), y_prob, draws=0)
    assert result["per_class"]["mel"]["auc"]["value"] == pytest.approx(3.5 / 4)


def test_undefined_figures_are_nan_and_not_in_the_means():
    result = compute_metrics(np.array([5, 4]), certain([5, 4]), draws=10)
    df = result["per_class"]["df"]
    assert df["support"] == 0
    for figure in ("sensitivity", "ppv", "f1", "auc"):
        assert np.isnan(df[figure]["value"])
        assert np.isnan(df[figure]["low"])
    assert df["specificity"]["value"] == 1
    assert result["overall"]["balanced_accuracy"]["value"] == 1


def test_a_class_that_is_never_predicted_has_f1_zero_and_no_ppv():
    mel = compute_metrics(np.array([4, 5]), certain([5, 5]), draws=0)["per_class"]["mel"]
    assert mel["f1"]["value"] == 0
    assert np.isnan(mel["ppv"]["value"])


def test_equals_scikit_learn(noisy):
    y_true, y_prob, _ = noisy
    y_pred = y_prob.argmax(axis=1)
    result = compute_metrics(y_true, y_prob, draws=0)
    expected = {
        "accuracy": sk.accuracy_score(y_true, y_pred),
        "balanced_accuracy": sk.balanced_accuracy_score(y_true, y_pred),
        "macro_f1": sk.f1_score(y_true, y_pred, average="macro"),
        "weighted_f1": sk.f1_score(y_true, y_pred, average="weighted"),
        "macro_auc": np.mean([sk.roc_auc_score(y_true == c, y_prob[:, c]) for c in range(7)]),
    }
    for name, value in expected.items():
        assert result["overall"][name]["value"] == pytest.approx(value, abs=1e-9)


def test_intervals_equal_scikit_learn_on_the_same_draws(noisy):
    y_true, y_prob, groups = noisy
    result = compute_metrics(y_true, y_prob, groups=groups, draws=200, seed=9)
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
    result = compute_metrics(y_true, certain(y_true), draws=1000, seed=1)
    assert 280 < result["overall"]["balanced_accuracy"]["draws_left_out"] < 420
    assert result["overall"]["accuracy"]["draws_left_out"] == 0
    assert result["overall"]["balanced_accuracy"]["low"] == 1


def test_lesions_are_drawn_not_images():
    """Copies of images add nothing: intervals stay as wide as with one image a lesion."""
    rng = np.random.default_rng(2)
    y_true = rng.integers(0, 2, 60) + 4
    y_prob = certain(np.where(rng.random(60) < 0.7, y_true, 9 - y_true))
    once = compute_metrics(y_true, y_prob, groups=np.arange(60), draws=300)
    copies = compute_metrics(
        np.repeat(y_true, 5),
        np.repeat(y_prob, 5, axis=0),
        groups=np.repeat(np.arange(60), 5),
        draws=300,
    )
    assert copies["lesions"] == 60
    for end in ("low", "high"):
        assert copies["overall"]["accuracy"][end] == pytest.approx(once["overall"]["accuracy"][end])


def test_classification_report_has_every_class_and_nan_where_undefined():
    report = compute_classification_report(np.array([5, 4]), np.array([5, 5]))
    assert set(CLASS_CODES) <= set(report.index)
    assert np.isnan(report.loc["df", "recall"])
    assert report.loc["nv", "precision"] == 0.5
    assert report.loc["mel", "support"] == 1


def test_the_table_for_readers_has_every_figure(noisy):
    y_true, y_prob, groups = noisy
    table = metrics_table(compute_metrics(y_true, y_prob, groups=groups, draws=20))
    assert set(table["scope"]) == {"overall", *CLASS_CODES}
    assert len(table) == 5 + 7 * 6


class TestPredictionFiles:
    def test_form(self, tmp_path):
        write_predictions(tmp_path / "p.csv", ["ISIC_1"], np.arange(7)[None] / 21)
        header, row = (tmp_path / "p.csv").read_text().splitlines()
        assert header == "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
        assert [round(float(v) * 21) for v in row.split(",")[1:]] == [4, 5, 1, 0, 2, 3, 6]

    def test_round_trip(self, noisy, tmp_path):
        names = [f"ISIC_{number}" for number in range(300)]
        write_predictions(tmp_path / "p.csv", names, noisy[1])
        read_names, y_prob = read_predictions(tmp_path / "p.csv")
        assert read_names == names
        assert np.allclose(y_prob, noisy[1], atol=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop(columns="DF"), "columns missing: DF"),
            (lambda t: pd.concat([t, t.iloc[[1]]]), "more than once: ISIC_1"),
            (lambda t: t.assign(MEL=["x", *t["MEL"][1:]]), "no numbers from 0 to 1 for ISIC_0"),
            (lambda t: t.assign(NV=t["NV"] + 1), "no numbers from 0 to 1 for ISIC_0, ISIC_1"),
        ],
    )
    def test_a_bad_file_is_refused_by_name(self, tmp_path, change, message):
        path = tmp_path / "p.csv"
        write_predictions(path, ["ISIC_0", "ISIC_1"], np.full((2, 7), 1 / 7))
        change(pd.read_csv(path)).to_csv(path, index=False)
        with pytest.raises(InputError, match=message):
            read_predictions(path)
