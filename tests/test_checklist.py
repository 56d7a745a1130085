"""The checklists name every item, files that exist, and nothing that a run does not have."""

import json
import re
import shutil
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from conftest import edit_bundle

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import write_isic
from skinlesion.evaluation.checklist import NOT_REPORTED, make_checklist
from skinlesion.evaluation.evaluate import evaluate_external
from skinlesion.model.run import Run

TRIPOD = [
    *("1", "2", "3a", "3b", "3c", "4", "5a", "5b", "6a", "6b", "6c", "7", "8a", "8b", "8c"),
    *("9a", "9b", "9c", "10", "11", "12a", "12b", "12c", "12d", "12e", "12f", "12g", "13", "14"),
    *("15", "16", "17", "18a", "18b", "18c", "18d", "18e", "18f", "19", "20a", "20b", "20c"),
    *("21", "22", "23a", "23b", "24", "25", "26", "27a", "27b", "27c"),
]
CLEAR_DERM = [str(item) for item in range(1, 26)]


@pytest.fixture
def run(evaluated_run, tmp_path):
    """A copy of an evaluated run of the sample that a test may change."""
    return Run(shutil.copytree(evaluated_run, tmp_path / "run"))


@pytest.fixture
def real_run(run):
    """The same, as if its images were HAM10000's."""
    edit_bundle(run.model_dir, synthetic=False)
    return run


def read(run):
    """The answers of both lists by item."""
    text = make_checklist(run, run.metrics)
    lists = re.split(r"^## ", text, flags=re.M)[1:]
    rows = [re.findall(r"^\| (\d+\w?) \| (.+?) \| (.+?) \|$", part, re.M) for part in lists]
    return [{item: answer for item, _, answer in part} for part in rows]


def test_all_items_are_there_in_order(run):
    tripod, clear_derm = read(run)
    assert list(tripod) == TRIPOD
    assert list(clear_derm) == CLEAR_DERM


def test_every_row_needs_something_that_is_looked_for():
    with (files("skinlesion.evaluation") / "checklist.csv").open() as file:
        needs = pd.read_csv(file, keep_default_na=False)["needs"]
    known = {"real", "synthetic", "weighted", "unweighted", "epochs", "commit", "incomplete"}
    known |= {"quarantine", "subgroups", "costs", "external", "malignancy"}
    assert set(" ".join(needs).split()) == known


@pytest.mark.parametrize("kind", ["run", "real_run"])
def test_every_file_that_is_named_exists(kind, request):
    run = request.getfixturevalue(kind)
    named = re.findall(r"`([\w/]+\.\w+|\w+/)`", make_checklist(run, run.metrics))
    assert {"splits.csv", "evaluation/metrics.csv", "model/"} <= set(named)
    for name in named:
        assert (run.folder / name).exists(), name


def test_sections_of_the_card_that_are_named_exist(real_run):
    card = (real_run.evaluation_dir / "model_card.md").read_text()
    text = make_checklist(real_run, real_run.metrics)
    sections = set(re.findall(r"^##+ (.+)$", card, re.M))
    for place in re.findall(r"model_card\.md`, ([^;:|]+)", text):
        for section in place.strip().split(" and "):
            assert section in sections | {"title", "first section"}, section


def test_what_nothing_answers_is_said(run):
    tripod, clear_derm = read(run)
    for item in ("18a", "18b", "18d", "19", "23b"):
        assert tripod[item] == NOT_REPORTED
    assert clear_derm["22"] == NOT_REPORTED


def test_answers_about_the_dataset_are_for_real_images(real_run):
    tripod, clear_derm = read(real_run)
    assert tripod["17"] == "the paper of HAM10000"
    assert "skin tone" in tripod["3c"]
    assert "does not record it" in clear_derm["8"]


def test_a_synthetic_run_does_not_speak_of_the_real_dataset(run):
    assert "ham10000" not in make_checklist(run, run.metrics).lower()
    assert read(run)[0]["17"] == NOT_REPORTED
    assert "draws them again" in read(run)[1]["5"]


def test_an_external_test_is_named_once_it_was_made(run, sample, tmp_path):
    assert read(run)[1]["12"] == NOT_REPORTED
    images = sorted(sample.glob("*_part_1/*.jpg"))[:2]
    write_isic(
        tmp_path / "truth.csv", [image.stem for image in images], np.eye(7)[[4, 5]], HAM10000
    )
    out = run.folder / "elsewhere"
    evaluate_external(run, images[0].parent, tmp_path / "truth.csv", out)
    tripod, clear_derm = read(run)
    assert clear_derm["12"] == "`elsewhere/metrics.json`"
    assert "`elsewhere/metrics.json`" in tripod["16"]
    assert "`elsewhere/metrics.json`" in tripod["23a"]


def test_subgroups_commit_and_costs_follow_the_run(run):
    assert "subgroups.csv" in read(run)[1]["23"]
    (run.evaluation_dir / "subgroups.csv").unlink()
    assert read(run)[1]["23"] == NOT_REPORTED
    described = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps(described | {"commit": None}))
    assert read(run)[0]["18f"] == NOT_REPORTED
    assert "cost_decision" not in read(run)[0]["15"]
    metrics = run.metrics | {"cost_decision": {}}
    assert "`evaluation/cost_decision.csv`" in make_checklist(run, metrics)


def test_left_out_images_are_named(run):
    (run.folder / "quarantine.json").write_text("{}")
    assert "`quarantine.json`" in read(run)[0]["6b"]


def test_evaluate_writes_it(run):
    written = (run.evaluation_dir / "checklist.md").read_text(encoding="utf-8")
    assert written == make_checklist(run, run.metrics)
    assert "`checklist.md`" in (run.evaluation_dir / "model_card.md").read_text()
