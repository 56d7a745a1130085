"""From truth and probabilities to every figure, with intervals. Never sees a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report, confusion_matrix

from skinlesion.errors import InputError, name_some
from skinlesion.files import write_csv
from skinlesion.labels import CLASS_CODES, ISIC_COLUMNS, NUM_CLASSES

DRAWS = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap draws: a 95 % interval (Efron and Tibshirani, 1993, chapter 13)."""


def compute_metrics(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Overall and per-class figures with 95 % intervals from a bootstrap over lesions.

    Images of one lesion resemble each other, so whole lesions are drawn, not images; intervals
    from images would be too narrow. A figure that is undefined, such as the sensitivity to a class
    without cases, is NaN. Means over classes are over those with at least one case. A draw that
    lacks one of these is left out for the figures that need it.

    Args:
        y_true: int (n,), labels 0 to 6.
        y_prob: float (n, 7), probabilities.
        groups: (n,), the lesion of each image; None takes every image as a lesion of its own.
        draws: bootstrap draws; 0 gives no intervals.
        seed: of the draws.

    Returns:
        `n`, `lesions`, `draws`; `overall`: figure to `{value, low, high, draws_left_out}`;
        `per_class`: `dx` code to `support` and figures in the same form; `confusion_matrix`,
        7 lists of 7 counts, rows true, columns predicted, in the order of `labels.DIAGNOSES`.
    """
    groups = np.arange(len(y_true)) if groups is None else np.asarray(groups)
    weights, lesions = _draw_weights(groups, draws=draws, seed=seed)
    overall, per_class = _weighted_figures(np.asarray(y_true), np.asarray(y_prob), weights)
    matrix = compute_confusion_matrix(y_true, np.asarray(y_prob).argmax(axis=1))
    return {
        "n": len(y_true),
        "lesions": lesions,
        "draws": draws,
        "overall": {name: _summarise(values) for name, values in overall.items()},
        "per_class": {
            code: {"support": int(matrix[label].sum())}
            | {name: _summarise(values[:, label]) for name, values in per_class.items()}
            for label, code in enumerate(CLASS_CODES)
        },
        "confusion_matrix": matrix.tolist(),
    }


def compute_confusion_matrix(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Counts, int (7, 7): rows true, columns predicted, in the order of `labels.DIAGNOSES`."""
    return confusion_matrix(y_true, y_pred, labels=range(NUM_CLASSES))


def compute_classification_report(y_true: np.ndarray, y_pred: np.ndarray) -> pd.DataFrame:
    """scikit-learn's report: precision, recall, F1 and support of each class, and their means."""
    report = classification_report(
        y_true,
        y_pred,
        labels=range(NUM_CLASSES),
        target_names=CLASS_CODES,
        output_dict=True,
        zero_division=np.nan,
    )
    # With all labels given, scikit-learn calls accuracy either "accuracy" or "micro avg".
    rows = {name: values for name, values in report.items() if isinstance(values, dict)}
    return pd.DataFrame(rows).T.astype({"support": int}).drop(index="micro avg", errors="ignore")


def metrics_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """The figures as a table for readers: scope, figure, value, low, high, support."""
    rows = [{"scope": "overall", "figure": name} | row for name, row in metrics["overall"].items()]
    for code, figures in metrics["per_class"].items():
        rows += [
            {"scope": code, "figure": name} | figures[name] for name in figures if name != "support"
        ]
    return pd.DataFrame(rows)


def write_predictions(path: Path, image_ids: list[str], y_prob: np.ndarray) -> Path:
    """Write probabilities in the form of ISIC 2018 Task 3: `image,MEL,NV,BCC,AKIEC,BKL,DF,VASC`.

    Args:
        path: CSV file to write.
        image_ids: names without `.jpg`.
        y_prob: float (n, 7), columns in the order of `labels.DIAGNOSES`.
    """
    columns = dict(zip([code.upper() for code in CLASS_CODES], y_prob.T, strict=True))
    table = pd.DataFrame({"image": image_ids} | {name: columns[name] for name in ISIC_COLUMNS})
    return write_csv(path, table)


def read_predictions(path: Path) -> tuple[list[str], np.ndarray]:
    """Read what `write_predictions` wrote, or any file of that form.

    Returns:
        The image ids, and float64 (n, 7) with columns in the order of `labels.DIAGNOSES`.

    Raises:
        InputError: not readable, missing columns, an image given twice, or values that are no
            numbers in [0, 1], by name.
    """
    try:
        table = pd.read_csv(path, dtype={"image": str})
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a predictions file ({error})") from error
    absent = [name for name in ("image", *ISIC_COLUMNS) if name not in table.columns]
    if absent:
        raise InputError(f"{path}: columns missing: {', '.join(absent)}")
    doubled = sorted(set(table.loc[table["image"].duplicated(), "image"].astype(str)))
    if doubled:
        raise InputError(f"{path}: image given more than once: {name_some(doubled)}")
    columns = [code.upper() for code in CLASS_CODES]
    values = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0) & (values <= 1)).all(axis=1)
    if wrong.any():
        names = table.loc[wrong, "image"].astype(str).tolist()
        raise InputError(f"{path}: values that are no numbers from 0 to 1 for {name_some(names)}")
    return table["image"].tolist(), values


def _draw_weights(groups: np.ndarray, *, draws: int, seed: int) -> tuple[np.ndarray, int]:
    """How often each image counts: float32 (1 + draws, n); the first row, all 1, is the data."""
    _, group_of = np.unique(groups, return_inverse=True)
    count = int(group_of.max()) + 1 if len(group_of) else 0
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=draws)
    return np.vstack([np.ones(len(groups)), times[:, group_of]]).astype(np.float32), count


def _weighted_figures(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every figure for every row of weights: overall (d,) and per class (d, 7)."""
    cells = np.eye(NUM_CLASSES**2, dtype=np.float32)[y_true * NUM_CLASSES + y_prob.argmax(axis=1)]
    matrices = (weights @ cells).reshape(-1, NUM_CLASSES, NUM_CLASSES).astype(np.float64)
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    support, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    total = support.sum(axis=1)
    others = total[:, None] - support
    sensitivity = _divide(hits, support)
    f1 = np.where(support > 0, _divide(2 * hits, support + predicted), np.nan)
    auc = np.stack(
        [_weighted_auc(y_true == c, y_prob[:, c], weights) for c in range(NUM_CLASSES)], axis=1
    )
    per_class = {
        "sensitivity": sensitivity,
        "specificity": _divide(others - (predicted - hits), others),
        "ppv": _divide(hits, predicted),
        "npv": _divide(others - (predicted - hits), total[:, None] - predicted),
        "f1": f1,
        "auc": auc,
    }
    # Classes without a case in the data itself are outside every mean; a draw that lacks another
    # class gives NaN and is left out by `_summarise`.
    present = support[0] > 0
    overall = {
        "accuracy": _divide(hits.sum(axis=1), total),
        "balanced_accuracy": sensitivity[:, present].mean(axis=1),
        "macro_f1": f1[:, present].mean(axis=1),
        "weighted_f1": _divide(np.nansum(support * f1, axis=1), total),
        "macro_auc": auc[:, present].mean(axis=1),
    }
    return overall, per_class


def _weighted_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for every row of weights, (d,): the Mann-Whitney statistic.

    Ties count half. Held to scikit-learn's `roc_auc_score` by a test; one call for all draws.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    sorted_weights = weights[:, order].astype(np.float64)
    mass = np.add.reduceat(sorted_weights, starts, axis=1)
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    negatives = mass - positives
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return _divide((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise quotient; NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def _summarise(values: np.ndarray) -> dict[str, float | int]:
    """The value of the data (first entry) and the percentiles of the draws (the rest)."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, INTERVAL) if len(drawn) else (np.nan, np.nan)
    return {
        "value": float(values[0]),
        "low": float(low),
        "high": float(high),
        "draws_left_out": len(values) - 1 - len(drawn),
    }
