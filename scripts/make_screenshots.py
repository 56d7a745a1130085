"""Make the pictures of the demo that the README shows, with the synthetic sample.

    .venv/bin/python scripts/make_screenshots.py --run outputs/sample_run/runs/default

Needs Chromium. A model of real images is refused: no photograph may get into the repository.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from environment import ROOT
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from skinlesion.demo import app
from skinlesion.model.run import Run

EXAMPLE = "Melanoma"


def photograph(browser: Browser, url: str, path: Path, **options: Any) -> None:
    """Choose an example, wait for its heat map, and save a picture of the page."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("button", name=EXAMPLE, exact=True).click()
    page.get_by_text("(Grad-CAM)").wait_for()
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.mouse.move(0, 0)
    page.screenshot(path=path, full_page=True)
    context.close()
    with Image.open(path) as image:
        image.quantize(128).save(path, optimize=True)  # a third of the size


def main() -> None:
    """Serve the run, and save pictures as on a desktop and on a phone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run on the sample")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR")
    arguments = parser.parse_args()
    if not Run.find(arguments.run).synthetic:
        parser.error("this run was not trained on the synthetic sample")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as nowhere, sync_playwright() as playwright:
        # Of the saved model by itself, the examples are drawings, whatever data is on this machine.
        copy = Path(nowhere) / "run"
        shutil.copytree(arguments.run / "model", copy)
        shutil.copytree(arguments.run / "evaluation", copy / "evaluation")
        running = app.launch(copy)
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        wide = {"viewport": {"width": 1180, "height": 800}}
        photograph(browser, running.local_url, arguments.out / "demo.png", **wide)
        phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True}
        photograph(browser, running.local_url, arguments.out / "demo_phone.png", **phone)
        browser.close()
        running.close()


if __name__ == "__main__":
    main()
