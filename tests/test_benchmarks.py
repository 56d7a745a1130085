"""The benchmarks as real processes. How fast anything is depends on the machine: not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parent.parent / "scripts/measure"


@pytest.fixture
def images(tmp_path):
    """A folder with two small JPEGs of noise."""
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    return tmp_path


def run_bench(name, out, *arguments):
    command = [sys.executable, SCRIPTS / f"bench_{name}.py", "--out", out, "--repeat", 1]
    finished = subprocess.run(
        [str(part) for part in (*command, *arguments)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    written = json.loads(out.read_text())
    for ratio in written["ratios"]:
        assert ratio in finished.stdout
    assert all(median > 0 for median in written["milliseconds"].values())
    assert {"tensorflow", "keras", "cores"} <= set(written["facts"])
    return written


def test_inference(images, tmp_path):
    written = run_bench("inference", tmp_path / "a.json", "--images", images, "--image-size", 97)
    assert set(written["ratios"]) == {"predict_single", "predict_folder"}
    assert written["facts"]["images"] == 2


def test_input_pipeline(images, tmp_path):
    written = run_bench("input_pipeline", tmp_path / "a.json", "--images", images, "--count", 3)
    assert set(written["ratios"]) == {"first_epoch", "later_epochs", "later_epochs_augmented"}
    sizes = [path.stat().st_size for path in sorted(images.glob("*.jpg"))]
    mean = (2 * sizes[0] + sizes[1]) / 3 / 1000
    assert written["facts"]["mean_kilobytes"] == pytest.approx(mean, abs=0.05)


def test_training(tmp_path):
    size = ("--image-size", 32, 32, "--top-stage", "conv2", "--steps", 1)
    assert set(run_bench("training", tmp_path / "a.json", *size)["ratios"]) == {"fit_overhead"}
