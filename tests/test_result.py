"""What is said about one image, in numbers, words and HTML."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest

from skinlesion.data.ham10000 import HAM10000
from skinlesion.demo import html
from skinlesion.demo.result import (
    Failure,
    OperatingPoint,
    RankedDiagnosis,
    Result,
    find_operating_point,
    format_percent,
    list_columns,
    make_table,
)
from skinlesion.diagnoses import DISCLAIMER

MEASURED = OperatingPoint(
    threshold=0.2,
    n_malignant=120,
    sensitivity={"value": 0.94, "low": 0.90, "high": 0.97},
    specificity={"value": 0.64, "low": 0.61, "high": 0.67},
    n_test=1503,
)
MELANOMA = Result(
    file="some.jpg",
    is_in_distribution=True,
    ood_score=0.5,
    problems=(),
    diagnoses=tuple(
        RankedDiagnosis(*HAM10000.diagnoses[HAM10000.labels.index(code)], share, share > 0)
        for code, share in (
            ("mel", 0.6),
            ("nv", 0.4),
            ("akiec", 0.0),
            ("bcc", 0.0),
            ("bkl", 0.0),
            ("df", 0.0),
            ("vasc", 0.0),
        )
    ),
    p_malignant=0.6,
    prediction="mel",
    rule="decides by the highest probability relative to frequency",
    is_malignant=True,
    prediction_set=("mel", "nv"),
    operating_point=MEASURED,
)
BENIGN = dataclasses.replace(MELANOMA, is_malignant=False, p_malignant=0.1)
OUTSIDE = dataclasses.replace(MELANOMA, is_in_distribution=False, ood_score=3.0)


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def with_point(result, **changes):
    point = dataclasses.replace(result.operating_point, **changes)
    return dataclasses.replace(result, operating_point=point)


def test_the_operating_point_is_the_one_for_95_percent():
    calibration = SimpleNamespace(thresholds={"0.90": 0.4, "0.95": 0.2}, n_malignant=8, costs=None)
    share = {"value": 0.9, "low": 0.8, "high": 1.0, "undefined_resamples": 0}
    rows = [
        {"target_sensitivity": target, "threshold": at, "sensitivity": share, "specificity": share}
        for target, at in ((0.9, 0.4), (0.95, 0.2))
    ]
    metrics = {"n": 7, "calibration": {"operating_points": rows}}
    shown = {"value": 0.9, "low": 0.8, "high": 1.0}
    assert find_operating_point(calibration, metrics) == OperatingPoint(0.2, 8, shown, shown, 7)
    # The figures of another calibration say nothing about this one.
    rows[1]["threshold"] = 0.3
    assert find_operating_point(calibration, metrics) == OperatingPoint(0.2, 8)
    assert find_operating_point(calibration, None) == OperatingPoint(0.2, 8)


def test_sentences_say_what_the_result_means():
    malignant = plain(MELANOMA.sentence)
    assert malignant.startswith("The most probable diagnosis is melanoma (60 %).")
    assert "probability of 60 %, at or above the threshold of 20 %" in malignant
    assert "False-positive rate on the test set: 36 %." in malignant
    benign = plain(BENIGN.sentence)
    assert "10 %, below the threshold of 20 %" in benign
    assert "does not rule out cancer. False-negative rate on the test set: 6 %." in benign
    unmeasured = with_point(MELANOMA, sensitivity=None, specificity=None)
    assert "were not measured" in unmeasured.sentence
    assert "melanoma" not in OUTSIDE.sentence
    assert "not meaningful" in OUTSIDE.sentence


def test_a_threshold_from_few_malignant_images_is_called_uncertain():
    assert "threshold is uncertain" not in with_point(MELANOMA, n_malignant=30).sentence
    few = with_point(MELANOMA, n_malignant=29).sentence
    assert few.endswith("because the validation set has few malignant images (29).")


def test_without_a_threshold_nothing_is_called_malignant():
    result = dataclasses.replace(
        MELANOMA, is_malignant=None, operating_point=OperatingPoint(None, 0)
    )
    assert result.headline == "Predicted: melanoma"
    assert "no threshold for malignancy" in result.sentence
    assert "uncertain" not in result.sentence
    assert "benign" not in html.render_result(result).split("<table>")[0]


def test_values_are_ready_for_json():
    values = json.loads(json.dumps(MELANOMA.to_dict()))
    assert values["diagnoses"][0]["code"] == "mel"
    assert values["prediction_set"] == ["mel", "nv"]
    assert values["headline"] == MELANOMA.headline
    assert values["sentence"] == MELANOMA.sentence


def test_the_table_has_a_row_for_each_file():
    table = make_table(
        [MELANOMA, Failure("notes.jpg", "notes.jpg: cannot be read"), OUTSIDE], HAM10000
    )
    assert list(table.columns) == list_columns(HAM10000)
    assert list(table["file"]) == ["some.jpg", "notes.jpg", "some.jpg"]
    assert list(table["error"]) == ["", "notes.jpg: cannot be read", ""]
    assert list(table["in_distribution"].eq(True)) == [True, False, False]
    assert table.loc[0, "p_mel"] == 0.6
    assert table.loc[0, "prediction_set"] == "mel nv"
    assert table.loc[1, "prediction"] == ""
    shown = html.make_short_table([MELANOMA, Failure("notes.jpg", "notes.jpg: cannot be read")])
    assert list(shown["Result"]) == ["Predicted malignant", "notes.jpg: cannot be read"]
    assert shown.loc[1, "Malignant"] == ""


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (0.004, "< 1 %"), (0.014, "1 %"), (0.5, "50 %"), (0.995, "> 99 %"), (1, "100 %")],
)
def test_percentages_are_0_or_100_only_if_the_share_is(share, shown):
    assert plain(format_percent(share)) == shown


def test_html_shows_the_headline_the_diagnoses_and_the_notice():
    shown = html.render_result(MELANOMA)
    assert "Predicted malignant" in shown
    assert shown.count("<tr class=") == 7
    assert shown.count("aria-label='yes'") == 2
    assert "sensitivity 0.940 (0.900 to 0.970)" in shown
    assert DISCLAIMER in shown
    assert "<details>" not in shown


def test_html_hides_the_diagnoses_of_an_image_out_of_distribution():
    shown = html.render_result(OUTSIDE)
    assert shown.index(OUTSIDE.headline) < shown.index("<details>") < shown.index("<table>")
    assert "Predicted malignant" not in shown


def test_html_names_every_problem():
    shown = html.render_result(dataclasses.replace(MELANOMA, problems=tuple(html.PROBLEMS)))
    for words in html.PROBLEMS.values():
        assert words in shown


def test_text_from_outside_is_escaped():
    shown = html.render_failure("<script>alert(1)</script>")
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_html_is_well_formed():
    for result in (MELANOMA, dataclasses.replace(OUTSIDE, problems=("dark",))):
        shown = html.render_result(result)
        for tag in ("section", "table", "tr", "td", "th", "details", "div", "ul", "li", "p"):
            opened = len(re.findall(rf"<{tag}[ >]", shown))
            assert opened == shown.count(f"</{tag}>"), tag
