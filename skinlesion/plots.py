"""Every figure: takes data and an Axes or makes one, returns the Axes, never calls `show()`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from skinlesion.files import write_atomically
from skinlesion.labels import CLASS_CODES, CLASS_NAMES, SYNTHETIC_NOTE
from skinlesion.split import SPLITS

RIGHT, WRONG = "green", "red"


def plot_class_counts(split: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Bars: images of each diagnosis in each split. `split` has the columns `dx` and `split`."""
    ax = ax or _new_axes(7, 4)
    sns.countplot(
        split, y="dx", hue="split", order=list(CLASS_CODES), hue_order=list(SPLITS), ax=ax
    )
    ax.set(xlabel="images", ylabel="", title="Images of each diagnosis")
    ax.set_yticks(range(len(CLASS_CODES)), [f"{name} ({c})" for c, name in _codes_and_names()])
    return ax


def plot_confusion_matrix(
    matrix: np.ndarray, *, normalize: bool = False, ax: Axes | None = None
) -> Axes:
    """Heatmap of a confusion matrix, int (7, 7), rows true, columns predicted.

    Args:
        matrix: counts.
        normalize: show each row as shares of its class, so that the diagonal is the sensitivity.
        ax: where to draw.
    """
    ax = ax or _new_axes(6.4, 5.4)
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
        cbar_kws={"label": "share of the true class"},
        xticklabels=CLASS_CODES,
        yticklabels=[f"{c} ({n})" for c, n in zip(CLASS_CODES, totals[:, 0], strict=True)],
        ax=ax,
    )
    kind = "shares of each row" if normalize else "images"
    ax.set(xlabel="predicted", ylabel="true (images)", title=f"Confusion matrix, {kind}")
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_learning_curves(history: pd.DataFrame, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Loss and accuracy by epoch, for training and validation, phases shaded.

    Args:
        history: as in `history.csv`.
        axes: two Axes, or None to make them.
    """
    axes = list(axes) if axes is not None else list(plt.subplots(1, 2, figsize=(10, 3.8))[1])
    for ax, figure in zip(axes, ("loss", "accuracy"), strict=True):
        for column, label in ((figure, "training"), (f"val_{figure}", "validation")):
            ax.plot(history["epoch"], history[column], marker="o", label=label)
        for index, (phase, rows) in enumerate(history.groupby("phase", sort=False)):
            first, last = rows["epoch"].min() - 0.5, rows["epoch"].max() + 0.5
            ax.axvspan(first, last, color=f"C{index + 7}", alpha=0.12)
            name = str(phase).replace("_", " ")
            ax.text(first + 0.05, 1.01, name, transform=ax.get_xaxis_transform(), fontsize=8)
        ax.set(xlabel="epoch", ylabel=figure)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return axes


def plot_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    colors: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """A grid of images, uint8 (height, width, 3) each, with a title above each."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.0 * columns, 1.9 * rows), squeeze=False, layout="constrained"
    )
    colors = colors or ["black"] * len(images)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title, color in zip(axes.flat, images, titles, colors, strict=False):
        ax.imshow(image)
        ax.set_title(title, color=color, fontsize=9)
    return figure


def plot_sample_predictions(
    images: Sequence[np.ndarray], y_true: np.ndarray, y_pred: np.ndarray, *, columns: int = 4
) -> Figure:
    """A grid of images titled with the true and the predicted class, green when right, else red."""
    pairs = list(zip(y_true, y_pred, strict=True))
    return plot_images(
        images,
        [f"true {CLASS_CODES[true]}\npredicted {CLASS_CODES[pred]}" for true, pred in pairs],
        colors=[RIGHT if true == pred else WRONG for true, pred in pairs],
        columns=columns,
    )


def plot_probabilities(probabilities: dict[str, float], ax: Axes | None = None) -> Axes:
    """Bars: the confidence of all seven classes for one image."""
    ax = ax or _new_axes(6, 2.8)
    codes = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
    names = dict(_codes_and_names())
    bars = ax.barh([names[c] for c in codes], [probabilities[c] for c in codes])
    ax.bar_label(bars, fmt="{:.1%}", padding=3)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.2), xlabel="confidence", ylabel="")
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


def _codes_and_names() -> list[tuple[str, str]]:
    return list(zip(CLASS_CODES, CLASS_NAMES, strict=True))
