"""The metadata file of a dataset: read, normalised and checked, without looking for images."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from skinlesion.diagnoses import CLASS_CODES
from skinlesion.files import InputError, name_some, read_csv, stat_file
from skinlesion.machine import warn

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
"""The columns of the metadata that must be present. Others are kept and not used."""

REQUIRED = ("lesion_id", "image_id", "dx")
"""The columns in which every cell must be filled."""


def normalise_id(image_id: str) -> str:
    """Remove blanks and `.jpg`, and write `ISIC_` in capital letters.

    The case of other ids is kept, because it may tell files apart.
    """
    image_id = re.sub(r"\.jpg$", "", image_id.strip(), flags=re.IGNORECASE)
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
    unknown = sorted(set(table["dx"]) - set(CLASS_CODES))
    if unknown:
        raise InputError(
            f"{csv}: unknown dx: {name_some(unknown)}; known are {', '.join(CLASS_CODES)}"
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
