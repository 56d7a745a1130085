"""The whole test suite in one command: set-up, format, lint, types, tests.

    python3 scripts/test.py [PYTEST ARGUMENTS]

Needs Python and pip. Tests on real data run where the variables HAM10000_DIR (the dataset's folder)
and SKINLESION_WEIGHTS (a weights file) are set; without them they are skipped, with the reason.
"""

import sys

from environment import ROOT, prepare_environment, prepare_scorer, run


def main() -> None:
    """Run every check, and stop at the first that fails."""
    python = prepare_environment("dev")
    prepare_scorer()
    run(python, "-m", "ruff", "format", "--check", ".")
    run(python, "-m", "ruff", "check", ".")
    run(python, "-m", "mypy")
    given, files = sys.argv[1:], sorted(map(str, ROOT.glob("tests/test_*.py")))
    # TensorFlow keeps half a gigabyte of each network that was trained until its process ends: two
    # processes at a time, and new ones for each third of the files.
    for part in [given] if given else [files[start::3] for start in range(3)]:
        workers = ("--numprocesses=2", "--dist=loadfile")
        run(python, "-m", "pytest", *workers, *part, TF_CPP_MIN_LOG_LEVEL="2")


if __name__ == "__main__":
    main()
