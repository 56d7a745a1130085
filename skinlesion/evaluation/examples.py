"""Test images of an evaluated run: samples and mistakes."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from skinlesion.data.ham10000 import find_dataset
from skinlesion.data.images import decode_image
from skinlesion.evaluation import plots
from skinlesion.evaluation.calibration import apply_temperature, load_calibration
from skinlesion.model.run import Run

SHOWN_IMAGES = 12
PICTURE_SIZE = (150, 200)


def plot_samples(run: Run, *, data: str | Path | None = None) -> Figure:
    """Plot random test images of an evaluated run, with true and predicted class.

    Args:
        run: an evaluated run.
        data: the dataset; None: the run's own, else as `find_dataset`.
    """
    rows, y_prob = read_test(run, data)
    figure = draw_samples(rows, y_prob, seed=run.config.seed)
    plots.caption(figure, synthetic=run.synthetic)
    return figure


def plot_mistakes(run: Run, *, data: str | Path | None = None) -> Figure:
    """Plot the wrong predictions with the highest confidence. Arguments: `plot_samples`."""
    figure = draw_mistakes(*read_test(run, data))
    plots.caption(figure, synthetic=run.synthetic)
    return figure


def read_test(run: Run, data: str | Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """The test images with their metadata and label, and their calibrated probabilities."""
    table = run.load_dataset(find_dataset(data or run.dataset))
    rows = run.rows("test")[["image_id"]].merge(table, on="image_id")
    y_prob = run.read_predictions("test", list(rows["image_id"]))
    return rows, apply_temperature(y_prob, load_calibration(run).temperature)


def draw_samples(rows: pd.DataFrame, y_prob: np.ndarray, *, seed: int) -> Figure:
    """Draw random images with true and predicted class.

    Args:
        rows: `path` and `label` of n images.
        y_prob: float (n, classes).
        seed: of the choice.
    """
    chosen = np.random.default_rng(seed).permutation(len(rows))[:SHOWN_IMAGES]
    return _draw_images(rows, y_prob, chosen)


def draw_mistakes(rows: pd.DataFrame, y_prob: np.ndarray) -> Figure:
    """Draw the wrong predictions with the highest confidence. Arguments: `draw_samples`."""
    wrong = np.flatnonzero(y_prob.argmax(axis=1) != rows["label"].to_numpy())
    if not len(wrong):
        return plots.plot_images([], [], nothing="no mistakes")
    chosen = wrong[np.argsort(-y_prob[wrong].max(axis=1), kind="stable")][:SHOWN_IMAGES]
    return _draw_images(rows, y_prob, chosen)


def _draw_images(rows: pd.DataFrame, y_prob: np.ndarray, chosen: np.ndarray) -> Figure:
    images = [decode_image(path, image_size=PICTURE_SIZE) for path in rows["path"].iloc[chosen]]
    return plots.plot_sample_predictions(images, rows["label"].to_numpy()[chosen], y_prob[chosen])
