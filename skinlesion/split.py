"""Which image is for training, for validation and for the test."""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from sklearn.model_selection import StratifiedKFold, train_test_split

from skinlesion.config import Split
from skinlesion.errors import InputError, name_some

SPLITS = ("train", "validation", "test")
COLUMNS = ("image_id", "lesion_id", "dx", "split")
TEST_SHARE = 0.15
VALIDATION_SHARE = 0.15
ORIGINAL_SHARE = 0.17
ORIGINAL_SEED = 42


def make_split(
    table: pd.DataFrame,
    kind: Split = "grouped",
    *,
    seed: int = 42,
    fold: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """Assign every image to train, validation or test.

    Args:
        table: metadata with `image_id`, `lesion_id`, `dx`.
        kind: `grouped` draws lesions, 70 / 15 / 15, stratified by diagnosis, so that no lesion is
            in two splits; it depends on the seed but not on the order of rows. `original` draws
            images in file order exactly as the original notebook did: it leaks lesions.
        seed: for `grouped`.
        fold: (K, N), numbered from 1, for `grouped`: fold K of N is test, validation comes from
            the rest.

    Returns:
        A table with the columns of `COLUMNS`, rows as in `table`.

    Raises:
        InputError: too few lesions of a class, or a fold that does not exist.
    """
    if kind == "original":
        if fold is not None:
            raise InputError("the original split has no folds: leave out --fold, or use 'default'")
        assigned = _original_split(table)
    else:
        assigned = _grouped_split(table, seed=seed, fold=fold)
    return table[["image_id", "lesion_id", "dx"]].assign(split=assigned)


def read_split(csv: Path) -> pd.DataFrame:
    """Read a split file.

    Returns:
        A table with the columns of `COLUMNS`.

    Raises:
        InputError: not readable, missing columns, an unknown split, an image given twice, or a
            split without images, by name.
    """
    try:
        split = pd.read_csv(csv, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"{csv}: cannot be read as a split file ({error})") from error
    absent = [column for column in COLUMNS if column not in split.columns]
    if absent:
        raise InputError(f"{csv}: columns missing: {', '.join(absent)}")
    unknown = sorted(set(split["split"].fillna("(empty)")) - set(SPLITS))
    if unknown:
        raise InputError(f"{csv}: unknown split: {name_some(unknown)}; use {', '.join(SPLITS)}")
    doubled = sorted(set(split.loc[split["image_id"].duplicated(), "image_id"]))
    if doubled:
        raise InputError(f"{csv}: image_id given more than once: {name_some(doubled)}")
    empty = [name for name in SPLITS if not (split["split"] == name).any()]
    if empty:
        raise InputError(f"{csv}: no image in {', '.join(empty)}")
    return split[list(COLUMNS)]


def join_split(table: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Add the column `split` to the metadata, leaving out images that the split does not name.

    Raises:
        InputError: the split names images that the dataset does not have.
    """
    absent = sorted(set(split["image_id"]) - set(table["image_id"]))
    if absent:
        raise InputError(
            f"the split names {len(absent):,} images that the dataset lacks: {name_some(absent)}; "
            "use the dataset that the split was made from"
        )
    return table.merge(split[["image_id", "split"]], on="image_id", how="inner")


def count_by_class(split: pd.DataFrame) -> pd.DataFrame:
    """Images of each diagnosis (rows) in each split (columns), with totals."""
    counts = pd.crosstab(split["dx"], split["split"])
    counts = counts.reindex(columns=[name for name in SPLITS if name in counts])
    counts = counts.assign(all=counts.sum(axis=1))
    return pd.concat([counts, counts.sum().to_frame("all").T])


def shared_lesions(split: pd.DataFrame) -> dict[str, float]:
    """Share of test images whose lesion is also seen elsewhere: the leak of a split.

    Returns:
        `train`: the share with an image of the same lesion in train; `train or validation`: in
        either. Both 0 for a split without leaks.
    """
    test = split.loc[split["split"] == "test", "lesion_id"]
    train = split.loc[split["split"] == "train", "lesion_id"]
    seen = split.loc[split["split"] != "test", "lesion_id"]
    return {
        "train": float(test.isin(train).mean()),
        "train or validation": float(test.isin(seen).mean()),
    }


def take_limited(rows: pd.DataFrame, limit: int | None, *, seed: int) -> pd.DataFrame:
    """At most `limit` rows, drawn so that every class keeps its share and at least one row."""
    if limit is None or limit >= len(rows):
        return rows
    order = rows.sort_values("image_id").sample(frac=1, random_state=seed)
    # Taking rows by their rank within the class, as a share of the class, keeps proportions.
    rank = order.groupby("dx").cumcount() / order.groupby("dx")["dx"].transform("size")
    return rows.loc[sorted(rank.sort_values(kind="stable").index[:limit])]


def _grouped_split(table: pd.DataFrame, *, seed: int, fold: tuple[int, int] | None) -> pd.Series:
    lesions = (
        table.groupby("lesion_id")["dx"]
        .agg(lambda dx: dx.mode().iloc[0])
        .sort_index()
        .reset_index()
    )
    counts = lesions["dx"].value_counts()
    needed = 3 if fold is None else max(3, fold[1])
    few = [f"{dx} ({count})" for dx, count in counts.items() if count < needed]
    if few:
        raise InputError(f"at least {needed} lesions of each class are needed: {name_some(few)}")
    if fold is None:
        rest, test = _draw(lesions, math.ceil(TEST_SHARE * len(lesions)), seed=seed)
    else:
        number, folds = fold
        if folds < 2 or not 1 <= number <= folds:
            raise InputError(
                f"no fold {number} of {folds}: folds are numbered 1 to N, N at least 2"
            )
        chunks = StratifiedKFold(folds, shuffle=True, random_state=seed)
        rest_rows, test_rows = list(chunks.split(lesions, lesions["dx"]))[number - 1]
        rest, test = lesions.iloc[rest_rows], lesions.iloc[test_rows]
    train, validation = _draw(rest, math.ceil(VALIDATION_SHARE * len(lesions)), seed=seed)
    split_of = {
        lesion_id: name
        for name, part in zip(SPLITS, (train, validation, test), strict=True)
        for lesion_id in part["lesion_id"]
    }
    return table["lesion_id"].map(split_of)


def _draw(lesions: pd.DataFrame, count: int, *, seed: int) -> Iterable[pd.DataFrame]:
    classes = lesions["dx"].nunique()
    if count < classes:
        raise InputError(
            f"{len(lesions)} lesions are too few: a split of {count} cannot hold {classes} classes"
        )
    return train_test_split(lesions, test_size=count, random_state=seed, stratify=lesions["dx"])


def _original_split(table: pd.DataFrame) -> pd.Series:
    rest, test = train_test_split(table, test_size=ORIGINAL_SHARE, random_state=ORIGINAL_SEED)
    train, validation = train_test_split(rest, test_size=ORIGINAL_SHARE, random_state=ORIGINAL_SEED)
    parts = zip(SPLITS, (train, validation, test), strict=True)
    return pd.concat([pd.Series(name, index=part.index) for name, part in parts])
