"""The model card of a run in Hugging Face's form, from the run's own files.

The text is in the Jinja template `model_card.md`; this file computes what goes into it.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from skinlesion.config import Config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.leakage import audit_split
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import SPLITS
from skinlesion.diagnoses import BY_IMAGE_NOTE, DISCLAIMER, SYNTHETIC_NOTE, DatasetInfo
from skinlesion.evaluation.calibration import FEW_MALIGNANT
from skinlesion.evaluation.costs import describe_cost_decision
from skinlesion.evaluation.decision_curve import describe_decisions
from skinlesion.evaluation.markdown import format_cell, make_markdown_table
from skinlesion.evaluation.metrics import find_malignant
from skinlesion.evaluation.subgroups import describe_subgroups
from skinlesion.model.run import Run

OVERALL = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC, one class against the rest",
    "accuracy": "accuracy",
    "malignant_auc": "AUC, malignant against benign",
    "macro_average_precision": "macro average precision",
    "log_loss": "log loss",
    "brier": "Brier score, 0 to 2",
    "ece": "expected calibration error",
}
"""Figures that are shown, and what they are called; `metrics.csv` has all."""
HUB_METRICS = {"balanced_accuracy": "balanced_accuracy", "macro_f1": "f1", "macro_auc": "roc_auc"}
"""Figures that the header gives, and what the Hub calls such metrics."""
OOD = (
    "`predict` and the demo flag images that are farther from the training images than 95 % of the "
    "validation images are; {} of the test images are not flagged."
)
PER_CLASS = ("support", "sensitivity", "specificity", "ppv", "auc", "average_precision")


def make_model_card(run: Run, metrics: Mapping[str, Any]) -> str:
    """Describe an evaluated run for people who did not make it.

    Args:
        run: the run.
        metrics: what its `metrics.json` will hold.

    Returns:
        Markdown with a YAML header, the README.md of a model on the Hugging Face Hub.

    Raises:
        InputError: the run is not finished, or a file of it is damaged.
    """
    split, info = run.split, run.info
    card = ModelCard.from_template(
        _make_header(run.config.recipe, metrics, info),
        template_str=(files("skinlesion.evaluation") / "model_card.md").read_text("utf-8"),
        synthetic=info.synthetic,
        source=info.source,
        is_ham10000=info.source == HAM10000.source,
        classes=len(info.labels),
        focus=info.focus_name,
        disclaimer=DISCLAIMER,
        synthetic_note=SYNTHETIC_NOTE,
        image_size="{}x{}".format(*info.image_size),
        headline=_describe_headline(metrics, info),
        images=f"{len(split):,}",
        lesions=f"{split['lesion_id'].nunique():,}",
        counts=_count_classes(split, info),
        audit=_describe_audit(split),
        training=_describe_training(run),
        evaluation=_describe_evaluation(metrics, info, run.evaluation_dir / "subgroups.csv"),
        shifts=metrics.get("shifts"),
        format=format_cell,
        ood=OOD.format(format_cell(metrics["ood"]["in_distribution"])),
        is_ensemble=bool(run.members),
    )
    return str(card)


def _make_header(recipe: str, metrics: Mapping[str, Any], info: DatasetInfo) -> ModelCardData:
    results = []
    # The Hub shows these without the text that calls them figures of drawings.
    if not info.synthetic:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=info.source,
                dataset_name=f"{info.source}, test part of the run's own split",
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{OVERALL[name]}, 95 % interval {row['low']:.3f} to {row['high']:.3f}",
                metric_value=round(row["value"], 3),
            )
            for name, metric in HUB_METRICS.items()
            if (row := metrics["overall"][name])["low"] is not None
        ]
    kind, license = ["dermatoscopy", "skin-lesion"], None
    if info.synthetic:
        kind, license = ["synthetic"], "mit"
    elif info.source == HAM10000.source:
        kind, license = [*kind, "ham10000"], "cc-by-nc-4.0"
    return ModelCardData(
        license=license,
        library_name="keras",
        pipeline_tag="image-classification",
        tags=["resnet50", *kind, "not-for-clinical-use"],
        datasets=None if info.synthetic else [info.source],
        metrics=list(HUB_METRICS.values()),
        model_name=f"skinlesion-{recipe}" if results else None,
        eval_results=results or None,
    )


def _describe_headline(metrics: Mapping[str, Any], info: DatasetInfo) -> str:
    figure = format_cell(metrics["overall"]["balanced_accuracy"])
    said = f"On {metrics['n']:,} test images, balanced accuracy is {figure} (95 % interval)."
    malignant = find_malignant(info)
    if malignant is None:
        return said
    matrix = np.asarray(metrics["confusion_matrix"])
    missed, cases = matrix[:, ~malignant].sum(axis=1), matrix.sum(axis=1)
    said += (
        f" It predicts a benign class for {missed[malignant].sum():,} of "
        f"{cases[malignant].sum():,} malignant images"
    )
    if info.focus is None:
        return f"{said}."
    focus = info.label_of[info.focus]
    return f"{said}, {missed[focus]:,} of {cases[focus]:,} {info.focus_name}s among them."


def _count_classes(split: pd.DataFrame, info: DatasetInfo) -> str:
    def count(rows: pd.DataFrame) -> list[str]:
        parts = [rows[rows["split"] == part] for part in SPLITS]
        return [f"{len(part):,} ({part['lesion_id'].nunique():,})" for part in parts]

    kinds = {True: "malignant", False: "benign", None: "-"}
    rows = [
        (code, name, kinds[malignant], *count(split[split["dx"] == code]))
        for code, name, malignant in info.diagnoses
    ]
    head = ("class", "name", "counted as", *SPLITS)
    return make_markdown_table(head, [*rows, ("all", "", "", *count(split))])


def _describe_audit(split: pd.DataFrame) -> str:
    found = audit_split(split, split, read_near_duplicates())
    pairs = "known pairs of images that show one lesion under two ids"
    if not found.is_clean:
        shares = [
            f"{100 * found.leak('lesion or near duplicate', where):.1f} % of the test images show "
            f"a lesion that is also in {where}"
            for where in ("train", "train or validation")
        ]
        return (
            "**This split leaks.** Lesions in more than one part: "
            f"{found.lesions_shared:,}; {pairs}: {len(found.pairs_across):,}. {', '.join(shares)}. "
            "The figures below are therefore too optimistic."
        )
    if found.by_image:
        return f"**{BY_IMAGE_NOTE}**"
    known = f"none of the {found.pairs_known:,} {pairs} is parted; there may be more such pairs"
    unknown = "whether one is there under two ids is not known"
    return (
        "**Leak audit:** no lesion is in more than one part of the split, and "
        f"{known if found.pairs_known else unknown}."
    )


def _describe_training(run: Run) -> str:
    described, config = run.description, run.config
    weights = described["weights"]
    # Only the name: where the file was is private.
    name = Path(weights["source"]).name
    loaded = f"{name}, in {weights['loaded_layers']} of {weights['layers']} layers of the backbone"
    images = f"{config.limit:,} at most" if config.limit else "all of the split's"
    if added := [Path(one["folder"]).name for one in described.get("also", [])]:
        images += f", and those of {', '.join(added)}, which have licences of their own"
    versions = [f"{name} {number}" for name, number in described["versions"].items() if number]
    rows = {
        "recipe": config.recipe,
        "pretrained weights": loaded if weights["loaded_layers"] else "none",
        "training images": images,
        "fitting": _describe_members(run) or _describe_fitting(config, run.history),
        "seed": str(config.seed),
        "device": f"{described['device']}, {described['precision']}",
        "versions": ", ".join(versions),
        "commit": described["commit"] or "unknown: an installed package",
        "data": f"SHA-256 {described['dataset']['fingerprint']}",
    }
    settings = config.model_dump() | {"weights": Path(config.weights).name}
    parts = [
        make_markdown_table(("", ""), rows.items()),
        f"<details><summary>All {len(settings)} settings</summary>",
        make_markdown_table(("setting", "value"), ((name, str(x)) for name, x in settings.items())),
        "</details>",
    ]
    return "\n\n".join(parts)


def _describe_members(run: Run) -> str:
    """Of an ensemble, its members; of a trained run, an empty text."""
    members = [
        # Of a run elsewhere, the name: a path would tell about this machine.
        f"{Path(one['run']).name if one['run'].startswith('..') else one['run']} "
        f"(seed {one['seed']})"
        for one in run.members
    ]
    if not members:
        return ""
    return (
        f"the mean of the probabilities of {len(members)} models, {', '.join(members)}; the other "
        "rows, and the parts of the split above, are those of the first"
    )


def _describe_fitting(config: Config, history: pd.DataFrame) -> str:
    if history.empty:
        return "a logistic regression on features of the pretrained network, which is not trained"
    done = f"{len(history)} of {config.epochs} epochs"
    if config.schedule == "cosine":
        loss = history["val_loss"].iloc[-1]
        return f"{done}; the last is kept, with a validation loss of {loss:.3f}"
    best = history.loc[history["val_loss"].idxmin()]
    return (
        f"{done}; epoch {best['epoch']} is kept, with the lowest validation loss, "
        f"{best['val_loss']:.3f}"
    )


def _describe_evaluation(metrics: Mapping[str, Any], info: DatasetInfo, subgroups: Path) -> str:
    columns = {"single model": metrics["overall"]} | metrics.get("variants", {})
    matrix = zip(info.labels, metrics["confusion_matrix"], strict=True)
    parts = [
        f"{metrics['n']:,} test images of {metrics['lesions']:,} lesions. In brackets, 95 % "
        f"intervals: percentiles of {metrics['n_bootstrap']:,} resamples of lesions (not images: "
        "images of one lesion resemble each other). An interval without width does not mean "
        "certainty: if all of n lesions are right, the true share may still be 1 - 3 / n.",
        make_markdown_table(
            ("figure", *columns),
            [
                (label, *(x[name] for x in columns.values()))
                for name, label in OVERALL.items()
                if name in metrics["overall"]
            ],
        ),
        "### Each class",
        make_markdown_table(
            ("class", "images", "sensitivity", "specificity", "PPV", "AUC", "average precision"),
            [(code, *(x[name] for name in PER_CLASS)) for code, x in metrics["per_class"].items()],
        ),
        "Images of each true class (row) and predicted class (column):",
        make_markdown_table(("", *info.labels), [(code, *counts) for code, counts in matrix]),
        *_describe_calibration(metrics["calibration"]),
        *(describe_decisions(metrics["decisions"], info) if info.malignant else ()),
        *(describe_cost_decision(paid, info) if (paid := metrics.get("cost_decision")) else ()),
        "### Subgroups",
        describe_subgroups(subgroups, info, metrics["n_bootstrap"]),
    ]
    return "\n\n".join(parts)


def _describe_calibration(found: Mapping[str, Any]) -> list[str]:
    sets = found["prediction_sets"]
    return [
        *(_describe_operating_points(found) if found["operating_points"] else ()),
        "### Calibration",
        f"One temperature, {found['temperature']:.3f}, fitted on the validation images. Where "
        "training had class weights, the share of each class among the training images is put "
        "back, so that the probabilities hold for images in which each class is as frequent as "
        "there; the prediction and the prediction sets give all classes the same weight. The "
        "bootstrap overstates the calibration error: its intervals are a little too high.",
        make_markdown_table(
            ("figure", "before", "after"),
            [
                (OVERALL[name], found["before"][name], found["after"][name])
                for name in found["before"]
            ],
        ),
        f"**Prediction sets** should hold the true class of {sets['target_coverage']:.2f} of the "
        f"images. They hold that of {format_cell(sets['coverage'])}, with "
        f"{format_cell(sets['mean_size'])} classes on average; `metrics.json` has the share of "
        "each class.",
    ]


def _describe_operating_points(found: Mapping[str, Any]) -> list[str]:
    names = ("sensitivity", "specificity", "PPV", "NPV")
    malignant = found["validation_malignant"]
    uncertain = " (few: the thresholds are uncertain)" if malignant < FEW_MALIGNANT else ""
    return [
        "### Malignant or benign",
        "By the sum of the calibrated probabilities of the malignant classes, at thresholds chosen "
        f"on {found['validation_images']:,} validation images, "
        f"{malignant:,} of them malignant{uncertain}:",
        make_markdown_table(
            ("chosen for", "threshold", *names),
            [
                (
                    f"sensitivity {point['target_sensitivity']:.2f}",
                    {"value": point["threshold"]},
                    *(point[name.lower()] for name in names),
                )
                for point in found["operating_points"]
            ],
        ),
    ]
