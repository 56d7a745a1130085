"""The leak audit on small splits worked out by hand, and on files."""

import pandas as pd
import pytest

from skinlesion.data.leakage import audit_file, audit_split
from skinlesion.data.split import write_split
from skinlesion.files import InputError


@pytest.fixture
def small():
    return pd.DataFrame(
        {
            "image_id": list("abcdefgh"),
            "lesion_id": ["1", "1", "2", "3", "3", "4", "5", "6"],
            "dx": ["nv", "nv", "nv", "mel", "mel", "mel", "bcc", "bcc"],
            "split": ["train", "test", "validation", "train", "test", "test", "test", "test"],
        }
    )


def test_leaks_are_counted_in_images_per_class_and_in_total(small):
    # Test shows b, e, f, g, h; lesions 1 and 3 are in train; h looks like c of validation.
    pairs = pd.DataFrame({"image_id_1": ["c"], "image_id_2": ["h"]})
    found = audit_split(small, small, pairs)
    leaks = found.leaks
    assert leaks.loc["all"].tolist() == [5, 2, 2, 2, 3]
    assert leaks.loc["mel"].tolist() == [2, 1, 1, 1, 1]
    assert leaks.loc["bcc"].tolist() == [2, 0, 0, 0, 1]
    assert list(leaks.index) == ["all", "bcc", "mel", "nv"]
    assert found.leak("lesion", "train") == 0.4
    assert found.leak("lesion or near duplicate", "train or validation") == 0.6
    assert found.lesions_shared == 2
    assert found.pairs_known == 1
    assert found.pairs_across.to_numpy().tolist() == [["c", "h", "validation", "test"]]
    assert not found.is_clean
    assert found.proportions.loc["mel", "test"] == 0.4
    assert found.proportions.loc["mel", "all"] == 3 / 8


def test_missing_extra_and_repeated_images_are_named(small):
    twice = small.iloc[[0]].assign(split="test")
    strange = pd.DataFrame({"image_id": ["x"], "split": ["train"]})
    found = audit_split(pd.concat([small.iloc[:-1], twice, strange]), small)
    assert (found.missing, found.extra, found.repeated) == (["h"], ["x"], ["a"])
    # An image in train and in test leaks itself.
    assert found.leaks.loc["all", "lesion in train"] == 3


def test_the_lesions_of_the_dataset_count_not_those_of_the_file(small):
    lying = small.assign(lesion_id=small["image_id"])
    assert audit_split(lying, small).lesions_shared == 2


def test_the_summary_has_the_shares_of_both_kinds(small):
    pairs = pd.DataFrame({"image_id_1": ["c"], "image_id_2": ["h"]})
    summary = audit_split(small, small, pairs).summary()
    assert list(summary.index) == ["lesion", "lesion or near duplicate"]
    assert list(summary.columns) == ["also in train", "also in train or validation"]
    assert summary.to_numpy().tolist() == [[0.4, 0.4], [0.4, 0.6]]


def test_the_text_fits_a_screen(small):
    pairs = pd.DataFrame({"image_id_1": ["c"], "image_id_2": ["h"]})
    text = audit_split(small, small, pairs).describe()
    assert "lesion is also in train: 40.0%, in train or validation: 40.0%" in text
    assert "in different splits: 1 (c (validation) and h (test))" in text
    assert len(text.splitlines()) <= 12


def test_a_split_without_test_has_no_share(small):
    audit = audit_split(small[small["split"] != "test"], small)
    assert audit.summary().isna().all(axis=None)
    assert "nan" in audit.describe()


def test_a_file_of_a_clean_split_and_of_a_leaking_one(sample, tmp_path):
    write_split(sample, tmp_path / "a.csv")
    clean = audit_file(tmp_path / "a.csv", data=sample)
    assert clean.is_clean
    assert clean.leak("lesion", "train or validation") == 0
    assert clean.describe().endswith("audit: no problem found")
    write_split(sample, tmp_path / "b.csv", recipe="original")
    leaking = audit_file(tmp_path / "b.csv", data=sample)
    assert not leaking.is_clean
    assert leaking.leak("lesion", "train") > 0
    assert leaking.describe().endswith("audit: this split is not clean")


def test_missing_images_are_named(sample, tmp_path):
    split = write_split(sample, tmp_path / "a.csv")
    split.iloc[1:].to_csv(tmp_path / "b.csv", index=False)
    audit = audit_file(tmp_path / "b.csv", data=sample)
    assert not audit.is_clean
    assert f"images missing from the split: 1 ({split['image_id'][0]})" in audit.describe()


def test_an_absent_file_is_refused(sample, tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read as a split file"):
        audit_file(tmp_path / "absent.csv", data=sample)
