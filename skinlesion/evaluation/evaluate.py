"""The steps that judge: evaluate, score, compare; what notebooks and command line call.

Each reads files and writes files, says what it does, and can be repeated. The test images of a run
are predicted once; what is computed from the predictions can be computed again.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from skinlesion.data.ham10000 import (
    MASKS_NAME,
    find_dataset,
    list_images,
    load_metadata,
    read_metadata,
)
from skinlesion.data.isic import read_predictions_for, read_truth, write_predictions
from skinlesion.data.split import join_split, read_split
from skinlesion.diagnoses import CLASS_CODES, LABEL_OF, SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import apply_temperature
from skinlesion.evaluation.metrics import compare_predictions, compute_share, draw_weights
from skinlesion.evaluation.ood import is_foreign
from skinlesion.files import (
    InputError,
    name_some,
    read_json,
    write_atomically,
    write_csv,
    write_json,
)
from skinlesion.machine import say
from skinlesion.model.run import (
    find_run,
    read_part,
    read_run_config,
    read_test_predictions,
    recall_dataset,
    require_same_dataset,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skinlesion.model.predictor import Predictor

SUM_TOLERANCE = 0.01
"""How far a row of predictions may be from adding up to 1 before this is said."""


def evaluate(run: Path, *, data: str | Path | None = None, tta: bool = False) -> dict[str, Any]:
    """Predict the test images of a run, once; write figures, tables, `metrics.json`, model card.

    Test predictions that are there already are used again.

    Args:
        run: a finished run directory.
        data: the dataset; None looks for it as `copy` does.
        tta: also predict with test-time augmentation, to stand beside the plain predictions.

    Returns:
        What `metrics.json` holds: see `report.write_report`.
    """
    from skinlesion.evaluation import plots
    from skinlesion.evaluation.model_card import make_model_card
    from skinlesion.evaluation.report import draw_explanations
    from skinlesion.model.predictor import Predictor

    run = find_run(run)
    predictor = Predictor.load(run)
    source = find_dataset(data or recall_dataset(run))
    table = load_metadata(source)
    require_same_dataset(run, table)
    rows = _join_test(run, table)
    y_prob = _predict_once(predictor, rows, run)
    variants = {}
    if tta or (run / "predictions_test_tta.csv").is_file():
        averaged = _predict_once(predictor, rows, run, tta=True)
        variants = {"single": y_prob, "test-time augmentation": averaged}
    figures: dict[str, Any] = {"explanations": draw_explanations(predictor, rows, y_prob)}
    if (run / "history.csv").is_file():
        history = pd.read_csv(run / "history.csv")
        figures["learning_curves"] = plots.plot_learning_curves(history)[0].figure
    heat = _measure_explanation(predictor, rows, y_prob, source / MASKS_NAME)
    metrics = _report(
        run / "evaluation",
        rows,
        y_prob,
        calibration=predictor.calibration,
        variants=variants,
        synthetic=predictor.bundle.info.synthetic,
        seed=read_run_config(run).seed,
        extra=heat | _measure_gate(predictor, rows),
        figures=figures,
    )
    card = make_model_card(run)
    path = run / "evaluation" / "model_card.md"
    write_atomically(path, lambda part: part.write_text(card, encoding="utf-8"))
    say(f"evaluate: what to know about the model, as a model card, in {path}")
    return metrics


def evaluate_external(
    runs: Sequence[Path],
    images: Path,
    truth: Path,
    out: Path,
    *,
    metadata: Path | None = None,
    tta: bool = False,
) -> dict[str, Any]:
    """Test one run, or several as an ensemble, on other images with a ground truth.

    Args:
        runs: run directories or bundles; several are averaged after calibration.
        images: folder with the images somewhere below it.
        truth: CSV file in the form of ISIC 2018 Task 3; its images are the ones judged.
        out: folder to fill.
        metadata: CSV file with HAM10000's columns for these images, for lesions and subgroups.
        tta: predict with test-time augmentation.

    Raises:
        InputError: an image of the truth is missing, or the files do not fit each other.
    """
    from skinlesion.model.predictor import Predictor

    _require_different(runs)
    rows = _read_truth_rows(truth, metadata)
    paths = list_images(images)
    missing = sorted(set(rows["image_id"]) - set(paths))
    if missing:
        raise InputError(
            f"{images}: {len(missing):,} of {len(rows):,} images of {truth.name} are not there: "
            f"{name_some(missing)}"
        )
    rows = rows.assign(path=rows["image_id"].map(paths))
    members, calibrated, synthetic = {}, [], False
    for run in runs:
        predictor = Predictor.load(run)
        calibration = predictor.calibration
        _warn_of_leak(run, rows)
        say(f"evaluate: predicting {len(rows):,} images with {run}")
        y_prob = predictor.predict_probabilities(list(rows["path"]), tta=tta)
        members[str(run)] = y_prob
        calibrated.append(apply_temperature(y_prob, calibration.temperature))
        synthetic = synthetic or predictor.bundle.info.synthetic
    options: dict[str, Any] = {"calibration": calibration}
    if len(runs) > 1:
        y_prob = np.mean(calibrated, axis=0)
        options = {"variants": members | {"ensemble": y_prob}}
    write_predictions(out / "predictions.csv", list(rows["image_id"]), y_prob)
    return _report(out, rows, y_prob, synthetic=synthetic, **options)


def evaluate_together(
    runs: Sequence[Path], out: Path, *, data: str | Path | None = None, tta: bool = False
) -> dict[str, Any]:
    """Evaluate several runs: as an ensemble on one test set, or as folds of a cross-validation.

    Runs with the same test images are an ensemble, the mean of their calibrated probabilities.
    Runs whose test images have none in common are folds: each image is judged by the one model
    that has not seen it.

    Args:
        runs: finished run directories, two or more.
        out: folder to fill.
        data: the dataset; None looks for it as `copy` does.
        tta: predict with test-time augmentation.

    Raises:
        InputError: test images that overlap in part, so that one model was trained on what another
            is tested on.
    """
    from skinlesion.model.predictor import Predictor

    runs = [find_run(run) for run in runs]
    _require_different(runs)
    table = load_metadata(find_dataset(data or recall_dataset(runs[0])))
    parts, members, calibrated, synthetic = [], {}, [], False
    for run in runs:
        require_same_dataset(run, table)
        predictor = Predictor.load(run)
        rows = _join_test(run, table).sort_values("image_id", ignore_index=True)
        y_prob = _predict_once(predictor, rows, run, tta=tta)
        parts.append(rows)
        members[str(run)] = y_prob
        calibrated.append(apply_temperature(y_prob, predictor.calibration.temperature))
        synthetic = synthetic or predictor.bundle.info.synthetic
    tested = [set(rows["image_id"]) for rows in parts]
    if all(ids == tested[0] for ids in tested):
        rows, y_prob = parts[0], np.mean(calibrated, axis=0)
        variants, kind = members | {"ensemble": y_prob}, "ensemble"
    elif all(not one & other for one, other in combinations(tested, 2)):
        rows, y_prob = pd.concat(parts, ignore_index=True), np.concatenate(calibrated)
        variants, kind = {}, "folds"
    else:
        raise InputError(
            "the runs are tested on images that are the same in part: train them on one split, or "
            "on the folds of one (split --fold K/N)"
        )
    write_predictions(out / "predictions.csv", list(rows["image_id"]), y_prob)
    say(f"evaluate: {len(runs)} runs as {kind}")
    return _report(out, rows, y_prob, variants=variants, synthetic=synthetic)


def score(
    predictions: Path, truth: Path, out: Path, *, metadata: Path | None = None
) -> dict[str, Any]:
    """Compute the figures of any predictions file; no model and no images are needed.

    Args:
        predictions: CSV file in the form of ISIC 2018 Task 3.
        truth: the same form, one 1.0 a row.
        out: folder to fill.
        metadata: CSV file with HAM10000's columns, for lesions and subgroups; without it every
            image counts as a lesion of its own.

    Raises:
        InputError: rows that are missing, extra, doubled or out of range, by name.
    """
    rows = _read_truth_rows(truth, metadata)
    y_prob = read_predictions_for(predictions, list(rows["image_id"]))
    apart = int((np.abs(y_prob.sum(axis=1) - 1) > SUM_TOLERANCE).sum())
    if apart:
        say(
            f"score: {apart:,} rows do not add up to 1: log loss, Brier score and calibration "
            "error take them for probabilities all the same"
        )
    if metadata is None:
        say("score: no --metadata, so every image counts as a lesion of its own")
    return _report(out, rows, y_prob, step="score")


def compare(run_a: Path, run_b: Path, out: Path) -> dict[str, Any]:
    """Compare two evaluated runs on the test images that they share.

    Args:
        run_a: an evaluated run directory.
        run_b: another one with the same test images.
        out: folder for `comparison.json`, `comparison.csv` and `comparison.png`.

    Returns:
        What `comparison.json` holds: see `evaluation.compare_predictions`.

    Raises:
        InputError: a run is not evaluated, or the test images differ.
    """
    from skinlesion.evaluation import plots

    run_a, run_b = find_run(run_a), find_run(run_b)
    rows, other = read_part(run_a, "test"), read_part(run_b, "test")
    if set(rows["image_id"]) != set(other["image_id"]):
        common = len(set(rows["image_id"]) & set(other["image_id"]))
        raise InputError(
            f"{run_a} and {run_b} have different test images ({common:,} of {len(rows):,} and "
            f"{len(other):,} in common): train both with one --splits file"
        )
    found = compare_predictions(
        rows["label"].to_numpy(),
        read_test_predictions(run_a, rows),
        read_test_predictions(run_b, rows),
        groups=rows["lesion_id"].to_numpy(),
    ) | {"a": str(run_a), "b": str(run_b)}
    figures = pd.DataFrame(found["figures"])
    shown = figures[(figures["scope"] == "overall") | (figures["figure"] == "sensitivity")]
    labels = shown["figure"].str.replace("_", " ") + shown["scope"].map(
        lambda scope: "" if scope == "overall" else f" {scope}"
    )
    ax = plots.plot_forest(
        shown.assign(label=labels, value=shown["difference"]),
        title=f"{run_b.name} minus {run_a.name}, 95 % interval",
        reference=0,
    )
    synthetic = any(read_json(x / "config.json")["dataset"]["synthetic"] for x in (run_a, run_b))
    plots.caption(ax.figure, synthetic=synthetic)
    plots.save_figure(ax.figure, out / "comparison.png")
    write_csv(out / "comparison.csv", figures)
    write_json(out / "comparison.json", found | {"synthetic": synthetic})
    if synthetic:
        say(SYNTHETIC_NOTE)
    table = shown.assign(figure=labels)[["figure", "a", "b", "difference", "low", "high"]]
    say(f"A: {run_a}\nB: {run_b}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    test = found["mcnemar"]
    say(
        f"only A right: {test['only_a_right']:,} images, only B right: {test['only_b_right']:,}; "
        f"McNemar's exact test: p = {test['p_value']:.2g}"
    )
    return found


def plot_samples(run: Path, *, data: str | Path | None = None) -> "Figure":
    """Test images of an evaluated run, drawn by its seed, titled with true and predicted class."""
    from skinlesion.evaluation.report import draw_samples

    return draw_samples(*_read_judged(run, data), seed=read_run_config(run).seed)


def plot_mistakes(run: Path, *, data: str | Path | None = None) -> "Figure":
    """The test images that an evaluated run got wrong with the highest confidence."""
    from skinlesion.evaluation.report import draw_mistakes

    return draw_mistakes(*_read_judged(run, data))


def explain(run: Path, *, data: str | Path | None = None, right: bool = True) -> "Figure":
    """Grad-CAM of test images that an evaluated run got right, or wrong."""
    from skinlesion.evaluation.report import draw_explanations
    from skinlesion.model.predictor import Predictor

    return draw_explanations(Predictor.load(run), *_read_judged(run, data), kinds=(right,))


def _predict_once(
    predictor: "Predictor", rows: pd.DataFrame, run: Path, *, tta: bool = False
) -> np.ndarray:
    """Predictions of a run for its test images: read when they are there, otherwise made."""
    path = run / ("predictions_test_tta.csv" if tta else "predictions_test.csv")
    if not path.is_file():
        how = ", and their mirror images" if tta else ""
        say(f"evaluate: predicting {len(rows):,} test images{how}")
        y_prob = predictor.predict_probabilities(list(rows["path"]), tta=tta)
        write_predictions(path, list(rows["image_id"]), y_prob)
    return read_predictions_for(path, list(rows["image_id"]))


def _warn_of_leak(run: Path, rows: pd.DataFrame) -> None:
    """Say how many images of an external test set the run was trained or chosen on."""
    home = run if (run / "splits.csv").is_file() else run.resolve().parent
    if not (home / "splits.csv").is_file():
        return  # a bundle by itself
    split = read_split(home / "splits.csv")
    known = set(split.loc[split["split"] != "test", "image_id"])
    seen = int(rows["image_id"].isin(known).sum())
    if seen:
        say(
            f"evaluate: warning: {seen:,} of these {len(rows):,} images are among those that {run} "
            "was trained or chosen on: the figures say too much"
        )


def _require_different(runs: Sequence[Path]) -> None:
    names = [str(run.resolve()) for run in runs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"a run is given more than once: {name_some(doubled)}")


def _join_test(run: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The metadata of the test images of a run."""
    rows = join_split(table, read_split(run / "splits.csv"))
    return rows[rows["split"] == "test"].reset_index(drop=True)


def _read_judged(run: Path, data: str | Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """The test images of an evaluated run, and its uncalibrated predictions for them."""
    rows = _join_test(run, load_metadata(find_dataset(data or recall_dataset(run))))
    return rows, read_test_predictions(run, rows)


def _report(
    out: Path, rows: pd.DataFrame, y_prob: np.ndarray, *, step: str = "evaluate", **options: Any
) -> dict[str, Any]:
    """Write the report and say what is in it. Arguments: of `report.write_report`."""
    from skinlesion.evaluation.report import describe_metrics, write_report

    metrics = write_report(out, rows, y_prob, **options)
    say(describe_metrics(metrics))
    say(f"{step}: figures and tables in {out}")
    return metrics


def _read_truth_rows(truth: Path, metadata: Path | None) -> pd.DataFrame:
    """`image_id` and `label` of a truth file, joined to the metadata where there is one."""
    names, labels = read_truth(truth)
    rows = pd.DataFrame({"image_id": names, "label": labels})
    if metadata is None:
        return rows
    joined = rows.merge(read_metadata(metadata), on="image_id", how="left")
    absent = joined.loc[joined["lesion_id"].isna(), "image_id"].tolist()
    if absent:
        raise InputError(f"{metadata}: has no row for {name_some(absent)} of {truth.name}")
    unequal = joined.loc[joined["dx"].map(LABEL_OF) != joined["label"], "image_id"].tolist()
    if unequal:
        raise InputError(f"{metadata} and {truth}: different diagnoses for {name_some(unequal)}")
    return joined


def _measure_explanation(
    predictor: "Predictor", rows: pd.DataFrame, y_prob: np.ndarray, masks: Path
) -> dict[str, Any]:
    """How much of the heat lies inside the lesion, where its outline is known."""
    from skinlesion.evaluation.gradcam import measure_heat

    outlines = [masks / f"{image_id}.png" for image_id in rows["image_id"]]
    if not all(path.is_file() for path in outlines):
        return {}
    heat = predictor.explain(list(rows["path"]), y_prob.argmax(axis=1))
    return {"explanation": measure_heat(heat, outlines)}


def _measure_gate(predictor: "Predictor", rows: pd.DataFrame) -> dict[str, Any]:
    """The share of lesions that the gate for foreign images lets in, with 95 % intervals."""
    gate = predictor.bundle.gate
    if gate is None:
        return {}
    scores = gate.compute_scores(predictor.describe(list(rows["path"])))
    weights, _ = draw_weights(len(rows), rows["lesion_id"].to_numpy())
    let_in, labels = ~is_foreign(scores), rows["label"].to_numpy()
    measured = {
        "threshold": gate.threshold,
        "let_in": compute_share(let_in, np.ones(len(rows)), weights),
        "per_class": {
            code: {
                "support": int((labels == label).sum()),
                "let_in": compute_share(let_in, labels == label, weights),
            }
            for label, code in enumerate(CLASS_CODES)
        },
    }
    return {"foreign_image_gate": measured}
