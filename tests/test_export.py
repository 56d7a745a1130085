import importlib.util
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from skinlesion.cli import main
from skinlesion.config import make_config
from skinlesion.data.ham10000 import HAM10000
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.evaluation import export as exports
from skinlesion.evaluation.export import FORMS, export, generate_images
from skinlesion.files import InputError
from skinlesion.model.bundle import ModelInfo
from skinlesion.model.resnet50 import build_classifier
from skinlesion.model.run import Run

HEIGHT, WIDTH = 48, 32


def has(kind: str) -> bool:
    return all(importlib.util.find_spec(name) for name in FORMS[kind].libraries)


def needs(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not has(kind), reason=f"{', '.join(FORMS[kind].libraries)} not installed: extra export"
    )


EVERY_FORM = [
    pytest.param(kind, f"small{form.ending}", marks=needs(kind)) for kind, form in FORMS.items()
]


def save_small(folder: Path, *, preprocessing: str = "imagenet") -> Path:
    """Save a network that is small and not trained, and tells generated images apart."""
    keras.utils.set_random_seed(0)
    size = {"image_size": (HEIGHT, WIDTH), "preprocessing": preprocessing}
    model = build_classifier(make_config("default", **TINY | size), 7)
    # Random weights may answer with one class to everything: standardise the logits.
    last = model.get_layer("head").get_layer("probabilities")
    images = generate_images((HEIGHT, WIDTH)).astype("float32")
    maps = model.get_layer("backbone")(model.get_layer("preprocessing")(images))
    logits = maps.numpy().mean(axis=(1, 2)) @ last.kernel.numpy()
    spread = logits.std(axis=0)
    last.set_weights([last.kernel.numpy() / spread, -logits.mean(axis=0) / spread])
    info = ModelInfo(
        **HAM10000.model_dump(exclude={"synthetic"}),
        image_size=(HEIGHT, WIDTH),
        resize="bilinear",
        recipe="default",
        synthetic=True,
    )
    Run(folder, model_dir=folder).save_model(model, info)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, pixels in zip(paths, generate_images((60, 80))[3:], strict=False):
        Image.fromarray(pixels).save(path)
    return paths


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("kind", "name"), EVERY_FORM)
def test_every_form_gives_the_probabilities_of_keras(kind, name, small, pictures, tmp_path):
    out = tmp_path / "new" / name
    assert export(small, kind, out, images=pictures) <= exports.TOLERANCE
    assert leftovers(out.parent) == [name, f"{name}.json"]
    network = FORMS[kind].open(out)
    pixels = generate_images((HEIGHT, WIDTH)).astype("float32")
    expected = Run.find(small).load_model().predict_on_batch(pixels)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images are told apart
    for count in (1, 10, 2):
        assert np.allclose(network(pixels[:count]), expected[:count], atol=1e-4)
    facts = json.loads((out.parent / f"{name}.json").read_text())
    assert facts["labels"] == list(HAM10000.labels)
    assert facts["note"] == DISCLAIMER
    assert facts["largest_difference"] <= 1e-4
    if kind == "onnx":
        require_description(out)


@needs("onnx")
def test_a_network_that_divides_by_255_is_exported_too(tmp_path):
    bundle = save_small(tmp_path / "model", preprocessing="divide_by_255")
    export(bundle, "onnx", tmp_path / "small.onnx")
    require_description(tmp_path / "small.onnx")


def require_description(path: Path) -> None:
    """An ONNX file says itself what it is."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("image", "tensor(float)")
    assert taken.shape == ["n", HEIGHT, WIDTH, 3]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["labels"] == ",".join(HAM10000.labels)
    assert facts["note"] == DISCLAIMER


@pytest.mark.parametrize(
    ("y_prob", "message"),
    [
        (1 / 7, "not written: its probabilities would differ from those"),
        (0.0, "not written: the exported network gives probabilities that do not add up to 1"),
        (np.nan, "not written: the exported network gives probabilities that are not numbers"),
    ],
)
def test_other_probabilities_are_refused_and_nothing_is_left(
    y_prob, message, small, tmp_path, monkeypatch
):
    other = exports._Form(
        "tf_saved_model", "", (), lambda _: lambda x: np.full((len(x), 7), y_prob)
    )
    monkeypatch.setitem(FORMS, "saved_model", other)
    with pytest.raises(InputError, match=message):
        export(small, "saved_model", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_network_that_gives_nan_is_not_exported(small, tmp_path):
    run = Run.find(shutil.copytree(small, tmp_path / "model"))
    model = run.load_model()
    last = model.get_layer("head").get_layer("probabilities")
    last.set_weights([last.kernel.numpy() * np.nan, last.bias.numpy()])
    run.save_model(model, run.info)
    with pytest.raises(InputError, match="the model gives probabilities that are not numbers"):
        export(run, "saved_model", tmp_path / "out")
    assert leftovers(tmp_path) == ["model"]


def test_what_is_there_is_not_overwritten(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(InputError, match="out: exists, and is no export of this model; delete it"):
        export(small, "saved_model", tmp_path / "out")
    assert leftovers(tmp_path / "out") == ["mine"]


@pytest.mark.parametrize("kind", ["onnx", "litert"])
def test_a_missing_library_is_one_line(kind, small, tmp_path, monkeypatch):
    name = FORMS[kind].libraries[0]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked: None if asked == name else object()
    )
    with pytest.raises(InputError, match=rf'{kind} needs {name}, .*pip install "\.\[export\]"'):
        export(small, kind, tmp_path / "out")


@needs("litert")
def test_a_wrong_ending_is_refused(small, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.tflite"):
        export(small, "litert", tmp_path / "out.onnx")


def test_a_place_that_cannot_be_written_is_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export(small, "saved_model", tmp_path / "file" / "out")


def test_generated_images_cover_the_range_and_stay_the_same():
    images = generate_images((20, 30))
    assert images.shape == (10, 20, 30, 3)
    assert (images.min(), images.max()) == (0, 255)
    assert np.array_equal(images, generate_images((20, 30)))


def test_the_command(small, tmp_path, capsys):
    arguments = ["export", "--run", small, "--format", "saved_model", "--out", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    assert "differ from those of Keras by at most" in said
    assert "generated images" in said
    assert "not for clinical use" in said
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main([str(argument) for argument in arguments]) == 0
    assert "out is there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
