"""The synthetic sample: drawn lesions in the layout of HAM10000, or as a table of one's own.

`drawing` draws them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from skinlesion.data.drawing import IMAGE_SIZE, TRAITS, draw_lesion, photograph
from skinlesion.data.forms import MASKS_NAME, SAMPLE_MARKER, TABLE_NAME
from skinlesion.data.ham10000 import HAM10000, METADATA_NAME, PARTS
from skinlesion.diagnoses import FEWEST_CLASSES, SYNTHETIC_NOTE
from skinlesion.files import InputError, read_json, write_atomically, write_csv, write_json
from skinlesion.machine import progress_bar

_UNFINISHED_NAME = f"{SAMPLE_MARKER}.unfinished"
_FOLDERS = (*PARTS, MASKS_NAME)
_SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest")

Row = dict[str, object]


def _plan_lesions(
    seed: int, images_per_class: int, classes: int
) -> Iterator[tuple[int, int, range]]:
    """Yield for each lesion its label, its number within the class and those of its images."""
    for label in range(classes):
        first = lesion = 0
        while first < images_per_class:
            shots = int(np.random.default_rng([seed, label, lesion, 0]).integers(1, 4))
            last = min(first + shots, images_per_class)
            yield label, lesion, range(first, last)
            first, lesion = last, lesion + 1


def _write_lesion(out: Path, seed: int, label: int, lesion: int, shots: range) -> list[Row]:
    """Draw one lesion, write its images and masks, and return their metadata rows.

    Everything depends on seed, class and numbers only. Threads may work in any order, and a larger
    sample contains the images of a smaller one.
    """
    code = HAM10000.labels[label]
    rng = np.random.default_rng([seed, label, lesion, 1])
    canvas, mask = draw_lesion(rng, code)
    patient = {
        "dx": code,
        "dx_type": str(rng.choice(("histo", "follow_up" if code == "nv" else "consensus"))),
        "age": 5.0 * round(float(np.clip(rng.normal(TRAITS[code].age, 14), 5, 85)) / 5),
        "sex": str(rng.choice(("male", "female"))),
        "localization": str(rng.choice(_SITES)),
    }
    rows = []
    for shot in shots:
        # Real ids end at ISIC_0034320 and HAM_0007628: these start with a 9, then the class.
        image_id = f"ISIC_9{label}{shot + 1:05d}"
        image, image_mask = photograph(
            np.random.default_rng([seed, label, lesion, 2, shot]), canvas, mask
        )
        _save(image, out / _FOLDERS[shot % 2] / f"{image_id}.jpg")
        _save(image_mask, out / _FOLDERS[2] / f"{image_id}.png")
        rows.append({"lesion_id": f"HAM_9{label}{lesion + 1:05d}", "image_id": image_id} | patient)
    return rows


def _save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda part: image.save(part, quality=92))


def _is_complete(out: Path, settings: Row) -> bool:
    """Return whether `out` holds this sample; refuse a folder that holds something else."""
    if not out.is_dir() or not any(out.iterdir()):
        return False
    marker = SAMPLE_MARKER if (out / SAMPLE_MARKER).is_file() else _UNFINISHED_NAME
    if not (out / marker).is_file():
        raise InputError(f"{out}: holds other files; name a new or an empty folder")
    found = read_json(out / marker)
    keys = dict.fromkeys([*settings, *found])
    other = [f"{key} {found.get(key)}" for key in keys if found.get(key) != settings.get(key)]
    if other:
        raise InputError(
            f"{out}: holds a sample with other settings ({', '.join(other)}); use the same "
            "settings, name another folder, or delete this one"
        )
    return marker == SAMPLE_MARKER


def _to_own_form(table: pd.DataFrame) -> pd.DataFrame:
    """The metadata as anybody would write it: see docs/own_images.md."""
    named = table["dx"].map(dict(zip(HAM10000.labels, HAM10000.names, strict=True)))
    columns = {"image_id": "image", "dx": "diagnosis", "localization": "site"}
    return table.assign(dx=named).drop(columns="dx_type").rename(columns=columns)


def make_sample(
    out: str | Path, *, images_per_class: int = 60, seed: int = 0, classes: int | None = None
) -> Path:
    """Draw a synthetic dataset in HAM10000's layout, with a mask of each lesion in `masks/`.

    The same settings give the same bytes. A complete sample with the same settings is kept, an
    unfinished one is drawn again. `SYNTHETIC_SAMPLE.json` is written last.

    Args:
        out: the folder: new, empty, or a sample with the same settings.
        images_per_class: number of images of each class, 1 or more.
        seed: seed of all random choices, 0 or more.
        classes: draw only so many classes, 2 or more, and write `metadata.csv` as for one's own
            images; None draws all classes in HAM10000's form.

    Returns:
        The folder, which can be used as the dataset.

    Raises:
        InputError: a setting is out of range, or the folder holds something else.
    """
    for name, value, least in (("images_per_class", images_per_class, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name}: must be {least} or more. Received: {value}")
    out = Path(out)
    settings: Row = {"note": SYNTHETIC_NOTE, "image_size": list(IMAGE_SIZE)}
    settings |= {"images_per_class": images_per_class, "seed": seed}
    if classes is not None:
        if not FEWEST_CLASSES <= classes <= len(HAM10000.labels):
            raise InputError(
                f"classes: must be {FEWEST_CLASSES} to {len(HAM10000.labels)}. Received: {classes}"
            )
        settings["classes"] = classes
    if _is_complete(out, settings):
        return out
    write_json(out / _UNFINISHED_NAME, settings)
    plans = list(_plan_lesions(seed, images_per_class, classes or len(HAM10000.labels)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lesions = pool.map(lambda plan: _write_lesion(out, seed, *plan), plans)
        drawn = progress_bar(lesions, "drawing the sample", len(plans), unit="lesions")
        rows = [row for lesion in drawn for row in lesion]
    table = pd.DataFrame(rows)
    if classes is None:
        write_csv(out / METADATA_NAME, table)
    else:
        write_csv(out / TABLE_NAME, _to_own_form(table))
    (out / _UNFINISHED_NAME).replace(out / SAMPLE_MARKER)
    return out
