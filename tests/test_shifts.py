"""Shifts: each change worked by hand, and what a run's figures under them are made of."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinlesion.cli import main
from skinlesion.data.dataset import list_images
from skinlesion.data.ham10000 import HAM10000
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.evaluation.shifts import (
    COOL,
    FIGURES,
    SHIFTS,
    WARM,
    compute_shifts,
    evaluate_shifts,
    predict_shifted,
    summarise_shifts,
)
from skinlesion.files import InputError
from skinlesion.model.run import Run


def flat(*color):
    return Image.new("RGB", (40, 30), color)


def colors(image):
    return np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()


@pytest.fixture(scope="module")
def lesion():
    """A dark disc on bright noise, 200x150."""
    rows, columns = np.mgrid[:150, :200]
    pixels = np.random.default_rng(0).integers(180, 220, (150, 200, 3), np.uint8)
    pixels[(rows - 74.5) ** 2 + (columns - 99.5) ** 2 < 30**2] = 40
    return Image.fromarray(pixels)


def share_dark(image):
    return (np.asarray(image)[..., 0] < 110).mean()


class TestEachShift:
    @pytest.mark.parametrize("name", SHIFTS)
    def test_leaves_no_chance_and_its_input_alone(self, name, lesion):
        before = np.asarray(lesion).copy()
        first, second = (np.asarray(SHIFTS[name](lesion)) for _ in range(2))
        assert first.dtype == np.uint8
        assert first.shape[2] == 3
        assert np.array_equal(first, second)
        assert np.array_equal(np.asarray(lesion), before)
        assert first.shape != before.shape or not np.array_equal(first, before)

    @pytest.mark.parametrize(("gains", "x", "y"), [(WARM, 0.3457, 0.3585), (COOL, 0.2831, 0.2971)])
    def test_casts_are_white_points(self, gains, x, y):
        xyz = np.array([x / y, 1, (1 - x - y) / y])
        to_linear = [
            [3.2406, -1.5372, -0.4986],
            [-0.9689, 1.8758, 0.0415],
            [0.0557, -0.2040, 1.0570],
        ]
        assert gains == pytest.approx((np.array(to_linear) @ xyz) ** (1 / 2.2), abs=2e-3)

    def test_light_worked_by_hand(self):
        assert colors(SHIFTS["warm"](flat(100, 100, 100))) == [[108, 99, 86]]
        assert colors(SHIFTS["cool"](flat(100, 100, 250))) == [[93, 100, 255]]
        assert colors(SHIFTS["dark"](flat(100, 50, 200))) == [[70, 35, 140]]
        assert colors(SHIFTS["bright"](flat(100, 50, 200))) == [[130, 65, 255]]
        assert colors(SHIFTS["low_contrast"](flat(90, 90, 90))) == [[90, 90, 90]]
        assert colors(SHIFTS["hue"](flat(90, 90, 90))) == [[90, 90, 90]]
        # 18 degrees from red to violet: three tenths of the 60 degrees that add all of the blue.
        assert colors(SHIFTS["hue"](flat(200, 0, 0))) == [[200, 0, 60]]

    def test_contrast_is_seven_tenths(self, lesion):
        spread = np.asarray(SHIFTS["low_contrast"](lesion), float).std()
        assert spread == pytest.approx(0.7 * np.asarray(lesion, float).std(), rel=0.01)

    def test_sharpness(self, lesion):
        blurred = np.asarray(SHIFTS["blur"](lesion), float)
        assert blurred.mean() == pytest.approx(np.asarray(lesion, float).mean(), abs=1)
        assert blurred[:20].std() < np.asarray(lesion, float)[:20].std() / 2
        coarse = np.asarray(SHIFTS["pixelate"](lesion))
        assert len(np.unique(coarse, axis=0)) < 150

    def test_zoom_changes_the_share_of_the_lesion(self, lesion):
        share = share_dark(lesion)
        assert share_dark(SHIFTS["zoom_in"](lesion)) == pytest.approx(1.3**2 * share, rel=0.02)
        assert share_dark(SHIFTS["zoom_out"](lesion)) == pytest.approx(0.75**2 * share, rel=0.02)

    def test_strengths_do_not_depend_on_the_size_of_the_file(self, lesion):
        large = lesion.resize((400, 300), Image.Resampling.NEAREST)
        for name in ("warm", "dark", "blur", "zoom_in", "zoom_out"):
            small, other = (
                np.asarray(SHIFTS[name](image).resize((20, 15), Image.Resampling.BOX), float)
                for image in (lesion, large)
            )
            assert np.abs(small - other).mean() < 1, name


class TestFigures:
    @pytest.fixture
    def rows(self):
        return pd.DataFrame({"label": np.arange(14) % 7, "lesion_id": np.arange(14)})

    def test_mean_and_worst_worked_by_hand(self, rows):
        right = np.eye(7)[rows["label"]]
        nevi = np.eye(7)[np.full(14, HAM10000.label_of["nv"])]
        predictions = {"none": right} | dict.fromkeys(SHIFTS, right) | {"blur": nevi}
        table = compute_shifts(rows, predictions, HAM10000)
        values = table.set_index(["subgroup", "figure"])["value"]
        assert values["none", "balanced_accuracy"] == 1
        assert values["blur", "balanced_accuracy"] == pytest.approx(1 / 7)
        assert values["mean", "balanced_accuracy"] == pytest.approx((10 + 1 / 7) / 11)
        assert values["mean", "sensitivity_mel"] == pytest.approx(10 / 11)
        assert values["mean", "macro_auc"] == pytest.approx(10.5 / 11)
        found = summarise_shifts(table)
        assert found["worst"] == dict.fromkeys((*FIGURES, "sensitivity_mel"), "blur")
        assert found["figures"]["mean"]["balanced_accuracy"]["high"] < 1

    def test_undefined_figures_have_no_worst(self, rows):
        rows = rows[rows["label"] != HAM10000.label_of["mel"]]
        right = np.eye(7)[rows["label"]]
        table = compute_shifts(rows, {"none": right} | dict.fromkeys(SHIFTS, right), HAM10000)
        assert summarise_shifts(table)["worst"]["sensitivity_mel"] is None


class TestRun:
    def test_without_a_change_the_predictions_are_the_usual_ones(self, predictor, sample, tmp_path):
        # PNG: decoders may read a JPEG at a reduced size, and a shift gets the whole image.
        paths = [tmp_path / f"{number}.png" for number in range(5)]
        for path, original in zip(paths, list_images(sample).values(), strict=False):
            Image.open(original).save(path)
        changed = predict_shifted(predictor, paths, lambda image: image)
        assert changed == pytest.approx(predictor.predict_files(paths).y_prob, abs=1e-6)

    def test_evaluation_with_shifts(self, run_copy, sample, capsys):
        options = ["evaluate", "--run", str(run_copy), "--data", str(sample)]
        assert main([*options, "--shifts"]) == 0
        assert "balanced accuracy under shifts: mean" in capsys.readouterr().out
        folder = run_copy / "evaluation"
        metrics = json.loads((folder / "metrics.json").read_text())
        figures = metrics["shifts"]["figures"]
        assert list(figures) == ["none", *SHIFTS, "mean"]
        for name in ("balanced_accuracy", "macro_auc"):
            assert figures["none"][name]["value"] == metrics["overall"][name]["value"]
        assert "| zoom out |" in (folder / "model_card.md").read_text("utf-8")
        table = pd.read_csv(folder / "shifts.csv")
        assert set(table["attribute"]) == {"shift", "localization", "dx_type"}
        assert {path.stem for path in (folder / "shifts").iterdir()} == {
            f"test_{name}" for name in SHIFTS
        }

        # Once measured, they stay in the report, and nothing is predicted again.
        assert "under 11 shifts" not in capsys.readouterr().out
        assert evaluate(run_copy, data=sample)["shifts"]["figures"].keys() == figures.keys()
        assert "under 11 shifts" not in capsys.readouterr().out

    def test_validation_images_to_choose_recipes_by(self, run_copy, sample):
        table = evaluate_shifts(run_copy, data=sample)
        count = len(Run(run_copy).rows("validation"))
        assert set(table.loc[table["attribute"] == "shift", "images"]) == {count}
        assert not (run_copy / "predictions_test.csv").exists()

    def test_unchanged_without_the_option(self, evaluated_run):
        metrics = json.loads((evaluated_run / "evaluation" / "metrics.json").read_text())
        assert "shifts" not in metrics
        card = (evaluated_run / "evaluation" / "model_card.md").read_text("utf-8")
        assert "Does it hold elsewhere" not in card

    def test_bad_input(self, trained_run, tmp_path, capsys):
        with pytest.raises(InputError, match="on: must be one of validation, test"):
            evaluate_shifts(trained_run, on="train")
        others = ["--images", str(tmp_path), "--truth", "t.csv", "--out", str(tmp_path / "out")]
        assert main(["evaluate", "--run", str(trained_run), "--shifts", *others]) == 2
        assert "--shifts is for the test images of the run" in capsys.readouterr().err
