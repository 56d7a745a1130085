"""Find or download HAM10000, and gather its images in one folder."""

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from skinlesion.data.download import METADATA_NAME, download_dataset
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.files import InputError, name_some
from skinlesion.machine import (
    KAGGLE_MOUNTS,
    default_cache_dir,
    default_images_dir,
    progress_bar,
    say,
)

SAMPLE_MARKER = "SYNTHETIC_SAMPLE.json"
"""A folder with this file holds the synthetic sample, or images gathered from it."""

MASKS_NAME = "masks"
"""Folder of the sample with the outline of each lesion, a PNG named as the image, white inside."""

COPY_THREADS = 8
"""Kaggle's mount answers slowly, one file at a time: several requests under way hide that."""


@dataclass(frozen=True)
class GatherReport:
    """What `gather_images` did, in numbers of images."""

    linked: int
    copied: int
    kept: int


def find_dataset(data: str | Path | None = None) -> Path:
    """The folder that holds `HAM10000_metadata.csv` and, somewhere below it, the images.

    Tried in this order: `data`; the variable `HAM10000_DIR`; the two places where Kaggle mounts
    the dataset; an earlier download in the cache folder; a download, once.

    Raises:
        InputError: a named folder that does not hold the dataset, or no dataset to be had.
    """
    return find_local_dataset(data) or download_dataset(_downloaded())


def find_local_dataset(data: str | Path | None = None) -> Path | None:
    """The same without a download; None where nothing is at hand."""
    if data is not None:
        return _require_metadata(Path(data), named_by="--data")
    if os.environ.get("HAM10000_DIR"):
        return _require_metadata(Path(os.environ["HAM10000_DIR"]), named_by="HAM10000_DIR")
    places = (*KAGGLE_MOUNTS, _downloaded())
    return next((place for place in places if (place / METADATA_NAME).is_file()), None)


def find_images(data: str | Path | None, work: Path) -> Path:
    """The dataset to read images from: the one gathered in an earlier step, if no other is named.

    Args:
        data: the dataset, or None.
        work: the working folder, for which the images may have been gathered.

    Raises:
        InputError: as `find_dataset` and `find_gathered`.
    """
    found = find_gathered(default_images_dir(work)) if data is None else None
    found = found or find_dataset(data)
    if is_sample(found):
        say(SYNTHETIC_NOTE)
    return found


def find_gathered(folder: Path) -> Path | None:
    """The folder, if `gather_images` has filled it; None: not yet.

    Raises:
        InputError: another dataset than this is at hand; neither is taken for the other.
    """
    if not (folder / METADATA_NAME).is_file():
        return None
    named = find_local_dataset()
    if named and named != folder:
        ours, others = (set(pd.read_csv(x / METADATA_NAME)["image_id"]) for x in (folder, named))
        if not ours & others:
            raise InputError(
                f"{folder}: was gathered from another dataset than {named}; delete it, or choose "
                "another working folder"
            )
    return folder


def is_sample(data: Path) -> bool:
    """Whether the folder holds the synthetic sample instead of HAM10000."""
    return (data / SAMPLE_MARKER).is_file()


def list_images(data: Path) -> dict[str, Path]:
    """Every JPEG below the folder by its `image_id` (the file name without `.jpg`), sorted.

    The Kaggle dataset shows each image under two folder names; the first in the order of paths
    stands for both.

    Raises:
        InputError: no image at all, or files of one name that differ in size.
    """
    images: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    unequal = []
    for path in sorted(_walk_jpegs(data)):
        size = path.stat().st_size
        if sizes.setdefault(path.stem, size) != size:
            unequal.append(f"{path} and {images[path.stem]}")
        images.setdefault(path.stem, path)
    if not images:
        raise InputError(f"{data}: no .jpg file in it; expected HAM10000_images_part_1 and _part_2")
    if unequal:
        raise InputError(f"{data}: files of one name that differ: {name_some(unequal, shown=2)}")
    return dict(sorted(images.items()))


def gather_images(data: Path, out: Path) -> GatherReport:
    """Put every image of a dataset, its metadata and masks, if any, into one folder.

    Hard links where the file system allows, copies otherwise. A file is whole or not there, so the
    call can be interrupted and repeated; files that are there already are kept. `out` is a dataset
    itself afterwards.

    Raises:
        InputError: `out` lies in `data` or holds it, or the disk is full.
    """
    data, out = data.resolve(), out.resolve()
    if out == data or data in out.parents or out in data.parents:
        raise InputError(f"{out}: lies in {data} or holds it; choose a folder apart from it")
    images = list_images(data)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    other = sorted(path.name for path in out.glob("*.jpg") if path.stem not in images)
    if other:
        raise InputError(
            f"{out}: holds images of another dataset ({name_some(other)}); choose an empty folder"
        )
    for leftover in out.glob("*.part"):
        leftover.unlink()
    extras = [data / name for name in (METADATA_NAME, SAMPLE_MARKER) if (data / name).is_file()]
    done = _place_all(images.values(), out)
    if (data / MASKS_NAME).is_dir():
        (out / MASKS_NAME).mkdir(exist_ok=True)
        _place_all(sorted((data / MASKS_NAME).glob("*.png")), out / MASKS_NAME)
    for path in extras:
        # The metadata is read and edited by people: a hard link would let them change the source.
        _copy(path, out / path.name)
    return GatherReport(**{way: done.count(way) for way in ("linked", "copied", "kept")})


def _place_all(paths: Iterable[Path], out: Path) -> list[str]:
    paths = list(paths)
    with ThreadPoolExecutor(COPY_THREADS) as pool:
        placing = pool.map(lambda path: _place(path, out / path.name), paths)
        try:
            return list(progress_bar(placing, "gathering images", len(paths)))
        except OSError as error:
            pool.shutdown(cancel_futures=True)
            raise InputError(
                f"{out}: {error.strerror or error}; make room or choose another folder, then "
                "repeat the command: what is there is kept"
            ) from error


def _place(source: Path, target: Path) -> str:
    if target.is_file():
        if target.stat().st_size == source.stat().st_size:
            return "kept"
        target.unlink()
    try:
        os.link(os.path.realpath(source), target)  # what a link points to, not the link
        return "linked"
    except OSError:  # another file system, or one without hard links
        _copy(source, target)
        return "copied"


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    part.replace(target)  # whole or not there


def _walk_jpegs(data: Path) -> Iterable[Path]:
    for folder, _, names in os.walk(data, followlinks=True):
        yield from (Path(folder) / name for name in names if name.lower().endswith(".jpg"))


def _downloaded() -> Path:
    return default_cache_dir() / "ham10000"


def _require_metadata(folder: Path, *, named_by: str) -> Path:
    if (folder / METADATA_NAME).is_file():
        return folder
    folder = folder.resolve()
    problem = f"no {METADATA_NAME} in it" if folder.is_dir() else "there is no such folder"
    if (folder.parent / METADATA_NAME).is_file():
        problem = f"{METADATA_NAME} lies beside it, in {folder.parent}"
    raise InputError(
        f"{folder} (from {named_by}): {problem}; name the folder that holds {METADATA_NAME} and "
        "the images"
    )
