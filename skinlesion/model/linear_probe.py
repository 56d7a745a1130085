"""Fit a logistic regression on features of the network, which itself stays as it is."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from skinlesion.config import Config
from skinlesion.diagnoses import NUM_CLASSES
from skinlesion.files import write_csv
from skinlesion.model.resnet50 import run_batches
from skinlesion.model.train import balanced_class_weights

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse regularisation strengths (scikit-learn's `C`) tried for a regression."""
MAX_ITERATIONS = 300
"""Of scikit-learn's solver; more changes little."""


def fit_regression(
    model: keras.Model,
    config: Config,
    *,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    out: Path,
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
        out: CSV file of the history: a row for each of `STRENGTHS`.

    Returns:
        The history.
    """
    describe = keras.Model(model.input, model.get_layer("head_pool").output)
    parts = {}
    for name, (images, _) in (("train", train), ("validation", validation)):
        size = config.batch_size
        batches = (images[i : i + size] for i in range(0, len(images), size))
        described = run_batches(describe, batches, len(images), f"features, {name}")
        parts[name] = np.concatenate(list(described)).astype(np.float64)
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
        write_csv(out, pd.DataFrame(rows))
    assert best is not None
    model.layers[-1].set_weights(best)
    return pd.DataFrame(rows)


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
