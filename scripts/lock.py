"""Write what each tested environment holds, as lock files: requirements/STACK.txt.

    python3 scripts/lock.py [STACK ...]

Each file lists every package with its version. The lists are results, not sources: what is
installed follows from requirements.txt, pyproject.toml and the stacks in scripts/environment.py.
Environments that are there already are used as they are; to get newer versions, delete them first
(`.venv`, `.venv-kaggle`, `.venv-colab`).
"""

import argparse
import subprocess
from pathlib import Path

from environment import ROOT, STACKS, PythonMissingError, prepare_environment

FOLDER = ROOT / "requirements"


def main() -> None:
    """Write the lock files of the named stacks, or of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stacks", nargs="*", metavar="STACK", help=", ".join(STACKS))
    chosen = parser.parse_args().stacks or list(STACKS)
    if unknown := sorted(set(chosen) - set(STACKS)):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(STACKS)}")
    for stack in chosen:
        try:
            python = prepare_environment("dev", stack)
        except PythonMissingError as error:
            print(f"stack {stack}: skipped: {error}")
        else:
            print(f"stack {stack}: {write_lock(stack, python)}")


def write_lock(stack: str, python: Path) -> Path:
    """List the packages of an environment in its lock file; return the file."""

    def ask(*command: str) -> str:
        asked = [str(python), *command]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    version = ask("-c", "import platform; print(platform.python_version())").strip()
    packages = ask("-m", "pip", "freeze", "--exclude-editable")  # without this project itself
    path = FOLDER / f"{stack}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# Python {version}; written by scripts/lock.py\n{packages}")
    return path


if __name__ == "__main__":
    main()
