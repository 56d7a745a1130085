"""The check of a dataset: every kind of damage is found, named and counted, and nothing else."""

import json

import pandas as pd
import pytest
from conftest import REAL_DATA, needs_real_data
from PIL import Image

from skinlesion.data.check import check_dataset
from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.files import InputError

FIRST = "HAM10000_images_part_1/ISIC_0000000.jpg"
"""Shows lesion HAM_0000000, as ISIC_0000001 does."""
THIRD = "HAM10000_images_part_1/ISIC_0000002.jpg"
"""Shows lesion HAM_0000001."""


def change_rows(data, change):
    csv = data / METADATA_NAME
    table = pd.read_csv(csv)
    change(table)
    table.to_csv(csv, index=False)


def set_cell(column, value):
    return lambda data: change_rows(
        data, lambda table: table.__setitem__(column, [value, *table[column][1:]])
    )


def save_as(path, format, mode="RGB", size=(20, 15)):
    return lambda data: Image.new(mode, size, 77).save(data / path, format)


def cut(data):
    (data / FIRST).write_bytes((data / FIRST).read_bytes()[:-5])


def copy_file(source, target):
    def copy(data):
        (data / target).parent.mkdir(exist_ok=True)
        (data / target).write_bytes((data / source).read_bytes())

    return copy


def save_again(data):
    """One photograph under two lesions, once compressed more."""
    picture = Image.linear_gradient("L").resize((200, 150)).convert("RGB")
    for number in range(98):
        path = data / f"HAM10000_images_part_{1 + number % 2}/ISIC_{number:07d}.jpg"
        Image.open(path).resize((200, 150)).save(path)
    picture.save(data / FIRST, quality=95)
    picture.save(data / THIRD, quality=50)


def use_known_pair(data):
    """Give two images the ids of a pair on the list for HAM10000."""
    names = {"ISIC_0000000": "ISIC_0024437", "ISIC_0000002": "ISIC_0031299"}
    for old, new in names.items():
        (data / FIRST).with_name(f"{old}.jpg").rename((data / FIRST).with_name(f"{new}.jpg"))
    change_rows(data, lambda table: table.__setitem__("image_id", table["image_id"].replace(names)))


def write_as(encoding, separator):
    def write(data):
        table = pd.read_csv(data / METADATA_NAME).replace("back", "tête")
        table.to_csv(data / METADATA_NAME, index=False, encoding=encoding, sep=separator)

    return write


def no_damage(data):
    pass


HAM_0 = "HAM_0000000"
DAMAGE = {
    "nothing": (no_damage, {}),
    "an equal copy in another folder": (copy_file(FIRST, "again/ISIC_0000000.jpg"), {}),
    "a byte order mark": (write_as("utf-8-sig", ","), {}),
    "an empty file": (
        lambda data: (data / FIRST).write_bytes(b""),
        {"empty files": [FIRST]},
    ),
    "a truncated image": (cut, {"truncated images": [FIRST]}),
    "text": (
        lambda data: (data / FIRST).write_text("no image"),
        {
            "files that cannot be decoded": [
                f"{FIRST}: cannot be read as an image (damaged, truncated, or not an image); use a "
                "JPEG or PNG file"
            ]
        },
    ),
    "a dangling link": (
        lambda data: ((data / FIRST).unlink(), (data / FIRST).symlink_to("nowhere")),
        {
            "files that cannot be decoded": [
                f"{FIRST}: cannot be opened (No such file or directory)"
            ]
        },
    ),
    "a PNG named .jpg": (
        save_as(FIRST, "PNG"),
        {"images named .jpg in another format": [f"{FIRST}: PNG"]},
    ),
    "a grey image": (
        save_as(FIRST, "JPEG", "L"),
        {"images in another mode than RGB": [f"{FIRST}: L"]},
    ),
    "another size": (
        save_as(FIRST, "JPEG", size=(15, 20)),
        {"images of another size than 20x15": [f"{FIRST}: 15x20"]},
    ),
    "a missing image": (
        lambda data: (data / FIRST).unlink(),
        {"rows without an image": ["ISIC_0000000"]},
    ),
    "an image without a row": (
        save_as("stranger.jpg", "JPEG"),
        {"images without a row": ["stranger"]},
    ),
    "an image with another ending": (
        lambda data: (data / FIRST).rename(data / "ISIC_0000000.jpeg"),
        {
            "rows without an image": ["ISIC_0000000"],
            "images not named .jpg, which are not used": ["ISIC_0000000.jpeg"],
        },
    ),
    "one id twice": (
        save_as("ISIC_0000000.jpg", "JPEG"),
        {"one image_id, different files": [f"{FIRST} and ISIC_0000000.jpg"]},
    ),
    "one file under two ids": (
        copy_file(FIRST, THIRD),
        {"equal files under several image_ids": ["ISIC_0000000 and ISIC_0000002"]},
    ),
    "one photograph saved twice": (
        save_again,
        {"alike images of different lesions": ["ISIC_0000000 and ISIC_0000002"]},
    ),
    "a known near duplicate": (
        use_known_pair,
        {"known near duplicates, which splits keep together": ["ISIC_0024437 and ISIC_0031299"]},
    ),
    "a lesion of two diagnoses": (
        set_cell("dx", "mel"),
        {"lesions with contradictory facts": [f"{HAM_0}: dx akiec, mel"]},
    ),
    "a lesion of two sexes": (
        set_cell("sex", "male"),
        {"lesions with contradictory facts": [f"{HAM_0}: sex female, male"]},
    ),
    "a lesion of two ages": (
        set_cell("age", 45),
        {"lesions with contradictory facts": [f"{HAM_0}: age 45.0, 50.0"]},
    ),
    "a lesion at two sites": (
        set_cell("localization", "foot"),
        {"lesions with contradictory facts": [f"{HAM_0}: localization back, foot"]},
    ),
    "an unknown age": (set_cell("age", None), {}),
    "Latin 1": (
        write_as("latin-1", ","),
        {
            "metadata that other commands refuse": [
                f"{METADATA_NAME}: encoding latin-1, separator ','; save it as UTF-8 with commas"
            ]
        },
    ),
    "UTF-16 with semicolons": (
        write_as("utf-16", ";"),
        {
            "metadata that other commands refuse": [
                f"{METADATA_NAME}: encoding utf-16, separator ';'; save it as UTF-8 with commas"
            ]
        },
    ),
    "an unknown diagnosis": (
        lambda data: [set_cell("dx", "wart")(data), set_cell("lesion_id", "HAM_X")(data)],
        {
            "metadata that other commands refuse": [
                f"{METADATA_NAME}: unknown dx: wart; known are akiec, bcc, bkl, df, mel, nv, vasc"
            ]
        },
    ),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_nothing_else(flat_data, tmp_path, damage, expected):
    damage(flat_data)
    assert check_dataset(flat_data, tmp_path / "report") == expected


def test_a_whole_dataset(sample, tmp_path, capsys):
    assert check_dataset(sample, tmp_path) == {}
    said = capsys.readouterr().out
    assert "84 rows, 84 images, " in said
    assert "check: no problem found" in said
    report = json.loads((tmp_path / "data_report.json").read_text())
    assert report["found"] == {}
    assert len(report["checked"]) == 15
    assert report["metadata"]["encoding"] == "utf-8"
    assert report["images"]["size"] == {"300x225": 84}


def test_the_summary_has_a_line_for_each_kind_and_the_report_every_case(
    flat_data, tmp_path, capsys
):
    for name in (FIRST, THIRD):
        (flat_data / name).unlink()
    save_as("stranger.jpg", "JPEG")(flat_data)
    check_dataset(flat_data, tmp_path)
    table = [
        "| finding               | cases | first case |",
        "| --------------------- | ----: | --- |",
        "| rows without an image |     2 | ISIC_0000000 |",
        "| images without a row  |     1 | stranger |",
    ]
    assert capsys.readouterr().out.splitlines()[1:5] == table
    assert (tmp_path / "data_report.md").read_text().splitlines()[-4:] == table
    found = json.loads((tmp_path / "data_report.json").read_text())["found"]
    assert found["rows without an image"] == ["ISIC_0000000", "ISIC_0000002"]


def test_without_a_usual_size_none_is_unusual(flat_data, tmp_path):
    """11 of 98 images of another size: fewer than 90 % have the usual one."""
    for number in range(0, 22, 2):
        path = flat_data / f"HAM10000_images_part_1/ISIC_{number:07d}.jpg"
        Image.open(path).resize((40, 30)).save(path)
    assert check_dataset(flat_data, tmp_path) == {}


def test_the_dataset_is_only_read(flat_data, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in flat_data.rglob("*")}
    monkeypatch.chdir(tmp_path)
    check_dataset(flat_data)
    assert {path: path.stat().st_mtime_ns for path in flat_data.rglob("*")} == before
    assert (tmp_path / "outputs/data_report.md").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a table"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
        (b"a,b\n1,2\n", "columns missing: image_id, lesion_id, dx, .*; it has a, b"),
    ],
)
def test_metadata_that_is_no_such_table_is_bad_input(flat_data, tmp_path, content, message):
    (flat_data / METADATA_NAME).write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_dataset(flat_data, tmp_path)


def test_a_folder_without_images_is_bad_input(flat_data, tmp_path):
    for path in flat_data.glob("*/*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"no \.jpg file in it"):
        check_dataset(flat_data, tmp_path)


@needs_real_data
def test_what_is_wrong_with_ham10000(tmp_path):
    found = check_dataset(REAL_DATA, tmp_path)
    assert {kind: len(cases) for kind, cases in found.items()} == {
        "lesions with contradictory facts": 2,
        "equal files under several image_ids": 2,
        "known near duplicates, which splits keep together": 91,
    }
