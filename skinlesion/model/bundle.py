"""The model directory that leaves training and enters prediction."""

import hashlib
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from skinlesion.config import Resize
from skinlesion.diagnoses import CLASS_CODES
from skinlesion.evaluation.ood import ForeignGate, gate_from
from skinlesion.evaluation.quality import QualityLimits
from skinlesion.files import InputError, read_json, write_folder_atomically, write_json

MODEL_NAME = "model.keras"
INFO_NAME = "bundle.json"
GATE_NAME = "gate.npz"
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
        foreign_image_gate: `foreign.ForeignGate` as a dictionary, whose arrays are in `gate.npz`;
            None: nothing turns away foreign images.
        image_quality: `quality.QualityLimits` as a dictionary; None: quality is not judged.
    """

    labels: tuple[str, ...]
    image_size: tuple[int, int]
    resize: Resize
    recipe: str
    synthetic: bool
    calibration: dict[str, Any] | None = None
    foreign_image_gate: dict[str, Any] | None = None
    image_quality: dict[str, float] | None = None


@dataclass(frozen=True)
class Bundle:
    """A model with what prediction has to know about it."""

    model: keras.Model
    info: BundleInfo
    gate: ForeignGate | None = None


def save_bundle(bundle: Bundle, folder: Path) -> Path:
    """Write the model, what belongs to it, and the SHA-256 of all; the folder appears complete."""

    def write(part: Path) -> None:
        bundle.model.save(part / MODEL_NAME)
        _write_facts(part, bundle.info, bundle.gate)

    return write_folder_atomically(folder, write)


def save_gate(run: Path, gate: ForeignGate, quality: QualityLimits) -> Path:
    """Put another gate and other limits into the bundle of a run; the network's file stays."""
    folder, info = find_bundle(run), load_bundle(run).info

    def write(part: Path) -> None:
        shutil.copy2(folder / MODEL_NAME, part)
        _write_facts(part, replace(info, image_quality=quality.to_dict()), gate)

    return write_folder_atomically(folder, write)


def _write_facts(part: Path, info: BundleInfo, gate: ForeignGate | None) -> None:
    described = gate.to_dict() if gate else None
    write_json(part / INFO_NAME, asdict(replace(info, foreign_image_gate=described)))
    if gate:
        np.savez(part / GATE_NAME, allow_pickle=False, **gate.to_arrays())
    names = (MODEL_NAME, INFO_NAME, *([GATE_NAME] if gate else []))
    sums = [f"{_sha256(part / name)}  {name}\n" for name in names]
    (part / SUMS_NAME).write_text("".join(sums))


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
        _require_whole(folder / name, sums)
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
    gate = None
    if info.foreign_image_gate is not None:
        _require_whole(folder / GATE_NAME, sums)
        with np.load(folder / GATE_NAME, allow_pickle=False) as arrays:
            gate = gate_from(info.foreign_image_gate, dict(arrays))
    return Bundle(_load_model(folder / MODEL_NAME), info, gate)


def _load_model(path: Path) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False)
    # Keras raises TypeError, ValueError and others for what another version wrote.
    except Exception as error:
        raise InputError(
            f"{path}: is of another version of Keras, and {keras.__version__} cannot read it "
            f"({str(error).strip().splitlines()[-1]}); install the one that it was trained with"
        ) from error


def find_bundle(run: Path) -> Path:
    """The bundle's folder: `run` itself or its `model/`.

    Raises:
        InputError: neither holds a bundle.
    """
    for folder in (run / "model", run):
        if (folder / INFO_NAME).is_file():
            return folder
    if (run / "config.json").is_file():
        raise InputError(
            f"{run}: its training is not finished; go on with it: python -m skinlesion train "
            f"--run {run}"
        )
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


def _require_whole(path: Path, sums: dict[str, str]) -> None:
    if not path.is_file() or _sha256(path) != sums.get(path.name):
        raise InputError(f"{path}: damaged or changed since training; copy it again or retrain")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
