"""The steps as a user thinks of them; what the notebooks and the command line call.

Each step reads files and writes files, says what it does, can be repeated, and keeps finished work.
Modules that import TensorFlow are imported by the steps that need it: copying and splitting start
at once.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from skinlesion import __version__, evaluation
from skinlesion.config import Config, config_from_dict, differences, make_config
from skinlesion.dataset import (
    METADATA_NAME,
    GatherReport,
    find_dataset,
    gather_images,
    is_sample,
    list_images,
)
from skinlesion.errors import InputError, name_some
from skinlesion.files import read_json, write_csv, write_json
from skinlesion.input_pipeline import decode_image, load_images
from skinlesion.labels import CLASS_CODES, SYNTHETIC_NOTE
from skinlesion.metadata import dataset_fingerprint, load_metadata
from skinlesion.split import (
    SPLITS,
    count_by_class,
    join_split,
    make_split,
    read_split,
    shared_lesions,
    take_limited,
)
from skinlesion.workspace import is_watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skinlesion.model import LoadedWeights
    from skinlesion.predictor import Predictor

LIBRARIES = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pillow", "gradio")
SHOWN_PREDICTIONS = 12
CPU_CORE_RATE = 10
"""Training images a second and core at 128x128, seen on a server's processor."""
GPU_RATE = 400
"""Training images a second at 128x128: a guess for one T4, for telling minutes from hours."""


def copy(data: str | Path | None, out: Path) -> GatherReport:
    """Gather all images and the metadata of HAM10000 in one folder.

    Args:
        data: the dataset; None looks in `HAM10000_DIR` and on Kaggle's mounts, then downloads it.
        out: folder to fill; a dataset itself afterwards.
    """
    # The metadata is put in place last: where it is, all images are, and the source is not needed.
    source = out if data is None and (out / METADATA_NAME).is_file() else find_dataset(data)
    if not out.is_dir():
        _say(f"copy: gathering the images of {source} in {out} (up to some minutes)")
    if source == out:
        report = GatherReport(linked=0, copied=0, kept=len(list_images(out)))
    else:
        report = gather_images(source, out)
    _say(
        f"copy: {report.linked + report.copied + report.kept:,} images in {out} "
        f"({report.linked:,} linked, {report.copied:,} copied, {report.kept:,} there already)"
    )
    if is_sample(source):
        _say(SYNTHETIC_NOTE)
    return report


def split(
    data: str | Path | None,
    out: Path,
    *,
    recipe: str = "default",
    seed: int | None = None,
    fold: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """Split a dataset into train, validation and test, and write the split file.

    Returns:
        The split: image_id, lesion_id, dx, split.

    Raises:
        InputError: `out` holds another split, which is not overwritten.
    """
    config = make_config(recipe, seed=seed)
    table = load_metadata(find_dataset(data))
    made = make_split(table, config.split, seed=config.seed, fold=fold)
    if not out.is_file():
        write_csv(out, made)
        _say(f"split: wrote {out}")
    elif _same_split(read_split(out), made):
        _say(f"split: {out} is there already")
    else:
        raise InputError(f"{out}: holds another split; delete it or name another file with --out")
    _say(describe_split(made))
    return made


def describe_split(table: pd.DataFrame) -> str:
    """Counts by class, and which share of test images shows a lesion that is also elsewhere."""
    leak = shared_lesions(table)
    return (
        f"{count_by_class(table).to_string()}\n"
        f"test images whose lesion is also in train: {leak['train']:.1%}, "
        f"in train or validation: {leak['train or validation']:.1%}"
    )


def train(
    data: str | Path | None,
    run: Path,
    config: Config,
    *,
    splits: Path | None = None,
) -> Path:
    """Train a model: fills the run directory up to the bundle and the validation predictions.

    A finished run of the same settings is kept. On the synthetic sample, ImageNet weights that
    cannot be downloaded are done without, and this is said; on real data that is an error.

    Args:
        data: the dataset; None looks for it as `copy` does.
        run: run directory to make.
        config: from `make_config`.
        splits: a split file; None splits as the recipe says.

    Raises:
        InputError: the run directory holds a run of other settings, or something is wrong with
            dataset, split or weights.
    """
    source = find_dataset(data)
    table = load_metadata(source)
    made = read_split(splits) if splits else make_split(table, config.split, seed=config.seed)
    if _is_finished(run, config, table, made):
        _say(f"train: {run} is finished already with these settings")
        return run
    joined = join_split(table, made)
    rows = {name: joined[joined["split"] == name] for name in SPLITS}
    rows["train"] = take_limited(rows["train"], config.limit, seed=config.seed)
    synthetic = is_sample(source)
    _say(f"train: recipe {config.recipe}, {len(rows['train']):,} images, run directory {run}")
    if synthetic:
        _say(SYNTHETIC_NOTE)

    from skinlesion import training
    from skinlesion.bundle import Bundle, BundleInfo, save_bundle
    from skinlesion.predictor import Predictor

    training.seed_everything(config)
    model, loaded = _build_model(config, may_do_without_weights=synthetic)
    _say(f"train: {loaded}")
    # Only now is the run directory touched: a mistake above leaves nothing behind. What an earlier
    # model said about the test images must not be taken for this one's.
    (run / "predictions_test.csv").unlink(missing_ok=True)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    write_csv(run / "splits.csv", made)
    write_json(run / "config.json", _describe_run(config, loaded, table, synthetic=synthetic))
    decoded = {
        name: load_images(
            list(rows[name]["path"]),
            image_size=config.image_size,
            resize=config.resize,
        )
        for name in ("train", "validation")
    }
    phases = training.plan_phases(config, loaded)
    _say(
        f"train: {' then '.join(f'{phase.epochs} epochs {phase.name}' for phase in phases)} on "
        f"{_device()}, {_estimate_duration(config, len(rows['train']))}"
    )
    training.fit(
        model,
        loaded,
        config,
        train=(decoded["train"], rows["train"]["label"].to_numpy()),
        validation=(decoded["validation"], rows["validation"]["label"].to_numpy()),
        run=run,
        verbose=1 if is_watched() else 2,
    )
    info = BundleInfo(
        labels=CLASS_CODES,
        image_size=config.image_size,
        resize=config.resize,
        recipe=config.recipe,
        synthetic=synthetic,
    )
    bundle = Bundle(model, info)
    _write_predictions(Predictor(bundle), rows["validation"], run, "validation")
    save_bundle(bundle, run / "model")
    _say(f"train: finished; model in {run / 'model'}")
    return run


def train_if_missing(data: str | Path | None, run: Path, config: Config) -> Path:
    """Train as `train` does when `run` holds no finished run; otherwise use it as it is."""
    if (run / "model").is_dir():
        _say(f"train: using the finished run in {run}")
        return run
    _say(f"train: no finished run in {run} yet: training one now")
    return train(data, run, config)


def evaluate(run: Path, *, data: str | Path | None = None) -> dict[str, Any]:
    """Predict the test images of a run, once, and write figures, tables and `metrics.json`.

    Test predictions that are there already are used again.

    Args:
        run: a finished run directory.
        data: the dataset; None looks for it as `copy` does.

    Returns:
        What `metrics.json` holds: see `evaluation.compute_metrics`.
    """
    from skinlesion.predictor import Predictor

    predictor = Predictor.load(run)
    source = find_dataset(data)
    table = load_metadata(source)
    _require_same_dataset(run, table)
    rows = _test_rows(run, table)
    path = run / "predictions_test.csv"
    if not path.is_file():
        _say(f"evaluate: predicting {len(rows):,} test images")
        _write_predictions(predictor, rows, run, "test")
    y_prob = _match(path, rows)
    metrics = evaluation.compute_metrics(
        rows["label"].to_numpy(), y_prob, groups=rows["lesion_id"].to_numpy()
    )
    metrics["synthetic"] = predictor.bundle.info.synthetic
    _write_evaluation(run, rows, y_prob, metrics)
    _say(describe_metrics(metrics))
    _say(f"evaluate: figures and tables in {run / 'evaluation'}")
    return metrics


def plot_samples(run: Path, *, data: str | Path | None = None) -> "Figure":
    """Test images of an evaluated run, drawn by its seed, titled with true and predicted class."""
    rows = _test_rows(run, load_metadata(find_dataset(data)))
    return _plot_samples(run, rows, _match(run / "predictions_test.csv", rows).argmax(axis=1))


def describe_metrics(metrics: dict[str, Any]) -> str:
    """The figures with their intervals, for readers."""
    lines = [
        f"{metrics['n']:,} test images of {metrics['lesions']:,} lesions; 95 % intervals from "
        f"{metrics['draws']:,} bootstrap draws of lesions"
    ]
    if metrics["synthetic"]:
        lines.append(SYNTHETIC_NOTE)
    rows = metrics["overall"] | {
        f"sensitivity {code}": metrics["per_class"][code]["sensitivity"] for code in CLASS_CODES
    }
    lines += [
        f"{name.replace('_', ' '):<20} {row['value']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def predict(run: Path, paths: Sequence[str | Path], out: Path) -> pd.DataFrame:
    """Predict image files, or all images in folders, and write a predictions file.

    Returns:
        image, prediction (the most probable `dx` code), confidence.

    Raises:
        InputError: nothing to predict, a file that is no image, or two files of one name.
    """
    from skinlesion.predictor import Predictor

    files = _list_files(paths)
    predictor = Predictor.load(run)
    y_prob = predictor.predict_probabilities(files)
    names = [path.stem for path in files]
    evaluation.write_predictions(out, names, y_prob)
    if predictor.bundle.info.synthetic:
        _say(SYNTHETIC_NOTE)
    _say(f"predict: wrote {len(files):,} predictions to {out}")
    top = y_prob.argmax(axis=1)
    return pd.DataFrame(
        {
            "image": names,
            "prediction": [CLASS_CODES[label] for label in top],
            "confidence": y_prob.max(axis=1),
        }
    )


def read_run_config(run: Path) -> Config:
    """The settings that a run was made with."""
    return config_from_dict(read_json(run / "config.json")["config"])


def _build_model(config: Config, *, may_do_without_weights: bool) -> tuple[Any, "LoadedWeights"]:
    from skinlesion.model import WeightsUnavailableError, build_model

    def build(weights: str) -> tuple[Any, "LoadedWeights"]:
        return build_model(
            image_size=config.image_size,
            weights=weights,
            preprocessing=config.preprocessing,
            head=config.head,
            batch_norm_momentum=config.batch_norm_momentum,
        )

    try:
        return build(config.weights)
    except WeightsUnavailableError as error:
        if not may_do_without_weights:
            raise
        _say(f"train: {error}")
        _say("train: this is the synthetic sample, so training starts from random weights instead")
        return build("none")


def _is_finished(run: Path, config: Config, table: pd.DataFrame, made: pd.DataFrame) -> bool:
    """Whether the run directory holds a finished run of these settings on this dataset."""
    if not (run / "config.json").is_file():
        return False
    if not (run / "model").is_dir():
        _say(f"train: {run} was begun but not finished; starting it again")
        return False
    other = differences(read_run_config(run), config)
    if other:
        raise InputError(f"{run}: finished with other settings ({other}); name another --run")
    _require_same_dataset(run, table)
    if not _same_split(read_split(run / "splits.csv"), made):
        raise InputError(f"{run}: finished with another split; name another --run")
    return True


def _same_split(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    def sides(split: pd.DataFrame) -> dict[str, str]:
        return dict(zip(split["image_id"], split["split"], strict=True))

    return sides(one) == sides(other)


def _require_same_dataset(run: Path, table: pd.DataFrame) -> None:
    known = read_json(run / "config.json")["dataset"]["fingerprint"]
    if known != dataset_fingerprint(table):
        raise InputError(
            f"{run}: was trained on another dataset than the one given; name that one with --data"
        )


def _describe_run(
    config: Config, loaded: "LoadedWeights", table: pd.DataFrame, *, synthetic: bool
) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "seed": config.seed,
        "weights": {
            "source": loaded.source,
            "loaded_layers": len(loaded.layers),
            "layers": loaded.total,
        },
        "dataset": {
            "fingerprint": dataset_fingerprint(table),
            "images": len(table),
            "synthetic": synthetic,
        },
        "versions": {"skinlesion": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
        "device": _device(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the package's own checkout, with `+changes` when files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None  # installed into a folder that some other repository ignores
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _device() -> str:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus
    ]
    return ", ".join(names) or f"CPU ({platform.machine()})"


def _estimate_duration(config: Config, images: int) -> str:
    """A rough guess, before the first epoch tells: from images, pixels and cores."""
    import tensorflow as tf

    height, width = config.image_size
    if tf.config.list_physical_devices("GPU"):
        rate = GPU_RATE
    else:
        rate = CPU_CORE_RATE * (os.cpu_count() or 1)
    seconds = config.epochs * images / (rate * 128 * 128 / (height * width))
    return f"very roughly {max(1, round(seconds / 60)):,} minutes"


def _write_predictions(predictor: "Predictor", rows: pd.DataFrame, run: Path, name: str) -> Path:
    y_prob = predictor.predict_probabilities(list(rows["path"]))
    return evaluation.write_predictions(
        run / f"predictions_{name}.csv", list(rows["image_id"]), y_prob
    )


def _test_rows(run: Path, table: pd.DataFrame) -> pd.DataFrame:
    rows = join_split(table, read_split(run / "splits.csv"))
    return rows[rows["split"] == "test"].reset_index(drop=True)


def _match(path: Path, rows: pd.DataFrame) -> np.ndarray:
    """Predictions in the order of `rows`; both must be about the same images."""
    names, y_prob = evaluation.read_predictions(path)
    missing, extra = set(rows["image_id"]) - set(names), set(names) - set(rows["image_id"])
    if missing or extra:
        raise InputError(
            f"{path}: does not fit the split: missing {name_some(sorted(missing)) or 'none'}; "
            f"extra {name_some(sorted(extra)) or 'none'}; delete it to predict again"
        )
    return pd.DataFrame(y_prob, index=names).loc[rows["image_id"]].to_numpy()


def _write_evaluation(
    run: Path, rows: pd.DataFrame, y_prob: np.ndarray, metrics: dict[str, Any]
) -> None:
    from skinlesion import plots

    out = run / "evaluation"
    y_true, y_pred = rows["label"].to_numpy(), y_prob.argmax(axis=1)
    matrix = np.asarray(metrics["confusion_matrix"])
    report = evaluation.compute_classification_report(y_true, y_pred)
    write_csv(out / "classification_report.csv", report, index=True)
    write_csv(
        out / "confusion_matrix.csv",
        pd.DataFrame(matrix, index=list(CLASS_CODES), columns=list(CLASS_CODES)),
        index=True,
    )
    write_csv(out / "metrics.csv", evaluation.metrics_table(metrics))
    figures = {
        "confusion_matrix": plots.plot_confusion_matrix(matrix).figure,
        "confusion_matrix_normalized": plots.plot_confusion_matrix(matrix, normalize=True).figure,
        "learning_curves": plots.plot_learning_curves(pd.read_csv(run / "history.csv"))[0].figure,
        "sample_predictions": _plot_samples(run, rows, y_pred),
    }
    for name, figure in figures.items():
        plots.caption(figure, synthetic=metrics["synthetic"])
        plots.save_figure(figure, out / f"{name}.png")
    # Last: who finds metrics.json finds all the rest.
    write_json(out / "metrics.json", metrics)


def _plot_samples(run: Path, rows: pd.DataFrame, y_pred: np.ndarray) -> "Figure":
    from skinlesion import plots

    drawn = np.random.default_rng(read_run_config(run).seed).permutation(len(rows))[
        :SHOWN_PREDICTIONS
    ]
    images = [decode_image(path, image_size=(150, 200)) for path in rows["path"].iloc[drawn]]
    return plots.plot_sample_predictions(images, rows["label"].to_numpy()[drawn], y_pred[drawn])


def _list_files(paths: Sequence[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(
                p for p in path.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")
            )
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not files:
        raise InputError("no .jpg or .png file to predict: name image files or a folder of them")
    names = pd.Series([path.stem for path in files])
    if names.duplicated().any():
        doubled = sorted(set(names[names.duplicated()]))
        raise InputError(
            f"several files of one name, rename or predict apart: {name_some(doubled)}"
        )
    return files


def _say(text: str) -> None:
    print(text, flush=True)
