"""The model in forms that other programs run: ONNX, LiteRT, SavedModel."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from PIL import Image

from skinlesion.data.images import load_images
from skinlesion.diagnoses import CLASS_NAMES, DISCLAIMER
from skinlesion.files import InputError, write_json
from skinlesion.machine import say
from skinlesion.model.bundle import Bundle, compute_digest, find_bundle, load_bundle
from skinlesion.model.resnet50 import add_features

Format = Literal["onnx", "litert", "saved_model"]
Network = Callable[[np.ndarray], np.ndarray]
"""From float32 (n, height, width, 3), RGB in [0, 255], to probabilities, float32 (n, 7)."""

TOLERANCE = 1e-4
"""Largest difference to Keras' probabilities with which an export is kept."""

BATCH_SIZE = 32
"""Images that are compared at a time."""

ONNX_NAME = "model.onnx"
"""Where `open_onnx` keeps the network, beside `model.keras`."""


@dataclass(frozen=True)
class _Form:
    """What tells one format from the others: Keras' name, how files end, what has to be there."""

    keras_name: str
    ending: str
    libraries: tuple[str, ...]
    open: Callable[[Path], Network]


def export(run: Path, kind: Format, out: Path, *, images: Sequence[Path] = ()) -> float:
    """Write a run's network in another form, and beside it what has to be known to use it.

    Whatever the form, it takes what the Keras model takes: float32 (n, height, width, 3), any n,
    RGB in [0, 255] at the model's size, preprocessing included; and gives probabilities (n, 7),
    uncalibrated. `OUT.json` says so, with the order of the classes; ONNX files hold this themselves
    too. The export is kept only where its probabilities equal those of Keras.

    Args:
        run: run directory or bundle.
        kind: `onnx`, `litert` or `saved_model`.
        out: the file to make, or with `saved_model` the folder; what is there is not overwritten.
        images: image files to compare on; without any, generated ones.

    Returns:
        The largest difference to a probability of Keras.

    Raises:
        InputError: no bundle, a library is missing, `out` is there already, ends wrongly or cannot
            be written, an image cannot be read, or the probabilities differ by over `TOLERANCE`.
    """
    form = FORMS[kind]
    _require(form.libraries, f"the format {kind}")
    if out.suffix != form.ending and form.ending:
        raise InputError(f"{out}: with the format {kind}, the name must end in {form.ending}")
    bundle = load_bundle(run)
    info = bundle.info
    pixels = (
        load_images(images, image_size=info.image_size, resize=info.resize)
        if images
        else generate_images(info.image_size)
    )
    difference = _write(bundle, compute_digest(run), kind, out, pixels)
    say(
        f"export: wrote {out}; its probabilities differ from those of Keras by {difference:.1e} at "
        f"most, on {len(pixels)} {'given' if images else 'generated'} images"
    )
    return difference


def open_onnx(run: Path, bundle: Bundle) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A run's network in ONNX Runtime; exported into the bundle when it is not there yet.

    Args:
        run: run directory or bundle.
        bundle: what is loaded from it.

    Returns:
        From images as of `Network` to probabilities and, where the bundle has a gate for foreign
        images, the features that it looks at, float32 (n, channels).

    Raises:
        InputError: a library is missing, or the export fails as with `export`.
    """
    _require(("onnxruntime",), "ONNX Runtime")
    path, digest = find_bundle(run) / ONNX_NAME, compute_digest(run)
    if bundle.gate:
        bundle = replace(bundle, model=add_features(bundle.model, bundle.gate.stage))
    if path.is_file() and not _is_made_from(path, digest, outputs=len(bundle.model.outputs)):
        path.unlink()  # made from a model that was here before
    if not path.is_file():
        _require(FORMS["onnx"].libraries, "the export to ONNX")
        say(f"export: making {path}, once (up to a minute)")
        _write(bundle, digest, "onnx", path, generate_images(bundle.info.image_size))
    session = _open_session(path)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


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


def _write(bundle: Bundle, digest: str, kind: Format, out: Path, images: np.ndarray) -> float:
    """Export into a folder beside `out`, compare, and put it in place in one step."""
    if out.exists():
        raise InputError(f"{out}: is there already; delete it or choose another place with --out")
    facts, batches = _describe(bundle, digest), _make_batches(images)
    # Before the export: Keras exports no model that was never called.
    outputs = [bundle.model.predict_on_batch(batch) for batch in batches]
    y_prob = np.concatenate([each[0] if isinstance(each, list) else each for each in outputs])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            part = Path(folder) / out.name
            _convert(bundle.model, FORMS[kind].keras_name, part)
            if kind == "onnx":
                _tidy_onnx(part, facts)
            difference = _compare(y_prob, FORMS[kind].open(part), batches)
            if not difference <= TOLERANCE:  # NaN is not either
                raise InputError(
                    f"{out}: not written: its probabilities would differ from those of Keras by "
                    f"{difference:.1e}, over {TOLERANCE:.0e}; try other versions of the libraries "
                    f"({', '.join(FORMS[kind].libraries) or 'tensorflow'}) or another format"
                )
            part.replace(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); make room there or choose "
            "another place"
        ) from error
    write_json(out.with_name(f"{out.name}.json"), facts | {"largest_difference": difference})
    return difference


def _convert(model: keras.Model, keras_name: str, part: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # the libraries', about each other
        model.export(str(part), format=keras_name, verbose=False)


def _compare(y_prob: np.ndarray, network: Network, batches: Sequence[np.ndarray]) -> float:
    """Largest absolute difference of a probability."""
    return float(np.abs(np.concatenate([network(batch) for batch in batches]) - y_prob).max())


def _make_batches(images: np.ndarray) -> list[np.ndarray]:
    """One image alone, then all of them in batches: every network takes any number of images."""
    starts = range(0, len(images), BATCH_SIZE)
    batches = [images[:1], *(images[start : start + BATCH_SIZE] for start in starts)]
    return [batch.astype(np.float32) for batch in batches]


def _describe(bundle: Bundle, digest: str) -> dict[str, Any]:
    """What somebody who has only the export must know."""
    height, width = bundle.info.image_size
    return {
        "note": DISCLAIMER,
        "labels": list(bundle.info.labels),
        "names": list(CLASS_NAMES),
        "input": f"float32 (n, {height}, {width}, 3), RGB in [0, 255]",
        "output": "float32 (n, 7), uncalibrated probabilities in the order of labels",
        "resize": bundle.info.resize,
        "recipe": bundle.info.recipe,
        "synthetic": bundle.info.synthetic,
        "model_sha256": digest,
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


def _is_made_from(path: Path, digest: str, *, outputs: int) -> bool:
    """Whether an ONNX file was made from the Keras model of this digest, with so many outputs."""
    session = _open_session(path)
    source = session.get_modelmeta().custom_metadata_map.get("model_sha256")
    return source == digest and len(session.get_outputs()) == outputs


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


FORMS: dict[Format, _Form] = {
    "onnx": _Form("onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime"), _open_onnx),
    "litert": _Form("litert", ".tflite", ("ai_edge_litert",), _open_litert),
    "saved_model": _Form("tf_saved_model", "", (), _open_saved_model),
}
