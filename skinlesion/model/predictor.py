"""Images in, predictions out: the only code that runs the network on images to predict."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from skinlesion.data.images import decode_image, load_images
from skinlesion.files import InputError
from skinlesion.machine import progress_bar
from skinlesion.model.bundle import ModelInfo
from skinlesion.model.ensemble import find_members
from skinlesion.model.resnet50 import STAGE_OUTPUTS, top_stage_of
from skinlesion.model.run import Run

BATCH_SIZE = 32
"""Images that go through the network at a time."""
FEATURE_STAGE = "conv3"
"""Stage whose pooled output describes an image for OOD detection; docs/ood.md compares stages."""
SMALLEST_MAP = 7
"""Least height and width of the feature maps that Grad-CAM explains: those of `conv5` at 224x224,
which its paper uses. In smaller images `conv5` is so coarse that an earlier stage says more."""

SUM_TOLERANCE = 1e-3
"""How far the sum of an image's probabilities may be from 1, by rounding."""


class Outputs(NamedTuple):
    """What one pass of the network gives for n images.

    Attributes:
        y_prob: float32 (n, classes), uncalibrated probabilities.
        features: float32 (n, channels), the pooled output of `FEATURE_STAGE`; of an ensemble, that
            of its first member.
        maps: float32 (n, h, w, c), the feature maps that Grad-CAM explains, of an ensemble those of
            all members one behind the other; None if not asked for.
    """

    y_prob: np.ndarray
    features: np.ndarray
    maps: np.ndarray | None = None


class Predictor:
    """A trained classifier, ready to predict.

    Args:
        model: the classifier or ensemble. Its weights are copied at the first prediction.
        info: what belongs to it.
    """

    def __init__(self, model: keras.Model, info: ModelInfo) -> None:
        self.model, self.info = model, info

    @classmethod
    def load(cls, run: str | Path | Run) -> "Predictor":
        """Load the model of a run, or a saved model by itself.

        Raises:
            InputError: there is no trained model, or it is damaged.
        """
        found = Run.find(run)
        return cls(found.load_model(), found.info)

    def decode(self, path: str | Path) -> np.ndarray:
        """Read an image file as the network takes it, uint8 (height, width, 3).

        Raises:
            InputError: it cannot be read as an image.
        """
        return decode_image(path, image_size=self.info.image_size, resize=self.info.resize)

    def predict_images(
        self, images: np.ndarray, *, tta: bool = False, maps: bool = False
    ) -> Outputs:
        """Predict decoded images, in batches.

        Args:
            images: uint8 (n, height, width, 3) at the model's size, one or more.
            tta: average the probabilities over mirrored images, and over images turned by 90
                degrees where they are square (Codella et al., arXiv:1902.03368, report such means
                for the best entries of ISIC 2018). Features and maps are those of the images.
            maps: also return the feature maps that Grad-CAM explains.

        Raises:
            InputError: the model gives what are no probabilities.
        """
        starts = range(0, len(images), BATCH_SIZE)
        return _join(
            [self._predict(images[start : start + BATCH_SIZE], tta, maps) for start in starts]
        )

    def predict_files(
        self, paths: Sequence[str | Path], *, tta: bool = False, maps: bool = False
    ) -> Outputs:
        """Predict image files; while a batch is predicted, the next one is decoded.

        Args:
            paths: image files, one or more.
            tta: see `predict_images`.
            maps: see `predict_images`.

        Raises:
            InputError: some files cannot be read as images.
        """
        return _join([self._predict(batch, tta, maps) for batch in self._decode_ahead(paths)])

    @cached_property
    def logits(self) -> keras.Model:
        """From the maps of `Outputs` to logits, float (n, classes), for Grad-CAM.

        Those of an ensemble are the mean of its members' logits.
        """
        parts = [self._continue_from_maps(member) for member in find_members(self.model)]
        height, width, channels = parts[0].input_shape[1:]
        inputs = keras.Input((height, width, channels * len(parts)))
        split = keras.ops.split(inputs, len(parts), axis=-1)
        logits = [part(maps) for part, maps in zip(parts, split, strict=True)]
        return keras.Model(inputs, keras.layers.Average()(logits))

    def _continue_from_maps(self, member: keras.Sequential) -> keras.Model:
        """`logits` of one classifier."""
        backbone, head = member.get_layer("backbone"), member.get_layer("head")
        maps = _choose_maps(backbone)
        inputs = x = keras.Input(maps.shape[1:])
        if maps is not backbone.output:
            x = keras.Model(maps, backbone.output)(inputs)
        for layer in head.layers[:-1]:
            x = layer(x)
        linear = keras.layers.Dense(len(self.info.labels), dtype="float32")
        model = keras.Model(inputs, linear(x))
        linear.set_weights(head.get_layer("probabilities").get_weights())
        return model

    @cached_property
    def _run(self) -> Callable[[np.ndarray], Outputs]:
        """The network as one compiled graph, with its weights as constants.

        TensorFlow then folds BatchNorm into the convolutions before it, and a call skips what
        `keras.Model.predict` does around its batches.
        """
        image = keras.Input(self.model.input_shape[1:])
        outputs = [_expose_parts(member)(image) for member in find_members(self.model)]
        y_prob, features, maps = zip(*outputs, strict=True)
        mean, joined = keras.layers.Average()(y_prob), keras.layers.Concatenate()(maps)
        whole = keras.Model(image, [mean, features[0], joined])
        trained, others = (
            [variable.numpy() for variable in variables]
            for variables in (whole.trainable_variables, whole.non_trainable_variables)
        )

        @tf.function(input_signature=[tf.TensorSpec(whole.input_shape, tf.float32)])
        def run(images: tf.Tensor) -> list[tf.Tensor]:
            outputs, _ = whole.stateless_call(trained, others, images, training=False)
            return outputs

        return lambda images: Outputs(*(output.numpy() for output in run(images)))

    def _predict(self, images: np.ndarray, tta: bool, maps: bool) -> Outputs:
        """One batch."""
        outputs = self._run(images.astype(np.float32))
        y_prob = outputs.y_prob
        if tta:
            others = [self._run(view.astype(np.float32)).y_prob for view in _other_views(images)]
            y_prob = np.mean([y_prob, *others], axis=0)
        require_probabilities(y_prob, "the model")
        if not np.isfinite(outputs.features).all():
            raise InputError("the model gives features that are not numbers: train it again")
        return Outputs(y_prob, outputs.features, outputs.maps if maps else None)

    def _decode_ahead(self, paths: Sequence[str | Path]) -> Iterator[np.ndarray]:
        """Decoded batches; no more than one is held beside the one in use."""
        starts = range(0, len(paths), BATCH_SIZE)

        def decode(start: int) -> np.ndarray:
            return load_images(
                paths[start : start + BATCH_SIZE],
                image_size=self.info.image_size,
                resize=self.info.resize,
            )

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(decode, 0)
            for start in progress_bar(starts, "predicting", len(starts), unit="batches"):
                ready = ahead.result()
                if start + BATCH_SIZE < len(paths):
                    ahead = pool.submit(decode, start + BATCH_SIZE)
                yield ready


def require_probabilities(y_prob: np.ndarray, what: str) -> None:
    """Check that each row (n, classes) is one of probabilities: otherwise NaN reads as benign.

    Raises:
        InputError: some are not numbers, are negative, or do not add up to 1; names `what`.
    """
    if not np.isfinite(y_prob).all():
        raise InputError(f"{what} gives probabilities that are not numbers: train it again")
    if (y_prob < 0).any() or (np.abs(y_prob.sum(axis=1) - 1) > SUM_TOLERANCE).any():
        raise InputError(f"{what} gives probabilities that do not add up to 1: train it again")


def _choose_maps(backbone: keras.Model) -> keras.KerasTensor:
    """The output of the last stage whose maps have at least `SMALLEST_MAP` pixels each way."""
    there = {layer.name: layer.output for layer in backbone.layers}
    outputs = [there[name] for name in STAGE_OUTPUTS.values() if name in there]
    fine = [output for output in outputs if min(output.shape[1:3]) >= SMALLEST_MAP]
    return fine[-1] if fine else outputs[0]


def _expose_parts(member: keras.Sequential) -> keras.Model:
    """One classifier, from images to probabilities, features and maps."""
    backbone = member.get_layer("backbone")
    stage = min(FEATURE_STAGE, top_stage_of(backbone))
    features = backbone.get_layer(STAGE_OUTPUTS[stage]).output
    inner = keras.Model(backbone.input, [features, _choose_maps(backbone), backbone.output])
    image = keras.Input(member.input_shape[1:])
    features, maps, top = inner(member.get_layer("preprocessing")(image))
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(image, [member.get_layer("head")(top), pooled, maps])


def _join(parts: list[Outputs]) -> Outputs:
    y_prob, features, maps = zip(*parts, strict=True)
    joined = None if maps[0] is None else np.concatenate(maps)
    return Outputs(np.concatenate(y_prob), np.concatenate(features), joined)


def _other_views(images: np.ndarray) -> list[np.ndarray]:
    """The mirror images, and where images are square those turned by 90 degrees."""
    mirrored = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    square = images.shape[1] == images.shape[2]
    return mirrored[1:] + [view.swapaxes(1, 2) for view in mirrored if square]
