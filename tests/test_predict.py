"""From image files to results, and the command `predict`."""

import dataclasses
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import edit_bundle
from PIL import Image

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.images import ENDINGS
from skinlesion.data.isic_csv import read_isic
from skinlesion.demo.predict import (
    SHOWN_SIZE,
    CalibratedPredictor,
    find_example,
    list_files,
    predict,
    predict_image,
)
from skinlesion.demo.result import Failure, list_columns
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.files import InputError
from skinlesion.model.run import Run


@pytest.fixture(scope="module")
def model(trained_run):
    return CalibratedPredictor(trained_run)


@pytest.fixture
def noise(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    return tmp_path / "notes.jpg"


def test_probabilities_are_the_calibrated_ones(model, pictures, trained_run):
    result = predict_image(trained_run, pictures[5])
    y_prob = model.predictor.predict_files([pictures[5]]).y_prob
    calibrated = model.calibration.apply(y_prob)[0]
    assert list(result.probabilities) == list(HAM10000.labels)
    assert list(result.probabilities.values()) == pytest.approx(list(calibrated), abs=1e-6)
    assert sum(result.probabilities.values()) == pytest.approx(1)
    shown = [diagnosis.probability for diagnosis in result.diagnoses]
    assert shown == sorted(shown, reverse=True)
    malignant = [one.probability for one in result.diagnoses if one.malignant]
    assert result.p_malignant == pytest.approx(sum(malignant))
    assert {one.code for one in result.diagnoses if one.malignant} == {"akiec", "bcc", "mel"}
    in_set = [one.code for one in result.diagnoses if one.in_prediction_set]
    assert list(result.prediction_set) == in_set
    assert in_set[0] == result.diagnoses[0].code


def test_the_threshold_itself_counts_as_malignant(model, pictures, monkeypatch):
    p_malignant = model.predict_file(pictures[5]).result.p_malignant
    for threshold, expected in (
        (p_malignant, True),
        (np.nextafter(p_malignant, 1), False),
        (None, None),
    ):
        point = dataclasses.replace(model.operating_point, threshold=threshold)
        monkeypatch.setattr(model, "operating_point", point)
        assert model.predict_file(pictures[5]).result.is_malignant is expected


def test_a_small_file_is_recognised_by_its_own_size(model, pictures, tmp_path):
    height = model.info.image_size[0]
    for ending in (".png", ".jpg"):
        for size, is_small in ((height // 2 - 1, True), (height, False), (8 * height, False)):
            path = tmp_path / f"{size}{ending}"
            with Image.open(pictures[5]) as image:
                image.resize((size + 4, size)).save(path)
            assert ("small" in model.predict_file(path).result.problems) is is_small


def test_noise_is_out_of_distribution(model, noise, pictures):
    result = model.predict_file(noise).result
    assert not result.is_in_distribution
    assert result.ood_score > 1
    inside = [one.result.is_in_distribution for one in model.predict_files(pictures)]
    assert np.mean(inside) > 0.8


def test_an_image_is_decoded_and_predicted_once_for_result_heat_and_picture(
    model, pictures, count_calls
):
    calls = count_calls()
    prediction = model.predict_file(pictures[5], maps=True)
    heat = model.explain(prediction)
    assert heat.shape[1:] == (SHOWN_SIZE, 3)
    assert calls == {"decoded": 1, "predicted": 1}
    list(model.predict_files(pictures[:40]))
    assert calls == {"decoded": 41, "predicted": 41}


def test_pictures_keep_their_proportions_and_stay_small(model, tmp_path):
    Image.new("RGB", (3000, 1500)).save(tmp_path / "large.png")
    large = model.predict_file(tmp_path / "large.png", maps=True)
    assert large.picture.size == (SHOWN_SIZE, SHOWN_SIZE // 2)
    assert model.explain(large).shape == (SHOWN_SIZE // 2, SHOWN_SIZE, 3)
    Image.new("RGB", (1, 900)).save(tmp_path / "thin.png")
    assert (
        model.explain(model.predict_file(tmp_path / "thin.png", maps=True)).shape[0] == SHOWN_SIZE
    )


def test_more_files_than_a_batch_keep_their_order(model, pictures, notes):
    paths = [*pictures[:40], notes, *pictures[40:]]
    assert len(paths) > 64
    together = list(model.predict_files(paths))
    assert [one.file if isinstance(one, Failure) else one.result.file for one in together] == [
        path.name for path in paths
    ]
    assert "cannot be read as an image" in together[40].error
    for index in (0, 31, 32, 41, 60):
        alone = model.predict_file(paths[index]).result.probabilities.values()
        same = together[index].result.probabilities.values()
        assert list(same) == pytest.approx(list(alone), abs=1e-6)
    assert list(model.predict_files([])) == []


class TestPredict:
    def test_the_table_has_a_row_for_each_file(
        self, trained_run, model, sample, noise, notes, tmp_path, capsys
    ):
        folder = sample / "HAM10000_images_part_1"
        table = predict(trained_run, [folder, noise, notes], tmp_path / "p.csv")
        said = capsys.readouterr().out
        files = [*sorted(folder.glob("*.jpg")), noise, notes]
        assert list(table["file"]) == [str(path) for path in files]
        written = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
        assert list(written.columns) == list(table.columns) == list_columns(HAM10000)
        assert list(written["error"] != "") == [False] * (len(files) - 1) + [True]
        assert SYNTHETIC_NOTE in said
        assert f"1 of {len(files)} files cannot be predicted: notes.jpg: cannot be" in said
        assert str(noise) in said.split("out of distribution")[1]
        result = model.predict_file(files[0]).result
        row = table.iloc[0]
        assert row["prediction"] == result.diagnoses[0].code
        for code, probability in result.probabilities.items():
            assert row[f"p_{code}"] == pytest.approx(probability, abs=1e-6)
        assert row["malignant"] == result.is_malignant
        assert row["in_distribution"] == result.is_in_distribution
        assert row["ood_score"] == pytest.approx(result.ood_score, rel=1e-5)
        assert set(written["malignant"]) <= {"True", "False", ""}

    def test_the_isic_form_is_uncalibrated_and_names_what_is_left_out(
        self, trained_run, predictor, pictures, notes, tmp_path, capsys
    ):
        table = predict(trained_run, [*pictures[:3], notes], tmp_path / "p.csv", isic=True)
        assert "notes.jpg: cannot be read" in capsys.readouterr().out
        assert list(table["error"] != "") == [False, False, False, True]
        names, y_prob = read_isic(tmp_path / "p.csv", HAM10000)
        assert names == [path.stem for path in pictures[:3]]
        expected = predictor.predict_files(pictures[:3]).y_prob
        assert np.allclose(y_prob, expected, atol=1e-6)

    def test_files_of_the_same_name_are_refused_only_in_the_isic_form(
        self, trained_run, pictures, tmp_path
    ):
        paths = [pictures[0], shutil.copy(pictures[0], tmp_path)]
        with pytest.raises(InputError, match=f"same name.*{pictures[0].stem}"):
            predict(trained_run, paths, tmp_path / "p.csv", isic=True)
        assert list(predict(trained_run, paths, tmp_path / "p.csv")["file"]) == list(
            map(str, paths)
        )

    def test_a_saved_model_by_itself_predicts_the_same(self, trained_run, pictures, tmp_path):
        alone = shutil.copytree(trained_run / "model", tmp_path / "alone")
        tables = [
            predict(folder, [pictures[5]], tmp_path / "p.csv") for folder in (trained_run, alone)
        ]
        pd.testing.assert_frame_equal(*tables)


def test_every_image_file_of_a_folder_is_listed_and_every_other_one_named(tmp_path, capsys):
    images = {f"{number}{ending}" for number, ending in enumerate(ENDINGS)}
    images |= {f"{number}{ending.upper()}" for number, ending in enumerate(ENDINGS, 10)}
    for name in (*images, "notes.txt", "report.pdf"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert {path.name for path in list_files([tmp_path])} == images
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("ignored, not image files: more/, notes.txt, report.pdf")


def test_what_cannot_be_written_is_refused_before_the_first_prediction(pictures, tmp_path):
    with pytest.raises(InputError, match="is a folder; name a file to write"):
        predict(tmp_path / "no_run_is_needed", pictures, tmp_path)
    shutil.copy(pictures[0], tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    with pytest.raises(InputError, match=r"not UTF-8: '.*caf\\udce9\.jpg'; rename"):
        list_files([tmp_path])


def test_nothing_to_predict_is_refused(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no image file directly in it \(\.jpg"):
        list_files([pictures[0], tmp_path / "empty"])
    with pytest.raises(InputError, match=r"absent\.jpg: no such file"):
        list_files([tmp_path / "absent.jpg"])
    with pytest.raises(InputError, match="nothing to predict"):
        list_files([])


def test_an_uncalibrated_model_is_refused(run_copy, pictures):
    run = Run(run_copy)
    edit_bundle(run.model_dir, calibration=None)
    with pytest.raises(InputError, match="calibrate"):
        predict_image(run, pictures[0])


def test_an_example_is_a_test_image_of_the_diagnosis(trained_run, sample, flat_data):
    rows = Run(trained_run).rows("test").set_index("image_id")
    for code in HAM10000.labels:
        assert rows.loc[find_example(trained_run, sample, code).stem, "dx"] == code
    assert find_example(trained_run, sample, "none").stem in rows.index
    with pytest.raises(InputError, match="no test image"):
        find_example(trained_run, flat_data, "mel")
