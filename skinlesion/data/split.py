"""Assign images to train, validation and test: by lesion, or as the original notebook did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from skinlesion.config import Split, make_config
from skinlesion.data.dataset import find_dataset, load_metadata
from skinlesion.data.forms import SPLIT_COLUMNS, SPLITS, SYNONYMS, is_by_image, is_sample
from skinlesion.data.metadata import normalise
from skinlesion.data.near_duplicates import merge_lesions, read_near_duplicates
from skinlesion.diagnoses import BY_IMAGE_NOTE, SYNTHETIC_NOTE
from skinlesion.files import InputError, name_some, read_csv, write_csv
from skinlesion.machine import say, warn

SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}
"""Shares of the images in a split by lesion."""
ORIGINAL_SHARE = 0.17
"""`test_size` of both calls of `train_test_split` in the original notebook. Its seed is 42."""


def write_split(
    data: str | Path | None,
    out: Path,
    *,
    recipe: str = "default",
    seed: int | None = None,
    fold: tuple[int, int] | None = None,
    near_duplicates: Path | None = None,
) -> pd.DataFrame:
    """Split a dataset and write the split file: the step `split`.

    Args:
        data: folder of the dataset; None looks as `find_dataset` does.
        out: CSV file to write. An existing file with the same split is kept.
        recipe: `original` splits by image, the other recipes split by lesion.
        seed: another seed gives another split of the same kind; None takes the recipe's seed.
        fold: as for `make_split`.
        near_duplicates: list of pairs to keep together; None takes the list for HAM10000.

    Returns:
        A table with the columns `image_id`, `lesion_id`, `dx` and `split`.

    Raises:
        InputError: as `find_dataset` and `make_split`, or `out` holds another split.
    """
    config = make_config(recipe, seed=seed)
    source = find_dataset(data)
    table = load_metadata(source)
    pairs = read_near_duplicates(near_duplicates)
    split = make_split(table, config.split, seed=config.seed, fold=fold, pairs=pairs)
    if not out.is_file():
        write_csv(out, split)
        say(f"split: wrote {out}")
    elif is_same_split(read_split(out), split):
        say(f"split: {out} already holds this split")
    else:
        raise InputError(
            f"{out}: holds another split, such as that of another seed; use that seed, "
            "or delete the file"
        )
    if is_sample(source):
        say(SYNTHETIC_NOTE)
    if config.split == "grouped":
        _say_groups(table, pairs)
    return split


def _say_groups(table: pd.DataFrame, pairs: pd.DataFrame) -> None:
    lesions, thing = table["lesion_id"].nunique(), "lesions"
    merged = lesions - merge_lesions(table, pairs).nunique()
    if is_by_image(table):
        thing = "images"
        warn(
            f"{BY_IMAGE_NOTE} The command near-duplicates finds images that look alike, and split "
            "--near-duplicates keeps them together"
        )
    say(f"split: {lesions:,} {thing}; near duplicates merged {merged:,} of them with others")


def make_split(
    table: pd.DataFrame,
    kind: Split = "grouped",
    *,
    seed: int = 42,
    fold: tuple[int, int] | None = None,
    pairs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Assign every image to train, validation or test.

    Args:
        table: metadata with `image_id`, `lesion_id`, `dx`.
        kind: `grouped` assigns whole lesions, 70 / 15 / 15 % of the images of each diagnosis. The
            result depends on the seed but not on the order of rows. `original` draws images in
            file order, with seed 42 exactly as the original notebook: lesions leak between the
            splits. A dataset's own split is kept by `grouped`; if it has no validation images, they
            are drawn from its training images.
        seed: seed of the split.
        fold: (K, N), K from 1 to N: fold K of N is the test, and validation is drawn from the
            other folds. Only for `grouped`.
        pairs: near duplicates, `image_id_1` and `image_id_2`. A `grouped` split keeps their lesions
            together.

    Returns:
        A table with the columns of `SPLIT_COLUMNS`, rows as in `table`.

    Raises:
        InputError: a class has too few lesions, or the fold does not exist.
    """
    if kind == "original":
        if fold is not None:
            raise InputError("the original split has no folds: use the recipe 'default'")
        assigned = _original_split(table, seed)
    else:
        assigned = _grouped_split(table, seed=seed, fold=fold, pairs=pairs)
    return table[["image_id", "lesion_id", "dx"]].assign(split=assigned)


def split_rest(
    split: pd.DataFrame, fold: tuple[int, int], *, seed: int, pairs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Keep the test of a split, and make a fold of the rest the validation.

    The folds of one split together have every image outside its test as validation once.

    Args:
        split: a table with the columns of a split file, `SPLIT_COLUMNS`.
        fold: (K, N), K from 1 to N.
        seed: seed of the folds.
        pairs: as for `make_split`.

    Returns:
        The same rows, each part assigned anew.

    Raises:
        InputError: as `make_split`.
    """
    rest = split[split["split"] != "test"]
    folded = make_split(rest, seed=seed, fold=fold, pairs=pairs)["split"]
    parts = folded.map({"train": "train", "validation": "train", "test": "validation"})
    return split.assign(split=parts.reindex(split.index, fill_value="test"))


def read_split(csv: Path) -> pd.DataFrame:
    """Read a split file of this project.

    Returns:
        A table with the columns of `SPLIT_COLUMNS`.

    Raises:
        InputError: as `read_any_split`, an image is repeated, or a split has no image.
    """
    split = read_any_split(csv, SPLIT_COLUMNS)
    repeated = sorted(set(split.loc[split["image_id"].duplicated(), "image_id"]))
    if repeated:
        raise InputError(f"{csv}: image_id given more than once: {name_some(repeated)}")
    empty = [name for name in SPLITS if not (split["split"] == name).any()]
    if empty:
        raise InputError(f"{csv}: no image in {', '.join(empty)}")
    return split


def read_any_split(csv: Path, columns: Sequence[str] = ("image_id", "split")) -> pd.DataFrame:
    """Read a split file of any project.

    Other columns are ignored. `image` is accepted for `image_id`, and `val`, `valid`, `training`
    and `testing` as names of splits. Endings `.jpg` are removed.

    Args:
        csv: the file; an image may be repeated.
        columns: the columns to read, `image_id` and `split` among them.

    Raises:
        InputError: the file cannot be read, a column is missing, an image id is empty, or a split
            is unknown, by name.
    """
    split = read_csv(csv, "a split file", dtype=str)
    if "image_id" not in split.columns:
        split = split.rename(columns={"image": "image_id"})
    absent = [column for column in columns if column not in split.columns]
    if absent:
        raise InputError(
            f"{csv}: columns missing: {', '.join(absent)}; a split file has "
            f"{', '.join(columns)}, and this one {', '.join(split.columns)}"
        )
    empty = [str(row + 2) for row in split.index[split["image_id"].isna()]]
    if empty:
        raise InputError(f"{csv}: image_id is empty in line {name_some(empty)}")
    split = normalise(split)
    split["split"] = split["split"].fillna("(empty)").str.strip().str.lower().replace(SYNONYMS)
    unknown = sorted(set(split["split"]) - set(SPLITS))
    if unknown:
        raise InputError(f"{csv}: unknown split: {name_some(unknown)}; use {', '.join(SPLITS)}")
    return split[list(columns)]


def is_same_split(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two splits assign the same images to the same parts, in any order."""

    def sides(split: pd.DataFrame) -> dict[str, str]:
        return dict(zip(split["image_id"], split["split"], strict=True))

    return sides(one) == sides(other)


def join_split(table: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Add the column `split` to the metadata. Images that the split does not name are dropped.

    Raises:
        InputError: the split names images that the dataset does not have, or gives one another
            diagnosis.
    """
    absent = sorted(set(split["image_id"]) - set(table["image_id"]))
    if absent:
        raise InputError(
            f"the split names {len(absent):,} images that the dataset lacks: {name_some(absent)}; "
            "use the dataset that the split was made from"
        )
    joined = table.merge(split[["image_id", "split", "dx"]], on="image_id", suffixes=("", "_said"))
    other = joined[joined["dx"] != joined["dx_said"]]
    if len(other):
        named = [f"{row.image_id} {row.dx_said}, here {row.dx}" for row in other.itertuples()]
        raise InputError(
            f"the split gives {len(other):,} images another diagnosis than the dataset: "
            f"{name_some(named)}; use the dataset that the split was made from"
        )
    return joined.drop(columns="dx_said")


def count_by_class(split: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each diagnosis (rows) in each split (columns), with totals."""
    counts = pd.crosstab(split["dx"], split["split"])
    counts = counts.reindex(columns=[name for name in SPLITS if name in counts])
    counts = counts.assign(all=counts.sum(axis=1))
    return pd.concat([counts, counts.sum().to_frame("all").T])


def take_limited(rows: pd.DataFrame, limit: int | None, *, seed: int) -> pd.DataFrame:
    """Draw at most `limit` rows so that each class keeps its share, as far as counts allow.

    Args:
        rows: table with `image_id` and `dx`.
        limit: number of rows; None returns all of them.
        seed: seed of the draw.

    Returns:
        The rows, in their order in `rows`.
    """
    if limit is None or limit >= len(rows):
        return rows
    order = rows.sort_values("image_id").sample(frac=1, random_state=seed)
    # Rows are taken by their rank within the class, as a share of it: this keeps proportions.
    rank = order.groupby("dx").cumcount() / order.groupby("dx")["dx"].transform("size")
    return rows.loc[sorted(rank.sort_values(kind="stable").index[:limit])]


def _grouped_split(
    table: pd.DataFrame,
    *,
    seed: int,
    fold: tuple[int, int] | None,
    pairs: pd.DataFrame | None,
) -> pd.Series:
    group_of = merge_lesions(table, pairs)
    if "given_split" in table:
        return _given_split(table, group_of, seed=seed, fold=fold)
    groups = _list_groups(table, group_of)
    # Of two folds, the one that is not the test is dealt into train and validation.
    needed = 3 if fold is None else 4 if fold[1] == 2 else max(3, fold[1])
    _require_lesions(groups, needed)
    if fold is None:
        return group_of.map(_deal(groups, SHARES, seed=seed))
    number, folds = fold
    if folds < 2 or not 1 <= number <= folds:
        raise InputError(f"no fold {number} of {folds}: folds are numbered 1 to N, N at least 2")
    fold_of = _deal(groups, {str(k): 1 / folds for k in range(1, folds + 1)}, seed=seed)
    rest = groups[fold_of != str(number)]
    share = {name: SHARES[name] for name in ("train", "validation")}
    return group_of.map(_deal(rest, share, seed=seed)).fillna("test")


def _given_split(
    table: pd.DataFrame, group_of: pd.Series, *, seed: int, fold: tuple[int, int] | None
) -> pd.Series:
    """The dataset's own split, with a validation part."""
    given = table["given_split"]
    if fold is not None:
        raise InputError(
            "the dataset has a split of its own, so that there are no folds: omit fold"
        )
    absent = sorted({"train", "test"} - set(given))
    if absent:
        raise InputError(f"the dataset's own split has no image in {', '.join(absent)}")
    if (given == "validation").any():
        return given
    groups = _list_groups(table[given == "train"], group_of)
    _require_lesions(groups, 2)
    share = {name: SHARES[name] for name in ("train", "validation")}
    return given.where(given == "test", group_of.map(_deal(groups, share, seed=seed)))


def _list_groups(table: pd.DataFrame, group_of: pd.Series) -> pd.DataFrame:
    """The groups of a table: `dx`, the most common one, and `images`, their number; sorted."""
    grouped = table.groupby(group_of.reindex(table.index))["dx"]
    return grouped.agg(dx=lambda dx: dx.mode().iloc[0], images="size").sort_index()


def _require_lesions(groups: pd.DataFrame, needed: int) -> None:
    counts = groups["dx"].value_counts()
    few = [f"{dx} ({count})" for dx, count in counts.items() if count < needed]
    if few:
        raise InputError(f"at least {needed} lesions of each class are needed: {name_some(few)}")


def _deal(groups: pd.DataFrame, shares: Mapping[str, float], *, seed: int) -> pd.Series:
    """Assign groups to parts so that each part gets its share of the images of each class.

    Within a class, the groups are taken in random order, and each goes to the part that has the
    smallest fraction of its share so far. This is how Adams' method of apportionment gives seats
    to parties. Every part gets a group if there are enough, and no part is off by more than the
    images of a lesion or two.
    """
    rng = np.random.default_rng(seed)
    names, share = list(shares), np.array(list(shares.values()))
    part_of = {}
    for _, members in groups.groupby("dx"):
        dealt = np.zeros(len(names))
        for group, images in members["images"].iloc[rng.permutation(len(members))].items():
            part = int(np.argmin(dealt / share))
            dealt[part] += images
            part_of[group] = names[part]
    return pd.Series(part_of).reindex(groups.index)


def _original_split(table: pd.DataFrame, seed: int) -> pd.Series:
    options = {"test_size": ORIGINAL_SHARE, "random_state": seed}
    rest, test = train_test_split(table, **options)
    train, validation = train_test_split(rest, **options)
    parts = zip(SPLITS, (train, validation, test), strict=True)
    return pd.concat([pd.Series(name, index=part.index) for name, part in parts])
