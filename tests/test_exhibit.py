"""What a run gives the demo to show, without the page."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from skinlesion.demo.exhibit import (
    FIGURES,
    NOT_EVALUATED,
    SHOWN_SIZE,
    draw_heat,
    draw_image,
    gather_exhibit,
    judge_files,
    require_few,
    shorten,
    tabulate,
)
from skinlesion.diagnoses import CLASS_CODES, CLASS_NAMES, DISCLAIMER
from skinlesion.files import InputError
from skinlesion.model.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(evaluated_run):
    return Predictor.load(evaluated_run)


@pytest.fixture
def pictures(sample):
    return sorted(sample.glob("HAM10000_images_part_*/*.jpg"))


def test_card_and_figures_are_those_of_the_run(evaluated_run, predictor, sample, tmp_path):
    exhibit = gather_exhibit(evaluated_run, predictor, data=sample, drawn=tmp_path)
    assert exhibit.card.lstrip().startswith("# ")  # without the header for the Hub
    assert DISCLAIMER in exhibit.card
    assert [path.stem for path, _ in exhibit.figures] == list(FIGURES)
    assert exhibit.metrics["n"] == exhibit.point.images


def test_too_many_files_are_refused():
    with pytest.raises(InputError, match="201 files are too many"):
        require_few(["some.jpg"] * 201)


def test_the_table_has_a_row_for_each_file(evaluated_run, predictor, pictures, tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    exhibit = gather_exhibit(evaluated_run, predictor, data=None, drawn=tmp_path / "drawn")
    judged = judge_files(exhibit, [str(pictures[0]), str(tmp_path / "notes.jpg")])
    table = tabulate(judged)
    assert list(table["image"]) == [pictures[0].name, "notes.jpg"]
    assert table.loc[0, list(CLASS_CODES)].sum() == pytest.approx(1)
    assert "cannot be read" in table.loc[1, "error"]
    shown = shorten(table)
    assert "cannot be read" in shown.loc[1, "Verdict"]
    only_bad = shorten(tabulate(judged[1:]))
    assert "cannot be read" in only_bad.loc[0, "Verdict"]


def test_a_bundle_by_itself_is_shown_with_drawings_for_examples(evaluated_run, predictor, tmp_path):
    alone = shutil.copytree(evaluated_run / "model", tmp_path / "alone" / "model")
    exhibit = gather_exhibit(alone, predictor, data=None, drawn=tmp_path)
    assert exhibit.card == NOT_EVALUATED
    assert exhibit.point.sensitivity is None
    assert [title for _, title in exhibit.examples] == list(CLASS_NAMES)


def test_a_bundle_in_its_run_is_shown_with_the_figures_of_the_run(
    evaluated_run, predictor, sample, tmp_path
):
    ways = [
        gather_exhibit(folder, predictor, data=sample, drawn=tmp_path)
        for folder in (evaluated_run, evaluated_run / "model")
    ]
    assert ways[0] == ways[1]


def test_examples_are_test_images_of_each_class(evaluated_run, predictor, sample, tmp_path):
    exhibit = gather_exhibit(evaluated_run, predictor, data=sample, drawn=tmp_path)
    splits = (evaluated_run / "splits.csv").read_text().splitlines()
    tested = {line.split(",")[0] for line in splits if line.endswith(",test")}
    assert {path.stem for path, _ in exhibit.examples} <= tested
    assert [title for _, title in exhibit.examples] == list(CLASS_NAMES)


def test_a_real_model_without_its_dataset_has_no_examples(evaluated_run, predictor, tmp_path):
    info = dataclasses.replace(predictor.bundle.info, synthetic=False)
    real = Predictor(dataclasses.replace(predictor.bundle, info=info))
    alone = shutil.copytree(evaluated_run / "model", tmp_path / "alone" / "model")
    assert gather_exhibit(alone, real, data=None, drawn=tmp_path).examples == ()
    # The run remembers where its dataset lies.
    assert len(gather_exhibit(evaluated_run, real, data=None, drawn=tmp_path).examples) == 7


def test_pictures_keep_their_proportions(pictures):
    assert draw_image(pictures[0], 100).shape == (75, 100, 3)


def test_heat_of_a_foreign_image_is_drawn_only_when_asked_for(predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    assert draw_heat(predictor, tmp_path / "noise.png", even_if_foreign=False) is None
    assert draw_heat(predictor, tmp_path / "noise.png").shape == (480, SHOWN_SIZE, 3)
