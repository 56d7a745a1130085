"""Prediction and truth files: what is written, what is read, and what is refused by name."""

import numpy as np
import pandas as pd
import pytest

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import (
    read_isic,
    read_isic_for,
    read_truth,
    write_isic,
)
from skinlesion.files import InputError


@pytest.fixture
def y_prob():
    return np.random.default_rng(0).dirichlet(np.ones(7), 5).astype(np.float32)


@pytest.fixture
def names():
    return [f"ISIC_{number}" for number in range(5)]


def test_form(tmp_path):
    write_isic(tmp_path / "p.csv", ["ISIC_1"], np.arange(7)[None] / 21, HAM10000)
    header, row = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    assert [round(float(v) * 21) for v in row.split(",")[1:]] == [4, 5, 1, 0, 2, 3, 6]


def test_whole_numbers_are_written_as_floats(tmp_path):
    write_isic(tmp_path / "p.csv", ["a"], np.eye(7, dtype=int)[[4]], HAM10000)
    assert (tmp_path / "p.csv").read_text().splitlines()[1] == "a,1.0,0.0,0.0,0.0,0.0,0.0,0.0"


def test_round_trip_in_another_order(y_prob, names, tmp_path):
    write_isic(tmp_path / "p.csv", names, y_prob, HAM10000)
    read_names, read = read_isic(tmp_path / "p.csv", HAM10000)
    assert read_names == names
    assert np.array_equal(read.astype(np.float32), y_prob)
    assert np.array_equal(read_isic_for(tmp_path / "p.csv", names[::-1], HAM10000), read[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="DF"), "columns missing: DF"),
        (lambda t: t.rename(columns={"DF": "SCC"}), "missing: DF; unknown: SCC"),
        (lambda t: pd.concat([t, t.iloc[[1]]]), "more than once: ISIC_1"),
        (lambda t: pd.concat([t, t.iloc[[1]].assign(image="ISIC_1.jpg")]), "than once: ISIC_1"),
        (lambda t: t.assign(MEL=["x", *t["MEL"][1:]]), "not numbers from 0 to 1 for ISIC_0"),
        (lambda t: t.assign(MEL=[np.nan, *t["MEL"][1:]]), "not numbers from 0 to 1 for ISIC_0"),
        (lambda t: t.assign(NV=t["NV"] + 1), "not numbers from 0 to 1 for ISIC_0, ISIC_1"),
        (lambda t: t.assign(**dict.fromkeys(t.columns[1:], 0.0)), "above 0 for ISIC_0, ISIC_1"),
        (lambda t: t.assign(image=[None, *t["image"][1:]]), "image is empty in line 2"),
    ],
)
def test_a_bad_file_is_refused_by_name(names, y_prob, tmp_path, change, message):
    path = tmp_path / "p.csv"
    write_isic(path, names, y_prob, HAM10000)
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        read_isic(path, HAM10000)


def test_missing_and_extra_images_are_named(names, y_prob, tmp_path):
    write_isic(tmp_path / "p.csv", names, y_prob, HAM10000)
    with pytest.raises(InputError, match="missing ISIC_9; extra ISIC_0, ISIC_1"):
        read_isic_for(tmp_path / "p.csv", [*names[2:], "ISIC_9"], HAM10000)


class TestTruth:
    def test_labels(self, names, tmp_path):
        write_isic(tmp_path / "t.csv", names, np.eye(7)[[4, 5, 0, 6, 1]], HAM10000)
        read_names, labels = read_truth(tmp_path / "t.csv", HAM10000)
        assert (read_names, labels.tolist()) == (names, [4, 5, 0, 6, 1])

    @pytest.mark.parametrize(
        "row", [np.zeros(7), np.full(7, 1 / 7), [1, 1, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0, 0]]
    )
    def test_a_row_without_exactly_one_1_is_refused(self, tmp_path, row):
        write_isic(tmp_path / "t.csv", ["good", "bad"], np.array([np.eye(7)[0], row]), HAM10000)
        with pytest.raises(InputError, match=r"one 1\.0 and otherwise 0\.0: bad"):
            read_truth(tmp_path / "t.csv", HAM10000)

    def test_an_unknown_class_is_refused(self, names, tmp_path):
        write_isic(tmp_path / "t.csv", names, np.eye(7)[[4, 5, 0, 6, 1]], HAM10000)
        pd.read_csv(tmp_path / "t.csv").assign(UNK=0.0).to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(InputError, match="unknown: UNK"):
            read_truth(tmp_path / "t.csv", HAM10000)
