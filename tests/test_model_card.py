"""The model card: it says what the run's files say, and what they do not."""

import json
import re
import shutil

import pandas as pd
import pytest
from conftest import edit_bundle
from huggingface_hub import ModelCard

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import SPLITS, read_split
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.evaluation.metrics import format_figure
from skinlesion.evaluation.model_card import OVERALL, make_model_card
from skinlesion.evaluation.subgroups import LEAST_CASES
from skinlesion.files import InputError
from skinlesion.model.run import Run


@pytest.fixture(scope="module")
def evaluated(trained_run, sample, tmp_path_factory):
    """The run on the sample, evaluated with test-time augmentation; read only."""
    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("card") / "run")
    evaluate(run, data=sample, tta=True)
    return run


@pytest.fixture
def synthetic_run(evaluated, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(evaluated, tmp_path / "synthetic")


@pytest.fixture
def real_run(evaluated, tmp_path):
    """The same, as if its images were HAM10000's."""
    run = shutil.copytree(evaluated, tmp_path / "real")
    edit_bundle(run / "model", synthetic=False)
    change(run / "evaluation" / "metrics.json", synthetic=False)
    described = json.loads((run / "config.json").read_text())
    change(run / "config.json", dataset=described["dataset"] | {"synthetic": False})
    return run


def make_card(run):
    return make_model_card(Run(run), read_metrics(run))


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def read_metrics(run):
    return json.loads((run / "evaluation" / "metrics.json").read_text())


def read_tables(card):
    """Each table as a list of rows, each row as a list of cells, with the rule under the head."""
    blocks = re.findall(r"(?:^\|.*\n)+", card, re.M)
    cells = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in b.splitlines()] for b in blocks]
    return [[[cell.strip() for cell in row] for row in table] for table in cells]


def find_table(card, head):
    """The rows of the table whose head begins so, by their first cell."""
    found = [table for table in read_tables(card) if table[0][: len(head)] == head]
    assert len(found) == 1
    return {row[0]: row[1:] for row in found[0][2:]}


class TestHeader:
    def test_of_a_real_run(self, real_run):
        data = ModelCard(make_card(real_run)).data
        assert (data.license, data.library_name) == ("cc-by-nc-4.0", "keras")
        assert (data.pipeline_tag, data.datasets) == ("image-classification", ["HAM10000"])
        assert data.metrics == ["balanced_accuracy", "f1", "roc_auc"]
        assert data.model_name == "skinlesion-default"
        assert "synthetic" not in data.tags

    def test_results_are_those_of_the_metrics_file(self, real_run):
        overall = read_metrics(real_run)["overall"]
        results = ModelCard(make_card(real_run)).data.eval_results
        names = ["balanced_accuracy", "macro_f1", "macro_auc"]
        assert [result.metric_type for result in results] == ["balanced_accuracy", "f1", "roc_auc"]
        for result, name in zip(results, names, strict=True):
            row = overall[name]
            assert result.metric_value == pytest.approx(row["value"], abs=5e-4)
            assert f"{row['low']:.3f} to {row['high']:.3f}" in result.metric_name
            assert (result.dataset_type, result.dataset_split) == ("HAM10000", "test")

    def test_an_undefined_figure_is_left_out(self, real_run):
        metrics = read_metrics(real_run)
        undefined = {
            "value": None,
            "low": None,
            "high": None,
            "undefined_resamples": metrics["n_bootstrap"],
        }
        overall = metrics["overall"] | {"macro_auc": undefined}
        change(real_run / "evaluation" / "metrics.json", overall=overall)
        card = make_card(real_run)
        results = ModelCard(card).data.eval_results
        assert [result.metric_type for result in results] == ["balanced_accuracy", "f1"]
        assert find_table(card, ["figure", "single model"])[OVERALL["macro_auc"]][0] == "-"


class TestSynthetic:
    def test_is_called_so_and_gives_no_results(self, synthetic_run):
        card = make_card(synthetic_run)
        data = ModelCard(card).data
        assert (data.license, data.datasets, data.eval_results) == ("mit", None, None)
        assert "synthetic" in data.tags
        assert "model-index" not in card
        assert SYNTHETIC_NOTE in card
        assert "# skinlesion, trained on a synthetic sample" in card
        assert "about drawings, not about skin" in card

    def test_does_not_speak_of_the_real_dataset(self, synthetic_run):
        assert "ham10000" not in make_card(synthetic_run).lower()

    def test_a_real_run_is_not_called_synthetic(self, real_run):
        card = make_card(real_run)
        assert "synthetic" not in card.lower()
        assert "doi.org/10.1038/sdata.2018.161" in card


@pytest.mark.parametrize("kind", ["real_run", "synthetic_run"])
class TestEitherKind:
    @pytest.fixture
    def run(self, kind, request):
        return request.getfixturevalue(kind)

    def test_has_the_notice_and_every_section(self, run):
        card = make_card(run)
        assert f"**{DISCLAIMER}**" in card
        sections = re.findall(r"^## (\w+)", card, re.M)
        assert sections == [
            *("Intended", "How", "Training", "Training", "Evaluation", "Limits", "Licence")
        ]
        assert not re.search(r"\$\w|\bnan\b|\{\w", card)

    def test_tables_are_well_formed(self, run):
        tables = read_tables(make_card(run))
        assert len(tables) >= 8
        for table in tables:
            assert len(table) > 2
            assert {len(row) for row in table} == {len(table[0])}
            assert table[1] == ["---"] * len(table[0])

    def test_figures_are_those_of_the_metrics_file(self, run):
        card, metrics = make_card(run), read_metrics(run)
        overall = find_table(card, ["figure", "single model", "test-time augmentation"])
        augmented = metrics["variants"]["test-time augmentation"]
        for name, label in OVERALL.items():
            both = [format_figure(metrics["overall"][name]), format_figure(augmented[name])]
            assert overall[label] == both
        headline = format_figure(metrics["overall"]["balanced_accuracy"])
        assert f"On {metrics['n']} test images, balanced accuracy is {headline}" in card
        assert f"{metrics['n']} test images of {metrics['lesions']} lesions" in card


class TestFigures:
    def test_of_each_class(self, real_run):
        rows = find_table(make_card(real_run), ["class", "images"])
        assert list(rows) == list(HAM10000.labels)
        for code, row in read_metrics(real_run)["per_class"].items():
            assert rows[code][0] == str(row["support"])
            assert rows[code][1] == format_figure(row["sensitivity"])
            assert rows[code][4] == format_figure(row["auc"])

    def test_confusion_matrix_and_who_is_missed(self, real_run):
        # Rows true, columns predicted, in the order akiec, bcc, bkl, df, mel, nv, vasc.
        matrix = [[0] * 7 for _ in range(7)]
        matrix[4] = [1, 2, 4, 8, 16, 32, 64]  # benign among the predictions: 4 + 8 + 32 + 64
        matrix[1][5], matrix[5][4] = 3, 1000
        change(real_run / "evaluation" / "metrics.json", confusion_matrix=matrix)
        card = make_card(real_run)
        rows = find_table(card, ["", "akiec"])
        assert rows["mel"] == ["1", "2", "4", "8", "16", "32", "64"]
        assert rows["nv"][4] == "1,000"
        missed = "a benign class for 111 of 130 malignant images, 108 of 127 melanomas among them"
        assert missed in card

    def test_operating_points_and_calibration(self, real_run):
        card, found = make_card(real_run), read_metrics(real_run)["calibration"]
        rows, point = find_table(card, ["chosen for"]), found["operating_points"][1]
        assert rows["sensitivity 0.95"][:2] == [
            f"{point['threshold']:.3f}",
            format_figure(point["sensitivity"]),
        ]
        assert f"One temperature, {found['temperature']:.3f}" in card
        ece = [format_figure(found[stage]["ece"]) for stage in ("before", "after")]
        assert find_table(card, ["figure", "before", "after"])[OVERALL["ece"]] == ece
        coverage = format_figure(found["prediction_sets"]["coverage"])
        assert f"true class of 0.90 of the images. They hold that of {coverage}" in card

    @pytest.mark.parametrize("malignant", [29, 30])
    def test_thresholds_from_few_malignant_images_are_called_uncertain(self, real_run, malignant):
        found = read_metrics(real_run)["calibration"] | {"validation_malignant": malignant}
        change(real_run / "evaluation" / "metrics.json", calibration=found)
        card = make_card(real_run)
        assert f"validation images, {malignant} of them malignant" in card
        assert ("few: the thresholds are uncertain" in card) == (malignant < 30)

    def test_without_a_threshold(self, real_run):
        found = read_metrics(real_run)["calibration"]
        found["operating_points"][0]["threshold"] = None
        change(real_run / "evaluation" / "metrics.json", calibration=found)
        assert find_table(make_card(real_run), ["chosen for"])["sensitivity 0.90"][0] == "-"

    def test_what_is_missing_is_left_out(self, real_run):
        metrics = read_metrics(real_run)
        del metrics["variants"]
        (real_run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
        (real_run / "evaluation" / "subgroups.csv").unlink()
        (real_run / "history.csv").unlink()
        card = make_card(real_run)
        assert "### Subgroups\n\nNot measured." in card
        assert "test-time augmentation" not in card
        assert "logistic regression" in find_table(card, ["", ""])["fitting"][0]


class TestSubgroups:
    def write(self, run, *, subgroup="female", images=40, melanomas=20, left_out=0):
        names = ("accuracy", "balanced_accuracy", "malignant_auc", "sensitivity_mel")
        row = {"attribute": "sex", "subgroup": subgroup, "images": images, "lesions": 9}
        row |= {"malignant": 25, "melanomas": melanomas, "low": 0.1, "high": 0.9}
        rows = [
            row | {"figure": name, "value": 0.2 + 0.1 * k, "undefined_resamples": left_out}
            for k, name in enumerate(names)
        ]
        pd.DataFrame(rows).to_csv(run / "evaluation" / "subgroups.csv", index=False)
        return make_card(run)

    def test_support_and_figures(self, real_run):
        row = find_table(self.write(real_run), ["subgroup"])["sex: female"]
        figures = [f"{value} [0.100, 0.900]" for value in ("0.300", "0.400", "0.500")]
        assert row == ["40", "25", "20", *figures]

    def test_figures_about_few_images_are_not_given(self, real_run):
        card = self.write(real_run, images=34, melanomas=LEAST_CASES - 1)
        row = find_table(card, ["subgroup"])["sex: female"]
        assert row[3:] == ["0.300 [0.100, 0.900]", "too few", "too few"]  # 34 - 25 benign ones

    def test_nor_those_that_most_resamples_lack(self, real_run):
        row = find_table(self.write(real_run, left_out=501), ["subgroup"])["sex: female"]
        assert row[3:] == ["too few"] * 3

    def test_none_is_large_enough(self, real_run):
        assert "No subgroup has 20 test images" in self.write(real_run, images=19)

    def test_a_name_does_not_break_the_table(self, real_run):
        card = self.write(real_run, subgroup="a|b_c")
        assert "sex: a\\|b c" in find_table(card, ["subgroup"])


class TestTraining:
    def test_counts_are_those_of_the_split(self, real_run):
        split = read_split(real_run / "splits.csv")
        card = make_card(real_run)
        rows = find_table(card, ["class", "name"])
        for code in HAM10000.labels:
            for part, cell in zip(SPLITS, rows[code][2:], strict=True):
                chosen = split[(split["dx"] == code) & (split["split"] == part)]
                assert cell == f"{len(chosen)} ({chosen['lesion_id'].nunique()})"
        assert rows["mel"][:2] == ["Melanoma", "malignant"]
        assert f"{len(split)} images of {split['lesion_id'].nunique()} lesions" in card

    @pytest.mark.parametrize(
        ("schedule", "kept"),
        [
            ("cosine", "the last is kept, with a validation loss of 1.750"),
            ("plateau", "epoch 1 is kept, with the lowest validation loss, 0.750"),
        ],
    )
    def test_names_the_epoch_seed_versions_and_commit(self, real_run, schedule, kept):
        history = pd.read_csv(real_run / "history.csv").assign(val_loss=0.75)
        worse = history.assign(epoch=2, val_loss=1.75)
        pd.concat([history, worse]).to_csv(real_run / "history.csv", index=False)
        config = json.loads((real_run / "config.json").read_text())["config"]
        config |= {"limit": 1400, "schedule": schedule}
        change(real_run / "config.json", commit="0123abc", config=config)
        rows = find_table(make_card(real_run), ["", ""])
        assert rows["fitting"] == [f"2 of 1 epochs; {kept}"]
        assert (rows["seed"], rows["commit"]) == (["42"], ["0123abc"])
        assert rows["training images"] == ["1,400 at most"]
        assert re.search(r"keras \d", rows["versions"][0])

    def test_names_the_datasets_that_were_added_to_training(self, real_run):
        added = [{"folder": "/data/isic2019", "fingerprint": "0"}]
        change(real_run / "config.json", also=added)
        rows = find_table(make_card(real_run), ["", ""])
        assert rows["training images"][0].endswith(
            ", and those of isic2019, which have licences of their own"
        )

    def test_says_no_folder_of_the_machine(self, real_run):
        path = "/home/somebody/weights/resnet.h5"
        described = json.loads((real_run / "config.json").read_text())
        change(
            real_run / "config.json",
            config=described["config"] | {"weights": path},
            weights={"source": path, "loaded_layers": 3, "layers": 4},
        )
        card = make_card(real_run)
        assert "somebody" not in card
        rows = find_table(card, ["", ""])
        assert rows["pretrained weights"] == ["resnet.h5, in 3 of 4 layers of the backbone"]
        assert find_table(card, ["setting"])["weights"] == ["resnet.h5"]

    def test_an_unfinished_run_is_refused(self, real_run):
        shutil.rmtree(real_run / "model")
        with pytest.raises(InputError, match=r"bundle\.json"):
            make_card(real_run)


class TestAudit:
    def test_of_a_clean_split(self, real_run):
        card = make_card(real_run)
        assert "**Leak audit:** no lesion is in more than one part of the split" in card
        assert "whether one is there under two ids is not known" in card

    def test_of_a_split_that_leaks(self, real_run):
        split = read_split(real_run / "splits.csv")
        test = split.index[split["split"] == "test"]
        split.loc[test[0], "lesion_id"] = split.loc[split["split"] == "train", "lesion_id"].iloc[0]
        split.to_csv(real_run / "splits.csv", index=False)
        card = make_card(real_run)
        share = f"{100 / len(test):.1f} % of the test images show a lesion that is also in train,"
        assert "**This split leaks.** Lesions in more than one part: 1;" in card
        assert share in card
        assert "no lesion is in more than one part" not in card

    @pytest.mark.parametrize(
        ("part", "says"),
        [
            (
                "train",
                "none of the 1 known pairs of images that show one lesion under two ids is parted",
            ),
            ("test", "part: 0; known pairs of images that show one lesion under two ids: 1."),
        ],
    )
    def test_of_known_near_duplicates(self, real_run, part, says):
        one, other = read_near_duplicates().iloc[0][["image_id_1", "image_id_2"]]
        split = read_split(real_run / "splits.csv")
        rows = [(one, "HAM_a", "nv", "train"), (other, "HAM_b", "nv", part)]
        extra = pd.DataFrame(rows, columns=split.columns)
        pd.concat([split, extra]).to_csv(real_run / "splits.csv", index=False)
        assert says in make_card(real_run)


def test_ood_detection(real_run):
    share = format_figure(read_metrics(real_run)["ood"]["in_distribution"])
    card = make_card(real_run)
    assert f"validation images are; {share} of the test images are not flagged." in card


def test_evaluate_writes_it(evaluated_run):
    path = evaluated_run / "evaluation" / "model_card.md"
    assert path.read_text(encoding="utf-8") == make_card(evaluated_run)
