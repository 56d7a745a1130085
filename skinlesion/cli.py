"""The command line: arguments to `workflow` calls, no logic."""

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from skinlesion import __version__
from skinlesion.config import RECIPES
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.files import InputError
from skinlesion.machine import default_weights

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130

EXAMPLE = f"""\
the usual order:
  python -m skinlesion sample outputs/sample           a synthetic dataset, to try everything
  python -m skinlesion copy --data DIR --out images    all images in one folder
  python -m skinlesion split --data images --out splits.csv
  python -m skinlesion train --data images --splits splits.csv --run runs/first
  python -m skinlesion evaluate --data images --run runs/first
  python -m skinlesion audit splits.csv --data images  does a lesion appear in train and test?
  python -m skinlesion demo --run runs/first           a page in the browser

--data may be left out where the variable HAM10000_DIR is set, on Kaggle with the dataset attached,
and where it can be downloaded; --weights where the variable SKINLESION_WEIGHTS is set.

{DISCLAIMER}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 for bad input, with one line that says what is wrong; 1 for failures and for findings
        of `audit` and `check`.
    """
    # TensorFlow reads this when it is imported: without it, warnings bury our own messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    options = vars(build_parser().parse_args(argv))
    run_command, debug = options.pop("run_command"), options.pop("debug")
    try:
        return run_command(**options) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, InputError):
            # The libraries' own messages, which are passed on, may have several lines.
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            kind = type(error).__name__
            print(f"error: {kind}: {error} (--debug shows where)", file=sys.stderr)
        return BAD_INPUT if isinstance(error, InputError) else FAILURE


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run_command`, which takes its options by name."""
    parser = argparse.ArgumentParser(
        prog="python -m skinlesion",
        description="Train, judge and show a skin lesion classifier on HAM10000.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skinlesion {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_sample(commands)
    _add_copy(commands)
    _add_check(commands)
    _add_split(commands)
    _add_audit(commands)
    _add_find_near_duplicates(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_score(commands)
    _add_compare(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_demo(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _step(module: str, name: str) -> Callable[..., None]:
    """A function of the package, imported when it runs: the help appears at once."""

    def run(**options: Any) -> None:
        getattr(import_module(f"skinlesion.{module}"), name)(**options)

    return run


def _sample(out: Path, images_per_class: int, seed: int) -> None:
    from skinlesion.data.synthetic import make_sample

    make_sample(out, images_per_class=images_per_class, seed=seed)
    print(f"sample: synthetic dataset in {out}")


def _add_sample(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("sample", help="draw a synthetic dataset, to try the software")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--images-per-class", type=_positive, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.set_defaults(run_command=_sample)


def _add_copy(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("copy", help="gather the images of both parts in one folder")
    _add_data(parser)
    _add_out(parser, "DIR", "folder to fill")
    parser.set_defaults(run_command=_step("workflow", "copy"))


def _check(data: Path | None) -> int:
    from skinlesion import workflow

    return FAILURE if workflow.check(data) else 0


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("check", help="look for damage in a dataset; status 1 if any")
    _add_data(parser)
    parser.set_defaults(run_command=_check)


def _add_split(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("split", help="divide the images into train, validation and test")
    _add_data(parser)
    _add_out(parser, "CSV", "split file to write")
    _add_recipe(parser)
    parser.add_argument(
        "--fold", type=_fold, metavar="K/N", help="fold K of N is test, numbered from 1"
    )
    _add_near_duplicates(parser)
    parser.set_defaults(run_command=_step("workflow", "split"))


def _audit(**options: Any) -> int:
    from skinlesion import workflow

    return 0 if workflow.audit(**options).is_clean else FAILURE


def _add_audit(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("audit", help="look for leaks in a split file; status 1 if any")
    parser.add_argument("splits", type=Path, metavar="CSV", help="with image_id and split")
    _add_data(parser)
    _add_near_duplicates(parser)
    parser.set_defaults(run_command=_audit)


def _add_find_near_duplicates(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "near-duplicates", help="find images of one lesion under different lesion ids"
    )
    _add_data(parser)
    _add_out(parser, "CSV", "list to write")
    _add_weights(parser, default=default_weights() or "imagenet")
    parser.set_defaults(run_command=_step("workflow", "find_near_duplicates"))


def _train(
    run: Path,
    recipe: str | None,
    data: Path | None,
    splits: Path | None,
    time_limit: float | None,
    settings: list[tuple[str, Any]],
    **options: Any,
) -> None:
    from skinlesion import workflow
    from skinlesion.model.run import choose_config, is_begun

    if not (options["weights"] or is_begun(run)):
        options["weights"] = default_weights()
    config = choose_config(run, recipe, **options | dict(settings))
    workflow.train(data, run, config, splits=splits, time_limit=time_limit)


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model; fills a run directory",
        description="Train a model. On a run that was interrupted, --run alone goes on with it.",
    )
    _add_data(parser)
    _add_run(parser, "run directory to make, or to go on with")
    _add_recipe(parser, default=None)
    parser.add_argument("--splits", type=Path, metavar="CSV", help="split file; default: as recipe")
    _add_weights(parser, default=None)
    parser.add_argument("--image-size", type=_positive, nargs=2, metavar=("H", "W"))
    parser.add_argument("--epochs", type=_positive, metavar="N", help="all phases together")
    parser.add_argument("--batch-size", type=_positive, metavar="N")
    parser.add_argument("--limit", type=_positive, metavar="N", help="use N training images only")
    parser.add_argument(
        "--deterministic", action="store_true", default=None, help="repeatable, but slower"
    )
    parser.add_argument(
        "--time-limit", type=_hours, metavar="HOURS", help="stop before; the same command goes on"
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="any other setting of the recipe, such as label_smoothing=0.1; can be repeated",
    )
    parser.set_defaults(run_command=_train)


def _evaluate(
    run: list[Path],
    data: Path | None,
    tta: bool,
    images: Path | None,
    truth: Path | None,
    metadata: Path | None,
    out: Path | None,
) -> None:
    from skinlesion.evaluation import evaluate as assessment

    if (images is None) != (truth is None):
        raise InputError("--images and --truth belong together: name both or none")
    if len(run) == 1 and images is None:
        if out is not None:
            raise InputError("a run is evaluated in its own folder: leave out --out")
        assessment.evaluate(run[0], data=data, tta=tta)
    elif out is None:
        raise InputError("name a folder for the results with --out DIR")
    elif images and truth:
        assessment.evaluate_external(run, images, truth, out, metadata=metadata, tta=tta)
    else:
        assessment.evaluate_together(run, out, data=data, tta=tta)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="test a run: figures with 95 %% intervals, plots",
        description="Test a run on the test images of its split; several runs, as an ensemble or "
        "as folds; or any of these on other images (--images, --truth).",
    )
    parser.add_argument(
        "--run", type=Path, required=True, nargs="+", metavar="RUN", help="finished run directories"
    )
    _add_data(parser)
    parser.add_argument("--tta", action="store_true", help="average over mirrored images")
    parser.add_argument("--images", type=Path, metavar="DIR", help="other images to test on")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="their truth, ISIC 2018 form")
    _add_metadata(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.set_defaults(run_command=_evaluate)


def _add_score(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("score", help="figures of any predictions file, without a model")
    parser.add_argument("--predictions", type=Path, required=True, metavar="CSV")
    parser.add_argument("--truth", type=Path, required=True, metavar="CSV", help="one 1.0 a row")
    _add_metadata(parser)
    _add_out(parser, "DIR", "folder to fill")
    parser.set_defaults(run_command=_step("evaluation.evaluate", "score"))


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("compare", help="differences of two evaluated runs, intervals")
    parser.add_argument("run_a", type=Path, metavar="RUN_A")
    parser.add_argument("run_b", type=Path, metavar="RUN_B")
    _add_out(parser, "DIR", "folder to fill")
    parser.set_defaults(run_command=_step("evaluation.evaluate", "compare"))


def _predict(run: Path, paths: list[str], out: Path) -> None:
    from skinlesion import workflow

    table = workflow.predict(run, paths, out)
    print(table.to_string(index=False, max_rows=20))
    print(DISCLAIMER)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("predict", help="predict image files or folders of them")
    _add_run(parser, "run directory or bundle")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file or folder")
    _add_out(parser, "CSV", "file to write")
    parser.set_defaults(run_command=_predict)


def _export(run: Path, format: Any, out: Path, images: list[Path]) -> None:
    from skinlesion.evaluation.export import export

    export(run, format, out, images=images)
    print(DISCLAIMER)


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="write the model as ONNX, LiteRT or SavedModel",
        description="Write the model in another form, kept only where its probabilities equal "
        "those of Keras. Beside it, OUT.json says what goes in and what comes out.",
    )
    _add_run(parser, "run directory or bundle")
    parser.add_argument("--format", choices=["onnx", "litert", "saved_model"], required=True)
    _add_out(parser, "PATH", "file to make (.onnx, .tflite), with saved_model a folder")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="images to compare on (default: generated ones)",
    )
    parser.set_defaults(run_command=_export)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("demo", help="show the model as a page in the browser")
    _add_run(parser, "run directory or bundle")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="default: 127.0.0.1")
    parser.add_argument("--port", type=_positive, default=7860, metavar="N", help="default: 7860")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio")
    parser.add_argument("--auth", type=_auth, metavar="USER:PASSWORD", help="ask for a login")
    parser.set_defaults(run_command=_step("demo.app", "serve"))


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the dataset")


def _add_run(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help=what)


def _add_out(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar=metavar, help=what)


def _add_weights(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "--weights",
        default=default,
        metavar="imagenet|none|FILE",
        help="pretrained weights of the backbone (default: SKINLESION_WEIGHTS, else imagenet)",
    )


def _add_near_duplicates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--near-duplicates",
        type=Path,
        metavar="CSV",
        help="pairs that show one lesion, from near-duplicates (default: HAM10000's)",
    )


def _add_metadata(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metadata", type=Path, metavar="CSV", help="with HAM10000's columns: lesions, subgroups"
    )


def _add_recipe(parser: argparse.ArgumentParser, *, default: str | None = "default") -> None:
    parser.add_argument("--recipe", choices=list(RECIPES), default=default, help="default: default")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 42")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 and a whole number, not {text}")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not hours > 0:
        raise argparse.ArgumentTypeError(f"must be a number of hours above 0, not {text}")
    return hours


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word needs no quotes


def _fold(text: str) -> tuple[int, int]:
    number, slash, folds = text.partition("/")
    if not (slash and number.isdecimal() and folds.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be K/N, such as 1/5, not {text!r}")
    return int(number), int(folds)


def _auth(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("must be USER:PASSWORD")
    return user, password
