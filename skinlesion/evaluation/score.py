"""The step `score`: the figures of a predictions file, without a model and without TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.data.forms import read_rows
from skinlesion.data.isic_csv import describe_columns, read_isic_for, read_truth
from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.report import write_report
from skinlesion.evaluation.tables import describe_metrics
from skinlesion.files import InputError, name_some
from skinlesion.machine import say

SUM_TOLERANCE = 0.01
"""How far a row of predictions may be from a sum of 1 before this is reported."""


def score(
    predictions: Path, truth: Path, out: Path, *, metadata: Path | None = None
) -> dict[str, Any]:
    """Compute the figures of any predictions file; no model and no images are needed.

    Args:
        predictions: CSV file in ISIC form.
        truth: the same form, one 1.0 in each row.
        out: folder to fill.
        metadata: CSV file with the columns of a dataset, for lesions and subgroups; without it
            every image counts as a lesion of its own.

    Raises:
        InputError: rows that are missing, extra, doubled or out of range, by name.
    """
    info = describe_columns(truth)
    rows = read_truth_rows(truth, info, metadata)
    y_prob = read_isic_for(predictions, list(rows["image_id"]), info)
    others = int((np.abs(y_prob.sum(axis=1) - 1) > SUM_TOLERANCE).sum())
    if others:
        say(
            f"score: {others:,} rows do not add up to 1; log loss, Brier score and calibration "
            "error still take them as probabilities"
        )
    if metadata is None:
        say("score: without --metadata, every image counts as a lesion of its own")
    metrics = write_report(out, rows, y_prob, info)
    say_results(metrics, info, out, step="score")
    return metrics


def read_truth_rows(truth: Path, info: DatasetInfo, metadata: Path | None) -> pd.DataFrame:
    """`image_id` and `label` of a truth file, joined to the metadata if there is one."""
    names, labels = read_truth(truth, info)
    rows = pd.DataFrame({"image_id": names, "label": labels})
    if metadata is None:
        return rows
    joined = rows.merge(read_rows(metadata), on="image_id", how="left")
    absent = joined.loc[joined["lesion_id"].isna(), "image_id"].tolist()
    if absent:
        raise InputError(f"{metadata}: has no row for {name_some(absent)} of {truth.name}")
    unequal = joined.loc[joined["dx"].map(info.label_of) != joined["label"], "image_id"].tolist()
    if unequal:
        raise InputError(f"{metadata} and {truth}: different diagnoses for {name_some(unequal)}")
    return joined


def say_results(
    metrics: dict[str, Any], info: DatasetInfo, out: Path, *, step: str = "evaluate"
) -> None:
    """Print the main figures and where the others are."""
    say(describe_metrics(metrics, info))
    say(f"{step}: figures and tables in {out}")
