"""Compare published predictions with those of the published model, on the same images.

    .venv/bin/python scripts/measure/compare_published.py

On the test images of the model: the folds (each image is predicted by the fold that has not seen
it), a second seed, the mean of both seeds, and the earlier recipe. On the validation images: the
second seed, and a run with more pixels, also against the second seed and averaged with the model.
Prints the folds' balanced accuracy on these images and on all others, and paired differences, B
minus A, with 95 % intervals. A is the published model, where no other is named.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import read_isic_for
from skinlesion.data.split import read_split
from skinlesion.evaluation.metrics import compare_predictions, compute_metrics, format_figure

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def read(name: str, rows: pd.DataFrame) -> np.ndarray:
    """The published probabilities (n, 7) of the images in the rows."""
    return read_isic_for(RESULTS / name, list(rows["image_id"]), HAM10000)


def describe_folds(split: pd.DataFrame, y_prob: np.ndarray, is_test: np.ndarray) -> None:
    """Print the folds' balanced accuracy on the test images of the model, and on all others."""
    for name, chosen in {"its test images": is_test, "all others": ~is_test}.items():
        rows = split[chosen]
        found = compute_metrics(
            rows["label"].to_numpy(), y_prob[chosen], HAM10000, groups=rows["lesion_id"].to_numpy()
        )
        figure = format_figure(found["overall"]["balanced_accuracy"])
        print(f"folds, {name}: {len(rows):,} images, balanced accuracy {figure}")


def compare(name: str, rows: pd.DataFrame, model: np.ndarray, other: np.ndarray) -> None:
    """Print the paired differences of two predictions for the same images."""
    found = compare_predictions(
        rows["label"].to_numpy(), model, other, HAM10000, groups=rows["lesion_id"].to_numpy()
    )
    table = pd.DataFrame(found["figures"])
    shown = table[(table["scope"] == "overall") | (table["figure"] == "sensitivity")]
    print(f"\n{name}\n{shown.round(3).to_string(index=False)}")


def main() -> None:
    """Print all comparisons."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    split = read_split(RESULTS / "splits.csv")
    split = split.assign(label=split["dx"].map(HAM10000.label_of).astype(int))
    is_test = (split["split"] == "test").to_numpy()
    folds = read("folds/predictions.csv", split)
    describe_folds(split, folds, is_test)
    test, validation = split[is_test], split[split["split"] == "validation"]
    model, seed = (read(f"{name}/predictions_test.csv", test) for name in ("default", "seed_1"))
    compare("folds, test of the model", test, model, folds[is_test])
    compare("seed 1, test", test, model, seed)
    compare("mean of both seeds, test", test, model, (model + seed) / 2)
    compare("earlier recipe, test", test, model, read("earlier/predictions_test.csv", test))
    model, seed, pixels = (
        read(f"{name}/predictions_validation.csv", validation)
        for name in ("default", "seed_1", "more_pixels")
    )
    compare("seed 1, validation", validation, model, seed)
    compare("mean of both seeds, validation", validation, model, (model + seed) / 2)
    compare("144x192, validation", validation, model, pixels)
    compare("144x192, validation; A is seed 1", validation, seed, pixels)
    compare("mean with 144x192, validation", validation, model, (model + pixels) / 2)


if __name__ == "__main__":
    main()
