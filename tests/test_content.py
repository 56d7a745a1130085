"""What the page shows of a run."""

import json
import shutil

import pytest

from skinlesion.data.ham10000 import HAM10000
from skinlesion.demo.content import FIGURES, NOT_EVALUATED, choose_examples, load_content
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.model.run import Run


@pytest.fixture
def alone(evaluated_run, tmp_path):
    """The saved model by itself."""
    return Run.find(shutil.copytree(evaluated_run / "model", tmp_path / "alone"))


def test_card_figures_and_examples_are_those_of_the_run(evaluated_run, sample, tmp_path):
    content = load_content(Run(evaluated_run), data=sample, drawn=tmp_path)
    assert content.card.lstrip().startswith("# ")  # without the header for the Hub
    assert DISCLAIMER in content.card
    assert [path.stem for path, _ in content.figures] == list(FIGURES)
    assert content.metrics["n"] == content.model.operating_point.n_test
    tested = set(Run(evaluated_run).rows("test")["image_id"])
    assert {path.stem for path, _ in content.examples} <= tested
    assert [title for _, title in content.examples] == list(HAM10000.names)
    # The folder `model` of a run is the run.
    again = load_content(Run.find(evaluated_run / "model"), data=sample, drawn=tmp_path)
    assert (again.card, again.figures, again.examples) == (
        content.card,
        content.figures,
        content.examples,
    )


def test_a_model_by_itself_is_shown_with_drawings_for_examples(alone, tmp_path):
    content = load_content(alone, data=None, drawn=tmp_path)
    assert content.card == NOT_EVALUATED
    assert content.metrics is None
    assert content.model.operating_point.sensitivity is None
    assert [title for _, title in content.examples] == list(HAM10000.names)


def test_a_real_model_without_its_dataset_has_no_examples(
    alone, evaluated_run, sample, tmp_path, monkeypatch
):
    monkeypatch.setattr(Run, "synthetic", False)
    assert choose_examples(alone, None, tmp_path) == []
    # A run remembers where its dataset is.
    remembered = json.loads((evaluated_run / "config.json").read_text())["dataset"]["folder"]
    assert remembered == str(sample)
    assert len(choose_examples(Run(evaluated_run), None, tmp_path)) == 7
