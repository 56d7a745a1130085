"""Grad-CAM: which part of an image supports a class, as numbers and as figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

from skinlesion.data.images import decode_image
from skinlesion.evaluation import plots
from skinlesion.evaluation.examples import PICTURE_SIZE, read_test
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import Run

OPACITY = 0.45
"""Opacity of the hottest places of an overlay; cold places stay unchanged."""


def compute_grad_cam(predictor: Predictor, maps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute heat maps of given classes.

    Source: Selvaraju et al., arXiv:1610.02391: feature maps of a late stage, weighted by the mean
    gradient of the class's logit, negative parts cut off.

    Args:
        predictor: the model.
        maps: float32 (n, h, w, c), n at least 1, from `Outputs.maps`.
        labels: int (n,), the class of each heat map.

    Returns:
        float32 (n, height, width) at the model's size: 0 to 1, the hottest place of each image
        being 1; all 0 if nothing supports the class.
    """
    with tf.GradientTape() as tape:
        watched = tf.Variable(maps)
        # The logit, not the probability: that of one class depends on all the others.
        logits = predictor.logits(watched, training=False)
        chosen = tf.gather(logits, labels, axis=1, batch_dims=1)
    importance = tf.reduce_mean(tape.gradient(chosen, watched), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(importance * maps, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, predictor.info.image_size, method="bilinear")[..., 0].numpy()
    highest = heat.max(axis=(1, 2), keepdims=True, initial=0)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def plot_explanations(run: Run, *, data: str | Path | None = None, right: bool = True) -> Figure:
    """Plot Grad-CAM of the most confident right, or wrong, prediction for each class.

    Args:
        run: an evaluated run.
        data: the dataset; None: the run's own, else as `find_dataset`.
        right: show right predictions instead of wrong ones.
    """
    rows = read_test(run, data)
    y_prob = run.read_predictions("test", list(rows["image_id"]))
    figure = draw_explanations(Predictor.load(run), rows, y_prob, kinds=(right,))
    plots.caption(figure, synthetic=run.synthetic)
    return figure


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
    labels = predictor.info.labels
    groups = [
        np.flatnonzero((truth == label) & ((top == truth) == kind))
        for kind in kinds
        for label in range(len(labels))
    ]
    chosen = np.array([group[confidence[group].argmax()] for group in groups if len(group)], int)
    if not len(chosen):
        nothing = "no right predictions" if any(kinds) else "no mistakes"
        return plots.plot_images([], [], nothing=nothing)
    paths = rows["path"].iloc[chosen].tolist()
    maps = predictor.predict_files(paths, maps=True).maps
    assert maps is not None
    pictures, titles = [], []
    heats = compute_grad_cam(predictor, maps, top[chosen])
    for path, heat, i in zip(paths, heats, chosen, strict=True):
        image = decode_image(path, image_size=PICTURE_SIZE)
        pictures += [image, overlay_heat(image, heat)]
        titles += [f"true {labels[truth[i]]}\nheat for {labels[top[i]]}", ""]
    return plots.plot_images(pictures, titles)


def overlay_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a heat map over an image of any size.

    Args:
        image: uint8 (height, width, 3).
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (height, width, 3).
    """
    import matplotlib as mpl

    height, width = image.shape[:2]
    enlarged = Image.fromarray((heat * 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    strength = np.asarray(enlarged, np.float32)[..., None] / 255
    colors = mpl.colormaps["inferno"](strength[..., 0])[..., :3] * 255
    share = OPACITY * np.sqrt(strength)
    return (image * (1 - share) + colors * share).astype(np.uint8)


def measure_heat(heat: np.ndarray, masks: list[Path]) -> dict[str, float]:
    """Measure how much of the heat is inside lesions with a known outline.

    Args:
        heat: float (n, h, w).
        masks: n image files, white inside the lesion.

    Returns:
        `inside`, the mean share of the heat inside the lesion; `area`, the mean share of the image
        that the lesion covers, which evenly spread heat would have inside; `images`, the number of
        images with any heat.
    """
    inside, area = [], []
    for one, path in zip(heat, masks, strict=True):
        if one.sum() > 0:
            mask = _read_mask(path, one.shape)
            inside.append(float((one * mask).sum() / one.sum()))
            area.append(float(mask.mean()))
    return {
        "inside": float(np.mean(inside)) if inside else float("nan"),
        "area": float(np.mean(area)) if area else float("nan"),
        "images": len(inside),
    }


def _read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A mask as float64 (h, w), 0 to 1."""
    height, width = shape
    with Image.open(path, formats=["PNG"]) as file:
        resized = file.convert("L").resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized, np.float64) / 255
