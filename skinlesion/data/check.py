"""Check a dataset: incomplete metadata, missing or extra images, damaged files."""

from pathlib import Path

from skinlesion.data.ham10000 import (
    METADATA_NAME,
    find_gaps,
    list_images,
    require_local_dataset,
)
from skinlesion.data.images import find_unreadable
from skinlesion.data.metadata import read_metadata
from skinlesion.files import name_some
from skinlesion.machine import say


def check_dataset(data: str | Path | None = None) -> list[str]:
    """Look for damage in a dataset and print what was found: the step `check`.

    Args:
        data: folder of the dataset. None looks for it as `find_dataset` does, but without a
            download.

    Returns:
        One line for each kind of damage, with the number of cases and the first names. Empty if
        nothing is wrong.

    Raises:
        InputError: there is no dataset, or its metadata cannot be used.
    """
    source = require_local_dataset(data)
    table, images = read_metadata(source / METADATA_NAME), list_images(source)
    diagnoses = table.groupby("lesion_id")["dx"].nunique()
    named = {
        **find_gaps(table, images),
        "lesions with several diagnoses": sorted(diagnoses.index[diagnoses > 1]),
        "images that cannot be read": find_unreadable(list(images.values())),
    }
    findings = [
        f"{what}: {len(names):,} ({name_some(names)})" for what, names in named.items() if names
    ]
    lesions = table["lesion_id"].nunique()
    say(f"check: {len(table):,} rows, {len(images):,} images, {lesions:,} lesions in {source}")
    say("\n".join(findings) or "check: no problem found")
    return findings
