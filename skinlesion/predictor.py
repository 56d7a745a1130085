"""Images in, predictions out: the only code that turns images into predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skinlesion.bundle import Bundle, load_bundle
from skinlesion.input_pipeline import load_images
from skinlesion.labels import CLASS_CODES, CLASS_NAMES
from skinlesion.workspace import progress_bar

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        image: name of the file without its ending.
        probabilities: `dx` code to probability in [0, 1]; they add up to 1.
    """

    image: str
    probabilities: dict[str, float]

    @property
    def code(self) -> str:
        """The `dx` code with the highest probability."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def name(self) -> str:
        """The full name of the most probable diagnosis."""
        return CLASS_NAMES[CLASS_CODES.index(self.code)]

    @property
    def confidence(self) -> float:
        """The probability of the most probable diagnosis."""
        return self.probabilities[self.code]


class Predictor:
    """A bundle, ready to predict; the model is loaded once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @classmethod
    def load(cls, run: str | Path) -> "Predictor":
        """From a run directory or a bundle. Raises: `InputError`, as `load_bundle`."""
        return cls(load_bundle(Path(run)))

    def predict(self, path: str | Path) -> Prediction:
        """Predict one image file. Raises: `InputError` when it is no image."""
        y_prob = self.predict_probabilities([path])[0]
        return Prediction(Path(path).stem, dict(zip(CLASS_CODES, map(float, y_prob), strict=True)))

    def predict_probabilities(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Predict many image files, a batch at a time, so that memory stays bounded.

        Returns:
            float32 (n, 7), in the order of `paths` and of `labels.DIAGNOSES`.

        Raises:
            InputError: some files are no images.
        """
        info, starts = self.bundle.info, range(0, len(paths), BATCH_SIZE)
        parts = [np.empty((0, len(CLASS_CODES)), np.float32)]
        for start in progress_bar(starts, "predicting", len(starts), unit="batch"):
            images = load_images(
                paths[start : start + BATCH_SIZE], image_size=info.image_size, resize=info.resize
            )
            parts.append(np.asarray(self.bundle.model.predict_on_batch(images.astype(np.float32))))
        return np.concatenate(parts)
