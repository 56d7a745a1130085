"""The benchmark as a real process. How fast anything is, depends on the machine: not tested."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from skinlesion.exports import FORMS

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_inference.py"


def bench(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_benchmark_writes_ratios(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    out = tmp_path / "bench.json"
    finished = bench("--images", tmp_path, "--image-size", 97, "--repeat", 1, "--out", out)
    assert finished.returncode == 0, finished.stderr
    assert "predict_single" in finished.stdout
    written = json.loads(out.read_text())
    expected = {"predict_single", "predict_folder"}
    if all(importlib.util.find_spec(name) for name in FORMS["onnx"].libraries):
        expected |= {"predict_single_exported", "predict_folder_exported"}
    assert set(written["ratios"]) == expected
    assert all(ratio > 0 for ratio in written["ratios"].values())
    assert written["milliseconds"]["ours single"]["median"] > 0
    assert {"tensorflow", "keras"} <= set(written["versions"])
    assert written["images"] == 2


def test_nothing_to_repeat_is_one_line(tmp_path):
    finished = bench("--repeat", 0, "--out", tmp_path / "bench.json")
    assert finished.returncode == 2
    assert "--repeat" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr
