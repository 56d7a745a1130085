"""Test images of an evaluated run: samples and mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from skinlesion.data.dataset import find_dataset
from skinlesion.data.images import decode_image
from skinlesion.evaluation import plots
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.model.run import Run

SHOWN_IMAGES = 12
PICTURE_SIZE = (150, 200)


def plot_samples(run: Run, *, data: str | Path | None = None) -> Figure:
    """Plot random test images of an evaluated run, with true and predicted class.

    Args:
        run: an evaluated run.
        data: the dataset; None: the run's own, else as `find_dataset`.
    """
    figure = draw_samples(read_test(run, data), run.info.labels, seed=run.config.seed)
    plots.caption(figure, synthetic=run.synthetic)
    return figure


def plot_mistakes(run: Run, *, data: str | Path | None = None) -> Figure:
    """Plot the wrong predictions with the highest confidence. Arguments: `plot_samples`."""
    figure = draw_mistakes(read_test(run, data), run.info.labels)
    plots.caption(figure, synthetic=run.synthetic)
    return figure


def read_test(run: Run, data: str | Path | None) -> pd.DataFrame:
    """The test images with what `name_predictions` adds."""
    table = run.load_dataset(find_dataset(data or run.dataset))
    rows = run.rows("test")[["image_id"]].merge(table, on="image_id")
    y_prob = run.read_predictions("test", list(rows["image_id"]))
    return name_predictions(rows, y_prob, load_calibration(run).apply(y_prob))


def name_predictions(
    rows: pd.DataFrame, y_prob: np.ndarray, calibrated: np.ndarray
) -> pd.DataFrame:
    """Add the label `predicted` and its calibrated `confidence` to n rows.

    Args:
        rows: n images.
        y_prob: float (n, classes), uncalibrated: its most probable class is predicted.
        calibrated: float (n, classes).
    """
    predicted = y_prob.argmax(axis=1)
    confidence = calibrated[np.arange(len(rows)), predicted]
    return rows.assign(predicted=predicted, confidence=confidence)


def draw_samples(rows: pd.DataFrame, labels: Sequence[str], *, seed: int) -> Figure:
    """Draw random images with true and predicted class.

    Args:
        rows: `path`, `label`, `predicted` and `confidence` of n images.
        labels: code of each class.
        seed: of the choice.
    """
    chosen = np.random.default_rng(seed).permutation(len(rows))[:SHOWN_IMAGES]
    return _draw_images(rows.iloc[chosen], labels)


def draw_mistakes(rows: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Draw the wrong predictions with the highest confidence. Arguments: `draw_samples`."""
    wrong = rows[rows["predicted"] != rows["label"]]
    if not len(wrong):
        return plots.plot_images([], [], nothing="no mistakes")
    wrong = wrong.sort_values("confidence", ascending=False, kind="stable")
    return _draw_images(wrong.head(SHOWN_IMAGES), labels)


def _draw_images(rows: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Images with true and predicted class, green where it is right and red where it is wrong."""
    shown = list(zip(rows["label"], rows["predicted"], rows["confidence"], strict=True))
    return plots.plot_images(
        [decode_image(path, image_size=PICTURE_SIZE) for path in rows["path"]],
        [f"true {labels[t]}\npredicted {labels[p]} {share:.0%}" for t, p, share in shown],
        colors=["green" if true == predicted else "red" for true, predicted, _ in shown],
    )
