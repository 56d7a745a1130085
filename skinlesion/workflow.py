"""The steps up to a trained model, and prediction; what notebooks and command line call.

Each step reads files and writes files, says what it does, can be repeated, and keeps finished work.
Modules that import TensorFlow are imported by the steps that need it: copying and splitting start
at once.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from skinlesion.config import Config, differences, make_config
from skinlesion.data.ham10000 import (
    METADATA_NAME,
    GatherReport,
    find_dataset,
    find_gathered,
    find_local_dataset,
    gather_images,
    is_sample,
    list_images,
    load_metadata,
    read_metadata,
)
from skinlesion.data.images import find_unreadable, load_images
from skinlesion.data.isic import write_predictions
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import (
    Audit,
    audit_split,
    count_by_class,
    join_split,
    make_split,
    merge_lesions,
    read_any_split,
    read_split,
    take_limited,
)
from skinlesion.diagnoses import CLASS_CODES, SYNTHETIC_NOTE
from skinlesion.evaluation import ood as foreign
from skinlesion.evaluation.calibration import fit_calibration
from skinlesion.evaluation.quality import fit_limits, measure_quality
from skinlesion.files import InputError, name_some, write_csv, write_json
from skinlesion.machine import default_cache_dir, how_to_attach, is_watched, say
from skinlesion.model.run import (
    describe_run,
    is_begun,
    is_finished,
    is_same_split,
    read_precision,
    read_run_config,
    recall_dataset,
    require_same_dataset,
    require_same_run,
    require_same_weights,
)

if TYPE_CHECKING:
    import numpy as np

    from skinlesion.model.resnet50 import LoadedWeights


def copy(data: str | Path | None, out: Path) -> GatherReport:
    """Gather all images and the metadata of HAM10000 in one folder.

    Args:
        data: the dataset; None looks in `HAM10000_DIR` and on Kaggle's mounts, then downloads it.
        out: folder to fill; a dataset itself afterwards.
    """
    # The metadata is put in place last: where it is, all images are, and the source is not needed.
    source = (find_gathered(out) if data is None else None) or find_dataset(data)
    load_metadata(source)  # refuses half a dataset
    if not out.is_dir():
        say(f"copy: gathering the images of {source} in {out} (up to some minutes)")
    if source == out:
        report = GatherReport(linked=0, copied=0, kept=len(list_images(out)))
    else:
        report = gather_images(source, out)
    say(
        f"copy: {report.linked + report.copied + report.kept:,} images in {out} "
        f"({report.linked:,} linked, {report.copied:,} copied, {report.kept:,} there already)"
    )
    if is_sample(source):
        say(SYNTHETIC_NOTE)
    return report


def check(data: str | Path | None = None) -> list[str]:
    """Look for what is wrong with a dataset: metadata, images missing or extra, damaged files.

    Args:
        data: the dataset; None looks for it as `copy` does.

    Returns:
        A line for each finding, which is also printed; empty when nothing is wrong.

    Raises:
        InputError: no dataset there, or a metadata table that cannot be used.
    """
    source = _require_local(data)
    table, images = read_metadata(source / METADATA_NAME), list_images(source)
    diagnoses = table.groupby("lesion_id")["dx"].nunique()
    named = {
        "rows without an image": sorted(set(table["image_id"]) - set(images)),
        "images without a row": sorted(set(images) - set(table["image_id"])),
        "lesions with several diagnoses": sorted(diagnoses.index[diagnoses > 1]),
        "images that cannot be read": find_unreadable(list(images.values())),
    }
    findings = [f"{what}: {_count(names)}" for what, names in named.items() if names]
    lesions = table["lesion_id"].nunique()
    say(f"check: {len(table):,} rows, {len(images):,} images, {lesions:,} lesions in {source}")
    say("\n".join(findings) or "check: nothing wrong")
    return findings


def split(
    data: str | Path | None,
    out: Path,
    *,
    recipe: str = "default",
    seed: int | None = None,
    fold: tuple[int, int] | None = None,
    near_duplicates: Path | None = None,
) -> pd.DataFrame:
    """Split a dataset into train, validation and test, and write the split file.

    Args:
        data: the dataset; None looks for it as `copy` does.
        out: CSV file to write.
        recipe: `original` splits as the original did; the others by lesion.
        seed: another one draws another split of the same kind.
        fold: (K, N): fold K of N is test.
        near_duplicates: list of pairs to keep together; None takes the one for HAM10000.

    Returns:
        The split: image_id, lesion_id, dx, split.

    Raises:
        InputError: `out` holds another split, which is not overwritten.
    """
    config = make_config(recipe, seed=seed)
    source = find_dataset(data)
    table = load_metadata(source)
    pairs = read_near_duplicates(near_duplicates)
    made = make_split(table, config.split, seed=config.seed, fold=fold, pairs=pairs)
    if not out.is_file():
        write_csv(out, made)
        say(f"split: wrote {out}")
    elif is_same_split(read_split(out), made):
        say(f"split: {out} is there already")
    else:
        raise InputError(f"{out}: holds another split; delete it or name another file with --out")
    if is_sample(source):
        say(SYNTHETIC_NOTE)
    if config.split == "grouped":
        lesions = table["lesion_id"].nunique()
        merged = lesions - merge_lesions(table, pairs).nunique()
        say(f"split: {lesions:,} lesions, of which near duplicates merged {merged:,} with others")
    say(count_by_class(made).to_string())
    say(describe_leaks(audit_split(made, table, pairs)))
    return made


def audit(
    splits: Path, *, data: str | Path | None = None, near_duplicates: Path | None = None
) -> Audit:
    """Say what is wrong with a split file, of this project or not.

    Args:
        splits: CSV file with `image_id` and `split`.
        data: the dataset, of which only the metadata is read; None looks for it as `copy` does.
        near_duplicates: list of pairs; None takes the one for HAM10000.
    """
    split = read_any_split(splits)
    table = read_metadata(_require_local(data) / METADATA_NAME)
    found = audit_split(split, table, read_near_duplicates(near_duplicates))
    say(describe_audit(found))
    return found


def _require_local(data: str | Path | None) -> Path:
    """As `find_dataset`, but what only looks does not start a download."""
    found = find_local_dataset(data)
    if not found:
        raise InputError("no dataset at hand: name its folder with --data, or HAM10000_DIR")
    return found


def describe_leaks(found: Audit) -> str:
    """Which shares of the test images show a lesion that is also elsewhere."""
    return "\n".join(
        f"test images whose {kind} is also in train: {found.leak(kind, 'train'):.1%}, "
        f"in train or validation: {found.leak(kind, 'train or validation'):.1%}"
        for kind in ("lesion", "lesion or near duplicate")
    )


def describe_audit(found: Audit) -> str:
    """The whole audit, for readers."""
    gap = found.proportions.sub(found.proportions["all"], axis=0).abs().max().max()
    pairs = [f"{a} ({s}) and {b} ({t})" for a, b, s, t in found.pairs_across.to_numpy()]
    parts = [
        "test images, and how many of them show a lesion that is also seen elsewhere:",
        found.leaks.T.to_string(),
        describe_leaks(found),
        f"lesions in more than one split: {found.lesions_shared:,}",
        f"near duplicates known among these images: {found.pairs_known:,} pairs"
        + ("" if found.pairs_known else "; search for them with the command near-duplicates"),
        f"near duplicates in different splits: {_count(pairs, shown=2)}",
        "share of each diagnosis in each split:",
        found.proportions.to_string(float_format="{:.3f}".format),
        f"largest difference to the whole: {100 * gap:.2f} percentage points",
        f"images given more than once: {_count(found.repeated)}",
        f"images that the split does not name: {_count(found.missing)}",
        f"images that the dataset does not have: {_count(found.extra)}",
        "audit: nothing wrong" if found.is_clean else "audit: this split is not clean",
    ]
    return "\n".join(parts)


def _count(names: list[str], *, shown: int = 5) -> str:
    """How many there are, and the names of the first."""
    return f"{len(names):,}. {name_some(names, shown=shown)}".removesuffix(". ")


def find_near_duplicates(data: str | Path | None, out: Path, *, weights: str) -> pd.DataFrame:
    """Find images of one lesion under different lesion ids, and write the list.

    Args:
        data: the dataset; None looks for it as `copy` does.
        out: CSV file to write; `split` and `audit` take it with `--near-duplicates`.
        weights: of the network that proposes candidates: `imagenet` or a file.

    Raises:
        InputError: OpenCV is missing, or the weights cannot be used.
    """
    from skinlesion.data import near_duplicates
    from skinlesion.model.resnet50 import compute_features

    near_duplicates.require_opencv()
    table = load_metadata(find_dataset(data))
    say(f"near-duplicates: describing {len(table):,} images (minutes for thousands)")
    features = compute_features(list(table["path"]), weights=weights)
    found = near_duplicates.find_near_duplicates(table, features)
    write_csv(out, found)
    unequal = int((found["dx_1"] != found["dx_2"]).sum())
    say(f"near-duplicates: {len(found):,} pairs in {out}, {unequal} of them of two diagnoses")
    return found


def train(
    data: str | Path | None,
    run: Path,
    config: Config,
    *,
    splits: Path | None = None,
    time_limit: float | None = None,
) -> Path:
    """Train a model: fills the run directory up to the bundle and the validation predictions.

    An interrupted run goes on after its last finished epoch; a finished one is kept. On the
    synthetic sample, ImageNet weights that cannot be downloaded are done without, and this is
    said; on real data that is an error.

    Args:
        data: the dataset; None looks for it as `copy` does.
        run: run directory to make.
        config: from `make_config`.
        splits: a split file; None takes the run's own, and for a new run splits as the recipe says.
        time_limit: hours from now after which training stops; the same call goes on later.

    Raises:
        InputError: the run directory holds a run of other settings, or something is wrong with
            dataset, split or weights, or there is no room.
    """
    deadline = time.monotonic() + (math.inf if time_limit is None else 3600 * time_limit)
    if data is None and splits is None and is_finished(run):
        changed = differences(read_run_config(run), config)
        if not changed:
            say(f"train: {run} is finished already with these settings")
            return run
    source = find_dataset(data or recall_dataset(run))
    table, begun = load_metadata(source), is_begun(run)
    if splits or begun:
        made = read_split(splits or run / "splits.csv")
    else:
        made = make_split(table, config.split, seed=config.seed, pairs=read_near_duplicates())
    if begun:
        require_same_run(run, config, table, made)
    if is_finished(run):
        say(f"train: {run} is finished already with these settings")
        return run
    rows = _rows_to_train_on(table, made, config)
    synthetic = is_sample(source)
    say(f"train: recipe {config.recipe}, {len(rows['train']):,} images, run directory {run}")
    if synthetic:
        say(SYNTHETIC_NOTE)

    from skinlesion.model import devices
    from skinlesion.model import train as training

    training.seed_everything(config)
    # A run that goes on keeps the precision of its checkpoints, also on another device.
    begun_with = read_precision(run) if begun else None
    precision = begun_with or devices.choose_precision(config.precision)
    strategy = devices.make_strategy()
    devices.require_even_shares(config.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        model, loaded = _build_model(config, precision, may_do_without_weights=synthetic)
    say(f"train: {loaded}")
    # Only now is the run directory touched: a mistake above leaves nothing behind.
    described = describe_run(
        config,
        loaded,
        table,
        folder=source,
        device=devices.describe_device(),
        precision=precision,
        synthetic=synthetic,
        splits=splits,
    )
    _begin(run, described, made)
    decoded = {
        name: load_images(
            list(part["path"]),
            image_size=config.image_size,
            resize=config.resize,
            cache=default_cache_dir(),
        )
        for name, part in rows.items()
    }
    say(
        f"train: {training.describe_plan(config, loaded)} on {described['device']}, "
        f"{precision}, {devices.estimate_duration(config, len(rows['train']))}"
    )
    sets = {name: (decoded[name], part["label"].to_numpy()) for name, part in rows.items()}
    try:
        _fit(model, loaded, config, sets, run, deadline=deadline, synthetic=synthetic)
    except training.TimeIsUpError:
        say(f"train: stopped before the time limit; --run {run} again goes on from here")
        return run
    _finish(run, model, config, rows["validation"], decoded, synthetic=synthetic)
    say(f"train: finished; model in {run / 'model'}")
    return run


def _begin(run: Path, described: dict[str, Any], made: pd.DataFrame) -> None:
    """Write what the run is made with; where it was begun already, see that it is the same."""
    begun = is_begun(run)
    if begun:
        require_same_weights(run, described)
    # What an earlier model said about the test images must not be taken for this one's.
    for name in ("predictions_test.csv", "predictions_test_tta.csv"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    if not begun:
        write_csv(run / "splits.csv", made)
        write_json(run / "config.json", described)


def _fit(
    model: Any,
    loaded: "LoadedWeights",
    config: Config,
    sets: dict[str, "tuple[np.ndarray, np.ndarray]"],
    run: Path,
    *,
    deadline: float,
    synthetic: bool,
) -> None:
    """Train by the method of the settings. Raises: as `training.fit`."""
    from skinlesion.evaluation import plots
    from skinlesion.model import train as training
    from skinlesion.model.checkpoints import Checkpoints
    from skinlesion.model.linear_probe import fit_regression

    def draw(history: pd.DataFrame) -> None:
        figure = plots.plot_learning_curves(history)[0].figure
        plots.caption(figure, synthetic=synthetic)
        plots.save_figure(figure, run / "learning_curves.png")

    if config.method == "regression":
        fit_regression(model, config, **sets, out=run / "history.csv")
        return
    # A run that goes on finds its head in the checkpoint.
    new = not Checkpoints(run / "checkpoints").read_history()
    if config.head_start == "regression" and loaded.layers and new:
        say("train: fitting the head as a logistic regression, to start from")
        fit_regression(model, config, **sets, out=run / "head_start.csv")
    training.fit(
        model,
        loaded,
        config,
        **sets,
        run=run,
        cache=default_cache_dir(),
        deadline=deadline,
        on_epoch=draw,
        verbose=1 if is_watched() else 0,
    )


def _rows_to_train_on(
    table: pd.DataFrame, made: pd.DataFrame, config: Config
) -> dict[str, pd.DataFrame]:
    joined = join_split(table, made)
    rows = {name: joined[joined["split"] == name] for name in ("train", "validation")}
    rows["train"] = take_limited(rows["train"], config.limit, seed=config.seed)
    return rows


def _finish(
    run: Path,
    model: Any,
    config: Config,
    rows: pd.DataFrame,
    decoded: dict[str, "np.ndarray"],
    *,
    synthetic: bool,
) -> None:
    """Predict the validation images, fit on them what prediction needs, and write the bundle."""
    from skinlesion.model.bundle import Bundle, BundleInfo, save_bundle
    from skinlesion.model.checkpoints import Checkpoints
    from skinlesion.model.predictor import Predictor
    from skinlesion.model.resnet50 import top_stage_of

    info = BundleInfo(
        labels=CLASS_CODES,
        image_size=config.image_size,
        resize=config.resize,
        recipe=config.recipe,
        synthetic=synthetic,
    )
    # For one device and in full precision, however it was trained.
    settings = dataclasses.replace(config, weights="none", top_stage=top_stage_of(model))
    plain, _ = _build_model(settings, "float32")
    plain.set_weights(model.get_weights())
    # From the images decoded for training: the same pixels as from their files.
    predictor = Predictor(Bundle(plain, info))
    y_prob = predictor.predict_images(decoded["validation"])
    write_predictions(run / "predictions_validation.csv", list(rows["image_id"]), y_prob)
    calibration = fit_calibration(rows["label"].to_numpy(), y_prob)
    limits = fit_limits([measure_quality(image) for image in decoded["validation"]])
    fitted = dataclasses.replace(
        info, calibration=calibration.to_dict(), image_quality=limits.to_dict()
    )
    say("train: fitting the gate for foreign images")
    features = [predictor.describe_images(decoded[part]) for part in ("train", "validation")]
    gate = foreign.fit_gate(*features, stage=predictor.stage)
    save_bundle(Bundle(plain, fitted, gate), run / "model")
    Checkpoints(run / "checkpoints").delete()


def fit_gate(run: Path, data: str | Path | None = None) -> foreign.ForeignGate:
    """Fit what looks at images before they are judged, for a run from before there was such.

    That is the gate for foreign images, and the limits of quality.

    Args:
        run: a finished run directory.
        data: the dataset it was trained on; None looks for it as `copy` does.
    """
    from skinlesion.model.bundle import save_gate
    from skinlesion.model.predictor import Predictor

    table = load_metadata(find_dataset(data or recall_dataset(run)))
    require_same_dataset(run, table)
    rows = _rows_to_train_on(table, read_split(run / "splits.csv"), read_run_config(run))
    predictor = Predictor.load(run)
    features = [predictor.describe(list(rows[part]["path"])) for part in ("train", "validation")]
    gate = foreign.fit_gate(*features, stage=predictor.stage)
    measured = [measure_quality(predictor.decode(path)) for path in rows["validation"]["path"]]
    save_gate(run, gate, fit_limits(measured))
    say(f"gate: fitted on {len(features[0]):,} images, threshold on {gate.images:,}; in {run}")
    return gate


def train_if_missing(
    data: str | Path | None,
    run: Path,
    config: Config,
    *,
    splits: Path,
    time_limit: float | None = None,
) -> Path:
    """Use the finished run in `run`, or split as `split` does and train as `train` does.

    Args:
        data: the dataset; None looks for it as `copy` does.
        run: run directory.
        config: settings for a run that is missing; one that is there is used whatever its own.
        splits: split file, made when it is missing.
        time_limit: as for `train`. With a limit, a run that was begun is left alone: where all
            notebooks are one session, training has just stopped because the session ends.

    Raises:
        InputError: as `train`, or the time limit came before the run was finished.
    """
    if is_finished(run):
        say(f"train: using the finished run in {run}")
        other = differences(read_run_config(run), config)
        if other:
            say(f"train: it was made with other settings than the ones given here: {other}")
        return run
    if time_limit is None or not is_begun(run):
        say(
            f"train: no finished run in {run} yet: training one now, for the time that is "
            f"estimated below; to use what notebook 03_train made instead, {how_to_attach()}"
        )
        split(data, splits, recipe=config.recipe, seed=config.seed)
        train(data, run, config, splits=splits, time_limit=time_limit)
    if not is_finished(run):
        raise InputError(
            f"{run}: stopped before it was finished, at the time limit; training goes on where it "
            "was when 03_train is run again"
        )
    return run


def predict(run: Path, paths: Sequence[str | Path], out: Path) -> pd.DataFrame:
    """Predict image files, or all images in folders, and write a predictions file.

    Returns:
        image, prediction (the most probable `dx` code), confidence.

    Raises:
        InputError: nothing to predict, a file that is no image, or two files of one name.
    """
    from skinlesion.model.predictor import Predictor

    files = _list_files(paths)
    predictor = Predictor.load(run)
    y_prob, scores = predictor.judge(files)
    names = [path.stem for path in files]
    write_predictions(out, names, y_prob)
    if predictor.bundle.info.synthetic:
        say(SYNTHETIC_NOTE)
    say(f"predict: wrote {len(files):,} predictions to {out}")
    odd = [] if scores is None else list(compress(names, foreign.is_foreign(scores)))
    if odd:
        say(
            f"predict: {len(odd):,} of {len(files):,} images do not look like dermatoscopic ones, "
            f"and what is predicted for them means nothing: {name_some(odd)}"
        )
    top = [CLASS_CODES[label] for label in y_prob.argmax(axis=1)]
    return pd.DataFrame({"image": names, "prediction": top, "confidence": y_prob.max(axis=1)})


def _build_model(
    config: Config, precision: str, *, may_do_without_weights: bool = False
) -> tuple[Any, "LoadedWeights"]:
    from skinlesion.model.resnet50 import WeightsUnavailableError, build_model

    try:
        return build_model(
            image_size=config.image_size,
            weights=config.weights,
            preprocessing=config.preprocessing,
            head=config.head,
            top_stage=config.top_stage,
            batch_norm_momentum=config.batch_norm_momentum,
            precision=precision,
        )
    except WeightsUnavailableError as error:
        if not may_do_without_weights:
            raise
        say(f"train: {error}")
        say("train: this is the synthetic sample, so training starts from random weights instead")
        return _build_model(dataclasses.replace(config, weights="none"), precision)


def _list_files(paths: Sequence[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            endings = (".jpg", ".jpeg", ".png")
            inside = sorted(found for found in path.iterdir() if found.suffix.lower() in endings)
            if not inside:
                raise InputError(f"{path}: no .jpg or .png file directly in it")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not files:
        raise InputError("no .jpg or .png file to predict: name image files or a folder of them")
    names = pd.Series([path.stem for path in files])
    doubled = sorted(set(names[names.duplicated()]))
    if doubled:
        raise InputError(
            f"several files of one name, rename or predict apart: {name_some(doubled)}"
        )
    return files
