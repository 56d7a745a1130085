"""Runs that are killed, stopped or run out of room, and continue: real processes."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from skinlesion.cli import main
from skinlesion.config import make_config
from skinlesion.data.dataset import load_metadata
from skinlesion.data.split import write_split
from skinlesion.files import InputError
from skinlesion.model import callbacks
from skinlesion.model.resnet50 import WEIGHTS_URL
from skinlesion.model.run import Run
from skinlesion.model.run_settings import choose_config, require_same_run
from skinlesion.model.train import train
from skinlesion.model.trained import find_trained_run


@pytest.fixture(scope="module")
def command(sample, conv3_weights):
    """Four epochs with everything random switched on: linear probe, augmentation."""
    start = [sys.executable, "-m", "skinlesion", "train", "--data", str(sample)]
    settings = ["--weights", str(conv3_weights), "--image-size", "32", "32", "--limit", "32"]
    settings += ["--set", "top_stage=conv3"]
    return [*start, *settings, "--epochs", "4", "--batch-size", "8", "--deterministic"]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run([*command, "--run", str(run)], capture_output=True, check=True)
    return run


def assert_same(run, other):
    """Two runs have the same split, history, predictions and weights, to the last bit."""
    for name in ("splits.csv", "linear_probe.csv", "predictions_validation.csv"):
        assert (run / name).read_text() == (other / name).read_text()
    pd.testing.assert_frame_equal(history(run), history(other))
    weights = (Run(folder).load_model().get_weights() for folder in (run, other))
    assert all(map(np.array_equal, *weights))


def history(run):
    return pd.read_csv(run / "history.csv").drop(columns="images_per_second")


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


def test_a_run_killed_three_times_ends_as_one_that_was_not(
    command, uninterrupted, tmp_path, capsys
):
    run = tmp_path / "run"
    ours = [*command, "--run", str(run)]
    kill_after(ours, "fitting the head")
    kill_after(ours, "epoch 2 of 4")  # printed before the epoch is kept: it is trained again
    # Left by a process that died while it wrote.
    (run / "checkpoints" / ".epoch_0002.npz.part.npz").write_text("half")
    kill_after(ours, "epoch 4 of 4")
    # The run alone says what to continue with.
    alone = [*command[:6], "--run", str(run)]
    done = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert "continuing after epoch 3" in done.stdout
    assert "epoch 3 of 4" not in done.stdout
    assert_same(run, uninterrupted)
    assert not (run / "checkpoints").exists()
    assert main(alone[3:]) == 0
    assert "finished already" in capsys.readouterr().out


def test_no_room_for_a_checkpoint_loses_nothing(command, uninterrupted, tmp_path):
    """The limit of the size of files stands for the end of the disk."""
    run = tmp_path / "run"
    ours = [*command, "--run", str(run)]

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    failed = subprocess.run(
        ours, capture_output=True, text=True, preexec_fn=little_room, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert "epoch_0001.npz: cannot be written" in failed.stderr
    assert not list((run / "checkpoints").iterdir())
    subprocess.run(ours, capture_output=True, check=True)
    pd.testing.assert_frame_equal(history(run), history(uninterrupted))


@pytest.fixture(scope="module")
def config():
    return make_config("default", **TINY, epochs=3, limit=14, deterministic=True)


@pytest.fixture(scope="module")
def stopped(sample, config, tmp_path_factory):
    """A run that stopped at its time limit, before the end of its first epoch; read only."""
    folder = tmp_path_factory.mktemp("stopped")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run = train(sample, folder / "run", config, time_limit=1e-9)
    (folder / "said.txt").write_text(said.getvalue())
    return run


@pytest.fixture
def begun(stopped, tmp_path):
    """A copy of it that a test may continue or change."""
    return Run(shutil.copytree(stopped.folder, tmp_path / "begun"))


@pytest.fixture(scope="module")
def continued(stopped, sample, config, tmp_path_factory):
    """Another copy, which the same call has continued to its end; read only."""
    folder = shutil.copytree(stopped.folder, tmp_path_factory.mktemp("continued") / "run")
    return train(sample, folder, config)


def test_a_time_limit_stops_and_the_same_call_continues(stopped, continued):
    assert "stopped at the time limit" in (stopped.folder.parent / "said.txt").read_text()
    assert not stopped.model_dir.exists()
    assert not stopped.checkpoints.exists()
    assert continued.is_finished
    assert continued.history["epoch"].tolist() == [1, 2, 3]


def test_a_time_limit_within_an_epoch_loses_only_that_epoch(
    continued, sample, config, tmp_path, monkeypatch
):
    """A clock that jumps at the first step of the second epoch."""

    class JumpingClock:
        def monotonic(self):
            begun = (tmp_path / "run" / "checkpoints" / "state.json").is_file()
            return time.monotonic() + (3600 if begun else 0)

    monkeypatch.setattr(callbacks, "time", JumpingClock())
    run = train(sample, tmp_path / "run", config, time_limit=0.9)
    assert len(json.loads((run.checkpoints / "state.json").read_text())["rows"]) == 1
    monkeypatch.undo()
    monkeypatch.setenv("SKINLESION_UNATTENDED", "1")
    train(sample, run, config)
    pd.testing.assert_frame_equal(history(run.folder), history(continued.folder))


def test_an_early_stop_that_was_kept_is_not_trained_on(sample, tmp_path, monkeypatch):
    """Killed between the last epoch of an early stop and the saved model."""
    config = make_config(
        "default",
        **TINY,
        epochs=30,
        limit=14,
        scratch_learning_rate=0.1,
        early_stopping_patience=1,
        schedule="plateau",
        deterministic=True,
    )
    expected = []

    def interrupt(run, model, info):
        expected.extend(model.get_weights())
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(sample, tmp_path / "run", config)
    monkeypatch.undo()
    before = history(tmp_path / "run")
    assert len(before) < 30
    run = train(sample, tmp_path / "run", config)
    pd.testing.assert_frame_equal(history(run.folder), before)
    weights = zip(run.load_model().get_weights(), expected, strict=True)
    assert all(np.array_equal(one, other) for one, other in weights)


def test_a_later_notebook_does_not_train_past_the_time_limit(begun, config, sample, tmp_path):
    """It leaves an interrupted run to the notebook that trains, where the time limit counts."""
    for folder, limit in ((begun.folder, None), (tmp_path / "missing", 1e-9)):
        with pytest.raises(InputError, match="after epoch 0 of 3; run notebook 03_train again"):
            find_trained_run(folder, sample, config, train_if_missing=True, time_limit=limit)


def test_a_run_that_another_version_began_is_refused(begun, config, sample):
    """It had one callback more to restore."""
    state = begun.checkpoints / "state.json"
    watchers = {"watchers": [{"wait": 0}], "rows": [], "is_over": False}
    state.parent.mkdir(exist_ok=True)
    state.write_text(json.dumps(watchers))
    with pytest.raises(InputError, match="begun by another version of skinlesion; train again"):
        train(sample, begun, config)


def test_a_run_keeps_its_precision_on_another_device(begun):
    path = begun.folder / "config.json"
    described = path.read_text()
    assert '"precision": "float32"' in described
    path.write_text(described.replace('"precision": "float32"', '"precision": "mixed_float16"'))
    assert choose_config(begun, None).precision == "mixed_float16"


def test_the_same_command_continues_although_weights_came_from_the_environment(
    begun, config, monkeypatch
):
    given = {name: value for name, value in TINY.items() if name != "weights"}
    given |= {"epochs": 3, "limit": 14, "deterministic": True}
    monkeypatch.setenv("SKINLESION_WEIGHTS", "/elsewhere/weights.h5")
    for recipe in (None, "default"):
        again = choose_config(begun, recipe, given)
        assert again.model_copy(update={"precision": "auto"}) == config
    assert choose_config(begun, "default", {"seed": 3}, seed=4).seed == 3
    with pytest.raises(InputError, match="settings must be a dict"):
        choose_config(begun, "default", ["epochs"])
    assert choose_config(begun, "default", weights="imagenet").weights == "imagenet"


def test_other_settings_are_refused_with_the_difference(begun, config, sample):
    other = config.model_copy(update={"epochs": 9})
    with pytest.raises(InputError, match=r"started with other settings \(epochs: 3, here 9"):
        train(sample, begun, other)


def test_another_split_is_refused(begun, config, sample, tmp_path):
    write_split(sample, tmp_path / "other.csv", seed=3)
    with pytest.raises(InputError, match="started with another split"):
        train(sample, begun, config, splits=tmp_path / "other.csv")


def test_other_weights_are_refused(begun, config, sample):
    path = begun.folder / "config.json"
    path.write_text(path.read_text().replace('"loaded_layers": 0', '"loaded_layers": 86'))
    with pytest.raises(InputError, match="started with 86 pretrained layers, and now 0"):
        train(sample, begun, config)


def test_the_imagenet_weights_may_come_from_elsewhere(begun, config, sample):
    name = Path(WEIGHTS_URL).name
    path = begun.folder / "config.json"
    described = path.read_text()
    assert load_metadata(sample) is not None
    for earlier, now in (
        ("imagenet", f"/kaggle/input/datasets/keras/resnet50/{name}"),
        (f"/kaggle/input/resnet50/{name}", "imagenet"),
        ("/old/partial.h5", "/new/partial.h5"),
    ):
        path.write_text(described.replace('"weights": "none"', f'"weights": "{earlier}"'))
        given = config.model_copy(update={"weights": now})
        require_same_run(begun, sample, begun.split, given)
    with pytest.raises(InputError, match="started with other settings"):
        given = config.model_copy(update={"weights": "imagenet"})
        require_same_run(begun, sample, begun.split, given)


DEVICES = """
import sys, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
count, folder, precision = int(sys.argv[1]), sys.argv[2], sys.argv[3]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][:count])
from skinlesion.model import datasets, devices, resnet50
# Two processors stand for two GPUs.
resnet50.make_strategy = lambda batch_size: strategy
listed = tf.config.list_logical_devices
datasets.tf.config.list_logical_devices = (
    lambda kind: [None] * count if kind == "GPU" else listed(kind)
)
from skinlesion.config import make_config
from skinlesion.model.callbacks import make_callbacks
from skinlesion.model.datasets import make_batches
from skinlesion.model.run import Run
from skinlesion.model.train import compile_model
config = make_config("default", image_size=(32, 32), weights="none", top_stage="conv2",
    batch_size=8, epochs=2, precision=precision, scratch_learning_rate=1e-5, deterministic=True,
    augmentation="none" if precision == "float32" else "dermatoscopic")
model = resnet50.build_model(config, 7)
assert model.distribute_strategy.num_replicas_in_sync == count
rng = np.random.default_rng(0)
# One image more than whole batches: the last batch would leave one of two devices without any.
def batches(count, shuffle):
    images, labels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 7
    return make_batches(images, labels.astype("int32"), np.ones(7), 8, shuffle=shuffle)
odd = precision != "float32"
train, validation = batches(24 + odd, True), batches(16 + odd, False)
compile_model(model, config, steps=len(train))
model.fit(train, validation_data=validation, epochs=2, shuffle=False, verbose=0,
    callbacks=make_callbacks(Run(folder), config))
"""


def train_on(count, folder, precision):
    command = [sys.executable, "-c", DEVICES, str(count), str(folder), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return history(folder)


def test_two_devices_train_as_one(tmp_path):
    one, two = (train_on(count, tmp_path / str(count), "float32") for count in (1, 2))
    for column in ("loss", "val_loss"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=3e-3)


def test_two_devices_in_half_precision_are_restored(tmp_path):
    """What two T4s do. The same call restores the last checkpoint, and no epoch is left."""
    first = train_on(2, tmp_path, "mixed_float16")
    assert np.isfinite(first["val_loss"]).all()
    state = json.loads((tmp_path / "checkpoints" / "state.json").read_text())
    assert len(state["rows"]) == 2
    again = train_on(2, tmp_path, "mixed_float16")
    pd.testing.assert_frame_equal(again, first)


@pytest.mark.parametrize(("batch_size", "gpus"), [(32, 3), (7, 2)])
def test_a_batch_that_gpus_cannot_share_is_refused(batch_size, gpus, monkeypatch):
    import tensorflow as tf

    from skinlesion.model.devices import make_strategy

    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [None] * gpus)
    with pytest.raises(InputError, match=f"batch of {batch_size} images .* {gpus} GPUs: choose"):
        make_strategy(batch_size)
