"""The whole test suite in one command: set-up, format, lint, types, tests.

    python3 scripts/test.py [PYTEST ARGUMENTS]
    python3 scripts/test.py --stack kaggle|colab [PYTEST ARGUMENTS]

Needs Python and pip. Tests on real data run where the variables HAM10000_DIR (the dataset's folder)
and SKINLESION_WEIGHTS (a weights file) are set; without them they are skipped, with the reason.
`--stack` runs what depends on the libraries with the versions that the platform preinstalls.
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
    "devices",
    "exports",
    "input_pipeline",
    "isic_files",
    "metadata",
    "model",
    "packaging",
    "platforms",
    "plots",
    "split",
)
"""The tests of what differs between versions of the libraries, and the notebooks."""

NOT_ON = {
    "kaggle": ("not on_colab", "not on_a_laptop"),
    "colab": ("not on_kaggle", "not on_a_laptop"),
}
"""Places that the stack's own notebooks are not run in; name tests/test_platforms.py to do it."""


def main() -> None:
    """Run every check, and stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", choices=STACKS, default="newest")
    arguments, given = parser.parse_known_args()
    stack = arguments.stack
    try:
        python = prepare_environment("dev", stack)
    except PythonMissingError as error:
        print(f"stack {stack}: skipped: {error}", flush=True)
        return
    if stack == "newest":
        prepare_scorer()
        prepare_browser()
        run(python, "-m", "ruff", "format", "--check", ".")
        run(python, "-m", "ruff", "check", ".")
        run(python, "-m", "mypy")
        # TensorFlow keeps half a gigabyte of each network that was trained until its process ends:
        # two processes at a time, and new ones for each quarter of the files.
        files = sorted(map(str, ROOT.glob("tests/test_*.py")))
        parts = [files[start::4] for start in range(4)]
    else:
        chosen, others = ", ".join(ON_OTHER_STACKS), " and ".join(NOT_ON[stack])
        print(f"stack {stack}: only tests of {chosen}; of the platforms, {others}", flush=True)
        files = [f"tests/test_{name}.py" for name in ON_OTHER_STACKS]
        parts = [[*files, "-k", others]]
    for part in [given] if given else parts:
        workers = ("--numprocesses=2", "--dist=loadfile")
        variables = {"TF_CPP_MIN_LOG_LEVEL": "2", "SKINLESION_STACK": stack}
        run(python, "-m", "pytest", *workers, *part, **variables)


if __name__ == "__main__":
    main()
