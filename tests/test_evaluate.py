"""The steps that evaluate, over real files: evaluate, score, compare and folds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, edit_bundle

from skinlesion.cli import main
from skinlesion.config import make_config
from skinlesion.data.dataset import load_metadata
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.images import load_images
from skinlesion.data.isic_csv import read_isic, write_isic
from skinlesion.data.split import read_split
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import calibrate, load_calibration
from skinlesion.evaluation.compare import compare
from skinlesion.evaluation.evaluate import (
    evaluate,
    evaluate_external,
)
from skinlesion.evaluation.score import score
from skinlesion.files import InputError, read_json
from skinlesion.model.run import Run
from skinlesion.model.train import train


def train_calibrated(data, folder, config, **options):
    run = train(data, folder, config, **options)
    calibrate(run, data)
    return run.folder


@pytest.fixture(scope="module")
def second_run(sample, tmp_path_factory):
    """Another model for the same test images."""
    config = make_config("default", **TINY | {"image_size": (32, 48)}, epochs=1, limit=40)
    return train_calibrated(sample, tmp_path_factory.mktemp("runs") / "second", config)


@pytest.fixture(scope="module")
def evaluated_pair(evaluated_run, second_run, sample):
    """Two evaluated runs on the same test images; read only."""
    evaluate(second_run, data=sample)
    return [evaluated_run, second_run]


@pytest.fixture
def two_runs(evaluated_pair, tmp_path):
    """Copies of them that a test may change."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in evaluated_pair]


@pytest.fixture(scope="module")
def truth(sample, tmp_path_factory):
    """Twenty-one images of the sample as an external test set, with its truth file."""
    table = load_metadata(sample).groupby("dx").head(3)
    folder = tmp_path_factory.mktemp("external")
    (folder / "images").mkdir()
    for path in table["path"]:
        shutil.copy(path, folder / "images")
    write_isic(folder / "truth.csv", list(table["image_id"]), np.eye(7)[table["label"]], HAM10000)
    return folder / "truth.csv"


class TestEvaluate:
    @pytest.fixture
    def evaluated(self, evaluated_run, tmp_path):
        return Path(shutil.copytree(evaluated_run, tmp_path / "evaluated"))

    def test_files(self, evaluated, sample, capsys):
        metrics = json.loads((evaluated / "evaluation" / "metrics.json").read_text())
        assert metrics["synthetic"] is True
        assert set(metrics["per_class"]) == set(HAM10000.labels)
        assert 0 < metrics["gradcam"]["area"] < 1
        assert metrics["calibration"]["validation_images"] > 0
        row = metrics["overall"]["balanced_accuracy"]
        assert row["low"] <= row["value"] <= row["high"]
        assert {path.name for path in (evaluated / "evaluation").iterdir()} == {
            "metrics.json",
            "metrics.csv",
            "model_card.md",
            "checklist.md",
            "decision_curve.csv",
            "fixed_points.csv",
            "classification_report.csv",
            "confusion_matrix.csv",
            "operating_points.csv",
            "risk_coverage.csv",
            "subgroups.csv",
            "confident_mistakes.png",
            "confusion_matrix.png",
            "confusion_matrix_normalized.png",
            "decision_curve.png",
            "explanations.png",
            "learning_curves.png",
            "precision_recall_curves.png",
            "reliability.png",
            "risk_coverage.png",
            "roc_curves.png",
            "sample_predictions.png",
            "subgroups.png",
        }

    def test_test_images_only_and_figures_from_the_prediction_file(self, evaluated, sample):
        names, y_prob = read_isic(evaluated / "predictions_test.csv", HAM10000)
        split = read_split(evaluated / "splits.csv").set_index("image_id")
        assert set(names) == set(split.index[split["split"] == "test"])
        y_true = load_metadata(sample).set_index("image_id").loc[names, "label"]
        accuracy = (y_prob.argmax(axis=1) == y_true).mean()
        metrics = json.loads((evaluated / "evaluation" / "metrics.json").read_text())
        assert metrics["overall"]["accuracy"]["value"] == pytest.approx(accuracy)

    def test_predictions_are_made_once_whatever_their_order(self, evaluated, sample):
        """Also for the saved model in its run, which is as good as the run."""
        path = evaluated / "predictions_test.csv"
        first = json.loads((evaluated / "evaluation" / "metrics.json").read_text())
        pd.read_csv(path).iloc[::-1].to_csv(path, index=False)
        before = path.read_bytes()
        evaluate(evaluated / "model", data=sample)
        assert json.loads((evaluated / "evaluation" / "metrics.json").read_text()) == first
        assert path.read_bytes() == before

    def test_predictions_of_other_images_are_refused(self, evaluated, sample):
        path = evaluated / "predictions_test.csv"
        pd.read_csv(path).iloc[1:].to_csv(path, index=False)
        with pytest.raises(InputError, match="does not hold the images to evaluate: missing ISIC_"):
            evaluate(evaluated, data=sample)

    def test_few_lines_say_what_limits_them_and_each_image_is_decoded_once_for_them(
        self, run_copy, sample, monkeypatch, capsys
    ):
        from skinlesion.model import predictor

        decoded = []

        def count(paths, **options):
            decoded.extend(paths)
            return load_images(paths, **options)

        monkeypatch.setattr(predictor, "load_images", count)
        main(["evaluate", "--run", str(run_copy), "--data", str(sample)])
        said = capsys.readouterr().out
        assert len(said.splitlines()) <= 12
        assert SYNTHETIC_NOTE in said
        assert "these thresholds are uncertain" in said
        test = Run(run_copy).rows("test")
        # The explained images, two a class at most, are decoded again for their pictures.
        assert len(test) <= len(decoded) <= len(test) + 14

    def test_a_bundle_by_itself_says_how_it_can_be_tested(self, evaluated, sample, tmp_path):
        shutil.copytree(evaluated / "model", tmp_path / "alone" / "bundle")
        with pytest.raises(InputError, match="--images and --truth"):
            evaluate(tmp_path / "alone" / "bundle", data=sample)

    def test_augmentation_stands_beside_the_plain_predictions(self, evaluated, sample, capsys):
        plain = (evaluated / "predictions_test.csv").read_bytes()
        metrics = evaluate(evaluated, data=sample, tta=True)
        assert (evaluated / "predictions_test.csv").read_bytes() == plain
        assert list(metrics["variants"]) == ["test-time augmentation"]
        _, averaged = read_isic(evaluated / "predictions_test_tta.csv", HAM10000)
        assert not np.allclose(averaged, read_isic(evaluated / "predictions_test.csv", HAM10000)[1])
        assert "with test-time augmentation" in capsys.readouterr().out

    def test_the_share_in_distribution_is_reported(self, evaluated, predictor, sample):
        metrics = json.loads((evaluated / "evaluation" / "metrics.json").read_text())
        run, table = Run(evaluated), load_metadata(sample).set_index("image_id")
        paths = table.loc[run.rows("test")["image_id"], "path"]
        features = predictor.predict_files(list(paths)).features
        share = (load_calibration(run).ood.compute_scores(features) <= 1).mean()
        found = metrics["ood"]["in_distribution"]
        assert found["value"] == pytest.approx(share)
        assert found["low"] <= found["value"] <= found["high"]
        assert (
            metrics["ood"]["per_class"]["mel"]["support"]
            == (metrics["per_class"]["mel"]["support"])
        )

    def test_a_run_without_calibration_says_what_to_do(self, run_copy, sample):
        run = Run(run_copy)
        edit_bundle(run.model_dir, calibration=None)
        with pytest.raises(InputError, match="skinlesion calibrate --run"):
            evaluate(run, data=sample)

    def test_another_dataset_is_refused(self, trained_run, flat_data):
        with pytest.raises(InputError, match="another dataset"):
            evaluate(trained_run, data=flat_data)


def test_augmented_predictions_do_not_depend_on_how_the_image_is_turned(predictor, sample):
    images = load_images(sorted(sample.glob("*part_1/*.jpg"))[:4], image_size=(32, 32))
    straight = predictor.predict_images(images, tta=True).y_prob
    for turned in (images[:, ::-1], images.swapaxes(1, 2), np.rot90(images, axes=(1, 2))):
        assert np.allclose(predictor.predict_images(turned, tta=True).y_prob, straight, atol=1e-5)
        assert not np.allclose(predictor.predict_images(turned).y_prob, straight, atol=1e-5)


class TestExternal:
    @pytest.fixture
    def of_seen(self, trained_run, truth):
        """What is said of the images that the run was trained on, also for its saved model."""
        split = read_split(trained_run / "splits.csv").set_index("image_id")["split"]
        seen = sum(split[name] != "test" for name in read_isic(truth, HAM10000)[0])
        return f"was trained or chosen on {seen} of these 21 images"

    def test_added_images_count_as_trained_on(self, run_copy, truth, tmp_path, capsys):
        described = json.loads((run_copy / "config.json").read_text())
        described["also"] = [{"folder": str(truth.parent / "images"), "fingerprint": "0" * 64}]
        (run_copy / "config.json").write_text(json.dumps(described))
        metrics = evaluate_external(
            run_copy, truth.parent / "images", truth, tmp_path / "out", tta=True
        )
        assert "was trained or chosen on 21 of these 21 images" in capsys.readouterr().out
        assert metrics["external"] == {"truth": truth.name, "tta": True}

    def test_one_run_on_other_images(
        self, trained_run, predictor, truth, of_seen, tmp_path, sample, capsys
    ):
        metrics = evaluate_external(trained_run, truth.parent / "images", truth, tmp_path / "out")
        assert of_seen in capsys.readouterr().out
        assert (metrics["n"], metrics["lesions"]) == (21, 21)
        assert not (tmp_path / "out" / "model_card.md").exists()
        names, y_prob = read_isic(tmp_path / "out" / "predictions.csv", HAM10000)
        paths = [truth.parent / "images" / f"{name}.jpg" for name in names]
        assert np.allclose(predictor.predict_files(paths).y_prob, y_prob)
        labels = load_metadata(sample).set_index("image_id").loc[names, "label"]
        accuracy = (y_prob.argmax(axis=1) == labels.to_numpy()).mean()
        assert metrics["overall"]["accuracy"]["value"] == pytest.approx(accuracy)
        assert "operating_points" in metrics["calibration"]

    def test_metadata_gives_lesions_and_subgroups(
        self, trained_run, truth, of_seen, tmp_path, sample, capsys
    ):
        metrics = evaluate_external(
            trained_run / "model",
            truth.parent / "images",
            truth,
            tmp_path / "out",
            metadata=sample / "HAM10000_metadata.csv",
        )
        assert of_seen in capsys.readouterr().out
        assert metrics["lesions"] < 21
        assert (tmp_path / "out" / "subgroups.csv").is_file()

    def test_a_missing_image_is_named(self, trained_run, truth, tmp_path):
        names, y_prob = read_isic(truth, HAM10000)
        write_isic(tmp_path / "t.csv", [*names[1:], "ISIC_absent"], y_prob, HAM10000)
        with pytest.raises(InputError, match=r"1 of 21 images of t\.csv are missing: ISIC_absent"):
            evaluate_external(
                trained_run, truth.parent / "images", tmp_path / "t.csv", tmp_path / "out"
            )

    def test_metadata_of_another_diagnosis_is_refused(self, trained_run, truth, tmp_path, sample):
        table = pd.read_csv(sample / "HAM10000_metadata.csv")
        table.loc[0, "dx"] = "vasc" if table["dx"][0] != "vasc" else "nv"
        table.to_csv(tmp_path / "m.csv", index=False)
        with pytest.raises(InputError, match=f"different diagnoses for {table['image_id'][0]}"):
            score(truth, truth, tmp_path / "out", metadata=tmp_path / "m.csv")


class TestScore:
    def test_equals_what_evaluate_says_of_the_same_predictions(
        self, evaluated_run, sample, tmp_path
    ):
        split = read_split(evaluated_run / "splits.csv").query("split == 'test'")
        labels = split["dx"].map(HAM10000.label_of).to_numpy()
        write_isic(tmp_path / "t.csv", list(split["image_id"]), np.eye(7)[labels], HAM10000)
        score(
            evaluated_run / "predictions_test.csv",
            tmp_path / "t.csv",
            tmp_path / "out",
            metadata=sample / "HAM10000_metadata.csv",
        )
        places = (evaluated_run / "evaluation", tmp_path / "out")
        evaluated, scored = (read_json(place / "metrics.json") for place in places)
        for name, row in evaluated["overall"].items():
            assert scored["overall"][name] == pytest.approx(row, nan_ok=True)
        assert "calibration" not in scored

    def test_without_metadata_images_are_lesions_and_this_is_said(self, truth, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "subgroups.csv").touch()  # of an earlier call with metadata
        metrics = score(truth, truth, tmp_path / "out")
        assert not (tmp_path / "out" / "subgroups.csv").exists()
        assert metrics["lesions"] == metrics["n"] == 21
        assert metrics["overall"]["balanced_accuracy"]["value"] == 1
        assert "every image counts as a lesion of its own" in capsys.readouterr().out

    def test_rows_that_are_no_probabilities_are_noticed(self, truth, tmp_path, capsys):
        names, y_prob = read_isic(truth, HAM10000)
        write_isic(tmp_path / "p.csv", names, y_prob * 0.7, HAM10000)
        score(tmp_path / "p.csv", truth, tmp_path / "out")
        assert "21 rows do not add up to 1" in capsys.readouterr().out

    def test_a_class_without_a_case_is_nan(self, tmp_path):
        write_isic(tmp_path / "t.csv", ["a", "b"], np.eye(7)[[4, 5]], HAM10000)
        score(tmp_path / "t.csv", tmp_path / "t.csv", tmp_path / "out")
        written = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert written["per_class"]["df"]["sensitivity"]["value"] is None
        assert written["per_class"]["df"]["support"] == 0

    def test_predictions_of_other_images_are_refused(self, truth, tmp_path):
        names, y_prob = read_isic(truth, HAM10000)
        write_isic(tmp_path / "p.csv", [*names[1:], "other"], y_prob, HAM10000)
        with pytest.raises(InputError, match=f"missing {names[0]}; extra other"):
            score(tmp_path / "p.csv", truth, tmp_path / "out")


class TestCompare:
    def test_two_runs(self, two_runs, tmp_path, capsys):
        found = compare(*two_runs, tmp_path / "out")
        written = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert written["mcnemar"] == found["mcnemar"]
        values = [
            json.loads((run / "evaluation" / "metrics.json").read_text())["overall"]["macro_f1"]
            for run in two_runs
        ]
        row = next(f for f in found["figures"] if f["figure"] == "macro_f1")
        assert (row["a"], row["b"]) == (values[0]["value"], values[1]["value"])
        assert row["difference"] == pytest.approx(values[1]["value"] - values[0]["value"])
        assert (tmp_path / "out" / "comparison.png").is_file()
        said = capsys.readouterr().out
        assert "McNemar" in said and SYNTHETIC_NOTE in said

    def test_another_diagnosis_of_an_image_is_refused(self, two_runs, tmp_path):
        path = two_runs[1] / "splits.csv"
        split = read_split(path)
        first = split.index[split["split"] == "test"][0]
        split.loc[first, "dx"] = "nv" if split["dx"][first] != "nv" else "mel"
        split.to_csv(path, index=False)
        with pytest.raises(InputError, match=f"diagnosis: {split['image_id'][first]}"):
            compare(*two_runs, tmp_path / "out")

    def test_other_test_images_are_refused(self, two_runs, tmp_path):
        path = two_runs[1] / "splits.csv"
        split = read_split(path)
        split.loc[split.index[split["split"] == "test"][0], "split"] = "train"
        split.to_csv(path, index=False)
        with pytest.raises(InputError, match="different test images"):
            compare(*two_runs, tmp_path / "out")

    def test_a_run_that_was_not_evaluated_is_refused(self, trained_run, run_copy, tmp_path):
        with pytest.raises(InputError, match="not predicted yet"):
            compare(trained_run, run_copy, tmp_path / "out")
