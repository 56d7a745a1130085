"""Make a Hugging Face Space of a run: the demo page, public, and started automatically.

    .venv/bin/python scripts/make_space.py --run RUN --out dist/space

Writes a folder to push to a new Space (https://huggingface.co/new-space, SDK Gradio): `app.py`,
`requirements.txt`, a README with the header that Spaces read and the model card of the run, the
package, the saved model, and the figures of the evaluation that show no photograph. The folder has
no images, no split and no paths of this machine. `python app.py` in it starts the page here too.
"""

import argparse
import re
import shutil
from pathlib import Path
from string import Template

import gradio
import keras
import yaml
from environment import ROOT

from skinlesion.demo.app import TITLE, require_safe_gradio
from skinlesion.demo.content import FIGURES
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.files import InputError
from skinlesion.model.run import Run

NOT_NEEDED = ("jupyter", "kagglehub", "pooch", "tensorboard", "gradio")
"""Requirements of notebooks and training, and Gradio, whose version is in the header."""
APP = '''\
"""Start the page of this Space."""

import os
from pathlib import Path

from skinlesion.demo.app import serve

serve(
    Path(__file__).parent / "model",
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
'''
README = Template("""\
---
$header
---

# $title

**$notice**

Made with `skinlesion`. Uploads are processed on the machine of this Space and deleted after some
minutes.

$card
""")
LARGE_FILES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("keras", "npz", "png")
)
"""Files that Git LFS stores on the Hub, as `.gitattributes` names them."""


def make_space(path: Path, out: Path) -> Path:
    """Write the Space of a run, or of a saved model by itself, to a new or empty folder.

    Raises:
        InputError: the folder is not empty, the model is missing or not calibrated, or the version
            of Gradio, which the Space would use, has known vulnerabilities.
    """
    require_safe_gradio("a Space")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name a new folder with --out")
    run = Run.find(path)
    load_calibration(run)
    # A saved model by itself: the folder of a run names images and paths.
    copy = Run(shutil.copytree(run.model_dir, out / "model"))
    copy.evaluation_dir.mkdir()
    for name in ("metrics.json", "model_card.md", *(f"{name}.png" for name in FIGURES)):
        if (run.evaluation_dir / name).is_file():
            shutil.copy2(run.evaluation_dir / name, copy.evaluation_dir)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "skinlesion", out / "skinlesion", ignore=unwanted)
    shutil.copy2(ROOT / "LICENSE", out)
    (out / "app.py").write_text(APP)
    (out / "requirements.txt").write_text(list_requirements())
    (out / "README.md").write_text(write_readme(run))
    (out / ".gitattributes").write_text(LARGE_FILES)
    return out


def list_requirements() -> str:
    """List what the page needs, with a Keras that can read the model: this one or a newer one."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    kept = [line for line in lines if re.split(r"[^\w-]", line)[0] not in ("", *NOT_NEEDED)]
    return "\n".join([*kept, f"keras>={keras.__version__}"]) + "\n"


def write_readme(run: Run) -> str:
    """Return the header that Spaces read, and the model card."""
    synthetic = run.synthetic
    header = {
        "title": TITLE,
        "emoji": "🔬",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": "3.12",
        "app_file": "app.py",
        "license": "mit" if synthetic else "cc-by-nc-4.0",
        "tags": ["not-for-clinical-use"],
        "short_description": "Research and education only, not for clinical use",
    }
    card = run.evaluation_dir / "model_card.md"
    return README.substitute(
        header=yaml.safe_dump(header, allow_unicode=True, sort_keys=False).strip(),
        title=TITLE,
        notice=f"{DISCLAIMER} {SYNTHETIC_NOTE}" if synthetic else DISCLAIMER,
        card=card.read_text("utf-8").split("\n---\n", 1)[-1].strip() if card.is_file() else "",
    )


def main() -> None:
    """Make the Space, and print how to publish it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder or saved model")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "space", metavar="DIR")
    arguments = parser.parse_args()
    try:
        out = make_space(arguments.run, arguments.out)
    except InputError as error:
        parser.error(str(error))
    print(f"space: in {out}; to publish it: hf upload NAME {out} . --repo-type space")


if __name__ == "__main__":
    main()
