"""What input pipeline and augmentation cost in `fit`: the rest of the step is the network.

    python scripts/bench_training.py --out training.json

The same model is trained with batches from the pipeline, augmented as recipe `default` does, and
with one batch that lies in memory as the network wants it. `fit_overhead` is how much longer a
step takes with the former: expected on two cores, 0.05 at most.
"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
from benchmark import measure, report

from skinlesion.config import make_config
from skinlesion.data.images import draw_order, make_dataset
from skinlesion.model.augmentation import make_augmentation
from skinlesion.model.resnet50 import build_model, unfreeze
from skinlesion.model.train import Phase, Trainer, compile_trainer


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="in a round")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    config = make_config("default", image_size=tuple(arguments.image_size), weights="none")
    rng = np.random.default_rng(0)
    count = arguments.steps * config.batch_size
    images = rng.integers(0, 256, (count, *config.image_size, 3), np.uint8)
    labels = np.arange(count) % 7
    batch = next(iter(make_dataset(images, labels, batch_size=config.batch_size)))
    in_memory = (tf.cast(batch[0], tf.float32), *batch[1:])
    fed = tf.data.Dataset.from_tensors(in_memory).repeat(arguments.steps)

    def make_trainer(augmentation: str) -> Trainer:
        model, loaded = build_model(image_size=config.image_size, weights="none", head=config.head)
        unfreeze(model, loaded, fine_tune_from="conv1", train_batch_norm=True)
        trainer = Trainer(model, make_augmentation(augmentation, seed=0))
        compile_trainer(trainer, config, Phase("fine_tuning", 1, 1e-4), steps=arguments.steps)
        return trainer

    ours, plain = make_trainer(config.augmentation), make_trainer("none")

    def fit_with_pipeline() -> int:
        order = draw_order(labels, "natural", seed=0, epoch=0)
        batches = make_dataset(images, labels, batch_size=config.batch_size, order=order)
        ours.fit(batches, shuffle=False, verbose=0)
        return arguments.steps

    def fit_in_memory() -> int:
        plain.fit(fed, shuffle=False, verbose=0)
        return arguments.steps

    medians = measure(
        {"fit, pipeline": fit_with_pipeline, "fit, one batch in memory": fit_in_memory},
        repeat=arguments.repeat,
    )
    overhead = medians["fit, pipeline"] / medians["fit, one batch in memory"] - 1
    report(
        medians,
        {"fit_overhead": overhead},
        item="step",
        out=arguments.out,
        batch_size=config.batch_size,
        image_size=list(config.image_size),
    )


if __name__ == "__main__":
    main()
