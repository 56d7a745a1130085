"""Export the model for other programs: ONNX, LiteRT, SavedModel."""

import glob
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from skinlesion.data.images import load_images
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.files import InputError, delete_left, read_json, write_json
from skinlesion.machine import say
from skinlesion.model.predictor import require_probabilities
from skinlesion.model.run import Run

Network = Callable[[np.ndarray], np.ndarray]
"""From float32 (n, height, width, 3), RGB in [0, 255], to probabilities, float32 (n, classes)."""

TOLERANCE = 1e-4
"""Largest difference to Keras' probabilities with which an export is kept."""

BATCH_SIZE = 32
"""Images that are compared at a time."""


@dataclass(frozen=True)
class _Form:
    """What tells one format from the others: Keras' name, how files end, what has to be there."""

    keras_name: str
    ending: str
    libraries: tuple[str, ...]
    open: Callable[[Path], Network]


def export(run: str | Path | Run, kind: str, out: Path, *, images: Sequence[Path] = ()) -> float:
    """Write a run's network in another form, with a description beside it.

    All forms take what the Keras model takes, float32 (n, height, width, 3), any n, RGB in
    [0, 255] at the model's size, and give uncalibrated probabilities (n, classes). `OUT.json` says
    so, with the order of the classes; ONNX files hold this themselves too. The export is kept only
    if its probabilities equal those of Keras.

    Args:
        run: run or saved model.
        kind: `onnx`, `litert` or `saved_model`.
        out: the file to write, or for `saved_model` the folder. Nothing is overwritten; an export
            of the same model that is there is kept.
        images: image files to compare on; without any, generated ones.

    Returns:
        The largest difference to a probability of Keras.

    Raises:
        InputError: there is no model, a library is missing, `out` exists, has the wrong ending or
            cannot be written, an image cannot be read, or the probabilities differ by more than
            `TOLERANCE`.
    """
    if kind not in FORMS:
        raise InputError(f"unknown format {kind!r}: choose one of {', '.join(FORMS)}")
    form = FORMS[kind]
    _require(form.libraries, f"the format {kind}")
    if out.suffix != form.ending and form.ending:
        raise InputError(f"{out}: with the format {kind}, the name must end in {form.ending}")
    run = Run.find(run)
    delete_left(out.parent, f".{glob.escape(out.name)}.*.part{out.suffix}")
    if out.exists():
        return _keep(run, out)
    size = run.info.image_size
    pixels = generate_images(size)
    if images:
        pixels = load_images(images, image_size=size, resize=run.info.resize)
    difference = _write(run, form, out, pixels)
    say(
        f"export: wrote {out}; its probabilities differ from those of Keras by at most "
        f"{difference:.1e}, on {len(pixels)} {'given' if images else 'generated'} images"
    )
    return difference


def generate_images(image_size: tuple[int, int]) -> np.ndarray:
    """Images for a comparison: black, white, noise at every scale from pixels to the whole image.

    Args:
        image_size: (height, width) in pixels.

    Returns:
        uint8 (10, height, width, 3), always the same.
    """
    height, width = image_size
    rng = np.random.default_rng(0)

    def draw(cells: int) -> np.ndarray:
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))

    flat = [np.full((height, width, 3), value, np.uint8) for value in (0, 255)]
    return np.stack([*flat, *(draw(cells) for cells in (1, 2, 3, 5, 8, 16, 64, max(image_size)))])


def _write(run: Run, form: _Form, out: Path, images: np.ndarray) -> float:
    """Export into a folder beside `out`, compare, and put it in place in one step."""
    facts, batches, model = _describe(run), _make_batches(images), run.load_model()
    # Before the export: Keras exports no model that was never called.
    y_prob = np.concatenate([model.predict_on_batch(batch) for batch in batches])
    require_probabilities(y_prob, "the model")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix, suffix = f".{out.name}.", f".{os.getpid()}.part{out.suffix}"
        with tempfile.TemporaryDirectory(suffix, prefix, out.parent) as folder:
            part = Path(folder) / out.name
            _convert(model, form.keras_name, part)
            if form.keras_name == "onnx":
                _tidy_onnx(part, facts)
            difference = _compare(y_prob, form.open(part), batches, out)
            if difference > TOLERANCE:
                raise InputError(
                    f"{out}: not written: its probabilities would differ from those of Keras by "
                    f"{difference:.1e}, over {TOLERANCE:.0e}; try other versions of the libraries "
                    f"({', '.join(form.libraries) or 'tensorflow'}) or another format"
                )
            # The description first: where the network is, everything is.
            write_json(_describe_in(out), facts | {"largest_difference": difference})
            part.replace(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another "
            "place"
        ) from error
    return difference


def _keep(run: Run, out: Path) -> float:
    """The difference that was measured for an export that is there."""
    described = _describe_in(out)
    found = read_json(described) if described.is_file() else None
    facts = found if isinstance(found, dict) else {}
    difference = facts.get("largest_difference")
    if not isinstance(difference, float) or facts.get("model_sha256") != run.digest:
        raise InputError(
            f"{out}: exists, and is no export of this model; delete it or choose another place "
            "with --out"
        )
    say(f"export: {out} is there already")
    return difference


def _describe_in(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _convert(model: keras.Model, keras_name: str, part: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # the libraries', about each other
        model.export(str(part), format=keras_name, verbose=False)


def _compare(
    y_prob: np.ndarray, network: Network, batches: Sequence[np.ndarray], out: Path
) -> float:
    """Largest absolute difference of a probability."""
    exported = np.concatenate([network(batch) for batch in batches])
    require_probabilities(exported, f"{out}: not written: the exported network")
    return float(np.abs(exported - y_prob).max())


def _make_batches(images: np.ndarray) -> list[np.ndarray]:
    """One image alone, then all of them in batches: every network takes any number of images."""
    starts = range(0, len(images), BATCH_SIZE)
    batches = [images[:1], *(images[start : start + BATCH_SIZE] for start in starts)]
    return [batch.astype(np.float32) for batch in batches]


def _describe(run: Run) -> dict[str, Any]:
    """What users of the export need to know."""
    info = run.info
    height, width = info.image_size
    return {
        "note": DISCLAIMER,
        "labels": list(info.labels),
        "names": list(info.names),
        "input": f"float32 (n, {height}, {width}, 3), RGB in [0, 255]",
        "output": f"float32 (n, {len(info.labels)}), uncalibrated probabilities in the order of "
        "labels",
        "resize": info.resize,
        "recipe": info.recipe,
        "synthetic": info.synthetic,
        "model_sha256": run.digest,
    }


def _require(libraries: tuple[str, ...], what: str) -> None:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'{what} needs {", ".join(missing)}, not installed here: pip install ".[export]" in '
            "the folder of this project"
        )


def _tidy_onnx(path: Path, facts: dict[str, Any]) -> None:
    """Write facts into an ONNX file, each as text; one input, with a named first axis."""
    import onnx

    proto = onnx.load(path)
    onnx.helper.set_model_props(
        proto, {name: ",".join(v) if isinstance(v, list) else str(v) for name, v in facts.items()}
    )
    del proto.graph.input[1:]  # tf2onnx lists constants that it has folded as inputs too
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(proto, path)


def _open_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads that wait by spinning would take the cores that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own kinds of errors, one for each way of damage
        raise InputError(f"{path}: cannot be read as ONNX ({error}); delete it") from error


def _open_onnx(path: Path) -> Network:
    session = _open_session(path)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _open_litert(path: Path) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner()
    (name,) = run.get_input_details()
    return lambda images: next(iter(run(**{name: images}).values()))


def _open_saved_model(path: Path) -> Network:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(images).numpy()


FORMS: dict[str, _Form] = {
    "onnx": _Form("onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime"), _open_onnx),
    "litert": _Form("litert", ".tflite", ("ai_edge_litert",), _open_litert),
    "saved_model": _Form("tf_saved_model", "", (), _open_saved_model),
}
