"""The forms in which a dataset can come; each becomes the same rows and one description.

HAM10000's own metadata; any table with `image` and `diagnosis`; the ground truth of ISIC's
challenges, with one column for each class; folders named after classes: see docs/own_images.md.
After `read_dataset`, nothing depends on the form.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from skinlesion.data.ham10000 import HAM10000, METADATA_NAME, PARTS
from skinlesion.data.images import ENDINGS
from skinlesion.data.isic_csv import read_one_hot
from skinlesion.data.metadata import describe_classes, make_code, normalise, read_metadata
from skinlesion.diagnoses import DatasetInfo
from skinlesion.files import InputError, name_some, read_csv
from skinlesion.machine import warn

SAMPLE_MARKER = "SYNTHETIC_SAMPLE.json"
"""A folder with this file holds the synthetic sample, or a copy of its images."""
MASKS_NAME = "masks"
"""Folder of the sample with the outline of each lesion, a PNG named as the image, white inside."""
DESCRIPTION_NAME = "dataset.yaml"
"""File of a dataset with its `name` and a list of its `malignant` classes; it need not be there."""
TABLE_NAME = "metadata.csv"
"""The table that a copy of a dataset gets, unless it is HAM10000."""
SPLITS = ("train", "validation", "test")
SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
SPLIT_COLUMNS = ("image_id", "lesion_id", "dx", "split")
"""The columns of a split file, which is no dataset."""

ALIASES = {
    "image": "image_id",
    "diagnosis": "dx",
    "patient_id": "lesion_id",
    "site": "localization",
    # Of ISIC's own tables.
    "age_approx": "age",
    "anatom_site_general": "localization",
    "diagnosis_confirm_type": "dx_type",
}
"""Other names of columns. A column with the name itself comes first."""
OPTIONAL = ("lesion_id", "split", "age", "sex", "localization", "dx_type", "malignant")
"""Columns that a table may have beside `image_id` and `dx`. Others are not used."""
MISSING = ("na", "n/a", "nan", "null", "none")
"""How R, pandas and others write that a value is missing."""
TRUE, FALSE = ("true", "1", "1.0", "yes", "malignant"), ("false", "0", "0.0", "no", "benign")


def is_sample(folder: Path) -> bool:
    """Return whether the folder holds the synthetic sample instead of photographs."""
    return (folder / SAMPLE_MARKER).is_file()


def is_dataset(folder: Path) -> bool:
    """Return whether a folder holds a dataset in one of the forms."""
    known = (folder / METADATA_NAME).is_file()
    return known or bool(_find_tables(folder)) or bool(_find_class_folders(folder))


def list_endings(folder: Path) -> tuple[str, ...]:
    """List the endings of images that are used; HAM10000 has only `.jpg`."""
    return (".jpg",) if (folder / METADATA_NAME).is_file() else ENDINGS


def read_dataset(folder: Path) -> tuple[pd.DataFrame, DatasetInfo]:
    """Read the rows of a dataset and what else is known about it, without looking into images.

    Returns:
        The rows, with `image_id`, `lesion_id`, `dx` (codes) and, if known, `age` (years), `sex`,
        `localization`, `dx_type`, and `given_split`, the dataset's own; and the description. Images
        without a lesion id are lesions of their own, called as the image.

    Raises:
        InputError: there is no dataset, or its table cannot be used; says where and why.
    """
    if (folder / METADATA_NAME).is_file():
        return read_metadata(folder / METADATA_NAME), describe_dataset(folder)
    tables = _find_tables(folder)
    place, rows = _join_tables(tables, folder) if tables else (folder, _list_class_folders(folder))
    rows = _check_rows(rows.fillna(""), place)
    named, malignant = _read_description(folder)
    if malignant is None and "malignant" in rows:
        malignant = _judge_classes(rows, place)
    info = describe_classes(
        rows["dx"],
        place,
        source=named or folder.resolve().name,
        malignant=malignant,
        synthetic=is_sample(folder),
    )
    return _spell(rows), info


def read_rows(path: Path) -> pd.DataFrame:
    """Read the rows of one table, as `read_dataset` does.

    Raises:
        InputError: it has no columns `image` and `diagnosis`, or cannot be used.
    """
    return _spell(_check_rows(_join_tables([path], path)[1].fillna(""), path))


def _spell(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.assign(dx=rows["dx"].map(make_code)).drop(columns="malignant", errors="ignore")
    return normalise(rows.rename(columns={"split": "given_split"}))


def describe_dataset(folder: Path) -> DatasetInfo:
    """Return what is known about a dataset beside its rows: see `read_dataset`."""
    if (folder / METADATA_NAME).is_file():
        return HAM10000.model_copy(update={"synthetic": is_sample(folder)})
    return read_dataset(folder)[1]


def count_classes(folder: Path) -> int:
    """Return the number of classes of a dataset."""
    return len(describe_dataset(folder).labels)


def is_by_image(rows: pd.DataFrame) -> bool:
    """Return whether rows have no lesion ids of their own, so that a split is by image."""
    return bool((rows["lesion_id"].str.upper() == rows["image_id"].str.upper()).all())


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, also behind links; `InputError` if a folder is closed.

    What macOS adds to archives (`__MACOSX` and `._*`) is left out.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for parent, inner, names in os.walk(folder, onerror=refuse, followlinks=True):
        inner[:] = [name for name in inner if name != "__MACOSX"]
        yield from (Path(parent) / name for name in names if not name.startswith("._"))


def _find_tables(folder: Path) -> list[Path]:
    """The CSV files with a column for images, in the folder or one below it."""
    found = []
    for path in sorted([*folder.glob("*.csv"), *folder.glob("[!.]*/*.csv")]):
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                columns = [name.strip() for name in next(csv.reader(file), [])]
        except (OSError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read as a table ({error})") from error
        if {"image", "image_id"} & set(map(str.lower, columns)) and columns != [*SPLIT_COLUMNS]:
            found.append(path)
    return found


def _join_tables(tables: list[Path], place: Path) -> tuple[Path, pd.DataFrame]:
    """Read the one table with diagnoses, and add the columns that the other tables have."""
    main, others = {}, []
    for path in tables:
        table = read_csv(path, "a table of images", dtype=str, keep_default_na=False)
        table = table.rename(columns=lambda name: name.strip())
        classes = [name for name in table.columns if name.lower() not in ("image", "image_id")]
        is_known = {"dx", *ALIASES, *OPTIONAL} & {name.lower() for name in classes}
        if not is_known - {"malignant"} and _holds_numbers(table[classes]):
            names, labels = read_one_hot(path, classes)
            main[path] = pd.DataFrame({"image_id": names, "dx": np.array(classes)[labels]})
            continue
        table = table.rename(columns=str.lower)
        aliases = {old: new for old, new in ALIASES.items() if new not in table.columns}
        table = table.rename(columns=aliases)
        table = table.loc[:, ~table.columns.duplicated()]
        if "dx" in table.columns:
            main[path] = table
        else:
            others.append(table)
    if len(main) != 1:
        raise InputError(
            f"{place}: {len(main)} tables with diagnoses (of {name_some(list(map(str, tables)))}); "
            "one is needed, with the columns image and diagnosis, or with a column for each class"
        )
    ((place, rows),) = main.items()
    rows = rows[[name for name in ("image_id", "dx", *OPTIONAL) if name in rows]]
    rows = rows.assign(image_id=_spell_ids(rows["image_id"]))
    return place, _add_columns(rows, others, place) if others else rows


def _add_columns(rows: pd.DataFrame, others: list[pd.DataFrame], place: Path) -> pd.DataFrame:
    """Add the columns that the other tables have; refuse two values for one image."""
    other = pd.concat(others, ignore_index=True)
    added = [name for name in OPTIONAL if name in other and name not in rows]
    other = other[added].replace("", None).assign(image_id=_spell_ids(other["image_id"]))
    values = other.groupby("image_id")[added]
    counts = values.nunique()
    named = [f"{name} of {image}" for name in added for image in counts.index[counts[name] > 1]]
    if named:
        raise InputError(f"{place}: the tables beside it give two values: {name_some(named)}")
    return rows.merge(values.first().reset_index(), on="image_id", how="left")


def _holds_numbers(columns: pd.DataFrame) -> bool:
    """Whether these are the columns of classes: two or more, and each cell a number."""
    numbers = columns.apply(pd.to_numeric, errors="coerce")
    return columns.shape[1] > 1 and bool(numbers.notna().all(axis=None))


def _spell_ids(names: pd.Series) -> pd.Series:
    """Ids without folders and endings."""
    bare = names.str.replace(r"^.*[/\\]", "", regex=True)
    return normalise(pd.DataFrame({"image_id": bare}))["image_id"]


def _find_class_folders(folder: Path) -> dict[Path, str]:
    """The folders named after classes, with the part of the split that they lie in, if any."""
    found: dict[Path, str] = {}
    inner = [path for path in sorted(folder.glob("[!.]*/")) if path.name != MASKS_NAME]
    inner = [path for path in inner if any(_list_images_in(path))]
    parts = {path: SYNONYMS.get(path.name.lower(), path.name.lower()) for path in inner}
    others = [path.name for path, part in parts.items() if part not in SPLITS]
    if len(others) < len(inner) and others:
        raise InputError(
            f"{folder}: {name_some(others)} lies beside folders that are named after parts of a "
            "split; move it elsewhere"
        )
    if inner and not others:
        found = {below: parts[path] for path in inner for below in sorted(path.glob("[!.]*/"))}
    elif not {path.name.lower() for path in inner} & {name.lower() for name in PARTS}:
        found = dict.fromkeys(inner, "")
    found = {path: part for path, part in found.items() if any(_list_images_in(path))}
    return found if len({path.name for path in found}) > 1 else {}


def _list_images_in(folder: Path) -> Iterator[Path]:
    return (path for path in walk_files(folder) if path.suffix.lower() in ENDINGS)


def _list_class_folders(folder: Path) -> pd.DataFrame:
    found = _find_class_folders(folder)
    if not found:
        raise InputError(f"{folder}: no dataset in it")
    rows = pd.DataFrame(
        [
            (path.stem, place.name, part, str(path.relative_to(folder)))
            for place, part in found.items()
            for path in sorted(_list_images_in(place))
        ],
        columns=["image_id", "dx", "split", "file"],
    )
    rows["image_id"] = _spell_ids(rows["image_id"])
    doubled = rows[rows["image_id"].duplicated(keep=False)].sort_values("image_id")
    if len(doubled):
        named = name_some(list(doubled["file"]))
        raise InputError(
            f"{folder}: files of one name in different folders: {named}; give each its own name"
        )
    return rows.drop(columns=["file"] if rows["split"].all() else ["file", "split"])


def _check_rows(rows: pd.DataFrame, place: Path) -> pd.DataFrame:
    """Refuse rows without id or diagnosis and images that are there twice; fill in lesion ids."""
    for column in ("image_id", "dx"):
        empty = [str(row + 2) for row in rows.index[rows[column].str.strip() == ""]]
        if empty:
            raise InputError(f"{place}: {column} is empty in line {name_some(empty)}")
    doubled = sorted(set(rows.loc[rows["image_id"].duplicated(), "image_id"]))
    if doubled:
        raise InputError(f"{place}: images given more than once: {name_some(doubled)}")
    for name in filter(rows.columns.__contains__, OPTIONAL):
        is_missing = rows[name].str.strip().str.lower().isin(MISSING)
        rows = rows.assign(**{name: rows[name].mask(is_missing, "")})
    ids = rows.get("lesion_id", pd.Series("", index=rows.index)).str.strip()
    if 0 < (ids == "").sum() < len(rows):
        warn(f"{place}: {(ids == '').sum():,} images without lesion_id count as one lesion each")
    rows = rows.assign(lesion_id=ids.where(ids != "", rows["image_id"]))
    if "split" in rows:
        split = rows["split"].str.strip().str.lower().replace(SYNONYMS)
        unknown = sorted(set(split) - set(SPLITS))
        if unknown:
            named = name_some([name or "(empty)" for name in unknown])
            raise InputError(f"{place}: unknown split: {named}; use {', '.join(SPLITS)}")
        rows = rows.assign(split=split)
    if "age" in rows:
        rows = rows.assign(age=pd.to_numeric(rows["age"], errors="coerce"))
    text = [name for name in ("sex", "localization", "dx_type") if name in rows]
    return rows.assign(**{name: rows[name].replace("", None) for name in text})


def _judge_classes(rows: pd.DataFrame, place: Path) -> list[str]:
    """The malignant classes, from the column `malignant`."""
    said = rows["malignant"].str.strip().str.lower()
    by_class = said.isin(TRUE).groupby(rows["dx"]).mean()
    unknown = sorted(set(said) - {*TRUE, *FALSE})
    mixed = list(by_class.index[(by_class > 0) & (by_class < 1)])
    if unknown or mixed:
        problem = f"unknown values {name_some(unknown)}" if unknown else f"differs in {mixed[0]}"
        raise InputError(f"{place}: malignant: {problem}; give each class true or false")
    return list(by_class.index[by_class == 1])


def _read_description(folder: Path) -> tuple[str | None, list[str] | None]:
    """The name and the malignant classes that `dataset.yaml` gives."""
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        return None, None
    try:
        values: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(values, dict) or not set(values) <= {"name", "malignant"}:
        raise InputError(f"{path}: holds `name` and `malignant`, and nothing else")
    malignant = values.get("malignant")
    if malignant is not None and not isinstance(malignant, list):
        raise InputError(f"{path}: malignant: must be a list of classes, such as [Melanoma]")
    name = values.get("name")
    return (None if name is None else str(name)), malignant and list(map(str, malignant))
