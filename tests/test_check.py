import pandas as pd

from skinlesion.data.check import check_dataset


def test_a_whole_dataset(sample, capsys):
    assert check_dataset(sample) == []
    said = capsys.readouterr().out
    assert "84 images" in said
    assert "check: no problem found" in said


def test_each_kind_of_damage_is_named(flat_data, capsys):
    files = sorted(flat_data.glob("*_part_1/*.jpg"))
    files[0].write_bytes(files[0].read_bytes()[:-200])
    files[1].rename(files[1].with_name("stranger.jpg"))
    csv = flat_data / "HAM10000_metadata.csv"
    table = pd.read_csv(csv)
    table.loc[0, "dx"] = "vasc"
    table.to_csv(csv, index=False)
    found = check_dataset(flat_data)
    assert found[0] == f"rows without an image: 1 ({files[1].stem})"
    assert found[1] == "images without a row: 1 (stranger)"
    assert found[2] == f"lesions with several diagnoses: 1 ({table['lesion_id'][0]})"
    assert f"1 ({files[0].name}: cannot be read as an image" in found[3]
    assert capsys.readouterr().out.splitlines()[1:] == found
