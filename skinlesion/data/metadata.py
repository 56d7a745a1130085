"""The metadata file of a dataset: read, normalised and checked, without looking for images."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import pandas as pd

from skinlesion.data.ham10000 import COLUMNS, HAM10000
from skinlesion.data.images import ENDINGS
from skinlesion.diagnoses import FEWEST_CLASSES, MOST_CLASSES, DatasetInfo
from skinlesion.files import InputError, name_some, read_csv, stat_file
from skinlesion.machine import warn

REQUIRED = ("lesion_id", "image_id", "dx")
"""The columns in which every cell must be filled."""


_ENDING = rf"({'|'.join(map(re.escape, ENDINGS))})$"

RESERVED = ("", "all", "overall", "image", "nan", "null")
"""Codes that no class can have: tables use them for something else."""


def make_code(name: str) -> str:
    """Make the code of a class from its name: `Basal cell carcinoma` is `basal_cell_carcinoma`.

    Codes name columns and stand in lists that are separated by blanks.
    """
    text = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"\W+", "_", text).strip("_")


def describe_classes(
    names: Iterable[str],
    place: Path,
    *,
    source: str,
    malignant: Collection[str] | None = None,
    synthetic: bool = False,
) -> DatasetInfo:
    """Describe a dataset by the names of its classes.

    HAM10000's classes, by their codes, get HAM10000's names and malignancy.

    Args:
        names: of the classes, also several times.
        place: where they stand, for messages.
        source: name of the dataset.
        malignant: names of the malignant ones; None: not known.
        synthetic: whether a program has drawn the images.

    Raises:
        InputError: names that differ in case, blanks or signs only, a name that cannot be used, too
            few or too many classes, or a malignant class that is not there; each by name.
    """
    codes = _name_codes(names, place)
    unknown = sorted(name for name in malignant or () if make_code(name) not in codes)
    if unknown:
        raise InputError(
            f"{place}: malignant classes that are not there: {name_some(unknown)}; its classes are "
            f"{name_some(list(codes.values()), shown=MOST_CLASSES)}"
        )
    chosen = set(map(make_code, malignant or ()))
    known = {one.code for one in HAM10000.diagnoses if one.malignant}
    if set(codes) == set(HAM10000.labels) and (malignant is None or chosen == known):
        return HAM10000.model_copy(update={"source": source, "synthetic": synthetic})
    if "malignant" in codes and chosen > {"malignant"}:
        raise InputError(f"{place}: the class malignant cannot be one of several malignant classes")
    labels = tuple(sorted(codes))
    return DatasetInfo(
        source=source,
        labels=labels,
        names=tuple(codes[label] for label in labels),
        malignant=None if malignant is None else tuple(label in chosen for label in labels),
        focus=None,
        isic_columns=None,
        synthetic=synthetic,
    )


def _name_codes(names: Iterable[str], place: Path) -> dict[str, str]:
    """The code of each class and its name; refuses what cannot be told apart."""
    codes: dict[str, list[str]] = {}
    for name in sorted({name.strip() for name in names}):
        codes.setdefault(make_code(name), []).append(name)
    alike = [" and ".join(several) for several in codes.values() if len(several) > 1]
    if alike:
        raise InputError(
            f"{place}: classes whose names differ only in case, blanks or signs: "
            f"{name_some(alike)}; give each class one name"
        )
    bad = [codes[code][0] for code in RESERVED if code in codes]
    if bad:
        raise InputError(f"{place}: no class can be called {name_some(bad)}; rename it")
    if not FEWEST_CLASSES <= len(codes) <= MOST_CLASSES:
        raise InputError(
            f"{place}: {len(codes)} classes ({name_some(list(codes))}); from {FEWEST_CLASSES} to "
            f"{MOST_CLASSES} are possible"
        )
    return {code: name for code, (name,) in codes.items()}


def normalise_id(image_id: str) -> str:
    """Remove blanks and the ending of an image, and write `ISIC_` in capital letters.

    The case of other ids is kept, because it may tell files apart.
    """
    image_id = re.sub(_ENDING, "", image_id.strip(), flags=re.IGNORECASE)
    return re.sub(r"^isic_", "ISIC_", image_id, flags=re.IGNORECASE)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "lesion_id": lambda text: text.strip().upper(),
    "image_id": normalise_id,
    "dx": lambda text: text.strip().lower(),
    "sex": lambda text: text.strip().lower(),
}
"""How the values of a column are spelled. Otherwise `HAM_0000118 ` would be another lesion."""


def normalise(table: pd.DataFrame) -> pd.DataFrame:
    """Spell the values of a table as `SPELLINGS` says, in those of its columns that it has."""
    columns = [column for column in SPELLINGS if column in table.columns]
    return table.assign(
        **{column: table[column].map(SPELLINGS[column], na_action="ignore") for column in columns}
    )


def read_metadata(csv: Path) -> pd.DataFrame:
    """Read and check the metadata file, without looking for images.

    Values are spelled as `SPELLINGS` says; a warning counts those that were spelled otherwise.

    Returns:
        The rows in the order of the file, with at least the columns of `COLUMNS`.

    Raises:
        InputError: the file cannot be read or is cut off, a column is missing, a cell of
            `REQUIRED` is empty, a `dx` is unknown, an `image_id` is repeated, or two spellings of
            a lesion have different diagnoses or sexes; each by name.
    """
    raw = read_csv(csv, "a CSV file", dtype=dict.fromkeys(SPELLINGS, str))
    absent = [column for column in COLUMNS if column not in raw.columns]
    if absent:
        raise InputError(
            f"{csv}: columns missing: {', '.join(absent)}; it has {', '.join(raw.columns)}"
        )
    table = normalise(raw)
    for column in REQUIRED:
        empty = [str(row + 2) for row in table.index[table[column].fillna("") == ""]]
        if empty:
            raise InputError(f"{csv}: {column} is empty in line {name_some(empty)}")
    unknown = sorted(set(table["dx"]) - set(HAM10000.labels))
    if unknown:
        raise InputError(
            f"{csv}: unknown dx: {name_some(unknown)}; known are {', '.join(HAM10000.labels)}"
        )
    repeated = sorted(set(table.loc[table["image_id"].duplicated(), "image_id"]))
    if repeated:
        raise InputError(f"{csv}: image_id given more than once: {name_some(repeated)}")
    _require_one_lesion(csv, raw, table)
    columns = list(SPELLINGS)
    changed = int((raw[columns].fillna("") != table[columns].fillna("")).to_numpy().sum())
    if changed:
        warn(
            f"{csv.resolve()}: {changed:,} values of {', '.join(columns)} were corrected "
            "(blanks, upper and lower case)"
        )
    return table


def dataset_fingerprint(table: pd.DataFrame) -> str:
    """Return a SHA-256 that is the same for the same data, whatever the order of rows.

    It covers `image_id`, `lesion_id`, `dx` and the size of each file. Sizes distinguish the
    original images from a reduced copy, without reading them.

    Args:
        table: from `load_metadata`.
    """
    rows = sorted(
        f"{image_id},{lesion_id},{dx},{stat_file(path).st_size}"
        for image_id, lesion_id, dx, path in table[["image_id", "lesion_id", "dx", "path"]].values
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _require_one_lesion(csv: Path, raw: pd.DataFrame, table: pd.DataFrame) -> None:
    """Refuse lesions whose ids became equal, but whose diagnosis or sex is not."""
    by_lesion = table.assign(spelling=raw["lesion_id"]).groupby("lesion_id")
    counts = by_lesion[["spelling", "dx", "sex"]].nunique()
    unequal = (counts["spelling"] > 1) & ((counts["dx"] > 1) | (counts["sex"] > 1))
    if unequal.any():
        raise InputError(
            f"{csv}: lesion ids that differ only in blanks or case have different dx or sex: "
            f"{name_some(list(counts.index[unequal]))}; correct the ids or the values"
        )
