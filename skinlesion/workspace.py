"""Where this runs: where the dataset is mounted, and where new files go."""

import os
from pathlib import Path

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


def is_interactive() -> bool:
    """Whether someone is there to use a page: not in a Kaggle batch run, nor in an unattended one.

    `SKINLESION_UNATTENDED=1` says that nobody watches, for scripts that execute the notebooks.
    """
    batch = os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    return not batch and os.environ.get("SKINLESION_UNATTENDED") != "1"
