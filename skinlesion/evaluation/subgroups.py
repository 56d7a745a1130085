"""The figures within subgroups of patients, as a table and as text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import N_BOOTSTRAP
from skinlesion.evaluation.markdown import make_markdown_table
from skinlesion.evaluation.metrics import compute_metrics, find_malignant

SHOWN_FROM = 20
"""Test images that a subgroup needs to be shown; `subgroups.csv` has all."""
ATTRIBUTES = {"sex": "sex", "age": "age", "localization": "site", "dx_type": "diagnosed by"}
"""Columns of the metadata with subgroups, and what readers see."""
LEAST_CASES = 10
"""Images of a kind that a subgroup needs for a figure about that kind to be shown."""
AGE_BANDS = {"0 to 29": 0, "30 to 49": 30, "50 to 69": 50, "70 and more": 70}
"""Name and first year of each age band."""
SUBGROUP_FIGURES = ("accuracy", "balanced_accuracy")


def compute_subgroups(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    rows: pd.DataFrame,
    info: DatasetInfo,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
) -> pd.DataFrame:
    """The figures within each sex, age band, body site and way of diagnosis.

    Balanced accuracy is the mean over the classes that a subgroup has, so that subgroups with
    different classes are not quite comparable; their support stands beside them.

    Args:
        y_true: int (n,).
        y_prob: float (n, classes).
        rows: n rows with `lesion_id` and any of `sex`, `age` (years), `localization`, `dx_type`.
        info: of the dataset.
        n_bootstrap: resamples.

    Returns:
        `attribute`, `subgroup`, `images`, `lesions`, `malignant` (images), `melanomas` (images of
        the class `info.focus`, in the plural), `figure`, `value`, `low`, `high`,
        `undefined_resamples`; without what the dataset does not say.
    """
    found, malignant, focus = [], find_malignant(info), info.focus
    for attribute, subgroup, chosen in _subgroups(rows):
        metrics = compute_metrics(
            y_true[chosen],
            y_prob[chosen],
            info,
            groups=rows["lesion_id"][chosen],
            n_bootstrap=n_bootstrap,
        )
        support: dict[str, Any] = {
            "attribute": attribute,
            "subgroup": subgroup,
            "images": metrics["n"],
            "lesions": metrics["lesions"],
        }
        overall = metrics["overall"]
        figures: dict[str, dict[str, Any]] = {n: overall[n] for n in SUBGROUP_FIGURES}
        if malignant is not None:
            support["malignant"] = int(malignant[y_true[chosen]].sum())
            figures["malignant_auc"] = overall["malignant_auc"]
        if focus is not None:
            support[f"{info.focus_name}s"] = metrics["per_class"][focus]["support"]
            figures[f"sensitivity_{focus}"] = metrics["per_class"][focus]["sensitivity"]
        found += [support | {"figure": name} | row for name, row in figures.items()]
    return pd.DataFrame(found)


def describe_subgroups(csv: Path, info: DatasetInfo, n_bootstrap: int) -> str:
    """Describe the subgroups that `subgroups.csv` holds, in Markdown.

    Args:
        csv: the file; it need not be there.
        info: of the dataset.
        n_bootstrap: resamples that the figures come from.
    """
    if not csv.is_file():
        return "Not measured."
    rows, supports, shown = [], [], {"balanced_accuracy": "balanced accuracy"}
    if info.malignant is not None:
        supports.append("malignant")
        shown["malignant_auc"] = "AUC, malignant against benign"
    if info.focus is not None:
        supports.append(f"{info.focus_name}s")
        shown[f"sensitivity_{info.focus}"] = f"sensitivity to {info.focus_name}"
    table = pd.read_csv(csv, converters={"subgroup": str})  # which may be called NA
    groups = table.groupby(["attribute", "subgroup"], sort=False)
    for (attribute, subgroup), group in groups:
        counts = group.iloc[0]
        images, malignant = counts["images"], counts.get("malignant", 0)
        if images < SHOWN_FROM:
            continue
        figures = group.set_index("figure").to_dict("index")
        cases = {
            "balanced_accuracy": images,
            "malignant_auc": min(malignant, images - malignant),
            f"sensitivity_{info.focus}": counts.get(f"{info.focus_name}s"),
        }
        row = [f"{ATTRIBUTES[attribute]}: {subgroup}".replace("_", " "), images]
        row += [counts[name] for name in supports]
        for name in shown:
            is_defined = figures[name]["undefined_resamples"] <= n_bootstrap / 2
            enough = cases[name] >= LEAST_CASES and is_defined
            row.append(figures[name] if enough else "too few")
        rows.append(row)
    if not rows:
        return f"No subgroup has {SHOWN_FROM} test images; `subgroups.csv` has them all."
    head = ("subgroup", "images", *supports, *shown.values())
    return (
        f"Subgroups of at least {SHOWN_FROM} test images. Balanced accuracy is the mean over the "
        "classes that a subgroup has: subgroups with different classes cannot be compared exactly. "
        f'"Too few": fewer than {LEAST_CASES} images of a kind, or more than half of the resamples '
        "lack one of the classes.\n\n" + make_markdown_table(head, rows)
    )


def _subgroups(rows: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Attribute, subgroup, and which rows are in it: bool (n,)."""
    table = rows.reset_index(drop=True)
    if "age" in table:
        edges = [*AGE_BANDS.values(), np.inf]
        age = pd.to_numeric(table["age"], errors="coerce")
        table["age"] = pd.cut(age, edges, right=False, labels=list(AGE_BANDS)).astype(object)
    for attribute in ATTRIBUTES:
        if attribute in table:
            values = table[attribute].fillna("unknown").astype(str)
            for subgroup in sorted(values.unique()):
                yield attribute, subgroup, (values == subgroup).to_numpy()
