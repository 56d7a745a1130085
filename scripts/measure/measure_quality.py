"""Measure which images are called blurred, low in contrast, dark, bright or small.

    .venv/bin/python scripts/measure/measure_quality.py --run RUN --data DIR

Takes the test images of a run as they are, and degraded in five ways. Prints the share of images
with each quality problem as a Markdown table. The limits were fitted on the validation images.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from skinlesion.evaluation.calibration import load_calibration
from skinlesion.evaluation.quality import QualityLimits, find_problems
from skinlesion.files import InputError
from skinlesion.model.run import Run

PROBLEMS = ("blurred", "low contrast", "dark", "bright", "small")


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


DEGRADED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda image: image,
    "out of focus (Gaussian blur, standard deviation 1/50 of the width)": blur,
    "underexposed (grey values halved)": scale(0.5),
    "overexposed (grey values times 1.6)": scale(1.6),
    "a quarter of the contrast": fade,
    "shrunk to 40 pixels": shrink,
}


def measure(paths: list[Path], image_size: tuple[int, int], limits: QualityLimits) -> pd.DataFrame:
    """Shares of images with each problem; a row for each way to degrade them."""
    height, width = image_size
    rows = []
    for name, degrade in DEGRADED.items():
        found = []
        for path in paths:
            with Image.open(path) as opened:
                degraded = degrade(opened.convert("RGB"))
            # What `decode_image` does with a file.
            pixels = np.asarray(degraded.resize((width, height), Image.Resampling.BILINEAR))
            size = (degraded.height, degraded.width)
            found.append(find_problems(pixels, limits, original_size=size))
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
    try:
        run = Run.find(arguments.run)
        limits = load_calibration(run).quality
        rows = run.rows("test")[["image_id"]].merge(run.load_dataset(arguments.data))
        paths = list(rows["path"])
    except InputError as error:
        parser.error(str(error))
    table = measure(paths, run.info.image_size, limits)
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
