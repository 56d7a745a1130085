"""A run directory: what made it, whether it is finished, and which images it is tested on."""

import dataclasses
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from skinlesion import __version__
from skinlesion.config import Config, config_from_dict, differences, make_config
from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.data.isic import read_predictions_for
from skinlesion.data.metadata import dataset_fingerprint
from skinlesion.data.split import read_split
from skinlesion.diagnoses import LABEL_OF
from skinlesion.files import InputError, read_json

if TYPE_CHECKING:
    import numpy as np

    from skinlesion.model.resnet50 import LoadedWeights

LIBRARIES = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pillow", "gradio")
IMAGENET_NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
"""What Keras calls the file of the ImageNet weights that it downloads; it is on Kaggle, too."""


def find_run(path: Path) -> Path:
    """The run directory, given it or the bundle in it.

    Raises:
        InputError: neither.
    """
    for folder in (path, path.resolve().parent):
        if (folder / "config.json").is_file() and (folder / "splits.csv").is_file():
            return folder
    raise InputError(
        f"{path}: is no run directory; a bundle by itself can be tested with --images and --truth"
    )


def read_run_config(run: Path) -> Config:
    """The settings that a run was made with.

    Raises:
        InputError: `config.json` is missing or does not fit this version.
    """
    described = read_json(run / "config.json")
    if not isinstance(described, dict) or not isinstance(described.get("config"), dict):
        raise InputError(f"{run / 'config.json'}: holds no settings of a run")
    return config_from_dict(described["config"])


def is_begun(run: Path) -> bool:
    """Whether somebody started to train here."""
    return (run / "config.json").is_file()


def is_finished(run: Path) -> bool:
    """Whether the model is there; it is written last."""
    return is_begun(run) and (run / "model" / "bundle.json").is_file()


def choose_config(run: Path, recipe: str | None, **overrides: Any) -> Config:
    """The settings of the run where it was begun and no recipe is named, else the recipe's.

    Args:
        run: run directory, which need not be there.
        recipe: None is `default` for a new run.
        **overrides: fields of `Config`; a value of None keeps what is there.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if is_begun(run):
        known = read_run_config(run)
        if recipe is None:
            return config_from_dict(known.to_dict() | given)
        # Those that were found when it was begun, which may not be the recipe's.
        given = {"weights": known.weights} | given
    return make_config(recipe or "default", **given)


def require_same_run(run: Path, config: Config, table: pd.DataFrame, split: pd.DataFrame) -> None:
    """Raise `InputError` unless the run was begun with these settings, this dataset and split."""
    known = read_run_config(run)
    if _weights_name(known) == _weights_name(config):
        config = dataclasses.replace(config, weights=known.weights)
    other = differences(known, config)
    if other:
        raise InputError(
            f"{run}: was begun with other settings ({other}); leave them out to go on with it, or "
            "name another --run"
        )
    require_same_dataset(run, table)
    if not is_same_split(read_split(run / "splits.csv"), split):
        raise InputError(f"{run}: was begun with another split; name another --run")


def _weights_name(config: Config) -> str:
    """What the weights are called, wherever they lie: Kaggle mounts a file now here, now there."""
    return IMAGENET_NAME if config.weights == "imagenet" else Path(config.weights).name


def is_same_split(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two splits put the same images into the same parts, in whatever order."""

    def sides(split: pd.DataFrame) -> dict[str, str]:
        return dict(zip(split["image_id"], split["split"], strict=True))

    return sides(one) == sides(other)


def require_same_dataset(run: Path, table: pd.DataFrame) -> None:
    """Raise `InputError` unless the run was trained on this dataset."""
    known = read_json(run / "config.json").get("dataset", {}).get("fingerprint")
    if known != dataset_fingerprint(table):
        raise InputError(
            f"{run}: was trained on another dataset than the one given; name that one with --data"
        )


def require_same_weights(run: Path, described: dict[str, Any]) -> None:
    """Raise `InputError` unless the run was begun with as many pretrained layers.

    Args:
        run: a run that was begun.
        described: from `describe_run`, of what would go on.
    """
    known = read_json(run / "config.json").get("weights", {}).get("loaded_layers")
    loaded = described["weights"]["loaded_layers"]
    if known != loaded:
        raise InputError(
            f"{run}: was begun with {known} pretrained layers, and now {loaded} can be loaded; "
            "give the same weights with --weights, or name another --run"
        )


def read_precision(run: Path) -> str | None:
    """The precision that a run was begun with, which its checkpoints have; None: not known."""
    return read_json(run / "config.json").get("precision")


def recall_dataset(run: Path) -> Path | None:
    """The folder of the dataset that a run was begun with, if it is still there."""
    if not is_begun(run):
        return None
    known = read_json(run / "config.json").get("dataset", {}).get("folder")
    return Path(known) if known and (Path(known) / METADATA_NAME).is_file() else None


def read_part(run: Path, part: str) -> pd.DataFrame:
    """The images of one part of the run's split: `image_id`, `lesion_id`, `dx`, `label`."""
    split = read_split(run / "splits.csv")
    rows = split[split["split"] == part].reset_index(drop=True)
    return rows.assign(label=rows["dx"].map(LABEL_OF).astype(int))


def read_test_predictions(run: Path, rows: pd.DataFrame) -> "np.ndarray":
    """Uncalibrated probabilities (n, 7) of the run's test images, in the order of `rows`.

    Raises:
        InputError: the run was not evaluated, or its predictions are about other images.
    """
    path = run / "predictions_test.csv"
    if not path.is_file():
        raise InputError(
            f"{run}: its test images were not predicted yet: python -m skinlesion evaluate "
            f"--run {run}"
        )
    return read_predictions_for(path, list(rows["image_id"]))


def describe_run(
    config: Config,
    loaded: "LoadedWeights",
    table: pd.DataFrame,
    *,
    folder: Path,
    device: str,
    precision: str,
    synthetic: bool,
    splits: Path | None,
) -> dict[str, Any]:
    """What `config.json` holds: settings, versions, commit, dataset, device, seed."""
    return {
        "config": config.to_dict(),
        "seed": config.seed,
        "split": f"file {splits.name}" if splits else config.split,
        "weights": {
            "source": loaded.source,
            "loaded_layers": len(loaded.layers),
            "layers": loaded.total,
        },
        "dataset": {
            "fingerprint": dataset_fingerprint(table),
            "folder": str(folder.resolve()),
            "images": len(table),
            "synthetic": synthetic,
        },
        "versions": {"skinlesion": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
        "device": device,
        "precision": precision,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the package's own checkout, with `+changes` when files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None  # installed into a folder that some other repository ignores
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
