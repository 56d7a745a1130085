"""Decisions by the lowest expected cost, from a table of what each mistake costs.

The decision is taken after training, on the calibrated probabilities (Elkan, "The Foundations of
Cost-Sensitive Learning", IJCAI 2001). Barata et al., Nature Medicine 29:1941 (2023),
doi:10.1038/s41591-023-02475-5, use tables of experts in the same place, and for training.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import Figure, compute_share, summarise
from skinlesion.evaluation.markdown import format_cell, make_markdown_table
from skinlesion.evaluation.metrics import compute_figures, find_malignant
from skinlesion.files import InputError, name_some, read_csv

KINDS = ("benign", "malignant")
"""Rows and columns of the small form of a table."""
BY_RATIO, BY_COST = "highest probability relative to frequency", "lowest expected cost"
"""The two rules of decision. The first gives each class the same weight, however rare it is."""
FIGURES = {
    "mean_cost": "mean cost of an image",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "sensitivity": "sensitivity, malignant against benign",
    "specificity": "specificity, malignant against benign",
}
"""What is measured of both rules, and what readers see."""

Cost = Annotated[float, Field(ge=0, le=1e6, strict=True)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class CostTable:
    """What each decision costs, as a saved model holds it.

    Attributes:
        name: of the file that it was read from.
        costs: (classes, classes), in any unit, 0 or more: rows are the true class, columns the
            decided class, in the order of `info.labels`. The diagonal is 0.
    """

    name: Annotated[str, Field(pattern=r"^[\w .-]{1,60}$")]
    costs: tuple[tuple[Cost, ...], ...]

    @model_validator(mode="after")
    def _require_table(self) -> "CostTable":
        if not self.costs or {len(row) for row in self.costs} != {len(self.costs)}:
            raise ValueError("costs: must have as many columns as rows")
        if np.diagonal(self.costs).any():
            raise ValueError("costs: the diagonal must be 0")
        return self


def read_costs(path: Path, info: DatasetInfo) -> CostTable:
    """Read a table of costs.

    Args:
        path: CSV file. The first column names the true class of each row, the header the decided
            classes: either all codes, or `benign` and `malignant`, in any order. In the small form,
            mistakes between two classes of one kind cost nothing.
        info: of the dataset.

    Raises:
        InputError: the file cannot be read; a class is unknown, missing or repeated; a cost is not
            a number from 0 to 1,000,000; or a right decision has a cost.
    """
    table = read_csv(path, "a table of costs")
    rows = table.iloc[:, 0].astype(str).str.strip().str.lower()
    columns = table.columns[1:].str.strip().str.lower()
    malignant = find_malignant(info)
    is_small = malignant is not None and {*rows, *columns} <= {*KINDS}
    names = KINDS if is_small else info.labels
    if not (sorted(rows) == sorted(columns) == sorted(names)):
        raise InputError(
            f"{path}: has the rows {name_some(list(rows), shown=9)} and the columns "
            f"{name_some(list(columns), shown=9) or 'none'}; both must be "
            f"{', '.join(info.labels)}, or {' and '.join(KINDS)}, each of them once"
        )
    values = table.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
    costs = values.set_axis(rows).set_axis(columns, axis=1).loc[[*names], [*names]].to_numpy(float)
    _require_cells(path, names, ~((costs >= 0) & (costs <= 1e6)), "must be from 0 to 1,000,000")
    right = np.eye(len(names), dtype=bool)
    _require_cells(path, names, right & (costs > 0), "must be 0: this decision is right")
    if is_small and malignant is not None:
        costs = costs[np.ix_(malignant.astype(int), malignant.astype(int))]
    name = re.sub(r"[^\w .-]", "_", path.name)[-60:]
    return CostTable(name, tuple(tuple(row) for row in costs.tolist()))


def _require_cells(path: Path, names: tuple[str, ...], wrong: np.ndarray, rule: str) -> None:
    cells = [f"true {names[true]} decided {names[decided]}" for true, decided in np.argwhere(wrong)]
    if cells:
        raise InputError(f"{path}: the cost of {name_some(cells)} {rule}")


def decide(calibrated: np.ndarray, table: CostTable) -> np.ndarray:
    """Decide on a class for each image by the lowest expected cost.

    Args:
        calibrated: float (n, classes), calibrated probabilities.
        table: the costs.

    Returns:
        int (n,), labels: those with the lowest expected cost, of equals the most probable one.
    """
    expected = calibrated @ np.array(table.costs)
    # Equal costs may differ by rounding, such as those of two malignant classes in the small form.
    slack = 1e-9 * np.max(table.costs)
    lowest = expected <= expected.min(axis=1, keepdims=True) + slack
    return np.where(lowest, calibrated, -1).argmax(axis=1)


def compute_cost_decision(
    y_true: np.ndarray,
    calibrated: np.ndarray,
    table: CostTable,
    info: DatasetInfo,
    *,
    by_ratio: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Measure decisions by cost beside those without costs.

    Args:
        y_true: int (n,).
        calibrated: float (n, classes), calibrated probabilities.
        table: the costs.
        info: of the dataset.
        by_ratio: int (n,), the labels decided without costs.
        weights: from `draw_weights`.

    Returns:
        `name` and `costs` of the table; `rules`: for both rules the `FIGURES`; `saved`: the mean
        cost without them minus that with them, paired.
    """
    costs, everything = np.array(table.costs), np.ones(len(y_true))
    decided = {BY_RATIO: by_ratio, BY_COST: decide(calibrated, table)}
    paid = {rule: costs[y_true, labels] for rule, labels in decided.items()}
    return {
        "name": table.name,
        "costs": costs.tolist(),
        "rules": {
            rule: {"mean_cost": compute_share(paid[rule], everything, weights)}
            | _measure_decisions(y_true, labels, info, weights)
            for rule, labels in decided.items()
        },
        "saved": compute_share(paid[BY_RATIO] - paid[BY_COST], everything, weights),
    }


def _measure_decisions(
    y_true: np.ndarray, decided: np.ndarray, info: DatasetInfo, weights: np.ndarray
) -> dict[str, Figure]:
    certain = np.eye(len(info.labels))[decided]
    overall, per_class = compute_figures(y_true, certain, weights, info)
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    figures = {name: summarise(overall[name]) for name in names}
    if info.focus:
        sensitivity = per_class["sensitivity"][:, info.label_of[info.focus]]
        figures[f"sensitivity_{info.focus}"] = summarise(sensitivity)
    malignant = find_malignant(info)
    if malignant is not None:
        cases, called = malignant[y_true], malignant[decided]
        figures["sensitivity"] = compute_share(called, cases, weights)
        figures["specificity"] = compute_share(~called, ~cases, weights)
    return figures


def describe_cost_decision(found: Mapping[str, Any], info: DatasetInfo) -> list[str]:
    """Paragraphs of the model card, Markdown; arguments: `metrics["cost_decision"]`."""
    costs = zip(info.labels, found["costs"], strict=True)
    names = FIGURES | {f"sensitivity_{info.focus}": f"sensitivity to {info.focus_name}"}
    return [
        "### Decisions by cost",
        f"`predict` and the demo decide by the {BY_COST}, from the table `{found['name']}` and the "
        "calibrated probabilities. Costs of each true class (row) and decided class (column):",
        make_markdown_table(
            ("", *info.labels), [(code, *(f"{cost:g}" for cost in row)) for code, row in costs]
        ),
        f"The figures of all other sections are of decisions by the {BY_RATIO}.",
        make_markdown_table(
            ("figure", *found["rules"]),
            [
                (names[name], *(row[name] for row in found["rules"].values()))
                for name in found["rules"][BY_COST]
            ],
        ),
        f"Decisions by cost save {format_cell(found['saved'])} an image; below 0, they cost more.",
    ]
