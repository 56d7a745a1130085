"""The shape of the package: the order of imports, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "skinlesion"

# The list in the README, from top to bottom: a file imports only from files above it.
ORDER = [
    "files",
    "diagnoses",
    "config",
    "machine",
    "data.cache",
    "data.download",
    "data.ham10000",
    "data.metadata",
    "data.synthetic",
    "data.split",
    "data.images",
    "data.near_duplicates",
    "model.augmentation",
    "model.resnet50",
    "model.devices",
    "model.checkpoints",
    "model.train",
    "model.linear_probe",
    "data.isic",
    "evaluation.metrics",
    "evaluation.calibration",
    "evaluation.ood",
    "evaluation.quality",
    "evaluation.gradcam",
    "evaluation.plots",
    "model.bundle",
    "evaluation.export",
    "model.predictor",
    "evaluation.report",
    "model.run",
    "evaluation.model_card",
    "workflow",
    "evaluation.evaluate",
    "demo.result",
    "demo.exhibit",
    "demo.page",
    "demo.app",
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
            names.add(node.module.removeprefix("skinlesion."))
            names |= {f"{node.module}.{a.name}".removeprefix("skinlesion.") for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("skinlesion.") for a in node.names}
    return names & set(ORDER)


def test_every_module_has_its_place_in_the_order():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    found = [".".join(path.with_suffix("").parts) for path in files if path.stem != "__init__"]
    assert sorted(found) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_those_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert imported_modules(PACKAGE / f"{name.replace('.', '/')}.py") <= above


@pytest.mark.parametrize(
    "module",
    ["skinlesion", "skinlesion.cli", "skinlesion.workflow", "skinlesion.evaluation.evaluate"],
)
def test_import_is_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"tensorflow", "keras", "gradio", "matplotlib"} & set(loaded.stdout.split())
