"""Our input pipeline against `ImageDataGenerator.flow_from_dataframe`, the original's.

    python scripts/bench_input_pipeline.py --images DIR --out input_pipeline.json

Both read the same JPEGs (without --images, drawn ones like Kaggle's: 600x450 pixels, about 270 KB)
and hand over float32 batches of 32 at 224x224. `first_epoch` decodes, `later_epochs` do not
with us and do with the generator, both without augmentation; `later_epochs_augmented` is with the
original's rotation and zoom in both. Each ratio is the generator's time an image over ours; the
smaller the files, the less there is to gain. Measured figures: docs/benchmarks.md.
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

from skinlesion.data.images import load_images, make_dataset
from skinlesion.data.synthetic import make_sample
from skinlesion.model.augmentation import make_augmentation

SIZE, BATCH = (224, 224), 32
COUNT = 600
"""Images in an epoch; fewer files are taken several times. What an epoch costs whatever its length
should not count more than it does with the thousands of images of HAM10000."""
NOISE, QUALITY = 13, 98
"""Of the drawn images, for files of the size of Kaggle's: grey levels, and the JPEG quality."""


def draw_images(folder: Path) -> list[Path]:
    """Files of the synthetic sample, brought to the size of Kaggle's."""
    files = sorted(make_sample(folder, images_per_class=16).rglob("*.jpg"))
    rng = np.random.default_rng(0)
    for path in files:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((600, 450)))
        noisy = (pixels + rng.normal(0, NOISE, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=QUALITY)
    return files


def consume_generator(files: list[Path], **augmentation: Any) -> int:
    """One epoch as the original has it."""
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
        labels = np.zeros(len(files), int)
        to_float = tf.function(lambda images: tf.cast(images, tf.float32))
        augmentation = make_augmentation("original", seed=0)
        augment = tf.function(
            lambda images: augmentation(tf.cast(images, tf.float32), training=True),
            reduce_retracing=True,
        )
        decoded = load_images(files, image_size=SIZE)

        def consume(images: np.ndarray, finish: Any) -> int:
            order = np.random.default_rng(0).permutation(len(files))
            for batch, _, _ in make_dataset(images, labels, batch_size=BATCH, order=order):
                finish(batch)
            return len(files)

        medians = measure(
            {
                "generator": lambda: consume_generator(files),
                "first epoch": lambda: consume(load_images(files, image_size=SIZE), to_float),
                "later epochs": lambda: consume(decoded, to_float),
                "later epochs, as bytes": lambda: consume(decoded, lambda images: images),
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
