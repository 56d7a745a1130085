"""Cross-validation: folds and seeds in real processes, and what is said of them together."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from sklearn.metrics import log_loss

from skinlesion.cli import main
from skinlesion.config import make_config
from skinlesion.data.dataset import load_metadata
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import read_isic
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import make_split, read_split, write_split
from skinlesion.data.synthetic import make_sample
from skinlesion.evaluation.calibration import calibrate, load_calibration
from skinlesion.evaluation.cross_validate import cross_validate
from skinlesion.evaluation.evaluate import FOLDS_NOTE, evaluate_folds
from skinlesion.files import InputError, write_csv
from skinlesion.model.jobs import Job, run_jobs
from skinlesion.model.run import Run
from skinlesion.model.train import train

PROBE = make_config("probe", **TINY, limit=14, deterministic=True)
"""What is quickly trained: a linear layer."""


def train_here(data, out, config, splits, seeds=(42,)):
    """The runs of a cross-validation, trained in this process, which has loaded TensorFlow."""
    for number, split in enumerate(splits, start=1):
        csv = write_csv(out / "splits" / f"fold_{number}.csv", split)
        for seed in seeds:
            folder = out / f"fold_{number}" / f"seed_{seed}"
            settings = config.model_copy(update={"seed": seed})
            calibrate(train(data, folder, settings, splits=csv), data)


def make_folds(data):
    """Two folds, each the test of one model."""
    table, pairs = load_metadata(data), read_near_duplicates()
    return [make_split(table, fold=(number, 2), pairs=pairs) for number in (1, 2)]


@pytest.fixture(scope="module")
def folds_of_two_seeds(sample, tmp_path_factory):
    """A folder with all trainings of two folds with two seeds; read only."""
    out = tmp_path_factory.mktemp("seeds") / "folds"
    train_here(sample, out, PROBE, make_folds(sample), seeds=(1, 2))
    return out


def test_without_malignant_classes_it_goes_to_its_end(tmp_path):
    data = make_sample(tmp_path / "drawn", images_per_class=12, classes=3)
    one, two = make_folds(data)
    train_here(data, tmp_path / "folds", PROBE, [one])
    # The same model does for the other fold: what is tested begins after the trainings.
    first, second = (tmp_path / "folds" / f"fold_{number}" / "seed_42" for number in (1, 2))
    shutil.copytree(first, second)
    write_csv(second / "splits.csv", two)
    metrics = cross_validate(data, tmp_path / "folds", PROBE, folds=2)
    assert metrics["n"] == 36
    table = pd.read_csv(tmp_path / "folds" / "folds.csv")
    assert "malignant_auc" not in table
    assert table["accuracy"].notna().all()


def test_an_ensemble_that_would_be_too_large_is_refused_before_the_first_training(sample, tmp_path):
    with pytest.raises(InputError, match="21 models would be averaged, and an ensemble has 20"):
        cross_validate(sample, tmp_path / "folds", PROBE, folds=2, seeds=range(21))
    assert not (tmp_path / "folds").exists()


def test_a_killed_training_dies_with_its_parent_and_ends_with_the_same_figures(
    folds_of_two_seeds, sample, tmp_path
):
    whole = Path(shutil.copytree(folds_of_two_seeds, tmp_path / "whole"))
    cross_validate(sample, whole, PROBE, folds=2, seeds=[1])
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    for left_out in ("fold_2/seed_1", "evaluation"):
        shutil.rmtree(killed / left_out)
    command = [sys.executable, "-m", "skinlesion", "cross-validate", "--data", str(sample)]
    command += ["--run", str(killed), "--folds", "2", "--seeds", "1", "--recipe", "probe"]
    command += ["--image-size", "32", "32", "--batch-size", "16", "--weights", "none"]
    command += ["--set", "top_stage=conv2", "--limit", "14", "--deterministic"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        said = [next(line for line in lines if "training 2 of 2" in line)]
        said.append(next(line for line in lines if "fitting the head" in line))
        os.kill(process.pid, signal.SIGKILL)
        said += lines  # to the end, which comes when the training is gone too
    assert "finished" not in "".join(said)
    assert not (killed / "fold_2" / "seed_1" / "model").exists()
    cross_validate(sample, killed, PROBE, folds=2, seeds=[1])
    for name in ("folds.csv", "evaluation/metrics.json", "fold_2/seed_1/predictions_test.csv"):
        assert (killed / name).read_text() == (whole / name).read_text()


def test_each_image_is_predicted_by_the_models_that_have_not_seen_it(
    folds_of_two_seeds, sample, tmp_path, capsys
):
    out = Path(shutil.copytree(folds_of_two_seeds, tmp_path / "folds"))
    metrics = cross_validate(sample, out, PROBE, folds=2, seeds=[1, 2])
    assert metrics["n"] == 84
    names, predicted = read_isic(out / "evaluation" / "predictions.csv", HAM10000)
    assert sorted(names) == sorted(load_metadata(sample)["image_id"])
    for number in (1, 2):
        fold = Run(out / f"fold_{number}")
        assert [member["run"] for member in fold.members] == ["seed_1", "seed_2"]
        ids = list(fold.rows("test")["image_id"])
        y_prob = fold.read_predictions("test", ids)
        assert np.array_equal(y_prob, predicted[list(map(names.index, ids))])
    table = pd.read_csv(out / "folds.csv", index_col="run")
    assert list(table.index) == ["fold_1", "fold_2", "mean", "min", "max"]
    values = [
        json.loads((out / fold / "evaluation" / "metrics.json").read_text())["overall"]["macro_auc"]
        for fold in ("fold_1", "fold_2")
    ]
    assert table["macro_auc"]["mean"] == pytest.approx(np.mean([one["value"] for one in values]))
    # Decisions are made from the calibrated probabilities of each fold.
    y_true, y_prob = [], []
    for number in (1, 2):
        fold = Run(out / f"fold_{number}")
        rows = fold.rows("test")[["image_id"]].merge(fold.load_dataset(sample), on="image_id")
        y_true += list(rows["label"])
        y_prob += [
            load_calibration(fold).apply(fold.read_predictions("test", list(rows["image_id"])))
        ]
    calibration = metrics["calibration"]
    assert len(calibration["temperature"]) == 2
    assert calibration["after"]["log_loss"]["value"] == pytest.approx(
        log_loss(y_true, np.concatenate(y_prob), labels=range(7))
    )
    # The folder is no model, and its figures are not those of one.
    written = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert written["note"] == FOLDS_NOTE
    assert FOLDS_NOTE in capsys.readouterr().out
    with pytest.raises(InputError, match="neither a trained run nor a saved model"):
        Run.find(out)


def test_runs_that_are_no_folds_of_one_split_are_refused(folds_of_two_seeds, sample, tmp_path):
    first, second = (folds_of_two_seeds / f"fold_{number}" / "seed_1" for number in (1, 2))
    other = Path(shutil.copytree(second, tmp_path / "other"))
    split = read_split(first / "splits.csv")
    stolen = split.index[split["split"] == "test"][0]
    split = read_split(other / "splits.csv")
    split.loc[stolen, "split"] = "test"
    split.to_csv(other / "splits.csv", index=False)
    with pytest.raises(InputError, match="some test images in common"):
        evaluate_folds([first, other], tmp_path / "out", data=sample)
    with pytest.raises(InputError, match="given more than once"):
        evaluate_folds([first, second, first / "model"], tmp_path / "out", data=sample)


def test_what_does_not_fit_is_refused_before_any_training(folds_of_two_seeds, sample, tmp_path):
    before = sorted(folds_of_two_seeds.rglob("*"))

    def refuse(message, config=PROBE, out=folds_of_two_seeds, **options):
        with pytest.raises(InputError, match=message) as caught:
            cross_validate(sample, out, config, **options)
        assert "\n" not in str(caught.value)

    refuse(r"fold_1\.csv: holds another split, .* number of folds", folds=3, seeds=[1])
    write_split(sample, tmp_path / "splits.csv")
    refuse(r"fold_1\.csv: holds another split", folds=2, splits=tmp_path / "splits.csv")
    other = PROBE.model_copy(update={"limit": 20})
    refuse(
        r"seed_1: was started with other settings \(limit: 14, here 20\)", other, seeds=[1], folds=2
    )
    refuse("each seed can be given once. Received: 1, 1", folds=2, seeds=[1, 1])
    refuse("seed: input should be greater than or equal to 0", folds=2, seeds=[-1])
    original = make_config("original", **TINY | {"image_size": (97, 97)})
    refuse("the original split has no folds", original, out=tmp_path / "new")
    refuse("holds a run that was trained", out=folds_of_two_seeds / "fold_1" / "seed_1")
    assert sorted(folds_of_two_seeds.rglob("*")) == before
    assert not (tmp_path / "new").exists()
    # A run of another split in the place of a fold.
    moved = Path(shutil.copytree(folds_of_two_seeds, tmp_path / "moved"))
    shutil.rmtree(moved / "fold_2" / "seed_1")
    shutil.copytree(moved / "fold_1" / "seed_1", moved / "fold_2" / "seed_1")
    refuse("fold_2/seed_1: was started with another split", out=moved, folds=2, seeds=[1])


def test_several_seeds_can_follow_the_option(sample, tmp_path, capsys):
    command = ["cross-validate", "--data", str(sample), "--run", str(tmp_path / "out")]
    assert main([*command, "--seeds", "4", "7", "4", "--weights", "none"]) == 2
    assert "can be given once. Received: 4, 7, 4" in capsys.readouterr().err


def test_a_training_that_ends_badly_stops_the_others(flat_data, tmp_path):
    """Other commands stand for trainings: one of bad input, and one with a finding."""
    next(flat_data.rglob("*.jpg")).unlink()
    last = Job(tmp_path / "last", ["sample", str(tmp_path / "last")])
    for command, error, message in (
        (["audit", "missing.csv"], InputError, "first: was refused, for the reason above"),
        (
            ["check", "--data", str(flat_data), "--out", str(tmp_path)],
            ChildProcessError,
            "status 1",
        ),
    ):
        with pytest.raises(error, match=message):
            run_jobs([Job(tmp_path / "first", command), last])
        assert not last.place.exists()


def test_no_training_is_begun_at_the_time_limit(tmp_path):
    assert not run_jobs([Job(tmp_path / "run", ["sample", str(tmp_path / "run")])], time_limit=1e-3)
    assert not (tmp_path / "run").exists()
