"""Compare the published model with the published folds on the test images of the model.

    .venv/bin/python scripts/measure/compare_folds.py

Each image is predicted by the fold that has not seen it. Prints the folds' figures on these images
and on all others, and the paired differences, model minus folds, with 95 % intervals.
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


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    split = read_split(RESULTS / "splits.csv")
    split = split.assign(label=split["dx"].map(HAM10000.label_of).astype(int))
    parts = {"the test of the model": split["split"] == "test"}
    for name, chosen in (parts | {"all others": split["split"] != "test"}).items():
        rows = split[chosen]
        found = compute_metrics(
            rows["label"].to_numpy(),
            read("folds/predictions.csv", split)[chosen.to_numpy()],
            HAM10000,
            groups=rows["lesion_id"].to_numpy(),
        )
        figure = format_figure(found["overall"]["balanced_accuracy"])
        print(f"folds, {name}: {len(rows):,} images, balanced accuracy {figure}")
    rows = split[parts["the test of the model"]]
    compared = compare_predictions(
        rows["label"].to_numpy(),
        read("folds/predictions.csv", split)[parts["the test of the model"].to_numpy()],
        read("default/predictions_test.csv", rows),
        HAM10000,
        groups=rows["lesion_id"].to_numpy(),
    )
    table = pd.DataFrame(compared["figures"])
    shown = table[(table["scope"] == "overall") | (table["figure"] == "sensitivity")]
    print(shown.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
