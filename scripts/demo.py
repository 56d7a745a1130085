"""Run everything with one command: set-up, data, the five notebooks, the demo page.

    python3 scripts/demo.py                 on the synthetic sample: needs no dataset, no weights
    python3 scripts/demo.py --data DIR      on HAM10000; --recipe probe takes minutes without a GPU

Ends with a page on http://127.0.0.1:7860 (stop it with Ctrl-C); `--no-serve` skips the page. Needs
Python and pip. All results are in `outputs/`.
"""

import argparse
import json
import socket
from pathlib import Path

from environment import prepare_environment, run

# Two stages are enough for seven drawn classes, and train in a minute on two cores.
SAMPLE_SETTINGS: dict[str, object] = {
    "image_size": [64, 64],
    "epochs": 20,
    "batch_size": 16,
    "top_stage": "conv2",
}


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of HAM10000")
    parser.add_argument("--recipe", default="default", metavar="R", help="such as probe")
    parser.add_argument(
        "--settings",
        type=json.loads,
        default={},
        metavar="JSON",
        help="""changes to the recipe, such as '{"epochs": 6, "image_size": [128, 128]}'""",
    )
    parser.add_argument("--no-serve", action="store_true", help="stop before serving the page")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="default: 7860")
    arguments = parser.parse_args()
    if not arguments.no_serve and is_taken(arguments.port):
        parser.error(f"port {arguments.port} is in use or not allowed: name another with --port")
    python = prepare_environment()
    options: list[str | Path] = []
    if arguments.data:
        data, work, settings = arguments.data.resolve(), Path("outputs/ham10000"), {}
    else:
        # Photographs of ImageNet have nothing to teach about drawings.
        options = ['--set=weights="none"']
        data, work, settings = Path("outputs/sample"), Path("outputs/sample_run"), SAMPLE_SETTINGS
        if arguments.recipe == "probe":  # which trains no epoch
            settings = settings | {"epochs": 0}
        run(python, "-m", "skinlesion", "sample", data)
    settings = settings | arguments.settings
    options += ["--data", data, "--work", work]
    options += [f"--set=settings={json.dumps(settings)}", f'--set=recipe="{arguments.recipe}"']
    run(python, "scripts/run_notebooks.py", *options)
    run_folder = work / "runs" / arguments.recipe
    print(f"demo: executed notebooks in {work / 'notebooks'}, model and figures in {run_folder}")
    if not arguments.no_serve:
        command = ("-m", "skinlesion", "demo", "--run", run_folder, "--port", str(arguments.port))
        run(python, *command)


def is_taken(port: int) -> bool:
    """Whether no page can be served on this port. Checked before training, not after it."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return True
    return False


if __name__ == "__main__":
    main()
