"""What stands in `callbacks=` of `fit`: Keras' own callbacks, and the few that Keras lacks."""

import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from skinlesion.config import Config
from skinlesion.files import InputError, read_json, write_atomically, write_csv, write_json
from skinlesion.machine import say
from skinlesion.model.resnet50 import find_part, pretrained_weights
from skinlesion.model.run import Run

Logs = dict[str, Any]

TIME_RESERVE = 1.2
"""Another epoch is begun only if this many times the longest one so far fits into the time left."""
TIMED_STEPS = 5
"""Steps of the first epoch, after the very first one, that the estimate rests on."""
VALIDATION_COST = 0.5
"""A validation step in training steps: a third if all layers are trained, up to 0.6 if the first
stages are frozen (docs/benchmarks.md)."""


def make_callbacks(
    run: Run, config: Config, *, time_limit: float | None = None
) -> list[keras.callbacks.Callback]:
    """Make the callbacks of a training run.

    With the cosine schedule, training goes to its end, and the last weights are the result: the
    epoch of the lowest validation loss was worse (docs/experiments.md).

    Keras calls them in this order: `Resume` sees the state of those before it. `Resume` also writes
    the history, because Keras' `CSVLogger` repeats or loses a row after an interruption.

    Args:
        run: the run that was begun; gets `history.csv`, `checkpoints/` and `tensorboard/`.
        config: the settings.
        time_limit: hours from now after which training stops; None: no limit.
    """
    watchers: list[keras.callbacks.Callback] = []
    if config.schedule == "plateau":
        watchers = [
            keras.callbacks.EarlyStopping(
                monitor="val_loss",
                patience=config.early_stopping_patience,
                restore_best_weights=True,
            ),
            # The original notebook's: its floor equals its learning rate, so that it never acts.
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_accuracy", patience=4, factor=0.5, min_lr=1e-4
            ),
        ]
    limit = TimeLimit(math.inf if time_limit is None else 3600 * time_limit)
    return [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.TensorBoard(run.folder / "tensorboard", write_graph=False),
        Progress(config.batch_size, len(run.rows("validation")) if run.has_split else 0),
        *watchers,
        Resume(run, config.seed, watchers, limit),
        limit,
    ]


class Progress(keras.callbacks.Callback):
    """Adds speed and learning rate to the logs, and prints a line an epoch.

    After a few steps of the first epoch, it prints how long all epochs that are left may take, and
    keeps it in the attribute `estimate`, in seconds.

    Args:
        batch_size: images in a step.
        validation_images: that follow the steps of each epoch.
    """

    def __init__(self, batch_size: int, validation_images: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.validation_steps = validation_images / batch_size
        self.durations: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Start the clock."""
        self.epoch, self.started = epoch, time.monotonic()
        self.trained = self.started

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Note when training ended: validation follows."""
        self.trained, self.steps = time.monotonic(), batch + 1
        if not self.durations and batch == 0:
            self.after_first = self.trained  # the first step compiles the model
        elif not self.durations and batch == TIMED_STEPS:
            step = (self.trained - self.after_first) / TIMED_STEPS
            steps = self.params["steps"] + VALIDATION_COST * self.validation_steps
            epochs = self.params["epochs"] - self.epoch
            self.estimate = step * steps * epochs
            say(f"train: estimated time for {epochs} epochs: {describe_duration(self.estimate)}")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Complete the logs and print them."""
        assert logs is not None
        images = self.steps * self.batch_size
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        logs["learning_rate"] = float(rate)
        seconds = max(self.trained - self.started, 1e-3)  # where the clock of a machine stood still
        logs["images_per_second"] = round(images / seconds, 2)
        self.durations.append(time.monotonic() - self.started)
        left = (self.params["epochs"] - epoch - 1) * float(np.mean(self.durations))
        speed = f"{logs['images_per_second']:.0f} images/s"
        rest = f", {describe_duration(left)} left" if left else ""
        say(
            f"train: epoch {epoch + 1} of {self.params['epochs']}: loss {logs['loss']:.4f}, "
            f"validation loss {logs['val_loss']:.4f}, {speed}{rest}"
        )


class TimeLimit(keras.callbacks.Callback):
    """Stops training before a time limit; the interrupted epoch is repeated later.

    Args:
        seconds: from now; infinity: no limit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.deadline = time.monotonic() + seconds
        self.longest = 0.0
        self.is_epoch_cut = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Stop in the middle of an epoch when the time is up."""
        if time.monotonic() > self.deadline:
            self.is_epoch_cut = self.model.stop_training = True

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Leave out the rest of the validation of such an epoch, which is not kept."""
        if self.is_epoch_cut:
            self.model.stop_evaluating = True

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Stop when another epoch would not fit."""
        self.longest = max(self.longest, time.monotonic() - self.started)
        if time.monotonic() + TIME_RESERVE * self.longest > self.deadline:
            self.model.stop_training = True


class Resume(keras.callbacks.Callback):
    """Makes an interrupted training go on exactly after its last finished epoch.

    Keras' `BackupAndRestore` restores neither the state of other callbacks nor that of the random
    generators (keras#14862, #17012). This callback keeps the weights, the optimizer, the random
    state of all layers, the state of `watchers`, and the history. It seeds Python and NumPy before
    each epoch, so that the order of the images depends on the seed and the epoch alone.

    Args:
        run: its `checkpoints/` and `history.csv` are used. If it is finished, its saved model is
            restored, and no epoch is left.
        seed: of the run.
        watchers: callbacks whose state is kept; if there are any, the first is EarlyStopping.
        limit: tells whether an epoch was cut short; such an epoch is not kept.
    """

    def __init__(
        self,
        run: Run,
        seed: int,
        watchers: list[keras.callbacks.Callback],
        limit: TimeLimit,
    ) -> None:
        super().__init__()
        self.run, self.checkpoints = run, run.checkpoints
        self.seed, self.watchers, self.limit = seed, watchers, limit
        self.rows: list[Logs] = []

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Restore the last finished epoch, if there is one."""
        if self.run.is_finished:
            find_part(self.model, "classifier").set_weights(self.run.load_model().get_weights())
            self.model._initial_epoch = self.params["epochs"]
            return
        state = read_state(self.checkpoints)
        self.rows = state["rows"] if state else []
        if state is None:
            return
        if len(state["watchers"]) != len(self.watchers):
            raise InputError(
                f"{self.run}: was begun by another version of skinlesion; train again under "
                "another name"
            )
        self._write_history()  # it may lack the last row
        epoch = len(self.rows)
        with np.load(self.checkpoints / f"epoch_{epoch:04}.npz") as arrays:
            variables = [*self.model.variables, *self.model.optimizer.variables]
            for index, variable in enumerate(variables):
                variable.assign(arrays[str(index)])
        for watcher, values in zip(self.watchers, state["watchers"], strict=True):
            for name, value in values.items():
                setattr(watcher, name, value)
        for stopping in self.watchers[:1]:
            with np.load(self._best_path(stopping)) as arrays:
                stopping.best_weights = list(arrays.values())
        say(f"train: continuing after epoch {epoch}")
        # As BackupAndRestore does. A training that had stopped has no epoch left.
        self.model._initial_epoch = self.params["epochs"] if state["is_over"] else epoch

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Seed the order of the images."""
        keras.utils.set_random_seed(self.seed + epoch)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Keep a finished epoch; fail on a loss that is not a number."""
        assert logs is not None
        if self.limit.is_epoch_cut:
            return
        numbers = [value for value in logs.values() if isinstance(value, float)]
        if not all(map(math.isfinite, numbers)):
            raise FloatingPointError("the loss is no longer a number: lower the learning rate")
        # Not in the logs, of which Keras' progress bar takes the mean.
        pretrained = bool(pretrained_weights(self.model).layers)
        phase = "fine_tuning" if pretrained else "from_scratch"
        self.rows.append({"epoch": epoch + 1, "phase": phase} | logs)
        self._save(epoch)
        self._write_history()

    def _save(self, epoch: int) -> None:
        last = self.checkpoints / f"epoch_{epoch + 1:04}.npz"
        named = [last, *(self._save_best(stopping, epoch) for stopping in self.watchers[:1])]
        variables = [*self.model.variables, *self.model.optimizer.variables]
        arrays = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        write_atomically(last, lambda part: np.savez(part, **arrays))
        kept = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter")
        state = {
            "rows": self.rows,
            "watchers": [
                {name: getattr(w, name) for name in kept if hasattr(w, name)} for w in self.watchers
            ],
            "is_over": self.model.stop_training or epoch + 1 == self.params["epochs"],
        }
        # Written last: whatever it names is there.
        write_json(self.checkpoints / "state.json", state)
        for path in self.checkpoints.glob("*.npz"):
            if path not in named:
                path.unlink()

    def _save_best(self, stopping: keras.callbacks.Callback, epoch: int) -> Path:
        best = self._best_path(stopping)
        # Not as HDF5, whose library crashes the process on a full disk.
        if stopping.best_epoch == epoch:
            write_atomically(best, lambda part: np.savez(part, *stopping.best_weights))
        return best

    def _best_path(self, stopping: keras.callbacks.Callback) -> Path:
        return self.checkpoints / f"best_{stopping.best_epoch + 1:04}.npz"

    def _write_history(self) -> None:
        write_csv(self.run.history_path, pd.DataFrame(self.rows))


def describe_duration(seconds: float) -> str:
    """Write a duration for readers: `under a minute`, `1 minute`, `40 minutes` or `3.5 hours`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute"
    if minutes < 120:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{seconds / 3600:.1f} hours"


def read_state(checkpoints: Path) -> Logs | None:
    """Read what `Resume` knows about the finished epochs; None if no epoch is finished.

    Returns:
        `rows`: the history; `watchers`: the state of callbacks; `is_over`: no epoch is left.
    """
    path = checkpoints / "state.json"
    return read_json(path) if path.is_file() else None
