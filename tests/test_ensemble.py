"""Ensembles: one saved model that averages others, used as a run."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from skinlesion.config import make_config
from skinlesion.data.dataset import list_images, load_metadata
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import read_isic, write_isic
from skinlesion.data.split import make_split, split_rest
from skinlesion.demo.predict import predict_image
from skinlesion.evaluation.calibration import calibrate, load_calibration
from skinlesion.evaluation.compare import compare
from skinlesion.evaluation.cross_validate import cross_validate
from skinlesion.evaluation.ensemble_run import make_ensemble
from skinlesion.evaluation.evaluate import evaluate, evaluate_external, evaluate_folds
from skinlesion.evaluation.export import export
from skinlesion.evaluation.gradcam import compute_grad_cam
from skinlesion.evaluation.temperature import fit_temperature
from skinlesion.files import InputError, write_csv
from skinlesion.model.bundle import require_classifier
from skinlesion.model.ensemble import find_members
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import Run
from skinlesion.model.train import train


@pytest.fixture(scope="module")
def split(sample):
    return make_split(load_metadata(sample))


@pytest.fixture(scope="module")
def runs(sample, split, tmp_path_factory):
    """Three runs of one test: of both folds of the other images, and of the first again."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for seed, number in ((1, 1), (2, 2), (3, 1)):
        csv = write_csv(folder / f"fold_{number}.csv", split_rest(split, (number, 2), seed=42))
        config = make_config("probe", **TINY, limit=14, seed=seed)
        made.append(train(sample, folder / f"run_{seed}", config, splits=csv).folder)
        calibrate(made[-1], sample)
    return made


@pytest.fixture(scope="module")
def members(runs):
    """Those of two folds."""
    return runs[:2]


@pytest.fixture(scope="module")
def ensemble(members, tmp_path_factory):
    """The ensemble of them; read only."""
    return make_ensemble(tmp_path_factory.mktemp("ensemble") / "both", members)


@pytest.fixture(scope="module")
def predictors(members):
    """The models of the members."""
    return [Predictor.load(run) for run in members]


@pytest.fixture(scope="module")
def averaged(ensemble):
    """The model of the ensemble."""
    return Predictor.load(ensemble)


@pytest.fixture(scope="module")
def images(predictors, sample):
    paths = list(list_images(sample).values())[:9]
    return np.stack([predictors[0].decode(path) for path in paths])


def test_probabilities_are_the_mean_of_the_members(predictors, averaged, ensemble, images):
    expected = np.mean([one.predict_images(images).y_prob for one in predictors], axis=0)
    assert np.allclose(averaged.predict_images(images).y_prob, expected, atol=1e-6)
    whole = ensemble.load_model().predict_on_batch(images.astype("float32"))
    assert np.allclose(whole, expected, atol=1e-6)


def test_it_is_evaluated_on_other_images_as_a_run_is(predictors, ensemble, sample, tmp_path):
    rows = load_metadata(sample).sort_values("image_id").iloc[:9]
    truth = tmp_path / "truth.csv"
    write_isic(truth, list(rows["image_id"]), np.eye(7)[rows["label"]], HAM10000)
    assert evaluate_external(ensemble, sample, truth, tmp_path / "out")["n"] == 9
    _, y_prob = read_isic(tmp_path / "out" / "predictions.csv", HAM10000)
    paths = list(rows["path"])
    expected = np.mean([one.predict_files(paths).y_prob for one in predictors], axis=0)
    assert np.allclose(y_prob, expected, atol=1e-6)


def test_it_is_calibrated_on_what_no_used_member_was_trained_on(members, ensemble, split):
    """Each image outside the test is the validation of one member, whose prediction counts."""
    rows = [Run(run).rows("validation") for run in members]
    y_prob = [
        Run(run).read_predictions("validation", list(part["image_id"]))
        for run, part in zip(members, rows, strict=True)
    ]
    calibration = load_calibration(ensemble)
    assert calibration.n_validation == (split["split"] != "test").sum()
    labels = pd.concat(rows)["label"].to_numpy()
    prior = np.array(calibration.prior)
    temperature = fit_temperature(labels, np.concatenate(y_prob), prior)
    assert calibration.temperature == pytest.approx(temperature)
    first = load_calibration(members[0])
    assert calibration.ood.threshold == first.ood.threshold
    assert calibration.quality == first.quality


def test_runs_of_one_split_are_calibrated_on_the_mean_of_their_predictions(runs, tmp_path):
    seeds = [Run(runs[0]), Run(runs[2])]
    rows = seeds[0].rows("validation")
    ids = list(rows["image_id"])
    mean = np.mean([run.read_predictions("validation", ids) for run in seeds], axis=0)
    fitted = load_calibration(make_ensemble(tmp_path / "both", seeds))
    assert fitted.n_validation == len(ids)
    temperature = fit_temperature(rows["label"].to_numpy(), mean, np.array(fitted.prior))
    assert fitted.temperature == pytest.approx(temperature)


def test_each_member_of_a_loaded_network_is_checked(ensemble):
    model, image = ensemble.load_model(), keras.Input((32, 32, 3))
    with pytest.raises(InputError, match="must take and give arrays of shapes"):
        require_classifier(model, (64, 64), 7, "it")
    other = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(7)])
    outputs = [member(image) for member in (*find_members(model), other)]
    mixed = keras.Model(image, keras.layers.Average()(outputs))
    with pytest.raises(InputError, match="its parts must be preprocessing, backbone, head, not"):
        require_classifier(mixed, (32, 32), 7, "it")


def test_heat_maps_are_those_of_the_mean_logit(predictors, averaged, images):
    maps = averaged.predict_images(images, maps=True).maps
    parts = [one.predict_images(images, maps=True).maps for one in predictors]
    assert np.allclose(maps, np.concatenate(parts, axis=-1), atol=1e-4)
    pairs = zip(predictors, parts, strict=True)
    logits = [one.logits.predict_on_batch(part) for one, part in pairs]
    assert np.allclose(averaged.logits.predict_on_batch(maps), np.mean(logits, 0), atol=1e-4)
    assert compute_grad_cam(averaged, maps, np.arange(9) % 7).max() == 1


def test_unlike_images_are_found_in_the_features_of_the_first_member(predictors, averaged, images):
    first = predictors[0].predict_images(images).features
    assert np.allclose(averaged.predict_images(images).features, first, atol=1e-4)


def test_it_is_evaluated_compared_predicted_with_and_exported_like_a_run(
    members, ensemble, sample, tmp_path
):
    folder = Path(shutil.copytree(ensemble.folder, tmp_path / "ensemble"))
    metrics = evaluate(folder, data=sample)
    assert metrics["n"] == len(ensemble.rows("test"))
    card = (folder / "evaluation" / "model_card.md").read_text()
    assert "the mean of the probabilities of 2 models" in card
    assert "run_1 (seed 1)" in card and "run_2 (seed 2)" in card
    assert "One training with one seed" not in card
    member = Path(shutil.copytree(members[0], tmp_path / "member"))
    shutil.copy(folder / "predictions_test.csv", member)
    assert compare(member, folder, tmp_path / "comparison")["mcnemar"]["p_value"] == 1
    assert predict_image(folder, next(iter(list_images(sample).values()))).probabilities
    assert export(folder, "saved_model", tmp_path / "saved") < 1e-4


def test_the_same_ensemble_is_kept_and_another_one_is_made_anew(
    members, ensemble, tmp_path, capsys
):
    folder = Path(shutil.copytree(ensemble.folder, tmp_path / "ensemble"))
    (folder / "predictions_test.csv").write_text("kept")
    make_ensemble(folder, members)
    assert (folder / "predictions_test.csv").is_file()
    assert "finished already" in capsys.readouterr().out
    again = make_ensemble(folder, members[::-1])
    assert not (folder / "predictions_test.csv").exists()
    assert [member["seed"] for member in again.members] == [2, 1]


def test_a_kill_while_an_ensemble_is_replaced_never_leaves_it_under_old_names(
    members, ensemble, tmp_path, monkeypatch
):
    def kill(*arguments):
        raise KeyboardInterrupt

    folder = Path(shutil.copytree(ensemble.folder, tmp_path / "ensemble"))
    monkeypatch.setattr("skinlesion.evaluation.ensemble_run.save_calibration", kill)
    with pytest.raises(KeyboardInterrupt):
        make_ensemble(folder, members[::-1])
    monkeypatch.undo()
    with pytest.raises(InputError):
        predict_image(folder, "lesion.jpg")
    again = make_ensemble(folder, members)
    assert again.members == ensemble.members
    weights = (one.load_model().get_weights() for one in (again, ensemble))
    assert all(map(np.array_equal, *weights))


def change(run, folder, *, split=None, **values):
    """A copy of a run with other entries in its `config.json`, and with another split."""
    copy = Path(shutil.copytree(run, folder))
    path = copy / "config.json"
    described = json.loads(path.read_text())
    for name, value in values.items():
        described[name] |= value
    path.write_text(json.dumps(described))
    if split is not None:
        write_csv(copy / "splits.csv", split)
    return copy


def test_runs_that_do_not_fit_are_refused(members, ensemble, split, tmp_path):
    def refuse(message, *runs, out=tmp_path / "out"):
        with pytest.raises(InputError, match=message) as caught:
            make_ensemble(out, runs)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    first = members[0]
    refuse("2 to 20 different runs. Received: 1", first)
    refuse("given more than once", *members, first / "model")
    refuse("an ensemble itself", ensemble, *members)
    wide = change(members[1], tmp_path / "wide", config={"image_size": [32, 48]})
    refuse(r"other settings \(image_size: \(32, 32\), here \(32, 48\)\)", first, wide)
    other = change(members[1], tmp_path / "other", dataset={"fingerprint": "0" * 64})
    refuse("trained on different datasets", first, other)
    fold = change(members[1], tmp_path / "fold", split=make_split(split, fold=(1, 2)))
    refuse("have different test images", first, fold)
    refuse("holds a run that was trained", *members, out=first)


def test_with_a_split_its_test_judges_the_ensemble_of_a_cross_validation(
    members, sample, split, tmp_path, capsys
):
    """The members lie where `cross_validate` trains them, as if of one seed."""
    out, csv = tmp_path / "folds", write_csv(tmp_path / "splits.csv", split)
    shutil.copytree(members[0], out / "fold_1" / "seed_1")
    change(members[1], out / "fold_2" / "seed_1", config={"seed": 1})
    config = Run(members[0]).config
    metrics = cross_validate(sample, out, config, folds=2, splits=csv)
    tested = split[split["split"] == "test"]
    assert metrics["n"] == len(tested)
    assert "note" not in metrics
    found = Run.find(out)
    assert [member["run"] for member in found.members] == ["fold_1/seed_1", "fold_2/seed_1"]
    assert set(found.rows("test")["image_id"]) == set(tested["image_id"])
    table = pd.read_csv(out / "folds.csv", index_col="run")
    assert list(table.index) == ["fold_1/seed_1", "fold_2/seed_1", "mean", "min", "max"]
    # The same command again trains and measures nothing.
    capsys.readouterr()
    assert cross_validate(sample, out, config, folds=2, splits=csv) == found.metrics
    assert "predicting" not in capsys.readouterr().out


def test_a_missing_fold_is_noticed(members, sample, split, tmp_path):
    folds = [
        change(run, tmp_path / run.name, split=make_split(split, fold=(number, 3)))
        for number, run in enumerate(members, start=1)
    ]
    with pytest.raises(InputError, match=r"of 84 images are in no test \(.*\): a fold is missing"):
        evaluate_folds(folds, tmp_path / "out", data=sample)
