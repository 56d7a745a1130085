"""Images in, predictions out: the only code that turns images into predictions."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from skinlesion.data.images import decode_image, load_images
from skinlesion.diagnoses import CLASS_CODES, CLASS_NAMES
from skinlesion.evaluation.calibration import Calibration, calibration_from_dict
from skinlesion.evaluation.export import open_onnx
from skinlesion.evaluation.ood import STAGE, is_foreign
from skinlesion.evaluation.quality import QualityLimits, limits_from
from skinlesion.files import InputError
from skinlesion.machine import progress_bar
from skinlesion.model.bundle import Bundle, load_bundle
from skinlesion.model.resnet50 import add_features, top_stage_of

BATCH_SIZE = 32
"""Images that go through the network at a time."""

Engine = Literal["keras", "onnx"]
Outputs = Callable[[np.ndarray], list[np.ndarray]]
"""From a batch, float32, to probabilities and, where the bundle has a gate, features."""


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        image: name of the file without its ending.
        probabilities: `dx` code to probability in [0, 1]; they add up to 1.
        foreign_score: how far the image is from the training images, as a multiple of the distance
            that 95 % of the validation images keep; None: the model has no gate.
    """

    image: str
    probabilities: dict[str, float]
    foreign_score: float | None = None

    @property
    def is_foreign(self) -> bool | None:
        """Whether this does not look like a dermatoscopic image; None: the model has no gate."""
        return None if self.foreign_score is None else bool(is_foreign(self.foreign_score))

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
        network: what predicts in its place, see `exports.open_onnx`; None: the model itself,
            compiled.
    """

    def __init__(self, bundle: Bundle, network: Outputs | None = None) -> None:
        self.bundle = bundle
        self._given = network

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

    @property
    def stage(self) -> str:
        """The stage of the network that features come from: the gate's, or what a new one takes."""
        gate = self.bundle.gate
        return gate.stage if gate else min(STAGE, top_stage_of(self.bundle.model))

    @property
    def limits(self) -> QualityLimits | None:
        """Of the quality of images; None: the model has none."""
        limits = self.bundle.info.image_quality
        return None if limits is None else limits_from(limits)

    def decode(self, path: str | Path) -> np.ndarray:
        """An image file as the network takes it: see `input_pipeline.decode_image`."""
        info = self.bundle.info
        return decode_image(path, image_size=info.image_size, resize=info.resize)

    def predict(self, path: str | Path) -> Prediction:
        """Predict one image file. Raises: `InputError` when it is no image."""
        return self.predict_image(self.decode(path), name=Path(path).stem)

    def predict_image(self, image: np.ndarray, *, name: str) -> Prediction:
        """Predict one decoded image, uint8 (height, width, 3) at the model's size."""
        y_prob, scores = self.judge_images(image[np.newaxis])
        probabilities = dict(zip(CLASS_CODES, map(float, y_prob[0]), strict=True))
        return Prediction(name, probabilities, None if scores is None else float(scores[0]))

    def judge(self, paths: Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict many image files, and say how foreign they are: see `judge_images`."""
        return _join([self.judge_images(batch) for batch in self._batches(paths, "predicting")])

    def judge_images(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict decoded images, and say how foreign they are, in one pass.

        Args:
            images: uint8 (n, height, width, 3) at the model's size, one or more.

        Returns:
            Probabilities as of `predict_images`, and `Prediction.foreign_score` of each image,
            float (n,), or None where the model has no gate.
        """
        y_prob, features = _join([self._both(batch) for batch in _cut(images)])
        gate = self.bundle.gate
        return y_prob, None if gate is None else gate.compute_scores(features)

    def describe_images(self, images: np.ndarray) -> np.ndarray:
        """The features of decoded images that a gate is fitted on, float32 (n, channels)."""
        count = -(-len(images) // BATCH_SIZE)
        batches = progress_bar(_cut(images), "features", count, unit="batch")
        return np.concatenate([self._describe(batch) for batch in batches])

    def describe(self, paths: Sequence[str | Path]) -> np.ndarray:
        """The same of image files."""
        batches = self._batches(paths, "features")
        return np.concatenate([self._describe(batch.astype(np.float32)) for batch in batches])

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
        from skinlesion.evaluation.gradcam import compute_grad_cam

        model, parts = self.bundle.model, []
        for index, batch in enumerate(self._batches(paths, "explaining")):
            start = index * BATCH_SIZE
            parts.append(compute_grad_cam(model, batch, labels[start : start + BATCH_SIZE]))
        return np.concatenate([np.empty((0, *self.bundle.info.image_size), np.float32), *parts])

    @cached_property
    def _both(self) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
        """From a batch to probabilities and, where there is a gate, features."""
        model = self.bundle.model
        if self.bundle.gate:
            model = add_features(model, self.stage)
        run = self._given or _compile(model)

        def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            y_prob, *features = run(images)
            return y_prob, features[0] if features else None

        return judge

    @cached_property
    def _describe(self) -> Callable[[np.ndarray], np.ndarray]:
        """From a batch to features alone; what lies above their stage is not computed."""
        whole = add_features(self.bundle.model, self.stage)
        run = _compile(keras.Model(whole.input, whole.outputs[1]))
        return lambda images: run(images)[0]

    def _run(self, images: np.ndarray) -> np.ndarray:
        parts = [np.empty((0, len(CLASS_CODES)), np.float32)]
        return np.concatenate(parts + [self._both(batch)[0] for batch in _cut(images)])

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


def _join(parts: list[tuple[np.ndarray, np.ndarray | None]]) -> Any:
    """Two arrays of pairs of parts; None for the second where the parts have none."""
    one, other = zip(*parts, strict=True)
    return np.concatenate(one), None if other[0] is None else np.concatenate(other)


def _cut(images: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of `BATCH_SIZE`, float32."""
    for start in range(0, len(images), BATCH_SIZE):
        yield images[start : start + BATCH_SIZE].astype(np.float32)


def _compile(model: keras.Model) -> Outputs:
    """The model as one graph for any number of images, with its weights as constants.

    TensorFlow then folds BatchNorm into the convolutions before it, and a call skips what
    `model.predict` does around its batches.
    """
    trained, others = (
        [variable.numpy() for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape, tf.float32)])
    def run(images: tf.Tensor) -> Any:
        outputs, _ = model.stateless_call(trained, others, images, training=False)
        return outputs

    return lambda images: [output.numpy() for output in tf.nest.flatten(run(images))]


def _views(images: np.ndarray) -> list[np.ndarray]:
    mirrored = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    square = images.shape[1] == images.shape[2]
    return mirrored + [view.swapaxes(1, 2) for view in mirrored if square]
