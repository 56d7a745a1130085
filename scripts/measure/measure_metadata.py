"""Do age, sex and body site add anything to what the network sees?

    .venv/bin/python scripts/measure/measure_metadata.py --data DIR --splits FILE \
        --predictions FILE

Fits two logistic regressions on validation images: on the logarithms of the network's
probabilities, and on these together with age (and its square), sex and body site. Each image is
predicted by regressions that were fitted without its lesion; the probabilities of 10 random
partitions into five parts are averaged. Prints the figures of both and the differences, with 95 %
intervals from a bootstrap over lesions. No test image is used.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from skinlesion.data.dataset import load_metadata, require_local_dataset
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import read_isic_for
from skinlesion.data.split import join_split, read_split
from skinlesion.evaluation.metrics import compare_predictions, format_figure
from skinlesion.files import InputError

FIGURES = ("balanced_accuracy", "macro_f1", "macro_auc")
PARTITIONS = 10


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--splits", type=Path, required=True, metavar="FILE")
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    try:
        table = load_metadata(require_local_dataset(arguments.data))
        rows = join_split(table, read_split(arguments.splits)).query("split == 'validation'")
        image_ids = list(rows["image_id"])
        y_prob = read_isic_for(arguments.predictions, image_ids, HAM10000)
    except InputError as error:
        parser.error(str(error))
    seen = [f"log {code}" for code in HAM10000.labels]
    rows[seen] = np.log(y_prob.clip(1e-9))
    without, with_metadata = (predict(rows, fusion) for fusion in make_fusions(seen))
    found = compare_predictions(
        rows["label"].to_numpy(),
        without,
        with_metadata,
        HAM10000,
        groups=rows["lesion_id"].to_numpy(),
    )
    figures = pd.DataFrame(found["figures"]).query("scope == 'overall'").set_index("figure")
    print("| | image only | image, age, sex and site | difference |\n| --- | --- | --- | --- |")
    for name, row in figures.loc[list(FIGURES)].iterrows():
        difference = format_figure(dict(row) | {"value": row["difference"]})
        print(f"| {name} | {row['a']:.3f} | {row['b']:.3f} | {difference} |")


def make_fusions(seen: list[str]) -> tuple[Pipeline, Pipeline]:
    """The regression on the columns `seen`, and the one that has the metadata as well."""
    age = make_pipeline(
        SimpleImputer(strategy="median"), PolynomialFeatures(include_bias=False), StandardScaler()
    )
    network = (StandardScaler(), seen)
    metadata = (age, ["age"]), (OneHotEncoder(handle_unknown="ignore"), ["sex", "localization"])
    without, with_metadata = (
        make_pipeline(
            make_column_transformer(*columns),
            LogisticRegression(class_weight="balanced", max_iter=2000),
        )
        for columns in ((network,), (network, *metadata))
    )
    return without, with_metadata


def predict(rows: pd.DataFrame, fusion: Pipeline) -> np.ndarray:
    """Probabilities (n, 7) of each image, fitted without its lesion."""
    return np.mean(
        [
            cross_val_predict(
                fusion,
                rows,
                rows["label"],
                groups=rows["lesion_id"],
                cv=StratifiedGroupKFold(5, shuffle=True, random_state=seed),
                method="predict_proba",
            )
            for seed in range(PARTITIONS)
        ],
        axis=0,
    )


if __name__ == "__main__":
    main()
