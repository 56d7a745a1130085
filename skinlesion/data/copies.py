"""Copy the images of a dataset into one folder."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from skinlesion.data.dataset import (
    GAPS_NAME,
    find_copy,
    find_dataset,
    list_image_paths,
    load_metadata,
    record_gaps,
)
from skinlesion.data.forms import (
    DESCRIPTION_NAME,
    MASKS_NAME,
    SAMPLE_MARKER,
    TABLE_NAME,
    is_by_image,
    is_sample,
    read_dataset,
)
from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.data.metadata import make_code, normalise, normalise_id
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.files import (
    InputError,
    delete_left,
    name_some,
    read_csv,
    stat_file,
    write_atomically,
    write_csv,
    write_text,
)
from skinlesion.machine import progress_bar, say

COPY_THREADS = 8
"""Kaggle's mount is slow for each single file: several requests at a time hide that."""


def copy_images(data: str | Path | None, out: Path, *, allow_incomplete: bool = False) -> Path:
    """Copy the images and the metadata of a dataset into one folder: the step `copy`.

    HAM10000 keeps its form, every other dataset becomes a table. Images are hard links if the file
    system allows it. Each file is copied completely or not at all, and existing files are kept: an
    interrupted call can be repeated.

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
    source = (find_copy(out) if data is None else None) or find_dataset(data)
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
    inside = list_image_paths(out) if out.is_dir() else []
    other = [path.name for path in inside if path.name not in names]
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
    if not (source / METADATA_NAME).is_file():
        _write_table(source, {normalise_id(path.stem) for path in paths}, out)
    elif not (out / GAPS_NAME).is_file():
        content = _read(source / METADATA_NAME)
        write_atomically(out / METADATA_NAME, lambda part: part.write_bytes(content))
    else:
        table = read_csv(source / METADATA_NAME, "a CSV file", dtype=str, keep_default_na=False)
        there = {normalise_id(path.stem) for path in paths}
        write_csv(out / METADATA_NAME, table[normalise(table)["image_id"].isin(there)])
    return ways


def _write_table(source: Path, image_ids: set[str], out: Path) -> None:
    """Write rows and description of a dataset in the form of a table."""
    rows, info = read_dataset(source)
    rows = rows[rows["image_id"].isin(image_ids)]
    if is_by_image(rows):
        rows = rows.drop(columns="lesion_id")
    # The code where it does not follow from the name, as for HAM10000's classes.
    names = {code: name if make_code(name) == code else code for code, name, _ in info.diagnoses}
    values: dict[str, Any] = {"name": info.source}
    if info.malignant is not None:
        values["malignant"] = [names[one.code] for one in info.diagnoses if one.malignant]
    write_text(out / DESCRIPTION_NAME, yaml.safe_dump(values, allow_unicode=True))
    rows = rows.assign(dx=rows["dx"].map(names)).rename(columns={"given_split": "split"})
    write_csv(out / TABLE_NAME, rows)


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
