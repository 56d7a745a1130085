"""What is fitted on the validation images: temperature, thresholds, prediction sets, OOD limits.

Training also chose by the validation images, so everything looks a little better on them than it
is. Only the measurement on the test images counts.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from skinlesion.config import Config
from skinlesion.data.dataset import find_dataset
from skinlesion.data.images import load_images
from skinlesion.data.split import join_split, take_limited
from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.costs import BY_COST, BY_RATIO, CostTable, decide, read_costs
from skinlesion.evaluation.metrics import find_malignant
from skinlesion.evaluation.ood import OODDetector, fit_ood_detector
from skinlesion.evaluation.quality import QualityLimits, Share, fit_quality_limits, measure_quality
from skinlesion.evaluation.temperature import apply_temperature, fit_temperature, normalise
from skinlesion.files import InputError
from skinlesion.machine import say
from skinlesion.model.bundle import describe
from skinlesion.model.run import Run

SENSITIVITIES = (0.90, 0.95)
"""Sensitivities to malignancy for which a threshold is chosen."""
COVERAGE = 0.90
"""Share of images whose true class the prediction set should contain."""
FEW_MALIGNANT = 30
"""Thresholds that rest on fewer malignant validation images are called uncertain."""

Count = Annotated[int, Field(ge=0, le=10**9, strict=True)]


@dataclass(
    frozen=True,
    config=ConfigDict(arbitrary_types_allowed=True, extra="forbid", allow_inf_nan=False),
)
class Calibration:
    """What prediction needs to give honest confidences.

    Attributes:
        temperature: logits are divided by it; above 1 makes the model less confident.
        thresholds: target sensitivity (as text, such as `0.90`) to the probability of malignancy
            from which an image is called malignant; None without malignant validation images; empty
            if the dataset does not say which classes are malignant.
        set_threshold: a class is in the prediction set if its probability, with all classes taken
            as equally frequent, is at least this.
        n_validation: number of validation images.
        n_malignant: number of malignant ones among them.
        prior: share of each class, (classes,), among the images that the probabilities are meant
            for: the training images. All equal for a network that was trained without class
            weights, because its own probabilities follow these shares.
        ood: detects images unlike the training images.
        quality: limits of the quality of images.
        costs: from which the decision follows; None: each class has the same weight.
    """

    temperature: Annotated[float, Field(gt=0.01, lt=100, strict=True)]
    thresholds: dict[str, Share | None]
    set_threshold: Share
    n_validation: Count
    n_malignant: Count
    prior: tuple[Annotated[float, Field(gt=0, lt=1, strict=True)], ...]
    ood: OODDetector
    quality: QualityLimits
    costs: CostTable | None = None

    @model_validator(mode="after")
    def _require_consistent(self) -> "Calibration":
        targets = [f"{sensitivity:.2f}" for sensitivity in SENSITIVITIES]
        if self.thresholds and sorted(self.thresholds) != targets:
            raise ValueError(f"thresholds: must be for {targets}, not {sorted(self.thresholds)}")
        if abs(sum(self.prior) - 1) > 1e-6:
            raise ValueError("prior: must be shares that add up to 1")
        if self.n_malignant > self.n_validation:
            raise ValueError("n_malignant: more than n_validation")
        if any((value is None) != (self.n_malignant == 0) for value in self.thresholds.values()):
            raise ValueError("thresholds: must be null exactly without malignant images")
        return self

    @property
    def is_uncertain(self) -> bool:
        """Whether there are thresholds that rest on fewer than `FEW_MALIGNANT` images."""
        return bool(self.thresholds) and self.n_malignant < FEW_MALIGNANT

    @property
    def rule(self) -> str:
        """The rule by which the model decides on a diagnosis, in a few words."""
        if self.costs is not None:
            return f"decides by the {BY_COST} (table {self.costs.name})"
        is_weighted = len(set(self.prior)) > 1
        return f"decides by the {BY_RATIO if is_weighted else 'highest probability'}"

    def apply(self, y_prob: np.ndarray) -> np.ndarray:
        """Calibrate probabilities.

        A network trained with class weights takes all classes for equally frequent. Their true
        shares come back by Bayes' rule (Saerens et al., Neural Computation 14:21 (2002),
        doi:10.1162/089976602753284446).

        Args:
            y_prob: float (n, classes), uncalibrated.

        Returns:
            float64 (n, classes): how often each class is right among images as the training images.
        """
        return normalise(apply_temperature(y_prob, self.temperature) * self.prior)

    def balance(self, calibrated: np.ndarray) -> np.ndarray:
        """The probabilities (n, classes) if all classes were equally frequent."""
        return normalise(calibrated / np.array(self.prior))

    def decide(self, calibrated: np.ndarray) -> np.ndarray:
        """Decide on a class for each image, int (n,), by `rule`.

        Without costs, this gives the same class as the uncalibrated probabilities: for a network
        that was trained with class weights, the highest balanced accuracy that they allow (Menon et
        al., arXiv:2007.07314).
        """
        if self.costs is not None:
            return decide(calibrated, self.costs)
        return self.balance(calibrated).argmax(axis=1)

    def describe(self) -> str:
        """A few sentences for the terminal."""
        thresholds = [
            f"{value:.3f} for {float(target):.0%} sensitivity"
            for target, value in self.thresholds.items()
            if value is not None
        ]
        said = f"temperature {self.temperature:.2f}, fitted on {self.n_validation:,} images"
        if self.thresholds:
            said += (
                f"; malignant from {' and '.join(thresholds)}" if thresholds else "; no threshold"
            )
        if self.is_uncertain:
            said += f". The thresholds are uncertain: only {self.n_malignant} malignant images"
        return f"{said}. The model {self.rule}"

    def summary(self) -> pd.DataFrame:
        """The fitted values as a table for readers."""
        rows = {
            "temperature": f"{self.temperature:.2f}",
            **{
                f"threshold for {float(target):.0%} sensitivity to malignancy": (
                    "none: no malignant validation images" if value is None else f"{value:.3f}"
                )
                for target, value in self.thresholds.items()
            },
            f"threshold of prediction sets for {COVERAGE:.0%}": f"{self.set_threshold:.3f}",
            "validation images": f"{self.n_validation:,}"
            + (f", {self.n_malignant:,} malignant" if self.thresholds else ""),
        }
        return pd.Series(rows, name="fitted on validation").to_frame()


def calibrate(
    run: str | Path | Run, data: str | Path | None = None, *, costs: str | Path | None = None
) -> Calibration:
    """Fit a trained run's calibration on its validation images, and save it with the model.

    The validation images are predicted once; `predictions_validation.csv` keeps the uncalibrated
    probabilities. Of a run that is calibrated already, only the costs change, if they are given.

    Args:
        run: a trained run. For the costs of a calibrated one, also a saved model by itself.
        data: the dataset; None: the run's own, else as `find_dataset`.
        costs: a table of costs, see `read_costs`; "none": each class has the same weight again.

    Raises:
        InputError: the run is not trained, it was trained on another dataset, or as `read_costs`.
    """
    run = Run.find(run)
    table = None if costs in (None, "none") else read_costs(Path(costs), run.info)
    if run.info.calibration is not None:
        if costs is None:
            say(f"calibrate: {run} is calibrated already")
            return load_calibration(run)
        say(f"calibrate: figures of an earlier rule no longer hold: evaluate {run} again")
        return save_calibration(run, replace(load_calibration(run), costs=table))
    from skinlesion.model.predictor import Predictor

    split = run.split
    rows = join_split(run.load_dataset(find_dataset(data or run.dataset)), split)
    train, validation = (rows[rows["split"] == part] for part in ("train", "validation"))
    train = take_limited(train, run.config.limit, seed=run.config.seed)
    predictor = Predictor.load(run)
    options: dict[str, Any] = {"image_size": run.info.image_size, "resize": run.info.resize}
    images = load_images(list(validation["path"]), **options)
    outputs = predictor.predict_images(images)
    run.write_predictions("validation", list(validation["image_id"]), outputs.y_prob)
    say("calibrate: predicting the training images for OOD detection")
    features = predictor.predict_files(list(train["path"])).features
    calibration = fit_calibration(
        validation["label"].to_numpy(),
        outputs.y_prob,
        run.info,
        prior=find_prior(train["label"].to_numpy(), run.config, len(run.info.labels)),
        ood=fit_ood_detector(features, outputs.features),
        quality=fit_quality_limits([measure_quality(image) for image in images]),
    )
    return save_calibration(run, replace(calibration, costs=table))


def save_calibration(run: Run, calibration: Calibration) -> Calibration:
    """Put a calibration beside the network of a run, in place of an earlier one; returns it."""
    values = asdict(calibration)
    arrays = {name: values["ood"].pop(name) for name in ("mean", "precision")}
    run.save_calibration(values, arrays)
    say(f"calibrate: {calibration.describe()}")
    return calibration


def load_calibration(run: str | Path | Run) -> Calibration:
    """Load what `calibrate` saved.

    Raises:
        InputError: the run is not calibrated, or its calibration is damaged.
    """
    run = Run.find(run)
    read = run.read_calibration()
    if read is None:
        raise InputError(
            f"{run}: is not calibrated yet: python -m skinlesion calibrate --run {run}"
        )
    values, arrays = read
    try:
        given = values.get("ood")
        if not (isinstance(given, dict) and set(given) == {"threshold"}):
            raise ValueError("ood: must hold a threshold and nothing else")
        detector = OODDetector(arrays["mean"], arrays["precision"], given["threshold"])
        detector.require_possible()
        calibration = Calibration(**values | {"ood": detector})
        if bool(calibration.thresholds) != (run.info.malignant is not None):
            raise ValueError("thresholds: must be there exactly if some classes are malignant")
        given = calibration.costs.costs if calibration.costs else calibration.prior
        if {len(given), len(calibration.prior)} != {len(run.info.labels)}:
            raise ValueError(f"costs, prior: must be for {len(run.info.labels)} classes")
        return calibration
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(
            f"{run}: its calibration does not fit this version ({describe(error)})"
        ) from error


def find_prior(labels: np.ndarray, config: Config, num_classes: int) -> np.ndarray:
    """The prior of `Calibration`, float (classes,).

    Args:
        labels: int (n,), of the training images.
        config: the settings that the network was trained with.
        num_classes: classes of the dataset.
    """
    weighted = labels if config.class_weights == "balanced" else labels[:0]
    counts = np.bincount(weighted, minlength=num_classes) + 1  # so that no class is impossible
    return counts / counts.sum()


def fit_calibration(
    y_true: np.ndarray,
    y_prob: np.ndarray,
    info: DatasetInfo,
    *,
    prior: np.ndarray,
    ood: OODDetector,
    quality: QualityLimits,
) -> Calibration:
    """Fit temperature, thresholds and prediction sets on validation images.

    Prediction sets are split conformal with the score 1 - p(true class), as in Sadinle et al.,
    arXiv:1609.00451. The probability is the one with equally frequent classes: rare classes would
    otherwise hardly ever be in a set.

    Args:
        y_true: int (n,), labels.
        y_prob: float (n, classes), uncalibrated probabilities.
        info: of the dataset; without malignant classes in it, there are no thresholds.
        prior: float (classes,), from `find_prior`.
        ood: passed on.
        quality: passed on.
    """
    temperature = fit_temperature(y_true, y_prob, prior)
    balanced = apply_temperature(y_prob, temperature)
    malignant, thresholds = find_malignant(info), {}
    if malignant is not None:
        cases = sum_malignant(normalise(balanced * prior), malignant)[malignant[y_true]]
        thresholds = {f"{s:.2f}": choose_threshold(cases, s) for s in SENSITIVITIES}
    of_truth = np.sort(balanced[np.arange(len(y_true)), y_true])
    # The quantile with the correction for finite samples, ceil((n + 1) * coverage) / n of the
    # scores: the k-th smallest probability of the truth. Too few images give sets of all classes.
    below = len(y_true) - int(np.ceil((len(y_true) + 1) * COVERAGE))
    return Calibration(
        temperature=temperature,
        thresholds=thresholds,
        set_threshold=float(of_truth[below]) if below >= 0 else 0.0,
        n_validation=len(y_true),
        n_malignant=0 if malignant is None else int(malignant[y_true].sum()),
        prior=tuple(prior.tolist()),
        ood=ood,
        quality=quality,
    )


def choose_threshold(p_malignant: np.ndarray, sensitivity: float) -> float | None:
    """Choose the largest threshold, up to 1/2, that finds a share of the malignant images.

    Above 1/2, the model would call images benign that it takes for more likely malignant. Where
    few validation images are separated perfectly, nothing else keeps the threshold from there.

    Args:
        p_malignant: float (n,), probability of malignancy of the malignant validation images.
        sensitivity: the share, 0 to 1.

    Returns:
        The threshold; None without images.
    """
    if not len(p_malignant):
        return None
    missed = int(np.floor((1 - sensitivity) * len(p_malignant) + 1e-9))
    return min(0.5, float(np.sort(p_malignant)[missed]))


def sum_malignant(y_prob: np.ndarray, malignant: np.ndarray) -> np.ndarray:
    """The probability (n,) of all malignant diagnoses together; `malignant` is bool (classes,)."""
    return y_prob[:, malignant].sum(axis=1)


def make_prediction_sets(calibrated: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Which classes are in the prediction set, bool (n, classes).

    The most probable one, with equally frequent classes, always is.
    """
    balanced = calibration.balance(calibrated)
    sets = balanced >= calibration.set_threshold
    sets[np.arange(len(sets)), balanced.argmax(axis=1)] = True
    return sets
