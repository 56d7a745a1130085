"""The metadata file: one spelling for each value, and nothing that is cut off."""

import pandas as pd
import pytest

from skinlesion.data.metadata import normalise_id, read_metadata
from skinlesion.files import InputError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
ROWS = (
    "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp\n",
    "HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp\n",
    "HAM_0002730,ISIC_0026769,nv,histo,45.0,female,back\n",
)


@pytest.fixture
def write(tmp_path):
    """Write a metadata file of these lines, and return its path."""

    def write(*lines):
        path = tmp_path / "HAM10000_metadata.csv"
        path.write_text("".join(lines))
        return path

    return write


def test_blanks_and_case_do_not_make_another_lesion(write, capsys):
    odd = "ham_0000118 , isic_0025030, BKL ,histo,80.0,Male,scalp\n"
    table = read_metadata(write(HEADER, ROWS[0], odd, ROWS[2]))
    assert table["lesion_id"].tolist() == ["HAM_0000118", "HAM_0000118", "HAM_0002730"]
    assert table["image_id"].tolist() == ["ISIC_0027419", "ISIC_0025030", "ISIC_0026769"]
    assert table["dx"].tolist() == ["bkl", "bkl", "nv"]
    assert table["sex"].tolist() == ["male", "male", "female"]
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "4 values of lesion_id, image_id, dx, sex were corrected (blanks, upper and lower case)"
        in line
    )


def test_a_clean_file_is_read_silently(write, capsys):
    assert len(read_metadata(write(HEADER, *ROWS))) == 3
    assert capsys.readouterr() == ("", "")


def test_a_missing_sex_stays_missing(write, capsys):
    table = read_metadata(write(HEADER, ROWS[0], ROWS[2].replace("female", "")))
    assert table["sex"].isna().tolist() == [False, True]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("change", [("bkl", "mel"), ("male", "female")], ids=["diagnosis", "sex"])
def test_ids_that_become_equal_with_different_facts_are_refused(write, change):
    odd = ROWS[1].replace("HAM_0000118", "ham_0000118").replace(*change)
    with pytest.raises(InputError, match=r"different dx or sex: HAM_0000118; correct"):
        read_metadata(write(HEADER, ROWS[0], odd))


def test_an_image_that_is_given_twice_in_two_spellings_is_refused(write):
    with pytest.raises(InputError, match="image_id given more than once: ISIC_0027419"):
        read_metadata(write(HEADER, ROWS[0], ROWS[0].replace("ISIC_0027419", "isic_0027419 ")))


def test_a_cell_of_blanks_is_empty(write):
    with pytest.raises(InputError, match="lesion_id is empty in line 3"):
        read_metadata(write(HEADER, ROWS[0], ROWS[1].replace("HAM_0000118", "  ")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"metadata\.csv: is empty; expected"),
        ((HEADER,), r"metadata\.csv: has a header but no row"),
        ((HEADER, *ROWS[:2], ROWS[2][:30]), r"too few values in line 4: it may be cut off"),
        ((HEADER, ROWS[0], ROWS[1][:20], "\n", ROWS[2]), r"too few values in line 3:"),
        ((HEADER, *(row.strip() + ",\n" for row in ROWS[:2])), r"too many values in line 2, 3"),
    ],
    ids=["nothing", "header", "cut at the end", "cut in the middle", "a comma at each end"],
)
def test_a_file_that_is_cut_off_is_refused(write, lines, message):
    with pytest.raises(InputError, match=message):
        read_metadata(write(*lines))


def test_a_byte_order_mark_and_a_missing_line_break_at_the_end_are_no_damage(write):
    assert len(read_metadata(write("\ufeff", HEADER, *ROWS[:2], ROWS[2].strip()))) == 3


@pytest.mark.parametrize("blank", ["\n", "\r\n", "   \n", "\t\n"])
def test_blank_lines_are_skipped(write, blank):
    lines = (HEADER, blank, *ROWS[:2], blank, blank, ROWS[2], blank)
    assert read_metadata(write(*lines)).equals(read_metadata(write(HEADER, *ROWS)))


def test_the_case_of_ids_that_are_not_of_the_isic_archive_is_kept():
    ids = pd.Series([" isic_0000001.JPG", "ISIC_0000001", " Photo_a ", "photo_A"])
    assert ids.map(normalise_id).tolist() == ["ISIC_0000001", "ISIC_0000001", "Photo_a", "photo_A"]
