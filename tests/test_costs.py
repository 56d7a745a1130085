"""Decisions by the lowest expected cost: the table, the rule, and how it reaches predictions."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from skinlesion.data.ham10000 import HAM10000
from skinlesion.demo import html
from skinlesion.demo.predict import CalibratedPredictor, predict
from skinlesion.evaluation.bootstrap import draw_weights
from skinlesion.evaluation.calibration import calibrate, load_calibration
from skinlesion.evaluation.costs import (
    BY_COST,
    BY_RATIO,
    FIGURES,
    CostTable,
    compute_cost_decision,
    decide,
    read_costs,
)
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.evaluation.metrics import find_malignant
from skinlesion.evaluation.report import write_report
from skinlesion.files import InputError
from skinlesion.model.run import Run

TEN_TO_ONE = "true,benign,malignant\nbenign,0,1\nmalignant,10,0\n"

MALIGNANT = find_malignant(HAM10000)


def write(folder, text):
    path = folder / "costs.csv"
    path.write_text(text)
    return path


def write_full(folder, costs):
    """A table of all classes from an array (7, 7)."""
    table = pd.DataFrame(costs, index=HAM10000.labels, columns=HAM10000.labels)
    table.to_csv(folder / "full.csv", index_label="true")
    return folder / "full.csv"


def make_probabilities(**shares):
    return np.array([[shares.get(code, 0.0) for code in HAM10000.labels]])


class TestTable:
    def test_the_small_form_is_spread_over_the_classes(self, tmp_path):
        costs = np.array(read_costs(write(tmp_path, TEN_TO_ONE), HAM10000).costs)
        for true, decided in np.ndindex(7, 7):
            expected = {(0, 0): 0, (1, 1): 0, (0, 1): 1, (1, 0): 10}
            assert costs[true, decided] == expected[MALIGNANT[true], MALIGNANT[decided]]

    def test_names_may_stand_in_any_order_and_case(self, tmp_path):
        costs = np.arange(49.0).reshape(7, 7) * (1 - np.eye(7))
        table = pd.read_csv(write_full(tmp_path, costs), index_col=0).iloc[::-1, ::-1]
        table.index = [f" {code.upper()} " for code in table.index]
        table.to_csv(tmp_path / "turned.csv")
        assert np.array_equal(read_costs(tmp_path / "turned.csv", HAM10000).costs, costs)

    def test_it_is_called_like_its_file(self, tmp_path):
        path = write(tmp_path, TEN_TO_ONE).rename(tmp_path / "of <b>A, (final).csv")
        assert read_costs(path, HAM10000).name == "of _b_A_ _final_.csv"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty; expected a table of costs"),
            ("true,benign,malignant\n", "has a header but no row"),
            ("true,benign,malignant\nbenign,0\nmalignant,1,0\n", "too few values in line 2"),
            (
                "true,benign,malignant\nbenign,0,1\n",
                "has the rows benign and the columns benign, malignant; both",
            ),
            (
                "true,benign\nbenign,0\nmalignant,1\n",
                "and the columns benign; both must be akiec, bcc, bkl, df,",
            ),
            (TEN_TO_ONE + "malignant,10,0\n", "has the rows benign, malignant, malignant and"),
            (
                TEN_TO_ONE.replace("true,benign", "true,good"),
                "and the columns good, malignant; both must be",
            ),
            (
                "true,mel,nv\nmel,0,1\nnv,1,0\n",
                "has the rows mel, nv and the columns mel, nv; both",
            ),
            (TEN_TO_ONE.replace("true,benign,m", "true,benign,benign,m"), "too few values"),
            ("true,benign,benign\nbenign,0,1\nmalignant,1,0\n", "the columns benign, benign.1;"),
            ("true\nbenign\n", "and the columns none; both must be"),
            ("true;benign;malignant\nbenign;0;1\n", "has the rows benign;0;1 and the columns none"),
            (TEN_TO_ONE.replace("10", "-1"), "true malignant decided benign must be from 0"),
            (TEN_TO_ONE.replace("10", ""), "true malignant decided benign must be from 0"),
            (TEN_TO_ONE.replace("10", "high"), "true malignant decided benign must be from 0"),
            (TEN_TO_ONE.replace("10", "inf"), "true malignant decided benign must be from 0"),
            (
                TEN_TO_ONE.replace("10,0", "10,2"),
                "true malignant decided malignant must be 0: this",
            ),
        ],
    )
    def test_a_mistake_gets_one_line(self, tmp_path, text, message):
        with pytest.raises(InputError) as caught:
            read_costs(write(tmp_path, text), HAM10000)
        assert message in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path / "costs.csv"))

    @pytest.mark.parametrize(
        ("name", "costs"),
        [
            ("c.csv", np.zeros((6, 7))),
            ("c.csv", np.zeros((7, 6))),
            ("c.csv", np.eye(7)),
            ("c.csv", np.eye(7) - 1),
            ("c.csv", np.where(np.eye(7), 0, np.nan)),
            ("<script>", np.zeros((7, 7))),
        ],
    )
    def test_a_saved_model_with_another_one_is_refused(self, name, costs):
        with pytest.raises(ValidationError):
            CostTable(name, costs.tolist())


class TestRule:
    def test_hand_worked(self, tmp_path):
        # 0.15 * 10 = 1.5 for a missed cancer, 0.85 * 1 for a false alarm. Melanoma is the most
        # probable one of the malignant classes.
        table = read_costs(write(tmp_path, TEN_TO_ONE), HAM10000)
        y_prob = make_probabilities(nv=0.8, bkl=0.05, mel=0.1, bcc=0.05)
        assert decide(y_prob, table) == HAM10000.label_of["mel"]
        # 0.09 * 10 = 0.9 and 0.91 * 1: the false alarm costs more.
        assert decide(make_probabilities(nv=0.91, mel=0.09), table) == HAM10000.label_of["nv"]

    def test_a_class_that_is_not_the_most_probable_of_its_kind(self, tmp_path):
        costs = 1 - np.eye(7)
        costs[HAM10000.label_of["mel"]] *= 4
        table = read_costs(write_full(tmp_path, costs), HAM10000)
        y_prob = make_probabilities(bcc=0.5, mel=0.3, nv=0.2)
        # bcc: 0.3 * 4 + 0.2 = 1.4; mel: 0.5 + 0.2 = 0.7; nv: 0.3 * 4 + 0.5 = 1.7.
        assert decide(y_prob, table) == HAM10000.label_of["mel"]

    def test_equal_costs_for_all_mistakes_give_the_most_probable_class(self):
        y_prob = np.random.default_rng(0).dirichlet(np.ones(7), 500)
        equal = CostTable("equal.csv", ((1 - np.eye(7)) * 3).tolist())
        nothing = CostTable("nothing.csv", np.zeros((7, 7)).tolist())
        for table in (equal, nothing):
            assert np.array_equal(decide(y_prob, table), y_prob.argmax(axis=1))

    def test_the_small_form_is_a_threshold_and_the_most_probable_class_of_the_kind(self, tmp_path):
        y_prob = np.random.default_rng(1).dirichlet(np.full(7, 0.5), 2000)
        decided = decide(y_prob, read_costs(write(tmp_path, TEN_TO_ONE), HAM10000))
        malignant = y_prob[:, MALIGNANT].sum(axis=1) > 1 / 11
        assert np.array_equal(MALIGNANT[decided], malignant)
        within = np.where(malignant[:, None] == MALIGNANT, y_prob, -1)
        assert np.array_equal(decided, within.argmax(axis=1))

    def test_no_rule_has_a_lower_expected_cost(self):
        rng = np.random.default_rng(2)
        costs = rng.uniform(0, 9, (7, 7)) * (1 - np.eye(7))
        y_prob = rng.dirichlet(np.ones(7), 300)
        decided = decide(y_prob, CostTable("c.csv", costs.tolist()))
        expected = y_prob @ costs
        assert np.allclose(expected[np.arange(300), decided], expected.min(axis=1))


def test_both_rules_are_measured_hand_worked(tmp_path):
    table = read_costs(write(tmp_path, TEN_TO_ONE), HAM10000)
    y_prob = np.vstack(
        [
            make_probabilities(mel=0.2, nv=0.8),  # a melanoma that only the costs find
            make_probabilities(mel=0.9, nv=0.1),  # a melanoma
            make_probabilities(nv=0.7, bcc=0.3),  # a nevus that becomes a false alarm
            make_probabilities(nv=1.0),
        ]
    )
    y_true = np.array([HAM10000.label_of[code] for code in ("mel", "mel", "nv", "nv")])
    weights, _ = draw_weights(4, n_bootstrap=0)
    found = compute_cost_decision(
        y_true,
        y_prob,
        table,
        HAM10000,
        by_ratio=y_prob.argmax(axis=1),
        weights=weights,
    )
    values = {
        rule: {name: row["value"] for name, row in figures.items()}
        for rule, figures in found["rules"].items()
    }
    plain, by_cost = values[BY_RATIO], values[BY_COST]
    assert set(plain) == set(by_cost) == {*FIGURES, "sensitivity_mel"}
    assert (plain["mean_cost"], by_cost["mean_cost"]) == (10 / 4, 1 / 4)
    assert found["saved"]["value"] == 9 / 4
    assert (plain["sensitivity_mel"], by_cost["sensitivity_mel"]) == (0.5, 1)
    assert (plain["sensitivity"], plain["specificity"]) == (0.5, 1)
    assert (by_cost["sensitivity"], by_cost["specificity"]) == (1, 0.5)
    assert (plain["accuracy"], by_cost["accuracy"]) == (0.75, 0.75)


class TestModel:
    """The rule is part of the saved model, so everything that decides follows it."""

    @pytest.fixture
    def costly(self, tmp_path):
        """Benign mistakes for malignant cost nearly nothing, so all decisions are malignant."""
        return write(tmp_path, TEN_TO_ONE.replace("10", "100000"))

    def test_without_costs_each_class_has_the_same_weight(self, trained_run, pictures):
        model = CalibratedPredictor(trained_run)
        assert model.calibration.costs is None
        rule = "decides by the highest probability relative to frequency"
        for one in model.predict_files(pictures[:5]):
            assert HAM10000.label_of[one.result.prediction] == one.y_prob.argmax()
            assert one.result.rule == rule
            assert rule in html.render_result(inside(one.result))

    def test_with_costs_everything_follows_them(self, run_copy, costly, pictures, tmp_path, capsys):
        before = Run(run_copy).digest
        calibrate(run_copy, costs=costly)
        said = capsys.readouterr().out
        assert "decides by the lowest expected cost (table costs.csv)" in said
        assert f"evaluate {run_copy} again" in said
        assert Run(run_copy).digest == before
        table = predict(run_copy / "model", pictures[:10], tmp_path / "p.csv")
        assert "decides by the lowest expected cost (table costs.csv)" in capsys.readouterr().out
        malignant = [code for code in HAM10000.labels if MALIGNANT[HAM10000.label_of[code]]]
        probabilities = table[[f"p_{code}" for code in malignant]].to_numpy()
        assert list(table["prediction"]) == [malignant[i] for i in probabilities.argmax(axis=1)]
        assert table["malignant"].all()
        result = CalibratedPredictor(run_copy).predict_file(pictures[0]).result
        assert result.rule == "decides by the lowest expected cost (table costs.csv)"
        assert result.operating_point.threshold is None
        assert "error rates of this rule were not measured" in result.sentence
        assert json.loads(json.dumps(result.to_dict()))["prediction"] == result.prediction

    def test_none_brings_the_rule_without_costs_back(self, run_copy, costly):
        values, _ = Run(run_copy).read_calibration()
        calibrate(run_copy, costs=costly)
        assert load_calibration(run_copy).costs == read_costs(costly, HAM10000)
        calibrate(run_copy, costs="none")
        assert Run(run_copy).read_calibration()[0] == values | {"costs": None}

    def test_a_mistake_in_the_table_changes_nothing(self, run_copy, tmp_path):
        before = (run_copy / "model" / "bundle.json").read_bytes()
        with pytest.raises(InputError, match="has the rows mel and"):
            calibrate(run_copy, costs=write(tmp_path, "true,mel\nmel,0\n"))
        assert (run_copy / "model" / "bundle.json").read_bytes() == before

    def test_an_edited_table_is_refused(self, run_copy, costly):
        calibrate(run_copy, costs=costly)
        run = Run(run_copy)
        values, arrays = run.read_calibration()
        values["costs"]["costs"][0][0] = 1.0
        run.save_calibration(values, arrays)
        with pytest.raises(InputError, match="the diagonal must be 0"):
            load_calibration(run)

    def test_it_is_evaluated_beside_the_plain_rule(
        self, run_copy, sample, costly, capsys, pictures
    ):
        calibrate(run_copy, costs=costly)
        metrics = evaluate(run_copy, data=sample)
        found = metrics["cost_decision"]
        assert found["rules"][BY_COST]["sensitivity"]["value"] == 1
        assert found["rules"][BY_COST]["specificity"]["value"] == 0
        plain = found["rules"][BY_RATIO]
        for name in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert plain[name] == pytest.approx(metrics["overall"][name])
        assert plain["sensitivity_mel"] == metrics["per_class"]["mel"]["sensitivity"]
        written = pd.read_csv(run_copy / "evaluation" / "cost_decision.csv")
        assert set(written["figure"]) == {*FIGURES, "sensitivity_mel"}
        card = (run_copy / "evaluation" / "model_card.md").read_text()
        assert "### Decisions by cost" in card
        assert "| akiec | 0 | 0 | 100000 |" in card
        # The rates of the page are those of the rule.
        point = CalibratedPredictor(run_copy).operating_point
        assert (point.sensitivity["value"], point.specificity["value"]) == (1, 0)
        assert "False-positive rate on the test set: 100" in (
            inside(CalibratedPredictor(run_copy).predict_file(pictures[0]).result).sentence
        )
        # With another rule, they no longer hold.
        calibrate(run_copy, costs=write(costly.parent, TEN_TO_ONE))
        assert CalibratedPredictor(run_copy).operating_point.sensitivity is None


def test_figures_of_an_earlier_rule_do_not_stay(tmp_path):
    (tmp_path / "cost_decision.csv").write_text("rule,figure\n")
    rows = pd.DataFrame({"label": [4, 5]})
    assert "cost_decision" not in write_report(tmp_path, rows, np.eye(7)[[4, 5]], HAM10000)
    assert not (tmp_path / "cost_decision.csv").exists()


def inside(result):
    return dataclasses.replace(result, is_in_distribution=True)
