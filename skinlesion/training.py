"""Fit a model in phases: first the new layers, then the pretrained ones too."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from skinlesion.augmentation import make_augmentation
from skinlesion.config import Config
from skinlesion.files import write_csv
from skinlesion.input_pipeline import make_dataset
from skinlesion.labels import NUM_CLASSES
from skinlesion.model import LoadedWeights, freeze_pretrained, unfreeze
from skinlesion.workspace import progress_bar

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse regularisation strengths (scikit-learn's `C`) tried for a regression."""
MAX_ITERATIONS = 300
"""Of scikit-learn's solver; more changes little."""
MONITOR = "val_loss"
WARMUP_SHARE = 0.1
"""Share of a phase in which the cosine schedule rises to its rate: Goyal et al., arXiv:1706.02677,
warm up over the first 5 of 90 epochs; short runs need a larger share for the same effect."""


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
    verbose: int = 2,
) -> pd.DataFrame:
    """Train `model` in place, and leave it with the weights of its best epoch.

    The best epoch is the one with the lowest validation loss, over all phases; with balanced class
    weights this loss is balanced too, so what stops training is what training aims at.

    Args:
        model: from `build_model`.
        loaded: from `build_model`.
        config: the settings.
        train: uint8 images (n, height, width, 3) and int labels (n,).
        validation: the same.
        run: run directory; `history.csv` and `checkpoints/` are written there after each epoch.
        verbose: as for `keras.Model.fit`.

    Returns:
        The history: a row an epoch.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    weights = balanced_class_weights(train[1]) if config.class_weights == "balanced" else None
    size = config.batch_size
    train_set = make_dataset(
        *train, batch_size=size, class_weights=weights, shuffle_seed=config.seed
    )
    validation_set = make_dataset(*validation, batch_size=size, class_weights=weights)
    steps = len(train_set)

    # The augmentation is part of the training step but not of the model that is saved.
    trainer = keras.Sequential(
        [model.input, make_augmentation(config.augmentation, seed=config.seed), model],
        name="training",
    )
    log = HistoryLog(run / "history.csv", images=len(train[1]))
    best = run / "checkpoints" / "best.weights.h5"
    best.parent.mkdir(parents=True, exist_ok=True)
    best.unlink(missing_ok=True)  # of an interrupted run
    checkpoint = keras.callbacks.ModelCheckpoint(
        best, monitor=MONITOR, save_best_only=True, save_weights_only=True
    )
    first_epoch = 0
    for phase in plan_phases(config, loaded):
        if phase.name == "frozen":
            freeze_pretrained(model, loaded)
        else:
            unfreeze(
                model,
                loaded,
                fine_tune_from=config.fine_tune_from,
                train_batch_norm=config.train_batch_norm,
            )
        log.phase = phase.name
        trainer.compile(
            optimizer=keras.optimizers.Adam(_learning_rate(config, phase, steps)),
            loss="categorical_crossentropy",
            weighted_metrics=[],
            metrics=["accuracy"],
        )
        trainer.fit(
            train_set,
            validation_data=validation_set,
            initial_epoch=first_epoch,
            epochs=first_epoch + phase.epochs,
            callbacks=[log, checkpoint, keras.callbacks.TerminateOnNaN(), *_callbacks(config)],
            verbose=verbose,
        )
        if not best.is_file() or not np.isfinite(log.rows[-1]["loss"]):
            raise FloatingPointError(
                f"the loss is no longer a number in phase {phase.name}: lower the learning rate"
            )
        first_epoch += phase.epochs
        trainer.load_weights(best)
    return pd.DataFrame(log.rows)


def fit_regression(
    model: keras.Model,
    config: Config,
    *,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    run: Path,
) -> pd.DataFrame:
    """Fit the last layer of `model` in place as a logistic regression, the rest staying as it is.

    The features are computed once. Of `STRENGTHS`, the regularisation with the lowest validation
    loss is taken; with balanced class weights this loss is balanced too. The regression becomes
    the last layer's kernel and bias, so that everything else treats the model as any other.

    Args:
        model: from `build_model` with a pooled head.
        config: the settings.
        train: uint8 images (n, height, width, 3) and int labels (n,).
        validation: the same.
        run: run directory; `history.csv` is written there, a row for each of `STRENGTHS`.

    Returns:
        The history.
    """
    describe = keras.Model(model.input, model.get_layer("head_pool").output)
    parts = {}
    for name, (images, _) in (("train", train), ("validation", validation)):
        starts = range(0, len(images), config.batch_size)
        batches = [
            describe.predict_on_batch(images[i : i + config.batch_size].astype(np.float32))
            for i in progress_bar(starts, f"features, {name}", len(starts), unit="batch")
        ]
        parts[name] = np.concatenate(batches).astype(np.float64)
    scaler = StandardScaler().fit(parts["train"])
    balanced = "balanced" if config.class_weights == "balanced" else None
    weights = balanced_class_weights(train[1]) if balanced else np.ones(NUM_CLASSES)
    rows: list[dict[str, Any]] = []
    best: tuple[np.ndarray, np.ndarray] | None = None
    for strength in STRENGTHS:
        started = time.perf_counter()
        regression = LogisticRegression(C=strength, class_weight=balanced, max_iter=MAX_ITERATIONS)
        regression.fit(scaler.transform(parts["train"]), train[1])
        row = {"epoch": len(rows) + 1, "phase": "regression", "C": strength}
        for prefix, name, labels in (
            ("", "train", train[1]),
            ("val_", "validation", validation[1]),
        ):
            y_prob = np.zeros((len(labels), NUM_CLASSES))
            y_prob[:, regression.classes_] = regression.predict_proba(scaler.transform(parts[name]))
            row[f"{prefix}accuracy"] = float((y_prob.argmax(axis=1) == labels).mean())
            certain = np.maximum(y_prob[np.arange(len(labels)), labels], np.finfo(float).eps)
            row[f"{prefix}loss"] = float(np.average(-np.log(certain), weights=weights[labels]))
        row["images_per_second"] = round(len(train[1]) / (time.perf_counter() - started), 2)
        if not rows or row["val_loss"] < min(other["val_loss"] for other in rows):
            best = _as_layer(regression, scaler)
        rows.append(row)
        write_csv(run / "history.csv", pd.DataFrame(rows))
    assert best is not None
    model.layers[-1].set_weights(best)
    return pd.DataFrame(rows)


class HistoryLog(keras.callbacks.Callback):
    """Keeps `history.csv` up to date: epoch, phase, learning rate, images per second, metrics."""

    def __init__(self, path: Path, *, images: int) -> None:
        super().__init__()
        self.path = path
        self.images = images
        self.phase = ""
        self.rows: list[dict[str, Any]] = []
        self._started = self._trained = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._started = self._trained = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the end of training, which is not the end of the epoch: validation follows."""
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add a row and write the file."""
        row = {
            "epoch": epoch + 1,
            "phase": self.phase,
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "images_per_second": round(self.images / (self._trained - self._started), 2),
        }
        self.rows.append(row | {name: float(value) for name, value in (logs or {}).items()})
        write_csv(self.path, pd.DataFrame(self.rows))


def _as_layer(
    regression: LogisticRegression, scaler: StandardScaler
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a dense layer that says what scaler and regression say together."""
    features = len(scaler.mean_)
    kernel = np.zeros((features, NUM_CLASSES))
    # A class without training images gets no probability.
    bias = np.full(NUM_CLASSES, -1e4)
    scaled = regression.coef_ / scaler.scale_
    coefficients, intercepts = scaled, regression.intercept_ - scaled @ scaler.mean_
    if len(regression.classes_) == 2:  # scikit-learn keeps only the second class's
        coefficients = np.stack([np.zeros(features), coefficients[0]])
        intercepts = np.array([0.0, intercepts[0]])
    kernel[:, regression.classes_] = coefficients.T
    bias[regression.classes_] = intercepts
    return kernel, bias


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


def _callbacks(config: Config) -> list[keras.callbacks.Callback]:
    callbacks: list[keras.callbacks.Callback] = [
        keras.callbacks.EarlyStopping(
            MONITOR, patience=config.early_stopping_patience, restore_best_weights=True
        )
    ]
    if config.schedule == "plateau":
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                config.plateau_monitor,
                patience=config.plateau_patience,
                factor=config.plateau_factor,
                min_lr=config.plateau_min_rate,
            )
        )
    return callbacks
