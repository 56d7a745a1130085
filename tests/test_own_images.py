"""Three drawn classes, as anybody's own dataset, through every command with a small network."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from PIL import Image

from skinlesion.cli import main
from skinlesion.data.also import load_also, require_unseen
from skinlesion.data.dataset import load_metadata
from skinlesion.data.forms import describe_dataset
from skinlesion.data.isic_csv import write_isic
from skinlesion.data.split import join_split, make_split
from skinlesion.data.synthetic import make_sample
from skinlesion.demo import html
from skinlesion.demo.content import load_content
from skinlesion.demo.predict import predict_image
from skinlesion.diagnoses import BY_IMAGE_NOTE
from skinlesion.evaluation.evaluate import evaluate_folds
from skinlesion.files import InputError
from skinlesion.model.run import Run

CODES = ("actinic_keratosis_bowen_s_disease", "basal_cell_carcinoma", "benign_keratosis")
SMALL = ("--image-size", "32", "32", "--epochs", "1", "--weights", "none", "--batch-size", "8")
SMALL += ("--set", f"top_stage={TINY['top_stage']}")


def run(*arguments):
    assert main(list(map(str, arguments))) == 0, arguments


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three classes without lesion ids and without malignancy."""
    folder = make_sample(tmp_path_factory.mktemp("own") / "drawn", images_per_class=12, classes=3)
    table = pd.read_csv(folder / "metadata.csv").drop(columns="lesion_id")
    table.to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def finished(drawn, tmp_path_factory):
    """The folder with everything that the commands write, up to the evaluation."""
    work = tmp_path_factory.mktemp("work")
    run("copy", "--data", drawn, "--out", work / "images")
    run("check", "--data", work / "images", "--out", work / "report")
    run("split", "--data", work / "images", "--out", work / "splits.csv")
    run("audit", work / "splits.csv", "--data", work / "images")
    data = ("--data", work / "images", "--splits", work / "splits.csv")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run("train", *data, "--run", work / "run", *SMALL)
    (work / "said.txt").write_text(said.getvalue(), "utf-8")
    run("evaluate", "--run", work / "run", "--tta")
    return work


def test_the_classes_are_named_in_tables_files_and_card(finished):
    folder = finished / "run" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert tuple(metrics["per_class"]) == CODES
    assert list(pd.read_csv(folder / "confusion_matrix.csv", index_col=0)) == list(CODES)
    card = (folder / "model_card.md").read_text()
    assert "Basal cell carcinoma" in card
    assert "3 classes" in card
    assert "HAM10000" not in card
    header = (finished / "run" / "predictions_test.csv").read_text().splitlines()[0]
    assert header == "image," + ",".join(code.upper() for code in CODES)


def test_nothing_speaks_of_malignancy(finished):
    folder = finished / "run" / "evaluation"
    texts = [*folder.glob("*.csv"), folder / "model_card.md", folder / "metrics.json"]
    assert not [path.name for path in texts if "malignan" in path.read_text().lower()]
    assert not (folder / "operating_points.csv").exists()


def test_every_report_says_that_the_split_is_by_image(finished, capsys):
    folder = finished / "run" / "evaluation"
    assert json.loads((folder / "metrics.json").read_text())["split_by_image"] is True
    assert BY_IMAGE_NOTE in (folder / "model_card.md").read_text()
    run("evaluate", "--run", finished / "run")
    assert BY_IMAGE_NOTE in capsys.readouterr().out


def test_training_says_once_what_is_left_out(finished):
    said = (finished / "said.txt").read_text("utf-8")
    assert said.count("everything about malignancy is left out") == 1
    assert BY_IMAGE_NOTE in said


def test_predictions_and_page(finished, tmp_path):
    images = finished / "images"
    image = next(images.glob("*.jpg"))
    run("predict", "--run", finished / "run", image, "--out", tmp_path / "p.csv")
    table = pd.read_csv(tmp_path / "p.csv")
    assert [name for name in table if name.startswith("p_")] == [f"p_{code}" for code in CODES]
    assert "malignant" not in table
    assert set(table["prediction_set"][0].split()) <= set(CODES)
    result = predict_image(finished / "run", image)
    assert result.p_malignant is None
    assert "malignan" not in html.render_result(result).lower()
    assert "Malignant" not in html.make_short_table([result])
    content = load_content(Run.find(finished / "run"), data=None, drawn=tmp_path / "drawn")
    assert {name for _, name in content.examples} == set(content.model.info.names)


def test_score_and_external_images(finished, drawn, tmp_path):
    table, info = load_metadata(drawn), describe_dataset(drawn)
    write_isic(tmp_path / "t.csv", list(table["image_id"]), np.eye(3)[table["label"]], info)
    truth = ("--truth", tmp_path / "t.csv")
    external = ("evaluate", "--run", finished / "run", "--images", drawn, *truth)
    run(*external, "--out", tmp_path / "external")
    predictions = tmp_path / "external" / "predictions.csv"
    run("score", "--predictions", predictions, *truth, "--out", tmp_path / "score")
    one, other = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("external", "score")
    )
    assert one["overall"]["accuracy"] == other["overall"]["accuracy"]


def test_export_and_compare(finished, tmp_path):
    out = tmp_path / "saved"
    run("export", "--run", finished / "run", "--format", "saved_model", "--out", out)
    described = json.loads((tmp_path / "saved.json").read_text())
    assert described["labels"] == list(CODES)
    assert "(n, 3)" in described["output"]
    run("compare", finished / "run", finished / "run", "--out", tmp_path / "compared")


def test_two_classes_with_malignancy(tmp_path):
    data = make_sample(tmp_path / "two", images_per_class=12, classes=2)
    (data / "dataset.yaml").write_text("malignant: [Basal cell carcinoma]")
    run("train", "--data", data, "--run", tmp_path / "run", *SMALL)
    run("evaluate", "--run", tmp_path / "run")
    metrics = Run(tmp_path / "run").metrics
    assert "malignant_auc" in metrics["overall"]
    assert len(metrics["calibration"]["operating_points"]) == 2
    image = next(data.glob("*/*.jpg"))
    result = predict_image(tmp_path / "run", image)
    assert result.p_malignant == result.probabilities["basal_cell_carcinoma"]


def test_models_of_different_classes_are_not_folds(finished, trained_run, tmp_path):
    with pytest.raises(InputError, match="were trained on different classes"):
        evaluate_folds([finished / "run", trained_run], tmp_path)


class TestAlso:
    @pytest.fixture
    def more(self, tmp_path):
        """Other drawings of the same classes."""
        return make_sample(tmp_path / "more", images_per_class=4, seed=5, classes=3)

    @pytest.fixture
    def rows(self, drawn):
        table = load_metadata(drawn)
        return join_split(table, make_split(table))

    def rename(self, more):
        """Ids that the dataset does not have."""
        for path in more.glob("*/*.jpg"):
            path.rename(path.with_stem(path.stem.replace("ISIC_", "more")))
        table = pd.read_csv(more / "metadata.csv")
        names = table["image"].str.replace("ISIC_", "more")
        table.assign(image=names).to_csv(more / "metadata.csv", index=False)
        return more

    def test_its_images_are_trained_on_and_an_interrupted_run_goes_on_with_them(
        self, drawn, more, tmp_path, capsys
    ):
        more = self.rename(more)
        for _ in range(2):  # the second time, the run is finished
            run("train", "--data", drawn, "--also", more, "--run", tmp_path / "run", *SMALL)
        found = Run(tmp_path / "run")
        assert len(found.split) == 36
        (named,) = found.description["also"]
        assert named["folder"] == str(more)
        (tmp_path / "run" / "model" / "bundle.json").unlink()
        capsys.readouterr()
        run("train", "--run", tmp_path / "run")
        assert f"12 images of {more} are added" in capsys.readouterr().out

    def test_the_same_id_is_refused(self, more, rows):
        also = load_also([more], describe_dataset(more))
        with pytest.raises(InputError, match="are in validation or test: ISIC_9"):
            require_unseen(also, rows)

    def test_a_picture_that_was_saved_again_is_refused(self, drawn, more, rows):
        more = self.rename(more)
        tested = rows[rows["split"] == "test"].iloc[0]
        again = next(more.glob("*/*.jpg"))
        with Image.open(tested["path"]) as image:
            image.resize((150, 112)).save(again, quality=60)
        also = load_also([more], describe_dataset(drawn))
        with pytest.raises(InputError, match=f"{again.stem} as {tested['image_id']}"):
            require_unseen(also, rows)

    def test_other_images_are_accepted(self, drawn, more, rows):
        require_unseen(load_also([self.rename(more)], describe_dataset(drawn)), rows)

    def test_classes_that_are_not_there_are_listed(self, drawn, tmp_path):
        other = make_sample(tmp_path / "four", images_per_class=1, classes=5)
        with pytest.raises(InputError, match="does not have: dermatofibroma, melanoma; leave"):
            load_also([other], describe_dataset(drawn))
