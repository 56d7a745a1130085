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
from skinlesion.data.leakage import audit_split
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import SPLITS
from skinlesion.diagnoses import DIAGNOSES, DISCLAIMER, LABEL_OF, SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import FEW_MALIGNANT
from skinlesion.evaluation.costs import describe_cost_decision
from skinlesion.evaluation.decision_curve import describe_decisions
from skinlesion.evaluation.markdown import format_cell, make_markdown_table
from skinlesion.evaluation.metrics import MALIGNANT
from skinlesion.evaluation.report import ATTRIBUTES, SHOWN_FROM
from skinlesion.files import InputError, name_some
from skinlesion.model.run import Run

LEAST_CASES = 10
"""Images of a kind that a subgroup needs for a figure about that kind to be shown."""
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
    "validation images are"
)
PER_CLASS = ("support", "sensitivity", "specificity", "ppv", "auc", "average_precision")


def make_model_card(run: Run, metrics: dict[str, Any] | None = None) -> str:
    """Describe a calibrated run for people who did not make it.

    Args:
        run: a trained run. The card says what it lacks, such as an evaluation.
        metrics: what its `metrics.json` will hold; None: what it holds.

    Returns:
        Markdown with a YAML header, the README.md of a model on the Hugging Face Hub.

    Raises:
        InputError: the run is not finished, or its files do not fit this version.
    """
    metrics, split, synthetic = metrics or run.metrics, run.split, run.synthetic
    absent = sorted(set(OVERALL) - set(metrics["overall"])) if metrics else []
    if absent:
        raise InputError(
            f"{run.evaluation_dir}: of another version, lacks {name_some(absent)}; evaluate again"
        )
    card = ModelCard.from_template(
        _make_header(run.config.recipe, metrics, synthetic=synthetic),
        template_str=(files("skinlesion.evaluation") / "model_card.md").read_text("utf-8"),
        synthetic=synthetic,
        disclaimer=DISCLAIMER,
        synthetic_note=SYNTHETIC_NOTE,
        image_size="{}x{}".format(*run.info.image_size),
        headline=_describe_headline(metrics),
        images=f"{len(split):,}",
        lesions=f"{split['lesion_id'].nunique():,}",
        counts=_count_classes(split),
        audit=_describe_audit(split),
        training=_describe_training(run),
        evaluation=_describe_evaluation(metrics, run.evaluation_dir / "subgroups.csv"),
        shifts=(metrics or {}).get("shifts"),
        format=format_cell,
        ood=_describe_ood(metrics),
        is_ensemble=bool(run.members),
    )
    return str(card)


def _make_header(recipe: str, metrics: dict[str, Any] | None, *, synthetic: bool) -> ModelCardData:
    results = []
    # The Hub shows these without the text that calls them figures of drawings.
    if metrics and not synthetic:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="HAM10000",
                dataset_name="HAM10000, test part of the run's own split",
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{OVERALL[name]}, 95 % interval {row['low']:.3f} to {row['high']:.3f}",
                metric_value=round(row["value"], 3),
            )
            for name, metric in HUB_METRICS.items()
            if (row := metrics["overall"][name])["low"] is not None
        ]
    kind = ["synthetic"] if synthetic else ["dermatoscopy", "skin-lesion", "ham10000"]
    return ModelCardData(
        license="mit" if synthetic else "cc-by-nc-4.0",
        library_name="keras",
        pipeline_tag="image-classification",
        tags=["resnet50", *kind, "not-for-clinical-use"],
        datasets=None if synthetic else ["HAM10000"],
        metrics=list(HUB_METRICS.values()) if metrics else None,
        model_name=f"skinlesion-{recipe}" if results else None,
        eval_results=results or None,
    )


def _describe_headline(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "Its performance was not measured yet."
    figure = format_cell(metrics["overall"]["balanced_accuracy"])
    matrix = np.asarray(metrics["confusion_matrix"])
    missed, cases = matrix[:, ~MALIGNANT].sum(axis=1), matrix.sum(axis=1)
    mel = LABEL_OF["mel"]
    return (
        f"On {metrics['n']:,} test images, balanced accuracy is {figure} (95 % interval). It "
        f"predicts a benign class for {missed[MALIGNANT].sum():,} of {cases[MALIGNANT].sum():,} "
        f"malignant images, {missed[mel]:,} of {cases[mel]:,} melanomas among them."
    )


def _describe_ood(metrics: dict[str, Any] | None) -> str:
    found = (metrics or {}).get("ood")
    if not found:
        return f"{OOD}."
    return f"{OOD}; {format_cell(found['in_distribution'])} of the test images are not flagged."


def _count_classes(split: pd.DataFrame) -> str:
    def count(rows: pd.DataFrame) -> list[str]:
        parts = [rows[rows["split"] == part] for part in SPLITS]
        return [f"{len(part):,} ({part['lesion_id'].nunique():,})" for part in parts]

    rows = [
        (code, name, "malignant" if malignant else "benign", *count(split[split["dx"] == code]))
        for code, name, malignant in DIAGNOSES
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
    versions = [f"{name} {number}" for name, number in described["versions"].items() if number]
    rows = {
        "recipe": config.recipe,
        "pretrained weights": loaded if weights["loaded_layers"] else "none",
        "training images": f"{config.limit:,} at most" if config.limit else "all of the split's",
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
    members = [f"{member['run']} (seed {member['seed']})" for member in run.members]
    if not members:
        return ""
    return (
        f"the mean of the probabilities of {len(members)} models, {', '.join(members)}; the other "
        "rows, and the parts of the split above, are those of the first"
    )


def _describe_fitting(config: Config, history: pd.DataFrame) -> str:
    if history.empty:
        return "a logistic regression on features of the pretrained network, which is not trained"
    best = history.loc[history["val_loss"].idxmin()]
    return (
        f"{len(history)} of {config.epochs} epochs; epoch {best['epoch']} is kept, with the lowest "
        f"validation loss, {best['val_loss']:.3f}"
    )


def _describe_evaluation(metrics: dict[str, Any] | None, subgroups: Path) -> str:
    if metrics is None:
        return "Not evaluated yet: run `python -m skinlesion evaluate --run RUN`."
    columns = {"single model": metrics["overall"]} | metrics.get("variants", {})
    columns.pop("single", None)  # is the first column
    matrix = zip(LABEL_OF, metrics["confusion_matrix"], strict=True)
    parts = [
        f"{metrics['n']:,} test images of {metrics['lesions']:,} lesions. In brackets, 95 % "
        f"intervals: percentiles of {metrics['n_bootstrap']:,} resamples of lesions (not images: "
        "images of one lesion resemble each other). An interval without width does not mean "
        "certainty: if all of n lesions are right, the true share may still be 1 - 3 / n.",
        make_markdown_table(
            ("figure", *columns),
            [(label, *(x[name] for x in columns.values())) for name, label in OVERALL.items()],
        ),
        "### Each class",
        make_markdown_table(
            ("class", "images", "sensitivity", "specificity", "PPV", "AUC", "average precision"),
            [(code, *(x[name] for name in PER_CLASS)) for code, x in metrics["per_class"].items()],
        ),
        "Images of each true class (row) and predicted class (column):",
        make_markdown_table(("", *LABEL_OF), [(code, *counts) for code, counts in matrix]),
        *_describe_calibration(metrics.get("calibration")),
        *describe_decisions(metrics.get("decisions")),
        *describe_cost_decision(metrics.get("cost_decision")),
        "### Subgroups",
        _describe_subgroups(subgroups, metrics["n_bootstrap"]),
    ]
    return "\n\n".join(parts)


def _describe_calibration(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["Operating points, calibration and prediction sets were not measured."]
    sets = found["prediction_sets"]
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
        "### Calibration",
        f"One temperature, {found['temperature']:.3f}, fitted on the validation images. Where "
        "training had class weights, the share of each class among the training images is put "
        "back, so that the probabilities hold for images in which each class is as frequent as "
        "there. The prediction and the prediction sets give all classes the same weight. The "
        "bootstrap overstates the calibration error: its intervals are a little too high.",
        make_markdown_table(
            ("figure", "before", "after"),
            [
                (OVERALL[name], found["before"][name], found["after"][name])
                for name in ("ece", "brier", "log_loss", "malignant_auc")
            ],
        ),
        f"**Prediction sets** should hold the true class of {sets['target_coverage']:.2f} of the "
        f"images. They hold that of {format_cell(sets['coverage'])}, with "
        f"{format_cell(sets['mean_size'])} classes on average; `metrics.json` has the share of "
        "each class.",
    ]


def _describe_subgroups(csv: Path, n_bootstrap: int) -> str:
    if not csv.is_file():
        return "Not measured."
    rows = []
    groups = pd.read_csv(csv).groupby(["attribute", "subgroup"], sort=False)
    for (attribute, subgroup), group in groups:
        images, malignant, melanomas = group.iloc[0][["images", "malignant", "melanomas"]]
        if images < SHOWN_FROM:
            continue
        figures = group.set_index("figure").to_dict("index")
        row = [f"{ATTRIBUTES[attribute]}: {subgroup}".replace("_", " ")]
        row += [images, malignant, melanomas]
        for name, cases in (
            ("balanced_accuracy", images),
            ("malignant_auc", min(malignant, images - malignant)),
            ("sensitivity_mel", melanomas),
        ):
            enough = (
                cases >= LEAST_CASES and figures[name]["undefined_resamples"] <= n_bootstrap / 2
            )
            row.append(figures[name] if enough else "too few")
        rows.append(row)
    if not rows:
        return f"No subgroup has {SHOWN_FROM} test images; `subgroups.csv` has them all."
    head = (
        *("subgroup", "images", "malignant", "melanomas", "balanced accuracy"),
        *("AUC, malignant against benign", "sensitivity to melanoma"),
    )
    return (
        f"Subgroups of at least {SHOWN_FROM} test images. Balanced accuracy is the mean over the "
        "classes that a subgroup has: subgroups with different classes cannot be compared exactly. "
        f'"Too few": fewer than {LEAST_CASES} images of a kind, or more than half of the resamples '
        "lack one of the classes.\n\n" + make_markdown_table(head, rows)
    )
