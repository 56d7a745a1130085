"""Prediction and truth files in the format of ISIC 2018 Task 3."""

from pathlib import Path

import numpy as np
import pandas as pd

from skinlesion.data.metadata import normalise_id
from skinlesion.diagnoses import CLASS_CODES, ISIC_COLUMNS
from skinlesion.files import InputError, name_some, read_csv, write_csv

_COLUMNS = [code.upper() for code in CLASS_CODES]


def write_isic(path: Path, image_ids: list[str], y_prob: np.ndarray) -> Path:
    """Write probabilities with the header `image,MEL,NV,BCC,AKIEC,BKL,DF,VASC`.

    Args:
        path: CSV file to write.
        image_ids: names without `.jpg`.
        y_prob: float (n, 7), values 0 to 1, columns in the order of `DIAGNOSES`.

    Returns:
        `path`.
    """
    columns = dict(zip(_COLUMNS, np.asarray(y_prob, np.float64).T, strict=True))
    table = pd.DataFrame({"image": image_ids} | {name: columns[name] for name in ISIC_COLUMNS})
    return write_csv(path, table)


def read_isic(path: Path) -> tuple[list[str], np.ndarray]:
    """Read a prediction file, written by `write_isic` or by another program.

    Returns:
        The image ids, and float64 (n, 7), values 0 to 1, columns in the order of `DIAGNOSES`.

    Raises:
        InputError: the file cannot be read, a column is missing or unknown, an image is repeated,
            a value is not a number from 0 to 1, or all values of an image are 0; each by name.
    """
    names, values = _read(path, "a predictions file")
    empty = values.sum(axis=1) == 0
    if empty.any():
        bad = [name for name, is_bad in zip(names, empty, strict=True) if is_bad]
        raise InputError(f"{path}: no class has a value above 0 for {name_some(bad)}")
    return names, values


def read_truth(path: Path) -> tuple[list[str], np.ndarray]:
    """Read a truth file: the header of a prediction file, and exactly one 1.0 in each row.

    Returns:
        The image ids, and int (n,), labels 0 to 6.

    Raises:
        InputError: as `read_isic`, or a row without exactly one 1.0, by name.
    """
    names, values = _read(path, "a truth file")
    wrong = ~(np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1))
    if wrong.any():
        bad = [name for name, is_bad in zip(names, wrong, strict=True) if is_bad]
        raise InputError(f"{path}: rows need one 1.0 and otherwise 0.0: {name_some(bad)}")
    return names, values.argmax(axis=1)


def read_isic_for(path: Path, image_ids: list[str]) -> np.ndarray:
    """Read predictions in the order of `image_ids`. The file must hold exactly these images.

    Returns:
        float64 (n, 7), as `read_isic`.

    Raises:
        InputError: as `read_isic`, or missing or extra images, by name.
    """
    names, y_prob = read_isic(path)
    missing, extra = sorted(set(image_ids) - set(names)), sorted(set(names) - set(image_ids))
    if missing or extra:
        raise InputError(
            f"{path}: does not hold the images to evaluate: missing "
            f"{name_some(missing) or 'none'}; extra {name_some(extra) or 'none'}"
        )
    return pd.DataFrame(y_prob, index=names).loc[image_ids].to_numpy()


def _read(path: Path, kind: str) -> tuple[list[str], np.ndarray]:
    table = read_csv(path, kind, dtype={"image": str})
    absent = [name for name in ("image", *ISIC_COLUMNS) if name not in table.columns]
    unknown = [str(name) for name in table.columns if name not in ("image", *ISIC_COLUMNS)]
    if absent or unknown:
        raise InputError(
            f"{path}: columns missing: {', '.join(absent) or 'none'}; unknown: "
            f"{', '.join(unknown) or 'none'}; the header must be image,{','.join(ISIC_COLUMNS)}"
        )
    unnamed = [str(row + 2) for row in table.index[table["image"].isna()]]
    if unnamed:
        raise InputError(f"{path}: image is empty in line {name_some(unnamed)}")
    names = table["image"].map(normalise_id)
    doubled = sorted(set(names[names.duplicated()]))
    if doubled:
        raise InputError(f"{path}: image given more than once: {name_some(doubled)}")
    values = table[_COLUMNS].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0) & (values <= 1)).all(axis=1)
    if wrong.any():
        bad = names[wrong].tolist()
        raise InputError(f"{path}: values are not numbers from 0 to 1 for {name_some(bad)}")
    return names.tolist(), values
