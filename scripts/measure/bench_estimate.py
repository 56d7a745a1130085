"""Compare the time that `train` estimates in its first epoch with the time that training takes.

    .venv/bin/python scripts/measure/bench_estimate.py --image-size 64 64 --images 2100 --epochs 3
    .venv/bin/python scripts/measure/bench_estimate.py --image-size 224 224 --images 420 --epochs 2

Trains recipe `default` without its linear probe, on random pixels, with the callback that prints
the estimate. 15 images are for validation for every 70 in training, as in the split. The ratio
`estimate` is the true time divided by the estimate. Layers are frozen only if there are pretrained
weights: `--weights`, or the variable SKINLESION_WEIGHTS.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from benchmark import report

from skinlesion.config import make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.machine import default_weights
from skinlesion.model.callbacks import Progress
from skinlesion.model.datasets import make_batches
from skinlesion.model.resnet50 import build_model
from skinlesion.model.train import compile_model

VALIDATION_SHARE = 15 / 70


def make_random(count: int, size: tuple[int, int], batch_size: int) -> tf.data.Dataset:
    """Batches of `count` random images."""
    images = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    labels = (np.arange(count) % len(HAM10000.labels)).astype(np.int32)
    return make_batches(images, labels, np.ones(len(HAM10000.labels)), batch_size, shuffle=True)


def main() -> None:
    """Train, and report both times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, nargs=2, required=True, metavar=("H", "W"))
    parser.add_argument("--images", type=int, required=True, metavar="N", help="in training")
    parser.add_argument("--epochs", type=int, required=True, metavar="N")
    parser.add_argument("--top-stage", help="conv2 to conv5 (default: the recipe's)")
    parser.add_argument("--weights", default=default_weights() or "none", metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    config = make_config(
        "default",
        image_size=tuple(arguments.image_size),
        epochs=arguments.epochs,
        top_stage=arguments.top_stage,
        weights=arguments.weights,
    )
    validation_images = round(VALIDATION_SHARE * arguments.images)
    training, validation = (
        make_random(count, config.image_size, config.batch_size)
        for count in (arguments.images, validation_images)
    )
    model = build_model(config, len(HAM10000.labels))
    compile_model(model, config, steps=len(training))
    progress = Progress(config.batch_size, validation_images)
    started = time.perf_counter()
    model.fit(
        training,
        validation_data=validation,
        epochs=config.epochs,
        shuffle=False,
        callbacks=[progress],
        verbose=0,
    )
    seconds = time.perf_counter() - started
    report(
        {"estimated": 1000 * progress.estimate, "true": 1000 * seconds},
        {"estimate": seconds / progress.estimate},
        item="training",
        out=arguments.out,
        image_size=arguments.image_size,
        images=arguments.images,
        validation_images=validation_images,
        epochs=arguments.epochs,
    )


if __name__ == "__main__":
    main()
