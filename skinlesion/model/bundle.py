"""The files of a saved model and its run, checked before anything large is read or built.

A checksum shows damage only. Whoever edits a file can write a new checksum, so every value is
checked as well.
"""

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skinlesion.config import Pixels, Resize
from skinlesion.data.ham10000 import HAM10000
from skinlesion.diagnoses import DatasetInfo
from skinlesion.files import InputError, name_some, read_json

MODEL_NAME, INFO_NAME, SUMS_NAME = "model.keras", "bundle.json", "SHA256SUMS"
ARRAYS_NAME = "calibration.npz"
ARRAYS = ("mean", "precision")
"""The arrays of OOD detection: float32 (d,) and (d, d)."""
LARGEST_FEATURES = 2048
"""Most features of OOD detection: the channels of the last stage of ResNet50."""
MOST_MEMBERS = 20
"""Most members of an ensemble."""
LARGEST_MODEL = 2**31
"""Most bytes of a network, unpacked. The largest of ours has 100 MB, as each member of an ensemble
can have."""
LARGEST_NUMBER = 2**18
"""Largest number in the description of a network. The largest of ours has 254,016: what the head
of the original flattens of images of 4096x4096."""

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
"""The files in a network's file. Others, which Keras would unpack, are for layers that we lack."""
MODULES = r"keras(\.layers|\.initializers|\.regularizers|\.src\.(ops\.\w+|models\.functional))?"
"""Where the classes of a network may come from. Of these, only `Lambda` runs code of the file."""


class ModelInfo(DatasetInfo):
    """What prediction has to know beside the network, as `bundle.json` holds it.

    The description of the dataset belongs to it: `labels` are the outputs of the network, in order.

    Attributes:
        image_size: (height, width) of the input in pixels.
        resize: filter that brings images to that size.
        recipe: name of the recipe.
        calibration: what `calibrate` fitted, as JSON-ready values; None before that.
            `evaluation.calibration.Calibration` checks them.
    """

    image_size: tuple[Pixels, Pixels]
    resize: Resize
    recipe: Annotated[str, Field(pattern=r"^[\w-]{1,40}$")]
    calibration: dict[str, Any] | None = None


class _Dataset(DatasetInfo):
    model_config = ConfigDict(extra="ignore")

    fingerprint: str
    folder: str


class _Weights(BaseModel):
    loaded_layers: int


class _Member(BaseModel):
    run: str
    seed: int
    model_sha256: str


class _Description(BaseModel):
    """What later steps need of `config.json`. `config.Config` checks the settings themselves.

    Only an ensemble has members.
    """

    model_config = ConfigDict(strict=True)

    config: dict[str, Any]
    dataset: _Dataset
    weights: _Weights
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"]
    members: list[_Member] = []


def read_description(path: Path) -> dict[str, Any]:
    """Read `config.json` of a run.

    Raises:
        InputError: it is not JSON, or lacks what later steps need.
    """
    described = read_json(path)
    try:
        described["dataset"] = complete_description(described["dataset"])
        _Description.model_validate_json(json.dumps(described))
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: holds no settings of a run ({describe(error)})") from error
    return described


def read_info(path: Path) -> ModelInfo:
    """Read `bundle.json`.

    Raises:
        InputError: a value is missing, unknown or impossible.
    """
    try:
        values = complete_description(json.loads(path.read_bytes()))
        return ModelInfo.model_validate_json(json.dumps(values))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: of JSON and of pydantic
        raise InputError(f"{path}: does not fit this version ({describe(error)})") from error


def complete_description(values: Any) -> Any:
    """Add the description of HAM10000, which files lack that were written when it had none."""
    if not isinstance(values, dict) or "names" in values:
        return values
    return HAM10000.model_dump(mode="json") | values


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of OOD detection; their shapes are checked before they are loaded.

    Raises:
        InputError: an array is missing, of another type or shape, or not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {name: _read_shape(archive, f"{name}.npy") for name in ARRAYS}
        (size,) = shapes["mean"]
        if not (shapes["precision"] == (size, size) and 1 <= size <= LARGEST_FEATURES):
            raise ValueError(f"arrays of shapes {shapes}")
        with np.load(path, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in ARRAYS}
        if not all(np.isfinite(array).all() for array in read.values()):
            raise ValueError("some values are not numbers")
    # On damaged archives, zipfile and NumPy raise zlib.error, EOFError, struct.error and more.
    except Exception as error:
        raise InputError(f"{path}: does not fit this version ({describe(error)})") from error
    return read


def _read_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} has the version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.float32:
        raise ValueError(f"{name} holds {dtype}, not float32")
    return shape


def read_network(path: Path, info: ModelInfo) -> Any:
    """Load the classifier from `model.keras`.

    Raises:
        InputError: it is damaged, holds code, does not fit `info`, or another version of Keras
            wrote it.
    """
    import keras

    try:
        _require_plain(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    # Keras raises TypeError, ValueError and others for what another version wrote.
    except Exception as error:
        raise InputError(
            f"{path}: Keras {keras.__version__} cannot read it ({describe(error)}); install the "
            "Keras that it was trained with, or copy the model again"
        ) from error
    require_classifier(model, info.image_size, len(info.labels), str(path))
    return model


def _require_plain(path: Path) -> None:
    """Check the description of a network before Keras builds it: no code, nothing huge."""

    def check(part: dict[str, Any]) -> dict[str, Any]:
        kind, module = part.get("class_name"), str(part.get("module") or "keras")
        if kind in ("Lambda", "__lambda__") or not re.fullmatch(MODULES, module):
            raise InputError(
                f"{path}: holds code ({kind} of {module}), which is not run; use a model that this "
                "package saved"
            )
        for name, value in part.items():
            values = value if isinstance(value, list) else [value]
            numbers = [number for number in values if isinstance(number, int | float)]
            if name not in ("seed", "shared_object_id") and any(
                abs(number) > LARGEST_NUMBER for number in numbers
            ):
                raise InputError(f"{path}: {name}={value} is too large; copy the model again")
        return part

    with zipfile.ZipFile(path) as archive:
        others = set(archive.namelist()) - MEMBERS
        if others:
            raise InputError(f"{path}: holds {name_some(sorted(others))}; copy the model again")
        if sum(member.file_size for member in archive.infolist()) > LARGEST_MODEL:
            raise InputError(
                f"{path}: larger than {LARGEST_MODEL // 2**20} MiB when unpacked; copy the model "
                "again"
            )
        json.loads(archive.read("config.json"), object_hook=check)


def require_classifier(
    model: Any, image_size: tuple[int, int], num_classes: int, name: str
) -> None:
    """Check that a network has the parts and sizes that prediction relies on.

    Args:
        model: the classifier, or an ensemble: then each member is checked.
        image_size: (height, width) that it must take.
        num_classes: number of probabilities that it must give.
        name: of the network, for the message.

    Raises:
        InputError: a part or a size is another one.
    """
    from skinlesion.model.ensemble import find_members

    for member in find_members(model):
        _require_parts(member, image_size, num_classes, name)


def _require_parts(model: Any, image_size: tuple[int, int], num_classes: int, name: str) -> None:
    """`require_classifier` for one classifier."""
    from skinlesion.model.resnet50 import PARTS, STAGE_OUTPUTS

    names = [layer.name for layer in getattr(model, "layers", [])]
    if names != list(PARTS):
        raise InputError(f"{name}: its parts must be {', '.join(PARTS)}, not {', '.join(names)}")
    sizes = (model.input_shape, model.output_shape)
    expected = ((None, *image_size, 3), (None, num_classes))
    if sizes != expected:
        raise InputError(f"{name}: must take and give arrays of shapes {expected}, not {sizes}")
    last = [getattr(model.get_layer(name), "layers", [])[-1:] for name in PARTS[1:]]
    ends = [layer.name for layers in last for layer in layers]
    if len(ends) != 2 or ends[0] not in STAGE_OUTPUTS.values() or ends[1] != "probabilities":
        raise InputError(
            f"{name}: backbone and head must end with a stage of ResNet50 and with the layer "
            f"'probabilities', not with {', '.join(ends)}"
        )


def describe(error: Exception) -> str:
    """The reason of an error in one line; of pydantic's, each value with its problem."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False)
        return "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems
        )
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def compute_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of a saved model beside them."""
    names = sorted(path.name for path in folder.iterdir())
    lines = [f"{compute_sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_NAME).write_text("".join(lines))
