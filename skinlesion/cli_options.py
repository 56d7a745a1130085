"""Options of the command line: those that several commands share, and how values are read."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from skinlesion import __version__
from skinlesion.config import RECIPES
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.files import InputError

PROGRAM = "python -m skinlesion"

USUAL_ORDER = f"""\
\b
The usual order:
  {PROGRAM} sample outputs/sample   (synthetic, to try it all)
  {PROGRAM} copy --data DIR --out images
  {PROGRAM} split --data images --out splits.csv
  {PROGRAM} train --data images --splits splits.csv --run runs/first
  {PROGRAM} evaluate --run runs/first
  {PROGRAM} demo --run runs/first

--data can be omitted if HAM10000_DIR is set, or on Kaggle if the dataset is attached; otherwise
HAM10000 is downloaded. --weights can be omitted if SKINLESION_WEIGHTS is set. Every command takes
--help, and --debug to show the traceback of an error.

{DISCLAIMER}"""


class Format(StrEnum):
    """What `export` can write."""

    ONNX = "onnx"
    LITERT = "litert"
    SAVED_MODEL = "saved_model"


def option(metavar: str, text: str = "", *names: str, **bounds: Any) -> Any:
    """An option: how its value is called, its help, and its names if not that of the parameter."""
    return typer.Option(*names, metavar=metavar, help=text or None, **bounds)


def flag(name: str, text: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=text)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        print(f"skinlesion {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
]
Data = Annotated[Path | None, option("DIR", "Folder of the dataset.")]
Costs = Annotated[str | None, option("CSV|none", "Decide by this table of costs; none: no more.")]
RunFolder = Annotated[Path, option("RUN", "Run folder or saved model.", "--run")]
OutFolder = Annotated[Path, option("DIR", "Folder to fill.", "--out")]
OutCsv = Annotated[Path, option("CSV", "File to write.", "--out")]
Recipe = Annotated[str | None, option("R", f"{', '.join(RECIPES)} (default: default).")]
Seed = Annotated[int | None, option("N", "Default: 42.")]
Weights = Annotated[
    str | None, option("imagenet|none|FILE", "Default: SKINLESION_WEIGHTS, else imagenet.")
]
NearDuplicates = Annotated[
    Path | None, option("CSV", "From near-duplicates (default: the list for HAM10000).")
]
AllowIncomplete = Annotated[
    bool, flag("--allow-incomplete", "Leave out rows or images without the other.")
]
Metadata = Annotated[Path | None, option("CSV", "Their lesions, ages, sexes and sites.")]

Scheduler = Annotated[str | None, option("ADDRESS", "Of a Dask cluster: tcp://HOST:8786.")]


def parse_setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE. The value is JSON; a word needs no quotes."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"--set: must be NAME=VALUE. Received: {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse_fold(text: str) -> tuple[int, int]:
    """Read K/N."""
    number, slash, folds = text.partition("/")
    if not (slash and number.isdecimal() and folds.isdecimal()):
        raise InputError(f"--fold: must be K/N, such as 1/5. Received: {text}")
    return int(number), int(folds)


def parse_login(text: str) -> tuple[str, str]:
    """Read USER:PASSWORD."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise InputError("--auth: must be USER:PASSWORD")
    return user, password
