"""The shape of the package: the order of imports, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "skinlesion"

# The list in the README, from top to bottom: a file imports only from files above it.
ORDER = [
    "errors",
    "files",
    "labels",
    "config",
    "workspace",
    "cache",
    "downloads",
    "dataset",
    "metadata",
    "sample",
    "split",
    "input_pipeline",
    "near_duplicates",
    "augmentation",
    "model",
    "devices",
    "checkpoints",
    "training",
    "regression",
    "isic_files",
    "evaluation",
    "calibration",
    "foreign",
    "quality",
    "explanation",
    "plots",
    "bundle",
    "exports",
    "predictor",
    "report",
    "runs",
    "model_card",
    "workflow",
    "assessment",
    "verdict",
    "exhibit",
    "page",
    "app",
    "cli",
    "__main__",
]


def imported_modules(path: Path) -> set[str]:
    """Names of the package's own modules that a file imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "skinlesion":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skinlesion."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("skinlesion.")}
    return names & set(ORDER)


def test_every_module_has_its_place_in_the_order():
    assert sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__") == sorted(
        ORDER
    )


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_those_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert imported_modules(PACKAGE / f"{name}.py") <= above


@pytest.mark.parametrize(
    "module",
    ["skinlesion", "skinlesion.cli", "skinlesion.workflow", "skinlesion.assessment"],
)
def test_import_is_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"tensorflow", "keras", "gradio", "matplotlib"} & set(loaded.stdout.split())
