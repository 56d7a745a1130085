"""Compare two evaluated runs on the same test images."""

from pathlib import Path
from typing import Any

import pandas as pd

from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.evaluation import plots
from skinlesion.evaluation.metrics import compare_predictions
from skinlesion.files import InputError, name_some, write_csv, write_json
from skinlesion.machine import say
from skinlesion.model.run import Run


def compare(run_a: Path, run_b: Path, out: Path) -> dict[str, Any]:
    """Compare two evaluated runs with paired intervals and McNemar's test.

    Args:
        run_a: an evaluated run.
        run_b: another one with the same test images.
        out: folder for `comparison.json`, `comparison.csv` and `comparison.png`.

    Returns:
        What `comparison.json` holds: see `compare_predictions`.

    Raises:
        InputError: a run is not evaluated, or the test images, their diagnoses or the classes
            differ.
    """
    a, b = Run.find(run_a), Run.find(run_b)
    rows = _find_common_test(a, b)
    image_ids = list(rows["image_id"])
    found = compare_predictions(
        rows["label"].to_numpy(),
        a.read_predictions("test", image_ids),
        b.read_predictions("test", image_ids),
        a.info,
        groups=rows["lesion_id"].to_numpy(),
    ) | {"a": str(a), "b": str(b), "synthetic": a.synthetic or b.synthetic}
    figures = pd.DataFrame(found["figures"])
    shown = _choose_figures(figures)
    ax = plots.plot_forest(
        shown.assign(value=shown["difference"]),
        title=f"{b.folder.name} minus {a.folder.name}, 95 % interval",
        reference=0,
    )
    plots.caption(ax.figure, synthetic=found["synthetic"])
    plots.save_figure(ax.figure, out / "comparison.png")
    write_csv(out / "comparison.csv", figures)
    write_json(out / "comparison.json", found)
    _say_results(found, shown)
    return found


def _find_common_test(a: Run, b: Run) -> pd.DataFrame:
    """The test images of two runs; refused if they, their diagnoses or the classes differ."""
    rows, other = a.rows("test"), b.rows("test")
    if set(rows["image_id"]) != set(other["image_id"]):
        common = len(set(rows["image_id"]) & set(other["image_id"]))
        raise InputError(
            f"{a} and {b} have different test images ({common:,} of {len(rows):,} and "
            f"{len(other):,} in common): train both with one --splits file"
        )
    if a.info.labels != b.info.labels:
        raise InputError(f"{a} and {b}: were trained on different classes")
    both = rows.merge(other, on="image_id", suffixes=("_a", "_b"))
    unequal = list(both.loc[both["dx_a"] != both["dx_b"], "image_id"])
    if unequal:
        raise InputError(
            f"{a} and {b}: their splits give {len(unequal):,} images another diagnosis: "
            f"{name_some(unequal)}"
        )
    return rows


def _choose_figures(figures: pd.DataFrame) -> pd.DataFrame:
    """The overall figures and the sensitivity to each class, with labels for readers."""
    chosen = (figures["scope"] == "overall") | (figures["figure"] == "sensitivity")
    shown = figures[chosen]
    scope = shown["scope"].map(lambda scope: "" if scope == "overall" else f" {scope}")
    return shown.assign(label=shown["figure"].str.replace("_", " ") + scope)


def _say_results(found: dict[str, Any], shown: pd.DataFrame) -> None:
    if found["synthetic"]:
        say(SYNTHETIC_NOTE)
    table = shown[["label", "a", "b", "difference", "low", "high"]]
    text = table.to_string(index=False, float_format="{:.3f}".format)
    say(f"A: {found['a']}\nB: {found['b']}\n{text}")
    test = found["mcnemar"]
    say(
        f"only A right: {test['only_a_right']:,} images, only B right: {test['only_b_right']:,}; "
        f"McNemar's exact test: p = {test['p_value']:.2g}"
    )
