"""Train a model: from a dataset and a split to a finished run."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from skinlesion.config import Config
from skinlesion.data.check import find_unusable_rows
from skinlesion.data.dataset import find_dataset, record_gaps
from skinlesion.data.forms import count_classes, describe_dataset, is_by_image
from skinlesion.data.metadata import dataset_fingerprint
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import join_split, make_split, read_split
from skinlesion.diagnoses import BY_IMAGE_NOTE, SYNTHETIC_NOTE, DatasetInfo
from skinlesion.files import InputError, read_json, write_csv, write_json
from skinlesion.machine import is_watched, say
from skinlesion.model.bundle import ModelInfo, require_classifier
from skinlesion.model.callbacks import make_callbacks, read_state
from skinlesion.model.datasets import make_datasets
from skinlesion.model.devices import describe_device, has_gpu
from skinlesion.model.linear_probe import fit_linear_probe
from skinlesion.model.provenance import describe_environment, describe_versions, find_commit
from skinlesion.model.resnet50 import build_model, find_part, pretrained_weights
from skinlesion.model.run import Run
from skinlesion.model.run_settings import (
    describe_also,
    find_other_settings,
    require_same_run,
    settle_also,
    settle_config,
)

WARMUP_SHARE = 0.1
"""Share of training in which the cosine schedule rises to its rate: Goyal et al., arXiv:1706.02677,
warm up over the first 5 of 90 epochs; short runs need a larger share for the same effect."""

QUARANTINE_NAME = "quarantine.json"
"""The rows that a run was trained without, in its folder: by `image_id`, the reason."""


def train(
    data: str | Path | None,
    run: str | Path | Run,
    config: Config,
    *,
    splits: Path | None = None,
    time_limit: float | None = None,
    quarantine: bool = False,
    also: Sequence[Path] = (),
) -> Run:
    """Train a model and save it in its run; continue an interrupted run, keep a finished one.

    Args:
        data: the dataset; None: the run's own, else as `find_dataset`.
        run: folder of the run.
        config: the settings.
        splits: a split file; None: the run's own, else a new split.
        time_limit: hours from now after which training stops; the same call continues it.
        quarantine: leave out rows without a usable image, and list them in `quarantine.json`.
        also: datasets whose images are added to training, see `data.also`.

    Raises:
        InputError: the run is another one or busy, an input is unusable, or there is no room.
        FloatingPointError: the loss is no longer a number.
    """
    begun, run = time.monotonic(), run if isinstance(run, Run) else Run(run)
    if run.is_finished and not (data or splits or also or find_other_settings(run, config)):
        return _keep_finished(run)
    data, also = find_dataset(data or run.dataset), settle_also(run, also)
    split, left_out = _choose_split(data, run, splits, config, quarantine=quarantine)
    require_same_run(run, data, split, config)
    if run.is_finished:
        return _keep_finished(run)
    model = build_model(config := settle_config(config, run, data), count_classes(data))
    with run.lock:
        training, validation = make_datasets(data, split, config, also)
        _list_left_out(run, left_out)
        begin_run(run, model, data, split, config, also)
        compile_model(model, config, steps=len(training))
        fit_linear_probe(model, training, validation, run, config)
        model.fit(
            training,
            validation_data=validation,
            epochs=config.epochs,
            shuffle=False,  # the dataset does it
            callbacks=make_callbacks(run, config, time_limit=_subtract(time_limit, begun)),
            verbose=1 if is_watched() else 0,
        )
        finish_run(run, model, config)
    return run


def _subtract(time_limit: float | None, begun: float) -> float | None:
    """The hours of a limit that are left; `begun` is a reading of `time.monotonic`."""
    return None if time_limit is None else time_limit - (time.monotonic() - begun) / 3600


def compile_model(model: keras.Sequential, config: Config, *, steps: int) -> None:
    """Compile a model with Adam, cross-entropy and accuracy.

    Args:
        model: from `build_model`; its pretrained weights decide which of the two rates is used.
        config: the settings.
        steps: training steps in an epoch, such as `len(train)`.
    """
    pretrained = bool(pretrained_weights(model).layers)
    rate: Any = config.learning_rate if pretrained else config.scratch_learning_rate
    if config.schedule == "cosine":
        total = steps * max(1, config.epochs)
        warmup = max(1, round(WARMUP_SHARE * total))
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=rate / 100,
            warmup_target=rate,
            warmup_steps=warmup,
            decay_steps=max(1, total - warmup),
            alpha=0.01,
        )
    with model.distribute_strategy.scope():
        model.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            weighted_metrics=[],
            jit_compile=False,  # rotation has no XLA kernel, and on one GPU Keras would choose XLA
        )
        model.optimizer.build(model.trainable_variables)
        # Makes the variables of the metrics. Otherwise the first step would make them, and
        # TensorFlow traces a step that makes variables twice.
        model.compute_metrics(None, np.zeros(1, int), np.eye(1, 2))
        model.reset_metrics()


def begin_run(
    run: Run,
    model: keras.Sequential,
    data: Path,
    split: pd.DataFrame,
    config: Config,
    also: Sequence[Path] = (),
) -> None:
    """Write `config.json`, `environment.json` and `splits.csv`, or check a run to continue.

    The run is locked until `finish_run`.

    Args:
        run: the run.
        model: from `build_model`.
        data: folder of the dataset.
        split: the split.
        config: the settings.
        also: datasets whose images are added to training.

    Raises:
        InputError: the run was started with other settings, data, split or pretrained layers,
            another process trains it, or the model was changed so that it could not be used later.
    """
    info = describe_dataset(data)
    classifier = find_part(model, "classifier")
    require_classifier(classifier, config.image_size, len(info.labels), "the model")
    weights = pretrained_weights(model)
    say(f"train: recipe {config.recipe}, run {run}, {describe_device()}, {weights}")
    _say_limits(info, split)
    if config.epochs and not (info.synthetic or run.is_finished or has_gpu()):
        say(
            "train: no GPU, so training is slow (on Kaggle: Settings > Accelerator > GPU T4 x2); "
            "recipe probe takes minutes"
        )
    if not run.is_finished:
        run.lock.acquire()
    try:
        require_same_run(run, data, split, config)
        _require_same_weights(run, model)
        if not run.is_finished:
            # Results of an earlier model in this folder are not those of this one.
            for path in run.folder.glob("predictions_*.csv"):
                path.unlink()
            shutil.rmtree(run.evaluation_dir, ignore_errors=True)
        if not run.is_begun:
            _write_description(run, model, data, split, config, also)
    except BaseException:
        run.lock.release()
        raise


def _write_description(
    run: Run,
    model: keras.Sequential,
    data: Path,
    split: pd.DataFrame,
    config: Config,
    also: Sequence[Path],
) -> None:
    settings = {"config": config.model_dump(), "seed": config.seed, "also": describe_also(also)}
    settings |= _describe(model, data, run.load_dataset(data))
    record_gaps(data, run.folder)
    write_csv(run.splits_path, split)
    write_json(run.folder / "environment.json", describe_environment())
    write_json(run.folder / "config.json", settings)


def _require_same_weights(run: Run, model: keras.Sequential) -> None:
    known = run.description["weights"]["loaded_layers"] if run.is_begun else None
    loaded = len(pretrained_weights(model).layers)
    if known not in (None, loaded):
        raise InputError(
            f"{run}: was started with {known} pretrained layers, and now {loaded} can be loaded; "
            "name the same weights, or give the new run another name"
        )


def _say_limits(info: DatasetInfo, split: pd.DataFrame) -> None:
    """Say once what a model of this dataset cannot be expected to know."""
    if info.synthetic:
        say(SYNTHETIC_NOTE)
    if is_by_image(split):
        say(BY_IMAGE_NOTE)
    if info.malignant is None:
        say(
            f"train: {info.source} does not say which classes are malignant: everything about "
            "malignancy is left out. To have it, list the classes in dataset.yaml"
        )


def _describe(model: keras.Sequential, data: Path, table: pd.DataFrame) -> dict[str, Any]:
    """What `config.json` holds beside the settings."""
    pretrained = pretrained_weights(model)
    return {
        "weights": {
            "source": pretrained.source,
            "loaded_layers": len(pretrained.layers),
            "layers": pretrained.total,
        },
        "dataset": {
            "fingerprint": dataset_fingerprint(table),
            "folder": str(data.resolve()),
            "images": len(table),
            **describe_dataset(data).model_dump(),
        },
        "versions": describe_versions(),
        "commit": find_commit(),
        "device": describe_device(),
        "precision": find_part(model, "classifier").dtype_policy.name,
    }


def finish_run(run: Run, model: keras.Sequential, config: Config) -> None:
    """Save the trained classifier in its run, for one device and in full precision, and unlock it.

    A run that the time limit stopped is left to be continued.

    Args:
        run: the run.
        model: after `fit`.
        config: the settings.
    """
    state = None if run.is_finished else read_state(run.checkpoints)
    if run.is_finished:
        say(
            "train: this run is finished, so nothing was trained; its model is kept. To train "
            "again, give the run another name"
        )
    elif config.epochs and not (state and state["is_over"]):
        say(
            f"train: stopped at the time limit after epoch {len(state['rows']) if state else 0} of "
            f"{config.epochs}; run this again to continue {run} from here"
        )
    else:
        classifier = find_part(model, "classifier")
        plain = keras.models.clone_model(classifier, clone_function=_make_plain, recursive=True)
        plain.set_weights(classifier.get_weights())
        info = ModelInfo(
            **run.dataset_info.model_dump(),
            image_size=config.image_size,
            resize=config.resize,
            recipe=config.recipe,
        )
        run.save_model(plain, info)
        say(f"train: finished; model in {run.model_dir}")
    if run.is_finished:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    run.lock.release()


def _make_plain(layer: keras.Operation) -> keras.Operation:
    """The same layer in full precision and for one device, with new weights."""
    changes: dict[str, Any] = {"dtype": "float32"} if isinstance(layer, keras.Layer) else {}
    if isinstance(layer, keras.layers.BatchNormalization):
        changes["synchronized"] = False
    return type(layer).from_config(layer.get_config() | changes)


def _keep_finished(run: Run) -> Run:
    """Leave a finished run as it is, but tidy it if it was killed before it could."""
    say(f"train: {run} is finished already with these settings")
    with suppress(InputError), run.lock:  # where the folder can be written
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return run


def _list_left_out(run: Run, left_out: dict[str, str]) -> None:
    if left_out:
        path = write_json(run.folder / QUARANTINE_NAME, left_out)
        say(f"train: {len(left_out):,} rows without a usable image left out, listed in {path}")


def _choose_split(
    data: Path, run: Run, splits: Path | None, config: Config, *, quarantine: bool
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the split, and the rows that it leaves out: by `image_id`, the reason."""
    run.allow_incomplete |= quarantine
    table = run.load_dataset(data)
    path, left_out = run.folder / QUARANTINE_NAME, {}
    if quarantine and not run.is_begun:
        left_out = find_unusable_rows(data)
    elif run.is_begun and path.is_file():
        left_out = read_json(path)
    if splits:
        split = read_split(splits)
        split = split[~split["image_id"].isin(left_out)]
        join_split(table, split)  # refuses images that the dataset lacks
        return split, left_out
    if run.is_begun:
        return run.split, left_out
    table = table[~table["image_id"].isin(left_out)]
    return make_split(table, config.split, seed=config.seed, pairs=read_near_duplicates()), left_out
