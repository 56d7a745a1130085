"""Make the project's own virtual environment, `.venv`: what `demo.py` and `test.py` have in common.

Needs nothing but Python and pip; run by the machine's Python, outside any environment.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)


def prepare_environment(extra: str = "") -> Path:
    """Create `.venv` and install the project with its requirements, unless that is done already.

    Args:
        extra: an extra of `pyproject.toml` to install too.

    Returns:
        The environment's Python.
    """
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST_PYTHON, NEWEST_PYTHON))
        version = sys.version.split()[0]
        sys.exit(f"error: Python {oldest} to {newest} is needed (TensorFlow); this is {version}")
    folder = ROOT / ".venv"
    wanted = b"".join((ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    stamp = folder / f"installed{extra and '-'}{extra}"
    digest = hashlib.sha256(wanted).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return _create(folder)
    print(f"environment: installing the requirements in {folder.name} (some minutes, once)")
    python = _create(folder)
    target = f".[{extra}]" if extra else "."
    run(python, "-m", "pip", "install", "--quiet", "--editable", target)
    stamp.write_text(digest)
    return python


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


def _create(folder: Path) -> Path:
    """Make a virtual environment, anew where an earlier attempt left half of one."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and (folder / "complete").is_file():
        return python
    try:
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
