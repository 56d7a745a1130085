"""Where this runs: where the dataset is mounted, where new files go, whether anybody watches."""

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
KAGGLE_MOUNTS = (
    KAGGLE_INPUT / "datasets/kmader/skin-cancer-mnist-ham10000",
    KAGGLE_INPUT / "skin-cancer-mnist-ham10000",
)
"""Where Kaggle shows the attached dataset: the new form and the old one."""


def on_kaggle() -> bool:
    """Whether this is a Kaggle session; `/kaggle/input` alone proves nothing, Colab has it too."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def default_work_dir() -> Path:
    """The folder for new files: Kaggle's saved one, otherwise `outputs` in the current folder."""
    return KAGGLE_WORKING if on_kaggle() else Path("outputs").resolve()


def default_weights() -> str | None:
    """The backbone's weights as the variable `SKINLESION_WEIGHTS` names them; None: not set."""
    return os.environ.get("SKINLESION_WEIGHTS") or None


def is_watched() -> bool:
    """Whether a person sees the output while it appears: in a terminal or in a live notebook.

    Not in a Kaggle batch run, and not where `SKINLESION_UNATTENDED=1` says so, as scripts that
    execute notebooks do.
    """
    batch = os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    if batch or os.environ.get("SKINLESION_UNATTENDED") == "1":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def default_cache_dir() -> Path:
    """The folder for files that can be made again: `SKINLESION_CACHE`, else the user's own cache.

    On Kaggle it lies outside the saved folder.
    """
    if named := os.environ.get("SKINLESION_CACHE"):
        return Path(named)
    if on_kaggle():
        return Path(tempfile.gettempdir()) / "skinlesion"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skinlesion"


def progress_bar(
    items: Iterable[T] | None, title: str, total: int, *, unit: str = "image"
) -> "tqdm[T]":
    """Pass on `items`; when somebody watches and it takes over a second, with a bar on stderr."""
    return tqdm(items, title, total, unit=f" {unit}s", delay=1, disable=not is_watched())


def byte_bar(title: str, total: int) -> "tqdm[Any]":
    """A bar on stderr, when somebody watches, for something that moves by bytes."""
    return tqdm(
        desc=title, total=total, unit="B", unit_scale=True, delay=1, disable=not is_watched()
    )


def say(text: str) -> None:
    """Tell whoever runs this what happens, at once even where output is buffered."""
    print(text, flush=True)
