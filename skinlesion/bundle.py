"""The model directory that leaves training and enters prediction."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from skinlesion.config import Resize
from skinlesion.errors import InputError
from skinlesion.files import read_json, write_folder_atomically, write_json
from skinlesion.labels import CLASS_CODES

MODEL_NAME = "model.keras"
INFO_NAME = "bundle.json"
SUMS_NAME = "SHA256SUMS"


@dataclass(frozen=True)
class BundleInfo:
    """What prediction has to know beside the network, written as `bundle.json`.

    Attributes:
        labels: the `dx` code of each output of the network, in order.
        image_size: (height, width) of the input in pixels.
        resize: how images are brought to that size.
        recipe: name of the recipe.
        synthetic: whether the model was trained on the synthetic sample.
        calibration: `calibration.Calibration` as a dictionary; None until it is fitted.
        foreign_image_gate: reserved for the threshold that turns away foreign images; None: none.
    """

    labels: tuple[str, ...]
    image_size: tuple[int, int]
    resize: Resize
    recipe: str
    synthetic: bool
    calibration: dict[str, Any] | None = None
    foreign_image_gate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Bundle:
    """A model with what prediction has to know about it."""

    model: keras.Model
    info: BundleInfo


def save_bundle(bundle: Bundle, folder: Path) -> Path:
    """Write `model.keras`, `bundle.json` and the SHA-256 of both; the folder appears complete."""

    def write(part: Path) -> None:
        bundle.model.save(part / MODEL_NAME)
        write_json(part / INFO_NAME, asdict(bundle.info))
        sums = [f"{_sha256(part / name)}  {name}\n" for name in (MODEL_NAME, INFO_NAME)]
        (part / SUMS_NAME).write_text("".join(sums))

    return write_folder_atomically(folder, write)


def load_bundle(run: Path) -> Bundle:
    """Load the bundle of a run directory, or a bundle by itself.

    Loading a model can run code that it holds: load only bundles that you trust. The checksums
    show damage, not malice.

    Raises:
        InputError: there is no bundle, it is damaged, or it was made for other labels.
    """
    folder = find_bundle(run)
    sums = _read_sums(folder / SUMS_NAME)
    for name in (MODEL_NAME, INFO_NAME):
        expected = sums.get(name)
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise InputError(f"{path}: damaged or changed since training; copy it again or retrain")
    settings = read_json(folder / INFO_NAME)
    try:
        info = BundleInfo(
            **settings
            | {"labels": tuple(settings["labels"]), "image_size": tuple(settings["image_size"])}
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / INFO_NAME}: does not fit this version ({error})") from error
    if info.labels != CLASS_CODES:
        raise InputError(f"{folder}: made for labels {info.labels}, not {CLASS_CODES}")
    return Bundle(keras.saving.load_model(folder / MODEL_NAME, compile=False), info)


def find_bundle(run: Path) -> Path:
    """The bundle's folder: `run` itself or its `model/`.

    Raises:
        InputError: neither holds a bundle.
    """
    for folder in (run / "model", run):
        if (folder / INFO_NAME).is_file():
            return folder
    raise InputError(
        f"{run}: neither a finished run nor a bundle; train one first: "
        "python -m skinlesion train --data DIR --run RUN"
    )


def compute_digest(run: Path) -> str:
    """SHA-256 of the network of a run directory or bundle: tells one trained model from another."""
    return _sha256(find_bundle(run) / MODEL_NAME)


def _read_sums(path: Path) -> dict[str, str]:
    """File name to SHA-256."""
    try:
        lines = [line.partition("  ") for line in path.read_text().splitlines()]
        return {name: digest for digest, _, name in lines}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); the bundle is incomplete") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
