"""What is said about one image, in numbers, words and HTML."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from skinlesion.demo import page
from skinlesion.demo.result import (
    FOREIGN,
    PROBLEMS,
    Candidate,
    OperatingPoint,
    Verdict,
    find_operating_point,
    format_share,
    judge_image,
)
from skinlesion.diagnoses import CLASS_CODES, DIAGNOSES, DISCLAIMER
from skinlesion.evaluation.calibration import apply_temperature
from skinlesion.model.predictor import Predictor

MEASURED = OperatingPoint(
    threshold=0.2,
    sensitivity={"value": 0.94, "low": 0.90, "high": 0.97},
    specificity={"value": 0.64, "low": 0.61, "high": 0.67},
    images=1503,
)


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor.load(trained_run)


@pytest.fixture
def picture(sample):
    return sorted(sample.glob("*_part_*/*.jpg"))[5]


def make_verdict(**changes):
    """Melanoma with 60 %, nevus with 40 %."""
    shares = {"mel": 0.6, "nv": 0.4}
    candidates = [
        Candidate(*diagnosis, shares.get(diagnosis.code, 0.0), diagnosis.code in shares)
        for diagnosis in DIAGNOSES
    ]
    verdict = Verdict(
        image="some.jpg",
        is_dermatoscopic=True,
        problems=(),
        candidates=tuple(sorted(candidates, key=lambda one: -one.probability)),
        malignancy=0.6,
        is_malignant=True,
        operating_point=MEASURED,
    )
    return dataclasses.replace(verdict, **changes)


def test_confidences_are_the_calibrated_ones(predictor, picture):
    verdict = judge_image(predictor, picture, OperatingPoint(0.5))
    y_prob = np.array([list(predictor.predict(picture).probabilities.values())])
    calibrated = apply_temperature(y_prob, predictor.calibration.temperature)[0]
    by_code = {one.code: one.probability for one in verdict.candidates}
    assert [by_code[code] for code in CLASS_CODES] == pytest.approx(list(calibrated))
    malignant = [one.probability for one in verdict.candidates if one.malignant]
    assert verdict.malignancy == pytest.approx(sum(malignant))
    assert {one.code for one in verdict.candidates if one.malignant} == {"akiec", "bcc", "mel"}


def test_the_threshold_itself_counts_as_malignant(predictor, picture):
    malignancy = judge_image(predictor, picture, OperatingPoint(None)).malignancy
    for threshold, called in ((malignancy, True), (np.nextafter(malignancy, 1), False)):
        verdict = judge_image(predictor, picture, OperatingPoint(threshold))
        assert verdict.is_malignant is called


def test_without_a_threshold_nothing_is_called(predictor, picture):
    verdict = judge_image(predictor, picture, OperatingPoint(None))
    assert verdict.is_malignant is None
    assert "no threshold" in verdict.sentence


def test_a_small_file_is_told_by_its_own_size(predictor, picture, tmp_path):
    with Image.open(picture) as image:
        image.resize((40, 30)).save(tmp_path / "small.png")
    assert "small" in judge_image(predictor, tmp_path / "small.png", OperatingPoint(0.5)).problems


def test_the_operating_point_is_the_one_for_95_percent(predictor):
    threshold = predictor.calibration.thresholds["0.95"]
    share = {"value": 0.9, "low": 0.8, "high": 1.0, "draws_left_out": 0}
    rows = [
        {"target_sensitivity": target, "threshold": at, "sensitivity": share, "specificity": share}
        for target, at in ((0.9, threshold / 2), (0.95, threshold))
    ]
    metrics = {"n": 7, "calibration": {"operating_points": rows}}
    found = find_operating_point(predictor, metrics)
    assert found.threshold == threshold
    assert found.sensitivity == {"value": 0.9, "low": 0.8, "high": 1.0}
    assert found.images == 7
    # Figures of another calibration say nothing about this one.
    rows[1]["threshold"] = threshold / 3
    assert find_operating_point(predictor, metrics).sensitivity is None
    assert find_operating_point(predictor, None) == OperatingPoint(threshold)


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_sentences_say_what_the_result_means():
    called = plain(make_verdict().sentence)
    assert called.startswith("Most probable is melanoma (60 %)")
    assert "from 20 % the model calls an image malignant" in called
    assert "it said so, wrongly, of 36 % of the benign ones" in called
    benign = plain(make_verdict(is_malignant=False, malignancy=0.1).sentence)
    assert "below the 20 %" in benign
    assert "does not rule cancer out: it missed 6 % of the malignant" in benign
    unknown = make_verdict(operating_point=OperatingPoint(0.2)).sentence
    assert "was not measured" in unknown
    foreign = make_verdict(is_dermatoscopic=False).sentence
    assert "melanoma" not in foreign
    assert "means nothing" in foreign


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (0.004, "< 1 %"), (0.014, "1 %"), (0.5, "50 %"), (0.995, "> 99 %"), (1, "100 %")],
)
def test_shares_do_not_claim_to_be_0_or_100_when_they_are_not(share, shown):
    assert plain(format_share(share)) == shown


def test_html_shows_the_call_the_classes_and_the_notice():
    html = page.render_verdict(make_verdict())
    assert "Called malignant" in html
    assert html.count("<tr class=") == 7
    assert html.count("aria-label='yes'") == 2
    assert "sensitivity 0.940 (0.900 to 0.970)" in html
    assert DISCLAIMER in html
    assert "<details>" not in html


def test_html_of_a_foreign_image_folds_the_classes_away():
    html = page.render_verdict(make_verdict(is_dermatoscopic=False))
    assert html.index(FOREIGN) < html.index("<details>") < html.index("<table>")
    assert "Called malignant" not in html


def test_html_names_every_problem():
    html = page.render_verdict(make_verdict(problems=tuple(PROBLEMS)))
    for words in PROBLEMS.values():
        assert words in html


@pytest.mark.parametrize("render", [page.render_failure, page.render_nothing])
def test_text_from_outside_is_escaped(render):
    html = render("<script>alert(1)</script>")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_html_is_well_formed():
    for verdict in (make_verdict(), make_verdict(is_dermatoscopic=False, problems=("dark",))):
        html = page.render_verdict(verdict)
        for tag in ("section", "table", "tr", "td", "th", "details", "div", "ul", "li", "p"):
            opened = len(re.findall(rf"<{tag}[ >]", html))
            assert opened == html.count(f"</{tag}>"), tag
