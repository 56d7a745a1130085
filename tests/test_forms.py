"""Datasets in other forms than HAM10000's: what is read, and what is refused by name."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA, needs_real_data
from PIL import Image

from skinlesion.data.copies import copy_images
from skinlesion.data.dataset import find_dataset, list_images, load_metadata
from skinlesion.data.forms import describe_dataset, is_by_image, read_dataset
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import write_isic
from skinlesion.data.leakage import audit_file
from skinlesion.data.metadata import make_code
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import is_same_split, make_split, write_split
from skinlesion.files import InputError

NAMES = ("Mole", "Übler Fleck", "Wart / callus")
CODES = ("mole", "wart_callus", "übler_fleck")


def save(path, number):
    """A one-coloured image, another one for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(int(value) for value in np.random.default_rng(number).integers(0, 256, 3))
    Image.new("RGB", (20, 15), color).save(path)


@pytest.fixture
def rows():
    """36 images of three classes, two images of each lesion."""
    return pd.DataFrame(
        {
            "image": [f"img{number}.png" for number in range(36)],
            "diagnosis": [NAMES[number // 2 % 3] for number in range(36)],
            "lesion_id": [f"l{number // 2}" for number in range(36)],
        }
    )


@pytest.fixture
def write(tmp_path, rows):
    """Write a dataset in the form of a table, and return its folder."""

    def write(table=rows, **files):
        folder = tmp_path / "own"
        for number, name in enumerate(rows["image"]):
            save(folder / f"part{number % 2}" / name, number)
        table.to_csv(folder / "list.csv", index=False)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text, "utf-8")
        return folder

    return write


@pytest.fixture
def folders(tmp_path):
    """A folder for each class, with images of several formats."""
    for number in range(36):
        ending = ("jpg", "jpeg", "png", "webp", "tif")[number % 5]
        save(
            tmp_path / "sorted" / NAMES[number % 3].replace("/", "or") / f"{number}.{ending}",
            number,
        )
    return tmp_path / "sorted"


def test_codes_fit_into_names_of_columns():
    assert make_code("  Basal cell carcinoma ") == "basal_cell_carcinoma"
    assert make_code("U\u0308bler Fleck") == "übler_fleck"  # as macOS spells names of folders
    assert make_code("MEL") == "mel"


class TestTable:
    def test_rows_and_description(self, write):
        folder = write()
        table, info = load_metadata(folder), describe_dataset(folder)
        assert (info.labels, info.source) == (CODES, "own")
        assert info.names == ("Mole", "Wart / callus", "Übler Fleck")
        assert info.malignant is None
        assert len(table) == 36
        assert [CODES[label] for label in table["label"]] == list(table["dx"])
        assert all(path.is_file() for path in table["path"])
        assert not is_by_image(table)

    def test_patients_count_as_lesions(self, write, rows):
        table = load_metadata(write(rows.rename(columns={"lesion_id": "patient_id"})))
        assert table["lesion_id"].nunique() == 18

    def test_facts_of_patients_are_read_under_the_names_of_ham10000(self, write, rows):
        table = load_metadata(write(rows.assign(age="50", sex="Female", site=["back", *[""] * 35])))
        assert table["age"].tolist() == [50] * 36
        assert set(table["sex"]) == {"female"}
        assert table["localization"].notna().sum() == 1

    def test_a_split_of_its_own_is_kept(self, write, rows, tmp_path):
        given = ["training"] * 24 + ["val"] * 6 + ["test"] * 6
        folder = write(rows.assign(split=given))
        split = write_split(folder, tmp_path / "splits.csv")
        assert split["split"].value_counts().to_dict() == {"train": 24, "validation": 6, "test": 6}
        with pytest.raises(InputError, match="has a split of its own, so that there are no folds"):
            make_split(load_metadata(folder), fold=(1, 3))

    def test_validation_is_drawn_from_its_training_images(self, write, rows):
        folder = write(rows.assign(split=["train"] * 24 + ["test"] * 12))
        split = make_split(load_metadata(folder))
        assert (split["split"][24:] == "test").all()
        assert set(split["split"][:24]) == {"train", "validation"}
        assert split.groupby("lesion_id")["split"].nunique().max() == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.rename(columns={"diagnosis": "label"}), "0 tables with diagnoses"),
            (lambda t: t.assign(diagnosis=["MOLE", *t["diagnosis"][1:]]), "MOLE and Mole"),
            (lambda t: t.assign(diagnosis=["", *t["diagnosis"][1:]]), "dx is empty in line 2"),
            (lambda t: t.assign(diagnosis=["All", *t["diagnosis"][1:]]), "can be called All"),
            (lambda t: t.assign(diagnosis="Mole"), r"1 classes \(mole\); from 2 to 50"),
            (lambda t: t.assign(diagnosis=t["image"]).iloc[:0], "has a header but no row"),
            (lambda t: pd.concat([t, t.iloc[[3]]]), "given more than once: img3"),
            (lambda t: t.iloc[1:], r"1 images without a row \(img0\)"),
            (
                lambda t: pd.concat([t, t.iloc[[0]].assign(image="x.jpg")]),
                r"without an image \(x\)",
            ),
            (lambda t: t.assign(split="later"), "unknown split: later; use train"),
            (lambda t: t.assign(malignant="perhaps"), "unknown values perhaps"),
            (lambda t: t.assign(malignant=["yes", *["no"] * 35]), "differs in Mole"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, write, rows, change, message):
        with pytest.raises(InputError, match=message):
            load_metadata(write(change(rows)))

    def test_columns_of_numbers_with_known_names_are_no_classes(self, write, rows):
        numbered = rows.assign(diagnosis=rows.index // 2 % 3, age=40)
        side = rows.assign(patient_id=rows.index // 4)[["image", "patient_id"]]
        table = load_metadata(write(numbered.drop(columns="lesion_id"), side__csv=side.to_csv()))
        assert table["dx"].value_counts().to_dict() == {"0": 12, "1": 12, "2": 12}
        assert table["lesion_id"].nunique() == 9
        assert set(table["age"]) == {40}

    def test_what_only_looks_like_a_table_is_left_alone(self, write):
        folder = write()
        (folder / "folder.csv").mkdir()
        (folder / "broken.csv").symlink_to("nowhere")
        assert len(load_metadata(folder)) == 36
        (folder / "long.csv").write_text("x" * 200_000)
        with pytest.raises(InputError, match=r"long\.csv: cannot be read as a table"):
            load_metadata(folder)

    def test_a_class_with_one_image_is_named(self, write, rows):
        rare = rows.assign(
            diagnosis=["Rare", *rows["diagnosis"][1:]], lesion_id=["r", *rows["lesion_id"][1:]]
        )
        table = load_metadata(write(rare))
        with pytest.raises(InputError, match=r"3 lesions of each class are needed: rare \(1\)"):
            make_split(table)

    def test_more_than_50_classes_are_refused(self, write, rows):
        many = pd.concat([rows.assign(image=rows["image"] + str(n)) for n in range(2)])
        many["diagnosis"] = [f"class {number}" for number in range(72)]
        with pytest.raises(InputError, match="72 classes"):
            read_dataset(write(many))

    def test_what_stands_for_a_missing_value_is_no_lesion(self, write, rows, capsys):
        table = load_metadata(write(rows.assign(lesion_id=["NA", "n/a", *rows["lesion_id"][2:]])))
        assert table["lesion_id"].nunique() == 19  # 17 lesions, and two images by themselves
        assert "2 images without lesion_id" in capsys.readouterr().err

    def test_tables_beside_it_complete_each_other(self, write, rows):
        ids = rows[["image", "lesion_id"]]
        for number, part in enumerate((ids[:20], ids[18:])):
            part.to_csv(write(rows[["image", "diagnosis"]]) / f"group{number}.csv", index=False)
        folder = write(rows[["image", "diagnosis"]])
        expected = list(ids["lesion_id"].str.upper())
        assert load_metadata(folder)["lesion_id"].tolist() == expected
        ids[:1].assign(lesion_id="other").to_csv(folder / "group3.csv", index=False)
        with pytest.raises(InputError, match="two values: lesion_id of img0"):
            read_dataset(folder)

    def test_two_files_of_one_name_are_named(self, write):
        folder = write()
        save(folder / "other" / "img0.jpg", 50)
        with pytest.raises(InputError, match=r"files of one name that differ: .*img0\.jpg"):
            load_metadata(folder)

    def test_two_tables_with_diagnoses_are_named(self, write, rows):
        folder = write(other__csv=rows.to_csv(index=False))
        with pytest.raises(InputError, match=r"2 tables with diagnoses .*list\.csv.*other\.csv"):
            read_dataset(folder)

    def test_a_split_file_beside_it_is_no_dataset(self, write):
        folder = write()
        write_split(folder, folder / "splits.csv")
        assert describe_dataset(folder).labels == CODES


class TestMalignancy:
    def test_from_a_column(self, write, rows):
        folder = write(rows.assign(malignant=rows["diagnosis"].eq(NAMES[1])))
        assert describe_dataset(folder).malignant == (False, False, True)

    def test_from_a_file(self, write):
        folder = write(dataset__yaml="name: Our moles\nmalignant: [Übler Fleck, wart / callus]\n")
        info = describe_dataset(folder)
        assert (info.source, info.malignant) == ("Our moles", (False, True, True))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("malignant: [Melanoma]", "not there: Melanoma; its classes are Mole, "),
            ("malignant: Mole", "must be a list"),
            ("benign: [Mole]", "and nothing else"),
            ("malignant: [", "cannot be read as YAML"),
        ],
    )
    def test_a_wrong_file_is_refused(self, write, text, message):
        with pytest.raises(InputError, match=message):
            describe_dataset(write(dataset__yaml=text))

    def test_the_class_malignant_stands_for_the_sum(self, write, rows):
        folder = write(
            rows.assign(diagnosis=rows["diagnosis"].replace({NAMES[0]: "malignant"})),
            dataset__yaml="malignant: [malignant]",
        )
        assert describe_dataset(folder).malignant == (True, False, False)
        (folder / "dataset.yaml").write_text(f"malignant: [malignant, {NAMES[1]}]", "utf-8")
        with pytest.raises(InputError, match="the class malignant cannot be one of several"):
            describe_dataset(folder)


class TestFolders:
    def test_names_of_folders_are_classes(self, folders):
        info, table = describe_dataset(folders), load_metadata(folders)
        assert info.labels == ("mole", "wart_or_callus", "übler_fleck")
        assert table["dx"].value_counts().to_dict() == dict.fromkeys(info.labels, 12)
        assert is_by_image(table)

    def test_folders_may_lie_in_parts_of_a_split(self, folders, tmp_path):
        for number, part in enumerate(("train", "val", "test")):
            for name in ("a", "b"):
                for image in range(4):
                    save(tmp_path / "parts" / part / name / f"{part}{name}{image}.png", number)
        split = make_split(load_metadata(tmp_path / "parts"))
        assert split["split"].value_counts().to_dict() == {"train": 8, "validation": 8, "test": 8}
        copied = copy_images(tmp_path / "parts", tmp_path / "copy")
        assert is_same_split(make_split(load_metadata(copied)), split)

    def test_what_lies_beside_the_parts_of_a_split_is_no_class(self, folders, tmp_path):
        for part in ("train", "test"):
            for image in range(8):
                save(tmp_path / "parts" / part / "ab"[image % 2] / f"{part}{image}.png", image)
        (tmp_path / "parts" / "notes").mkdir()
        (tmp_path / "parts" / "notes" / "readme.txt").touch()
        assert describe_dataset(tmp_path / "parts").labels == ("a", "b")
        save(tmp_path / "parts" / "unlabelled" / "1.png", 1)
        with pytest.raises(InputError, match="unlabelled lies beside folders that are named after"):
            describe_dataset(tmp_path / "parts")

    def test_what_macos_adds_to_an_archive_is_left_out(self, folders):
        expected = load_metadata(folders)
        for place in (folders / "__MACOSX" / "Mole", folders / "Mole"):
            place.mkdir(exist_ok=True, parents=True)
            (place / "._0.jpg").write_bytes(b"no image")
        pd.testing.assert_frame_equal(load_metadata(folders), expected)

    def test_one_name_in_two_classes_is_refused(self, folders):
        save(folders / "Mole" / "1.jpg", 99)
        with pytest.raises(InputError, match=r"one name in different folders: .*1\.jpe?g"):
            read_dataset(folders)

    def test_the_parts_of_ham10000_are_no_classes(self, flat_data):
        (flat_data / "HAM10000_metadata.csv").unlink()
        with pytest.raises(InputError, match=r"no HAM10000_metadata\.csv and no other dataset"):
            find_dataset(flat_data)

    def test_the_split_warns_that_it_is_by_image(self, folders, tmp_path, capsys):
        write_split(folders, tmp_path / "splits.csv")
        assert "the split is by image" in capsys.readouterr().err
        assert (
            "the split is by image" in audit_file(tmp_path / "splits.csv", data=folders).describe()
        )

    def test_near_duplicates_group_what_looks_alike(self, folders, tmp_path):
        pairs = pd.DataFrame({"image_id_1": ["0"], "image_id_2": ["3"]})
        pairs.to_csv(tmp_path / "pairs.csv", index=False)
        for seed in range(5):
            options = {"seed": seed, "near_duplicates": tmp_path / "pairs.csv"}
            split = write_split(folders, tmp_path / f"{seed}.csv", **options)
            part_of = split.set_index("image_id")["split"]
            assert part_of["0"] == part_of["3"]


class TestIsic:
    def make(self, flat_data, name="ISIC2018_Task3_Training_GroundTruth"):
        """ISIC 2018's training set as it is downloaded, from HAM10000's images and metadata."""
        table = load_metadata(flat_data)
        (flat_data / "HAM10000_metadata.csv").unlink()
        folder = flat_data / name
        folder.mkdir()
        labels = np.eye(7)[table["label"]]
        write_isic(folder / f"{name}.csv", list(table["image_id"]), labels, HAM10000)
        return table

    def test_ground_truth_is_read_with_what_is_known_of_these_classes(self, flat_data):
        expected = self.make(flat_data)
        table, info = load_metadata(flat_data), describe_dataset(flat_data)
        assert table["dx"].tolist() == expected["dx"].tolist()
        assert info.model_dump(exclude={"source"}) == HAM10000.model_dump(exclude={"source"})
        assert is_by_image(table)

    def test_lesions_come_from_a_table_beside_it(self, flat_data):
        expected = self.make(flat_data)
        groups = expected[["image_id", "lesion_id", "dx_type"]]
        groups = groups.rename(columns={"image_id": "image", "dx_type": "diagnosis_confirm_type"})
        groups.to_csv(flat_data / "ISIC2018_Task3_Training_LesionGroupings.csv", index=False)
        table = load_metadata(flat_data)
        assert table["lesion_id"].tolist() == expected["lesion_id"].tolist()
        assert set(table["dx_type"]) == {"histo"}

    @needs_real_data
    def test_from_the_metadata_of_ham10000(self, tmp_path):
        """The same images, labels, lesions and split, whatever the form."""
        expected = load_metadata(Path(REAL_DATA))
        labels = np.eye(7)[expected["label"]]
        truth = tmp_path / "truth" / "ISIC2018_Task3_Training_GroundTruth.csv"
        groups = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
        for part in Path(REAL_DATA).resolve().glob("*/"):
            (tmp_path / part.name).symlink_to(part)
        write_isic(truth, list(expected["image_id"]), labels, HAM10000)
        expected.rename(columns={"image_id": "image"})[["image", "lesion_id"]].to_csv(groups)
        table = load_metadata(tmp_path)
        assert table[["image_id", "label"]].equals(expected[["image_id", "label"]])
        pairs = read_near_duplicates()
        assert is_same_split(make_split(table, pairs=pairs), make_split(expected, pairs=pairs))

    def test_2019_has_other_classes_and_one_without_images(self, flat_data):
        table = load_metadata(flat_data)
        (flat_data / "HAM10000_metadata.csv").unlink()
        classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
        values = np.eye(9)[np.arange(98) % 8]
        truth = pd.DataFrame(values, columns=classes)
        truth.insert(0, "image", table["image_id"])
        truth.to_csv(flat_data / "ISIC_2019_Training_GroundTruth.csv", index=False)
        ages = pd.DataFrame(
            {
                "image": table["image_id"],
                "age_approx": 55.0,
                "anatom_site_general": "anterior torso",
                "lesion_id": [None, *table["lesion_id"][1:]],
                "sex": "female",
            }
        )
        ages.to_csv(flat_data / "ISIC_2019_Training_Metadata.csv", index=False)
        read, info = load_metadata(flat_data), describe_dataset(flat_data)
        assert info.labels == tuple(sorted(name.lower() for name in classes[:-1]))
        assert info.malignant is None
        assert read["lesion_id"][0] == "ISIC_0000000"
        assert read["age"].tolist() == [55.0] * 98

    def test_a_row_of_two_classes_is_refused(self, flat_data):
        self.make(flat_data)
        (path,) = flat_data.glob("*/*.csv")
        table = pd.read_csv(path)
        table.loc[3, ["MEL", "NV"]] = 1.0
        table.to_csv(path, index=False)
        with pytest.raises(InputError, match=r"rows need one 1\.0 .*: ISIC_0000003"):
            load_metadata(flat_data)


class TestCopy:
    @pytest.fixture(params=["table", "folders", "isic"])
    def source(self, request, write, folders, flat_data):
        TestIsic().make(flat_data)
        described = write(dataset__yaml="malignant: [Mole]")
        return {"table": described, "folders": folders, "isic": flat_data}[request.param]

    def test_a_copy_is_a_dataset_that_says_the_same(self, source, tmp_path):
        out = copy_images(source, tmp_path / "copy")
        one, other = (load_metadata(folder).sort_values("image_id") for folder in (source, out))
        assert len(list_images(out)) == len(one)
        columns = ["image_id", "lesion_id", "dx", "label"]
        assert one[columns].to_numpy().tolist() == other[columns].to_numpy().tolist()
        assert describe_dataset(out) == describe_dataset(source)
        assert copy_images(None, out) == out

    def test_every_message_is_one_line(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError) as caught:
            read_dataset(tmp_path / "empty")
        assert re.fullmatch(r"[^\n]*no dataset in it[^\n]*", str(caught.value))
