"""Make a Hugging Face Space of a run: the demo page, public, and started by itself.

    .venv/bin/python scripts/make_space.py --run RUN --out dist/space

Writes a folder to push to a new Space (https://huggingface.co/new-space, SDK Gradio): `app.py`,
`requirements.txt`, a README with the header that Spaces read and the run's model card, the package,
the bundle, and of the evaluation the figures that show no photograph. Neither images nor the split
nor paths of this machine are in it. `python app.py` in the folder starts it here as well.
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
from packaging.version import Version
from skinlesion.model.bundle import find_bundle, load_bundle

from skinlesion.demo.app import SAFE_TO_SHARE, TITLE
from skinlesion.demo.exhibit import FIGURES
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.files import InputError

NOT_NEEDED = ("jupyter", "kagglehub", "tensorboard", "gradio")
"""Requirements of notebooks and training; and Gradio, whose version the header names."""
APP = '''\
"""The page of this Space."""

import os
from pathlib import Path

from skinlesion.demo.app import serve

serve(
    Path(__file__).parent / "run",
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

Made with `skinlesion`. Uploads are judged on this Space's machine, and deleted after some minutes.

$card
""")
LARGE_FILES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("keras", "npz", "png")
)
"""What Git keeps apart on the Hub, in `.gitattributes`."""


def make_space(run: Path, out: Path) -> Path:
    """Write the Space of a run directory, or of a bundle by itself, to a new or empty folder.

    Raises:
        InputError: the folder holds something, the model cannot be shown, or the Gradio here, which
            the Space would run, has known holes.
    """
    if Version(gradio.__version__) < SAFE_TO_SHARE:
        raise InputError(
            f"a Space is public: it needs Gradio {SAFE_TO_SHARE} or newer, this is "
            f"{gradio.__version__}"
        )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name a new folder with --out")
    bundle = load_bundle(run)
    if bundle.info.calibration is None:
        raise InputError(f"{run}: this model was not calibrated: train it again")
    shutil.copytree(find_bundle(run), out / "run" / "model")
    wanted = ["metrics.json", "model_card.md", *(f"{name}.png" for name in FIGURES)]
    found = [run / "evaluation" / name for name in wanted if (run / "evaluation" / name).is_file()]
    (out / "run" / "evaluation").mkdir()
    for path in found:
        shutil.copy2(path, out / "run" / "evaluation")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "skinlesion", out / "skinlesion", ignore=unwanted)
    shutil.copy2(ROOT / "LICENSE", out)
    (out / "app.py").write_text(APP)
    (out / "requirements.txt").write_text(list_requirements())
    (out / "README.md").write_text(write_readme(run, synthetic=bundle.info.synthetic))
    (out / ".gitattributes").write_text(LARGE_FILES)
    return out


def list_requirements() -> str:
    """What the page needs; a Keras no older than this one, which an older one may not read."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    kept = [line for line in lines if re.split(r"[^\w-]", line)[0] not in ("", *NOT_NEEDED)]
    return "\n".join([*kept, f"keras>={keras.__version__}"]) + "\n"


def write_readme(run: Path, *, synthetic: bool) -> str:
    """The header that Spaces read, and the model card."""
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
    card = run / "evaluation" / "model_card.md"
    return README.substitute(
        header=yaml.safe_dump(header, allow_unicode=True, sort_keys=False).strip(),
        title=TITLE,
        notice=f"{DISCLAIMER} {SYNTHETIC_NOTE}" if synthetic else DISCLAIMER,
        card=card.read_text("utf-8").split("\n---\n", 1)[-1].strip() if card.is_file() else "",
    )


def main() -> None:
    """Make it, and say how to publish it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory or bundle")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "space", metavar="DIR")
    arguments = parser.parse_args()
    try:
        out = make_space(arguments.run, arguments.out)
    except InputError as error:
        parser.error(str(error))
    print(f"space: in {out}; to publish it: hf upload NAME {out} . --repo-type space")


if __name__ == "__main__":
    main()
