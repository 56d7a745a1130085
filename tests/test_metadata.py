import pandas as pd
import pytest

from skinlesion.data.ham10000 import dataset_fingerprint, load_metadata
from skinlesion.diagnoses import CLASS_CODES
from skinlesion.files import InputError


def edit(data, change):
    """Rewrite the metadata file with `change` applied to its table."""
    csv = data / "HAM10000_metadata.csv"
    change(pd.read_csv(csv)).to_csv(csv, index=False)


def test_rows_are_joined_to_images_and_labels(flat_data):
    table = load_metadata(flat_data)
    assert len(table) == 98
    assert [path.stem for path in table["path"]] == table["image_id"].tolist()
    assert [CLASS_CODES[label] for label in table["label"]] == table["dx"].tolist()


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
    with pytest.raises(InputError, match=r"1 of 98 rows .* no image: ISIC_0000002"):
        load_metadata(flat_data)


def test_images_without_row_are_reported_and_left_out(flat_data):
    edit(flat_data, lambda table: table.iloc[1:])
    with pytest.warns(UserWarning, match="1 images have no row .* ISIC_0000000"):
        table = load_metadata(flat_data)
    assert len(table) == 97


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
