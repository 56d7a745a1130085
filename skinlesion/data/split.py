"""Which image is for training, for validation and for the test; and the leak audit of any split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split

from skinlesion.config import Split
from skinlesion.diagnoses import CLASS_CODES
from skinlesion.files import InputError, name_some

SPLITS = ("train", "validation", "test")
SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
COLUMNS = ("image_id", "lesion_id", "dx", "split")
SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}
ORIGINAL_SHARE = 0.17
ORIGINAL_SEED = 42


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
        kind: `grouped` draws lesions, 70 / 15 / 15, stratified by diagnosis, so that no lesion is
            in two splits; it depends on the seed but not on the order of rows. `original` draws
            images in file order exactly as the original notebook did: it leaks lesions.
        seed: for `grouped`.
        fold: (K, N), numbered from 1, for `grouped`: fold K of N is test, validation comes from
            the rest.
        pairs: near duplicates, `image_id_1` and `image_id_2`, for `grouped`: their lesions are
            kept together.

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
        assigned = _grouped_split(table, seed=seed, fold=fold, pairs=pairs)
    return table[["image_id", "lesion_id", "dx"]].assign(split=assigned)


def merge_lesions(table: pd.DataFrame, pairs: pd.DataFrame | None) -> pd.Series:
    """The group of each image: its lesion, joined with the lesions of its near duplicates.

    Args:
        table: metadata with `image_id` and `lesion_id`.
        pairs: `image_id_1` and `image_id_2`; pairs of images that the table lacks are left out.

    Returns:
        For each row the smallest `lesion_id` of its group.
    """
    if pairs is None or pairs.empty:
        return table["lesion_id"]
    lesions, lesion_of = np.unique(table["lesion_id"].astype(str), return_inverse=True)
    row_of = dict(zip(table["image_id"], lesion_of, strict=True))
    known = pairs[pairs["image_id_1"].isin(row_of) & pairs["image_id_2"].isin(row_of)]
    ends = [known[column].map(row_of).to_numpy(int) for column in ("image_id_1", "image_id_2")]
    edges = coo_array((np.ones(len(known)), ends), shape=(len(lesions), len(lesions)))
    component = connected_components(edges, directed=False)[1]
    names = pd.Series(lesions).groupby(component).transform("min")
    return pd.Series(names.to_numpy()[lesion_of], index=table.index)


def read_split(csv: Path) -> pd.DataFrame:
    """Read a split file of this project.

    Returns:
        A table with the columns of `COLUMNS`.

    Raises:
        InputError: not readable, missing columns, an unknown split, an image given twice, or a
            split without images, by name.
    """
    split = _read_csv(csv, COLUMNS)
    doubled = sorted(set(split.loc[split["image_id"].duplicated(), "image_id"]))
    if doubled:
        raise InputError(f"{csv}: image_id given more than once: {name_some(doubled)}")
    empty = [name for name in SPLITS if not (split["split"] == name).any()]
    if empty:
        raise InputError(f"{csv}: no image in {', '.join(empty)}")
    return split


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


def take_limited(rows: pd.DataFrame, limit: int | None, *, seed: int) -> pd.DataFrame:
    """At most `limit` rows, drawn so that every class keeps its share, as far as counts allow."""
    if limit is None or limit >= len(rows):
        return rows
    order = rows.sort_values("image_id").sample(frac=1, random_state=seed)
    # Taking rows by their rank within the class, as a share of the class, keeps proportions.
    rank = order.groupby("dx").cumcount() / order.groupby("dx")["dx"].transform("size")
    return rows.loc[sorted(rank.sort_values(kind="stable").index[:limit])]


@dataclass(frozen=True)
class Audit:
    """What is wrong with a split.

    Attributes:
        leaks: rows `all` and each diagnosis; columns `test` (images), then how many of these show
            a lesion that is also in `train`, and in `train or validation`, by lesion id
            (`lesion ...`) and by lesion id or near duplicate (`lesion or near duplicate ...`).
        proportions: share of each diagnosis (rows) in each split (columns), and in all images.
        lesions_shared: number of lesions with images in more than one split.
        pairs_known: number of near duplicates among the split's images.
        pairs_across: near duplicates in different splits: both image ids and splits.
        repeated: images that the file gives more than once.
        missing: images of the dataset that the split does not name.
        extra: images that the split names and the dataset does not have.
    """

    leaks: pd.DataFrame
    proportions: pd.DataFrame
    lesions_shared: int
    pairs_known: int
    pairs_across: pd.DataFrame
    repeated: list[str]
    missing: list[str]
    extra: list[str]

    @property
    def is_clean(self) -> bool:
        """Whether nothing leaks and the split names the dataset's images, each once."""
        wrong = self.lesions_shared or len(self.pairs_across) or self.repeated
        return not (wrong or self.missing or self.extra)

    def leak(self, kind: str, where: str) -> float:
        """Share of test images that are also seen elsewhere, 0 to 1.

        Args:
            kind: `lesion` or `lesion or near duplicate`.
            where: `train` or `train or validation`.
        """
        row = self.leaks.loc["all"]
        return float(row[f"{kind} in {where}"] / row["test"]) if row["test"] else float("nan")


def read_any_split(csv: Path) -> pd.DataFrame:
    """Read a split file of any origin: `image_id` (or `image`) and `split`, other columns ignored.

    Endings `.jpg` are cut off; `val`, `valid`, `training` and `testing` are understood.

    Raises:
        InputError: not readable, missing columns, or an unknown split, by name.
    """
    return _read_csv(csv, ("image_id", "split"))


def audit_split(
    split: pd.DataFrame, table: pd.DataFrame, pairs: pd.DataFrame | None = None
) -> Audit:
    """Look for what makes the figures of a split wrong.

    Args:
        split: `image_id` and `split`; an image may be given more than once.
        table: metadata with `image_id`, `lesion_id`, `dx`; its lesions count, not the split's.
        pairs: near duplicates, `image_id_1` and `image_id_2`.
    """
    placed = split[["image_id", "split"]].merge(
        table[["image_id", "lesion_id", "dx"]], on="image_id", how="inner"
    )
    placed["group"] = merge_lesions(placed.drop_duplicates("image_id"), pairs).reindex(placed.index)
    placed["group"] = placed.groupby("image_id")["group"].transform("first")
    shares = pd.crosstab(placed["dx"], placed["split"], normalize="columns")
    shares["all"] = table["dx"].value_counts(normalize=True)
    sides = placed.drop_duplicates(["lesion_id", "split"])
    pairs_placed = _place_pairs(placed, pairs)
    named, known = set(split["image_id"]), set(table["image_id"])
    return Audit(
        leaks=_count_leaks(placed),
        proportions=shares.reindex(index=CLASS_CODES, columns=[*SPLITS, "all"]).fillna(0.0),
        lesions_shared=int(sides.loc[sides["lesion_id"].duplicated(), "lesion_id"].nunique()),
        pairs_known=len(pairs_placed),
        pairs_across=pairs_placed[pairs_placed["split_1"] != pairs_placed["split_2"]],
        repeated=sorted(set(split.loc[split["image_id"].duplicated(), "image_id"])),
        missing=sorted(known - named),
        extra=sorted(named - known),
    )


def _count_leaks(placed: pd.DataFrame) -> pd.DataFrame:
    test = placed[placed["split"] == "test"]
    columns = {"test": pd.Series(True, index=test.index)}
    for kind, key in (("lesion", "lesion_id"), ("lesion or near duplicate", "group")):
        for where in ("train", "train or validation"):
            seen = placed.loc[placed["split"].isin(where.split(" or ")), key]
            columns[f"{kind} in {where}"] = test[key].isin(seen)
    counts = pd.DataFrame(columns).groupby(test["dx"]).sum().reindex(CLASS_CODES, fill_value=0)
    return pd.concat([counts.sum().to_frame("all").T, counts]).astype(int)


def _place_pairs(placed: pd.DataFrame, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Near duplicates of which the split names both images, with the split of each."""
    columns = ["image_id_1", "image_id_2", "split_1", "split_2"]
    if pairs is None:
        return pd.DataFrame(columns=columns)
    side = placed[["image_id", "split"]]
    both = pairs.merge(side.add_suffix("_1"), on="image_id_1").merge(
        side.add_suffix("_2"), on="image_id_2"
    )
    return both[columns]


def _read_csv(csv: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        split = pd.read_csv(csv, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"{csv}: cannot be read as a split file ({error})") from error
    if "image_id" not in split.columns:
        split = split.rename(columns={"image": "image_id"})
    absent = [column for column in columns if column not in split.columns]
    if absent:
        raise InputError(f"{csv}: columns missing: {', '.join(absent)}")
    empty = [str(row + 2) for row in split.index[split["image_id"].isna()]]
    if empty:
        raise InputError(f"{csv}: image_id is empty in line {name_some(empty)}")
    split["image_id"] = split["image_id"].str.removesuffix(".jpg")
    split["split"] = split["split"].fillna("(empty)").str.strip().str.lower().replace(SYNONYMS)
    unknown = sorted(set(split["split"]) - set(SPLITS))
    if unknown:
        raise InputError(f"{csv}: unknown split: {name_some(unknown)}; use {', '.join(SPLITS)}")
    return split[list(columns)]


def _grouped_split(
    table: pd.DataFrame,
    *,
    seed: int,
    fold: tuple[int, int] | None,
    pairs: pd.DataFrame | None,
) -> pd.Series:
    group_of = merge_lesions(table, pairs)
    groups = (
        table.groupby(group_of)["dx"]
        .agg(dx=lambda dx: dx.mode().iloc[0], images="size")
        .sort_index()
    )
    needed = 3 if fold is None else max(3, fold[1])
    counts = groups["dx"].value_counts()
    few = [f"{dx} ({count})" for dx, count in counts.items() if count < needed]
    if few:
        raise InputError(f"at least {needed} lesions of each class are needed: {name_some(few)}")
    if fold is None:
        return group_of.map(_deal(groups, SHARES, seed=seed))
    number, folds = fold
    if folds < 2 or not 1 <= number <= folds:
        raise InputError(f"no fold {number} of {folds}: folds are numbered 1 to N, N at least 2")
    fold_of = _deal(groups, {str(k): 1 / folds for k in range(1, folds + 1)}, seed=seed)
    rest = groups[fold_of != str(number)]
    share = {name: SHARES[name] for name in ("train", "validation")}
    return group_of.map(_deal(rest, share, seed=seed)).fillna("test")


def _deal(groups: pd.DataFrame, shares: Mapping[str, float], *, seed: int) -> pd.Series:
    """Deal groups out so that each part gets its share of the images of each class.

    Within a class, groups go, in random order, to the part that has the least of its share so far,
    as Adams' method deals seats to parties: every part gets a group where there are enough, and
    none is off by more than the images of a lesion or two.
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


def _original_split(table: pd.DataFrame) -> pd.Series:
    rest, test = train_test_split(table, test_size=ORIGINAL_SHARE, random_state=ORIGINAL_SEED)
    train, validation = train_test_split(rest, test_size=ORIGINAL_SHARE, random_state=ORIGINAL_SEED)
    parts = zip(SPLITS, (train, validation, test), strict=True)
    return pd.concat([pd.Series(name, index=part.index) for name, part in parts])


def is_same_split(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two splits put the same images into the same parts, in whatever order."""

    def sides(split: pd.DataFrame) -> dict[str, str]:
        return dict(zip(split["image_id"], split["split"], strict=True))

    return sides(one) == sides(other)
