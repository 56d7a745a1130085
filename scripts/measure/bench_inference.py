"""Measure predictions against those of the original notebook, with the same network.

    .venv/bin/python scripts/measure/bench_inference.py --out bench_inference.json

The network is ResNet50 with the original's head at 224x224, from random weights: the time does not
depend on them. The original predicts one file in its demo (`load_img`, division by 255,
`model.predict`) and many in its evaluation (a generator of batches of one image). Ours are
`Predictor.predict_images` after `decode`, and `Predictor.predict_files`. All must give the same
probabilities. They take turns; the first turn does not count. Expect two minutes, and ratios of at
least 2 (`predict_single`) and 1.5 (`predict_folder`) on two cores.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pandas as pd
from benchmark import measure, report
from PIL import Image

from skinlesion.config import make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.synthetic import make_sample
from skinlesion.model.bundle import ModelInfo
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import build_classifier

Way = Callable[[], np.ndarray]
RATIOS = {
    "predict_single": ("original single", "ours single"),
    "predict_folder": ("original folder", "ours folder"),
}
"""Name of each ratio: the original's way and ours."""


def draw_pictures(folder: Path) -> None:
    """JPEG files of 600x450 pixels, as HAM10000 has: four of each class of the sample."""
    sample = make_sample(folder / "sample", images_per_class=4)
    for path in sample.glob("*_part_*/*.jpg"):
        with Image.open(path) as image:
            image.resize((600, 450), Image.Resampling.BICUBIC).save(folder / path.name, quality=95)


def original_ways(model: keras.Model, paths: list[Path]) -> dict[str, Way]:
    """Predict the first file, and all files, as the original notebook does."""
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    size = model.input_shape[1:3]
    files = pd.DataFrame({"path": [str(path) for path in paths]})
    generator = ImageDataGenerator(rescale=1 / 255).flow_from_dataframe(
        files, x_col="path", target_size=size, class_mode=None, batch_size=1, shuffle=False
    )

    def single() -> np.ndarray:
        image = keras.utils.load_img(paths[0], target_size=size)
        pixels = keras.utils.img_to_array(image)[np.newaxis] / 255
        return model.predict(pixels, verbose=0)

    def folder() -> np.ndarray:
        generator.reset()
        return model.predict(generator, verbose=0)

    return {"original single": single, "original folder": folder}


def our_ways(predictor: Predictor, paths: list[Path]) -> dict[str, Way]:
    """The same with a predictor."""

    def single() -> np.ndarray:
        return predictor.predict_images(predictor.decode(paths[0])[np.newaxis]).y_prob

    return {"ours single": single, "ours folder": lambda: predictor.predict_files(paths).y_prob}


def make_ways(paths: list[Path], size: int) -> dict[str, Way]:
    """All ways, with one network."""
    config = make_config("original", image_size=(size, size), weights="none")
    classifier = build_classifier(config, len(HAM10000.labels))
    # The original's caller divides by 255.
    parts = [classifier.get_layer(name) for name in ("backbone", "head")]
    original = keras.Sequential([keras.Input((size, size, 3)), *parts])
    info = ModelInfo(
        **HAM10000.model_dump(exclude={"synthetic"}),
        image_size=config.image_size,
        resize=config.resize,
        recipe=config.recipe,
        synthetic=True,
    )
    return original_ways(original, paths) | our_ways(Predictor(classifier, info), paths)


def require_same_answers(ways: dict[str, Way]) -> None:
    """Stop unless all ways give the same probabilities."""
    answers = {name: way() for name, way in ways.items()}
    for original, ours in RATIOS.values():
        if not np.allclose(answers[original], answers[ours], atol=1e-4):
            raise SystemExit(f"{ours} does not give the probabilities of {original}")


def count(way: Way) -> int:
    """Predict, and return the number of images."""
    return len(way())


def main() -> None:
    """Measure, print a table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEG files (default: drawn)")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="default: 15")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="default: 224")
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error(f"--repeat must be at least 1, not {arguments.repeat}")
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.images or Path(name)
        if arguments.images is None:
            draw_pictures(folder)
        paths = sorted(folder.glob("*.jpg"))
        if not paths:
            raise SystemExit(f"{folder}: no .jpg file in it")
        ways = make_ways(paths, arguments.image_size)
        require_same_answers(ways)
        # Each way returns a row of probabilities for each image.
        medians = measure(
            {name: partial(count, way) for name, way in ways.items()},
            repeat=arguments.repeat,
        )
    ratios = {name: medians[original] / medians[ours] for name, (original, ours) in RATIOS.items()}
    report(
        medians,
        ratios,
        item="image",
        out=arguments.out,
        images=len(paths),
        image_size=arguments.image_size,
    )


if __name__ == "__main__":
    main()
