"""Fit the last layer as a logistic regression on the features of the pretrained layers."""

from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from skinlesion.config import Config
from skinlesion.files import InputError, write_csv
from skinlesion.machine import progress_bar, say
from skinlesion.model.resnet50 import find_part, pretrained_weights
from skinlesion.model.run import Run

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse regularisation strengths (scikit-learn's `C`) that are tried."""
COLUMNS = ["C", "accuracy", "loss", "val_accuracy", "val_loss"]
"""Of the table: the strength, then the figures of the training and the validation images."""
MAX_ITERATIONS = 300
"""Of scikit-learn's solver; more changes little."""


def fit_linear_probe(
    model: keras.Sequential,
    train: tf.data.Dataset,
    validation: tf.data.Dataset,
    run: Run,
    config: Config,
) -> pd.DataFrame:
    """Fit the last layer of `model` in place as a logistic regression; the rest stays as it is.

    Of `STRENGTHS`, the one with the lowest weighted validation loss is taken. Starting from a
    fitted head keeps the pretrained layers from being distorted by the first steps of fine-tuning
    (Kumar et al., arXiv:2202.10054). Nothing is done if the settings do not ask for it, before
    epochs that start from random weights, and for a run that already has finished epochs.

    Args:
        model: from `build_model` with a pooled head.
        train: from `make_datasets`.
        validation: from `make_datasets`.
        run: gets `linear_probe.csv`, a row for each of `STRENGTHS`.
        config: the settings.

    Returns:
        The same table: `COLUMNS`; without rows if nothing was fitted.

    Raises:
        InputError: the head has other layers than `build_model` gave it.
    """
    path = run.folder / "linear_probe.csv"
    if run.has_finished_epochs and path.is_file():
        return pd.read_csv(path)
    from_scratch = bool(config.epochs) and not pretrained_weights(model).layers
    if not config.linear_probe or from_scratch or run.has_finished_epochs:
        return pd.DataFrame(columns=COLUMNS, dtype=float)
    _require_own_head(model)
    say("train: fitting the head as a logistic regression")
    classifier = find_part(model, "classifier")
    described = _describe(classifier, train, "features, train")
    table, best = _try_strengths(
        *described,
        *_describe(classifier, validation, "features, validation"),
        num_classes=classifier.output_shape[-1],
    )
    find_part(model, "head").get_layer("probabilities").set_weights(best)
    write_csv(path, table)
    return table


def _try_strengths(
    x: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    val_x: np.ndarray,
    val_labels: np.ndarray,
    val_weights: np.ndarray,
    *,
    num_classes: int,
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """A row for each of `STRENGTHS`, and the weights of the last layer for the best of them."""
    if len(np.unique(labels)) < 2:
        raise InputError(
            "the training images are all of one class; raise limit, under another name of the run"
        )
    scaler = StandardScaler().fit(x)
    rows: list[dict[str, float]] = []
    best: list[np.ndarray] = []
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
        regression.fit(scaler.transform(x), labels, sample_weight=weights)
        row = {"C": strength} | _measure(regression, scaler.transform(x), labels, weights, "")
        row |= _measure(regression, scaler.transform(val_x), val_labels, val_weights, "val_")
        if not rows or row["val_loss"] < min(other["val_loss"] for other in rows):
            best = _to_layer(regression, scaler, num_classes)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS), best


def _require_own_head(model: keras.Sequential) -> None:
    layers = [layer.name for layer in find_part(model, "head").layers]
    if layers != ["pool", "probabilities"]:
        raise InputError(
            f"the logistic regression fits the recipe's own head, and this one has the layers "
            f"{', '.join(layers)}: set linear_probe to False"
        )


def _describe(
    classifier: keras.Sequential, images: tf.data.Dataset, title: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float64 (n, channels), labels int (n,) and weights float (n,) of a dataset."""
    head = classifier.get_layer("head")
    image = keras.Input(classifier.input_shape[1:])
    maps = classifier.get_layer("backbone")(classifier.get_layer("preprocessing")(image))
    describe = keras.Model(image, head.get_layer("pool")(maps))
    shape = (None, *classifier.input_shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def compute(batch: tf.Tensor) -> tf.Tensor:
        return describe(batch, training=False)

    parts: list[tuple[Any, ...]] = []
    for batch, labels, weights in progress_bar(images, title, len(images), unit="batches"):
        parts.append((compute(batch).numpy(), labels.numpy(), weights.numpy()))
    features, labels, weights = map(np.concatenate, zip(*parts, strict=True))
    return features.astype(np.float64), labels, weights


def _measure(
    regression: LogisticRegression,
    x: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    name: str,
) -> dict[str, float]:
    """Accuracy and weighted log loss in nats, with `name` in front of their names."""
    # A class without training images has no column.
    probabilities = regression.predict_proba(x)
    of_truth = np.where(regression.classes_ == labels[:, None], probabilities, 0).sum(axis=1)
    certain = np.maximum(of_truth, np.finfo(float).eps)
    return {
        f"{name}accuracy": float((regression.predict(x) == labels).mean()),
        f"{name}loss": float(np.average(-np.log(certain), weights=weights)),
    }


def _to_layer(
    regression: LogisticRegression, scaler: StandardScaler, num_classes: int
) -> list[np.ndarray]:
    """Kernel and bias of the dense layer that does what scaler and regression do together."""
    kernel = np.zeros((len(scaler.mean_), num_classes))
    # A class without training images gets no probability.
    bias = np.full(num_classes, -1e4)
    coefficients = regression.coef_ / scaler.scale_
    intercepts = regression.intercept_ - coefficients @ scaler.mean_
    if len(regression.classes_) == 2:  # scikit-learn keeps only the second class's
        coefficients = np.stack([np.zeros(len(scaler.mean_)), coefficients[0]])
        intercepts = np.array([0.0, intercepts[0]])
    kernel[:, regression.classes_] = coefficients.T
    bias[regression.classes_] = intercepts
    return [kernel, bias]
