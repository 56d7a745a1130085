"""Measure near-OOD detection: is a diagnosis flagged that the network was not trained on?

    .venv/bin/python scripts/measure/measure_near_ood.py --data DIR --out FOLDER

The models are those of recipe `probe`: a frozen network, so all images are described once (kept in
FOLDER/features.npz), and leaving a diagnosis out of training and validation only needs another
head, calibration and Gaussian. Each score is compared on two parts without a common lesion:

- `development`: the diagnosis' images of the validation part against the validation images;
- `final`: its other images, none of which was trained on, against the test images.

Scores: the distance of features that the package uses, of `conv3`; that of `conv4`; doubt, which is
1 minus the largest calibrated probability; and combinations, fitted on validation: the sum of
standard scores, and the mean of ranks. The threshold of each is its 95th percentile on validation.
Prints the shares of the diagnosis and of the known classes that are flagged, and the area under the
ROC curve, with 95 % intervals from a bootstrap over lesions.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinlesion.config import RECIPES
from skinlesion.data.dataset import find_dataset, load_metadata
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import make_split
from skinlesion.evaluation.bootstrap import compute_share, draw_weights, summarise
from skinlesion.evaluation.calibration import apply_temperature, fit_temperature
from skinlesion.evaluation.metrics import format_figure
from skinlesion.evaluation.ood import FALSE_ALARMS, fit_ood_detector
from skinlesion.files import InputError, write_csv
from skinlesion.machine import default_weights
from skinlesion.model.linear_probe import MAX_ITERATIONS
from skinlesion.model.resnet50 import compute_features

Score = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]
STRENGTH = 1e-3
"""Inverse regularisation strength of the head: what `probe` chooses with all diagnoses."""
RESAMPLES = 200
"""Fewer than elsewhere: scikit-learn's area takes a call for each."""
STAGES = {"conv3": slice(None, 512), "conv4": slice(512, None)}
"""Columns of `compute_features`."""


def add_standard_scores(
    table: pd.DataFrame, validation: pd.DataFrame, names: list[str]
) -> np.ndarray:
    """The sum of scores, each in standard deviations from its mean on validation."""
    known = validation[names]
    return ((table[names] - known.mean()) / known.std()).sum(axis=1).to_numpy()


def average_ranks(table: pd.DataFrame, validation: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The mean of the scores' ranks, each as the share of validation images below it."""
    ranks = [
        np.searchsorted(np.sort(validation[name]), table[name]) / len(validation) for name in names
    ]
    return np.mean(ranks, axis=0)


SCORES: dict[str, Score] = {
    "distance, `conv3`": partial(add_standard_scores, names=["conv3"]),
    "distance, `conv4`": partial(add_standard_scores, names=["conv4"]),
    "doubt": partial(add_standard_scores, names=["doubt"]),
    "`conv3` and doubt, standard scores": partial(add_standard_scores, names=["conv3", "doubt"]),
    "`conv3` and doubt, ranks": partial(average_ranks, names=["conv3", "doubt"]),
    "`conv4` and doubt, ranks": partial(average_ranks, names=["conv4", "doubt"]),
}


def main() -> None:
    """Train, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--diagnoses", nargs="+", choices=HAM10000.labels, default=["df", "vasc", "bcc"]
    )
    arguments = parser.parse_args()
    try:
        metadata = load_metadata(find_dataset(arguments.data))
        features = describe(metadata, arguments.out / "features.npz")
    except InputError as error:
        parser.error(str(error))
    measured = {}
    for code in arguments.diagnoses:
        measured[code] = measure(metadata, features, code)
        write_csv(arguments.out / f"without_{code}.csv", measured[code])
    for part, known in (("development", "validation"), ("final", "test")):
        print(f"\n{part}: against the {known} images\n")
        print("| left out | score | images | flagged | known images | flagged | area under ROC |")
        print("| --- | --- | ---: | --- | ---: | --- | --- |")
        for code, table in measured.items():
            validation = table[table["role"] == "validation"]
            chosen = table[table["role"].isin([part, known])]
            for name, score in SCORES.items():
                print(f"| {code} | {name} | {compare(chosen, validation, part, score)} |")


def describe(metadata: pd.DataFrame, path: Path) -> np.ndarray:
    """The features of all images as recipe `probe` computes them, from a file if it exists."""
    if not path.is_file():
        weights = default_weights() or "imagenet"
        size = RECIPES["probe"].image_size
        features = compute_features(list(metadata["path"]), weights=weights, image_size=size)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, features=features)
    with np.load(path) as file:
        return file["features"]


def measure(metadata: pd.DataFrame, features: np.ndarray, code: str) -> pd.DataFrame:
    """Fit without a diagnosis: a row an image with `lesion_id`, `role`, and all scores."""
    was = make_split(metadata, pairs=read_near_duplicates())["split"].to_numpy()
    left_out, labels = (metadata["dx"] == code).to_numpy(), metadata["label"].to_numpy()
    train, validation = ((was == part) & ~left_out for part in ("train", "validation"))
    y_prob = fit_head(features[:, STAGES["conv4"]], labels, train)
    alike = np.full(y_prob.shape[1], 1 / y_prob.shape[1])
    temperature = fit_temperature(labels[validation], y_prob[validation], alike)
    found = metadata[["image_id", "lesion_id", "dx"]].assign(
        role=np.where(left_out, np.where(was == "validation", "development", "final"), was),
        doubt=1 - apply_temperature(y_prob, temperature).max(axis=1),
    )
    for stage, columns in STAGES.items():
        chosen = features[:, columns]
        detector = fit_ood_detector(chosen[train], chosen[validation])
        found[stage] = detector.compute_scores(chosen)
    return found[found["role"] != "train"]


def fit_head(x: np.ndarray, labels: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The probabilities of all images, (n, 7), of a head as recipe `probe` fits it."""
    regression = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=MAX_ITERATIONS)
    head = make_pipeline(StandardScaler(), regression).fit(x[train], labels[train])
    y_prob = np.zeros((len(x), len(HAM10000.labels)))
    y_prob[:, regression.classes_] = head.predict_proba(x)
    return y_prob


def compare(table: pd.DataFrame, validation: pd.DataFrame, part: str, score: Score) -> str:
    """The cells of one row: counts, shares that are flagged, area under the ROC curve."""
    threshold = np.quantile(score(validation, validation), 1 - FALSE_ALARMS, method="higher")
    values, is_new = score(table, validation), (table["role"] == part).to_numpy()
    lesions = table["lesion_id"].to_numpy()
    weights, _ = draw_weights(len(table), lesions, n_bootstrap=RESAMPLES)
    shares = [compute_share(values > threshold, cases, weights) for cases in (is_new, ~is_new)]
    area = summarise(
        np.array([roc_auc_score(is_new, values, sample_weight=weight) for weight in weights])
    )
    counts = [f"{is_new.sum():,}", f"{(~is_new).sum():,}"]
    cells = [counts[0], format_figure(shares[0]), counts[1], format_figure(shares[1])]
    return " | ".join([*cells, format_figure(area)])


if __name__ == "__main__":
    main()
