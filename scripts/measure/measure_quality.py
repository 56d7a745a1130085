"""Which images does the page call blurred, pale, dark, bright or small?

    .venv/bin/python scripts/measure_quality.py --run RUN --data DIR

The test images of a run as they are, and each spoilt in five ways: how many get which verdict.
Prints a table in Markdown; the limits were fitted on the validation images.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from skinlesion.data.ham10000 import list_images
from skinlesion.evaluation.quality import find_problems
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import read_part

PROBLEMS = ("blurred", "pale", "dark", "bright", "small")


def blur(image: Image.Image) -> Image.Image:
    """As out of focus, by a fiftieth of the width."""
    return image.filter(ImageFilter.GaussianBlur(image.width / 50))


def scale(factor: float) -> Callable[[Image.Image], Image.Image]:
    """Every grey value times a factor."""
    return lambda image: image.point(lambda value: min(255, value * factor))


def fade(image: Image.Image) -> Image.Image:
    """A quarter of the contrast."""
    mean = int(np.asarray(image).mean())
    return image.point(lambda value: mean + (value - mean) / 4)


def shrink(image: Image.Image) -> Image.Image:
    """40 pixels wide."""
    return image.resize((40, round(40 * image.height / image.width)))


SPOILT: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda image: image,
    "out of focus (Gaussian blur, standard deviation 1/50 of the width)": blur,
    "underexposed (grey values halved)": scale(0.5),
    "overexposed (grey values times 1.6)": scale(1.6),
    "a quarter of the contrast": fade,
    "shrunk to 40 pixels": shrink,
}


def measure(predictor: Predictor, paths: list[Path]) -> pd.DataFrame:
    """Shares of images that get each verdict, a row for each way to spoil them."""
    height, width = predictor.bundle.info.image_size
    rows = []
    for name, spoil in SPOILT.items():
        found = []
        for path in paths:
            with Image.open(path) as opened:
                spoilt = spoil(opened.convert("RGB"))
            # What `decode_image` does with a file.
            pixels = np.asarray(spoilt.resize((width, height), Image.Resampling.BILINEAR))
            size = (spoilt.height, spoilt.width)
            found.append(find_problems(pixels, predictor.limits, taken_at=size))
        shares = {problem: np.mean([problem in one for one in found]) for problem in PROBLEMS}
        rows.append({"images": name, "any": np.mean([bool(one) for one in found])} | shares)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="its dataset")
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.run)
    if predictor.limits is None:
        parser.error("this run has no limits: skinlesion.workflow.fit_gate(run, data) fits them")
    images = list_images(arguments.data)
    paths = [images[image] for image in read_part(arguments.run, "test")["image_id"]]
    table = measure(predictor, paths)
    print(f"{len(paths):,} test images\n")
    print(to_markdown(table))


def to_markdown(table: pd.DataFrame) -> str:
    """The table, shares in per cent."""
    lines = ["| " + " | ".join(table.columns) + " |", "| --- " * len(table.columns) + "|"]
    for row in table.itertuples(index=False):
        shares = (f"{100 * share:.1f} %" for share in row[1:])
        lines.append("| " + " | ".join([row[0], *shares]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
