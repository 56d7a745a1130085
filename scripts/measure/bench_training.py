"""Measure what input pipeline and augmentation cost in `fit`; the rest is the network.

    .venv/bin/python scripts/measure/bench_training.py --out training.json
    .venv/bin/python scripts/measure/bench_training.py --top-stage conv4 --fine-tune-from conv3

The same network is trained on batches of the pipeline, augmented as in recipe `default`, and on one
batch that lies in memory. `fit_overhead` is the relative extra time of a step with the pipeline:
expected on two cores, 0.05 at most. Layers can be frozen if there are pretrained weights:
`--weights`, or the variable SKINLESION_WEIGHTS.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from benchmark import measure, report

from skinlesion.config import Config, make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.machine import default_weights
from skinlesion.model.datasets import make_batches
from skinlesion.model.resnet50 import build_model
from skinlesion.model.train import compile_model

IN_MEMORY = "fit, one batch in memory"


def make_model(config: Config, steps: int) -> keras.Sequential:
    """The compiled model of these settings."""
    model = build_model(config, len(HAM10000.labels))
    compile_model(model, config, steps=steps)
    return model


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--top-stage", default="conv5", help="conv2 to conv5 (default: conv5)")
    parser.add_argument("--fine-tune-from", default="conv1", help="conv1 to conv5 (default: conv1)")
    parser.add_argument("--weights", default=default_weights() or "none", metavar="FILE")
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="in a round")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    config = make_config(
        "default",
        image_size=tuple(arguments.image_size),
        top_stage=arguments.top_stage,
        fine_tune_from=arguments.fine_tune_from,
        weights=arguments.weights,
    )
    rng = np.random.default_rng(0)
    count = arguments.steps * config.batch_size
    images = rng.integers(0, 256, (count, *config.image_size, 3), np.uint8)
    labels = (np.arange(count) % len(HAM10000.labels)).astype(np.int32)
    batches = make_batches(
        images, labels, np.ones(len(HAM10000.labels)), config.batch_size, shuffle=True
    )
    in_memory = next(iter(batches))
    fed = tf.data.Dataset.from_tensors(in_memory).repeat(arguments.steps)
    ours = make_model(config, arguments.steps)
    plain = make_model(config.model_copy(update={"augmentation": "none"}), arguments.steps)

    def fit_with_pipeline() -> int:
        ours.fit(batches, shuffle=False, verbose=0)
        return arguments.steps

    def fit_in_memory() -> int:
        plain.fit(fed, shuffle=False, verbose=0)
        return arguments.steps

    medians = measure(
        {"fit, pipeline": fit_with_pipeline, IN_MEMORY: fit_in_memory},
        repeat=arguments.repeat,
        summarise=min,
    )
    overhead = medians["fit, pipeline"] / medians[IN_MEMORY] - 1
    report(
        medians,
        {"fit_overhead": overhead},
        item="step",
        out=arguments.out,
        batch_size=config.batch_size,
        image_size=list(config.image_size),
        images_per_second=round(1000 * config.batch_size / medians[IN_MEMORY], 1),
    )


if __name__ == "__main__":
    main()
