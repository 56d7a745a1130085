"""What a run was made with: the versions of the software."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from skinlesion import __version__

LIBRARIES = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pillow", "gradio")


def describe_versions() -> dict[str, str | None]:
    """The versions of the package, of Python and of the libraries; None: not installed."""
    found: dict[str, str | None] = {"skinlesion": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def find_commit() -> str | None:
    """The commit of the package's own checkout, with `+changes` if files differ from it.

    None where the package is not in a checkout of its own.
    """
    folder = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "model/run.py"):
            return None  # installed into a folder that some other repository ignores
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
