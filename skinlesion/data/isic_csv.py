"""Prediction and truth files in the format of ISIC 2018 Task 3."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from skinlesion.data.metadata import describe_classes, normalise_id
from skinlesion.diagnoses import DatasetInfo
from skinlesion.files import InputError, name_some, read_csv, write_csv


def write_isic(path: Path, image_ids: list[str], y_prob: np.ndarray, info: DatasetInfo) -> Path:
    """Write probabilities with the header `image` and `info.columns`.

    Args:
        path: CSV file to write.
        image_ids: names without `.jpg`.
        y_prob: float (n, classes), values 0 to 1.
        info: of the dataset: for HAM10000, the header is `image,MEL,NV,BCC,AKIEC,BKL,DF,VASC`.

    Returns:
        `path`.
    """
    of_label = dict(zip(_columns(info), np.asarray(y_prob, np.float64).T, strict=True))
    table = pd.DataFrame({"image": image_ids} | {name: of_label[name] for name in info.columns})
    return write_csv(path, table)


def read_isic(path: Path, info: DatasetInfo) -> tuple[list[str], np.ndarray]:
    """Read a prediction file, written by `write_isic` or by another program.

    Returns:
        The image ids, and float64 (n, classes), values 0 to 1, columns as `info.labels`.

    Raises:
        InputError: the file cannot be read, a column is missing or unknown, an image is repeated,
            a value is not a number from 0 to 1, or all values of an image are 0; each by name.
    """
    names, values = _read(path, "a predictions file", _columns(info))
    empty = values.sum(axis=1) == 0
    if empty.any():
        bad = [name for name, is_bad in zip(names, empty, strict=True) if is_bad]
        raise InputError(f"{path}: no class has a value above 0 for {name_some(bad)}")
    return names, values


def read_truth(path: Path, info: DatasetInfo) -> tuple[list[str], np.ndarray]:
    """Read a truth file: the header of a prediction file, and exactly one 1.0 in each row.

    Returns:
        The image ids, and int (n,), labels from 0.

    Raises:
        InputError: as `read_isic`, or a row without exactly one 1.0, by name.
    """
    return read_one_hot(path, _columns(info))


def read_one_hot(path: Path, columns: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Read a truth file with columns of any names, one for each class: see `read_truth`."""
    names, values = _read(path, "a truth file", columns)
    wrong = ~(np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1))
    if wrong.any():
        bad = [name for name, is_bad in zip(names, wrong, strict=True) if is_bad]
        raise InputError(f"{path}: rows need one 1.0 and otherwise 0.0: {name_some(bad)}")
    return names, values.argmax(axis=1)


def read_isic_for(path: Path, image_ids: list[str], info: DatasetInfo) -> np.ndarray:
    """Read predictions in the order of `image_ids`. The file must hold exactly these images.

    Returns:
        float64 (n, classes), as `read_isic`.

    Raises:
        InputError: as `read_isic`, or missing or extra images, by name.
    """
    names, y_prob = read_isic(path, info)
    missing, extra = sorted(set(image_ids) - set(names)), sorted(set(names) - set(image_ids))
    if missing or extra:
        raise InputError(
            f"{path}: does not hold the images to evaluate: missing "
            f"{name_some(missing) or 'none'}; extra {name_some(extra) or 'none'}"
        )
    return pd.DataFrame(y_prob, index=names).loc[image_ids].to_numpy()


def describe_columns(path: Path) -> DatasetInfo:
    """Describe the classes of a truth file by its header, for a file without a dataset.

    Raises:
        InputError: the file cannot be read, or has too few or too many columns.
    """
    table = read_csv(path, "a truth file", dtype=str)
    return describe_classes(
        [name for name in table.columns if name != "image"], path, source=path.stem
    )


def _columns(info: DatasetInfo) -> list[str]:
    """The columns in the order of the labels."""
    return [label.upper() for label in info.labels]


def _read(path: Path, kind: str, columns: Sequence[str]) -> tuple[list[str], np.ndarray]:
    table = read_csv(path, kind, dtype={"image": str})
    absent = [name for name in ("image", *columns) if name not in table.columns]
    unknown = [str(name) for name in table.columns if name not in ("image", *columns)]
    if absent or unknown:
        raise InputError(
            f"{path}: columns missing: {', '.join(absent) or 'none'}; unknown: "
            f"{', '.join(unknown) or 'none'}; the header must be image,{','.join(columns)}"
        )
    unnamed = [str(row + 2) for row in table.index[table["image"].isna()]]
    if unnamed:
        raise InputError(f"{path}: image is empty in line {name_some(unnamed)}")
    names = table["image"].map(normalise_id)
    doubled = sorted(set(names[names.duplicated()]))
    if doubled:
        raise InputError(f"{path}: image given more than once: {name_some(doubled)}")
    values = table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0) & (values <= 1)).all(axis=1)
    if wrong.any():
        bad = names[wrong].tolist()
        raise InputError(f"{path}: values are not numbers from 0 to 1 for {name_some(bad)}")
    return names.tolist(), values
