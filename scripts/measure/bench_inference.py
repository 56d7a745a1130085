"""How much faster are predictions than those of the replaced notebook, with the same network?

    .venv/bin/python scripts/bench_inference.py --out bench_inference.json

ResNet50 with the original's head at 224x224, from random weights, which take as long as any. The
original's ways are those of its demo (`load_img`, division by 255, `model.predict` for each image)
and of its evaluation (a generator of batches of one image). Ours are `Predictor.predict`, with
Keras and with ONNX Runtime, and `Predictor.predict_probabilities`. All take their turns, after one
that does not count, and must give the same probabilities. Expect two minutes, and ratios of at
least 2 (`predict_single`), 3 (`predict_single_exported`) and 1.5 (`predict_folder`) on two cores.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pandas as pd
from benchmark import measure, report
from PIL import Image
from skinlesion.model.bundle import Bundle, BundleInfo, save_bundle

from skinlesion.data.synthetic import make_sample
from skinlesion.diagnoses import CLASS_CODES
from skinlesion.evaluation.export import open_onnx
from skinlesion.evaluation.ood import fit_gate
from skinlesion.files import InputError
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import build_model

Way = Callable[[], np.ndarray]
RATIOS = {
    "predict_single": ("original single", "ours single"),
    "predict_single_exported": ("original single", "ours single, ONNX Runtime"),
    "predict_folder": ("original folder", "ours folder"),
    "predict_folder_exported": ("original folder", "ours folder, ONNX Runtime"),
}
"""Name to the way above and the way below the line."""


def draw_pictures(folder: Path) -> None:
    """JPEG files of 600x450 pixels, as HAM10000 has: four of each class of the sample."""
    sample = make_sample(folder / "sample", images_per_class=4)
    for path in sample.glob("*_part_*/*.jpg"):
        with Image.open(path) as image:
            image.resize((600, 450), Image.Resampling.BICUBIC).save(folder / path.name, quality=95)


def without_preprocessing(model: keras.Model) -> keras.Model:
    """The original's network: the same layers, but whoever calls it divides by 255."""
    x = inputs = keras.Input(model.input_shape[1:])
    for layer in model.layers[2:]:
        x = layer(x)
    return keras.Model(inputs, x)


def original_ways(model: keras.Model, paths: list[Path]) -> dict[str, Way]:
    """What the replaced notebook does with the first file, and with all of them."""
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


def our_ways(predictor: Predictor, paths: list[Path], suffix: str = "") -> dict[str, Way]:
    """The same with a predictor."""
    return {
        # It looks for foreign images at the same time.
        f"ours single{suffix}": lambda: np.array(
            [list(predictor.predict(paths[0]).probabilities.values())]
        ),
        f"ours folder{suffix}": lambda: predictor.predict_probabilities(paths),
    }


def make_ways(paths: list[Path], size: int, work: Path) -> dict[str, Way]:
    """All ways that this environment has."""
    model, _ = build_model(
        image_size=(size, size), weights="none", preprocessing="divide_by_255", head="original"
    )
    # As the original resizes: the same pixels on both sides.
    info = BundleInfo(CLASS_CODES, (size, size), "nearest", "original", synthetic=True)
    # With a gate for foreign images, as every trained model has one; the original has none.
    plain = Predictor(Bundle(model, info))
    features = plain.describe(paths)
    bundle = Bundle(model, info, fit_gate(features, features, stage=plain.stage))
    ways = original_ways(without_preprocessing(model), paths) | our_ways(Predictor(bundle), paths)
    try:
        network = open_onnx(save_bundle(bundle, work / "bundle"), bundle)
    except InputError as error:
        print(f"without ONNX Runtime: {error}")
        return ways
    return ways | our_ways(Predictor(bundle, network), paths, ", ONNX Runtime")


def require_same_answers(ways: dict[str, Way]) -> None:
    """Stop unless all ways give the probabilities of the original's."""
    answers = {name: way() for name, way in ways.items()}
    for name, answer in answers.items():
        first = answers["original " + ("single" if "single" in name else "folder")]
        if not np.allclose(answer, first, atol=1e-4):
            raise SystemExit(f"{name} does not give the probabilities of the original's way")


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
        ways = make_ways(paths, arguments.image_size, Path(name))
        require_same_answers(ways)
        # Each way returns a row of probabilities for each image.
        medians = measure(
            {name: lambda way=way: len(way()) for name, way in ways.items()},
            repeat=arguments.repeat,
        )
    ratios = {
        ratio: medians[above] / medians[below]
        for ratio, (above, below) in RATIOS.items()
        if below in medians
    }
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
