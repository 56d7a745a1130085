"""The shape of the package: rooms, the order of imports, lengths, and what an import costs."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import skinlesion

PACKAGE = Path(skinlesion.__file__).parent

FREE = ["cli", "cli_train", "__main__"]


def read_order():
    """The files by room, in the order in which docs/architecture.md lists them."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    listed = page.partition("```\nskinlesion/\n")[2].partition("```")[0]
    rooms = {"": []}
    for line in listed.splitlines():
        if room := re.match(r"  (\w+)/", line):
            rooms[room[1]] = []
        elif (file := re.match(r" +(\w+)\.py", line)) and file[1] not in ("__init__", *FREE):
            list(rooms.values())[-1].append(file[1])
    return rooms


ROOMS = read_order()
ORDER = [f"{room}.{name}".lstrip(".") for room, names in ROOMS.items() for name in names]
LONGEST_FILE, LONGEST_FUNCTION = 350, 50


def path_of(name):
    return PACKAGE / f"{name.replace('.', '/')}.py"


def imported_modules(path):
    """Names of the package's own modules that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skinlesion"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("skinlesion.") for name in found} & {*ORDER, *FREE}


def imported_public_names(path):
    """What a file takes from the package itself, through which it could reach every room."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "skinlesion":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & {"skinlesion"}
    return found


def test_every_file_has_its_place_in_the_order():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    names = {".".join(path.with_suffix("").parts) for path in files if path.stem != "__init__"}
    assert names == {*ORDER, *FREE}


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert imported_modules(path_of(name)) <= above
    assert imported_public_names(path_of(name)) <= {"__version__"}


def test_no_file_is_too_long():
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_too_long():
    long = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long[f"{path.relative_to(PACKAGE)}: {node.name}"] = lines
    assert long == {}


LIGHT = ["skinlesion", "skinlesion.cli", *(f"skinlesion.{name}" for name in ROOMS[""])]
LIGHT += [f"skinlesion.data.{name}" for name in ROOMS["data"]]
LIGHT += [f"skinlesion.model.{name}" for name in ("bundle", "run", "run_settings", "jobs")]


def test_imports_are_light():
    """In one process: what the first of them loads, the others would load too."""
    code = f"import sys, {', '.join(LIGHT)}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "gradio", "matplotlib"} & set(loaded.stdout.split())


def test_figures_of_predictions_need_no_tensorflow():
    code = "import sys, skinlesion.evaluation.score, skinlesion.evaluation.compare; "
    command = [sys.executable, "-c", code + "print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "gradio"} & set(loaded.stdout.split())


def test_the_help_needs_no_tables():
    code = "import sys, skinlesion.cli; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"pandas", "numpy", "sklearn"} & set(loaded.stdout.split())


@pytest.mark.parametrize("name", skinlesion.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(skinlesion, name)
    assert name == "__version__" or value.__doc__


def test_every_public_name_is_listed_in_the_module_that_defines_it():
    """Not in a module that only imports it, where nobody would look for it."""
    for module, names in skinlesion._HOMES.items():
        for name in names:
            defined_in = getattr(import_module(f"skinlesion.{module}"), name).__module__
            assert defined_in == f"skinlesion.{module}", name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = skinlesion.trian
