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
OLDEST_PYTHON = (3, 11)


def prepare_environment(extra: str = "") -> Path:
    """Create `.venv` and install the project with its requirements, unless that is done already.

    Args:
        extra: an extra of `pyproject.toml` to install too.

    Returns:
        The environment's Python.
    """
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        sys.exit(f"error: Python {wanted} or newer is needed; this is {sys.version.split()[0]}")
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = b"".join((ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    stamp = folder / f"installed{extra and '-'}{extra}"
    digest = hashlib.sha256(wanted).hexdigest()
    if python.exists() and stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"environment: installing the requirements in {folder.name} (some minutes, once)")
    if not python.exists():
        try:
            venv.create(folder, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "error: this Python cannot make environments; on Debian: apt install python3-venv"
            )
    target = f".[{extra}]" if extra else "."
    run(python, "-m", "pip", "install", "--quiet", "--editable", target)
    stamp.write_text(digest)
    return python


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the project's folder; when it fails, stop with its exit status."""
    finished = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=False
    )
    if finished.returncode:
        sys.exit(finished.returncode)
