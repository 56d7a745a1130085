"""The command line: options in, calls of the package, text out."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import skinlesion as sl
from skinlesion.diagnoses import DISCLAIMER

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train, evaluate and demonstrate a skin lesion classifier on HAM10000.",
    epilog=f"{DISCLAIMER} --debug shows the traceback of an error. COMMAND --help has an example.",
)


def _option(metavar: str | None, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, show_default=False, **limits)


Data = Annotated[Path | None, _option("DIR", "Dataset; without it, HAM10000_DIR or a download.")]
RunFolder = Annotated[Path, _option("RUN", "Folder of the run, or a saved model.", "--run")]
Out = Annotated[Path, _option("PATH", "What to write.")]
Recipe = Annotated[str | None, _option("R", "default, original or probe.")]
Seed = Annotated[int | None, _option("N", "Seed of everything random; default 42.", min=0)]
Weights = Annotated[str | None, _option("imagenet|none|FILE", "Default: SKINLESION_WEIGHTS.")]
NearDuplicates = Annotated[Path | None, _option("CSV", "Pairs of one lesion; default HAM10000's.")]
Metadata = Annotated[Path | None, _option("CSV", "HAM10000's columns: lesions, subgroups.")]
Number = Annotated[int | None, _option("N", "Instead of the recipe's value.", min=1)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        0; 2 for bad input, after one line that says what is wrong; 1 for failures and findings.
    """
    # TensorFlow reads this when it is imported: without it, warnings bury our own messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return app(arguments, prog_name="python -m skinlesion", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # Typer's own errors say what is wrong with the arguments; it renamed their class.
        usage = getattr(error, "format_message", None)
        known = isinstance(error, sl.InputError) or usage is not None
        if debug:
            traceback.print_exc()
        else:
            text = usage() if usage else str(error) if known else f"{type(error).__name__}: {error}"
            hint = (
                " (--help shows an example)" if usage else "" if known else " (--debug shows where)"
            )
            # Messages of libraries, which are passed on, may have several lines.
            print(f"error: {' '.join(text.split())}{hint}", file=sys.stderr)
        return BAD_INPUT if known else FAILURE


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"skinlesion {sl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version)] = False,
) -> None:
    """Options of all commands."""


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    images_per_class: Annotated[int, _option("N", "Default: 60.", min=1)] = 60,
    seed: Annotated[int, _option("N", "Default: 0.", min=0)] = 0,
) -> None:
    """Draw a synthetic dataset to try the software.

    Example: python -m skinlesion sample outputs/sample
    """
    sl.make_sample(out, images_per_class=images_per_class, seed=seed)
    print(f"sample: synthetic dataset in {out}")


@app.command()
def copy(out: Out, data: Data = None) -> None:
    """Gather the images of both parts in one folder.

    Example: python -m skinlesion copy --data DIR --out images
    """
    sl.copy_images(sl.find_dataset(data), out)


@app.command()
def check(data: Data = None) -> int:
    """Look for damage in a dataset; exit status 1 if there is any.

    Example: python -m skinlesion check --data images
    """
    return FAILURE if sl.check_dataset(data) else 0


@app.command()
def split(
    out: Out,
    data: Data = None,
    recipe: Recipe = None,
    seed: Seed = None,
    fold: Annotated[str | None, _option("K/N", "Fold K of N is test.")] = None,
    near_duplicates: NearDuplicates = None,
) -> None:
    """Split the images into train, validation and test.

    Example: python -m skinlesion split --data images --out splits.csv
    """
    options = {"seed": seed, "fold": _parse_fold(fold), "near_duplicates": near_duplicates}
    sl.write_split(data, out, recipe=recipe or "default", **options)
    print(sl.audit_file(out, data=data, near_duplicates=near_duplicates).describe())


@app.command()
def audit(
    splits: Annotated[Path, typer.Argument(metavar="CSV", help="With image_id and split.")],
    data: Data = None,
    near_duplicates: NearDuplicates = None,
) -> int:
    """Look for leaks in a split file; exit status 1 if there are any.

    Example: python -m skinlesion audit splits.csv --data images
    """
    found = sl.audit_file(splits, data=data, near_duplicates=near_duplicates)
    print(found.describe())
    return 0 if found.is_clean else FAILURE


@app.command()
def near_duplicates(out: Out, data: Data = None, weights: Weights = None) -> None:
    """Find images of one lesion under different lesion ids.

    Example: python -m skinlesion near-duplicates --data images --out pairs.csv
    """
    from skinlesion.data.near_duplicates import find_near_duplicates, require_opencv
    from skinlesion.files import write_csv
    from skinlesion.model.resnet50 import compute_features

    require_opencv()
    table = sl.load_metadata(sl.find_dataset(data))
    weights = weights or sl.default_weights() or "imagenet"
    pairs = find_near_duplicates(table, compute_features(list(table["path"]), weights=weights))
    write_csv(out, pairs)
    print(f"near-duplicates: {len(pairs):,} pairs in {out}")


@app.command()
def train(
    run: RunFolder,
    data: Data = None,
    recipe: Recipe = None,
    splits: Annotated[Path | None, _option("CSV", "Split file.")] = None,
    weights: Weights = None,
    image_size: Annotated[tuple[int, int] | None, _option("H W", "In pixels.")] = None,
    epochs: Annotated[int | None, _option("N", "Largest number of epochs.", min=0)] = None,
    batch_size: Number = None,
    limit: Annotated[int | None, _option("N", "Largest number of training images.", min=1)] = None,
    seed: Seed = None,
    deterministic: Annotated[
        bool, _option(None, "Repeatable, but slower.", "--deterministic")
    ] = False,
    time_limit: Annotated[float | None, _option("HOURS", "Stop before; run again.")] = None,
    settings: Annotated[list[str] | None, _option("NAME=VALUE", "Any setting.", "--set")] = None,
) -> None:
    """Train and calibrate a model. On an interrupted run, --run alone continues.

    Example: python -m skinlesion train --data images --run runs/first
    """
    if time_limit is not None and not time_limit > 0:
        raise typer.BadParameter("--time-limit must be a number of hours above 0")
    given = dict(map(_parse_setting, settings or ()))
    config = sl.choose_config(
        sl.Run(run),
        recipe,
        weights=weights,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        deterministic=deterministic or None,
        **given,
    )
    trained = sl.train(data, run, config, splits=splits, time_limit=time_limit)
    if trained.is_finished:
        sl.calibrate(trained, data)


@app.command()
def calibrate(run: RunFolder, data: Data = None) -> None:
    """Fit temperature, thresholds and OOD detection on the validation images.

    Example: python -m skinlesion calibrate --run runs/first
    """
    sl.calibrate(run, data)


@app.command()
def evaluate(
    run: Annotated[list[Path], _option("RUN...", "One run or several.")],
    more: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    data: Data = None,
    tta: Annotated[bool, _option(None, "Average over mirrored images.", "--tta")] = False,
    images: Annotated[Path | None, _option("DIR", "Other test images.")] = None,
    truth: Annotated[Path | None, _option("CSV", "Their diagnoses, in ISIC form.")] = None,
    metadata: Metadata = None,
    out: Annotated[Path | None, _option("DIR", "Folder for results.")] = None,
) -> None:
    """Test a run. Several runs are an ensemble or folds; --images names an external test.

    Example: python -m skinlesion evaluate --run runs/first --tta
    """
    runs = [*run, *(more or ())]
    if (images is None) != (truth is None):
        raise sl.InputError("--images and --truth belong together: name both or none")
    if len(runs) == 1 and images is None:
        if out is not None:
            raise sl.InputError("a run is evaluated in its own folder: leave out --out")
        sl.evaluate(runs[0], data=data, tta=tta)
    elif out is None:
        raise sl.InputError("name a folder for the results with --out DIR")
    elif images and truth:
        sl.evaluate_external(runs, images, truth, out, metadata=metadata, tta=tta)
    else:
        sl.evaluate_together(runs, out, data=data, tta=tta)


@app.command()
def score(
    predictions: Annotated[Path, _option("CSV", "In ISIC form.")],
    truth: Annotated[Path, _option("CSV", "One 1.0 in each row.")],
    out: Out,
    metadata: Metadata = None,
) -> None:
    """Compute the figures of any predictions file, without a model.

    Example: python -m skinlesion score --predictions P.csv --truth T.csv --out results
    """
    sl.score(predictions, truth, out, metadata=metadata)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B")],
    out: Out,
) -> None:
    """Compare two evaluated runs on their common test images.

    Example: python -m skinlesion compare runs/first runs/second --out comparison
    """
    sl.compare(run_a, run_b, out)


@app.command()
def predict(
    run: RunFolder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images or folders.")],
    out: Out,
    isic: Annotated[bool, _option(None, "ISIC form, uncalibrated.", "--isic")] = False,
) -> int:
    """Predict image files or folders; exit status 1 if some cannot be read.

    Example: python -m skinlesion predict --run runs/first image.jpg folder --out predictions.csv
    """
    table = sl.predict(run, paths, out, isic=isic)
    print(DISCLAIMER)
    return FAILURE if "error" in table and (table["error"] != "").any() else 0


@app.command()
def export(
    run: RunFolder,
    format: Annotated[str, _option("F", "onnx, litert or saved_model.")],
    out: Out,
    images: Annotated[list[Path] | None, _option("FILE", "Images to compare on.")] = None,
) -> None:
    """Write the model for other programs, if its probabilities equal those of Keras.

    Example: python -m skinlesion export --run runs/first --format onnx --out model.onnx
    """
    sl.export(run, format, out, images=images or ())
    print(DISCLAIMER)


@app.command()
def demo(
    run: RunFolder,
    host: Annotated[str, _option("H", "Default: 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, _option("N", "Default: 7860.", min=1, max=65535)] = 7860,
    share: Annotated[bool, _option(None, "Ask Gradio for a public link.", "--share")] = False,
    auth: Annotated[str | None, _option("USER:PASSWORD", "Ask for a login.")] = None,
) -> None:
    """Show the model as a page in the browser.

    Example: python -m skinlesion demo --run runs/first
    """
    sl.serve(run, host=host, port=port, share=share, auth=_parse_auth(auth))


def _parse_fold(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, slash, folds = text.partition("/")
    if not (slash and number.isdecimal() and folds.isdecimal()):
        raise typer.BadParameter(f"--fold must be K/N, such as 1/5, not {text!r}")
    return int(number), int(folds)


def _parse_setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"--set must be NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word needs no quotes


def _parse_auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise typer.BadParameter("--auth must be USER:PASSWORD")
    return user, password
