"""Make notebooks for Kaggle that need neither a clone nor a network: each contains the package.

    python3 scripts/make_kaggle.py --user YOUR_KAGGLE_NAME
    kaggle kernels push -p dist/kaggle/03_train

Writes `dist/kaggle/NAME/` for each numbered notebook, and for `all_in_one`, which runs all five in
one session: the notebook with the wheel of the package inside, and `kernel-metadata.json`, which
attaches the dataset, the weights, the outputs of earlier notebooks, and two T4 GPUs. You can also
import the `.ipynb` on Kaggle by hand, attach the dataset, and press Run All.
"""

import argparse
import base64
import copy
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import ROOT, run

OUT = ROOT / "dist" / "kaggle"
DATASETS = ["kmader/skin-cancer-mnist-ham10000", "keras/resnet50"]
"""HAM10000, and ResNet50's ImageNet weights for sessions whose internet is off."""

NEED_GPU = ("03_train", "04_evaluate", "all_in_one")
NEEDS = {
    "03_train": ["02_split_metadata"],
    "04_evaluate": ["03_train"],
    "05_gradio_demo": ["04_evaluate"],  # whose figures the page shows
}
"""The notebooks whose output each notebook uses."""

LEFT_OUT = ("colab-badge", "The outputs saved here")
"""What lines contain that say nothing in these notebooks."""

Notebook = dict[str, Any]


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--user", default=find_user(), help="default: that of kaggle.json")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR")
    parser.add_argument(
        "--python", help="a Python with setuptools; without it, pip downloads the build tools"
    )
    arguments = parser.parse_args()
    if not arguments.user:
        parser.error("name your Kaggle account: --user NAME")
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(arguments.python, Path(folder))
        carried = make_carried_cell(wheel)
        notebooks = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        }
        notebooks["all_in_one"] = join_notebooks(list(notebooks.values()))
        for name, notebook in notebooks.items():
            folder_out = arguments.out / name
            shutil.rmtree(folder_out, ignore_errors=True)
            folder_out.mkdir(parents=True)
            alone = let_stand_alone(notebook, carried)
            write(folder_out / f"{name}.ipynb", alone)
            write(folder_out / "kernel-metadata.json", describe_kernel(name, arguments.user))
    print(f"kaggle: {len(notebooks)} notebooks in {arguments.out}, each with {wheel.name} inside")


def find_user() -> str | None:
    """Find the account that Kaggle's own tools use."""
    if name := os.environ.get("KAGGLE_USERNAME"):
        return name
    settings = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle")) / "kaggle.json"
    return json.loads(settings.read_text())["username"] if settings.is_file() else None


def build_wheel(python: str | None, folder: Path) -> Path:
    """Build the wheel of the package from a copy, so that no earlier build is mixed in."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "skinlesion", source / "skinlesion", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    if python:
        options += ["--no-index", "--no-build-isolation"]
    # The same source gives the same bytes: zip files begin in 1980.
    python = python or sys.executable
    run(python, "-m", "pip", "wheel", *options, "-w", folder, source, SOURCE_DATE_EPOCH="315532800")
    (wheel,) = folder.glob("skinlesion-*.whl")
    return wheel


def make_carried_cell(wheel: Path) -> Notebook:
    """Make a folded cell that writes the wheel to a temporary folder and names it in `WHEEL`."""
    content = base64.b64encode(wheel.read_bytes()).decode()
    lines = [
        "# The package itself, so that neither a clone nor a network is needed.\n",
        "import base64\n",
        "import tempfile\n",
        "from pathlib import Path\n",
        "\n",
        f'WHEEL = [Path(tempfile.mkdtemp()) / "{wheel.name}"]\n',
        "WHEEL[0].write_bytes(base64.b64decode(\n",
        f'    "{content}"\n',
        "));",
    ]
    hidden = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}, "tags": ["wheel"]}
    return {
        "cell_type": "code",
        "id": "wheel",
        "metadata": hidden,
        "source": lines,
        "outputs": [],
        "execution_count": None,
    }


def let_stand_alone(notebook: Notebook, carried: Notebook) -> Notebook:
    """Copy a notebook with the wheel, without outputs, the note about them, and Colab's badge."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        cell["source"] = [line for line in cell["source"] if not any(map(line.count, LEFT_OUT))]
    (bootstrap,) = (cell for cell in notebook["cells"] if has_tag(cell, "bootstrap"))
    before = "".join(bootstrap["source"])
    after = before.replace("ADDRESS, WHEEL = ", "ADDRESS = ").replace('", []\n', '"\n')
    if before == after:
        sys.exit("error: the first cell of the notebooks names no WHEEL that could be replaced")
    bootstrap["source"] = after.splitlines(keepends=True)
    notebook["cells"].insert(notebook["cells"].index(bootstrap), carried)
    return notebook


def join_notebooks(notebooks: list[Notebook]) -> Notebook:
    """Join notebooks: one bootstrap cell, one cell of parameters, then all their other cells."""
    parameters: dict[str, str] = {}
    body: list[Notebook] = []
    for notebook in notebooks:
        for cell in notebook["cells"]:
            if has_tag(cell, "parameters"):
                parameters |= dict(
                    line.split(" = ") for line in "".join(cell["source"]).split("\n")
                )
            elif not has_tag(cell, "bootstrap"):
                body.append(shorten(copy.deepcopy(cell)))
    (bootstrap,) = (cell for cell in notebooks[0]["cells"] if has_tag(cell, "bootstrap"))
    parameters["train_if_missing"] = "True"  # the session that trains is this one
    settings = "\n".join(f"{name} = {value}" for name, value in parameters.items())
    head = [
        make_markdown(ALL_IN_ONE),
        bootstrap,
        make_markdown(PARAMETERS),
        {
            "cell_type": "code",
            "id": "parameters",
            "metadata": {"tags": ["parameters"]},
            "source": settings.splitlines(keepends=True),
            "outputs": [],
            "execution_count": None,
        },
    ]
    cells = [*head, *body]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return notebooks[0] | {"cells": cells}


def shorten(cell: Notebook) -> Notebook:
    """Remove from the first cell of a notebook the table of inputs and next steps."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown" and "| **reads** |" in text:
        text = text.split("\n| | |")[0]
    text = text.replace("## Parameters\n", "**Its parameters**, set above:\n")
    cell["source"] = text.splitlines(keepends=True)
    return cell


ALL_IN_ONE = """\
# Skin lesions: from the images to the demo

The five notebooks in one session: gather the images, split them by lesion, train, evaluate, show.

For research and education only: not a medical device, not for clinical use."""


PARAMETERS = """\
## Parameters

What each means stands with its step, below. For a quick trial, set
`settings = {"epochs": 2, "limit": 500}` and `name = "trial"`. Give each further change of the
settings or of the code a new `name`."""


def describe_kernel(name: str, user: str) -> dict[str, Any]:
    """Make the metadata for `kaggle kernels push`.

    https://github.com/Kaggle/kaggle-api/blob/main/docs/kernels_metadata.md
    """
    gpu = name in NEED_GPU
    return {
        "id": f"{user}/{make_slug(name)}",
        "title": make_slug(name).replace("-", " "),
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        # Not needed while the two datasets are attached. Without them, Keras downloads the weights
        # and kagglehub the images.
        "enable_internet": True,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": DATASETS,
        "kernel_sources": [f"{user}/{make_slug(needed)}" for needed in NEEDS.get(name, [])],
        "competition_sources": [],
        "model_sources": [],
    }


def make_slug(name: str) -> str:
    """Make the slug. Kaggle derives it from the title, so both must agree."""
    return f"skinlesion-{name.replace('_', '-')}"


def has_tag(cell: Notebook, tag: str) -> bool:
    """Whether a cell has a tag."""
    return tag in cell["metadata"].get("tags", ())


def make_markdown(text: str) -> Notebook:
    """A cell of text."""
    return {
        "cell_type": "markdown",
        "id": "",
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }


def write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as notebooks are written."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
