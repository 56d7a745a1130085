"""Measure the input pipeline against `ImageDataGenerator.flow_from_dataframe`, the original's.

    .venv/bin/python scripts/measure/bench_input_pipeline.py --images DIR --out input_pipeline.json

Both read the same JPEG files and give float32 batches of 32 images at 224x224. Without --images the
files are drawn like Kaggle's: 600x450 pixels, about 270 KB. Each ratio is the generator's time for
an image divided by ours. In `first_epoch` both decode; in `later_epochs` only the generator does;
`later_epochs_augmented` adds the original's rotation and zoom to both. The smaller the files, the
smaller the gain. Measured results: docs/benchmarks.md.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from benchmark import measure, report
from PIL import Image

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.images import load_images
from skinlesion.data.synthetic import make_sample
from skinlesion.model.augmentation import make_augmentation
from skinlesion.model.datasets import make_batches

SIZE, BATCH = (224, 224), 32
COUNT = 600
"""Images in an epoch; fewer files are repeated. The fixed cost of an epoch should weigh as little
as with the thousands of images of HAM10000."""
NOISE, QUALITY = 13, 98
"""Grey levels of noise and JPEG quality of the drawn files, which give them Kaggle's size."""


def draw_images(folder: Path) -> list[Path]:
    """Write the synthetic sample as files of Kaggle's size."""
    files = sorted(make_sample(folder, images_per_class=16).rglob("*.jpg"))
    rng = np.random.default_rng(0)
    for path in files:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((600, 450)))
        noisy = (pixels + rng.normal(0, NOISE, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=QUALITY)
    return files


def consume_generator(files: list[Path], **augmentation: Any) -> int:
    """Read one epoch as the original does."""
    generator = tf.keras.preprocessing.image.ImageDataGenerator(rescale=1 / 255, **augmentation)
    frame = pd.DataFrame({"path": map(str, files), "dx": "nv"})
    batches = generator.flow_from_dataframe(
        frame, x_col="path", y_col="dx", target_size=SIZE, batch_size=BATCH, shuffle=False
    )
    for index in range(len(batches)):
        batches[index]
    return len(files)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help="images an epoch")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            files = sorted(arguments.images.rglob("*.jpg"))
        else:
            files = draw_images(Path(folder) / "sample")
        files = (files * math.ceil(arguments.count / len(files)))[: arguments.count]
        labels = np.zeros(len(files), np.int32)
        augmentation = make_augmentation("original", seed=0)
        augment = tf.function(
            lambda images: augmentation(images, training=True), reduce_retracing=True
        )
        decoded = load_images(files, image_size=SIZE)

        def consume(images: np.ndarray, finish: Any = None) -> int:
            batches = make_batches(
                images, labels, np.ones(len(HAM10000.labels)), BATCH, shuffle=True
            )
            for batch, _, _ in batches:
                if finish:
                    finish(batch)
            return len(files)

        medians = measure(
            {
                "generator": lambda: consume_generator(files),
                "first epoch": lambda: consume(load_images(files, image_size=SIZE)),
                "later epochs": lambda: consume(decoded),
                "generator, augmented": lambda: consume_generator(
                    files, rotation_range=10, zoom_range=0.1
                ),
                "later epochs, augmented": lambda: consume(decoded, augment),
            },
            repeat=arguments.repeat,
        )
        ratios = {
            "first_epoch": medians["generator"] / medians["first epoch"],
            "later_epochs": medians["generator"] / medians["later epochs"],
            "later_epochs_augmented": (
                medians["generator, augmented"] / medians["later epochs, augmented"]
            ),
        }
        mean_size = np.mean([path.stat().st_size for path in files])
        report(
            medians,
            ratios,
            item="image",
            out=arguments.out,
            images=len(files),
            mean_kilobytes=round(mean_size / 1000, 1),
        )


if __name__ == "__main__":
    main()
