"""Our metrics against those of the challenge's own scorer, run in an environment of its own."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.isic_csv import write_isic
from skinlesion.evaluation.score import score

SCORER = Path(__file__).parent.parent / ".venv-scorer" / "bin" / "isic-challenge-scoring"

pytestmark = pytest.mark.skipif(
    not SCORER.is_file(),
    reason="the official scorer is not installed; scripts/test.py installs it from the network",
)


@pytest.fixture
def files(tmp_path):
    """400 images of all classes, partly right predictions, rows in different orders.

    The highest probability is always above 1/2. Then the scorer's rule for sensitivity and
    specificity (above 1/2) and ours (the most probable class) give the same.
    """
    rng = np.random.default_rng(6)
    y_true = rng.permutation(np.resize(np.arange(7), 400))
    y_pred = np.where(rng.random(400) < 0.6, y_true, rng.integers(0, 7, 400))
    y_prob = 0.45 * rng.dirichlet(np.ones(7), 400) + 0.55 * np.eye(7)[y_pred]
    names = np.array([f"ISIC_{number:07d}" for number in range(400)])
    write_isic(tmp_path / "truth.csv", list(names), np.eye(7)[y_true], HAM10000)
    order = rng.permutation(400)
    write_isic(tmp_path / "predictions.csv", list(names[order]), y_prob[order], HAM10000)
    return tmp_path


def test_the_official_scorer_agrees(files):
    command = [SCORER, "-o", "json", "classification"]
    finished = subprocess.run(
        [str(part) for part in (*command, files / "truth.csv", files / "predictions.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    official = json.loads(finished.stdout)
    ours = score(files / "predictions.csv", files / "truth.csv", files / "out")
    assert ours["overall"]["balanced_accuracy"]["value"] == pytest.approx(
        official["aggregate"]["balanced_accuracy"], abs=1e-6
    )
    names = {
        "auc": "auc",
        "average_precision": "ap",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
    }
    for code in HAM10000.labels:
        for name, their_name in names.items():
            value = ours["per_class"][code][name]["value"]
            theirs = official["per_category"][their_name][code.upper()]
            assert value == pytest.approx(theirs, abs=1e-6), (code, name)
