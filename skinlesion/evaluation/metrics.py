"""From truth and probabilities to every figure, with intervals. Never sees a model."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

from skinlesion.diagnoses import CLASS_CODES, DIAGNOSES, NUM_CLASSES
from skinlesion.files import InputError

DRAWS = 1000
BINS = 15
"""Bins of equal width for the expected calibration error: Guo et al., arXiv:1706.04599."""
MALIGNANT = np.array([diagnosis.malignant for diagnosis in DIAGNOSES])
"""bool (7,): which labels are malignant."""
AGE_BANDS = {"0 to 29": 0, "30 to 49": 30, "50 to 69": 50, "70 and more": 70}
"""Name and first year of each age band."""
SUBGROUP_FIGURES = ("accuracy", "balanced_accuracy", "malignant_auc")
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
    lacks one of these is left out for the figures that need it. Where all cases of a class are
    right, every draw says 1 and the interval has no width: that is a limit of the bootstrap, not
    certainty; with n lesions the true value may well be as low as 1 - 3 / n (the rule of three).

    Overall: accuracy; balanced accuracy, the mean sensitivity; macro and support-weighted F1;
    Cohen's kappa (Cohen 1960); Matthews' correlation for several classes (Gorodkin 2004); mean
    one-against-rest area under the ROC curve and mean average precision; both again for malignant
    (mel, bcc, akiec together) against benign; log loss in nats; Brier score, 0 to 2 (Brier 1950);
    expected calibration error of the highest probability in `BINS` bins (Guo et al. 2017). The
    predicted class is the most probable one, of equals the first in the order of the labels.

    Args:
        y_true: int (n,), labels 0 to 6, n at least 1.
        y_prob: float (n, 7), probabilities.
        groups: (n,), the lesion of each image; None takes every image as a lesion of its own.
        draws: bootstrap draws; 0 gives no intervals.
        seed: of the draws.

    Raises:
        InputError: no images.

    Returns:
        `n`, `lesions`, `draws`; `overall`: figure to `{value, low, high, draws_left_out}`;
        `per_class`: `dx` code to `support` and figures in the same form; `confusion_matrix`,
        7 lists of 7 counts, rows true, columns predicted, in the order of `labels.DIAGNOSES`.
    """
    weights, lesions = draw_weights(len(y_true), groups, draws=draws, seed=seed)
    overall, per_class = _weighted_figures(np.asarray(y_true), np.asarray(y_prob), weights)
    matrix = compute_confusion_matrix(y_true, np.asarray(y_prob).argmax(axis=1))
    return {
        "n": len(y_true),
        "lesions": lesions,
        "draws": draws,
        "overall": {name: summarise(values) for name, values in overall.items()},
        "per_class": {
            code: {"support": int(matrix[label].sum())}
            | {name: summarise(values[:, label]) for name, values in per_class.items()}
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


def format_figure(figure: Mapping[str, float] | int) -> str:
    """A figure with its interval, such as `0.725 [0.678, 0.770]`; a count as it is."""
    if not isinstance(figure, Mapping):
        return f"{figure:,}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def compute_subgroups(
    y_true: np.ndarray, y_prob: np.ndarray, rows: pd.DataFrame, *, draws: int = DRAWS
) -> pd.DataFrame:
    """The figures within each sex, age band, body site and way of diagnosis.

    Balanced accuracy is the mean over the classes that a subgroup has, so that subgroups with
    different classes are not quite comparable; their support stands beside them.

    Args:
        y_true: int (n,).
        y_prob: float (n, 7).
        rows: n rows with `lesion_id` and any of `sex`, `age` (years), `localization`, `dx_type`.
        draws: bootstrap draws.

    Returns:
        `attribute`, `subgroup`, `images`, `lesions`, `malignant` (images), `melanomas` (images),
        `figure`, `value`, `low`, `high`, `draws_left_out`.
    """
    found = []
    for attribute, subgroup, chosen in _subgroups(rows):
        metrics = compute_metrics(
            y_true[chosen], y_prob[chosen], groups=rows["lesion_id"][chosen], draws=draws
        )
        support: dict[str, Any] = {
            "attribute": attribute,
            "subgroup": subgroup,
            "images": metrics["n"],
            "lesions": metrics["lesions"],
            "malignant": int(MALIGNANT[y_true[chosen]].sum()),
            "melanomas": metrics["per_class"]["mel"]["support"],
        }
        figures: dict[str, dict[str, Any]] = {n: metrics["overall"][n] for n in SUBGROUP_FIGURES}
        figures["sensitivity_mel"] = metrics["per_class"]["mel"]["sensitivity"]
        found += [support | {"figure": name} | row for name, row in figures.items()]
    return pd.DataFrame(found)


def compare_predictions(
    y_true: np.ndarray,
    y_prob_a: np.ndarray,
    y_prob_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Two models on the same images: differences B - A with intervals, and McNemar's test.

    Each bootstrap draw of lesions is used for both models, so what makes images hard for both
    cancels out. McNemar's test (McNemar 1947; here exact, on the binomial distribution) takes
    images as independent, which images of one lesion are not: with many images a lesion its p value
    is too small.

    Returns:
        `n`, `lesions`, `draws`; `figures`: a list of `{scope, figure, a, b, difference, low, high,
        draws_left_out}` with scope `overall` or a `dx` code; `mcnemar`: images that only A and that
        only B got right, and the two-sided p value.
    """
    weights, lesions = draw_weights(len(y_true), groups, draws=draws, seed=seed)
    figures = []
    sides = [_weighted_figures(y_true, y_prob, weights) for y_prob in (y_prob_a, y_prob_b)]
    (overall_a, per_class_a), (overall_b, per_class_b) = sides
    pairs = [("overall", name, overall_a[name], overall_b[name]) for name in overall_a]
    pairs += [
        (code, name, per_class_a[name][:, label], per_class_b[name][:, label])
        for label, code in enumerate(CLASS_CODES)
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
        "draws": draws,
        "figures": figures,
        "mcnemar": {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)},
    }


def draw_weights(
    count: int, groups: np.ndarray | None = None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, int]:
    """A bootstrap over lesions, as weights: how often each image counts in each draw.

    Args:
        count: number of images.
        groups: (count,), the lesion of each image; None takes every image as a lesion of its own.
        draws: number of draws.
        seed: of the draws.

    Returns:
        float32 (1 + draws, count), the first row, all 1, being the data itself; and the number of
        lesions.
    """
    if not count:
        raise InputError("there are no images to compute figures from")
    groups = np.arange(count) if groups is None else np.asarray(groups)
    _, group_of = np.unique(groups, return_inverse=True)
    lesions = int(group_of.max()) + 1
    rng = np.random.default_rng(seed)
    times = rng.multinomial(lesions, np.full(lesions, 1 / lesions), size=draws)
    return np.vstack([np.ones(count), times[:, group_of]]).astype(np.float32), lesions


def summarise(values: np.ndarray) -> dict[str, float | int]:
    """A figure and its interval.

    Args:
        values: float (1 + draws,): of the data, then of the draws; NaN where undefined.

    Returns:
        `value`; `low` and `high`, the percentiles of the draws; `draws_left_out`, those with NaN.
    """
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, INTERVAL) if len(drawn) else (np.nan, np.nan)
    return {
        "value": float(values[0]),
        "low": float(low),
        "high": float(high),
        "draws_left_out": len(values) - 1 - len(drawn),
    }


def compute_share(
    hits: np.ndarray, cases: np.ndarray, weights: np.ndarray
) -> dict[str, float | int]:
    """The share of `cases` that are `hits`, with its interval; or the mean of `hits` over them.

    Args:
        hits: (n,), bool, or numbers to take the mean of.
        cases: bool (n,); NaN results where none is true.
        weights: from `draw_weights`.
    """
    cases = np.asarray(cases, np.float64)
    return summarise(_divide(weights @ (np.asarray(hits) * cases), weights @ cases))


def _subgroups(rows: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Attribute, subgroup, and which rows are in it: bool (n,)."""
    table = rows.reset_index(drop=True)
    if "age" in table:
        edges = [*AGE_BANDS.values(), np.inf]
        age = pd.to_numeric(table["age"], errors="coerce")
        table["age"] = pd.cut(age, edges, right=False, labels=list(AGE_BANDS)).astype(object)
    for attribute in ("sex", "age", "localization", "dx_type"):
        if attribute in table:
            values = table[attribute].fillna("unknown").astype(str)
            for subgroup in sorted(values.unique()):
                yield attribute, subgroup, (values == subgroup).to_numpy()


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
    ranked = [_weighted_ranking(y_true == c, y_prob[:, c], weights) for c in range(NUM_CLASSES)]
    auc, average_precision = (np.stack(figure, axis=1) for figure in zip(*ranked, strict=True))
    per_class = {
        "sensitivity": sensitivity,
        "specificity": _divide(others - (predicted - hits), others),
        "ppv": _divide(hits, predicted),
        "npv": _divide(others - (predicted - hits), total[:, None] - predicted),
        "f1": f1,
        "auc": auc,
        "average_precision": average_precision,
    }
    # Classes without a case in the data itself are outside every mean; a draw that lacks another
    # class gives NaN and is left out by `summarise`.
    present = support[0] > 0
    right = hits.sum(axis=1)
    chance = (support * predicted).sum(axis=1)
    malignant = _weighted_ranking(MALIGNANT[y_true], y_prob[:, MALIGNANT].sum(axis=1), weights)
    one_hot = np.eye(NUM_CLASSES)[y_true]
    # As scikit-learn does: a probability of 0 for the truth would make the loss infinite.
    certain = np.clip(y_prob[np.arange(len(y_true)), y_true], np.finfo(np.float64).eps, 1)
    overall = {
        "accuracy": _divide(right, total),
        "balanced_accuracy": sensitivity[:, present].mean(axis=1),
        "macro_f1": f1[:, present].mean(axis=1),
        "weighted_f1": _divide(np.nansum(support * f1, axis=1), total),
        "cohen_kappa": _divide(total * right - chance, total**2 - chance),
        "mcc": _divide(
            total * right - chance,
            np.sqrt(
                (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (support**2).sum(axis=1))
            ),
        ),
        "macro_auc": auc[:, present].mean(axis=1),
        "macro_average_precision": average_precision[:, present].mean(axis=1),
        "malignant_auc": malignant[0],
        "malignant_average_precision": malignant[1],
        "log_loss": _divide(weights @ -np.log(certain), total),
        "brier": _divide(weights @ ((y_prob - one_hot) ** 2).sum(axis=1), total),
        "ece": _weighted_calibration_error(y_true, y_prob, weights),
    }
    return overall, per_class


def _weighted_ranking(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision for every row of weights, (d,) each.

    The area is the Mann-Whitney statistic, ties counting half; average precision is the sum over
    thresholds of precision times gain in recall. Both are held to scikit-learn's values by a test;
    scikit-learn would need one call for each draw.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    sorted_weights = weights[:, order].astype(np.float64)
    mass = np.add.reduceat(sorted_weights, starts, axis=1)
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    negatives = mass - positives
    all_positives = positives.sum(axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    auc = _divide((positives * below).sum(axis=1), all_positives * negatives.sum(axis=1))
    # From the highest score down: what is called positive, and how much of it is.
    called, found = (np.cumsum(part[:, ::-1], axis=1)[:, ::-1] for part in (mass, positives))
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return auc, _divide((positives * precision).sum(axis=1), all_positives)


def _weighted_calibration_error(
    y_true: np.ndarray, y_prob: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    confidence = y_prob.max(axis=1)
    bins = np.eye(BINS)[np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)]
    gap = (confidence - (y_prob.argmax(axis=1) == y_true))[:, None] * bins
    return _divide(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1, dtype=np.float64))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise quotient; NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
