"""Runs that are killed, stopped or run out of room, and go on: real processes."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skinlesion import workflow
from skinlesion.config import make_config
from skinlesion.data.metadata import load_metadata
from skinlesion.data.split import read_split
from skinlesion.files import InputError, write_csv
from skinlesion.model import devices
from skinlesion.model import train as training
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import WEIGHTS_URL
from skinlesion.model.run import choose_config, require_same_run

TIMES = ["seconds", "images_per_second"]


@pytest.fixture(scope="module")
def arguments(sample, conv4_weights):
    """Both phases, two epochs each, with all that is random switched on."""
    settings = ["frozen_share=0.5", "mixing=mixup", "class_weights=none"]
    settings += ["top_stage=pretrained", "head_start=regression"]
    command = [sys.executable, "-m", "skinlesion", "train", "--data", str(sample)]
    command += ["--weights", str(conv4_weights), "--image-size", "32", "32", "--limit", "32"]
    command += ["--epochs", "4", "--batch-size", "8", "--deterministic"]
    return command + [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run([*arguments, "--run", str(run)], capture_output=True, check=True)
    return run


def history(run):
    return pd.read_csv(run / "history.csv").drop(columns=TIMES)


def kill_after(command, line):
    """Start a process, and kill it without warning when it has printed a line."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    seen = []
    for said in process.stdout:
        seen.append(said)
        if line in said:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, "".join(seen)


def test_a_run_killed_twice_ends_as_one_that_was_not(arguments, uninterrupted, tmp_path):
    run = tmp_path / "run"
    command = [*arguments, "--run", str(run)]
    kill_after(command, "epoch 1 of 4")
    assert len(history(run)) == 1
    # Left by a process that died while it wrote.
    (run / "checkpoints" / ".epoch-0002.part").mkdir()
    (run / "checkpoints" / ".epoch-0002.part" / "weights.npz").write_text("half")
    kill_after(command, "epoch 3 of 4")
    # The run alone says what to go on with.
    alone = [*command[:4], "--data", command[5], "--run", str(run)]
    done = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert "going on after epoch 3" in done.stdout
    assert "epoch 3 of 4" not in done.stdout
    pd.testing.assert_frame_equal(history(run), history(uninterrupted))
    name = "predictions_validation.csv"
    assert (run / name).read_text() == (uninterrupted / name).read_text()
    assert not (run / "checkpoints").exists()
    again = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert "finished already" in again.stdout


def test_a_run_killed_before_its_first_epoch_starts_again(arguments, uninterrupted, tmp_path):
    run = tmp_path / "run"
    command = [*arguments, "--run", str(run)]
    kill_after(command, "computing the output of the frozen stages")
    subprocess.run(command, capture_output=True, check=True)
    pd.testing.assert_frame_equal(history(run), history(uninterrupted))


@pytest.fixture
def begun(sample, tmp_path):
    """A run that stopped at its time limit, before the first epoch, and its settings."""
    config = make_config("default", image_size=(32, 32), weights="none", epochs=1, limit=14)
    run = workflow.train(sample, tmp_path / "begun", config, time_limit=1e-9)
    return run, config


def test_a_time_limit_stops_and_the_same_call_goes_on(begun, sample, capsys):
    run, config = begun
    workflow.train(sample, run, config, time_limit=1e-9)
    assert "stopped before the time limit" in capsys.readouterr().out
    assert not (run / "model").exists()
    workflow.train(sample, run, config)
    assert Predictor.load(run).bundle.info.synthetic
    assert (run / "learning_curves.png").is_file()


def test_a_later_notebook_does_not_go_on_past_the_time_limit(begun, sample, tmp_path, capsys):
    run, config = begun
    missing, splits = tmp_path / "missing", tmp_path / "splits.csv"
    for given in (run, missing):
        capsys.readouterr()
        with pytest.raises(InputError, match="03_train is run again"):
            workflow.train_if_missing(sample, given, config, splits=splits, time_limit=1e-9)
        # The one that was begun is left to notebook 3.
        assert ("training one now" in capsys.readouterr().out) == (given == missing)


@pytest.fixture
def interrupted(monkeypatch):
    """The next training ends after its first checkpoint, before `history.csv` is written."""

    def interrupt(*arguments):
        monkeypatch.setattr(training, "write_csv", write_csv)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_csv", interrupt)


def test_the_history_has_the_last_epoch_too(begun, sample, interrupted):
    run, config = begun
    with pytest.raises(KeyboardInterrupt):
        workflow.train(sample, run, config)
    assert not (run / "history.csv").exists()
    workflow.train(sample, run, config)
    assert history(run)["epoch"].tolist() == [1]


def test_a_run_keeps_its_precision_on_another_device(begun, sample, capsys):
    run, config = begun
    described = (run / "config.json").read_text()
    assert '"precision": "float32"' in described
    (run / "config.json").write_text(described.replace('"float32"', '"mixed_float16"'))
    workflow.train(sample, run, config, time_limit=1e-9)
    assert ", mixed_float16, very roughly" in capsys.readouterr().out


@pytest.mark.parametrize(("batch_size", "count"), [(32, 3), (7, 2)])
def test_a_batch_that_gpus_cannot_share_is_refused(batch_size, count):
    with pytest.raises(InputError, match=f"batch of {batch_size} images .* {count} GPUs: choose"):
        devices.require_even_shares(batch_size, count)
    devices.require_even_shares(batch_size * count, count)


def test_the_same_command_goes_on_although_weights_came_from_the_environment(begun):
    run, config = begun
    for recipe in (None, "default"):
        again = choose_config(run, recipe, weights=None, image_size=(32, 32), epochs=1, limit=14)
        assert again == config
    assert choose_config(run, "default", weights="imagenet").weights == "imagenet"


def test_other_settings_are_refused_with_the_difference(begun, sample):
    run, _ = begun
    other = make_config("default", image_size=(32, 32), weights="none", epochs=9, limit=14)
    with pytest.raises(InputError, match=r"begun with other settings \(epochs: 1 instead of 9"):
        workflow.train(sample, run, other)


def test_another_split_is_refused(begun, sample, tmp_path):
    run, config = begun
    workflow.split(sample, tmp_path / "other.csv", seed=3)
    with pytest.raises(InputError, match="begun with another split"):
        workflow.train(sample, run, config, splits=tmp_path / "other.csv")


def test_other_weights_are_refused(begun, sample):
    run, config = begun
    described = (run / "config.json").read_text()
    (run / "config.json").write_text(described.replace('"loaded_layers": 0', '"loaded_layers": 86'))
    with pytest.raises(InputError, match="begun with 86 pretrained layers, and now 0"):
        workflow.train(sample, run, config)


def test_no_room_for_a_checkpoint_loses_nothing(arguments, uninterrupted, tmp_path):
    """The limit of the size of files stands for the end of the disk."""
    run = tmp_path / "run"
    command = [*arguments, "--run", str(run)]

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))

    failed = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=little_room, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert "epoch-0001: cannot be written" in failed.stderr
    assert not list((run / "checkpoints").iterdir())
    subprocess.run(command, capture_output=True, check=True)
    pd.testing.assert_frame_equal(history(run), history(uninterrupted))


STRATEGY = """
import sys, numpy as np, pandas as pd, tensorflow as tf
from pathlib import Path
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][: int(sys.argv[1])])
assert strategy.num_replicas_in_sync == int(sys.argv[1])
import keras
from skinlesion.config import make_config
from skinlesion.model.resnet50 import LoadedWeights, build_model
from skinlesion.model.train import fit, seed_everything
config = make_config("default", image_size=(32, 32), weights="none", batch_size=8, epochs=2,
    augmentation="none", frozen_share=0.5, head_learning_rate=1e-5, learning_rate=1e-5,
    deterministic=True)
seed_everything(config)
with strategy.scope():
    model, _ = build_model(image_size=(32, 32), weights="none", head="pooled")
model.get_layer("head_dropout").rate = 0
loaded = LoadedWeights("test", frozenset({"conv1_conv"}), 106)
rng = np.random.default_rng(0)
def images(count):
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 7
# One image more than whole batches: the last batch would leave one of two devices without any.
fit(model, loaded, config, train=images(24), validation=images(16), run=Path(sys.argv[2]))
fit(model, loaded, config, train=images(25), validation=images(17), run=Path(sys.argv[2]) / "odd")
"""


def test_two_devices_train_as_one(tmp_path):
    found = []
    for count in (1, 2):
        run = tmp_path / str(count)
        command = [sys.executable, "-c", STRATEGY, str(count), str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(history(Path(run)))
    assert found[0]["phase"].tolist() == ["frozen", "fine_tuning"]
    for column in ("loss", "val_loss"):
        assert found[1][column].to_numpy() == pytest.approx(found[0][column].to_numpy(), rel=3e-3)
    assert np.isfinite(history(tmp_path / "2" / "odd")["val_loss"]).all()


def test_the_imagenet_weights_may_come_from_elsewhere(begun, sample):
    run, config = begun
    table, made = load_metadata(sample), read_split(run / "splits.csv")
    name = Path(WEIGHTS_URL).name
    described = (run / "config.json").read_text()
    for earlier, now in (
        ("imagenet", f"/kaggle/input/datasets/keras/resnet50/{name}"),
        (f"/kaggle/input/resnet50/{name}", "imagenet"),
        ("/old/partial.h5", "/new/partial.h5"),
    ):
        (run / "config.json").write_text(
            described.replace('"weights": "none"', f'"weights": "{earlier}"')
        )
        require_same_run(run, dataclasses.replace(config, weights=now), table, made)
    with pytest.raises(InputError, match="begun with other settings"):
        require_same_run(run, dataclasses.replace(config, weights="imagenet"), table, made)
