"""Which settings a run is trained with, and whether they are those that it was started with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from skinlesion.config import Config, find_differences, make_config, read_config
from skinlesion.data.dataset import load_metadata
from skinlesion.data.forms import is_sample
from skinlesion.data.metadata import dataset_fingerprint
from skinlesion.data.split import is_same_split
from skinlesion.files import InputError
from skinlesion.machine import default_weights, say
from skinlesion.model.run import Run

IMAGENET_NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
"""Keras' name of the file of ImageNet weights; Kaggle has it under the same name."""


def choose_config(
    run: Run,
    recipe: str | None,
    settings: dict[str, Any] | None = None,
    *,
    data: Path | None = None,
    weights: str | None = None,
    seed: int | None = None,
) -> Config:
    """The settings to train a run with.

    Args:
        run: if it was started, and no recipe is named, its settings are the base.
        recipe: base of the settings; None: `default` for a new run.
        settings: fields of `Config` that replace the base's values.
        data: folder of the dataset. For the synthetic sample, ImageNet weights that cannot be
            downloaded are replaced by random ones.
        weights: the field of this name; None: those of a run that was started, otherwise those
            found on this machine, otherwise `imagenet`.
        seed: the field of this name; None keeps the base's value.

    Raises:
        InputError: unknown or impossible settings.
    """
    if not isinstance(settings, dict | None):
        raise InputError(f"settings must be a dict, such as {{'epochs': 5}}, not {settings!r}")
    if "recipe" in (settings or {}):
        raise InputError("recipe is not one of the settings: name it as `recipe` (--recipe)")
    named: dict[str, Any] = {"weights": weights, "seed": seed}
    given = {name: value for name, value in (named | (settings or {})).items() if value is not None}
    if run.is_begun:
        known = run.config
        if recipe is None:
            return settle_config(read_config(known.model_dump() | given), run, data)
        here = default_weights()
        same = here and _weights_name(here) == _weights_name(known.weights)
        given = {"weights": here if same else known.weights} | given
    elif "weights" not in given:
        given["weights"] = default_weights() or "imagenet"
    return settle_config(make_config(recipe or "default", **given), run, data)


def settle_config(config: Config, run: Run, data: Path | None) -> Config:
    """Resolve what depends on the machine: the precision of a run to continue, and weights."""
    if run.is_begun and config.precision == "auto":
        # Checkpoints in half precision can only be continued in half precision, on any device.
        config = config.model_copy(update={"precision": run.description["precision"]})
    if data is not None and is_sample(data):
        config = _fall_back_to_random_weights(config)
    return config


def require_same_run(run: Run, data: Path, split: pd.DataFrame, config: Config) -> None:
    """Check that a run that was started has these settings, this dataset and this split.

    Args:
        run: the run; a new one is fine.
        data: folder of the dataset.
        split: the split.
        config: the settings.

    Raises:
        InputError: something differs; says what.
    """
    if not run.is_begun:
        return
    other = find_other_settings(run, config)
    if other:
        raise InputError(
            f"{run}: was started with other settings ({other}); use those, or give the new run "
            "another name"
        )
    run.load_dataset(data)
    if not is_same_split(run.split, split):
        raise InputError(f"{run}: was started with another split; give the new run another name")


def describe_also(also: Sequence[Path]) -> list[dict[str, str]]:
    """What `config.json` holds of the datasets that are added to training."""
    return [
        {
            "folder": str(folder.resolve()),
            "fingerprint": dataset_fingerprint(load_metadata(folder)),
        }
        for folder in also
    ]


def settle_also(run: Run, also: Sequence[Path]) -> list[Path]:
    """The datasets that are added to training; a run that was started has its own.

    Raises:
        InputError: the run was started with others.
    """
    if not run.is_begun:
        return list(also)
    known = run.description.get("also", [])
    folders = list(also) or [Path(one["folder"]) for one in known]
    ours, theirs = ([one["fingerprint"] for one in x] for x in (known, describe_also(folders)))
    if ours != theirs:
        named = ", ".join(one["folder"] for one in known) or "none"
        raise InputError(f"{run}: was started with other added images (--also): {named}")
    return folders


def find_other_settings(run: Run, config: Config) -> str:
    """Name the settings that differ from those of a run, in more than where weights are."""
    known = run.config
    if _weights_name(known.weights) == _weights_name(config.weights):
        config = config.model_copy(update={"weights": known.weights})
    if "auto" in (known.precision, config.precision):
        config = config.model_copy(update={"precision": known.precision})
    return find_differences(known, config)


def _weights_name(weights: str) -> str:
    """The name of the weights, wherever the file lies: Kaggle's mount points vary."""
    return IMAGENET_NAME if weights == "imagenet" else Path(weights).name


def _fall_back_to_random_weights(config: Config) -> Config:
    """On the synthetic sample, do without ImageNet weights that cannot be downloaded."""
    if config.weights != "imagenet":
        return config
    from skinlesion.model.resnet50 import WeightsUnavailableError, download_imagenet

    try:
        download_imagenet()
    except WeightsUnavailableError as error:
        say(f"train: {error}")
        say("train: this is the synthetic sample, so training starts from random weights instead")
        return config.model_copy(update={"weights": "none"})
    return config
