"""What is said about one image: what page, clients and tables of the demo show."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skinlesion.data.images import read_size
from skinlesion.diagnoses import DIAGNOSES
from skinlesion.evaluation.calibration import apply_temperature, make_prediction_sets, sum_malignant
from skinlesion.evaluation.quality import find_problems
from skinlesion.model.predictor import Predictor

TARGET = "0.95"
"""The operating point that is shown: the share of malignant validation images to be found. Missing
a cancer is worse than a false alarm."""
FOREIGN = "Does not look like a dermatoscopic image"
PROBLEMS = {
    "small": "It has few pixels and was enlarged: details that matter may be missing.",
    "blurred": "It is less sharp than nearly all images that the model was checked on.",
    "pale": "It has less contrast than nearly all images that the model was checked on.",
    "dark": "It is darker than nearly all images that the model was checked on.",
    "bright": "It is brighter than nearly all images that the model was checked on.",
}
"""What each problem of `quality.find_problems` means, in words."""


@dataclass(frozen=True)
class Candidate:
    """One of the seven diagnoses of one image.

    Attributes:
        code: `dx` code, such as `mel`.
        name: in full.
        malignant: whether this diagnosis is treated as cancer.
        probability: calibrated, 0 to 1; those of an image add up to 1.
        in_prediction_set: whether it is in the set that holds the true diagnosis of 90 % of the
            validation images.
    """

    code: str
    name: str
    malignant: bool
    probability: float
    in_prediction_set: bool


@dataclass(frozen=True)
class OperatingPoint:
    """From which probability an image is called malignant, and how well that went on test images.

    Attributes:
        threshold: chosen on validation; None where that had no malignant image.
        sensitivity: share of the malignant test images that were called so, with `low` and `high`,
            the ends of the 95 % interval; None: the model was not tested.
        specificity: share of the benign test images that were not; the same.
        images: number of test images.
    """

    threshold: float | None
    sensitivity: dict[str, float] | None = None
    specificity: dict[str, float] | None = None
    images: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What is said about one image.

    Attributes:
        image: name of the file.
        is_dermatoscopic: whether it looks like the images of the dataset; None: the model has no
            gate. Where it does not, the rest means nothing.
        problems: keys of `PROBLEMS`.
        candidates: all seven, the most probable first.
        malignancy: probability of all malignant diagnoses together, 0 to 1.
        is_malignant: whether that reaches the threshold; None: there is none.
        operating_point: that threshold.
    """

    image: str
    is_dermatoscopic: bool | None
    problems: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    malignancy: float
    is_malignant: bool | None
    operating_point: OperatingPoint

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, with the sentence."""
        return asdict(self) | {"problems": list(self.problems), "sentence": self.sentence}

    @property
    def call(self) -> str:
        """The verdict in a few words."""
        if self.is_dermatoscopic is False:
            return FOREIGN
        if self.is_malignant is None:
            return self.candidates[0].name
        return "Called malignant" if self.is_malignant else "Called benign"

    @property
    def sentence(self) -> str:
        """What the result means, in plain words."""
        if self.is_dermatoscopic is False:
            return (
                "This does not look like the dermatoscopic images that the model was trained on: "
                "whatever it answers means nothing. Take a close-up through a dermatoscope, with "
                "one lesion in the middle."
            )
        best = self.candidates[0]
        likely = f"Most probable is {_lower(best.name)} ({format_share(best.probability)})"
        if self.is_malignant is None:
            return f"{likely}. The model has no threshold for malignancy."
        threshold = format_share(self.operating_point.threshold or 0)
        if self.is_malignant:
            meaning = (
                f"{likely}; malignant diagnoses together have {format_share(self.malignancy)}, and "
                f"from {threshold} the model calls an image malignant."
            )
        else:
            meaning = (
                f"{likely}; malignant diagnoses together have {format_share(self.malignancy)}, "
                f"below the {threshold} from which the model calls an image malignant."
            )
        return f"{meaning} {self._track_record}"

    @property
    def _track_record(self) -> str:
        point = self.operating_point
        if point.sensitivity is None or point.specificity is None:
            return "How often it is right in that was not measured: evaluate the run first."
        if self.is_malignant:
            wrong = format_share(1 - point.specificity["value"])
            return f"On the test images it said so, wrongly, of {wrong} of the benign ones."
        missed = format_share(1 - point.sensitivity["value"])
        return f"That does not rule cancer out: it missed {missed} of the malignant test images."


def judge_image(predictor: Predictor, path: str | Path, point: OperatingPoint) -> Verdict:
    """Judge one image file.

    Args:
        predictor: the model; it was calibrated.
        path: the file.
        point: from `find_operating_point`.

    Raises:
        InputError: it is no image, or the model was not calibrated.
    """
    calibration = predictor.calibration
    pixels = predictor.decode(path)
    prediction = predictor.predict_image(pixels, name=Path(path).name)
    y_prob = np.array([list(prediction.probabilities.values())])
    calibrated = apply_temperature(y_prob, calibration.temperature)
    chosen = make_prediction_sets(calibrated, calibration)[0]
    candidates = [
        Candidate(*diagnosis, probability=float(probability), in_prediction_set=bool(there))
        for diagnosis, probability, there in zip(DIAGNOSES, calibrated[0], chosen, strict=True)
    ]
    malignancy = float(sum_malignant(calibrated)[0])
    foreign = prediction.is_foreign
    return Verdict(
        image=prediction.image,
        is_dermatoscopic=None if foreign is None else not foreign,
        problems=tuple(find_problems(pixels, predictor.limits, taken_at=read_size(path))),
        candidates=tuple(sorted(candidates, key=lambda one: -one.probability)),
        malignancy=malignancy,
        is_malignant=None if point.threshold is None else bool(malignancy >= point.threshold),
        operating_point=point,
    )


def find_operating_point(predictor: Predictor, metrics: Mapping[str, Any] | None) -> OperatingPoint:
    """The operating point `TARGET` of a model.

    Args:
        predictor: the model.
        metrics: its run's `metrics.json`; None: it was not evaluated.

    Raises:
        InputError: the model was not calibrated.
    """
    threshold = predictor.calibration.thresholds.get(TARGET)
    for row in (metrics or {}).get("calibration", {}).get("operating_points", []):
        if row["target_sensitivity"] == float(TARGET) and row["threshold"] == threshold is not None:
            shares = {
                name: {key: row[name][key] for key in ("value", "low", "high")}
                for name in ("sensitivity", "specificity")
            }
            return OperatingPoint(threshold, **shares, images=(metrics or {})["n"])
    return OperatingPoint(threshold)


def format_share(share: float) -> str:
    """A share of 0 to 1 as whole per cent, without claiming 0 or 100 of what is neither."""
    whole = "< 1" if 0 < share < 0.01 else "> 99" if 0.99 < share < 1 else f"{100 * share:.0f}"
    return f"{whole} %".replace(" ", "\N{NO-BREAK SPACE}")


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
