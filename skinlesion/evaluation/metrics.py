"""From truth and probabilities to every figure, with intervals. No model is needed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import (
    N_BOOTSTRAP,
    Figure,
    divide,
    draw_weights,
    summarise,
)

BINS = 15
"""Bins of equal width for the expected calibration error: Guo et al., arXiv:1706.04599."""


def compute_metrics(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    info: DatasetInfo,
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute overall and per-class figures with 95 % intervals from a bootstrap over lesions.

    Lesions are resampled, not images, which resemble each other. An undefined figure, such as the
    sensitivity to a class without cases, is NaN; means are over classes with cases. Where all cases
    are right, the interval has no width, but the truth may be 1 - 3 / n (rule of three, n lesions).

    Log loss is in nats, the Brier score is 0 to 2 (Brier 1950), kappa is Cohen's (1960), `mcc` is
    Matthews' correlation for several classes (Gorodkin 2004), `ece` is the expected calibration
    error of the highest probability in `BINS` bins (Guo et al. 2017), `malignant_*`, if `info` says
    what is malignant, is against benign. The predicted class is the most probable, first of equals.

    Args:
        y_true: int (n,), labels, n at least 1.
        y_prob: float (n, classes), probabilities.
        info: of the dataset.
        groups: (n,), the lesion of each image; None: every image is a lesion of its own.
        n_bootstrap: resamples; 0 gives no intervals.
        seed: of the resamples.

    Returns:
        `n`, `lesions`, `n_bootstrap`; `overall`: name to `Figure`; `per_class`: `dx` code to
        `support` and figures; `confusion_matrix`, counts, rows true, columns predicted.

    Raises:
        InputError: there are no images.
    """
    weights, lesions = draw_weights(len(y_true), groups, n_bootstrap=n_bootstrap, seed=seed)
    overall, per_class = compute_figures(np.asarray(y_true), np.asarray(y_prob), weights, info)
    matrix = compute_confusion_matrix(y_true, np.asarray(y_prob).argmax(axis=1), info)
    return {
        "n": len(y_true),
        "lesions": lesions,
        "n_bootstrap": n_bootstrap,
        "overall": {name: summarise(values) for name, values in overall.items()},
        "per_class": {
            code: {"support": int(matrix[label].sum())}
            | {name: summarise(values[:, label]) for name, values in per_class.items()}
            for label, code in enumerate(info.labels)
        },
        "confusion_matrix": matrix.tolist(),
    }


def compute_figures(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray, info: DatasetInfo
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Compute every figure for every row of weights, without intervals.

    Args:
        y_true: int (n,), labels.
        y_prob: float (n, classes), probabilities.
        weights: float (d, n), from `draw_weights`.
        info: of the dataset.

    Returns:
        The overall figures, name to float64 (d,), and those of each class, name to (d, classes);
        they are described at `compute_metrics`. NaN where a figure is undefined.
    """
    classes = len(info.labels)
    cells = np.eye(classes**2, dtype=np.float32)[y_true * classes + y_prob.argmax(axis=1)]
    matrices = (weights @ cells).reshape(-1, classes, classes).astype(np.float64)
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    support, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    total = support.sum(axis=1)
    others = total[:, None] - support
    sensitivity = divide(hits, support)
    f1 = np.where(support > 0, divide(2 * hits, support + predicted), np.nan)
    ranked = [_weighted_ranking(y_true == c, y_prob[:, c], weights) for c in range(classes)]
    auc, average_precision = (np.stack(figure, axis=1) for figure in zip(*ranked, strict=True))
    per_class = {
        "sensitivity": sensitivity,
        "specificity": divide(others - (predicted - hits), others),
        "ppv": divide(hits, predicted),
        "npv": divide(others - (predicted - hits), total[:, None] - predicted),
        "f1": f1,
        "auc": auc,
        "average_precision": average_precision,
    }
    # Classes without a case in the data itself are outside every mean; a resample that lacks
    # another class gives NaN and is left out by `summarise`.
    present = support[0] > 0
    overall = {
        "accuracy": divide(hits.sum(axis=1), total),
        "balanced_accuracy": sensitivity[:, present].mean(axis=1),
        "macro_f1": f1[:, present].mean(axis=1),
        "weighted_f1": divide(np.nansum(support * f1, axis=1), total),
        **_agreement(hits.sum(axis=1), support, predicted),
        "macro_auc": auc[:, present].mean(axis=1),
        "macro_average_precision": average_precision[:, present].mean(axis=1),
        **_weighted_malignancy(y_true, y_prob, weights, find_malignant(info)),
        **_weighted_losses(y_true, y_prob, weights),
    }
    return overall, per_class


def compute_confusion_matrix(
    y_true: np.ndarray, y_pred: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Count images, int (classes, classes): rows true, columns predicted, as `info.labels`."""
    return confusion_matrix(y_true, y_pred, labels=range(len(info.labels)))


def compute_classification_report(
    y_true: np.ndarray, y_pred: np.ndarray, info: DatasetInfo
) -> pd.DataFrame:
    """scikit-learn's report: precision, recall, F1 and support of each class, and their means."""
    report = classification_report(
        y_true,
        y_pred,
        labels=range(len(info.labels)),
        target_names=info.labels,
        output_dict=True,
        zero_division=np.nan,
    )
    # With all labels given, scikit-learn calls accuracy either "accuracy" or "micro avg".
    rows = {name: values for name, values in report.items() if isinstance(values, dict)}
    return pd.DataFrame(rows).T.astype({"support": int}).drop(index="micro avg", errors="ignore")


def list_figures(metrics: dict[str, Any]) -> pd.DataFrame:
    """All figures, for `metrics.csv`: scope, figure, value, low, high, undefined_resamples."""
    rows = [{"scope": "overall", "figure": name} | row for name, row in metrics["overall"].items()]
    for code, figures in metrics["per_class"].items():
        rows += [
            {"scope": code, "figure": name} | figures[name] for name in figures if name != "support"
        ]
    return pd.DataFrame(rows)


def format_figure(figure: Figure | int) -> str:
    """Write a figure with its interval, such as `0.725 [0.678, 0.770]`, or a count."""
    if not isinstance(figure, Mapping):
        return f"{figure:,}"
    # JSON has null for what is not defined.
    numbers = [float("nan") if figure[k] is None else figure[k] for k in ("value", "low", "high")]
    return "{:.3f} [{:.3f}, {:.3f}]".format(*numbers)


def find_malignant(info: DatasetInfo) -> np.ndarray | None:
    """Which labels are malignant, bool (classes,); None: the dataset does not say so."""
    return None if info.malignant is None else np.array(info.malignant)


def compare_predictions(
    y_true: np.ndarray,
    y_prob_a: np.ndarray,
    y_prob_b: np.ndarray,
    info: DatasetInfo,
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Two models on the same images: differences B - A with intervals, and McNemar's test.

    Each resample of lesions is used for both models, so what makes images hard for both
    cancels out. McNemar's test (McNemar 1947; here exact, on the binomial distribution) takes
    images as independent, which images of one lesion are not: with many images a lesion its p value
    is too small.

    Returns:
        `n`, `lesions`, `n_bootstrap`; `figures`: a list of `scope` (`overall` or a `dx` code),
        `figure`, `a`, `b`, `difference`, `low`, `high`, `undefined_resamples`; `mcnemar`: the
        images that only A and that only B got right, and the two-sided p value.
    """
    weights, lesions = draw_weights(len(y_true), groups, n_bootstrap=n_bootstrap, seed=seed)
    figures = []
    sides = [compute_figures(y_true, y_prob, weights, info) for y_prob in (y_prob_a, y_prob_b)]
    (overall_a, per_class_a), (overall_b, per_class_b) = sides
    pairs = [("overall", name, overall_a[name], overall_b[name]) for name in overall_a]
    pairs += [
        (code, name, per_class_a[name][:, label], per_class_b[name][:, label])
        for label, code in enumerate(info.labels)
        for name in per_class_a
    ]
    for scope, name, a, b in pairs:
        row: dict[str, Any] = {"scope": scope, "figure": name, "a": float(a[0]), "b": float(b[0])}
        difference = summarise(b - a)
        figures.append(row | {"difference": difference.pop("value")} | difference)
    right_a, right_b = (y.argmax(axis=1) == y_true for y in (y_prob_a, y_prob_b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {
        "n": len(y_true),
        "lesions": lesions,
        "n_bootstrap": n_bootstrap,
        "figures": figures,
        "mcnemar": {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)},
    }


def _weighted_malignancy(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray, malignant: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Malignant against benign, (d,) each."""
    if malignant is None:
        return {}
    names = ("malignant_auc", "malignant_average_precision")
    found = _weighted_ranking(malignant[y_true], y_prob[:, malignant].sum(axis=1), weights)
    return dict(zip(names, found, strict=True))


def _agreement(
    right: np.ndarray, support: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """Cohen's kappa and Matthews' correlation, (d,) each, from counts (d,) and (d, classes)."""
    total, chance = support.sum(axis=1), (support * predicted).sum(axis=1)
    spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (support**2).sum(axis=1))
    return {
        "cohen_kappa": divide(total * right - chance, total**2 - chance),
        "mcc": divide(total * right - chance, np.sqrt(spread)),
    }


def _weighted_losses(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Log loss, Brier score and calibration error, (d,) each."""
    total = weights.sum(axis=1, dtype=np.float64)
    one_hot = np.eye(y_prob.shape[1])[y_true]
    # As scikit-learn does: a probability of 0 for the truth would make the loss infinite.
    certain = np.clip(y_prob[np.arange(len(y_true)), y_true], np.finfo(np.float64).eps, 1)
    return {
        "log_loss": divide(weights @ -np.log(certain), total),
        "brier": divide(weights @ ((y_prob - one_hot) ** 2).sum(axis=1), total),
        "ece": _weighted_calibration_error(y_true, y_prob, weights),
    }


def _weighted_ranking(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision for every row of weights, (d,) each.

    The area is the Mann-Whitney statistic, ties counting half; average precision is the sum over
    thresholds of precision times gain in recall. Both are held to scikit-learn's values by a test;
    scikit-learn would need one call for each resample.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    sorted_weights = weights[:, order].astype(np.float64)
    mass = np.add.reduceat(sorted_weights, starts, axis=1)
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    negatives = mass - positives
    all_positives = positives.sum(axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    auc = divide((positives * below).sum(axis=1), all_positives * negatives.sum(axis=1))
    # From the highest score down: what is called positive, and how much of it is.
    called, found = (np.cumsum(part[:, ::-1], axis=1)[:, ::-1] for part in (mass, positives))
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return auc, divide((positives * precision).sum(axis=1), all_positives)


def _weighted_calibration_error(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    confidence = y_prob.max(axis=1)
    bins = np.eye(BINS)[np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)]
    gap = (confidence - (y_prob.argmax(axis=1) == y_true))[:, None] * bins
    return divide(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1, dtype=np.float64))
