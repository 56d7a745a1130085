import os
import shutil
from pathlib import Path

import pytest

from skinlesion.data import ham10000 as dataset
from skinlesion.data.ham10000 import (
    GatherReport,
    find_dataset,
    find_gathered,
    find_images,
    gather_images,
    is_sample,
    list_images,
)
from skinlesion.files import InputError
from skinlesion.machine import default_images_dir


def test_an_explicit_path_wins(flat_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HAM10000_DIR", str(tmp_path / "elsewhere"))
    assert find_dataset(flat_data) == flat_data


def test_the_variable_comes_next(flat_data, monkeypatch):
    monkeypatch.setenv("HAM10000_DIR", str(flat_data))
    assert find_dataset() == flat_data


@pytest.mark.parametrize("index", range(len(dataset.KAGGLE_MOUNTS)))
def test_either_kaggle_mount_is_found(index, flat_data, tmp_path, monkeypatch):
    mounts = [tmp_path / str(number) for number in range(len(dataset.KAGGLE_MOUNTS))]
    shutil.copytree(flat_data, mounts[index])
    monkeypatch.setattr(dataset, "KAGGLE_MOUNTS", mounts)
    assert find_dataset() == mounts[index]


def test_an_earlier_download_comes_next(flat_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINLESION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "download_dataset", None)
    shutil.copytree(flat_data, tmp_path / "cache" / "ham10000")
    assert find_dataset() == tmp_path / "cache" / "ham10000"


def test_otherwise_it_is_downloaded(flat_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINLESION_CACHE", str(tmp_path / "cache"))
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


def test_gather_links_every_image_and_the_metadata(flat_data, tmp_path):
    out = tmp_path / "all"
    assert gather_images(flat_data, out) == GatherReport(98, 0, 0)
    assert sorted(list_images(out)) == sorted(list_images(flat_data))
    source = flat_data / "HAM10000_images_part_1" / "ISIC_0000000.jpg"
    assert (out / "ISIC_0000000.jpg").samefile(source)
    assert find_dataset(out) == out


def test_gather_copies_where_links_are_refused(flat_data, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "all"
    assert gather_images(flat_data, out) == GatherReport(0, 98, 0)
    copied = (out / "ISIC_0000001.jpg").read_bytes()
    assert copied == (flat_data / "HAM10000_images_part_2" / "ISIC_0000001.jpg").read_bytes()


def test_gather_goes_on_after_an_interruption(flat_data, tmp_path):
    out = tmp_path / "all"
    gather_images(flat_data, out)
    (out / "ISIC_0000003.jpg").unlink()
    torn = out / "ISIC_0000004.jpg"
    torn.unlink()
    torn.write_bytes(b"\xff\xd8")
    (out / "ISIC_0000005.jpg.part").write_bytes(b"half")
    assert gather_images(flat_data, out) == GatherReport(2, 0, 96)
    assert not list(out.glob("*.part"))
    assert torn.stat().st_size > 2


def test_gather_never_writes_into_the_source(flat_data):
    before = sorted(Path(flat_data).rglob("*"))
    with pytest.raises(InputError, match="choose a folder apart"):
        gather_images(flat_data, flat_data / "all")
    assert sorted(Path(flat_data).rglob("*")) == before


def test_the_sample_stays_marked_when_gathered(sample, tmp_path):
    gather_images(sample, tmp_path / "all")
    assert is_sample(tmp_path / "all")
    # Masks are no images of the dataset.
    assert len(list_images(tmp_path / "all")) == 84


def test_two_datasets_are_not_mixed_in_one_folder(sample, flat_data, tmp_path):
    gather_images(sample, tmp_path / "all")
    with pytest.raises(InputError, match="holds images of another dataset"):
        gather_images(flat_data, tmp_path / "all")


def test_the_place_beside_the_metadata_is_told(flat_data):
    with pytest.raises(InputError, match=r"lies beside it, in .*flat; name the folder"):
        find_dataset(flat_data / "HAM10000_images_part_1")


class TestGathered:
    def test_it_is_used_while_its_source_is_named_or_nothing_is(
        self, flat_data, tmp_path, monkeypatch
    ):
        images = default_images_dir(tmp_path)
        gather_images(flat_data, images)
        assert find_images(None, tmp_path) == images
        monkeypatch.setenv("HAM10000_DIR", str(flat_data))
        assert find_images(None, tmp_path) == images

    def test_it_is_not_taken_for_another_dataset(self, flat_data, sample, tmp_path, monkeypatch):
        gather_images(flat_data, default_images_dir(tmp_path))
        monkeypatch.setenv("HAM10000_DIR", str(sample))
        with pytest.raises(InputError, match="was gathered from another dataset than"):
            find_images(None, tmp_path)
        assert find_images(sample, tmp_path) == sample

    def test_nothing_is_gathered_yet(self, tmp_path):
        assert find_gathered(tmp_path) is None
