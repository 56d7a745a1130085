"""Measure near-OOD detection: is a diagnosis flagged that the network was not trained on?

    .venv/bin/python scripts/measure/measure_near_ood.py --data DIR --out FOLDER

For each of `--diagnoses`, a model is trained and calibrated without this diagnosis (in `FOLDER`;
finished runs are used again). Each score is compared on two parts without a common image or lesion:

- `development`: the diagnosis' images of the validation part against the validation images;
- `final`: its other images, none of which was trained on, against the test images.

Scores: the distance of features that the package uses; lack of confidence, 1 minus the largest
calibrated probability; and two combinations of both: the sum of their standard scores and the mean
of their ranks, each fitted on validation. The threshold of each is its 95th percentile on
validation. Prints the share of the diagnosis and of the known classes that is flagged, and the area
under the ROC curve, with 95 % intervals from a bootstrap over lesions.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from skinlesion.config import make_config
from skinlesion.data.ham10000 import find_dataset, load_metadata
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import join_split, make_split
from skinlesion.diagnoses import CLASS_CODES
from skinlesion.evaluation.bootstrap import compute_share, draw_weights, summarise
from skinlesion.evaluation.calibration import apply_temperature, calibrate, load_calibration
from skinlesion.evaluation.metrics import format_figure
from skinlesion.evaluation.ood import FALSE_ALARMS
from skinlesion.files import InputError, write_csv
from skinlesion.machine import default_weights
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import Run
from skinlesion.model.train import train

Score = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]
MEASURED = ["distance", "doubt"]


def add_standard_scores(table: pd.DataFrame, validation: pd.DataFrame) -> np.ndarray:
    """The sum of both scores, each in standard deviations from its mean on validation."""
    known = validation[MEASURED]
    return ((table[MEASURED] - known.mean()) / known.std()).sum(axis=1).to_numpy()


def average_ranks(table: pd.DataFrame, validation: pd.DataFrame) -> np.ndarray:
    """The mean of both scores' ranks, each as the share of validation images below it."""
    ranks = [
        np.searchsorted(np.sort(validation[name]), table[name]) / len(validation)
        for name in MEASURED
    ]
    return np.mean(ranks, axis=0)


SCORES: dict[str, Score] = {
    "distance": lambda table, validation: table["distance"].to_numpy(),
    "doubt": lambda table, validation: table["doubt"].to_numpy(),
    "sum of standard scores": add_standard_scores,
    "mean of ranks": average_ranks,
}


def main() -> None:
    """Train, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--diagnoses", nargs="+", choices=CLASS_CODES, default=["df", "vasc", "bcc"]
    )
    parser.add_argument("--recipe", default="probe")
    arguments = parser.parse_args()
    try:
        data = find_dataset(arguments.data)
        measured = {
            code: measure(data, arguments.out, arguments.recipe, code)
            for code in arguments.diagnoses
        }
    except InputError as error:
        parser.error(str(error))
    for part, known in (("development", "validation"), ("final", "test")):
        print(f"\n{part}: against the {known} images\n")
        print("| left out | score | images | flagged | known images | flagged | area under ROC |")
        print("| --- | --- | ---: | --- | ---: | --- | --- |")
        for code, table in measured.items():
            validation = table[table["role"] == "validation"]
            chosen = table[table["role"].isin([part, known])]
            for name, score in SCORES.items():
                print(f"| {code} | {name} | {compare(chosen, validation, part, score)} |")


def measure(data: Path, out: Path, recipe: str, code: str) -> pd.DataFrame:
    """Train without a diagnosis: a row an image with `lesion_id`, `role`, and both scores."""
    metadata = load_metadata(data)
    split = make_split(metadata, pairs=read_near_duplicates())
    is_left_out = split["dx"] == code
    was = split["split"].copy()
    split.loc[is_left_out, "split"] = "test"
    csv = write_csv(out / f"without_{code}.csv", split)
    config = make_config(recipe, weights=default_weights())
    run = train(data, Run(out / f"without_{code}"), config, splits=csv)
    calibration = calibrate(run, data)
    role = was.mask(is_left_out, "final").mask(is_left_out & (was == "validation"), "development")
    rows = join_split(metadata, split).assign(role=role.to_numpy())
    rows = rows[rows["role"] != "train"]
    outputs = Predictor.load(run).predict_files(list(rows["path"]))
    calibrated = apply_temperature(outputs.y_prob, calibration.temperature)
    distance = load_calibration(run).ood.compute_scores(outputs.features)
    found = rows[["image_id", "lesion_id", "dx", "role"]].assign(
        distance=distance, doubt=1 - calibrated.max(axis=1)
    )
    write_csv(out / f"without_{code}_scores.csv", found)
    return found


def compare(table: pd.DataFrame, validation: pd.DataFrame, part: str, score: Score) -> str:
    """The cells of one row: counts, shares that are flagged, area under the ROC curve."""
    threshold = np.quantile(score(validation, validation), 1 - FALSE_ALARMS, method="higher")
    values, is_new = score(table, validation), (table["role"] == part).to_numpy()
    weights, _ = draw_weights(len(table), table["lesion_id"].to_numpy())
    shares = [compute_share(values > threshold, cases, weights) for cases in (is_new, ~is_new)]
    area = summarise(
        np.array([roc_auc_score(is_new, values, sample_weight=weight) for weight in weights])
    )
    counts = [f"{is_new.sum():,}", f"{(~is_new).sum():,}"]
    cells = [counts[0], format_figure(shares[0]), counts[1], format_figure(shares[1])]
    return " | ".join([*cells, format_figure(area)])


if __name__ == "__main__":
    main()
