"""More images for training only, from other datasets."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from skinlesion.data.check import ALIKE, make_tree
from skinlesion.data.dataset import load_metadata
from skinlesion.data.forms import describe_dataset
from skinlesion.data.images import inspect_images
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.diagnoses import DatasetInfo
from skinlesion.files import InputError, name_some
from skinlesion.machine import say


def load_also(folders: Sequence[Path], info: DatasetInfo) -> pd.DataFrame:
    """Load the images of other datasets, with the labels that their classes have in this one.

    Args:
        folders: of the other datasets; their classes are matched by code.
        info: of the dataset that they are added to.

    Returns:
        The columns of `load_metadata`; without rows if there is no folder.

    Raises:
        InputError: as `load_metadata`, or a class that the dataset does not have, by name.
    """
    tables = [pd.DataFrame(columns=["image_id", "label", "path"])]
    for folder in folders:
        table = load_metadata(folder)
        unknown = sorted(set(describe_dataset(folder).labels) - set(info.labels))
        if unknown:
            raise InputError(
                f"{folder}: has classes that {info.source} does not have: {name_some(unknown)}; "
                f"leave them out, or rename them; its classes are {', '.join(info.labels)}"
            )
        tables.append(table.assign(label=table["dx"].map(info.label_of).astype(int)))
        say(f"train: {len(table):,} images of {folder} are added to training")
    return pd.concat(tables, ignore_index=True)


def require_unseen(also: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Check that none of the added images is in validation or test, nor anything alike.

    An image is found by its id, as an equal file, as the same photograph saved again (see
    `check.ALIKE`), and by the list of near duplicates of HAM10000.

    Args:
        also: from `load_also`.
        rows: the images of the dataset, with `image_id`, `path` and `split`.

    Raises:
        InputError: some were found; names them.
    """
    judged = rows[rows["split"] != "train"]
    known = read_near_duplicates()[["image_id_1", "image_id_2"]].to_numpy()
    pairs = [*known, *known[:, ::-1], *((name, name) for name in also["image_id"])]
    both = pd.DataFrame(pairs, columns=["also", "judged"])
    both = both[both["also"].isin(also["image_id"]) & both["judged"].isin(judged["image_id"])]
    found = {(one, other) for one, other in both.to_numpy()}
    sides = [_keep_readable(table) for table in (also, judged)]
    if all(map(len, sides)):
        ones, others = (make_tree(side["thumbnail"]) for side in sides)
        ids = [list(side["image_id"]) for side in sides]
        for one, near in enumerate(ones.query_ball_tree(others, ALIKE)):
            found |= {(ids[0][one], ids[1][other]) for other in near}
    if found:
        named = name_some(sorted(f"{one} as {other}" for one, other in found))
        raise InputError(
            f"{len(found):,} images that are added to training are in validation or test: {named}; "
            "take them out of the added dataset"
        )


def _keep_readable(table: pd.DataFrame) -> pd.DataFrame:
    """Images with their `thumbnail`, without those that are no images; `fit` refuses these."""
    thumbnails = [facts.thumbnail for facts in inspect_images(list(table["path"]))]
    return table.assign(thumbnail=thumbnails).dropna(subset="thumbnail")
