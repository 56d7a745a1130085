"""Run the whole test suite with one command: set-up, format, lint, types, tests.

    python3 scripts/test.py [PYTEST ARGUMENTS]
    python3 scripts/test.py --stack kaggle|colab [PYTEST ARGUMENTS]
    python3 scripts/test.py --full [PYTEST ARGUMENTS]

Needs Python and pip. Tests on real data run if the variables HAM10000_DIR (folder of the dataset)
and SKINLESION_WEIGHTS (a file of weights) are set; otherwise they are skipped, with the reason.
`--stack` uses the library versions that the platform preinstalls, and runs only the tests of what
depends on them. `--full` takes 1,000 hostile files instead of 100. Each run ends with its ten
slowest tests.
"""

import argparse

from environment import (
    ROOT,
    STACKS,
    PythonMissingError,
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
    "packaging",
    "platforms",
    "plots",
    "resnet50",
    "run",
    "split",
    "train",
)
"""Tests whose results can differ between versions of the libraries, and the notebooks."""

NOT_ON = {
    "kaggle": ("not on_colab", "not on_a_laptop"),
    "colab": ("not on_kaggle", "not on_a_laptop"),
}
"""Notebook tests of other platforms, which a stack leaves out."""

SLOW = ("platforms", "train", "notebooks", "resume", "faults", "app", "cluster", "evaluate", "cli")
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
    options: list[str] = []
    if stack == "newest":
        prepare_scorer()
        prepare_browser()
        run(python, "-m", "ruff", "format", "--check", ".")
        run(python, "-m", "ruff", "check", ".")
        run(python, "-m", "mypy")
    else:
        names, others = ", ".join(ON_OTHER_STACKS), " and ".join(NOT_ON[stack])
        print(f"stack {stack}: only tests of {names}; of the platforms, {others}", flush=True)
        chosen, options = list(ON_OTHER_STACKS), ["-k", others]
    slow_first = [name for name in SLOW if name in chosen] + [n for n in chosen if n not in SLOW]
    files = [f"tests/test_{name}.py" for name in slow_first]
    variables = {"TF_CPP_MIN_LOG_LEVEL": "2", "SKINLESION_STACK": stack}
    if arguments.full:
        variables["SKINLESION_FULL"] = "1"
    run(python, "-m", *PYTEST, *DURATIONS, *(given or [*files, *options]), **variables)


if __name__ == "__main__":
    main()
