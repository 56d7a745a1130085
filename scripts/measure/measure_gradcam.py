"""Measure heat maps on the synthetic sample, whose lesions have known outlines.

    .venv/bin/python scripts/measure/measure_gradcam.py --run RUN --data SAMPLE

Of the predicted class of each test image, Grad-CAM as the package computes it, HiResCAM (R. Draelos
and L. Carin, arXiv:2011.08891: the gradient is not averaged before it weighs the feature maps) and
random maps of the same coarseness. Prints for each of them

- the share of the heat inside the lesion, beside the share of the image that the lesion covers;
- the area under the deletion curve (V. Petsiuk et al., arXiv:1806.07421): the mean probability of
  the class while the hottest pixels are replaced by the mean colour of the image, from none to all
  of them. Lower is better: what the heat marks is what the prediction rests on.

Intervals are 95 %, from a bootstrap over lesions.
"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
from scipy.integrate import trapezoid

from skinlesion.data.forms import MASKS_NAME
from skinlesion.evaluation.bootstrap import compute_share, draw_weights
from skinlesion.evaluation.gradcam import compute_grad_cam, measure_heat
from skinlesion.evaluation.metrics import format_figure
from skinlesion.files import InputError
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import Run

STEPS = 20
"""Steps of the deletion curve: 5 % of the pixels each."""
RANDOM_MAPS = 5
"""Random maps of each image, whose curves are averaged."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run on the sample")
    parser.add_argument("--data", type=Path, required=True, metavar="SAMPLE")
    arguments = parser.parse_args()
    try:
        run = Run.find(arguments.run)
        rows = run.rows("test")[["image_id"]].merge(run.load_dataset(arguments.data), on="image_id")
        predictor = Predictor.load(run)
        images = np.stack([predictor.decode(path) for path in rows["path"]])
    except InputError as error:
        parser.error(str(error))
    outputs = predictor.predict_images(images, maps=True)
    labels, maps = outputs.y_prob.argmax(axis=1), outputs.maps
    assert maps is not None
    heats = {
        "Grad-CAM": [compute_grad_cam(predictor, maps, labels)],
        "HiResCAM": [compute_hires_cam(predictor, maps, labels)],
        "random": [draw_heat(predictor, maps, seed) for seed in range(RANDOM_MAPS)],
    }
    masks = [arguments.data / MASKS_NAME / f"{name}.png" for name in rows["image_id"]]
    weights, lesions = draw_weights(len(rows), rows["lesion_id"].to_numpy())
    print(
        f"{len(rows)} test images of {lesions} lesions, maps of {maps.shape[1]}x{maps.shape[2]}\n"
    )
    print("| heat map | heat inside the lesion | area of the lesion | deletion curve |")
    print("| --- | --- | --- | --- |")
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, drawn in heats.items():
        found[name] = measure(predictor, images, labels, drawn, masks)
        cells = [format_mean(values, weights) for values in found[name].values()]
        print(f"| {name} | {' | '.join(cells)} |")
    for name in ("HiResCAM", "random"):
        differences = [
            f"{figure} {format_mean(found[name][figure] - found['Grad-CAM'][figure], weights)}"
            for figure in ("inside", "deletion")
        ]
        print(f"\n{name} minus Grad-CAM: {', '.join(differences)}")
    largest = np.abs(heats["Grad-CAM"][0] - heats["HiResCAM"][0]).max()
    print(f"\nlargest difference of the heat of Grad-CAM and HiResCAM: {largest:.1g} of 1")


def measure(
    predictor: Predictor,
    images: np.ndarray,
    labels: np.ndarray,
    drawn: list[np.ndarray],
    masks: list[Path],
) -> dict[str, np.ndarray]:
    """Means over several sets of heat maps: `inside`, `area` and `deletion` of each image."""
    shares = [
        [measure_heat(heat[i : i + 1], masks[i : i + 1]) for heat in drawn]
        for i in range(len(images))
    ]
    return {
        **{
            name: np.array([np.mean([one[name] for one in each]) for each in shares])
            for name in ("inside", "area")
        },
        "deletion": np.mean([delete(predictor, images, heat, labels) for heat in drawn], axis=0),
    }


def format_mean(values: np.ndarray, weights: np.ndarray) -> str:
    """The mean over the images, without those that have no heat, with its interval."""
    return format_figure(compute_share(np.nan_to_num(values), np.isfinite(values), weights))


def compute_hires_cam(predictor: Predictor, maps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """HiResCAM with the negative parts cut off, in the form of `compute_grad_cam`."""
    with tf.GradientTape() as tape:
        watched = tf.Variable(maps)
        logits = predictor.logits(watched, training=False)
        chosen = tf.gather(logits, labels, axis=1, batch_dims=1)
    heat = tf.reduce_sum(tape.gradient(chosen, watched) * maps, axis=-1, keepdims=True)
    return enlarge(predictor, tf.nn.relu(heat))


def draw_heat(predictor: Predictor, maps: np.ndarray, seed: int) -> np.ndarray:
    """Random heat in each cell of the feature maps, in the form of `compute_grad_cam`."""
    return enlarge(predictor, np.random.default_rng(seed).random((*maps.shape[:3], 1), np.float32))


def enlarge(predictor: Predictor, heat: tf.Tensor | np.ndarray) -> np.ndarray:
    """From (n, h, w, 1) to (n, height, width), the hottest place of each image being 1."""
    large = tf.image.resize(heat, predictor.info.image_size, method="bilinear")[..., 0].numpy()
    highest = large.max(axis=(1, 2), keepdims=True)
    return np.divide(large, highest, out=np.zeros_like(large), where=highest > 0)


def delete(
    predictor: Predictor, images: np.ndarray, heat: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """The area under the deletion curve of each image, float (n,), 0 to 1."""
    # Places without heat come last, in random order.
    noise = np.random.default_rng(0).uniform(0, 1e-6, heat.shape)
    order = np.argsort(-(heat + noise).reshape(len(heat), -1), axis=1)
    mean = images.mean(axis=(1, 2), keepdims=True).astype(np.uint8).reshape(-1, 1, 3)
    number = np.arange(len(images))
    curve = []
    for step in range(STEPS + 1):
        pixels = images.reshape(len(images), -1, 3).copy()
        pixels[number[:, None], order[:, : order.shape[1] * step // STEPS]] = mean
        y_prob = predictor.predict_images(pixels.reshape(images.shape)).y_prob
        curve.append(y_prob[number, labels])
    return trapezoid(curve, dx=1 / STEPS, axis=0)


if __name__ == "__main__":
    main()
