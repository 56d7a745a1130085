"""Make the project's own virtual environment, `.venv`: what the other scripts have in common.

Needs nothing but Python and pip; run by the machine's Python, outside any environment.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)


@dataclass(frozen=True)
class Stack:
    """What a platform has before anything of ours is installed.

    Attributes:
        python: its version, such as 3.12; empty is the one that runs this.
        preinstalled: requirements with exact versions, which ours must leave as they are.
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


def prepare_environment(extra: str = "", stack: str = "newest") -> Path:
    """Create an environment and install the project with its requirements, unless that is done.

    Args:
        extra: an extra of `pyproject.toml` to install too.
        stack: a name in `STACKS`; `.venv` is that of `newest`, `.venv-NAME` of another.

    Returns:
        The environment's Python.

    Raises:
        PythonMissingError: the stack's Python is not on this machine.
    """
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST_PYTHON, NEWEST_PYTHON))
        version = sys.version.split()[0]
        sys.exit(f"error: Python {oldest} to {newest} is needed (TensorFlow); this is {version}")
    folder = ROOT / (".venv" if stack == "newest" else f".venv-{stack}")
    version, preinstalled = STACKS[stack].python, STACKS[stack].preinstalled
    wanted = b"".join((ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    stamp = folder / f"installed{extra and '-'}{extra}"
    digest = hashlib.sha256(wanted + repr(STACKS[stack]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return _create(folder, version)
    print(
        f"environment: installing the requirements in {folder.name} (some minutes, once)",
        flush=True,
    )
    python = _create(folder, version)
    if preinstalled:
        run(python, "-m", "pip", "install", "--quiet", *preinstalled)
    target = f".[{extra}]" if extra else "."
    run(python, "-m", "pip", "install", "--quiet", "--editable", target)
    stamp.write_text(digest)
    return python


class PythonMissingError(Exception):
    """This machine does not have a Python of the version that a stack needs."""


def find_python(version: str) -> str:
    """The path of a Python of this version, on the PATH or under pyenv.

    Raises:
        PythonMissingError: there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        # A shim of pyenv is on the PATH also where its Python is not activated; then it fails.
        command = [str(candidate), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:
            return str(candidate)
    raise PythonMissingError(f"no Python {version} on this machine")


def prepare_scorer() -> None:
    """Install the official ISIC scorer in `.venv-scorer`: it needs an older pandas than we do.

    Without a network, its test is skipped.
    """
    folder = ROOT / ".venv-scorer"
    if (folder / "installed").is_file():
        return
    print(f"environment: installing the official ISIC scorer in {folder.name}", flush=True)
    python = _create(folder)
    requirements = ["isic-challenge-scoring>=5.6", "pandas<3"]
    command = [python, "-m", "pip", "install", "--quiet", *requirements]
    if subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode:
        print("environment: it cannot be installed here; its test will be skipped", flush=True)
    else:
        (folder / "installed").touch()


def prepare_browser() -> None:
    """Install Debian's Chromium where that can be done; elsewhere its tests are skipped."""
    if shutil.which("chromium") or shutil.which("chromium-browser"):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        print("browser: no Chromium, and no right to install it; its tests will be skipped")
        return
    print("browser: installing Chromium", flush=True)
    quiet = {
        "stdout": subprocess.DEVNULL,
        "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
    }
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        if subprocess.run(["apt-get", *command], check=False, **quiet).returncode:
            print("browser: it cannot be installed here; its tests will be skipped", flush=True)
            return


def _create(folder: Path, version: str = "") -> Path:
    """Make a virtual environment, anew where an earlier attempt left half of one."""
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
    """Run a command in the project's folder; when it fails, stop with its exit status."""
    finished = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=False
    )
    if finished.returncode:
        sys.exit(finished.returncode)
