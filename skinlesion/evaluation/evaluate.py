"""The steps that evaluate: a run, on its test or an external one, or the folds of several.

Each reads files and writes files, and can be repeated. Test predictions that exist are kept.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from skinlesion.data.dataset import find_dataset, list_images
from skinlesion.data.forms import MASKS_NAME
from skinlesion.data.isic_csv import write_isic
from skinlesion.data.split import join_split
from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import compute_share, draw_weights
from skinlesion.evaluation.calibration import Calibration, load_calibration
from skinlesion.evaluation.checklist import make_checklist
from skinlesion.evaluation.decision_metrics import apply_calibrations
from skinlesion.evaluation.gradcam import compute_grad_cam, draw_explanations, measure_heat
from skinlesion.evaluation.model_card import make_model_card
from skinlesion.evaluation.ood import is_in_distribution
from skinlesion.evaluation.plots import plot_learning_curves
from skinlesion.evaluation.report import write_report
from skinlesion.evaluation.score import read_truth_rows, say_results
from skinlesion.evaluation.shifts import evaluate_shifts, has_shifts, summarise_shifts
from skinlesion.files import InputError, name_some, write_csv
from skinlesion.machine import say
from skinlesion.model.predictor import Outputs, Predictor
from skinlesion.model.run import Run

FOLDS_NOTE = (
    "Each image was predicted by the one fold whose training had not seen it. These are figures of "
    "the folds, not of an ensemble of them."
)


def evaluate(
    run: str | Path | Run,
    *,
    data: str | Path | None = None,
    tta: bool = False,
    shifts: bool = False,
) -> dict[str, Any]:
    """Predict the test images of a calibrated run and write `evaluation/`, with a model card.

    Test predictions that exist are used again.

    Args:
        run: a trained and calibrated run.
        data: the dataset; None: the run's own, else as `find_dataset`.
        tta: also predict with test-time augmentation, as a second column of figures.
        shifts: also predict the images under shifts, see `evaluate_shifts`.

    Returns:
        What `metrics.json` holds: see `write_report`; also `ood`, the share of images in
        distribution; for data with outlines `gradcam`, see `measure_heat`; `shifts`, if wanted.

    Raises:
        InputError: the run is not trained or not calibrated, or data and run do not fit.
    """
    run = Run.find(run)
    calibration, split = load_calibration(run), run.split
    source = find_dataset(data or run.dataset)
    table = run.load_dataset(source)
    rows = join_split(table, split).query("split == 'test'").reset_index(drop=True)
    predictor = Predictor.load(run)
    say(f"evaluate: predicting {len(rows):,} test images")
    outputs = predictor.predict_files(list(rows["path"]), maps=(source / MASKS_NAME).is_dir())
    y_prob = _read_or_predict(run, rows, lambda: outputs)
    metrics = write_report(
        run.evaluation_dir,
        rows,
        y_prob,
        run.info,
        calibrated=apply_calibrations([calibration], [y_prob]),
        variants=_predict_variants(predictor, run, rows, tta=tta),
        seed=run.config.seed,
        extra=_measure_ood(calibration, outputs.features, rows, run.info)
        | _measure_grad_cam(predictor, outputs, rows, source / MASKS_NAME)
        | _measure_shifts(run, source, wanted=shifts),
        figures=_draw_figures(predictor, run, rows, y_prob),
        make_pages=lambda measured: _make_pages(run, measured),
    )
    say(f"evaluate: figures and tables in {run.evaluation_dir}")
    return metrics


def evaluate_external(
    run: str | Path | Run,
    images: Path,
    truth: Path,
    out: Path,
    *,
    metadata: Path | None = None,
    tta: bool = False,
) -> dict[str, Any]:
    """Test a run on other images with known diagnoses.

    Args:
        run: a calibrated run, also an ensemble, or a saved model.
        images: folder with the images somewhere below it.
        truth: CSV file in ISIC form; its images are evaluated.
        out: folder to fill. The checklist of a run names such folders in the run's own folder.
        metadata: CSV file with HAM10000's columns for these images, for lesions and subgroups.
        tta: predict with test-time augmentation; `metrics.json` says so.

    Raises:
        InputError: an image of the truth is missing, or the files do not fit each other.
    """
    run = Run.find(run)
    rows = read_truth_rows(truth, run.info, metadata)
    paths = list_images(images)
    missing = sorted(set(rows["image_id"]) - set(paths))
    if missing:
        raise InputError(
            f"{images}: {len(missing):,} of {len(rows):,} images of {truth.name} are missing: "
            f"{name_some(missing)}"
        )
    rows = rows.assign(path=rows["image_id"].map(paths))
    calibration = load_calibration(run)
    _warn_of_leak(run, rows)
    say(f"evaluate: predicting {len(rows):,} images with {run}")
    y_prob = Predictor.load(run).predict_files(list(rows["path"]), tta=tta).y_prob
    write_isic(out / "predictions.csv", list(rows["image_id"]), y_prob, run.info)
    extra = {"external": {"truth": truth.name, "tta": tta}}
    calibrated = apply_calibrations([calibration], [y_prob])
    metrics = write_report(out, rows, y_prob, run.info, calibrated=calibrated, extra=extra)
    say_results(metrics, run.info, out)
    return metrics


def evaluate_folds(
    runs: Sequence[Path], out: Path, *, data: str | Path | None = None
) -> dict[str, Any]:
    """Evaluate the folds of a cross-validation together.

    Each image is predicted by the one model that has not seen it, and calibrated as that model is.
    `predictions.csv` has the uncalibrated probabilities, as that of a run.

    Args:
        runs: trained and calibrated runs, two or more, without common test images.
        out: folder to fill.
        data: the dataset; None: the first run's own, else as `find_dataset`.

    Raises:
        InputError: some test images are common, so that one model was trained on what another one
            is tested on; or a fold is missing.
    """
    found = _find_runs(runs)
    _require_all_folds(found)
    source = find_dataset(data or found[0].dataset)
    parts, y_probs = [], []
    for run in found:
        rows = run.rows("test")[["image_id"]].merge(run.load_dataset(source), on="image_id")
        parts.append(rows.sort_values("image_id", ignore_index=True))
        y_probs.append(_predict_test(run, parts[-1]))
    calibrated = apply_calibrations([load_calibration(run) for run in found], y_probs)
    rows, y_prob, info = pd.concat(parts, ignore_index=True), np.concatenate(y_probs), found[0].info
    write_isic(out / "predictions.csv", list(rows["image_id"]), y_prob, info)
    extra = {"note": FOLDS_NOTE}
    metrics = write_report(out, rows, y_prob, info, calibrated=calibrated, extra=extra)
    say(FOLDS_NOTE)
    say_results(metrics, info, out)
    return metrics


def _find_runs(runs: Sequence[Path]) -> list[Run]:
    """The runs, none of them twice, all with the same classes."""
    found = [Run.find(run) for run in runs]
    names = [str(run.model_dir.resolve()) for run in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"a run is given more than once: {name_some(doubled)}")
    for run in found[1:]:
        if run.info.labels != found[0].info.labels:
            raise InputError(
                f"{found[0]} and {run}: were trained on different classes; name runs of one dataset"
            )
    return found


def _require_all_folds(runs: Sequence[Run]) -> None:
    """Refuse runs of which two have a common test image, or whose tests are not all images."""
    tested = [set(run.rows("test")["image_id"]) for run in runs]
    if any(one & other for one, other in combinations(tested, 2)):
        raise InputError(
            "the runs have some test images in common: train them on the folds of one split "
            "(split --fold K/N)"
        )
    known = set[str]().union(*(run.split["image_id"] for run in runs))
    untested = sorted(known.difference(*tested))
    if untested:
        raise InputError(
            f"the runs are folds, but {len(untested):,} of {len(known):,} images are in no test "
            f"({name_some(untested)}): a fold is missing, or one belongs to another split"
        )


def _make_pages(run: Run, metrics: dict[str, Any]) -> dict[str, str]:
    return {
        "model_card.md": make_model_card(run, metrics),
        "checklist.md": make_checklist(run, metrics),
    }


def _read_or_predict(
    run: Run, rows: pd.DataFrame, predict: Callable[[], Outputs], *, tta: bool = False
) -> np.ndarray:
    """The test predictions of a run: those of its file, or new ones, which the file then holds."""
    image_ids = list(rows["image_id"])
    if not run.has_predictions("test", tta=tta):
        run.write_predictions("test", image_ids, predict().y_prob, tta=tta)
    return run.read_predictions("test", image_ids, tta=tta)


def _draw_figures(
    predictor: Predictor, run: Run, rows: pd.DataFrame, y_prob: np.ndarray
) -> dict[str, Figure | SubFigure]:
    return {
        "explanations": draw_explanations(predictor, rows, y_prob),
        "learning_curves": plot_learning_curves(run.history)[0].figure,
    }


def _predict_variants(
    predictor: Predictor, run: Run, rows: pd.DataFrame, *, tta: bool
) -> dict[str, np.ndarray]:
    """Predictions with test-time augmentation, if wanted or made before."""
    if not (tta or run.has_predictions("test", tta=True)):
        return {}

    def predict() -> Outputs:
        say(f"evaluate: predicting {len(rows):,} test images with test-time augmentation")
        return predictor.predict_files(list(rows["path"]), tta=True)

    return {"test-time augmentation": _read_or_predict(run, rows, predict, tta=True)}


def _predict_test(run: Run, rows: pd.DataFrame) -> np.ndarray:
    """The test predictions of one of several runs, made if they do not exist."""

    def predict() -> Outputs:
        say(f"evaluate: predicting {len(rows):,} test images with {run}")
        return Predictor.load(run).predict_files(list(rows["path"]))

    return _read_or_predict(run, rows, predict)


def _warn_of_leak(run: Run, rows: pd.DataFrame) -> None:
    """Report how many external test images the run was trained or chosen on."""
    if not run.has_split:
        return  # a saved model by itself
    known = set(run.split.query("split != 'test'")["image_id"])
    for folder in (Path(added["folder"]) for added in run.description.get("also", [])):
        if folder.is_dir():
            known |= set(list_images(folder))
        else:
            say(f"evaluate: warning: {folder}, also trained on, is gone: not compared")
    seen = int(rows["image_id"].isin(known).sum())
    if seen:
        say(
            f"evaluate: warning: {run} was trained or chosen on {seen:,} of these {len(rows):,} "
            "images: the figures are too optimistic"
        )


def _measure_grad_cam(
    predictor: Predictor, outputs: Outputs, rows: pd.DataFrame, masks: Path
) -> dict[str, Any]:
    """How much of the heat is inside the lesion, for data with known outlines."""
    outlines = [masks / f"{image_id}.png" for image_id in rows["image_id"]]
    if outputs.maps is None or not all(path.is_file() for path in outlines):
        return {}
    heat = compute_grad_cam(predictor, outputs.maps, outputs.y_prob.argmax(axis=1))
    return {"gradcam": measure_heat(heat, outlines)}


def _measure_shifts(run: Run, source: Path, *, wanted: bool) -> dict[str, Any]:
    """The figures under shifts, which `shifts.csv` gets; none unless wanted or predicted before."""
    if not (wanted or has_shifts(run, "test")):
        return {}
    table = evaluate_shifts(run, on="test", data=source)
    write_csv(run.evaluation_dir / "shifts.csv", table)
    return {"shifts": summarise_shifts(table)}


def _measure_ood(
    calibration: Calibration, features: np.ndarray, rows: pd.DataFrame, info: DatasetInfo
) -> dict[str, Any]:
    """The share of test images that are in distribution, with 95 % intervals."""
    inside = is_in_distribution(calibration.ood.compute_scores(features))
    weights, _ = draw_weights(len(rows), rows["lesion_id"].to_numpy())
    labels = rows["label"].to_numpy()
    return {
        "ood": {
            "threshold": calibration.ood.threshold,
            "in_distribution": compute_share(inside, np.ones(len(rows)), weights),
            "per_class": {
                code: {
                    "support": int((labels == label).sum()),
                    "in_distribution": compute_share(inside, labels == label, weights),
                }
                for label, code in enumerate(info.labels)
            },
        }
    }
