from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA, needs_real_data

from skinlesion.errors import InputError
from skinlesion.metadata import read_metadata
from skinlesion.split import (
    SPLITS,
    count_by_class,
    join_split,
    make_split,
    read_split,
    shared_lesions,
    take_limited,
)


@pytest.fixture
def table():
    """700 images of 400 lesions, classes unequal."""
    rng = np.random.default_rng(5)
    lesion = np.sort(np.concatenate([np.arange(400), rng.integers(0, 400, 300)]))
    shares = [0.05, 0.1, 0.1, 0.05, 0.1, 0.5, 0.1]
    dx = rng.choice(["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"], 400, p=shares)
    return pd.DataFrame(
        {
            "image_id": [f"ISIC_{number:07d}" for number in range(700)],
            "lesion_id": [f"HAM_{number:07d}" for number in lesion],
            "dx": dx[lesion],
        }
    )


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize("fold", [None, (1, 5), (5, 5)])
def test_no_lesion_is_in_two_splits(table, seed, fold):
    split = make_split(table, seed=seed, fold=fold)
    assert split.groupby("lesion_id")["split"].nunique().max() == 1
    assert set(split["split"]) == set(SPLITS)
    assert split["image_id"].tolist() == table["image_id"].tolist()
    assert shared_lesions(split) == {"train": 0, "train or validation": 0}


def test_lesions_are_divided_70_15_15_and_stratified(table):
    lesions = make_split(table).drop_duplicates("lesion_id")
    assert lesions["split"].value_counts().to_dict() == {"train": 280, "validation": 60, "test": 60}
    whole = lesions["dx"].value_counts(normalize=True)
    for name in SPLITS:
        part = lesions.loc[lesions["split"] == name, "dx"].value_counts(normalize=True)
        # 60 lesions: one more or less is 1.7 percentage points.
        assert (part - whole).abs().max() < 0.018


def test_the_order_of_rows_does_not_matter_but_the_seed_does(table):
    def assignment(rows, seed):
        return make_split(rows, seed=seed).set_index("image_id")["split"].sort_index()

    shuffled = table.sample(frac=1, random_state=1)
    assert assignment(table, 3).equals(assignment(shuffled, 3))
    assert not assignment(table, 3).equals(assignment(table, 4))


def test_each_lesion_is_in_test_in_exactly_one_fold(table):
    tested = pd.concat(
        [make_split(table, fold=(k, 4)).query("split == 'test'")["image_id"] for k in range(1, 5)]
    )
    assert sorted(tested) == sorted(table["image_id"])


@pytest.mark.parametrize("fold", [(0, 5), (6, 5), (1, 1)])
def test_a_fold_that_does_not_exist_is_refused(table, fold):
    with pytest.raises(InputError, match="no fold"):
        make_split(table, fold=fold)


def test_too_few_lesions_of_a_class_are_named(table):
    few = table[(table["dx"] != "df") | (table["lesion_id"] == table["lesion_id"][0])]
    one = pd.concat([few, pd.DataFrame([{"image_id": "x", "lesion_id": "y", "dx": "df"}])])
    with pytest.raises(InputError, match=r"lesions of each class.*df \("):
        make_split(one)


def test_too_few_lesions_altogether_are_refused(table):
    four_each = table.drop_duplicates("lesion_id").groupby("dx").head(4)
    first = table[table["lesion_id"].isin(four_each["lesion_id"])]
    with pytest.raises(InputError, match="28 lesions are too few"):
        make_split(first)


def test_leak_is_counted_in_images():
    split = pd.DataFrame(
        {
            "lesion_id": ["a", "a", "b", "c", "c", "d", "e"],
            "split": ["train", "test", "validation", "train", "test", "test", "test"],
        }
    )
    # Test shows a, c, d, e; a and c are in train, nothing in validation is shown.
    assert shared_lesions(split) == {"train": 0.5, "train or validation": 0.5}


def test_limit_keeps_proportions_and_every_class(table):
    taken = take_limited(table, 70, seed=1)
    assert len(taken) == 70
    assert set(taken["dx"]) == set(table["dx"])
    shares = taken["dx"].value_counts(normalize=True) - table["dx"].value_counts(normalize=True)
    assert shares.abs().max() < 0.03
    assert take_limited(table, 10_000, seed=1) is table


def test_split_file_round_trip(table, tmp_path):
    split = make_split(table)
    split.to_csv(tmp_path / "splits.csv", index=False)
    assert read_split(tmp_path / "splits.csv").equals(split.astype(str))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns="split"), "columns missing: split"),
        (lambda s: s.replace("test", "holdout"), "unknown split: holdout"),
        (lambda s: pd.concat([s, s.iloc[[0]]]), "more than once: ISIC_0000000"),
        (lambda s: s[s["split"] != "test"], "no image in test"),
    ],
)
def test_a_bad_split_file_is_refused(table, tmp_path, change, message):
    change(make_split(table)).to_csv(tmp_path / "splits.csv", index=False)
    with pytest.raises(InputError, match=message):
        read_split(tmp_path / "splits.csv")


def test_a_split_of_another_dataset_is_refused(table):
    with pytest.raises(InputError, match="ISIC_0000001"):
        join_split(table.drop(index=1), make_split(table))


@needs_real_data
class TestOnHam10000:
    @pytest.fixture
    def ham10000(self):
        return read_metadata(Path(REAL_DATA) / "HAM10000_metadata.csv")

    def test_original_has_the_originals_rows(self, ham10000):
        split = make_split(ham10000, "original")
        assert split["split"].value_counts().to_dict() == {
            "train": 6898,
            "validation": 1414,
            "test": 1703,
        }
        leak = shared_lesions(split)
        assert round(leak["train"], 3) == 0.352
        assert round(leak["train or validation"], 3) == 0.410

    def test_original_gives_the_same_images_as_the_notebooks_own_code(self, ham10000):
        from sklearn.model_selection import train_test_split

        files = ham10000["image_id"] + ".jpg"
        rest, test = train_test_split(files, test_size=0.17, random_state=42)
        train, validation = train_test_split(rest, test_size=0.17, random_state=42)
        split = make_split(ham10000, "original").set_index("image_id")["split"]
        for name, part in (("train", train), ("validation", validation), ("test", test)):
            assert set(split.index[split == name] + ".jpg") == set(part)

    def test_grouped_split_keeps_class_shares_within_one_point(self, ham10000):
        split = make_split(ham10000)
        assert shared_lesions(split) == {"train": 0, "train or validation": 0}
        counts = count_by_class(split)
        shares = counts / counts.loc["all"]
        assert (shares.sub(shares["all"], axis=0)).abs().to_numpy().max() < 0.01
