"""Where this runs: Kaggle, Colab or another machine; what is attached; where new files go."""

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from skinlesion.files import write_atomically, write_folder_atomically

T = TypeVar("T")
Platform = Literal["kaggle", "colab", "laptop"]

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
COLAB_DRIVE = Path("/content/drive/MyDrive")
"""Google Drive on Colab, once the user has mounted it."""

DATASET_SLUG = "skin-cancer-mnist-ham10000"
KAGGLE_MOUNTS = (
    KAGGLE_INPUT / "datasets/kmader" / DATASET_SLUG,
    KAGGLE_INPUT / DATASET_SLUG,
)
"""Where Kaggle mounts the attached dataset: the new path and the old one."""

LOCK_NAME = "train.lock"
"""The lock in the folder of a run that is being trained. Copies of the folder are not locked."""

PARENT = "SKINLESION_PARENT"
"""The variable that tells a new process which process it ends with."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: a process is sent a signal when the one that started it ends."""

EARLIER_OUTPUTS = ("notebooks/*/*", "datasets/*/*", "*")
"""Where Kaggle mounts the output of another notebook, or a dataset made from it."""

WEIGHTS_PATTERNS = tuple(
    f"{place}/*resnet50_*notop*.h5"
    for place in ("datasets/*/*", "models/*/*/*/*/*", "*", "*/*/*/*")
)
"""Where Kaggle mounts a weights file of a dataset or a model: the new paths and the old ones."""

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux lists what the processor can do."""

HOW_TO_ATTACH = {
    "kaggle": "attach its output (Add Input > Notebooks) and run this again",
    "colab": "mount Google Drive before running both: "
    "from google.colab import drive; drive.mount('/content/drive')",
    "laptop": "run it first, or set `work` to its folder",
}
"""How a notebook gets the output of an earlier notebook."""


def find_platform() -> Platform:
    """Return the kind of machine that this is.

    `/kaggle/input` alone proves nothing: on Colab, kagglehub mounts data there too.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    try:
        return "colab" if importlib.util.find_spec("google.colab") else "laptop"
    except ModuleNotFoundError:  # there is no package `google` at all
        return "laptop"


def default_work_dir() -> Path:
    """Return the folder for results.

    On Kaggle this is the folder that Kaggle saves; on Colab `skinlesion` in Google Drive, if Drive
    is mounted; otherwise `outputs` in the current folder.
    """
    platform = find_platform()
    if platform == "kaggle":
        return KAGGLE_WORKING
    if platform == "colab" and COLAB_DRIVE.is_dir():
        return COLAB_DRIVE / "skinlesion"
    return Path("outputs").resolve()


def default_images_dir(work: Path) -> Path:
    """Return the folder for copied images: in `work`, unless every file there is saved online."""
    is_saved = any(map(work.absolute().is_relative_to, (KAGGLE_WORKING, COLAB_DRIVE)))
    return (default_cache_dir() if is_saved else work) / "images"


def default_cache_dir() -> Path:
    """Return the folder for files that can be recreated.

    This is the variable `SKINLESION_CACHE` if it is set; on Kaggle a temporary folder, which is not
    saved; otherwise the user's cache folder.
    """
    if named := os.environ.get("SKINLESION_CACHE"):
        return Path(named)
    if find_platform() == "kaggle":
        return Path(tempfile.gettempdir()) / "skinlesion"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skinlesion"


def default_weights() -> str | None:
    """Return the file of pretrained weights: `SKINLESION_WEIGHTS`, or one attached on Kaggle.

    Returns:
        The path, or None if there is no such file on this machine.
    """
    if named := os.environ.get("SKINLESION_WEIGHTS"):
        return named
    if find_platform() == "kaggle":
        return next((str(path) for path in _list_input(WEIGHTS_PATTERNS)), None)
    return None


def bring_earlier(name: str, work: Path) -> Path:
    """Make the output of an earlier notebook available in the working folder.

    On Kaggle each notebook has its own session. The output of another notebook is attached as
    read-only input. It is copied, so that this notebook can add files to it.

    Args:
        name: file or folder below the working folder, such as `runs/default`.
        work: the working folder.

    Returns:
        `work / name`, which does not exist if no earlier output was found.
    """
    place = work / name
    if place.exists() or find_platform() != "kaggle":
        return place
    found = _list_input(f"{output}/{name}" for output in EARLIER_OUTPUTS)
    # Of several runs, a finished one comes first.
    found.sort(key=lambda path: not (path / "model" / "bundle.json").is_file())
    if found:
        others = f" (the first of {len(found)} that are attached)" if len(found) > 1 else ""
        say(f"{name}: taken from {found[0]}{others}")
        if found[0].is_dir():
            write_folder_atomically(place, lambda part: _copy_writable(found[0], part))
        else:
            write_atomically(place, lambda part: shutil.copyfile(found[0], part))
    return place


def list_attached(name: str) -> list[Path]:
    """List the datasets attached on Kaggle that have this file at their top."""
    return [path.parent for path in _list_input((f"datasets/*/*/{name}", f"*/{name}"))]


def how_to_attach() -> str:
    """Return how to use the output of an earlier notebook on this platform."""
    return HOW_TO_ATTACH[find_platform()]


def prepare_tensorflow() -> None:
    """Set two variables that TensorFlow reads when it is imported, unless the user has set them.

    One hides most of its log messages, among which ours would be lost. The other turns on oneDNN
    where the processor has AVX2. TensorFlow does so by itself only on newer processors, such as
    those with AVX512_VNNI
    (https://github.com/tensorflow/tensorflow/blob/v2.20.0/third_party/xla/xla/tsl/util/port.cc);
    docs/benchmarks.md has what it gains.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if CPU_INFO.is_file() and re.search(r"\bavx2\b", CPU_INFO.read_text()):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def end_with_parent() -> None:
    """On Linux, let the process that `PARENT` names take this one with it, however it ends.

    The new process does this itself: what runs between fork and exec can wait for ever for a lock
    that a thread of the parent held (subprocess, `preexec_fn`), and a Dask worker has many threads.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


def list_gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs, such as `Tesla T4`, as reported by their driver."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if answer.returncode else answer.stdout.splitlines()


def start() -> None:
    """Print where this runs; notebooks call it first.

    If the package was imported from a clone or a wheel, programs started later find it there too.
    """
    sys.path[:] = [str(Path(entry).resolve()) if entry else entry for entry in sys.path]
    home = Path(__file__).resolve().parent.parent
    if home.suffix == ".whl" or (home / "pyproject.toml").is_file():
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{home}{os.pathsep}{others}" if others else str(home)
    say(describe())


def describe() -> str:
    """Return one line about the machine, and one about where results go and whether they stay."""
    platform, work = find_platform(), default_work_dir()
    name = {"kaggle": "Kaggle", "colab": "Google Colab", "laptop": "this machine"}[platform]
    gpus = list_gpus()
    kinds = [f"{gpus.count(kind)} x {kind}" for kind in sorted(set(gpus))]
    kept = "kept"
    if platform == "kaggle":
        kept = "kept when you save the notebook's version"
    elif platform == "colab" and work.is_relative_to(COLAB_DRIVE):
        kept = "kept in your Drive"
    elif platform == "colab":
        kept = f"lost when the session ends; to keep them, {HOW_TO_ATTACH['colab']}"
    shown = os.path.relpath(work) if platform == "laptop" else work
    return (
        f"skinlesion on {name}: Python {sys.version.split()[0]}, {os.cpu_count()} cores, "
        f"{', '.join(kinds) or 'no GPU'}\nresults: {shown}, {kept}"
    )


def is_watched() -> bool:
    """Return whether a person sees the output as it appears: in a terminal or a live notebook.

    False in a Kaggle batch run, and with `SKINLESION_UNATTENDED=1`, which scripts that execute
    notebooks set.
    """
    batch = os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    if batch or os.environ.get("SKINLESION_UNATTENDED") == "1":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def progress_bar(
    items: Iterable[T] | None, title: str, total: int, *, unit: str = "images"
) -> "tqdm[T]":
    """Pass on `items` and show a bar on stderr if this takes over a second and is watched."""
    return tqdm(items, title, total, unit=f" {unit}", delay=1, disable=not is_watched())


def say(text: str) -> None:
    """Print at once, even if output is buffered."""
    print(text, flush=True)


@functools.cache
def warn(text: str) -> None:
    """Print a warning on stderr. Each text is printed once, however many steps come across it."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _list_input(patterns: Iterable[str]) -> list[Path]:
    """List what matches below Kaggle's input, in the order of the patterns, then of the paths."""
    return [path for pattern in patterns for path in sorted(KAGGLE_INPUT.glob(pattern))]


def _copy_writable(source: Path, target: Path) -> None:
    """Copy the files of a folder without their permissions: Kaggle's input is read-only."""
    for path in source.rglob("*"):
        if path.is_file() and path.name != LOCK_NAME:
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
