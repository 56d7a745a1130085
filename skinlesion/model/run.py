"""A run: its folder, its settings, its files, its saved model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.config import Config, read_config
from skinlesion.data.dataset import GAPS_NAME, load_metadata
from skinlesion.data.forms import is_dataset
from skinlesion.data.isic_csv import read_isic_for, write_isic
from skinlesion.data.metadata import dataset_fingerprint
from skinlesion.data.split import read_split
from skinlesion.diagnoses import DatasetInfo
from skinlesion.files import (
    InputError,
    read_json,
    restore_folder,
    write_folder_atomically,
    write_json,
)
from skinlesion.model.bundle import (
    ARRAYS_NAME,
    INFO_NAME,
    MODEL_NAME,
    SUMS_NAME,
    ModelInfo,
    compute_sha256,
    read_arrays,
    read_description,
    read_info,
    read_network,
    write_sums,
)
from skinlesion.model.run_lock import RunLock


class Run:
    """The folder of a run or of a saved model. Nothing is read before it is asked for.

    Args:
        folder: of the run; need not exist.
        model_dir: the folder of the saved model; None: `model/` in the run.
        allow_incomplete: also train on a dataset with rows without an image or images without a
            row. `incomplete.json` lists what was left out.

    Raises:
        InputError: `folder` is a file.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model_dir: Path | None = None,
        allow_incomplete: bool = False,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.is_file():
            raise InputError(f"{folder}: is a file; name the folder of a run")
        self.allow_incomplete = allow_incomplete or (self.folder / GAPS_NAME).is_file()
        self.model_dir = model_dir or self.folder / "model"
        restore_folder(self.model_dir)
        self.evaluation_dir = self.folder / "evaluation"
        self.splits_path = self.folder / "splits.csv"
        self.history_path = self.folder / "history.csv"
        self.checkpoints = self.folder / "checkpoints"
        self.lock = RunLock(self.model_dir.parent)

    def __str__(self) -> str:
        return str(self.folder)

    @classmethod
    def find(cls, path: "str | Path | Run") -> "Run":
        """Find a trained run.

        Args:
            path: the folder of a run, the `model/` in it, or a saved model by itself.

        Raises:
            InputError: there is no trained model.
        """
        if isinstance(path, Run):
            path = path.folder
        path = Path(path)
        for model in (path, path / "model"):
            restore_folder(model)
        if not path.exists():
            raise InputError(f"{path}: no such folder; name a trained run")
        whole = path.resolve()
        for folder in (path, whole.parent) if whole.name == "model" else (path,):
            if (folder / "config.json").is_file() and (folder / "model" / INFO_NAME).is_file():
                return cls(folder)
        if (path / INFO_NAME).is_file():
            return cls(path, model_dir=path)
        if (path / "config.json").is_file():
            raise InputError(
                f"{path}: its training is not finished; continue it: python -m skinlesion train "
                f"--run {path}"
            )
        raise InputError(
            f"{path}: neither a trained run nor a saved model; train one first: "
            "python -m skinlesion train --data DIR --run RUN"
        )

    @property
    def is_begun(self) -> bool:
        """Whether training was started here."""
        return (self.folder / "config.json").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the trained model is there; it is written last."""
        return (self.model_dir / INFO_NAME).is_file()

    @property
    def has_finished_epochs(self) -> bool:
        """Whether an interrupted training can continue, or is finished."""
        return self.is_finished or (self.checkpoints / "state.json").is_file()

    @property
    def has_split(self) -> bool:
        """Whether this is a run, and not a saved model by itself."""
        return self.splits_path.is_file()

    @property
    def description(self) -> dict[str, Any]:
        """What `config.json` holds: settings, versions, dataset, device.

        Raises:
            InputError: it is missing or damaged.
        """
        return read_description(self.folder / "config.json")

    @property
    def config(self) -> Config:
        """The settings that the run was started with."""
        return read_config(self.description["config"])

    @property
    def members(self) -> list[dict[str, Any]]:
        """The runs whose probabilities an ensemble averages: `run`, `seed`, `model_sha256` of each.

        Empty for a trained run.
        """
        return self.description.get("members", [])

    @property
    def dataset_info(self) -> DatasetInfo:
        """What is known about the dataset that the run was started with."""
        described = self.description["dataset"]
        values = {name: described[name] for name in DatasetInfo.model_fields}
        return DatasetInfo.model_validate_json(json.dumps(values))

    @property
    def synthetic(self) -> bool:
        """Whether the run was trained on the synthetic sample."""
        return self.info.synthetic

    @property
    def split(self) -> pd.DataFrame:
        """The split: image_id, lesion_id, dx, split.

        Raises:
            InputError: this is a saved model by itself, or the file is damaged.
        """
        if not self.has_split:
            raise InputError(
                f"{self}: is not a run folder; a saved model by itself can be tested with --images "
                "and --truth"
            )
        return read_split(self.splits_path)

    def rows(self, part: str) -> pd.DataFrame:
        """The images of one part of the split: image_id, lesion_id, dx, label."""
        rows = self.split.query("split == @part").reset_index(drop=True)
        return rows.assign(label=rows["dx"].map(self.dataset_info.label_of).astype(int))

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch, numbered from 1; without rows where no epoch was trained.

        Raises:
            InputError: the file is damaged.
        """
        if not self.history_path.is_file():
            return pd.DataFrame()
        try:
            return pd.read_csv(self.history_path)
        except ValueError as error:  # pandas' own errors, and that it is no text
            raise InputError(f"{self.history_path}: cannot be read as CSV ({error})") from error

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What `evaluate` measured; None: the run was not evaluated.

        Raises:
            InputError: the file is damaged.
        """
        path = self.evaluation_dir / "metrics.json"
        if not path.is_file():
            return None
        metrics = read_json(path)
        if not isinstance(metrics, dict):
            raise InputError(f"{path}: holds no metrics; evaluate the run again")
        return metrics

    @property
    def dataset(self) -> Path | None:
        """The folder of the dataset that the run was started with, if it is still there."""
        if not self.is_begun:
            return None
        folder = Path(self.description["dataset"]["folder"])
        return folder if is_dataset(folder) else None

    def load_dataset(self, data: Path) -> pd.DataFrame:
        """Load the metadata of a dataset, as `load_metadata`.

        Raises:
            InputError: as `load_metadata`, or the run was trained on another dataset.
        """
        table = load_metadata(data, allow_incomplete=self.allow_incomplete)
        if self.is_begun and self.description["dataset"]["fingerprint"] != dataset_fingerprint(
            table
        ):
            raise InputError(
                f"{self}: was trained on another dataset than the one given; name that one with "
                "--data"
            )
        return table

    def predictions_path(self, part: str, *, tta: bool = False) -> Path:
        """The file of uncalibrated probabilities of one part, in the ISIC form."""
        return self.folder / f"predictions_{part}{'_tta' if tta else ''}.csv"

    def has_predictions(self, part: str, *, tta: bool = False) -> bool:
        """Whether the images of this part were predicted."""
        return self.predictions_path(part, tta=tta).is_file()

    def write_predictions(
        self, part: str, image_ids: list[str], y_prob: np.ndarray, *, tta: bool = False
    ) -> None:
        """Write uncalibrated probabilities (n, classes) of one part."""
        write_isic(self.predictions_path(part, tta=tta), image_ids, y_prob, self.info)

    def read_predictions(self, part: str, image_ids: list[str], *, tta: bool = False) -> np.ndarray:
        """Read uncalibrated probabilities of one part, float64 (n, classes).

        Args:
            part: `validation` or `test`.
            image_ids: the images, in the order of the result.
            tta: those with test-time augmentation.

        Raises:
            InputError: they are missing, or are those of other images.
        """
        if not self.has_predictions(part, tta=tta):
            raise InputError(
                f"{self}: its {part} images are not predicted yet: python -m skinlesion evaluate "
                f"--run {self}"
            )
        return read_isic_for(self.predictions_path(part, tta=tta), image_ids, self.info)

    @property
    def _sums(self) -> dict[str, str]:
        path = self.model_dir / SUMS_NAME
        try:
            lines = [line.partition("  ") for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); the model is incomplete"
            ) from error
        return {name: digest for digest, _, name in lines}

    def _require_whole(self, name: str) -> Path:
        path = self.model_dir / name
        if not path.is_file() or compute_sha256(path) != self._sums.get(name):
            raise InputError(f"{path}: damaged or changed; copy the model again or train again")
        return path

    @property
    def digest(self) -> str:
        """SHA-256 of the network, 64 hexadecimal digits."""
        return compute_sha256(self.model_dir / MODEL_NAME)

    @property
    def info(self) -> ModelInfo:
        """What prediction has to know beside the network.

        Raises:
            InputError: the file is damaged, or as `read_info`.
        """
        return read_info(self._require_whole(INFO_NAME))

    def load_model(self) -> Any:
        """Load the classifier.

        A model file can hold code: load only models that you trust. The checksum shows damage, not
        malice.

        Raises:
            InputError: as `read_network`.
        """
        return read_network(self._require_whole(MODEL_NAME), self.info)

    def save_model(self, model: Any, info: ModelInfo) -> None:
        """Save a classifier; the folder appears complete, with the SHA-256 of its files."""

        def write(part: Path) -> None:
            model.save(part / MODEL_NAME)
            write_json(part / INFO_NAME, info.model_dump())
            write_sums(part)

        write_folder_atomically(self.model_dir, write)

    def save_calibration(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Put what `calibrate` fitted beside the network, in place of an earlier calibration.

        Raises:
            InputError: another process trains or calibrates this run, or the disk is full.
        """
        info = self.info.model_copy(update={"calibration": values})

        def write(part: Path) -> None:
            shutil.copyfile(self.model_dir / MODEL_NAME, part / MODEL_NAME)
            write_json(part / INFO_NAME, info.model_dump())
            np.savez(part / ARRAYS_NAME, allow_pickle=False, **arrays)
            write_sums(part)

        with self.lock:
            write_folder_atomically(self.model_dir, write)

    def read_calibration(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Read what `save_calibration` wrote; None: the model is not calibrated.

        Raises:
            InputError: a file is damaged, or as `read_arrays`.
        """
        values = self.info.calibration
        if values is None:
            return None
        return values, read_arrays(self._require_whole(ARRAYS_NAME))
