"""Run the whole test suite with one command: set-up, format, lint, types, tests.

    python3 scripts/test.py [PYTEST ARGUMENTS]
    python3 scripts/test.py --stack kaggle|colab [PYTEST ARGUMENTS]
    python3 scripts/test.py --full [PYTEST ARGUMENTS]

Needs Python and pip. Tests on real data run if the variables HAM10000_DIR (folder of the dataset)
and SKINLESION_WEIGHTS (a file of weights) are set; otherwise they are skipped, with the reason.
`--stack` uses the library versions that the platform preinstalls, and runs only the tests of what
depends on them. Where its Python is installed, the tests of notebooks on that platform run there
only. `--full` takes 1,000 hostile files instead of 100. Each run ends with its ten
slowest tests.
"""

import argparse

from environment import (
    ROOT,
    STACKS,
    PythonMissingError,
    find_python,
    prepare_browser,
    prepare_environment,
    prepare_scorer,
    run,
)

ON_OTHER_STACKS = (
    "app",
    "augmentation",
    "bundle",
    "export",
    "guard",
    "hostile",
    "images",
    "isic_csv",
    "platforms",
    "plots",
    "resnet50",
    "run",
    "split",
    "stack",
    "train",
)
"""Tests whose results can differ between versions of the libraries, and the notebooks."""

PLATFORMS = {"newest": "on_a_laptop", "kaggle": "on_kaggle", "colab": "on_colab"}
"""The tests of `test_platforms.py` that each stack runs, as their names say."""

SLOW = (
    *("platforms", "faults", "train", "resume", "notebooks", "cluster", "cross_validate", "app"),
    *("ensemble", "own_images", "real_data", "evaluate", "benchmarks", "cli", "check", "export"),
)
"""The files that take longest: they start first, so that both processes end together."""

# The tests of a file share fixtures, so one process runs all of them.
PYTEST = ("pytest", "--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")
DURATIONS = ("--durations=10", "--durations-min=1")


def main() -> None:
    """Run every check, and stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", choices=STACKS, default="newest")
    parser.add_argument("--full", action="store_true")
    arguments, given = parser.parse_known_args()
    stack = arguments.stack
    try:
        python = prepare_environment("dev", stack)
    except PythonMissingError as error:
        print(f"stack {stack}: skipped: {error}", flush=True)
        return
    chosen = sorted(path.stem.removeprefix("test_") for path in ROOT.glob("tests/test_*.py"))
    others = [name for other, name in PLATFORMS.items() if other != stack and is_possible(other)]
    if stack == "newest":
        prepare_scorer()
        prepare_browser()
        run(python, "-m", "ruff", "format", "--check", ".")
        run(python, "-m", "ruff", "check", ".")
        run(python, "-m", "mypy")
    else:
        print(f"stack {stack}: only tests of {', '.join(ON_OTHER_STACKS)}", flush=True)
        chosen = list(ON_OTHER_STACKS)
    slow_first = [name for name in SLOW if name in chosen] + [n for n in chosen if n not in SLOW]
    files = [f"tests/test_{name}.py" for name in slow_first]
    options = []
    if others:
        print(f"left to the other stacks: tests of notebooks {', '.join(others)}", flush=True)
        options = ["-k", f"not (test_platforms and ({' or '.join(others)}))"]
    variables = {"TF_CPP_MIN_LOG_LEVEL": "2", "SKINLESION_STACK": stack}
    if arguments.full:
        variables["SKINLESION_FULL"] = "1"
    run(python, "-m", *PYTEST, *DURATIONS, *(given or [*files, *options]), **variables)


def is_possible(stack: str) -> bool:
    """Whether this machine has the Python of a stack."""
    version = STACKS[stack].python
    try:
        return not version or bool(find_python(version))
    except PythonMissingError:
        return False


if __name__ == "__main__":
    main()
