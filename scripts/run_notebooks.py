"""Execute the numbered notebooks from top to bottom, in the project's environment.

    .venv/bin/python scripts/run_notebooks.py --data DIR --work DIR [--set name=value ...]
    .venv/bin/python scripts/run_notebooks.py --data DIR --work DIR --only 04_evaluate --html
    .venv/bin/python scripts/run_notebooks.py --refresh ...

The executed notebooks are written to WORK/notebooks; `--html` also renders them as pages to read
and to share. The run is WORK/runs/NAME, chosen with `--set 'name="NAME"'`. `--refresh` writes the
outputs back into `notebooks/` instead: the committed outputs are made this way, on the synthetic
sample.
"""

import argparse
import base64
import copy
import io
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "notebooks"
PARAMETERS, INJECTED = "parameters", "injected-parameters"


class TalkingClient(NotebookClient):
    """Prints the output of cells at once, so that training is not silent."""

    def process_message(
        self, msg: dict[str, Any], cell: nbformat.NotebookNode, cell_index: int
    ) -> nbformat.NotebookNode | None:
        """Handle one message of the kernel."""
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(source: Path, settings: dict[str, Any], *, cwd: Path) -> nbformat.NotebookNode:
    """Run one notebook with some of its parameters replaced.

    Args:
        source: notebook with a cell tagged `parameters`.
        settings: parameter to value. Parameters that the notebook does not have are skipped.
        cwd: working folder of the kernel.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(source, as_version=4)
    tagged = [
        index
        for index, cell in enumerate(notebook.cells)
        if PARAMETERS in cell.metadata.get("tags", ())
    ]
    index = tagged[0]
    known = [line.split(" = ")[0] for line in notebook.cells[index].source.splitlines()]
    lines = [f"{name} = {value!r}" for name, value in settings.items() if name in known]
    cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": [INJECTED]})
    notebook.cells.insert(index + 1, cell)
    # Nobody watches: the page is started but not shown, and there are no progress bars.
    os.environ["SKINLESION_UNATTENDED"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    client = TalkingClient(notebook, timeout=None, resources={"metadata": {"path": str(cwd)}})
    # Outside of cells a kernel prints log lines of libraries only.
    return client.execute(stderr=subprocess.DEVNULL)


def make_small(png: str) -> str:
    """Reduce pixels and colours of a base64 PNG, because Git keeps every version of it."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.thumbnail((760, 2000))
        small = io.BytesIO()
        image.convert("RGB").quantize(96).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def without_traces(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook as it is committed: small images, no injected cell, times or stderr."""
    notebook = copy.deepcopy(executed)
    notebook.cells = [c for c in notebook.cells if INJECTED not in c.metadata.get("tags", ())]
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            # Progress bars and log lines of libraries are on stderr.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = make_small(output.data["image/png"])
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Execute all notebooks in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the dataset")
    parser.add_argument(
        "--work", required=True, type=Path, metavar="DIR", help="for what they make"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--only", default="*", metavar="NAME", help="of one notebook")
    parser.add_argument("--html", action="store_true", help="also render them to HTML")
    parser.add_argument("--refresh", action="store_true", help="write outputs into notebooks/")
    arguments = parser.parse_args()
    sources = sorted(SOURCES.glob(f"{arguments.only}.ipynb"))
    if not sources:
        names = ", ".join(path.stem for path in sorted(SOURCES.glob("*.ipynb")))
        parser.error(f"no notebook {arguments.only}; there are {names}")
    settings = {"data": arguments.data, "work": str(arguments.work)}
    for name, _, value in (pair.partition("=") for pair in arguments.set):
        try:
            settings[name] = json.loads(value)
        except ValueError as error:
            parser.error(f"--set {name}={value}: no JSON ({error}); text needs double quotes")
    out = SOURCES if arguments.refresh else ROOT / arguments.work / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        started = time.monotonic()
        print(f"\n=== {source.name}", flush=True)
        executed = execute(source, settings, cwd=ROOT)
        nbformat.write(
            without_traces(executed) if arguments.refresh else executed, out / source.name
        )
        if arguments.html:
            page = out / f"{source.stem}.html"
            page.write_text(HTMLExporter().from_notebook_node(executed)[0], encoding="utf-8")
            print(f"=== {page}")
        print(f"=== {source.name}: done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
