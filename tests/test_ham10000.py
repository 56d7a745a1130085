import os
import shutil
from typing import ClassVar

import pandas as pd
import pytest

from skinlesion import machine
from skinlesion.data import copies, dataset
from skinlesion.data.copies import copy_images
from skinlesion.data.dataset import (
    find_dataset,
    find_images,
    list_images,
    load_metadata,
    require_local_dataset,
)
from skinlesion.data.forms import is_sample
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.metadata import dataset_fingerprint
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.files import InputError, read_json
from skinlesion.machine import default_images_dir


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SKINLESION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "KAGGLE_MOUNTS", ())


def test_an_explicit_path_wins(flat_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HAM10000_DIR", str(tmp_path / "elsewhere"))
    assert find_dataset(flat_data) == flat_data


def test_the_variable_comes_next(flat_data, monkeypatch):
    monkeypatch.setenv("HAM10000_DIR", str(flat_data))
    assert find_dataset() == flat_data


@pytest.mark.parametrize("index", range(2))
def test_either_kaggle_mount_is_found(index, flat_data, tmp_path, monkeypatch):
    mounts = [tmp_path / str(number) for number in range(2)]
    shutil.copytree(flat_data, mounts[index])
    monkeypatch.setattr(dataset, "KAGGLE_MOUNTS", mounts)
    assert find_dataset() == mounts[index]


def test_a_dataset_attached_under_another_name_is_found(flat_data, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "KAGGLE_INPUT", tmp_path / "input")
    (tmp_path / "input/titanic").mkdir(parents=True)
    copied = tmp_path / "input/datasets/somebody/my-ham10000"
    shutil.copytree(flat_data, copied)
    assert find_dataset() == copied


def test_an_earlier_download_comes_next(flat_data, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "download_dataset", None)
    shutil.copytree(flat_data, tmp_path / "cache" / "ham10000")
    assert find_dataset() == tmp_path / "cache" / "ham10000"


def test_otherwise_it_is_downloaded(flat_data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        dataset, "download_dataset", lambda folder: asked.append(folder) or flat_data
    )
    assert find_dataset() == flat_data
    assert asked == [tmp_path / "cache" / "ham10000"]


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no HAM10000_metadata\.csv"):
        find_dataset(tmp_path)


def test_each_image_once_although_shown_under_two_names(flat_data):
    shutil.copytree(flat_data / "HAM10000_images_part_1", flat_data / "ham10000_images_part_1")
    images = list_images(flat_data)
    assert len(images) == 98
    assert all(path.stem == image_id for image_id, path in images.items())


def test_two_files_of_one_name_that_differ_are_refused(flat_data):
    other = flat_data / "ham10000_images_part_1"
    other.mkdir()
    (other / "ISIC_0000000.jpg").write_bytes(b"something else")
    with pytest.raises(InputError, match="ISIC_0000000"):
        list_images(flat_data)


def test_the_place_beside_the_metadata_is_told(flat_data):
    with pytest.raises(InputError, match=r"lies beside it, in .*flat; name the folder"):
        find_dataset(flat_data / "HAM10000_images_part_1")


def test_inspection_does_not_start_a_download(monkeypatch):
    monkeypatch.setattr(dataset, "download_dataset", None)
    with pytest.raises(InputError, match="no dataset found: name its folder"):
        require_local_dataset()


class TestCopy:
    def copied(self, capsys):
        """How often each way of copying was reported, for example `{"linked": 98}`."""
        line = capsys.readouterr().out.splitlines()[-1]
        parts = line.rpartition("(")[2].rstrip(")").split(", ")
        return {way: int(number) for number, _, way in (part.partition(" ") for part in parts)}

    def test_every_image_is_linked(self, flat_data, tmp_path, capsys):
        out = tmp_path / "all"
        assert copy_images(flat_data, out) == out
        assert self.copied(capsys) == {"linked": 98}
        assert sorted(list_images(out)) == sorted(list_images(flat_data))
        source = flat_data / "HAM10000_images_part_1" / "ISIC_0000000.jpg"
        assert (out / "ISIC_0000000.jpg").samefile(source)
        assert find_dataset(out) == out

    def test_the_metadata_is_a_file_of_its_own(self, flat_data, tmp_path):
        name = "HAM10000_metadata.csv"
        out = copy_images(flat_data, tmp_path / "all")
        assert (out / name).read_bytes() == (flat_data / name).read_bytes()
        assert not (out / name).samefile(flat_data / name)

    def test_images_are_copied_where_links_are_refused(
        self, flat_data, tmp_path, monkeypatch, capsys
    ):
        def refuse(source, target):
            raise OSError("another file system")

        monkeypatch.setattr(os, "link", refuse)
        out = copy_images(flat_data, tmp_path / "all")
        assert self.copied(capsys) == {"copied": 98}
        copied = (out / "ISIC_0000001.jpg").read_bytes()
        assert copied == (flat_data / "HAM10000_images_part_2" / "ISIC_0000001.jpg").read_bytes()

    def test_an_interrupted_copy_is_completed(self, flat_data, tmp_path, capsys):
        out = copy_images(flat_data, tmp_path / "all")
        (out / "ISIC_0000003.jpg").unlink()
        torn = out / "ISIC_0000004.jpg"
        torn.unlink()
        torn.write_bytes(b"\xff\xd8")
        (out / "ISIC_0000005.jpg.part").write_bytes(b"half")
        copy_images(flat_data, out)
        assert self.copied(capsys) == {"already there": 96, "linked": 2}
        assert not list(out.glob("*.part"))
        assert torn.stat().st_size > 2

    def test_the_source_is_never_written_to(self, flat_data):
        before = sorted(flat_data.rglob("*"))
        for out in (flat_data / "all", flat_data.parent):
            with pytest.raises(InputError, match="choose a separate folder"):
                copy_images(flat_data, out)
        assert sorted(flat_data.rglob("*")) == before

    def test_a_folder_that_cannot_be_created_is_refused(self, flat_data, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"file/all: .*choose another folder"):
            copy_images(flat_data, tmp_path / "file" / "all")

    @pytest.mark.parametrize("links", [True, False])
    def test_a_source_that_vanishes_is_blamed_itself(self, flat_data, tmp_path, monkeypatch, links):
        image = flat_data / "HAM10000_images_part_1" / "ISIC_0000002.jpg"

        def vanish(*arguments, **options):
            table = load_metadata(*arguments, **options)
            image.unlink()
            if not links:
                image.mkdir()  # there, but no file that can be read
            return table

        monkeypatch.setattr(copies, "load_metadata", vanish)
        out = tmp_path / "all"
        with pytest.raises(InputError, match=r"^\S+flat\S+ISIC_0000002\.jpg: cannot be read \("):
            copy_images(flat_data, out)

    def test_half_a_dataset_is_refused(self, flat_data, tmp_path):
        shutil.rmtree(flat_data / "HAM10000_images_part_2")
        with pytest.raises(InputError, match="49 rows without an image"):
            copy_images(flat_data, tmp_path / "all")
        assert not (tmp_path / "all").exists()

    def test_the_copy_of_the_sample_is_marked_and_needs_its_source_no_longer(
        self, sample, tmp_path, capsys
    ):
        out = copy_images(sample, tmp_path / "all")
        assert SYNTHETIC_NOTE in capsys.readouterr().out
        assert is_sample(out)
        assert len(list((out / "masks").iterdir())) == 84
        # Masks are not images of the dataset.
        assert len(list_images(out)) == 84
        assert copy_images(None, out) == out
        assert "(84 already there)" in capsys.readouterr().out

    def test_two_datasets_are_not_mixed_in_one_folder(self, sample, flat_data, tmp_path):
        copy_images(sample, tmp_path / "all")
        with pytest.raises(InputError, match="holds images of another dataset"):
            copy_images(flat_data, tmp_path / "all")

    def test_the_copy_is_found_while_its_source_is_named_or_nothing_is(
        self, flat_data, tmp_path, monkeypatch
    ):
        images = copy_images(flat_data, default_images_dir(tmp_path))
        assert find_images(None, tmp_path) == images
        monkeypatch.setenv("HAM10000_DIR", str(flat_data))
        assert find_images(None, tmp_path) == images

    def test_the_copy_is_not_taken_for_another_dataset(
        self, flat_data, sample, tmp_path, monkeypatch
    ):
        copy_images(flat_data, default_images_dir(tmp_path))
        monkeypatch.setenv("HAM10000_DIR", str(sample))
        with pytest.raises(InputError, match="holds a copy of another dataset than"):
            find_images(None, tmp_path)
        assert find_images(sample, tmp_path) == sample


def edit(data, change):
    """Rewrite the metadata file with `change` applied to its table."""
    csv = data / "HAM10000_metadata.csv"
    change(pd.read_csv(csv)).to_csv(csv, index=False)


def test_rows_are_joined_to_images_and_labels(flat_data):
    table = load_metadata(flat_data)
    assert len(table) == 98
    assert [path.stem for path in table["path"]] == table["image_id"].tolist()
    assert [HAM10000.labels[label] for label in table["label"]] == table["dx"].tolist()


def test_missing_columns_are_named(flat_data):
    edit(flat_data, lambda table: table.drop(columns=["dx_type", "age"]))
    with pytest.raises(InputError, match="columns missing: dx_type, age"):
        load_metadata(flat_data)


def test_an_unknown_diagnosis_is_named(flat_data):
    edit(flat_data, lambda table: table.assign(dx=["wart", *table["dx"][1:]]))
    with pytest.raises(InputError, match="unknown dx: wart"):
        load_metadata(flat_data)


def test_a_doubled_image_is_named(flat_data):
    edit(flat_data, lambda table: pd.concat([table, table.iloc[[3]]]))
    with pytest.raises(InputError, match="more than once: ISIC_0000003"):
        load_metadata(flat_data)


def test_an_empty_cell_is_named_by_line(flat_data):
    edit(flat_data, lambda table: table.assign(lesion_id=[None, *table["lesion_id"][1:]]))
    with pytest.raises(InputError, match="lesion_id is empty in line 2"):
        load_metadata(flat_data)


def test_rows_without_image_are_named(flat_data):
    (flat_data / "HAM10000_images_part_1" / "ISIC_0000002.jpg").unlink()
    with pytest.raises(InputError, match=r"1 rows without an image \(ISIC_0000002\)"):
        load_metadata(flat_data)


def test_images_without_row_are_named(flat_data):
    edit(flat_data, lambda table: table.iloc[1:])
    with pytest.raises(InputError, match=r"1 images without a row \(ISIC_0000000\)"):
        load_metadata(flat_data)


class TestIncomplete:
    GAPS: ClassVar = {
        "rows without an image": ["ISIC_0000002"],
        "images without a row": ["ISIC_0000000"],
    }

    @pytest.fixture
    def incomplete(self, flat_data):
        """Lacks the row of the first image, and the image of the third row."""
        edit(flat_data, lambda table: table.iloc[1:])
        (flat_data / "HAM10000_images_part_1" / "ISIC_0000002.jpg").unlink()
        return flat_data

    def test_it_is_loaded_without_what_has_no_partner(self, incomplete):
        table = load_metadata(incomplete, allow_incomplete=True)
        assert len(table) == 96
        assert not {"ISIC_0000000", "ISIC_0000002"} & set(table["image_id"])

    def test_its_copy_is_complete_and_lists_what_was_left_out(self, incomplete, tmp_path, capsys):
        out = tmp_path / "all"
        with pytest.raises(InputError, match="or leave these out: allow_incomplete=True"):
            copy_images(incomplete, out)
        copy_images(incomplete, out, allow_incomplete=True)
        assert read_json(out / "incomplete.json") == self.GAPS
        assert len(load_metadata(out)) == len(list_images(out)) == 96
        row = (out / "HAM10000_metadata.csv").read_text().splitlines()[1]
        assert row in (incomplete / "HAM10000_metadata.csv").read_text().splitlines()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {incomplete}: incomplete: 1 rows without an image and 1")

    def test_a_dataset_that_was_completed_is_copied_whole(self, flat_data, tmp_path):
        image = flat_data / "HAM10000_images_part_1" / "ISIC_0000002.jpg"
        image.rename(tmp_path / "elsewhere")
        out = copy_images(flat_data, tmp_path / "all", allow_incomplete=True)
        assert (out / "incomplete.json").exists()
        (tmp_path / "elsewhere").rename(image)
        copy_images(flat_data, out)
        assert len(load_metadata(out)) == 98
        assert not (out / "incomplete.json").exists()

    def test_a_complete_dataset_leaves_no_list(self, flat_data, tmp_path):
        out = copy_images(flat_data, tmp_path / "all", allow_incomplete=True)
        assert not (out / "incomplete.json").exists()


def test_an_image_that_vanished_is_named(flat_data):
    """A link whose target is gone."""
    image = flat_data / "HAM10000_images_part_1" / "ISIC_0000002.jpg"
    image.unlink()
    image.symlink_to("nowhere")
    with pytest.raises(InputError, match=r"ISIC_0000002\.jpg: cannot be read \(No such file"):
        load_metadata(flat_data)


def test_names_of_files_in_small_letters_are_joined(flat_data):
    image = flat_data / "HAM10000_images_part_1" / "ISIC_0000002.jpg"
    image.rename(image.with_name("isic_0000002.JPG"))
    assert len(load_metadata(flat_data)) == 98


def test_a_file_that_is_no_table_is_refused(flat_data):
    (flat_data / "HAM10000_metadata.csv").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(InputError, match=r"HAM10000_metadata\.csv"):
        load_metadata(flat_data)


def test_fingerprint_tells_data_apart_but_not_order(flat_data):
    first = dataset_fingerprint(load_metadata(flat_data))
    edit(flat_data, lambda table: table.iloc[::-1])
    assert dataset_fingerprint(load_metadata(flat_data)) == first
    edit(flat_data, lambda table: table.replace({"dx": {"mel": "nv"}}))
    assert dataset_fingerprint(load_metadata(flat_data)) != first
