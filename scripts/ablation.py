r"""What does each setting change? Trains a recipe, and the recipe with one thing changed at a time.

    python scripts/ablation.py --data DIR --weights FILE --out OUT --limit 1400 --epochs 5 \
        --image-size 96 96

Each variant is compared with the recipe on the validation images (paired bootstrap over lesions,
1,000 draws): nothing here sees the test images. Writes OUT/ablation.csv, a row a variant; the runs
in OUT are kept and, when interrupted, resumed. Expect some minutes a variant on two cores.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from skinlesion import workflow
from skinlesion.config import make_config
from skinlesion.data.isic import read_predictions_for
from skinlesion.evaluation.metrics import compare_predictions, compute_metrics, format_figure
from skinlesion.files import write_csv
from skinlesion.machine import default_weights
from skinlesion.model.run import read_part

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "no class weights": {"class_weights": "none"},
    "balanced sampling": {"class_weights": "none", "sampling": "balanced"},
    "focal loss": {"focal_gamma": 2.0},
    "label smoothing": {"label_smoothing": 0.1},
    "AdamW": {"weight_decay": 0.05},
    "MixUp": {"class_weights": "none", "sampling": "balanced", "mixing": "mixup"},
    "CutMix": {
        "class_weights": "none",
        "sampling": "balanced",
        "mixing": "cutmix",
        "mixing_alpha": 1.0,
    },
    "three times the rate": {"learning_rate": 3e-4},
    "a third of the rate": {"learning_rate": 3e-5},
    "fine-tune from conv4": {"fine_tune_from": "conv4"},
    "random head, frozen epochs": {"head_start": "random", "frozen_share": 0.25},
    "all stages, frozen epochs": {
        "top_stage": "conv5",
        "head_start": "random",
        "frozen_share": 0.25,
    },
}
FIGURES = ("balanced_accuracy", "macro_auc", "macro_f1", "log_loss")


def read_validation(run: Path) -> tuple[Any, Any, Any]:
    """Truth, probabilities and lesions of a run's validation images."""
    rows = read_part(run, "validation")
    y_prob = read_predictions_for(run / "predictions_validation.csv", list(rows["image_id"]))
    return rows["label"].to_numpy(), y_prob, rows["lesion_id"].to_numpy()


def describe(run: Path, reference: Path) -> dict[str, str]:
    """The figures of a run, and what they are more than the reference's, with intervals."""
    y_true, y_prob, lesions = read_validation(run)
    metrics = compute_metrics(y_true, y_prob, groups=lesions)["overall"]
    row = {name: format_figure(metrics[name]) for name in FIGURES}
    found = compare_predictions(y_true, read_validation(reference)[1], y_prob, groups=lesions)
    for figure in found["figures"]:
        if figure["scope"] == "overall" and figure["figure"] in FIGURES[:2]:
            low, high = figure["low"], figure["high"]
            text = f"{figure['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            row[f"{figure['figure']} more"] = text
    return row


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--weights", default=default_weights(), metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="rows of the table"
    )
    given = vars(parser.parse_args())
    data, out, recipe, only = (given.pop(name) for name in ("data", "out", "recipe", "only"))
    rows = []
    for name in dict.fromkeys(["recipe", *only]):
        run = out / name.replace(" ", "-")
        workflow.train(data, run, make_config(recipe, **given | VARIANTS[name]))
        minutes = round(pd.read_csv(run / "history.csv")["seconds"].sum() / 60, 1)
        rows.append({"variant": name} | describe(run, out / "recipe") | {"minutes": minutes})
        write_csv(out / "ablation.csv", pd.DataFrame(rows))
        print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
