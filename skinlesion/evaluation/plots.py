"""Every plot. Each takes data, draws on the given Axes or new ones, and returns them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from skinlesion.data.split import SPLITS
from skinlesion.diagnoses import SYNTHETIC_NOTE, DatasetInfo
from skinlesion.evaluation.calibration import sum_malignant
from skinlesion.evaluation.metrics import BINS, find_malignant, format_figure
from skinlesion.files import write_atomically

COLUMNS = 4
"""Images in a row of a grid."""
NO_EPOCHS = (
    "No epoch was finished. Recipe probe has no epochs: see the table of the logistic regression. "
    "An ensemble has the curves of its members."
)


def plot_class_counts(split: pd.DataFrame, info: DatasetInfo, ax: Axes | None = None) -> Axes:
    """Bars: images of each diagnosis in each split. `split` has the columns `dx` and `split`."""
    ax = ax or _new_axes(7, 0.9 + 0.44 * len(info.labels))
    sns.countplot(split, y="dx", hue="split", order=info.labels, hue_order=SPLITS, ax=ax)
    ax.set(xlabel="images", ylabel="", title="Images of each diagnosis")
    ax.set_yticks(range(len(info.labels)), [f"{one.name} ({one.code})" for one in info.diagnoses])
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title=None, frameon=False)
    return ax


def plot_confusion_matrix(
    matrix: np.ndarray, labels: Sequence[str], *, normalize: bool = False, ax: Axes | None = None
) -> Axes:
    """Heatmap of a confusion matrix, int (classes, classes), rows true, columns predicted.

    Args:
        matrix: counts.
        labels: code of each class.
        normalize: show each row as shares of its class, so that the diagonal is the sensitivity.
        ax: where to draw.
    """
    ax = ax or _new_axes(max(6.4, 0.4 * len(labels) + 1), max(5.4, 0.4 * len(labels)))
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    sns.heatmap(
        shares,
        annot=shares if normalize else matrix,
        fmt=".2f" if normalize else "d",
        # Coloured by share in both forms: by count, the nevi would leave all else white.
        vmin=0,
        vmax=1,
        cmap="Blues",
        square=True,
        cbar=normalize,
        cbar_kws={"label": "share of the true class"},
        xticklabels=labels,
        yticklabels=[f"{c} ({n})" for c, n in zip(labels, totals[:, 0], strict=True)],
        ax=ax,
    )
    kind = "shares of each row" if normalize else "images"
    ax.set(xlabel="predicted", ylabel="true (images)", title=f"Confusion matrix, {kind}")
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_confusion_matrices(matrix: Any, labels: Sequence[str]) -> Figure:
    """Plot a confusion matrix twice: images, and shares of each row; arguments as there."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6.4, 10.4), layout="constrained")
    plot_confusion_matrix(np.asarray(matrix), labels, ax=upper)
    plot_confusion_matrix(np.asarray(matrix), labels, normalize=True, ax=lower)
    return figure


def plot_learning_curves(history: pd.DataFrame, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Plot loss and accuracy of training and validation by epoch.

    Args:
        history: from `Run.history`; without rows, a line says so instead.
        axes: two Axes, or None to make them.
    """
    if axes is None:
        height = 3.8 if len(history) else 0.4
        axes = plt.subplots(1, 2, figsize=(10, height))[1]
    axes = list(axes)
    if not len(history):
        for ax in axes:
            ax.axis("off")
        axes[0].text(0, 0.5, NO_EPOCHS)
        return axes
    for ax, figure in zip(axes, ("loss", "accuracy"), strict=True):
        for column, label in ((figure, "training"), (f"val_{figure}", "validation")):
            ax.plot(history["epoch"], history[column], marker="o", label=label)
        ax.set(xlabel="epoch", ylabel=figure)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return axes


def plot_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    colors: Sequence[str] | None = None,
    nothing: str = "no images",
) -> Figure:
    """A grid of images, uint8 (height, width, 3), each with a title; without any, `nothing`."""
    if not len(images):
        figure, ax = plt.subplots(figsize=(2.0 * COLUMNS, 0.4))
        ax.axis("off")  # a notebook shows no figure without axes
        ax.text(0, 0.5, nothing)
        return figure
    rows = -(-len(images) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(2.0 * COLUMNS, 1.9 * rows), squeeze=False, layout="constrained"
    )
    colors = colors or ["black"] * len(images)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title, color in zip(axes.flat, images, titles, colors, strict=False):
        ax.imshow(image)
        ax.set_title(title, color=color, fontsize=9)
    return figure


def plot_roc_curves(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    metrics: Mapping[str, Any],
    info: DatasetInfo,
    ax: Axes | None = None,
) -> Axes:
    """ROC curve of each class against the rest, and of malignant against benign, with AUC.

    Args:
        y_true: int (n,).
        y_prob: float (n, classes).
        metrics: of the same images, from `metrics.compute_metrics`.
        info: of the dataset.
        ax: where to draw.
    """
    ax = ax or _new_axes(5.6, 5.2)
    ax.plot([0, 1], [0, 1], color="lightgray", linestyle="--")
    for truth, score, style in _list_curves(y_true, y_prob, metrics, info, "auc"):
        ax.plot(*roc_curve(truth, score)[:2], **style)
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, one class against the rest")
    if len(ax.lines) > 1:  # images of one class alone have no curve
        ax.legend(fontsize=7, loc="lower right", title="AUC, 95 % interval", title_fontsize=7)
    return ax


def plot_precision_recall_curves(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    metrics: Mapping[str, Any],
    info: DatasetInfo,
    ax: Axes | None = None,
) -> Axes:
    """Precision-recall curves, with average precision. Arguments: `plot_roc_curves`."""
    ax = ax or _new_axes(7.6, 5.2)
    for truth, score, style in _list_curves(y_true, y_prob, metrics, info, "average_precision"):
        precision, recall, _ = precision_recall_curve(truth, score)
        ax.plot(recall, precision, drawstyle="steps-post", **style)
    ax.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", ylim=(0, 1.03))
    ax.set_title("Precision and recall, one class against the rest")
    title = "average precision, 95 % interval"
    if ax.lines:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        ax.legend(fontsize=7, title=title, title_fontsize=7, **place)
    return ax


def plot_reliability(
    y_true: np.ndarray, y_probs: Mapping[str, np.ndarray], ax: Axes | None = None
) -> Axes:
    """Reliability diagram: how often the top class is right, by how confident the model is.

    Args:
        y_true: int (n,).
        y_probs: name to float (n, classes), such as before and after calibration.
        ax: where to draw.
    """
    ax = ax or _new_axes(5.2, 5)
    ax.plot([0, 1], [0, 1], color="lightgray", linestyle="--", label="perfect calibration")
    for color, (name, y_prob) in enumerate(y_probs.items()):
        confidence, right = y_prob.max(axis=1), y_prob.argmax(axis=1) == y_true
        share, mean = calibration_curve(right, confidence.clip(0, 1), n_bins=BINS)
        ax.plot(mean, share, marker="o", markersize=4, color=f"C{color}", label=name)
        # A histogram along the bottom: points that stand on few images say little.
        height, edges = np.histogram(confidence, np.linspace(0, 1, BINS + 1))
        ax.stairs(0.2 * height / max(1, height.max()), edges, color=f"C{color}", alpha=0.6)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_title("Reliability (histogram: images at each confidence)", fontsize=10)
    ax.legend(loc="upper left")
    return ax


def plot_risk_coverage(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Plot errors and missed malignant images against the share of images that are predicted.

    Args:
        rows: from `decision_metrics.compute_selective_prediction`.
        ax: where to draw.
    """
    ax = ax or _new_axes(6, 4)
    coverage = [row["coverage"] for row in rows]
    names = {"error": "wrong predictions", "missed": "malignant images predicted as benign"}
    for name, label in names.items():
        if name in rows[0]:  # `missed` only if the dataset says which classes are malignant
            _plot_with_band(ax, coverage, [row[name] for row in rows], label)
    ax.set(
        xlabel="images predicted; the rest is left to a doctor",
        ylabel="share",
        xlim=(0, 1),
        ylim=(0, None),
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_title("Selective prediction")
    ax.legend()
    return ax


def plot_decision_curve(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Plot the net benefit of the model, and of calling all or no images malignant.

    Args:
        rows: from `decision_curve.compute_decision_curve`.
        ax: where to draw.
    """
    ax = ax or _new_axes(6, 4)
    thresholds = [row["threshold"] for row in rows]
    for name, label in {"model": "the model", "all": "all images called malignant"}.items():
        _plot_with_band(ax, thresholds, [row[name] for row in rows], label)
    ax.axhline(0, color="gray", linestyle="--", label="no image called malignant")
    ax.set(xlabel="threshold: malignant from this probability on", ylabel="net benefit")
    ax.set_ylim(bottom=-0.05)  # calling all images malignant falls far below
    ax.set_title("Decision curve, malignant against benign")
    ax.legend()
    return ax


def plot_forest(
    rows: pd.DataFrame, *, title: str, reference: float | None = None, ax: Axes | None = None
) -> Axes:
    """Figures with their intervals, one below the other.

    Args:
        rows: `label`, `value`, `low`, `high`.
        title: of the plot.
        reference: where to draw a line, such as the figure of all images, or 0 for differences.
        ax: where to draw.
    """
    ax = ax or _new_axes(6.5, 0.28 * len(rows) + 1.1)
    positions = np.arange(len(rows))
    if reference is not None:
        ax.axvline(reference, color="lightgray", linestyle="--")
    ax.hlines(positions, rows["low"], rows["high"], color="C0", linewidth=2, alpha=0.5)
    ax.plot(rows["value"], positions, "o", color="C0", markersize=5, clip_on=False)
    ax.set_yticks(positions, rows["label"], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_title(title)
    return ax


def plot_probabilities(probabilities: dict[str, float], ax: Axes | None = None) -> Axes:
    """Bars: the confidence of all classes for one image, by their names, the highest on top."""
    ax = ax or _new_axes(6, 0.7 + 0.3 * len(probabilities))
    names = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
    bars = ax.barh(names, [probabilities[name] for name in names])
    ax.bar_label(bars, fmt="{:.1%}", padding=3)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="confidence", ylabel="")
    return ax


def caption(figure: Figure | SubFigure, *, synthetic: bool) -> None:
    """Write below a figure that it was made from the synthetic sample, if it was."""
    if synthetic:
        figure.text(0.5, -0.02, SYNTHETIC_NOTE, ha="center", va="top", fontsize=9, color="dimgray")


def save_figure(figure: Figure | SubFigure, path: Path) -> Path:
    """Write a figure as PNG and close it."""
    whole = figure.figure
    write_atomically(path, lambda part: whole.savefig(part, dpi=120, bbox_inches="tight"))
    plt.close(whole)
    return path


def _new_axes(width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _plot_with_band(
    ax: Axes, x: Sequence[float], figures: Sequence[Mapping[str, Any]], label: str
) -> None:
    """Plot figures as a line, and their intervals as a band."""
    low, value, high = (
        np.array([figure[end] for figure in figures], float) for end in ("low", "value", "high")
    )
    ax.plot(x, value, marker="o", markersize=3, label=label)
    ax.fill_between(x, low, high, alpha=0.15)


def _list_curves(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    metrics: Mapping[str, Any],
    info: DatasetInfo,
    figure: str,
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """Truth, score and style of each class that has cases, and of malignant against benign."""
    curves = [
        (code, y_true == c, y_prob[:, c], metrics["per_class"][code][figure])
        for c, code in enumerate(info.labels)
    ]
    if (malignant := find_malignant(info)) is not None:
        overall = metrics["overall"][f"malignant_{figure}"]
        curves.append(("malignant", malignant[y_true], sum_malignant(y_prob, malignant), overall))
    for number, (name, truth, score, row) in enumerate(curves):
        is_last = number == len(info.labels)  # malignant, which a class may be called too
        style = {"linewidth": 2.5, "color": "black"} if is_last else {"linewidth": 1.2}
        if 0 < truth.sum() < len(y_true):
            yield truth, score, style | {"label": f"{name} {format_figure(row)}"}
