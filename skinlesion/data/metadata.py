"""The metadata table: checked, and joined to image paths and integer labels."""

import hashlib
import warnings
from pathlib import Path

import pandas as pd

from skinlesion.data.ham10000 import METADATA_NAME, list_images
from skinlesion.diagnoses import CLASS_CODES, LABEL_OF
from skinlesion.files import InputError, name_some

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")


def load_metadata(data: Path) -> pd.DataFrame:
    """Read `HAM10000_metadata.csv` and join each row to its image.

    Args:
        data: folder that holds the CSV and, somewhere below it, the images.

    Returns:
        The rows in the order of the file, with the dataset's own columns and two more: `label`
        (int, 0 to 6, in the order of `labels.DIAGNOSES`) and `path` (of the image file).

    Raises:
        InputError: missing columns, an empty cell where none may be, an unknown `dx`, an
            `image_id` given twice, or a row without image, each by name.

    Warns:
        UserWarning: images without a row, by name; they are not used.
    """
    table = read_metadata(data / METADATA_NAME)
    images = list_images(data)
    missing = [image_id for image_id in table["image_id"] if image_id not in images]
    if missing:
        raise InputError(
            f"{data}: {len(missing):,} of {len(table):,} rows of {METADATA_NAME} have no image: "
            f"{name_some(missing)}; complete the dataset (both HAM10000_images_part_1 and "
            "_part_2), or run notebook 1 again, or remove these rows"
        )
    extra = sorted(set(images) - set(table["image_id"]))
    if extra:
        warnings.warn(
            f"{data}: {len(extra):,} images have no row in {METADATA_NAME} and are not used: "
            f"{name_some(extra)}",
            stacklevel=2,
        )
    return table.assign(
        label=table["dx"].map(LABEL_OF).astype(int), path=table["image_id"].map(images)
    )


def read_metadata(csv: Path) -> pd.DataFrame:
    """Read and check the metadata file alone, without looking for images.

    Raises:
        InputError: as for `load_metadata`, but for rows without image.
    """
    try:
        table = pd.read_csv(csv, dtype=dict.fromkeys(("lesion_id", "image_id", "dx"), str))
    except (OSError, ValueError) as error:
        raise InputError(f"{csv}: cannot be read as a CSV file ({error})") from error
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise InputError(
            f"{csv}: columns missing: {', '.join(absent)}; it has {', '.join(table.columns)}"
        )
    for column in ("lesion_id", "image_id", "dx"):
        empty = [str(row + 2) for row in table.index[table[column].isna()]]
        if empty:
            raise InputError(f"{csv}: {column} is empty in line {name_some(empty)}")
    unknown = sorted(set(table["dx"]) - set(CLASS_CODES))
    if unknown:
        raise InputError(
            f"{csv}: unknown dx: {name_some(unknown)}; known are {', '.join(CLASS_CODES)}"
        )
    doubled = sorted(set(table.loc[table["image_id"].duplicated(), "image_id"]))
    if doubled:
        raise InputError(f"{csv}: image_id given more than once: {name_some(doubled)}")
    return table


def dataset_fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 over the sorted (image_id, lesion_id, dx, file size): the same data, the same value.

    File sizes tell the original images from a reduced copy without reading them all.
    """
    rows = sorted(
        f"{image_id},{lesion_id},{dx},{path.stat().st_size}"
        for image_id, lesion_id, dx, path in table[["image_id", "lesion_id", "dx", "path"]].values
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
