from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA, needs_real_data

from skinlesion.data.leakage import audit_split
from skinlesion.data.metadata import read_metadata
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import (
    SHARES,
    SPLITS,
    count_by_class,
    is_same_split,
    join_split,
    make_split,
    merge_lesions,
    read_any_split,
    read_split,
    split_rest,
    take_limited,
    write_split,
)
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.files import InputError


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
    assert audit_split(split, table).is_clean


@pytest.mark.parametrize("seed", range(5))
def test_each_part_gets_its_share_of_the_images_of_each_class(table, seed):
    split = make_split(table, seed=seed)
    largest = table.groupby("lesion_id").size().max()
    counts = count_by_class(split).drop(index="all")
    for name in SPLITS:
        # None is off by more than the images of a lesion or two.
        assert (counts[name] - SHARES[name] * counts["all"]).abs().max() <= 2 * largest
    lesions = split.drop_duplicates("lesion_id")["split"].value_counts(normalize=True)
    assert abs(lesions["test"] - 0.15) < 0.03


@pytest.fixture
def pairs(table):
    """Near duplicates of 60 lesions: chains of three lesions each, across classes too."""
    first = table.drop_duplicates("lesion_id")["image_id"].tolist()[:60]
    return pd.DataFrame({"image_id_1": first[:-1], "image_id_2": first[1:]})[::3].pipe(
        lambda every_third: pd.concat(
            [
                every_third,
                pd.DataFrame({"image_id_1": first[1:-1:3], "image_id_2": first[2::3]}),
            ]
        )
    )


@pytest.mark.parametrize("fold", [None, (2, 4)])
def test_near_duplicates_stay_together(table, pairs, fold):
    split = make_split(table, pairs=pairs, fold=fold)
    side = split.set_index("image_id")["split"]
    assert (side[pairs["image_id_1"]].to_numpy() == side[pairs["image_id_2"]].to_numpy()).all()
    assert audit_split(split, table, pairs).is_clean
    assert not audit_split(make_split(table, fold=fold), table, pairs).is_clean


def test_merging_joins_chains_and_ignores_images_of_other_datasets(table, pairs):
    stranger = pd.DataFrame({"image_id_1": ["other"], "image_id_2": [table["image_id"][0]]})
    groups = merge_lesions(table, pd.concat([pairs, stranger]))
    assert groups.nunique() == table["lesion_id"].nunique() - 40
    three = table.drop_duplicates("lesion_id")["image_id"].iloc[:3]
    assert len(set(groups[table["image_id"].isin(three)])) == 1
    assert merge_lesions(table, pairs.iloc[:0]).equals(table["lesion_id"])


def test_the_order_of_rows_does_not_matter_but_the_seed_does(table, pairs):
    def assignment(rows, seed):
        split = make_split(rows, seed=seed, pairs=pairs)
        return split.set_index("image_id")["split"].sort_index()

    shuffled = table.sample(frac=1, random_state=1)
    assert assignment(table, 3).equals(assignment(shuffled, 3))
    assert not assignment(table, 3).equals(assignment(table, 4))


def test_each_lesion_is_in_test_in_exactly_one_fold(table):
    tested = pd.concat(
        [make_split(table, fold=(k, 4)).query("split == 'test'")["image_id"] for k in range(1, 5)]
    )
    assert sorted(tested) == sorted(table["image_id"])


def test_folds_of_the_rest_keep_the_test_and_validate_each_other_lesion_once(table, pairs):
    split = make_split(table, pairs=pairs)
    folds = [split_rest(split, (number, 4), seed=42, pairs=pairs) for number in range(1, 5)]
    rest = split["split"] != "test"
    for fold in folds:
        assert ((fold["split"] == "test") == ~rest).all()
        assert audit_split(fold, table, pairs).is_clean
    times = sum((fold["split"] == "validation").astype(int) for fold in folds)
    assert (times == rest).all()


@pytest.mark.parametrize("fold", [(0, 5), (6, 5), (1, 1)])
def test_a_fold_that_does_not_exist_is_refused(table, fold):
    with pytest.raises(InputError, match="no fold"):
        make_split(table, fold=fold)


def test_too_few_lesions_of_a_class_are_named(table):
    few = table[(table["dx"] != "df") | (table["lesion_id"] == table["lesion_id"][0])]
    one = pd.concat([few, pd.DataFrame([{"image_id": "x", "lesion_id": "y", "dx": "df"}])])
    with pytest.raises(InputError, match=r"lesions of each class.*df \("):
        make_split(one)


def test_three_lesions_of_a_class_are_enough(table):
    few = table.drop_duplicates("lesion_id").groupby("dx").head(3)
    split = make_split(few)
    assert (count_by_class(split).loc[list(set(few["dx"])), list(SPLITS)] == 1).all(axis=None)


def test_files_of_other_projects_are_read(tmp_path):
    (tmp_path / "s.csv").write_text("image,split\na.jpg,Training\nb,val\nc,TEST\n")
    split = read_any_split(tmp_path / "s.csv")
    assert split.to_numpy().tolist() == [["a", "train"], ["b", "validation"], ["c", "test"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id\na\n", "columns missing: split"),
        ("image_id,split\na,holdout\n", "unknown split: holdout"),
        ("image_id,split\n,train\n", "image_id is empty in line 2"),
        ("", "is empty; expected a split file"),
        ("image_id,split\n", "has a header but no row; expected a split file"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_any_split(tmp_path / "s.csv")


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


def test_a_split_with_another_diagnosis_is_refused(table):
    split = make_split(table)
    split.loc[0, "dx"] = "no such diagnosis"
    with pytest.raises(InputError, match=r"gives 1 images another diagnosis .* here"):
        join_split(table, split)


def test_of_two_folds_each_has_every_class_in_validation(table):
    few = table.drop_duplicates("lesion_id").groupby("dx").head(4)
    for number in (1, 2):
        assert (count_by_class(make_split(few, fold=(number, 2))) > 0).all(axis=None)
    with pytest.raises(InputError, match="at least 4 lesions of each class"):
        make_split(few.groupby("dx").head(3), fold=(1, 2))


class TestWriteSplit:
    def test_repeating_keeps_the_file(self, sample, tmp_path, capsys):
        out = tmp_path / "splits.csv"
        split = write_split(sample, out)
        assert is_same_split(read_split(out), split)
        before = out.stat().st_mtime_ns
        write_split(sample, out)
        assert out.stat().st_mtime_ns == before
        assert "already holds this split" in capsys.readouterr().out

    def test_another_split_is_not_overwritten(self, sample, tmp_path):
        write_split(sample, tmp_path / "splits.csv")
        with pytest.raises(InputError, match="holds another split"):
            write_split(sample, tmp_path / "splits.csv", seed=1)

    def test_merged_lesions_and_the_sample_are_reported(self, sample, tmp_path, capsys):
        table = pd.read_csv(sample / "HAM10000_metadata.csv").drop_duplicates("lesion_id")
        ends = table[table["dx"] == "nv"]["image_id"].iloc[:2].tolist()
        pairs = tmp_path / "pairs.csv"
        pairs.write_text(f"image_id_1,image_id_2\n{ends[0]},{ends[1]}\n")
        split = write_split(sample, tmp_path / "a.csv", near_duplicates=pairs)
        said = capsys.readouterr().out
        assert "near duplicates merged 1 of them" in said
        assert SYNTHETIC_NOTE in said
        side = split.set_index("image_id")["split"]
        assert side[ends[0]] == side[ends[1]]

    def test_the_recipe_decides_how_to_split(self, sample, tmp_path):
        by_image = write_split(sample, tmp_path / "b.csv", recipe="original")
        assert by_image.groupby("lesion_id")["split"].nunique().max() > 1
        other = write_split(sample, tmp_path / "c.csv", recipe="original", seed=7)
        assert not is_same_split(by_image, other)


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
        found = audit_split(split, ham10000, read_near_duplicates())
        assert round(found.leak("lesion", "train"), 3) == 0.352
        assert round(found.leak("lesion", "train or validation"), 3) == 0.410
        kind = "lesion or near duplicate"
        assert found.leak(kind, "train or validation") > 0.410
        # Of 191 melanoma images in test, 65 % are also in train, 77 % in train or validation.
        mel = found.leaks.loc["mel"]
        assert round(mel["lesion in train"] / mel["test"], 2) == 0.65
        assert round(mel["lesion in train or validation"] / mel["test"], 2) == 0.77

    def test_original_gives_the_same_images_as_the_notebooks_own_code(self, ham10000):
        from sklearn.model_selection import train_test_split

        files = ham10000["image_id"] + ".jpg"
        rest, test = train_test_split(files, test_size=0.17, random_state=42)
        train, validation = train_test_split(rest, test_size=0.17, random_state=42)
        split = make_split(ham10000, "original").set_index("image_id")["split"]
        for name, part in (("train", train), ("validation", validation), ("test", test)):
            assert set(split.index[split == name] + ".jpg") == set(part)

    @pytest.mark.parametrize("fold", [None, (1, 5), (3, 5)])
    @pytest.mark.parametrize("seed", [0, 42])
    def test_grouped_split_is_clean_and_keeps_class_shares(self, ham10000, seed, fold):
        pairs = read_near_duplicates()
        found = audit_split(
            make_split(ham10000, seed=seed, fold=fold, pairs=pairs), ham10000, pairs
        )
        assert found.is_clean
        gap = found.proportions.sub(found.proportions["all"], axis=0).abs()
        assert gap.to_numpy().max() < 0.01

    def test_grouping_by_lesion_id_alone_leaks_near_duplicates(self, ham10000):
        found = audit_split(make_split(ham10000), ham10000, read_near_duplicates())
        assert found.lesions_shared == 0
        assert len(found.pairs_across) > 20


def test_the_published_split_is_made_again():
    published = read_split(Path(__file__).parent.parent / "docs" / "results" / "splits.csv")
    assert is_same_split(make_split(published, pairs=read_near_duplicates()), published)
