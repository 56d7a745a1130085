"""Check a dataset: read every file and every row once, and report what is wrong."""

import codecs
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from skinlesion.data.dataset import find_gaps, list_image_paths, list_images, require_local_dataset
from skinlesion.data.forms import MASKS_NAME, list_endings, read_dataset, walk_files
from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.data.images import ENDINGS, inspect_images
from skinlesion.data.metadata import SPELLINGS, normalise, normalise_id, read_metadata
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.files import InputError, write_atomically, write_json
from skinlesion.machine import default_work_dir, say

REPORT_NAME = "data_report"
FACTS = ("dx", "sex", "age", "localization")
"""Columns of which a lesion has one value."""
USUAL_SHARE = 0.9
"""If at least this share of the images has one size, another size is unusual."""
ALIKE = 3.0
"""Largest difference of two thumbnails of one photograph: a root mean square in grey levels, 0 to
255. Saving a photograph again, as JPEG of quality 20 or in half or double size, changed less than 2
(100 images). The closest two photographs of different lesions in HAM10000 differ by 4.2."""

Findings = dict[str, list[str]]


def check_dataset(data: str | Path | None = None, out: Path | None = None) -> Findings:
    """Look for damage in a dataset, print a summary and write a report: the step `check`.

    Args:
        data: folder of the dataset. None looks for it as `find_dataset` does, but without a
            download.
        out: folder for `data_report.json`, with all cases, and `data_report.md`, with the summary.
            None takes the working folder.

    Returns:
        The cases of each kind of damage that was found; empty if nothing is wrong.

    Raises:
        InputError: there is no dataset or no image in it, its metadata cannot be read at all, or
            the report cannot be written.
    """
    source, out = require_local_dataset(data), out or default_work_dir()
    rows, form = _read_rows(source)
    files, others = _read_files(source)
    whole = files[files["problem"] == ""]
    checked = {
        "metadata that other commands refuse": _find_refusal(source / METADATA_NAME, form),
        **find_gaps(rows, dict(zip(files["image_id"], files["name"], strict=True))),
        "lesions with contradictory facts": _find_contradictions(rows),
        **_find_damage(files),
        **_find_odd_images(whole),
        "images not named .jpg, which are not used": others,
        "one image_id, different files": _find_unequal(files),
        **_find_duplicates(whole, rows),
    }
    found = {kind: cases for kind, cases in checked.items() if cases}
    facts: dict[str, Any] = {
        "dataset": str(source.resolve()),
        "metadata": form | {"rows": len(rows), "lesions": rows["lesion_id"].nunique()},
        "images": {"files": len(files), "ids": files["image_id"].nunique()},
    }
    for name in ("format", "mode", "size"):
        facts["images"][name] = whole[name].value_counts().to_dict()
    _write_report(out, facts, found, checked=list(checked))
    return found


def find_unusable_rows(data: Path) -> dict[str, str]:
    """Find the rows whose image is missing or cannot be decoded: the reason by `image_id`.

    Raises:
        InputError: as `read_dataset` and `list_images`.
    """
    (rows, _), images = read_dataset(data), list_images(data)
    there = {name: path for name, path in images.items() if name in set(rows["image_id"])}
    missing = dict.fromkeys(find_gaps(rows, images)["rows without an image"], "no image")
    facts = zip(there, inspect_images(list(there.values())), strict=True)
    return missing | {name: fact.problem for name, fact in facts if fact.problem}


def _write_report(out: Path, facts: dict[str, Any], found: Findings, *, checked: list[str]) -> None:
    metadata, images = facts["metadata"], facts["images"]
    head = (
        f"{metadata['rows']:,} rows, {images['ids']:,} images, {metadata['lesions']:,} lesions in "
        f"{facts['dataset']}"
    )
    summary = _summarise(found) if found else "no problem found"
    write_json(out / f"{REPORT_NAME}.json", facts | {"checked": checked, "found": found})
    page = f"# Check of a dataset\n\n{head}\n\n{summary}\n"
    write_atomically(out / f"{REPORT_NAME}.md", lambda part: part.write_text(page, "utf-8"))
    say(f"check: {head}")
    say(summary if found else f"check: {summary}")
    say(f"check: report in {out / REPORT_NAME}.json (every case) and .md (this summary)")


def _summarise(found: Findings) -> str:
    """Return a Markdown table: a line for each kind, with the number of cases and the first."""
    wide = max(map(len, found))
    lines = [f"| {'finding':<{wide}} | cases | first case |", f"| {'-' * wide} | ----: | --- |"]
    lines += [
        f"| {kind:<{wide}} | {len(cases):>5,} | {cases[0]} |" for kind, cases in found.items()
    ]
    return "\n".join(lines)


def _read_rows(source: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read HAM10000's metadata, whatever its encoding and its separator are, and return these too.

    Other datasets are read as every command reads them. Rows without an id are left out.

    Raises:
        InputError: it is not a table with `image_id`, `lesion_id` and the columns of `FACTS`.
    """
    csv = source / METADATA_NAME
    if not csv.is_file():
        return read_dataset(source)[0], {}
    try:
        content = csv.read_bytes()
        encoding = _find_encoding(content)
        text = content.decode(encoding)
        separator = max(",;\t|", key=text.partition("\n")[0].count)
        rows = normalise(
            pd.read_csv(io.StringIO(text), sep=separator, dtype=dict.fromkeys(SPELLINGS, str))
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{csv}: cannot be read as a table ({error})") from error
    needed = ["image_id", "lesion_id", *FACTS]
    absent = [name for name in needed if name not in rows.columns]
    if absent:
        raise InputError(
            f"{csv}: columns missing: {', '.join(absent)}; it has {', '.join(rows.columns)}"
        )
    return rows.dropna(subset=needed[:2]), {"encoding": encoding, "separator": separator}


def _find_encoding(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"


def _read_files(source: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read every image file on all cores.

    Returns:
        A row for each image file that is used: its `name` in the dataset, `image_id` and the fields
        of `ImageFacts`; and the names of image files with other endings, without masks.

    Raises:
        InputError: there is none.
    """
    names = [path.relative_to(source) for path in sorted(walk_files(source))]
    used = [path.relative_to(source) for path in list_image_paths(source)]
    others = [
        str(name)
        for name in names
        if name.suffix.lower() in set(ENDINGS) - set(list_endings(source))
        and MASKS_NAME not in name.parts
    ]
    if not used:
        raise InputError(
            f"{source}: no {' or '.join(list_endings(source))} file in it; name the folder that "
            "holds the images"
        )
    files = pd.DataFrame(map(vars, inspect_images([source / name for name in used])))
    ids = [normalise_id(name.stem) for name in used]
    return files.assign(name=list(map(str, used)), image_id=ids), others


def _find_refusal(csv: Path, form: dict[str, str]) -> list[str]:
    """Say why `read_metadata` refuses the metadata, if it does."""
    if not form:
        return []
    if form["encoding"] not in ("utf-8", "utf-8-sig") or form["separator"] != ",":
        return [
            f"{csv.name}: encoding {form['encoding']}, separator {form['separator']!r}; save it as "
            "UTF-8 with commas"
        ]
    try:
        read_metadata(csv)
    except InputError as error:
        return [str(error).removeprefix(f"{csv.parent}/")]
    return []


def _find_contradictions(rows: pd.DataFrame) -> list[str]:
    """Name each lesion that has several values in a column of `FACTS`, with these values."""
    cases = []
    for column in (name for name in FACTS if name in rows):
        values = rows.dropna(subset=column).groupby("lesion_id")[column].unique()
        cases += [
            f"{lesion}: {column} {', '.join(sorted(map(str, several)))}"
            for lesion, several in values[values.map(len) > 1].items()
        ]
    return sorted(cases)


def _find_damage(files: pd.DataFrame) -> Findings:
    problem = files["problem"]
    other = files[~problem.isin(("", "empty", "truncated"))]
    return {
        "empty files": list(files.loc[problem == "empty", "name"]),
        "truncated images": list(files.loc[problem == "truncated", "name"]),
        "files that cannot be decoded": list(other["name"] + ": " + other["problem"]),
    }


def _find_odd_images(whole: pd.DataFrame) -> Findings:
    """Find images that can be used, but are unlike HAM10000's or unlike most of this dataset."""
    is_jpeg = whole["name"].str.lower().str.endswith((".jpg", ".jpeg"))
    odd = {
        "images named .jpg in another format": ("format", is_jpeg & (whole["format"] != "JPEG")),
        "images in another mode than RGB": ("mode", whole["mode"] != "RGB"),
    }
    shares = whole["size"].value_counts(normalize=True)
    if len(shares) and shares.iloc[0] >= USUAL_SHARE:
        usual = shares.index[0]
        odd[f"images of another size than {usual}"] = ("size", whole["size"] != usual)
    return {
        kind: list(whole.loc[is_odd, "name"] + ": " + whole.loc[is_odd, column])
        for kind, (column, is_odd) in odd.items()
    }


def _find_unequal(files: pd.DataFrame) -> list[str]:
    """Name the files of each image_id that has several contents. Equal copies are no problem."""
    by_id = files.groupby("image_id")
    several = files[by_id["sha256"].transform("nunique") > 1]
    return [" and ".join(names) for _, names in several.groupby("image_id")["name"]]


def _find_duplicates(whole: pd.DataFrame, rows: pd.DataFrame) -> Findings:
    """Find images that occur under several ids: equal files, alike pictures, the known pairs."""
    by_content = whole.groupby("sha256")["image_id"].unique()
    equal = [" and ".join(ids) for ids in by_content[by_content.map(len) > 1]]
    known = read_near_duplicates()[["image_id_1", "image_id_2"]]
    known = known[known.isin(set(whole["image_id"])).all(axis=1)]
    return {
        "equal files under several image_ids": sorted(equal),
        "alike images of different lesions": _find_alike(whole, rows),
        "known near duplicates, which splits keep together": list(
            known["image_id_1"] + " and " + known["image_id_2"]
        ),
    }


def make_tree(thumbnails: Iterable[np.ndarray]) -> cKDTree:
    """Make a tree of thumbnails. Distances in it are root mean squares in grey levels."""
    points = np.stack([image.ravel() for image in thumbnails]).astype(float)
    return cKDTree(points / np.sqrt(points.shape[1]))


def _find_alike(whole: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """Find photographs that were saved again under another lesion: their thumbnails are alike."""
    different = whole.drop_duplicates("sha256")
    if different.empty:
        return []
    pairs = make_tree(different["thumbnail"]).query_pairs(ALIKE)
    ids = list(different["image_id"])
    lesion_of = dict(zip(rows["image_id"], rows["lesion_id"], strict=True))
    named = [sorted((ids[one], ids[other])) for one, other in pairs]
    return sorted(
        f"{one} and {other}"
        for one, other in named
        if lesion_of.get(one, one) != lesion_of.get(other, other)
    )
