"""The command line: each command parses its arguments and calls one step of the package."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from skinlesion.cli_options import (
    PROGRAM,
    USUAL_ORDER,
    AllowIncomplete,
    Costs,
    Data,
    Format,
    Metadata,
    NearDuplicates,
    OutCsv,
    OutFolder,
    Recipe,
    RunFolder,
    Scheduler,
    Seed,
    Version,
    Weights,
    flag,
    option,
    parse_fold,
    parse_login,
)
from skinlesion.cli_train import cross_validate, train
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.files import InputError, require_no_folder, write_csv
from skinlesion.machine import default_weights

FAILURE, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="Train, evaluate and demonstrate a skin lesion classifier on HAM10000.",
    epilog=USUAL_ORDER,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, with the arguments of the process or these.

    Returns:
        The exit status: 0; 1 for failures and findings, also of files that `predict` could not
        read; 2 for mistakes of the user; 130 after an interrupt.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument != "--debug"]
    try:
        status = app(arguments, prog_name=PROGRAM, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        # Messages of libraries, which are passed on, can have several lines.
        print(f"error: {' '.join(describe_error(error).split())}", file=sys.stderr)
        is_mistake = isinstance(error, InputError) or hasattr(error, "format_message")
        return BAD_INPUT if is_mistake else FAILURE
    if status == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return status


def describe_error(error: Exception) -> str:
    """Describe an error to the user."""
    if isinstance(error, InputError):
        return str(error)
    if hasattr(error, "format_message"):  # all errors of Click, which newer Typers carry inside
        context = getattr(error, "ctx", None)
        message = error.format_message().rstrip(".")
        return f"{message} (see {context.command_path if context else PROGRAM} --help)"
    return f"{type(error).__name__}: {error} (--debug shows the traceback)"


def command(name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command, with an example below its help."""
    shown = f"\b\nExample:\n  {PROGRAM} {name} {example}"
    return app.command(name, epilog=f"{shown}\n\n--debug shows the traceback of an error.")


@app.callback()
def _options(version: Version = False) -> None:
    """Options before the command."""


@command("sample", "outputs/sample --images-per-class 20")
def sample(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    images_per_class: Annotated[int, option("N", min=1)] = 60,
    seed: Annotated[int, option("N")] = 0,
    classes: Annotated[int | None, option("N", "The first N classes, as one's own table.")] = None,
) -> None:
    """Draw a synthetic dataset, to try the software."""
    from skinlesion.data.synthetic import make_sample

    make_sample(out, images_per_class=images_per_class, seed=seed, classes=classes)
    print(f"sample: synthetic dataset in {out}")


@command("copy", "--data DIR --out images")
def copy(out: OutFolder, data: Data = None, allow_incomplete: AllowIncomplete = False) -> None:
    """Copy all images of a dataset into one folder."""
    from skinlesion.data.copies import copy_images

    copy_images(data, out, allow_incomplete=allow_incomplete)


@command("check", "--data images")
def check(
    data: Data = None,
    out: Annotated[Path | None, option("DIR", "For the report (default: outputs).")] = None,
) -> None:
    """Look for damage in a dataset; status 1 if any."""
    from skinlesion.data.check import check_dataset

    if check_dataset(data, out):
        raise typer.Exit(FAILURE)


@command("split", "--data images --out splits.csv --fold 1/5")
def split(
    out: OutCsv,
    data: Data = None,
    recipe: Recipe = None,
    seed: Seed = None,
    fold: Annotated[str | None, option("K/N", "Fold K of N is the test set, from 1.")] = None,
    near_duplicates: NearDuplicates = None,
) -> None:
    """Split a dataset into train, validation and test."""
    chosen = parse_fold(fold) if fold else None
    from skinlesion.data.dataset import find_dataset
    from skinlesion.data.leakage import audit_file
    from skinlesion.data.split import count_by_class, write_split

    source = find_dataset(data)
    options: dict[str, Any] = {"seed": seed, "fold": chosen, "near_duplicates": near_duplicates}
    split = write_split(source, out, recipe=recipe or "default", **options)
    print(count_by_class(split).to_string())
    print(audit_file(out, data=source, near_duplicates=near_duplicates).describe())


@command("audit", "splits.csv --data images")
def audit(
    splits: Annotated[Path, typer.Argument(metavar="SPLITS.csv")],
    data: Data = None,
    near_duplicates: NearDuplicates = None,
) -> None:
    """Look for leaks in a split; status 1 if any."""
    from skinlesion.data.leakage import audit_file

    found = audit_file(splits, data=data, near_duplicates=near_duplicates)
    print(found.describe())
    if not found.is_clean:
        raise typer.Exit(FAILURE)


@command("near-duplicates", "--data images --out near_duplicates.csv")
def near_duplicates(out: OutCsv, data: Data = None, weights: Weights = None) -> None:
    """Find images of one lesion under several ids."""
    from skinlesion.data.dataset import find_dataset, load_metadata
    from skinlesion.data.near_duplicates import find_near_duplicates, require_opencv
    from skinlesion.model.resnet50 import compute_features

    require_opencv()
    require_no_folder(out)
    table = load_metadata(find_dataset(data))
    print(f"near-duplicates: describing {len(table):,} images (takes minutes for thousands)")
    chosen = weights or default_weights() or "imagenet"
    found = find_near_duplicates(table, compute_features(list(table["path"]), weights=chosen))
    write_csv(out, found)
    print(f"near-duplicates: {len(found):,} pairs in {out}")


command("train", "--data images --splits splits.csv --run runs/first")(train)
command("cross-validate", "--data images --run runs/folds --folds 5 --seeds 1 2")(cross_validate)


@command("calibrate", "--run runs/first --data images")
def calibrate(run: RunFolder, data: Data = None, costs: Costs = None) -> None:
    """Calibrate a run on validation; train ends with it."""
    from skinlesion.evaluation.calibration import calibrate as calibrate_run

    calibrate_run(run, data, costs=costs)


@command("evaluate", "--run runs/first --data images --tta")
def evaluate(
    run: RunFolder,
    data: Data = None,
    tta: Annotated[bool, flag("--tta", "Average over mirrored and turned images.")] = False,
    shifts: Annotated[
        bool, flag("--shifts", "Also test under changes of light and image.")
    ] = False,
    images: Annotated[Path | None, option("DIR", "Images of an external test set.")] = None,
    truth: Annotated[Path | None, option("CSV", "Their truth, in the ISIC form.")] = None,
    metadata: Metadata = None,
    out: Annotated[Path | None, option("DIR", "For results on external images.")] = None,
) -> None:
    """Evaluate a run on its test images.

    --images and --truth evaluate on an external test set.
    """
    if (images is None) != (truth is None):
        raise InputError("--images and --truth belong together: give both or none")
    if images and shifts:
        raise InputError("--shifts is for the test images of the run")
    if images and not out:
        raise InputError("name a folder for the results with --out DIR")
    if out and not images:
        raise InputError("the results of a run go to its own folder: omit --out")
    if metadata and not images:
        raise InputError("--metadata is for external images: omit it")
    if images and data:
        raise InputError("--data is for the test images of the run: omit it with --images")
    from skinlesion.evaluation import evaluate as steps
    from skinlesion.evaluation.tables import describe_metrics
    from skinlesion.model.run import Run

    if images and truth and out:
        steps.evaluate_external(run, images, truth, out, metadata=metadata, tta=tta)
    else:
        metrics = steps.evaluate(run, data=data, tta=tta, shifts=shifts)
        print(describe_metrics(metrics, Run.find(run).info))


@command("score", "--predictions predictions.csv --truth truth.csv --out score")
def score(
    predictions: Annotated[Path, option("CSV", "Predictions, in the ISIC form.")],
    truth: Annotated[Path, option("CSV", "The same form, with one 1.0 a row.")],
    out: OutFolder,
    metadata: Metadata = None,
) -> None:
    """Compute the metrics of a predictions file."""
    from skinlesion.evaluation.score import score as score_file

    score_file(predictions, truth, out, metadata=metadata)


@command("compare", "runs/first runs/second --out comparison")
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B")],
    out: OutFolder,
) -> None:
    """Compare two evaluated runs on their test images."""
    from skinlesion.evaluation.compare import compare as compare_runs

    compare_runs(run_a, run_b, out)


@command("predict", "--run runs/first images/ISIC_0024306.jpg --out predictions.csv")
def predict(
    run: RunFolder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Image files or folders.")],
    out: OutCsv,
    isic: Annotated[bool, flag("--isic", "Uncalibrated, in the ISIC form.")] = False,
    scheduler: Scheduler = None,
) -> None:
    """Predict images; status 1 if some cannot be read."""
    if isic and scheduler is not None:
        raise InputError("--isic predicts in one process: omit --scheduler")
    if scheduler is not None:
        from skinlesion.demo.shards import predict_on_cluster

        table = predict_on_cluster(run, paths, out, scheduler)
    else:
        from skinlesion.demo.predict import predict as predict_files

        table = predict_files(run, paths, out, isic=isic)
    shown = table.filter(["file", "prediction", "malignant", "p_malignant", "in_distribution"])
    print(shown.to_string(index=False, max_rows=20, na_rep="-"))
    print(DISCLAIMER)
    if table["error"].any():
        raise typer.Exit(FAILURE)


@command("export", "--run runs/first --format onnx --out model.onnx")
def export(
    run: RunFolder,
    format: Annotated[Format, typer.Option(help="What to write.")],
    out: Annotated[Path, option("PATH", "File to create; a folder for saved_model.")],
    images: Annotated[
        list[Path] | None, option("FILE", "Compare on this image; repeatable (default: generated).")
    ] = None,
) -> None:
    """Write the model as ONNX, LiteRT or SavedModel.

    Its probabilities must equal those of Keras. OUT.json describes inputs and outputs.
    """
    from skinlesion.evaluation.export import export as export_model

    export_model(run, format.value, out, images=images or ())
    print(DISCLAIMER)


@command("demo", "--run runs/first --port 8000")
def demo(
    run: RunFolder,
    host: Annotated[str, option("H")] = "127.0.0.1",
    port: Annotated[int, option("N", min=1, max=65535)] = 7860,
    share: Annotated[bool, flag("--share", "Also make a public link through Gradio.")] = False,
    auth: Annotated[str | None, option("USER:PASSWORD", "Ask for a login.")] = None,
) -> None:
    """Show the model as a page in the browser."""
    login = parse_login(auth) if auth else None
    from skinlesion.demo.app import serve

    serve(run, host=host, port=port, share=share, auth=login)
