"""The benchmarks as real processes. How fast anything is depends on the machine: not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parent.parent / "scripts/measure"
ONCE = ("--repeat", 1)


@pytest.fixture
def scripts(monkeypatch):
    """Lets a test import the scripts as modules."""
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture
def images(tmp_path):
    """A folder with two small JPEGs of noise."""
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    return tmp_path


def run_bench(name, out, *arguments):
    command = [sys.executable, SCRIPTS / f"bench_{name}.py", "--out", out]
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
    size = ("--image-size", 97)
    written = run_bench("inference", tmp_path / "a.json", "--images", images, *size, *ONCE)
    assert set(written["ratios"]) == {"predict_single", "predict_folder"}
    assert written["facts"]["images"] == 2


def test_input_pipeline(images, tmp_path):
    files = ("--images", images, "--count", 3)
    written = run_bench("input_pipeline", tmp_path / "a.json", *files, *ONCE)
    assert set(written["ratios"]) == {"first_epoch", "later_epochs", "later_epochs_augmented"}
    sizes = [path.stat().st_size for path in sorted(images.glob("*.jpg"))]
    mean = (2 * sizes[0] + sizes[1]) / 3 / 1000
    assert written["facts"]["mean_kilobytes"] == pytest.approx(mean, abs=0.05)


def test_training(tmp_path):
    size = ("--image-size", 32, 32, "--top-stage", "conv2", "--steps", 1, *ONCE)
    assert set(run_bench("training", tmp_path / "a.json", *size)["ratios"]) == {"fit_overhead"}


def test_decoders(images, tmp_path):
    written = run_bench("decoders", tmp_path / "a.json", "--images", images, "--count", 2, *ONCE)
    assert written["facts"]["difference, Pillow, full size"] == 0


def test_the_estimate_is_compared_with_the_true_time(tmp_path):
    training = ("--image-size", 32, 32, "--top-stage", "conv2", "--images", 200, "--epochs", 1)
    written = run_bench("estimate", tmp_path / "a.json", *training, "--weights", "none")
    estimated, true = (written["milliseconds"][name] for name in ("estimated", "true"))
    assert written["ratios"]["estimate"] == pytest.approx(true / estimated)


def test_a_profile_adds_the_kernels_and_names_the_rest(scripts):
    import profile_training

    kernel = "onednn_verbose,v1,primitive,exec,cpu,convolution,x,{kind},a,b,c,d,{ms}"
    log = [
        kernel.format(kind="forward_training", ms=99),  # before the counted steps
        "profile: begin",
        *(kernel.format(kind="forward_training", ms=10) for _ in range(5)),
        *(kernel.format(kind="backward_weights", ms=5) for _ in range(5)),
        kernel.format(kind="undef", ms=5),
        "profile: end 20.0",
    ]
    assert profile_training.read_log("\n".join(log)) == pytest.approx(
        {
            "convolutions, forward": 10,
            "convolutions, gradient of their weights": 5,
            "other kernels of oneDNN": 1,
            "everything else": 4,
        }
    )


def test_the_tables_of_the_page_are_those_of_the_results(scripts):
    import run_benchmarks

    page = run_benchmarks.PAGE.read_text()
    assert run_benchmarks.fill_tables(page) == page
