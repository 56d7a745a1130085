"""Images in, predictions out: the only code that turns images into predictions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from skinlesion.bundle import Bundle, load_bundle
from skinlesion.calibration import Calibration, calibration_from_dict
from skinlesion.errors import InputError
from skinlesion.exports import Network, open_onnx
from skinlesion.input_pipeline import decode_image, load_images
from skinlesion.labels import CLASS_CODES, CLASS_NAMES
from skinlesion.workspace import progress_bar

BATCH_SIZE = 32
"""Images that go through the network at a time."""

Engine = Literal["keras", "onnx"]


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
    """A bundle, ready to predict; the model is loaded once.

    Args:
        bundle: the model; its weights are taken over with the first prediction.
        network: what predicts in its place; None: the model itself, compiled.
    """

    def __init__(self, bundle: Bundle, network: Network | None = None) -> None:
        self.bundle = bundle
        if network is not None:
            self._network = network

    @classmethod
    def load(cls, run: str | Path, *, engine: Engine = "keras") -> "Predictor":
        """From a run directory or a bundle.

        Args:
            run: its folder.
            engine: `onnx` predicts with ONNX Runtime, from `model.onnx` in the bundle, which is
                made when it is not there; probabilities differ by 1e-4 at most.

        Raises:
            InputError: as `load_bundle`, with `onnx` as `exports.open_onnx` too.
        """
        bundle = load_bundle(Path(run))
        return cls(bundle, open_onnx(Path(run), bundle) if engine == "onnx" else None)

    @property
    def calibration(self) -> Calibration:
        """What was fitted on the validation images. Raises: `InputError` where nothing was."""
        if self.bundle.info.calibration is None:
            raise InputError("this model was not calibrated: train it again")
        return calibration_from_dict(self.bundle.info.calibration)

    def predict(self, path: str | Path) -> Prediction:
        """Predict one image file. Raises: `InputError` when it is no image."""
        info = self.bundle.info
        image = decode_image(path, image_size=info.image_size, resize=info.resize)
        y_prob = self.predict_images(image[np.newaxis])[0]
        return Prediction(Path(path).stem, dict(zip(CLASS_CODES, map(float, y_prob), strict=True)))

    def predict_probabilities(
        self, paths: Sequence[str | Path], *, tta: bool = False
    ) -> np.ndarray:
        """Predict many image files, a batch at a time, so that memory stays bounded.

        Args:
            paths: image files.
            tta: test-time augmentation: the mean over the image and its mirror images, as
                `predict_images` says.

        Returns:
            float32 (n, 7), uncalibrated, in the order of `paths` and of `labels.DIAGNOSES`.

        Raises:
            InputError: some files are no images.
        """
        parts = [np.empty((0, len(CLASS_CODES)), np.float32)]
        for batch in self._batches(paths, "predicting"):
            parts.append(self.predict_images(batch, tta=tta))
        return np.concatenate(parts)

    def predict_images(self, images: np.ndarray, *, tta: bool = False) -> np.ndarray:
        """Predict decoded images.

        Args:
            images: uint8 (n, height, width, 3) at the model's size.
            tta: the mean over the four mirror images, and, where images are square, over these
                turned by 90 degrees too (Codella et al., arXiv:1902.03368, report such means for
                the best entries of ISIC 2018).

        Returns:
            float32 (n, 7), uncalibrated.
        """
        views = _views(images) if tta else [images]
        return np.mean([self._run(view) for view in views], axis=0)

    def explain(self, paths: Sequence[str | Path], labels: np.ndarray) -> np.ndarray:
        """Grad-CAM of image files: see `explanation.compute_grad_cam`."""
        from skinlesion.explanation import compute_grad_cam

        model, parts = self.bundle.model, []
        for index, batch in enumerate(self._batches(paths, "explaining")):
            start = index * BATCH_SIZE
            parts.append(compute_grad_cam(model, batch, labels[start : start + BATCH_SIZE]))
        return np.concatenate([np.empty((0, *self.bundle.info.image_size), np.float32), *parts])

    @cached_property
    def _network(self) -> Network:
        return _compile(self.bundle.model)

    def _run(self, images: np.ndarray) -> np.ndarray:
        parts = [np.empty((0, len(CLASS_CODES)), np.float32)]
        for start in range(0, len(images), BATCH_SIZE):
            parts.append(self._network(images[start : start + BATCH_SIZE].astype(np.float32)))
        return np.concatenate(parts)

    def _batches(self, paths: Sequence[str | Path], title: str) -> Iterator[np.ndarray]:
        """Decoded batches; while one is used, the next is decoded, and no more than that one."""
        info, starts = self.bundle.info, range(0, len(paths), BATCH_SIZE)

        def decode(start: int) -> np.ndarray:
            chosen = paths[start : start + BATCH_SIZE]
            return load_images(chosen, image_size=info.image_size, resize=info.resize)

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(decode, 0)
            for start in progress_bar(starts, title, len(starts), unit="batch"):
                ready = ahead.result()
                if start + BATCH_SIZE < len(paths):
                    ahead = pool.submit(decode, start + BATCH_SIZE)
                yield ready


def _compile(model: keras.Model) -> Network:
    """The model as one graph for any number of images, with its weights as constants.

    TensorFlow then folds BatchNorm into the convolutions before it, and a call skips what
    `model.predict` does around its batches.
    """
    trained, others = (
        [variable.numpy() for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape, tf.float32)])
    def run(images: tf.Tensor) -> tf.Tensor:
        y_prob, _ = model.stateless_call(trained, others, images, training=False)
        return y_prob

    return lambda images: run(images).numpy()


def _views(images: np.ndarray) -> list[np.ndarray]:
    mirrored = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    square = images.shape[1] == images.shape[2]
    return mirrored + [view.swapaxes(1, 2) for view in mirrored if square]
