"""Make a Hugging Face Space of a run: the demo page, public and self-contained.

    .venv/bin/python scripts/make_space.py --run RUN --out dist/space

Writes a folder to push to a new Space (https://huggingface.co/new-space, SDK Gradio): `app.py`,
`requirements.txt`, a README with the header that Spaces read and the run's model card, the package,
the saved model, and the figures of the evaluation that show no photograph. It contains no images,
no split, and no paths of this machine. `python app.py` in the folder starts it here as well.
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

from skinlesion.data.ham10000 import HAM10000
from skinlesion.demo.app import TITLE, require_safe_gradio
from skinlesion.demo.content import FIGURES, read_card
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.files import InputError
from skinlesion.model.bundle import ARRAYS_NAME, INFO_NAME, MODEL_NAME, SUMS_NAME
from skinlesion.model.run import Run

NOT_NEEDED = ("jupyter", "kagglehub", "pooch", "tensorboard", "gradio")
"""Requirements of notebooks and training only. The version of Gradio is in the header."""
PROXIES = "127.0.0.1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,::1,fc00::/7"
"""Addresses of private networks (RFC 1918, RFC 4193)."""
APP = Template('''\
"""The page of this Space."""

import os
from pathlib import Path

from skinlesion.demo.app import serve

# The proxies of Spaces, which name the visitor, have private addresses. With "*" instead, visitors
# could invent the address under which their requests are counted.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "$proxies")
serve(
    Path(__file__).parent / "run",
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
''')
README = Template("""\
---
$header
---

# $title

**$notice**

Made with `skinlesion`. Images are predicted on the machine of this Space, and
uploads are deleted after a few minutes.

$card
""")
LARGE_FILES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("keras", "npz", "png")
)
"""Files that Git stores separately on the Hub, for `.gitattributes`."""


def make_space(run: Run, out: Path) -> Path:
    """Write the Space of a run, or of a saved model by itself, to a new or empty folder.

    Raises:
        InputError: the folder is not empty, the model is not calibrated, or this Gradio, which the
            Space would run, has known vulnerabilities.
    """
    require_safe_gradio("a Space")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name a new folder with --out")
    load_calibration(run)
    # A saved model by itself: the other files of a run contain the split and paths.
    (out / "run" / "evaluation").mkdir(parents=True)
    for name in (MODEL_NAME, INFO_NAME, ARRAYS_NAME, SUMS_NAME):
        shutil.copy2(run.model_dir / name, out / "run")
    for name in (
        "metrics.json",
        "model_card.md",
        "checklist.md",
        *(f"{figure}.png" for figure in FIGURES),
    ):
        if (run.evaluation_dir / name).is_file():
            shutil.copy2(run.evaluation_dir / name, out / "run" / "evaluation")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "skinlesion", out / "skinlesion", ignore=unwanted)
    shutil.copy2(ROOT / "LICENSE", out)
    (out / "app.py").write_text(APP.substitute(proxies=PROXIES))
    (out / "requirements.txt").write_text(list_requirements())
    (out / "README.md").write_text(write_readme(run))
    (out / ".gitattributes").write_text(LARGE_FILES)
    return out


def list_requirements() -> str:
    """List what the page needs, with a Keras that is at least as new as this one."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    kept = [line for line in lines if re.split(r"[^\w-]", line)[0] not in ("", *NOT_NEEDED)]
    return "\n".join([*kept, f"keras>={keras.__version__}"]) + "\n"


def write_readme(run: Run) -> str:
    """Return the header that Spaces read, and the model card."""
    header = {
        "title": TITLE,
        "emoji": "🔬",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": "3.12",
        "app_file": "app.py",
        "tags": ["not-for-clinical-use"],
        "short_description": "Research and education only, not for clinical use",
    }
    # Of a model of other images, only its maker knows the licence.
    if run.synthetic or run.info.source == HAM10000.source:
        header["license"] = "mit" if run.synthetic else "cc-by-nc-4.0"
    return README.substitute(
        header=yaml.safe_dump(header, allow_unicode=True, sort_keys=False).strip(),
        title=TITLE,
        notice=f"{DISCLAIMER} {SYNTHETIC_NOTE}" if run.synthetic else DISCLAIMER,
        card=(read_card(run) or "").strip(),
    )


def main() -> None:
    """Make the Space and print how to publish it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder or saved model")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "space", metavar="DIR")
    arguments = parser.parse_args()
    try:
        out = make_space(Run.find(arguments.run), arguments.out)
    except InputError as error:
        parser.error(str(error))
    print(f"space: in {out}; to publish it: hf upload NAME {out} . --repo-type space")


if __name__ == "__main__":
    main()
