"""Finished epochs on disk, so that an interrupted run goes on from the last of them."""

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from skinlesion.files import read_json, write_folder_atomically, write_json

Row = dict[str, Any]
"""What is known about an epoch: a row of `history.csv`."""


class Checkpoints:
    """The folders `epoch-0001`, `epoch-0002`, ...: each holds all that the next epoch starts from.

    A folder appears complete or not at all, with the history up to it inside: however a run ends,
    weights, optimizer and history are those of one moment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_history(self) -> list[Row]:
        """The rows up to the last finished epoch; empty where none is finished.

        Raises:
            InputError: the last epoch's history is damaged.
        """
        finished = sorted(self.folder.glob("epoch-*"))
        return read_json(finished[-1] / "history.json") if finished else []

    def save(
        self, rows: list[Row], model: keras.Model, optimizer: keras.optimizers.Optimizer
    ) -> None:
        """Keep the epoch that ends `rows`, and of the earlier ones only the best.

        Raises:
            InputError: no room or no permission; what was kept before is still there.
        """

        def write(part: Path) -> None:
            # Not as HDF5, whose library crashes on a full disk.
            np.savez(part / "weights.npz", *model.get_weights())
            state = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]
            np.savez(part / "optimizer.npz", *state)
            write_json(part / "history.json", rows)

        write_folder_atomically(self._path(len(rows)), write)
        kept = {self._path(len(rows)), self._path(find_best(rows) + 1)}
        for path in set(self.folder.glob("epoch-*")) - kept:
            shutil.rmtree(path)

    def restore_model(self, model: keras.Model, epoch: int) -> None:
        """Give `model` the weights that it had after an epoch, numbered from 1."""
        with np.load(self._path(epoch) / "weights.npz") as weights:
            model.set_weights(list(weights.values()))

    def restore_optimizer(self, optimizer: keras.optimizers.Optimizer, epoch: int) -> None:
        """The same for an optimizer that is built."""
        with np.load(self._path(epoch) / "optimizer.npz") as state:
            for variable, value in zip(optimizer.variables, state.values(), strict=True):
                variable.assign(value)

    def delete(self) -> None:
        """Delete all, when the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04}"


def find_best(rows: list[Row]) -> int:
    """Index of the row with the lowest validation loss, the first of several."""
    return int(np.argmin([row["val_loss"] for row in rows]))
