"""Create the project's virtual environments: what the other scripts have in common.

Needs Python and pip only. The machine's own Python runs it, outside any environment.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)


@dataclass(frozen=True)
class Stack:
    """What a platform preinstalls.

    Attributes:
        python: the Python version, such as 3.12; empty: the Python that runs this script.
        preinstalled: requirements with exact versions. Our requirements must not change them.
    """

    python: str = ""
    preinstalled: tuple[str, ...] = ()


STACKS = {
    "newest": Stack(),
    "kaggle": Stack(
        "3.12",
        (
            "tensorflow==2.20.0",
            "keras==3.13.2",
            "numpy==2.0.2",
            "protobuf==5.29.5",
            "gradio==5.50.0",
        ),
    ),
    "colab": Stack(
        "3.13",
        (
            "tensorflow==2.20.0",
            "keras==3.13.2",
            "numpy==2.1.3",
            "protobuf==5.29.6",
            "gradio==6.24.0",
        ),
    ),
}
"""As of autumn 2026."""


SCORER_REQUIREMENTS = ("isic-challenge-scoring>=5.6", "pandas<3", "numpy<2.5")
"""The official ISIC scorer. It fails with pandas 3, and with NumPy 2.5, whose `np.cross` refuses
vectors of two elements."""


def prepare_environment(extra: str = "", stack: str = "newest") -> Path:
    """Create an environment and install the project in it, unless that is done already.

    Args:
        extra: an extra of `pyproject.toml` to install too.
        stack: a name in `STACKS`. The environment is `.venv` for `newest`, else `.venv-NAME`.

    Returns:
        The path of the environment's Python.

    Raises:
        PythonMissingError: the stack's Python is not on this machine.
    """
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST_PYTHON, NEWEST_PYTHON))
        version = sys.version.split()[0]
        sys.exit(f"error: TensorFlow needs Python {oldest} to {newest}; this is {version}")
    folder = ROOT / (".venv" if stack == "newest" else f".venv-{stack}")
    version, preinstalled = STACKS[stack].python, STACKS[stack].preinstalled
    files = [(ROOT / name).read_text() for name in ("requirements.txt", "pyproject.toml")]
    stamp = folder / f"installed{extra and '-'}{extra}"
    with _locked(folder):
        python = _create(folder, version)
        if not _is_installed(stamp, *files, repr(STACKS[stack])):
            print(
                f"environment: installing the requirements in {folder.name} (some minutes, once)",
                flush=True,
            )
            if preinstalled:
                run(python, "-m", "pip", "install", "--quiet", *preinstalled)
            target = f".[{extra}]" if extra else "."
            run(python, "-m", "pip", "install", "--quiet", "--editable", target)
            stamp.write_text(_digest(*files, repr(STACKS[stack])))
    return python


class PythonMissingError(Exception):
    """This machine does not have the Python version that a stack needs."""


def find_python(version: str) -> str:
    """Find a Python of this version, on the PATH or under pyenv.

    Raises:
        PythonMissingError: there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        # pyenv's shims are on the PATH even for versions that are not active; those fail.
        command = [str(candidate), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:
            return str(candidate)
    raise PythonMissingError(f"no Python {version} on this machine")


def prepare_scorer() -> None:
    """Install the official ISIC scorer in `.venv-scorer`: it needs older libraries than we do.

    If it cannot be installed, for example without a network, its test is skipped.
    """
    folder = ROOT / ".venv-scorer"
    stamp = folder / "installed"
    with _locked(folder):
        python = _create(folder)
        if _is_installed(stamp, *SCORER_REQUIREMENTS):
            return
        print(f"environment: installing the official ISIC scorer in {folder.name}", flush=True)
        command = [python, "-m", "pip", "install", "--quiet", *SCORER_REQUIREMENTS]
        if subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode:
            print("environment: it cannot be installed here; its test will be skipped", flush=True)
        else:
            stamp.write_text(_digest(*SCORER_REQUIREMENTS))


def prepare_browser() -> None:
    """Install Debian's Chromium if that is possible; otherwise its tests are skipped."""
    if shutil.which("chromium") or shutil.which("chromium-browser"):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        print("browser: no Chromium, and no right to install it; its tests will be skipped")
        return
    print("browser: installing Chromium", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        finished = subprocess.run(
            ["apt-get", *command], check=False, stdout=subprocess.DEVNULL, env=environment
        )
        if finished.returncode:
            print("browser: it cannot be installed here; its tests will be skipped", flush=True)
            return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare an environment. On Windows there is no lock."""
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*wanted: str) -> str:
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()


def _is_installed(stamp: Path, *wanted: str) -> bool:
    """Whether exactly these requirements were installed."""
    return stamp.is_file() and stamp.read_text() == _digest(*wanted)


def _create(folder: Path, version: str = "") -> Path:
    """Create a virtual environment; an incomplete one is created again."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and (folder / "complete").is_file():
        return python
    try:
        if version:
            subprocess.run([find_python(version), "-m", "venv", "--clear", folder], check=True)
        else:
            venv.create(folder, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        sys.exit("error: this Python cannot make environments; on Debian: apt install python3-venv")
    (folder / "complete").touch()
    return python


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the project's folder; if it fails, exit with its status."""
    finished = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=False
    )
    if finished.returncode:
        sys.exit(finished.returncode)
