"""A dataset on disk: find or download it, list its images, join them to its metadata."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from skinlesion.data.download import download_dataset
from skinlesion.data.forms import (
    MASKS_NAME,
    is_dataset,
    is_sample,
    list_endings,
    read_dataset,
    walk_files,
)
from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.data.metadata import normalise_id
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.files import InputError, name_some, read_json, stat_file, write_json
from skinlesion.machine import (
    KAGGLE_MOUNTS,
    default_cache_dir,
    default_images_dir,
    list_attached,
    say,
    warn,
)

GAPS_NAME = "incomplete.json"
"""What a copy or a run left out of its dataset: see `find_gaps`."""


def find_dataset(data: str | Path | None = None) -> Path:
    """Find or download the dataset.

    Places are tried in this order: `data`, the variable `HAM10000_DIR`, the dataset attached on
    Kaggle under its usual name or another one, an earlier download in the cache folder. If all of
    them fail, the dataset is downloaded.

    Args:
        data: folder of the dataset, or None to look for it.

    Returns:
        Its folder: see `read_dataset`.

    Raises:
        InputError: the named folder does not hold the dataset, or the download failed.
    """
    return find_local_dataset(data) or download_dataset(default_cache_dir() / "ham10000")


def find_local_dataset(data: str | Path | None = None) -> Path | None:
    """Find the dataset as `find_dataset` does, but without a download.

    Returns:
        Its folder, or None if there is no dataset on this machine.

    Raises:
        InputError: the named folder does not hold the dataset.
    """
    if data is not None:
        return _require_dataset(Path(data), named_by="data")
    if os.environ.get("HAM10000_DIR"):
        return _require_dataset(Path(os.environ["HAM10000_DIR"]), named_by="HAM10000_DIR")
    places = (*KAGGLE_MOUNTS, *list_attached(METADATA_NAME), default_cache_dir() / "ham10000")
    return next((place for place in places if (place / METADATA_NAME).is_file()), None)


def require_local_dataset(data: str | Path | None = None) -> Path:
    """Find the dataset without a download, for commands that only inspect it.

    Raises:
        InputError: there is no dataset on this machine, or not in the named folder.
    """
    found = find_local_dataset(data)
    if not found:
        raise InputError("no dataset found: name its folder as `data` or in HAM10000_DIR")
    return found


def find_images(data: str | Path | None, work: Path) -> Path:
    """Find the dataset to read images from; prefer the copy that an earlier step made.

    Args:
        data: folder of the dataset, or None for the copy, or else as in `find_dataset`.
        work: the working folder of the earlier step.

    Raises:
        InputError: as `find_dataset`, or the copy belongs to another dataset than the one here.
    """
    found = find_copy(default_images_dir(work)) if data is None else None
    found = found or find_dataset(data)
    if is_sample(found):
        say(SYNTHETIC_NOTE)
    return found


def list_images(folder: Path) -> dict[str, Path]:
    """Return every image below the folder by its `image_id`, sorted; without masks.

    The Kaggle dataset shows each image in two folders. The first path in alphabetical order is
    returned.

    Raises:
        InputError: there is no image, a file or folder cannot be read, or two files of one name
            differ in size.
    """
    images: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    unequal = []
    for path in list_image_paths(folder):
        image_id, size = normalise_id(path.stem), stat_file(path).st_size
        if sizes.setdefault(image_id, size) != size:
            unequal.append(f"{path} and {images[image_id]}")
        images.setdefault(image_id, path)
    if not images:
        raise InputError(
            f"{folder}: no {' or '.join(list_endings(folder))} file in it; name the folder that "
            "holds the images"
        )
    if unequal:
        raise InputError(f"{folder}: files of one name that differ: {name_some(unequal, shown=2)}")
    return dict(sorted(images.items()))


def list_image_paths(folder: Path) -> list[Path]:
    """List the image files below a folder, sorted; without masks."""
    endings = list_endings(folder)
    return sorted(
        path
        for path in walk_files(folder)
        if path.suffix.lower() in endings and MASKS_NAME not in path.relative_to(folder).parts
    )


def load_metadata(folder: Path, *, allow_incomplete: bool = False) -> pd.DataFrame:
    """Read the rows of a dataset and join each to its image.

    Args:
        folder: the dataset, see `read_dataset`.
        allow_incomplete: leave out rows without an image and images without a row.

    Returns:
        The rows in the order of the file, with two more columns: `label` (int from 0, in the order
        of `DatasetInfo.labels`) and `path` (of the image file).

    Raises:
        InputError: as `read_dataset`, or rows without an image or images without a row, by name.
    """
    (table, info), images = read_dataset(folder), list_images(folder)
    gaps = [
        f"{len(ids):,} {what} ({name_some(ids)})"
        for what, ids in find_gaps(table, images).items()
        if ids
    ]
    if gaps and not allow_incomplete:
        raise InputError(
            f"{folder}: incomplete: {' and '.join(gaps)}; complete the dataset (HAM10000 has two "
            "folders, HAM10000_images_part_1 and _part_2), or leave these out: "
            "allow_incomplete=True of copy_images and Run, --allow-incomplete of copy and train"
        )
    table = table[table["image_id"].isin(images)]
    return table.assign(
        label=table["dx"].map(info.label_of).astype(int),
        path=table["image_id"].map(images),
    )


def find_gaps(table: pd.DataFrame, images: Mapping[str, Path]) -> dict[str, list[str]]:
    """List the image ids of `rows without an image` and `images without a row`, sorted."""
    return {
        "rows without an image": sorted(set(table["image_id"]) - set(images)),
        "images without a row": sorted(set(images) - set(table["image_id"])),
    }


def record_gaps(data: Path, folder: Path) -> None:
    """Write what a dataset lacks to `incomplete.json` in a folder, if it lacks anything.

    Args:
        data: the dataset. If it is a copy, what the copy left out counts as well.
        folder: of a copy or a run.
    """
    gaps = find_gaps(read_dataset(data)[0], list_images(data))
    if (data / GAPS_NAME).is_file():
        earlier = read_json(data / GAPS_NAME)
        gaps = {what: sorted({*ids, *earlier[what]}) for what, ids in gaps.items()}
    (folder / GAPS_NAME).unlink(missing_ok=True)  # of an earlier call
    if any(gaps.values()):
        write_json(folder / GAPS_NAME, gaps)
        counts = " and ".join(f"{len(ids):,} {what}" for what, ids in gaps.items())
        warn(f"{data}: incomplete: {counts} left out, listed in {folder / GAPS_NAME}")


def find_copy(folder: Path) -> Path | None:
    """Return the folder if `copy_images` has filled it, or None.

    Raises:
        InputError: it holds another dataset than the one that is found on this machine.
    """
    if not is_dataset(folder):
        return None
    found = find_local_dataset()
    if found and found != folder:
        ours, theirs = (read_dataset(x)[0]["image_id"] for x in (folder, found))
        if not ours.isin(theirs).any():
            raise InputError(
                f"{folder}: holds a copy of another dataset than {found}; delete it, or choose "
                "another working folder"
            )
    return folder


def _require_dataset(folder: Path, *, named_by: str) -> Path:
    if is_dataset(folder):
        return folder
    folder = folder.resolve()
    problem = (
        f"no {METADATA_NAME} and no other dataset in it"
        if folder.is_dir()
        else "there is no such folder"
    )
    if (folder.parent / METADATA_NAME).is_file():
        problem = f"{METADATA_NAME} lies beside it, in {folder.parent}"
    raise InputError(
        f"{folder} (from {named_by}): {problem}; name the folder that holds {METADATA_NAME}, or a "
        "table with the columns image and diagnosis, and the images; or folders named after classes"
    )
