"""The leak audit: does the test of a split show lesions that are also in train or validation?"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from skinlesion.data.dataset import require_local_dataset
from skinlesion.data.forms import is_by_image, read_dataset
from skinlesion.data.near_duplicates import merge_lesions, read_near_duplicates
from skinlesion.data.split import SPLITS, read_any_split
from skinlesion.diagnoses import BY_IMAGE_NOTE
from skinlesion.files import name_some

KINDS = ("lesion", "lesion or near duplicate")
PLACES = ("train", "train or validation")


@dataclass(frozen=True)
class Audit:
    """What is wrong with a split.

    Attributes:
        leaks: numbers of images; rows `all` and each diagnosis of the dataset. Column `test` counts
            the test images. Columns `lesion in train`, `lesion in train or validation`, `lesion or
            near duplicate in train` and `lesion or near duplicate in train or validation` count
            the test images whose lesion (by its id, or also by near duplicates) is there too.
        proportions: share of each diagnosis (rows) in each split and in all images (columns).
        lesions_shared: number of lesions with images in more than one split.
        pairs_known: number of near duplicates among the images of the split.
        pairs_across: near duplicates in different splits: both image ids and both splits.
        repeated: images that the split names more than once.
        missing: images of the dataset that the split does not name.
        extra: images that the split names and the dataset does not have.
        by_image: whether the dataset has no lesion ids, so that only images can be compared.
    """

    leaks: pd.DataFrame
    proportions: pd.DataFrame
    lesions_shared: int
    pairs_known: int
    pairs_across: pd.DataFrame
    repeated: list[str]
    missing: list[str]
    extra: list[str]
    by_image: bool

    @property
    def is_clean(self) -> bool:
        """Whether nothing leaks and the split names each image of the dataset exactly once."""
        wrong = self.lesions_shared or len(self.pairs_across) or self.repeated
        return not (wrong or self.missing or self.extra)

    def leak(self, kind: str, where: str) -> float:
        """Return the share of test images that also occur elsewhere, 0 to 1; NaN without a test.

        Args:
            kind: `lesion` or `lesion or near duplicate`.
            where: `train` or `train or validation`.
        """
        row = self.leaks.loc["all"]
        return float(row[f"{kind} in {where}"] / row["test"]) if row["test"] else float("nan")

    def summary(self) -> pd.DataFrame:
        """Return the shares of test images that leak, 0 to 1, for display in a notebook.

        Returns:
            Rows `lesion` and `lesion or near duplicate`; columns `also in train` and `also in
            train or validation`.
        """
        shares = {
            f"also in {where}": [self.leak(kind, where) for kind in KINDS] for where in PLACES
        }
        return pd.DataFrame(shares, index=pd.Index(KINDS, name="test images by"))

    def describe(self) -> str:
        """Return the audit as text for the terminal."""
        gap = self.proportions.sub(self.proportions["all"], axis=0).abs().max().max()
        pairs = [f"{a} ({s}) and {b} ({t})" for a, b, s, t in self.pairs_across.to_numpy()]
        lines = [
            f"test images: {self.leaks.loc['all', 'test']:,}",
            *(
                f"test images whose {kind} is also in train: {self.leak(kind, 'train'):.1%}, "
                f"in train or validation: {self.leak(kind, 'train or validation'):.1%}"
                for kind in KINDS
            ),
            BY_IMAGE_NOTE
            if self.by_image
            else f"lesions in more than one split: {self.lesions_shared:,}",
            f"known near duplicates: {self.pairs_known:,} pairs"
            + ("" if self.pairs_known else " (the command near-duplicates searches for them)"),
            f"near duplicates in different splits: {_count(pairs, shown=2)}",
            f"largest deviation of a class share: {100 * gap:.2f} percentage points",
            f"images named more than once: {_count(self.repeated)}",
            f"images missing from the split: {_count(self.missing)}",
            f"images missing from the dataset: {_count(self.extra)}",
            "audit: no problem found" if self.is_clean else "audit: this split is not clean",
        ]
        return "\n".join(lines)


def audit_file(
    splits: Path, *, data: str | Path | None = None, near_duplicates: Path | None = None
) -> Audit:
    """Audit a split file, of this project or another one: the step `audit`.

    Args:
        splits: CSV file with `image_id` and `split`, as for `read_any_split`.
        data: folder of the dataset, of which only the metadata is read. None looks for it as
            `find_dataset` does, but without a download.
        near_duplicates: list of pairs; None takes the list for HAM10000.

    Raises:
        InputError: a file cannot be used, or there is no dataset.
    """
    split = read_any_split(splits)
    table, _ = read_dataset(require_local_dataset(data))
    return audit_split(split, table, read_near_duplicates(near_duplicates))


def audit_split(
    split: pd.DataFrame, table: pd.DataFrame, pairs: pd.DataFrame | None = None
) -> Audit:
    """Look for leaks and other defects of a split.

    Args:
        split: `image_id` and `split`; an image may be repeated.
        table: metadata with `image_id`, `lesion_id`, `dx`. Its lesion ids count, not the split's.
        pairs: near duplicates, `image_id_1` and `image_id_2`.
    """
    placed = split[["image_id", "split"]].merge(
        table[["image_id", "lesion_id", "dx"]], on="image_id", how="inner"
    )
    placed["group"] = merge_lesions(placed.drop_duplicates("image_id"), pairs).reindex(placed.index)
    placed["group"] = placed.groupby("image_id")["group"].transform("first")
    shares = pd.crosstab(placed["dx"], placed["split"], normalize="columns")
    known = table["dx"].value_counts(normalize=True).sort_index()
    shares = shares.reindex(known.index).assign(all=known)
    sides = placed.drop_duplicates(["lesion_id", "split"])
    pairs_placed = _place_pairs(placed, pairs)
    named, there = set(split["image_id"]), set(table["image_id"])
    return Audit(
        leaks=_count_leaks(placed, list(known.index)),
        proportions=shares.reindex(columns=[*SPLITS, "all"]).fillna(0.0),
        lesions_shared=int(sides.loc[sides["lesion_id"].duplicated(), "lesion_id"].nunique()),
        pairs_known=len(pairs_placed),
        pairs_across=pairs_placed[pairs_placed["split_1"] != pairs_placed["split_2"]],
        repeated=sorted(set(split.loc[split["image_id"].duplicated(), "image_id"])),
        missing=sorted(there - named),
        extra=sorted(named - there),
        by_image=is_by_image(table),
    )


def _count_leaks(placed: pd.DataFrame, codes: list[str]) -> pd.DataFrame:
    test = placed[placed["split"] == "test"]
    columns = {"test": pd.Series(True, index=test.index)}
    for kind, key in zip(KINDS, ("lesion_id", "group"), strict=True):
        for where in PLACES:
            seen = placed.loc[placed["split"].isin(where.split(" or ")), key]
            columns[f"{kind} in {where}"] = test[key].isin(seen)
    counts = pd.DataFrame(columns).groupby(test["dx"]).sum().reindex(codes, fill_value=0)
    return pd.concat([counts.sum().to_frame("all").T, counts]).astype(int)


def _place_pairs(placed: pd.DataFrame, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Return the near duplicates of which the split names both images, with both splits."""
    columns = ["image_id_1", "image_id_2", "split_1", "split_2"]
    if pairs is None:
        return pd.DataFrame(columns=columns)
    side = placed[["image_id", "split"]]
    both = pairs.merge(side.add_suffix("_1"), on="image_id_1").merge(
        side.add_suffix("_2"), on="image_id_2"
    )
    return both[columns]


def _count(names: list[str], *, shown: int = 5) -> str:
    """Return the number of names and the first of them: `12 (a, b and 10 more)`."""
    return f"{len(names):,} ({name_some(names, shown=shown)})" if names else "0"
