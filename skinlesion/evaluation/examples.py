"""Test images of an evaluated run: samples, mistakes, and what Grad-CAM shows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from skinlesion.data.ham10000 import find_dataset, load_metadata
from skinlesion.data.images import decode_image
from skinlesion.diagnoses import CLASS_CODES
from skinlesion.evaluation import plots
from skinlesion.evaluation.calibration import apply_temperature, load_calibration
from skinlesion.evaluation.gradcam import compute_grad_cam, overlay_heat
from skinlesion.model.predictor import Predictor
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


def plot_explanations(run: Run, *, data: str | Path | None = None, right: bool = True) -> Figure:
    """Plot Grad-CAM of the most confident right, or wrong, prediction for each class.

    Args:
        run: an evaluated run.
        data: the dataset; None: the run's own, else as `find_dataset`.
        right: show right predictions instead of wrong ones.
    """
    figure = draw_explanations(Predictor.load(run), *read_test(run, data), kinds=(right,))
    plots.caption(figure, synthetic=run.synthetic)
    return figure


def read_test(run: Run, data: str | Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """The test images with their metadata and label, and their calibrated probabilities."""
    table = load_metadata(find_dataset(data or run.dataset))
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
    chosen = wrong[np.argsort(-y_prob[wrong].max(axis=1), kind="stable")][:SHOWN_IMAGES]
    return _draw_images(rows, y_prob, chosen)


def draw_explanations(
    predictor: Predictor,
    rows: pd.DataFrame,
    y_prob: np.ndarray,
    *,
    kinds: Sequence[bool] = (True, False),
) -> Figure:
    """Draw Grad-CAM of the predicted class: the most confident right and wrong image of each class.

    Args:
        predictor: the model.
        rows: `path` and `label` of n images.
        y_prob: float (n, classes), the predictions for them.
        kinds: True shows right predictions, False wrong ones.
    """
    truth, top, confidence = rows["label"].to_numpy(), y_prob.argmax(axis=1), y_prob.max(axis=1)
    groups = [
        np.flatnonzero((truth == label) & ((top == truth) == kind))
        for kind in kinds
        for label in range(len(CLASS_CODES))
    ]
    chosen = np.array([group[confidence[group].argmax()] for group in groups if len(group)], int)
    if not len(chosen):
        return plots.plot_images([], [])
    paths = rows["path"].iloc[chosen].tolist()
    maps = predictor.predict_files(paths, maps=True).maps
    assert maps is not None
    pictures, titles = [], []
    heats = compute_grad_cam(predictor, maps, top[chosen])
    for path, heat, i in zip(paths, heats, chosen, strict=True):
        image = decode_image(path, image_size=PICTURE_SIZE)
        pictures += [image, overlay_heat(image, heat)]
        titles += [f"true {CLASS_CODES[truth[i]]}\nheat for {CLASS_CODES[top[i]]}", ""]
    return plots.plot_images(pictures, titles)


def _draw_images(rows: pd.DataFrame, y_prob: np.ndarray, chosen: np.ndarray) -> Figure:
    images = [decode_image(path, image_size=PICTURE_SIZE) for path in rows["path"].iloc[chosen]]
    return plots.plot_sample_predictions(images, rows["label"].to_numpy()[chosen], y_prob[chosen])
