"""HAM10000 on disk: find or download it, read its metadata, copy its images into one folder."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from skinlesion.data.download import METADATA_NAME, download_dataset
from skinlesion.data.metadata import normalise, normalise_id, read_metadata
from skinlesion.diagnoses import LABEL_OF, SYNTHETIC_NOTE
from skinlesion.files import (
    InputError,
    delete_left,
    name_some,
    read_csv,
    read_json,
    stat_file,
    write_atomically,
    write_csv,
    write_json,
)
from skinlesion.machine import (
    KAGGLE_MOUNTS,
    default_cache_dir,
    default_images_dir,
    list_attached,
    progress_bar,
    say,
    warn,
)

SAMPLE_MARKER = "SYNTHETIC_SAMPLE.json"
"""A folder with this file holds the synthetic sample, or a copy of its images."""

MASKS_NAME = "masks"
"""Folder of the sample with the outline of each lesion, a PNG named as the image, white inside."""

GAPS_NAME = "incomplete.json"
"""What a copy or a run left out of its dataset: see `find_gaps`."""

COPY_THREADS = 8
"""Kaggle's mount is slow for each single file: several requests at a time hide that."""


def find_dataset(data: str | Path | None = None) -> Path:
    """Find or download the dataset.

    Places are tried in this order: `data`, the variable `HAM10000_DIR`, the dataset attached on
    Kaggle under its usual name or another one, an earlier download in the cache folder. If all of
    them fail, the dataset is downloaded.

    Args:
        data: folder of the dataset, or None to look for it.

    Returns:
        The folder with `HAM10000_metadata.csv` and, somewhere below it, the images.

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
        return _require_metadata(Path(data), named_by="data")
    if os.environ.get("HAM10000_DIR"):
        return _require_metadata(Path(os.environ["HAM10000_DIR"]), named_by="HAM10000_DIR")
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
    found = _find_copy(default_images_dir(work)) if data is None else None
    found = found or find_dataset(data)
    if is_sample(found):
        say(SYNTHETIC_NOTE)
    return found


def is_sample(folder: Path) -> bool:
    """Return whether the folder holds the synthetic sample instead of HAM10000."""
    return (folder / SAMPLE_MARKER).is_file()


def list_images(folder: Path) -> dict[str, Path]:
    """Return every JPEG below the folder by its `image_id`, sorted.

    The Kaggle dataset shows each image in two folders. The first path in alphabetical order is
    returned.

    Raises:
        InputError: there is no image, a file or folder cannot be read, or two files of one name
            differ in size.
    """
    images: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    unequal = []
    for path in sorted(path for path in walk_files(folder) if path.suffix.lower() == ".jpg"):
        image_id, size = normalise_id(path.stem), stat_file(path).st_size
        if sizes.setdefault(image_id, size) != size:
            unequal.append(f"{path} and {images[image_id]}")
        images.setdefault(image_id, path)
    if not images:
        raise InputError(
            f"{folder}: no .jpg file in it; expected HAM10000_images_part_1 and _part_2"
        )
    if unequal:
        raise InputError(f"{folder}: files of one name that differ: {name_some(unequal, shown=2)}")
    return dict(sorted(images.items()))


def load_metadata(folder: Path, *, allow_incomplete: bool = False) -> pd.DataFrame:
    """Read `HAM10000_metadata.csv` and join each row to its image.

    Args:
        folder: the dataset: the CSV file and, somewhere below it, the images.
        allow_incomplete: leave out rows without an image and images without a row.

    Returns:
        The rows in the order of the file, with two more columns: `label` (int, 0 to 6, in the
        order of `DIAGNOSES`) and `path` (of the image file).

    Raises:
        InputError: as `read_metadata`, or rows without an image or images without a row, by name.
    """
    table, images = read_metadata(folder / METADATA_NAME), list_images(folder)
    gaps = [
        f"{len(ids):,} {what} ({name_some(ids)})"
        for what, ids in find_gaps(table, images).items()
        if ids
    ]
    if gaps and not allow_incomplete:
        raise InputError(
            f"{folder}: incomplete: {' and '.join(gaps)}; complete the dataset (both "
            "HAM10000_images_part_1 and _part_2), or leave these out: allow_incomplete=True of "
            "copy_images and Run, --allow-incomplete of copy and train"
        )
    table = table[table["image_id"].isin(images)]
    return table.assign(
        label=table["dx"].map(LABEL_OF).astype(int), path=table["image_id"].map(images)
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
    gaps = find_gaps(read_metadata(data / METADATA_NAME), list_images(data))
    if (data / GAPS_NAME).is_file():
        earlier = read_json(data / GAPS_NAME)
        gaps = {what: sorted({*ids, *earlier[what]}) for what, ids in gaps.items()}
    (folder / GAPS_NAME).unlink(missing_ok=True)  # of an earlier call
    if any(gaps.values()):
        write_json(folder / GAPS_NAME, gaps)
        counts = " and ".join(f"{len(ids):,} {what}" for what, ids in gaps.items())
        warn(f"{data}: incomplete: {counts} left out, listed in {folder / GAPS_NAME}")


def copy_images(data: str | Path | None, out: Path, *, allow_incomplete: bool = False) -> Path:
    """Copy the images and the metadata of the dataset into one folder: the step `copy`.

    Images are hard links if the file system allows it. Each file is copied completely or not at
    all, and existing files are kept: an interrupted call can be repeated.

    Args:
        data: folder of the dataset; None takes an earlier copy in `out`, or else looks as
            `find_dataset` does.
        out: folder to fill.
        allow_incomplete: leave out rows without an image and images without a row, and list them
            in `incomplete.json`.

    Returns:
        `out`, which is a dataset itself: the metadata and all images in one folder.

    Raises:
        InputError: the dataset is incomplete, `out` lies in the dataset or contains it or holds
            another dataset, or the disk is full.
    """
    # The metadata is copied last: a folder that has it is complete, and its source is not needed.
    source = (_find_copy(out) if data is None else None) or find_dataset(data)
    paths = list(load_metadata(source, allow_incomplete=allow_incomplete)["path"])
    if source == out:
        ways = ["already there"] * len(paths)
    else:
        say(f"copy: copying the images of {source} to {out} (up to some minutes)")
        ways = _copy_dataset(source.resolve(), paths, out.resolve())
    counts = ", ".join(f"{count:,} {way}" for way, count in Counter(ways).items())
    say(f"copy: {len(paths):,} images in {out} ({counts})")
    if is_sample(source):
        say(SYNTHETIC_NOTE)
    return out


def _copy_dataset(source: Path, paths: list[Path], out: Path) -> list[str]:
    """Copy images, masks and metadata; return how each image was copied, as `_place` does."""
    if out == source or source in out.parents or out in source.parents:
        raise InputError(f"{out}: lies in {source} or contains it; choose a separate folder")
    names = {path.name for path in paths}
    other = sorted(path.name for path in out.glob("*.jpg") if path.name not in names)
    if other:
        raise InputError(
            f"{out}: holds images of another dataset ({name_some(other)}); choose an empty folder"
        )
    delete_left(out, "**/*.part")
    ways = _place_all(paths, out)
    if (source / MASKS_NAME).is_dir():
        _place_all(sorted((source / MASKS_NAME).glob("*.png")), out / MASKS_NAME)
    # Not as hard links: people edit the metadata, and would change the source.
    if is_sample(source):
        marker = _read(source / SAMPLE_MARKER)
        write_atomically(out / SAMPLE_MARKER, lambda part: part.write_bytes(marker))
    record_gaps(source, out)
    if not (out / GAPS_NAME).is_file():
        content = _read(source / METADATA_NAME)
        write_atomically(out / METADATA_NAME, lambda part: part.write_bytes(content))
    else:
        table = read_csv(source / METADATA_NAME, "a CSV file", dtype=str, keep_default_na=False)
        there = {normalise_id(path.stem) for path in paths}
        write_csv(out / METADATA_NAME, table[normalise(table)["image_id"].isin(there)])
    return ways


def _place_all(paths: list[Path], out: Path) -> list[str]:
    with ThreadPoolExecutor(COPY_THREADS) as pool:
        try:
            out.mkdir(parents=True, exist_ok=True)
            placing = pool.map(lambda path: _place(path, out / path.name), paths)
            return list(progress_bar(placing, "copying images", len(paths)))
        except OSError as error:
            raise InputError(
                f"{out}: {error.strerror or error}; make room or choose another folder, then "
                "repeat the command: finished files are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _place(source: Path, target: Path) -> str:
    """Link or copy one file; return `already there`, `linked` or `copied`."""
    size = stat_file(source).st_size
    if target.is_file():
        if target.stat().st_size == size:
            return "already there"
        target.unlink()
    try:
        os.link(os.path.realpath(source), target)  # of a symbolic link, its target
        return "linked"
    except OSError:  # another file system, or one without hard links
        content = _read(source)
        # Not a name of an image. For this process alone: another one may make the same copy.
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(target)
        return "copied"


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise InputError(
            f"{source}: cannot be read ({error.strerror}); check the dataset, then repeat the "
            "command: finished files are kept"
        ) from error


def _find_copy(folder: Path) -> Path | None:
    """Return the folder if `copy_images` has filled it, or None.

    Raises:
        InputError: it holds another dataset than the one that is found on this machine.
    """
    if not (folder / METADATA_NAME).is_file():
        return None
    found = find_local_dataset()
    if found and found != folder:
        ours, theirs = (read_metadata(x / METADATA_NAME)["image_id"] for x in (folder, found))
        if not ours.isin(theirs).any():
            raise InputError(
                f"{folder}: holds a copy of another dataset than {found}; delete it, or choose "
                "another working folder"
            )
    return folder


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, also behind links; `InputError` if a folder is closed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (Path(parent) / name for name in names)


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
