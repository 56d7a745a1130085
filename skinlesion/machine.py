"""Where this runs: Kaggle, Colab or another machine; what is attached, and where new files go."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from packaging.requirements import Requirement
from tqdm import tqdm

from skinlesion.files import write_atomically, write_folder_atomically

T = TypeVar("T")
Platform = Literal["kaggle", "colab", "laptop"]

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
COLAB_DRIVE = Path("/content/drive/MyDrive")
"""Where Colab shows Google Drive, once the user has mounted it."""

DATASET_SLUG = "skin-cancer-mnist-ham10000"
KAGGLE_MOUNTS = (
    KAGGLE_INPUT / "datasets/kmader" / DATASET_SLUG,
    KAGGLE_INPUT / DATASET_SLUG,
)
"""Where Kaggle shows the attached dataset: the new form and the old one."""

EARLIER_OUTPUTS = ("notebooks/*/*", "datasets/*/*", "*")
"""Where Kaggle shows the output of another notebook, or a dataset made of it, new form and old."""

WEIGHTS_PATTERNS = tuple(
    f"{place}/*resnet50_*notop*.h5"
    for place in ("datasets/*/*", "models/*/*/*/*/*", "*", "*/*/*/*")
)
"""Where Kaggle shows an attached file of weights: of a dataset or a model, new form and old."""

HOW_TO_ATTACH = {
    "kaggle": "attach its output (Add Input > Notebooks) and run this again",
    "colab": "mount Google Drive before running both: "
    "from google.colab import drive; drive.mount('/content/drive')",
    "laptop": "run it first, or set `work` to its folder",
}
"""How a notebook gets what an earlier one made."""


def find_platform() -> Platform:
    """Which kind of machine this is.

    `/kaggle/input` proves nothing: Colab has it too, where kagglehub mounts data.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    try:
        return "colab" if importlib.util.find_spec("google.colab") else "laptop"
    except ModuleNotFoundError:  # nothing named google at all
        return "laptop"


def default_work_dir() -> Path:
    """The folder for results.

    Kaggle's saved folder; on Colab `skinlesion` in Google Drive where that is mounted; otherwise
    `outputs` in the current folder.
    """
    platform = find_platform()
    if platform == "kaggle":
        return KAGGLE_WORKING
    if platform == "colab" and COLAB_DRIVE.is_dir():
        return COLAB_DRIVE / "skinlesion"
    return Path("outputs").resolve()


def default_images_dir(work: Path) -> Path:
    """The folder for the gathered images: in `work`, but never in a place that saves every file."""
    saved = (KAGGLE_WORKING, COLAB_DRIVE)
    is_saved = any(map(work.absolute().is_relative_to, saved))
    return (default_cache_dir() if is_saved else work) / "images"


def default_cache_dir() -> Path:
    """The folder for files that can be made again: `SKINLESION_CACHE`, else the user's own cache.

    On Kaggle it lies outside the saved folder.
    """
    if named := os.environ.get("SKINLESION_CACHE"):
        return Path(named)
    if find_platform() == "kaggle":
        return Path(tempfile.gettempdir()) / "skinlesion"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skinlesion"


def default_weights() -> str | None:
    """The file of the backbone's weights; None: there is none here.

    The one that the variable `SKINLESION_WEIGHTS` names, or on Kaggle one that is attached.
    """
    if named := os.environ.get("SKINLESION_WEIGHTS"):
        return named
    if find_platform() == "kaggle":
        return next((str(path) for path in _list_input(WEIGHTS_PATTERNS)), None)
    return None


def bring_earlier(name: str, work: Path) -> Path:
    """What an earlier notebook made: `work / name`, which may not be there.

    On Kaggle each notebook is a session of its own, and what another one left is attached as
    input, read-only: it is copied first, so that it can be added to.

    Args:
        name: file or folder below the working folder, such as `runs/default`.
        work: the working folder.
    """
    place = work / name
    if place.exists() or find_platform() != "kaggle":
        return place
    found = _list_input(f"{output}/{name}" for output in EARLIER_OUTPUTS)
    # Of several runs, one that has its model before one that was interrupted.
    found.sort(key=lambda path: not (path / "model" / "bundle.json").is_file())
    if found:
        others = f" (the first of {len(found)} that are attached)" if len(found) > 1 else ""
        say(f"{name}: taken from {found[0]}{others}")
        if found[0].is_dir():
            write_folder_atomically(place, lambda part: _copy_writable(found[0], part))
        else:
            write_atomically(place, lambda part: shutil.copyfile(found[0], part))
    return place


def how_to_attach() -> str:
    """How to use what an earlier notebook made, instead of making it again."""
    return HOW_TO_ATTACH[find_platform()]


def list_gpus() -> list[str]:
    """The names of the NVIDIA GPUs of this machine, such as `Tesla T4`; asks their driver."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if answer.returncode else answer.stdout.split("\n")[:-1]


def start() -> None:
    """Say where this runs; what notebooks call first, once they have found the package.

    Where they found it in a clone or in a wheel, programs that they start find it there too.
    """
    # TensorFlow reads this when it is imported: without it, its messages bury ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path[:] = [str(Path(entry).resolve()) if entry else entry for entry in sys.path]
    home = Path(__file__).resolve().parent.parent
    if home.suffix == ".whl" or (home / "pyproject.toml").is_file():
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{home}{os.pathsep}{others}" if others else str(home)
    say(describe())
    for problem in find_unmet_requirements():
        say(f"warning: {problem}; parts of this may fail")


def describe() -> str:
    """One line on the machine, and one on where results go and whether they stay there."""
    platform, work = find_platform(), default_work_dir()
    name = {"kaggle": "Kaggle", "colab": "Google Colab", "laptop": "this machine"}[platform]
    shown = os.path.relpath(work) if platform == "laptop" else work
    gpus = list_gpus()
    kinds = [f"{gpus.count(kind)} x {kind}" for kind in sorted(set(gpus))]
    kept = {
        "kaggle": "kept when you save the notebook's version",
        "colab": "kept in your Drive"
        if work.is_relative_to(COLAB_DRIVE)
        else f"lost when the session ends; to keep them, {HOW_TO_ATTACH['colab']}",
        "laptop": "kept",
    }[platform]
    return (
        f"skinlesion on {name}: Python {sys.version.split()[0]}, {os.cpu_count()} cores, "
        f"{', '.join(kinds) or 'no GPU'}\nresults: {shown}, {kept}"
    )


def find_unmet_requirements() -> list[str]:
    """What `requirements.txt` asks for and is not here, or too old: a line each.

    Of a folder that was copied alone, without that file, nothing is known.
    """
    try:
        # Of an installed package, or of the wheel that it is imported from.
        lines = [line for line in requires("skinlesion") or [] if "extra ==" not in line]
    except PackageNotFoundError:  # a clone
        path = Path(__file__).parent.parent / "requirements.txt"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = [line.partition("#")[0] for line in text.splitlines()]
    problems = []
    for requirement in (Requirement(line) for line in lines if line.strip()):
        if requirement.name == "jupyter":  # nothing is imported from it
            continue
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            problems.append(f"{requirement} is wanted, {here} is installed")
    return problems


def is_watched() -> bool:
    """Whether a person sees the output while it appears: in a terminal or in a live notebook.

    Not in a Kaggle batch run, and not where `SKINLESION_UNATTENDED=1` says so, as scripts that
    execute notebooks do.
    """
    batch = os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    if batch or os.environ.get("SKINLESION_UNATTENDED") == "1":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


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


def _list_input(patterns: Iterable[str]) -> list[Path]:
    """What fits a pattern below Kaggle's input, in the order of patterns, then of paths."""
    return [path for pattern in patterns for path in sorted(KAGGLE_INPUT.glob(pattern))]


def _copy_writable(source: Path, target: Path) -> None:
    """Copy the files of a folder, not their permissions: Kaggle's input is read-only."""
    for path in source.rglob("*"):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
