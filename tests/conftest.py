"""What several test files need: the sample, a tiny dataset of flat images, a trained run."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before TensorFlow is imported: no log lines between the tests' own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# Nobody watches progress bars, whatever a test has imported.
os.environ["SKINLESION_UNATTENDED"] = "1"

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinlesion.config import Config, make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.synthetic import make_sample
from skinlesion.evaluation.calibration import calibrate
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.machine import warn
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import build_backbone
from skinlesion.model.run import Run
from skinlesion.model.train import train

REAL_DATA = os.environ.get("HAM10000_DIR")
REAL_WEIGHTS = os.environ.get("SKINLESION_WEIGHTS")

needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="set HAM10000_DIR to the folder of HAM10000 to run this"
)
needs_real_weights = pytest.mark.skipif(
    not REAL_WEIGHTS, reason="set SKINLESION_WEIGHTS to a file of ResNet50 weights to run this"
)

TINY = {"image_size": (32, 32), "weights": "none", "top_stage": "conv2", "batch_size": 16}
"""Settings of the smallest network: the first two stages at the smallest size."""


@pytest.fixture(autouse=True)
def only_named_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test takes its dataset or weights from the environment unless it says so."""
    monkeypatch.delenv("HAM10000_DIR", raising=False)
    monkeypatch.delenv("SKINLESION_WEIGHTS", raising=False)


@pytest.fixture(autouse=True)
def every_warning() -> None:
    """What an earlier test was warned of is said again."""
    warn.cache_clear()


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic sample, 12 images a class; read only."""
    return make_sample(tmp_path_factory.mktemp("data") / "sample", images_per_class=12)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """One epoch of the smallest network, from random weights."""
    return make_config("default", **TINY, epochs=1)


@pytest.fixture(scope="session")
def trained_run(
    sample: Path, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished, calibrated run on the sample; copy it before changing it."""
    run = train(sample, tmp_path_factory.mktemp("runs") / "first", tiny_config)
    calibrate(run, sample)
    return run.folder


@pytest.fixture(scope="session")
def predictor(trained_run: Path) -> Predictor:
    """The model of that run."""
    return Predictor.load(trained_run)


@pytest.fixture(scope="session")
def evaluated_run(
    trained_run: Path, sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run with its evaluation."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained_run, run)
    evaluate(run, data=sample)
    return run


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def seal(folder: Path) -> None:
    """Write the checksums that fit the files."""
    names = [path.name for path in folder.iterdir() if path.name != "SHA256SUMS"]
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def edit_bundle(folder: Path, **values: object) -> None:
    """Change what a saved model says of itself; without a calibration, its arrays go too."""
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    if values.get("calibration", path) is None:
        (folder / "calibration.npz").unlink()
    seal(folder)


def save_legacy_weights(path: Path, last_stage: str) -> Path:
    """Write random weights up to a stage as Keras 2 wrote them."""
    keras.utils.set_random_seed(0)
    backbone = build_backbone((32, 32), "none", last_stage)
    layers = [layer for layer in backbone.layers if layer.weights]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value
    return path


@pytest.fixture(scope="session")
def conv2_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for `conv1` and `conv2`."""
    return save_legacy_weights(tmp_path_factory.mktemp("weights") / "conv2.h5", "conv2")


@pytest.fixture(scope="session")
def conv3_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for `conv1` to `conv3`."""
    return save_legacy_weights(tmp_path_factory.mktemp("weights") / "conv3.h5", "conv3")


@pytest.fixture
def flat_data(tmp_path: Path) -> Path:
    """A dataset in HAM10000's layout: 49 lesions of two one-coloured 20x15 images each."""
    data = tmp_path / "flat"
    rows = []
    for number in range(98):
        part = data / f"HAM10000_images_part_{1 + number % 2}"
        part.mkdir(parents=True, exist_ok=True)
        image_id, lesion = f"ISIC_{number:07d}", number // 2
        color = tuple(int(value) for value in np.random.default_rng(number).integers(0, 256, 3))
        Image.new("RGB", (20, 15), color).save(part / f"{image_id}.jpg")
        dx = HAM10000.labels[lesion % 7]
        rows.append((f"HAM_{lesion:07d}", image_id, dx, "histo", 50.0, "female", "back"))
    columns = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    pd.DataFrame(rows, columns=columns).to_csv(data / "HAM10000_metadata.csv", index=False)
    return data


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """Start to count how many images are decoded and predicted, wherever that happens."""

    def start() -> dict[str, int]:
        calls = {"decoded": 0, "predicted": 0}
        opened, predicted = Image.open, Predictor.predict_images

        def count_open(*args: Any, **options: Any) -> Any:
            calls["decoded"] += 1
            return opened(*args, **options)

        def count_predict(self: Predictor, images: np.ndarray, **options: Any) -> Any:
            calls["predicted"] += len(images)
            return predicted(self, images, **options)

        monkeypatch.setattr(Image, "open", count_open)
        monkeypatch.setattr(Predictor, "predict_images", count_predict)
        return calls

    return start


@pytest.fixture
def pictures(sample: Path, trained_run: Path) -> list[Path]:
    """Image files of the sample outside the validation part.

    Thresholds lie exactly on validation images, where rounding decides.
    """
    validation = set(Run(trained_run).rows("validation")["image_id"])
    paths = sorted(sample.glob("HAM10000_images_part_*/*.jpg"))
    return [path for path in paths if path.stem not in validation]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many trials held, a line for each file: see `test_faults.py`."""
    held: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        found = [str(value) for name, value in report.user_properties if name == "trials"]
        held.setdefault(report.nodeid.partition("::")[0], []).extend(found)
    for file, lines in held.items():
        if lines:
            terminalreporter.write_line(f"{file}: {', '.join(lines)}")
