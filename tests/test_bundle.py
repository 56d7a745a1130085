"""Saved models with edited files: each gives a right result or one clear line."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import seal

from skinlesion.demo.predict import CalibratedPredictor
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.files import InputError
from skinlesion.model.bundle import ARRAYS_NAME, INFO_NAME, MODEL_NAME, read_network
from skinlesion.model.run import Run

MISSING = object()
VALUES = {
    "missing": MISSING,
    "null": None,
    "text": "text",
    "number as text": "0.5",
    "negative": -1,
    "negative float": -0.5,
    "huge": 10**18,
    "million": 1_000_000,
    "NaN": math.nan,
    "infinite": math.inf,
    "yes": True,
    "list": [],
    "two of a million": [1_000_000, 1_000_000],
    "two floats": [32.5, 32.5],
    "object": {},
}
FIELDS = (
    "labels",
    "image_size",
    "resize",
    "recipe",
    "synthetic",
    "calibration",
    "calibration.temperature",
    "calibration.thresholds",
    "calibration.thresholds.0.90",
    "calibration.thresholds.0.95",
    "calibration.set_threshold",
    "calibration.n_validation",
    "calibration.n_malignant",
    "calibration.ood",
    "calibration.ood.threshold",
    "calibration.quality",
    "calibration.quality.sharpness",
    "calibration.quality.contrast",
    "calibration.quality.darkest",
    "calibration.quality.brightest",
)


@pytest.fixture(scope="module")
def model(trained_run):
    return CalibratedPredictor(trained_run)


@pytest.fixture
def bundle(run_copy, tmp_path):
    """A saved model by itself, which a test may edit."""
    return (run_copy / "model").rename(tmp_path / "bundle")


def edit_info(folder, change):
    """Let `change` edit the values of `bundle.json`, and write the checksums again."""
    path = folder / INFO_NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    seal(folder)


def replace_value(values, field, value):
    *above, name = field.split(".")
    if above[-1:] == ["0"]:  # 0.90 and 0.95 are names
        above, name = above[:-1], f"0.{name}"
    for key in above:
        values = values[key]
    if value is MISSING:
        del values[name]
    else:
        values[name] = value


def is_right(result):
    """Whether a result is one of finite values, in the right ranges."""
    said = result.to_dict()
    json.dumps(said, allow_nan=False)
    shares = [one.probability for one in result.diagnoses]
    return math.isclose(sum(shares), 1, abs_tol=1e-6) and all(0 <= share <= 1 for share in shares)


def judge(folder, model, picture):
    """`right` if the saved model predicts, `refused` if it gives one clear line."""
    try:
        run = Run.find(folder)
        if run.info.image_size != model.info.image_size:
            edited = CalibratedPredictor(folder)
        else:  # the network is as it was: that of `model` does
            edited = copy.copy(model)
            edited.calibration = load_calibration(run)
        assert is_right(edited.predict_file(picture).result)
    except InputError as error:
        assert str(error).count("\n") == 0
        return "refused"
    return "right"


@pytest.mark.parametrize("field", FIELDS)
def test_every_edited_value_gives_a_right_result_or_one_line(field, bundle, model, pictures):
    original = (bundle / INFO_NAME).read_text()
    found = {}
    for name, value in VALUES.items():
        (bundle / INFO_NAME).write_text(original)
        edit_info(bundle, lambda values, value=value: replace_value(values, field, value))
        found[name] = judge(bundle, model, pictures[5])
    print(field, Counter(found.values()), [name for name in found if found[name] == "right"])
    allowed = {
        "recipe": {"text"},
        "synthetic": {"yes"},
        "calibration.quality.sharpness": {"huge", "million"},
        "calibration.ood.threshold": set(),
        "calibration.n_validation": {"million"},
    }
    assert {name for name in found if found[name] == "right"} <= allowed.get(field, set())


@pytest.mark.parametrize("field", FIELDS[1:])
def test_values_swapped_with_those_of_another_field_are_refused(field, bundle, model, pictures):
    """`labels` in the place of each other field."""
    edit_info(bundle, lambda values: replace_value(values, field, values["labels"]))
    assert judge(bundle, model, pictures[5]) == "refused"


def make_arrays(**changes):
    arrays = {"mean": np.zeros(256, "float32"), "precision": np.eye(256, dtype="float32")}
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "right"),
        ({"mean": None}, "refused"),
        ({"precision": None}, "refused"),
        ({"mean": np.zeros(255, "float32")}, "refused"),
        ({"mean": np.zeros((256, 1), "float32")}, "refused"),
        ({"mean": np.float32(0)}, "refused"),
        ({"mean": np.zeros(256)}, "refused"),
        ({"mean": np.full(256, np.nan, "float32")}, "refused"),
        ({"mean": np.full(256, "text")}, "refused"),
        ({"mean": np.array([print] * 256, object)}, "refused"),
        ({"precision": np.eye(257, dtype="float32")}, "refused"),
        ({"precision": np.eye(256, 2, dtype="float32")}, "refused"),
        ({"precision": -np.eye(256, dtype="float32")}, "refused"),
        ({"precision": np.full((256, 256), np.inf, "float32")}, "refused"),
        ({"precision": np.eye(256, dtype="int64")}, "refused"),
        ({"mean": np.eye(256, dtype="float32"), "precision": np.zeros(256, "float32")}, "refused"),
        (
            {"mean": np.zeros(512, "float32"), "precision": np.eye(512, dtype="float32")},
            "refused",
        ),
        ({"mean": np.zeros(0, "float32"), "precision": np.zeros((0, 0), "float32")}, "refused"),
    ],
)
def test_edited_arrays(changes, outcome, bundle, model, pictures):
    np.savez(bundle / ARRAYS_NAME, **make_arrays(**changes))
    seal(bundle)
    assert judge(bundle, model, pictures[5]) == outcome


def test_arrays_whose_header_claims_terabytes_are_refused_unread(bundle, model, pictures):
    with zipfile.ZipFile(bundle / ARRAYS_NAME, "w") as archive:
        for name, shape in (("mean", (10**6,)), ("precision", (10**6, 10**6))):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
    seal(bundle)
    assert judge(bundle, model, pictures[5]) == "refused"


@pytest.mark.parametrize("name", [INFO_NAME, ARRAYS_NAME, MODEL_NAME])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"PK\x03\x04", b"[" * 9999])
def test_other_content_is_refused(name, content, bundle, model):
    (bundle / name).write_bytes(content)
    seal(bundle)
    with pytest.raises(InputError, match=name if name != INFO_NAME else "bundle"):
        CalibratedPredictor(bundle)


def test_checksums_that_are_no_text_are_refused(bundle):
    (bundle / "SHA256SUMS").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="SHA256SUMS: cannot be read"):
        _ = Run.find(bundle).info


def edit_network(folder, change):
    """Let `change` edit the description of the network, and write the checksums again."""
    path = folder / MODEL_NAME
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    described = json.loads(files["config.json"])
    change(described["config"]["layers"])
    files["config.json"] = json.dumps(described).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    seal(folder)


def head(layers):
    """The settings of the last layer."""
    return layers[-1]["config"]["layers"][-1]["config"]


CODE = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "config": {"name": "x", "function": {"class_name": "__lambda__", "config": {"code": "4wEA"}}},
    "registered_name": None,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers.append(CODE), r"holds code \(.*\), which is not run"),
        (lambda layers: layers.append(CODE | {"module": "os"}), "holds code .*which is not run"),
        (
            lambda layers: layers[-1].update(module="subprocess", class_name="Popen"),
            r"holds code \(Popen of subprocess\), which is not run",
        ),
        (
            lambda layers: layers.append({"module": "keras.utils", "class_name": "get_file"}),
            r"holds code \(get_file of keras.utils\), which is not run",
        ),
        (lambda layers: head(layers).update(units=10**9), "units=1000000000 is too large"),
        (lambda layers: head(layers).update(units=-7), "cannot read it"),
        (lambda layers: head(layers).update(units=8), "cannot read it"),
        (lambda layers: head(layers).update(units=math.nan), "cannot read it"),
        (lambda layers: head(layers).update(name="other"), "end with"),
        (lambda layers: layers.pop(), "its parts must be"),
        (lambda layers: layers[-1]["config"].update(name="other"), "its parts must be"),
        (
            lambda layers: layers[0]["config"].update(batch_shape=[None, 10**6, 10**6, 3]),
            "too large",
        ),
        (lambda layers: layers.clear(), ""),
    ],
)
def test_an_edited_network_is_refused_for_what_it_is(change, message, bundle):
    edit_network(bundle, change)
    with pytest.raises(InputError, match=message) as caught:
        CalibratedPredictor(bundle)
    assert "\n" not in str(caught.value)
    assert "which is not run" in message or "not run" not in str(caught.value)


def test_other_files_in_the_file_of_a_network_are_refused(bundle):
    """Keras unpacks the assets of layers by their names."""
    with zipfile.ZipFile(bundle / MODEL_NAME, "a") as archive:
        archive.writestr("assets/../../outside.txt", "text")
    seal(bundle)
    with pytest.raises(InputError, match=r"holds assets/../../outside.txt; copy the model again"):
        CalibratedPredictor(bundle)


def test_a_network_for_images_of_another_size_is_refused(bundle):
    edit_info(bundle, lambda values: values.update(image_size=[64, 64]))
    with pytest.raises(InputError, match=r"must take and give arrays of shapes .*64.*, not .*32"):
        CalibratedPredictor(bundle)


def test_another_network_of_keras_is_refused(bundle):
    info = Run.find(bundle).info
    layers = [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(7)]
    keras.Sequential(layers).save(bundle / MODEL_NAME)
    with pytest.raises(InputError, match=r"its parts must be .*, not flatten.*, dense"):
        read_network(bundle / MODEL_NAME, info)


def test_weights_that_are_not_numbers_are_refused(bundle, model, pictures):
    run = Run.find(bundle)
    network = run.load_model()
    last = network.get_layer("head").get_layer("probabilities")
    last.set_weights([last.kernel.numpy() * np.nan, last.bias.numpy()])
    network.save(bundle / MODEL_NAME)
    seal(bundle)
    with pytest.raises(InputError, match="not numbers"):
        CalibratedPredictor(bundle).predict_file(pictures[5])


def test_a_size_of_a_million_pixels_is_refused_in_little_memory(bundle):
    """In a process that may not even reserve the memory for one such image."""
    edit_info(bundle, lambda values: values.update(image_size=[1_000_000, 1_000_000]))
    program = (
        "import resource, sys; from skinlesion.model.run import Run\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "Run.find(sys.argv[1]).info"
    )
    command = [sys.executable, "-c", program, bundle]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert "InputError" in asked.stderr.splitlines()[-1]
    assert "image_size.0: Input should be less than or equal to 4096" in asked.stderr


@pytest.mark.parametrize("field", ["config", "dataset", "weights", "precision"])
@pytest.mark.parametrize("name", VALUES)
def test_an_edited_description_of_a_run_is_one_line(field, name, run_copy):
    path = run_copy / "config.json"
    described = json.loads(path.read_text())
    replace_value(described, field, VALUES[name])
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"config\.json|settings") as caught:
        _ = Run.find(run_copy).config
    assert "\n" not in str(caught.value)


def test_a_damaged_history_is_one_line(run_copy):
    (run_copy / "history.csv").write_bytes(b'a,b\n1,2\n1,2,3\n"')
    with pytest.raises(InputError, match=r"history\.csv: cannot be read as CSV"):
        _ = Run.find(run_copy).history


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        {},
        {"calibration": None},
        {"calibration": {"operating_points": [{}]}},
        {"calibration": {"operating_points": "text"}},
    ],
)
def test_damaged_metrics_are_one_line(metrics, evaluated_run, tmp_path):
    run = Path(shutil.copytree(evaluated_run, tmp_path / "run"))
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match="evaluate the run again"):
        CalibratedPredictor(run)
