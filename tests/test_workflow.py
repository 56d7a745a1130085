"""The steps over files: what they write, keep and refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skinlesion import workflow
from skinlesion.config import make_config
from skinlesion.data import ham10000 as dataset
from skinlesion.data.ham10000 import list_images
from skinlesion.data.isic import read_predictions
from skinlesion.data.split import read_split
from skinlesion.diagnoses import LABEL_OF, SYNTHETIC_NOTE
from skinlesion.evaluation import evaluate as assessment
from skinlesion.evaluation.calibration import fit_temperature
from skinlesion.files import InputError
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import WeightsUnavailableError
from skinlesion.model.run import recall_dataset


def test_a_run_directory_holds_what_the_contract_says(trained_run):
    names = {
        str(path.relative_to(trained_run))
        for path in trained_run.rglob("*")
        if path.is_file() and path.parent.name != "tensorboard"
    }
    assert names == {
        "config.json",
        "splits.csv",
        "history.csv",
        "learning_curves.png",
        "predictions_validation.csv",
        "model/model.keras",
        "model/bundle.json",
        "model/gate.npz",
        "model/SHA256SUMS",
    }
    described = json.loads((trained_run / "config.json").read_text())
    assert described["dataset"]["synthetic"] is True
    assert described["versions"]["tensorflow"]
    assert described["seed"] == described["config"]["seed"] == 42
    assert len(described["dataset"]["fingerprint"]) == 64
    split = read_split(trained_run / "splits.csv").set_index("image_id")["split"]
    names, y_prob = read_predictions(trained_run / "predictions_validation.csv")
    assert set(names) == set(split.index[split == "validation"])
    assert np.allclose(y_prob.sum(axis=1), 1, atol=1e-5)


def test_the_bundle_holds_the_calibration_fitted_on_validation(trained_run):
    names, y_prob = read_predictions(trained_run / "predictions_validation.csv")
    split = read_split(trained_run / "splits.csv").set_index("image_id")
    y_true = split.loc[names, "dx"].map(LABEL_OF).to_numpy()
    fitted = Predictor.load(trained_run).calibration
    assert fitted.images == len(names)
    assert fitted.temperature == pytest.approx(fit_temperature(y_true, y_prob), rel=1e-4)


def test_validation_predictions_are_those_of_the_files(trained_run, sample):
    names, y_prob = read_predictions(trained_run / "predictions_validation.csv")
    images = list_images(sample)
    again = Predictor.load(trained_run).predict_probabilities([images[name] for name in names])
    assert np.allclose(again, y_prob, atol=1e-5)


def test_a_finished_run_is_kept(sample, tiny_config, trained_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
    workflow.train(sample, trained_run, tiny_config)
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")} == before


def test_a_finished_run_needs_no_dataset_and_an_unfinished_one_remembers_its_own(
    sample, tiny_config, run_copy, monkeypatch, capsys
):
    monkeypatch.setattr(dataset, "download_dataset", None)
    workflow.train(None, run_copy, tiny_config)
    assert "finished already" in capsys.readouterr().out
    assert recall_dataset(run_copy) == sample.resolve()
    assert recall_dataset(run_copy / "nothing") is None
    workflow.fit_gate(run_copy)  # on the remembered images


def test_a_run_of_other_settings_is_refused_with_the_difference(sample, trained_run):
    other = make_config("default", image_size=(97, 97), weights="none", epochs=2, batch_size=16)
    with pytest.raises(InputError, match="epochs: 1 instead of 2"):
        workflow.train(sample, trained_run, other)


def test_a_run_of_another_split_is_refused(sample, tiny_config, trained_run, tmp_path):
    workflow.split(sample, tmp_path / "splits.csv", seed=7)
    with pytest.raises(InputError, match="another split"):
        workflow.train(sample, trained_run, tiny_config, splits=tmp_path / "splits.csv")


def test_training_again_forgets_what_the_old_model_said(sample, tiny_config, run_copy):
    assessment.evaluate(run_copy, data=sample, tta=True)
    shutil.rmtree(run_copy / "model")
    workflow.train(sample, run_copy, tiny_config)
    assert not list(run_copy.glob("predictions_test*.csv"))
    assert not (run_copy / "evaluation").exists()


def test_another_dataset_is_refused(flat_data, tiny_config, trained_run):
    with pytest.raises(InputError, match="another dataset"):
        workflow.train(flat_data, trained_run, tiny_config)
    with pytest.raises(InputError, match="another dataset"):
        assessment.evaluate(trained_run, data=flat_data)


def test_a_mistake_leaves_no_run_directory(flat_data, tmp_path):
    small = make_config("default", image_size=(16, 16), weights="none", epochs=1)
    with pytest.raises(InputError, match="too small"):
        workflow.train(flat_data, tmp_path / "run", small)
    assert not (tmp_path / "run").exists()


class TestWithoutNetwork:
    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        import keras

        def fail(**arguments):
            raise Exception("no network")

        monkeypatch.setattr(keras.utils, "get_file", fail)

    settings = make_config("default", image_size=(32, 32), epochs=1, limit=14)

    def test_the_sample_is_trained_from_random_weights_and_this_is_said(
        self, sample, tmp_path, capsys
    ):
        workflow.train(sample, tmp_path / "run", self.settings)
        said = capsys.readouterr().out
        assert "could not be downloaded" in said
        assert "starts from random weights instead" in said
        described = json.loads((tmp_path / "run" / "config.json").read_text())
        assert described["weights"]["source"] == "none"

    def test_real_data_is_an_error_that_says_how_to_give_a_file(self, flat_data, tmp_path):
        with pytest.raises(WeightsUnavailableError, match="--weights FILE"):
            workflow.train(flat_data, tmp_path / "run", self.settings)


def test_training_can_start_from_a_logistic_regression(sample, conv4_weights, tmp_path):
    settings = make_config(
        "default",
        image_size=(32, 32),
        weights=str(conv4_weights),
        top_stage="pretrained",
        head_start="regression",
        epochs=1,
        frozen_share=0.0,
        learning_rate=1e-12,
        class_weights="none",
        limit=32,
    )
    run = workflow.train(sample, tmp_path / "run", settings)
    started = pd.read_csv(run / "head_start.csv")["val_loss"].min()
    # At this rate nothing moves: the first epoch ends where the regression was.
    assert pd.read_csv(run / "history.csv")["val_loss"][0] == pytest.approx(started, rel=1e-3)


def test_a_given_split_file_is_used(sample, tmp_path):
    split = workflow.split(sample, tmp_path / "splits.csv", seed=7)
    settings = make_config("default", image_size=(32, 32), weights="none", epochs=1, limit=14)
    run = workflow.train(sample, tmp_path / "run", settings, splits=tmp_path / "splits.csv")
    assert read_split(run / "splits.csv").equals(split.astype(str))


def test_gathered_images_need_their_source_no_longer(sample, tmp_path):
    workflow.copy(sample, tmp_path / "images")
    assert workflow.copy(None, tmp_path / "images").kept == 84


def test_half_a_dataset_is_not_gathered(flat_data, tmp_path):
    shutil.rmtree(flat_data / "HAM10000_images_part_2")
    with pytest.raises(InputError, match=r"49 of 98 rows .* have no image.*_part_2"):
        workflow.copy(flat_data, tmp_path / "images")
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("look", [workflow.check, lambda: workflow.audit(Path("absent.csv"))])
def test_what_only_looks_does_not_start_a_download(look, monkeypatch, tmp_path):
    monkeypatch.setenv("SKINLESION_CACHE", str(tmp_path))
    monkeypatch.setattr(dataset, "download_dataset", None)
    with pytest.raises(InputError, match=r"no dataset at hand|absent\.csv: cannot be read"):
        look()


class TestSplit:
    def test_repeating_keeps_the_file(self, sample, tmp_path, capsys):
        out = tmp_path / "splits.csv"
        workflow.split(sample, out)
        before = out.stat().st_mtime_ns
        workflow.split(sample, out)
        assert out.stat().st_mtime_ns == before
        assert "is there already" in capsys.readouterr().out

    def test_another_split_is_not_overwritten(self, sample, tmp_path):
        workflow.split(sample, tmp_path / "splits.csv")
        with pytest.raises(InputError, match="holds another split"):
            workflow.split(sample, tmp_path / "splits.csv", seed=1)

    def test_the_leak_and_the_merged_lesions_are_told(self, sample, tmp_path, capsys):
        table = pd.read_csv(sample / "HAM10000_metadata.csv").drop_duplicates("lesion_id")
        ends = table[table["dx"] == "nv"]["image_id"].iloc[:2].tolist()
        pairs = tmp_path / "pairs.csv"
        pairs.write_text(f"image_id_1,image_id_2\n{ends[0]},{ends[1]}\n")
        workflow.split(sample, tmp_path / "a.csv", near_duplicates=pairs)
        said = capsys.readouterr().out
        assert "also in train: 0.0%" in said
        assert "merged 1 with others" in said
        assert SYNTHETIC_NOTE in said
        side = read_split(tmp_path / "a.csv").set_index("image_id")["split"]
        assert side[ends[0]] == side[ends[1]]
        workflow.split(sample, tmp_path / "b.csv", recipe="original")
        assert "also in train: 0.0%" not in capsys.readouterr().out


class TestCheck:
    def test_a_whole_dataset(self, sample, capsys):
        assert workflow.check(sample) == []
        assert "84 images" in capsys.readouterr().out

    def test_each_kind_of_damage_is_named(self, flat_data, capsys):
        files = sorted(flat_data.glob("*_part_1/*.jpg"))
        files[0].write_bytes(files[0].read_bytes()[:-200])
        files[1].rename(files[1].with_name("stranger.jpg"))
        csv = flat_data / "HAM10000_metadata.csv"
        table = pd.read_csv(csv)
        table.loc[0, "dx"] = "vasc"
        table.to_csv(csv, index=False)
        found = workflow.check(flat_data)
        assert found[0] == f"rows without an image: 1. {files[1].stem}"
        assert found[1] == "images without a row: 1. stranger"
        assert found[2] == f"lesions with several diagnoses: 1. {table['lesion_id'][0]}"
        assert f"1. {files[0].name}: cannot be read as an image" in found[3]
        assert capsys.readouterr().out.splitlines()[1:] == found


class TestAudit:
    def test_a_clean_split_and_a_leaking_one(self, sample, tmp_path, capsys):
        workflow.split(sample, tmp_path / "a.csv")
        assert workflow.audit(tmp_path / "a.csv", data=sample).is_clean
        assert "audit: nothing wrong" in capsys.readouterr().out
        workflow.split(sample, tmp_path / "b.csv", recipe="original")
        assert not workflow.audit(tmp_path / "b.csv", data=sample).is_clean
        assert "audit: this split is not clean" in capsys.readouterr().out

    def test_missing_images_are_named(self, sample, tmp_path, capsys):
        split = workflow.split(sample, tmp_path / "a.csv")
        split.iloc[1:].to_csv(tmp_path / "b.csv", index=False)
        assert not workflow.audit(tmp_path / "b.csv", data=sample).is_clean
        assert f"does not name: 1. {split['image_id'][0]}" in capsys.readouterr().out


def test_near_duplicates_of_a_dataset_are_listed(sample, tmp_path, capsys):
    """Random weights propose badly, but what is listed must be shots of one lesion."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    table = pd.read_csv(sample / "HAM10000_metadata.csv")
    hidden = tmp_path / "hidden"
    shutil.copytree(sample, hidden)
    table.assign(lesion_id=table["image_id"]).to_csv(hidden / "HAM10000_metadata.csv", index=False)
    found = workflow.find_near_duplicates(hidden, tmp_path / "pairs.csv", weights="none")
    assert len(found) > 5
    lesion = table.set_index("image_id")["lesion_id"]
    assert (lesion[found["image_id_1"]].to_numpy() == lesion[found["image_id_2"]].to_numpy()).all()
    workflow.split(hidden, tmp_path / "s.csv", near_duplicates=tmp_path / "pairs.csv")
    assert "merged 0" not in capsys.readouterr().out


def test_a_finished_run_of_other_settings_is_used_but_this_is_said(
    sample, trained_run, tmp_path, capsys
):
    other = make_config("default", image_size=(97, 97), weights="none", epochs=2, batch_size=16)
    splits = tmp_path / "s.csv"
    assert workflow.train_if_missing(sample, trained_run, other, splits=splits) == trained_run
    assert "other settings than the ones given here: epochs" in capsys.readouterr().out


class TestPredict:
    def test_files_and_folders(self, trained_run, sample, tmp_path):
        folder = sample / "HAM10000_images_part_1"
        paths = sorted(folder.glob("*.jpg"))
        table = workflow.predict(trained_run, [folder], tmp_path / "p.csv")
        names, y_prob = read_predictions(tmp_path / "p.csv")
        assert names == table["image"].tolist() == [path.stem for path in paths]
        alone = Predictor.load(trained_run).predict(paths[0])
        assert np.allclose(list(alone.probabilities.values()), y_prob[0], atol=1e-5)
        assert alone.code == table["prediction"][0]

    def test_nothing_to_predict_is_refused(self, trained_run, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"no \.jpg or \.png"):
            workflow.predict(trained_run, [tmp_path / "empty"], tmp_path / "p.csv")
        with pytest.raises(InputError, match="no such file"):
            workflow.predict(trained_run, [tmp_path / "absent.jpg"], tmp_path / "p.csv")

    def test_a_folder_without_images_is_named(self, trained_run, sample, tmp_path):
        (tmp_path / "empty").mkdir()
        paths = [*sample.glob("*_part_1/ISIC_9000000.jpg"), tmp_path / "empty"]
        with pytest.raises(InputError, match=r"empty: no \.jpg or \.png file directly in it"):
            workflow.predict(trained_run, paths, tmp_path / "p.csv")

    def test_two_files_of_one_name_are_refused(self, trained_run, sample, tmp_path):
        path = next((sample / "HAM10000_images_part_1").glob("*.jpg"))
        copy = shutil.copy(path, tmp_path)
        with pytest.raises(InputError, match=f"one name.*{path.stem}"):
            workflow.predict(trained_run, [path, copy], tmp_path / "p.csv")

    def test_more_images_than_a_batch_keep_their_order(self, trained_run, sample, tmp_path):
        paths = sorted(sample.glob("HAM10000_images_part_*/*.jpg"))
        assert len(paths) > 64
        predictor = Predictor.load(trained_run)
        together = predictor.predict_probabilities(paths)
        for index in (0, 31, 32, 70):
            single = predictor.predict(paths[index]).probabilities.values()
            assert np.allclose(list(single), together[index], atol=1e-5)
