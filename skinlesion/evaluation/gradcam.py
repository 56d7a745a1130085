"""Grad-CAM: which part of an image speaks for a class."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from skinlesion.files import InputError
from skinlesion.model.resnet50 import BACKBONE_NAME, STAGE_OUTPUTS

SMALLEST_MAP = 7
"""Least height and width of the feature map that heat is computed on: that of `conv5` at 224x224,
which the paper uses. In smaller images `conv5` is so coarse that an earlier stage says more."""


def compute_grad_cam(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Heat maps of given classes.

    Source: Selvaraju et al., arXiv:1610.02391: feature maps of a late stage, weighted by the mean
    gradient of the class's logit, negative parts cut off. The stage is the last one whose map has
    at least `SMALLEST_MAP` pixels each way.

    Args:
        model: from `model.build_model`.
        images: uint8 or float (n, height, width, 3) in [0, 255], at the model's size.
        labels: int (n,), the class of each heat map, 0 to 6.

    Returns:
        float32 (n, height, width): 0 to 1, the hottest place of each image being 1; all 0 where
        nothing speaks for the class.

    Raises:
        InputError: a label outside 0 to 6.
    """
    labels = np.asarray(labels)
    if not ((labels >= 0) & (labels < model.output_shape[-1])).all():
        raise InputError(f"labels must be 0 to {model.output_shape[-1] - 1}. Received: {labels}")
    if not len(labels):
        return np.zeros((0, *model.input_shape[1:3]), np.float32)
    backbone = model.get_layer(BACKBONE_NAME)
    inner = keras.Model(backbone.input, [_choose_map(backbone), backbone.output])
    # Operations, not layers: preprocessing is made of functions, which `layers` leaves out.
    position = model.operations.index(backbone)
    prepare = keras.Model(model.input, model.operations[position - 1].output)
    *head, last = model.operations[position + 1 :]
    with tf.GradientTape() as tape:
        pixels = tf.Variable(prepare(np.asarray(images, np.float32)), trainable=True)
        maps, x = inner(pixels, training=False)
        for layer in head:
            x = layer(x, training=False)
        # The logit, not the probability: that of one class would depend on all the others.
        logits = tf.linalg.matmul(tf.cast(x, tf.float32), last.kernel) + last.bias
        chosen = tf.gather(logits, labels, axis=1, batch_dims=1)
    gradient = tape.gradient(chosen, maps)
    importance = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(importance * maps, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, model.input_shape[1:3], method="bilinear")[..., 0].numpy()
    highest = heat.max(axis=(1, 2), keepdims=True, initial=0)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def overlay_heat(image: np.ndarray, heat: np.ndarray, *, opacity: float = 0.45) -> np.ndarray:
    """Lay a heat map over an image of any size.

    Args:
        image: uint8 (height, width, 3).
        heat: float (h, w) in [0, 1].
        opacity: of the hottest places; cold ones stay as they are.

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
    share = opacity * np.sqrt(strength)
    return (image * (1 - share) + colors * share).astype(np.uint8)


def measure_heat(heat: np.ndarray, masks: list[Path]) -> dict[str, float]:
    """How much of the heat lies inside lesions whose outline is known.

    Args:
        heat: float (n, h, w).
        masks: n image files, white inside the lesion.

    Returns:
        `inside`, the mean share of the heat that lies inside, and `area`, the mean share of the
        image that the lesion covers: what heat spread evenly would have; `images`, how many have
        any heat.
    """
    inside, area = [], []
    for one, path in zip(heat, masks, strict=True):
        if one.sum() > 0:
            with Image.open(path, formats=["PNG"]) as file:
                size = (one.shape[1], one.shape[0])
                mask = (
                    np.asarray(
                        file.convert("L").resize(size, Image.Resampling.BILINEAR), np.float64
                    )
                    / 255
                )
            inside.append(float((one * mask).sum() / one.sum()))
            area.append(float(mask.mean()))
    return {
        "inside": float(np.mean(inside)) if inside else float("nan"),
        "area": float(np.mean(area)) if area else float("nan"),
        "images": len(inside),
    }


def _choose_map(backbone: keras.Model) -> keras.KerasTensor:
    there = {layer.name: layer.output for layer in backbone.layers}
    outputs = [there[name] for name in STAGE_OUTPUTS.values() if name in there]
    fine = [output for output in outputs if min(output.shape[1:3]) >= SMALLEST_MAP]
    return fine[-1] if fine else outputs[0]
