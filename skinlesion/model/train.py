"""Fit a model in phases: first the new layers, then the pretrained ones too."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from skinlesion.config import Config
from skinlesion.data.cache import make_array, make_key
from skinlesion.data.images import draw_order, make_dataset
from skinlesion.diagnoses import NUM_CLASSES
from skinlesion.files import write_csv
from skinlesion.machine import say
from skinlesion.model.augmentation import Mixing, make_augmentation, make_feature_augmentation
from skinlesion.model.checkpoints import Checkpoints, Row, find_best
from skinlesion.model.resnet50 import (
    LoadedWeights,
    freeze_pretrained,
    frozen_stage,
    run_batches,
    split_model,
    synchronize_batch_norm,
    unfreeze,
)

WARMUP_SHARE = 0.1
"""Share of a phase in which the cosine schedule rises to its rate: Goyal et al., arXiv:1706.02677,
warm up over the first 5 of 90 epochs; short runs need a larger share for the same effect."""
PLATEAU_DELTA = 1e-4
"""What `plateau_monitor` has to gain to count as progress: Keras' default."""
CACHED_STAGES = ("conv4", "conv5")
"""Stages whose output is worth keeping: those below have larger outputs than the image, and save
little."""
TIME_RESERVE = 1.2
"""An epoch is begun when this many times the longest one so far fits into the time left."""


class TimeIsUpError(Exception):
    """The time limit was reached; all finished epochs are kept."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one set of trained layers and one learning rate."""

    name: str
    epochs: int
    learning_rate: float


def plan_phases(config: Config, loaded: LoadedWeights) -> list[Phase]:
    """The phases of a run, none of them empty, with `config.epochs` epochs together.

    Without pretrained layers there is nothing to freeze, and everything trains at the head's rate.
    """
    if not loaded.layers:
        return [Phase("from_scratch", config.epochs, config.head_learning_rate)]
    frozen = math.ceil(config.frozen_share * config.epochs)
    phases = [
        Phase("frozen", frozen, config.head_learning_rate),
        Phase("fine_tuning", config.epochs - frozen, config.learning_rate),
    ]
    return [phase for phase in phases if phase.epochs]


def describe_plan(config: Config, loaded: LoadedWeights) -> str:
    """What `fit` or `fit_regression` will do, in a few words."""
    if config.method == "regression":
        return "a logistic regression on features computed once"
    phases = plan_phases(config, loaded)
    return " then ".join(f"{phase.epochs} epochs {phase.name}" for phase in phases)


def seed_everything(config: Config) -> None:
    """Seed Python, NumPy and TensorFlow, and switch to deterministic kernels where asked."""
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()


def balanced_class_weights(labels: np.ndarray) -> np.ndarray:
    """Inverse class frequencies, scaled so that the mean over images is 1; float (7,).

    King and Zeng, "Logistic Regression in Rare Events Data" (2001), as in scikit-learn's
    `class_weight="balanced"`. A class without images gets weight 1.
    """
    weights = np.ones(NUM_CLASSES)
    present = np.unique(labels)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights


def fit(
    model: keras.Model,
    loaded: LoadedWeights,
    config: Config,
    *,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    run: Path,
    cache: Path | None = None,
    deadline: float = math.inf,
    on_epoch: Callable[[pd.DataFrame], object] = lambda history: None,
    verbose: int = 0,
) -> pd.DataFrame:
    """Train `model` in place, and leave it with the weights of its best epoch.

    The best epoch is the one with the lowest validation loss, over all phases; with balanced class
    weights this loss is balanced too, so what stops training is what training aims at. What an
    earlier call with the same arguments finished is not done again: everything random is drawn
    from the seed and the number of the epoch, so that a resumed run ends as any other.

    Args:
        model: from `build_model`, with its initial weights; built under the strategy of
            `devices.make_strategy`, which is used here too.
        loaded: from `build_model`.
        config: the settings.
        train: uint8 images (n, height, width, 3) and int labels (n,).
        validation: the same.
        run: run directory; `history.csv`, `checkpoints/` and `tensorboard/` are written there
            after each epoch.
        cache: folder for features that do not fit into memory; None keeps them there anyway.
        deadline: `time.monotonic()` at which to stop.
        on_epoch: called with the history after each epoch.
        verbose: as for `keras.Model.fit`; a line an epoch is printed in any case.

    Returns:
        The history: a row an epoch.

    Raises:
        FloatingPointError: the loss is no longer a number.
        TimeIsUpError: the deadline came before the end.
        InputError: no room for a checkpoint.
    """
    checkpoints = Checkpoints(run / "checkpoints")
    rows = checkpoints.read_history()
    if rows:
        say(f"train: going on after epoch {len(rows)}")
        # It may have ended between the checkpoint and this file.
        write_csv(run / "history.csv", pd.DataFrame(rows))
        on_epoch(pd.DataFrame(rows))
    weights = balanced_class_weights(train[1]) if config.class_weights == "balanced" else None
    replicas = model.distribute_strategy.num_replicas_in_sync
    writer = tf.summary.create_file_writer(str(run / "tensorboard"))
    for phase in plan_phases(config, loaded):
        done = _rows_of(rows, phase)
        if _is_over(done, phase, config):
            continue
        if rows:
            checkpoints.restore_model(model, len(rows) if done else find_best(rows) + 1)
        _set_trainable(model, loaded, config, phase)
        trainer, images = _make_trainer(model, config, phase, (train[0], validation[0]), cache)
        compile_trainer(trainer, config, phase, steps=math.ceil(len(train[1]) / config.batch_size))
        if done:
            checkpoints.restore_optimizer(trainer.optimizer, len(rows))
        validation_set = make_dataset(
            images[1],
            validation[1],
            batch_size=config.batch_size,
            class_weights=weights,
            order=_cut(np.arange(len(validation[1])), replicas),
        )
        while not _is_over(done, phase, config):
            _require_time(rows, phase, deadline)
            epoch = len(rows)
            order = _cut(
                draw_order(train[1], config.sampling, seed=config.seed, epoch=epoch), replicas
            )
            train_set = make_dataset(
                images[0],
                train[1],
                batch_size=config.batch_size,
                class_weights=weights,
                order=order,
            )
            _seed_epoch(trainer, config.seed, epoch)
            if config.schedule == "plateau":
                trainer.optimizer.learning_rate = plateau_rate(done, phase.learning_rate, config)
            row = _fit_epoch(trainer, train_set, validation_set, epoch, phase, deadline, verbose)
            row["images_per_second"] = round(len(order) / row.pop("train_seconds"), 2)
            rows.append(row)
            done.append(row)
            checkpoints.save(rows, model, trainer.optimizer)
            write_csv(run / "history.csv", pd.DataFrame(rows))
            _write_summary(writer, row)
            say(_describe_epoch(rows, phase, config))
            on_epoch(pd.DataFrame(rows))
    checkpoints.restore_model(model, find_best(rows) + 1)
    return pd.DataFrame(rows)


class Trainer(keras.Model):
    """A network with what only training needs, all in one compiled step.

    Args:
        network: what is trained.
        augmentation: from float images to the same.
        mixing: blends images and labels; None leaves them alone.
        precision: the dtype policy of the network's layers; with half precision, Keras scales the
            loss. None is that of the network itself.
    """

    def __init__(
        self,
        network: keras.Model,
        augmentation: keras.layers.Layer,
        mixing: Mixing | None = None,
        precision: keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(dtype=precision or network.dtype_policy)
        self.network, self.augmentation, self.mixing = network, augmentation, mixing

    def call(self, images: Any, training: bool = False) -> Any:
        """Probabilities, float (b, 7)."""
        return self.network(images, training=training)

    def train_step(self, data: tuple[Any, Any, Any]) -> dict[str, Any]:
        """Augment a batch, then do Keras' own step."""
        images, labels, weights = data
        images = self.augmentation(keras.ops.cast(images, "float32"), training=True)
        if self.mixing is not None:
            images, labels = self.mixing(images, labels)
        return super().train_step((images, labels, weights))


def compile_trainer(trainer: Trainer, config: Config, phase: Phase, *, steps: int) -> None:
    """Give a trainer its loss and its optimizer for a phase of `steps` steps an epoch."""
    with trainer.distribute_strategy.scope():
        rate = _learning_rate(config, phase, steps)
        if config.weight_decay:
            optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        else:
            optimizer = keras.optimizers.Adam(rate)
        smoothing = config.label_smoothing
        if config.focal_gamma:
            loss = keras.losses.CategoricalFocalCrossentropy(
                alpha=1.0, gamma=config.focal_gamma, label_smoothing=smoothing
            )
        else:
            loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        # Rotation and mixing have no XLA kernels, and on a single GPU Keras would choose XLA.
        trainer.compile(
            optimizer, loss, metrics=["accuracy"], weighted_metrics=[], jit_compile=False
        )
        trainer.optimizer.build(trainer.trainable_variables)


def plateau_rate(done: list[Row], rate: float, config: Config) -> float:
    """The learning rate after some epochs of a phase, as `keras.callbacks.ReduceLROnPlateau`.

    Args:
        done: the rows of the phase.
        rate: its first learning rate.
        config: `plateau_*` are used.
    """
    sign = -1 if "accuracy" in config.plateau_monitor else 1
    best, waited = math.inf, 0
    for row in done:
        value = sign * row[config.plateau_monitor]
        waited += 1
        if value < best - PLATEAU_DELTA:
            best, waited = value, 0
        elif waited >= config.plateau_patience and rate > config.plateau_min_rate:
            rate, waited = max(rate * config.plateau_factor, config.plateau_min_rate), 0
    return rate


def _rows_of(rows: list[Row], phase: Phase) -> list[Row]:
    return [row for row in rows if row["phase"] == phase.name]


def _is_over(done: list[Row], phase: Phase, config: Config) -> bool:
    """All epochs are done, or the loss on validation has not become better for too long."""
    if len(done) == phase.epochs:
        return True
    return bool(done) and len(done) - 1 - find_best(done) >= config.early_stopping_patience


def _cut(order: np.ndarray, replicas: int) -> np.ndarray:
    """As many images for each GPU: one that had none in the last batch would answer with NaN."""
    return order[: len(order) // replicas * replicas]


def _set_trainable(model: keras.Model, loaded: LoadedWeights, config: Config, phase: Phase) -> None:
    if phase.name == "frozen":
        freeze_pretrained(model, loaded)
    else:
        unfreeze(
            model,
            loaded,
            fine_tune_from=config.fine_tune_from,
            train_batch_norm=config.train_batch_norm,
        )


def _make_trainer(
    model: keras.Model,
    config: Config,
    phase: Phase,
    images: tuple[np.ndarray, ...],
    cache: Path | None,
) -> tuple[Trainer, list[np.ndarray]]:
    """What is trained in a phase, and on what.

    The model on images; where it pays, the part above the frozen stages on their output.
    """
    network, arrays = model, list(images)
    stage, augmentation = frozen_stage(model), None
    if config.cache_features and stage in CACHED_STAGES and phase.epochs > 1:
        augmentation = make_feature_augmentation(config.augmentation, seed=config.seed)
    if stage and augmentation:
        lower, network = split_model(model, stage, config.preprocessing)
        say(f"train: computing the output of the frozen stages up to {stage} once")
        facts = f"{stage} {config.preprocessing} {model.dtype_policy.name}"
        arrays = [
            _compute_features(lower, part, config.batch_size, facts, cache) for part in images
        ]
    with model.distribute_strategy.scope():
        synchronize_batch_norm(model, model.distribute_strategy.num_replicas_in_sync > 1)
        mixing = None
        if config.mixing != "none":
            mixing = Mixing(config.mixing, alpha=config.mixing_alpha, seed=config.seed)
        augmentation = augmentation or make_augmentation(config.augmentation, seed=config.seed)
        # A part that was split off has forgotten the precision that its layers have.
        return Trainer(network, augmentation, mixing, model.dtype_policy), arrays


def _compute_features(
    lower: keras.Model, images: np.ndarray, batch_size: int, facts: str, cache: Path | None
) -> np.ndarray:
    """The output of `lower` for each image, in half precision, which is plenty for features.

    `facts` says what `lower` does beside its weights.
    """
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    maps = run_batches(lower, batches, len(images), "frozen stages")
    halved = (batch.astype(np.float16) for batch in maps)
    key = make_key(images, facts, *lower.get_weights()) if cache else ""
    shape = (len(images), *lower.output_shape[1:])
    return make_array(shape, np.float16, halved, key=key, folder=cache)


def _learning_rate(config: Config, phase: Phase, steps: int) -> Any:
    if config.schedule == "plateau":
        return phase.learning_rate
    total = steps * phase.epochs
    warmup = max(1, round(WARMUP_SHARE * total))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=phase.learning_rate / 100,
        warmup_target=phase.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(1, total - warmup),
        alpha=0.01,
    )


def _seed_epoch(trainer: Trainer, seed: int, epoch: int) -> None:
    """Start dropout, augmentation and mixing from numbers that depend on nothing else."""
    states = [v for v in trainer.variables if v.path.endswith("seed_generator_state")]
    for index, state in enumerate(states):
        rng = np.random.default_rng([seed, epoch, index])
        state.assign(rng.integers(2**32, size=state.shape, dtype=np.uint32))


def _fit_epoch(
    trainer: Trainer,
    train_set: tf.data.Dataset,
    validation_set: tf.data.Dataset,
    epoch: int,
    phase: Phase,
    deadline: float,
    verbose: int,
) -> Row:
    """One epoch, numbered from 0, as a row of the history."""
    watch = _Watch(deadline)
    logs = trainer.fit(
        train_set,
        validation_data=validation_set,
        initial_epoch=epoch,
        epochs=epoch + 1,
        shuffle=False,  # the order is drawn already
        callbacks=[watch, keras.callbacks.TerminateOnNaN()],
        verbose=verbose,
    ).history
    values = {name: float(value[-1]) for name, value in logs.items()}
    if not all(map(math.isfinite, values.values())):
        raise FloatingPointError(
            f"the loss is no longer a number in phase {phase.name}: lower the learning rate"
        )
    return {
        "epoch": epoch + 1,
        "phase": phase.name,
        "learning_rate": float(keras.ops.convert_to_numpy(trainer.optimizer.learning_rate)),
        "seconds": round(time.monotonic() - watch.started, 2),
        "train_seconds": watch.trained - watch.started,
        **values,
    }


class _Watch(keras.callbacks.Callback):
    """Takes the time of an epoch, and ends it when the deadline comes."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline
        self.started = self.trained = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the end of training, which is not the end of the epoch: validation follows."""
        self.trained = time.monotonic()
        if self.trained > self.deadline:
            raise TimeIsUpError


def _require_time(rows: list[Row], phase: Phase, deadline: float) -> None:
    """Raise `TimeIsUpError` when another epoch of the phase would not end before the deadline."""
    longest = max((row["seconds"] for row in _rows_of(rows, phase)), default=0)
    if time.monotonic() + TIME_RESERVE * longest > deadline:
        raise TimeIsUpError


def _describe_epoch(rows: list[Row], phase: Phase, config: Config) -> str:
    """The last epoch in one line."""
    row, done = rows[-1], _rows_of(rows, phase)
    best = ", the best so far" if find_best(rows) == len(rows) - 1 else ""
    left = (phase.epochs - len(done)) * float(np.mean([row["seconds"] for row in done])) / 60
    return (
        f"train: epoch {row['epoch']} of {config.epochs} ({phase.name}): loss {row['loss']:.4f}, "
        f"validation loss {row['val_loss']:.4f}{best}, {row['images_per_second']:.1f} images/s, "
        f"at most {left:.0f} minutes left in this phase"
    )


def _write_summary(writer: Any, row: Row) -> None:
    """The figures of an epoch for TensorBoard."""
    with writer.as_default(step=row["epoch"]):
        for name, value in row.items():
            if isinstance(value, float):
                tf.summary.scalar(name, value)
    writer.flush()
