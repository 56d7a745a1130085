"""What is said about one image, in numbers and words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.calibration import FEW_MALIGNANT, Calibration, Count, Share
from skinlesion.evaluation.costs import BY_COST
from skinlesion.files import InputError
from skinlesion.model.bundle import describe

TARGET = "0.95"
"""The operating point in use: the sensitivity to malignancy on the validation images. It is high
because missing a cancer is worse than a false alarm."""


@dataclass(frozen=True)
class RankedDiagnosis:
    """One diagnosis of one image.

    Attributes:
        code: `dx` code, such as `mel`.
        name: full name.
        malignant: whether this diagnosis counts as malignant; None: the dataset does not say so.
        probability: calibrated, 0 to 1. The probabilities of an image add up to 1.
        in_prediction_set: whether it is in the set that contains the true diagnosis of 90 % of the
            validation images.
    """

    code: str
    name: str
    malignant: bool | None
    probability: float
    in_prediction_set: bool


@dataclass(frozen=True)
class OperatingPoint:
    """How malignant is told from benign, and how well this works.

    Attributes:
        threshold: images with at least this probability of malignancy are predicted malignant. It
            was chosen on the validation images; None if none of them is known to be malignant, or
            if costs decide.
        n_malignant: number of malignant validation images that the threshold rests on.
        sensitivity: on the test images, `value` with `low` and `high`, the 95 % interval; None if
            the run was not evaluated.
        specificity: the same.
        n_test: number of test images; None if the run was not evaluated.
    """

    threshold: float | None
    n_malignant: int
    sensitivity: dict[str, float] | None = None
    specificity: dict[str, float] | None = None
    n_test: int | None = None


@dataclass(frozen=True)
class Result:
    """Everything that is said about one image.

    Attributes:
        file: name of the file, without its folder.
        is_in_distribution: whether the image resembles the training images. If it does not, the
            predictions are not meaningful.
        ood_score: distance from the training images; above 1 is out of distribution.
        problems: quality problems, from `evaluation.quality.find_problems`.
        diagnoses: all diagnoses, the most probable first.
        p_malignant: probability of all malignant diagnoses together, 0 to 1; None if the dataset
            does not say which these are.
        prediction: code of the diagnosis that the model decides on.
        rule: by which rule it decides, in a few words.
        is_malignant: whether `p_malignant` reaches the threshold; None without a threshold. If
            costs decide: whether `prediction` is malignant.
        prediction_set: codes of the diagnoses in the prediction set, the most probable first.
        operating_point: the threshold.
    """

    file: str
    is_in_distribution: bool
    ood_score: float
    problems: tuple[str, ...]
    diagnoses: tuple[RankedDiagnosis, ...]
    p_malignant: float | None
    prediction: str
    rule: str
    is_malignant: bool | None
    prediction_set: tuple[str, ...]
    operating_point: OperatingPoint

    @property
    def probabilities(self) -> dict[str, float]:
        """Calibrated probability of each `dx` code, in the order of the codes."""
        return dict(sorted((one.code, one.probability) for one in self.diagnoses))

    @property
    def predicted(self) -> RankedDiagnosis:
        """The diagnosis of `prediction`."""
        return next(one for one in self.diagnoses if one.code == self.prediction)

    @property
    def headline(self) -> str:
        """The result in a few words."""
        if not self.is_in_distribution:
            return "Does not look like a dermatoscopic image"
        if self.is_malignant is None:
            return f"Predicted: {_lower(self.predicted.name)}"
        return "Predicted malignant" if self.is_malignant else "Predicted benign"

    @property
    def sentence(self) -> str:
        """What the result means, in plain words."""
        if not self.is_in_distribution:
            return (
                "This image differs from the dermatoscopic images that the model was trained on. "
                "Its predictions for this image are not meaningful. Use a close-up taken through a "
                "dermatoscope, with one lesion in the middle."
            )
        first, point = self.diagnoses[0], self.operating_point
        likely = f"The most probable diagnosis is {_name(first)}."
        if self.predicted is not first:
            likely += f" The model predicts {_name(self.predicted)}: it {self.rule}."
        if self.p_malignant is None:
            return likely
        if self.is_malignant is None:
            return f"{likely} The model has no threshold for malignancy."
        if point.threshold is None:
            return f"{likely} {self._error_rate}"
        side = "at or above" if self.is_malignant else "below"
        parts = [
            likely,
            f"The malignant diagnoses together have a probability of "
            f"{format_percent(self.p_malignant)}, {side} the threshold of "
            f"{format_percent(point.threshold)}.",
            self._error_rate,
        ]
        if point.n_malignant < FEW_MALIGNANT:
            parts.append(
                "The threshold is uncertain because the validation set has few malignant images "
                f"({point.n_malignant})."
            )
        return " ".join(parts)

    @property
    def _error_rate(self) -> str:
        point = self.operating_point
        if point.sensitivity is None or point.specificity is None:
            return "The error rates of this rule were not measured: evaluate the run first."
        if self.is_malignant:
            rate = format_percent(1 - point.specificity["value"])
            return f"False-positive rate on the test set: {rate}."
        rate = format_percent(1 - point.sensitivity["value"])
        return f"This does not rule out cancer. False-negative rate on the test set: {rate}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, including headline and sentence."""
        values = asdict(self) | {"headline": self.headline, "sentence": self.sentence}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


@dataclass(frozen=True)
class Failure:
    """A file that cannot be read as an image: its name, and the reason in one line."""

    file: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def find_operating_point(
    calibration: Calibration, metrics: Mapping[str, Any] | None
) -> OperatingPoint:
    """Return the operating point `TARGET` of a model, or that of its decisions by cost.

    Args:
        calibration: of the model.
        metrics: of its run; None if it was not evaluated.

    Raises:
        InputError: the metrics lack the error rates, or these are no shares.
    """
    threshold = None if calibration.costs else calibration.thresholds.get(TARGET)
    unmeasured = OperatingPoint(threshold, calibration.n_malignant)
    if metrics is None:
        return unmeasured
    try:
        row = _find_measured(calibration, metrics)
        if row is None:
            return unmeasured
        if "sensitivity" not in row:
            return unmeasured
        sensitivity, specificity = (_interval(row[name]) for name in ("sensitivity", "specificity"))
        n_test = TypeAdapter(Count).validate_python(metrics["n"])
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"metrics.json: lacks the error rates of the threshold ({describe(error)}); evaluate "
            "the run again"
        ) from error
    if sensitivity is None or specificity is None:
        return unmeasured
    return replace(unmeasured, sensitivity=sensitivity, specificity=specificity, n_test=n_test)


def _find_measured(calibration: Calibration, metrics: Mapping[str, Any]) -> Any:
    """The figures of the present rule; None: the run was evaluated with another one."""
    if calibration.costs is not None:
        measured = metrics.get("cost_decision", {"costs": None})
        same = measured["costs"] == [list(row) for row in calibration.costs.costs]
        return measured["rules"][BY_COST] if same else None
    for row in metrics["calibration"]["operating_points"]:
        if row["target_sensitivity"] == float(TARGET):
            return row if row["threshold"] == calibration.thresholds[TARGET] else None
    return None


def list_columns(info: DatasetInfo) -> list[str]:
    """List the columns that `predict` writes; those of malignancy only if the dataset has it."""
    is_known = info.malignant is not None
    columns = ["file", "prediction", *(["malignant"] if is_known else [])]
    columns += [f"p_{code}" for code in info.labels] + (["p_malignant"] if is_known else [])
    return [*columns, "prediction_set", "in_distribution", "ood_score", "problems", "error"]


def make_table(results: Sequence[Result | Failure], info: DatasetInfo) -> pd.DataFrame:
    """Make a row for each file, with the columns of `list_columns`.

    Probabilities are calibrated. `malignant` and `in_distribution` are True or False, and `error`
    is empty if the file could be read. Otherwise everything but `file` and `error` is empty.
    """
    rows = [_make_row(one) if isinstance(one, Result) else one.to_dict() for one in results]
    table = pd.DataFrame(rows, columns=list_columns(info))
    text = ["prediction", "prediction_set", "problems", "error"]
    return table.assign(**table[text].fillna(""))


def _make_row(result: Result) -> dict[str, Any]:
    return {
        "file": result.file,
        "prediction": result.prediction,
        "malignant": result.is_malignant,
        "p_malignant": result.p_malignant,
        **{f"p_{code}": probability for code, probability in result.probabilities.items()},
        "prediction_set": " ".join(result.prediction_set),
        "in_distribution": result.is_in_distribution,
        "ood_score": result.ood_score,
        "problems": ", ".join(result.problems),
        "error": "",
    }


def format_percent(share: float) -> str:
    """Format a share from 0 to 1 as whole per cent; `< 1 %` and `> 99 %` are not rounded away."""
    whole = "< 1" if 0 < share < 0.01 else "> 99" if 0.99 < share < 1 else f"{100 * share:.0f}"
    return f"{whole} %".replace(" ", "\N{NO-BREAK SPACE}")


def _interval(share: Mapping[str, float]) -> dict[str, float] | None:
    """The share with its interval; None: no test image defines it."""
    values = {key: share[key] for key in ("value", "low", "high")}
    if None in values.values():
        return None
    return TypeAdapter(dict[str, Share]).validate_python(values)


def _name(diagnosis: RankedDiagnosis) -> str:
    return f"{_lower(diagnosis.name)} ({format_percent(diagnosis.probability)})"


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
