"""Random transforms of training images, as layers in front of the classifier."""

import math
from typing import Any

import keras
from keras import ops

from skinlesion.config import Augmentation


@keras.saving.register_keras_serializable("skinlesion")
class RandomAffine(keras.layers.Layer):
    """Rotation, zoom and flips of each image, drawn anew, in a single resampling.

    One resampling instead of one for each transform is faster and blurs the image once only.

    Args:
        rotation: largest angle in degrees, to either side.
        zoom: largest relative change of scale; 0.1 draws from 0.9 to 1.1.
        keep_aspect: one zoom for both axes instead of one for each.
        flip: mirror left-right and top-bottom, each with probability 1/2.
        fill_mode: what lies outside the image: `reflect` or `nearest`.
        seed: of the random draws.
    """

    def __init__(
        self,
        *,
        rotation: float,
        zoom: float,
        keep_aspect: bool,
        flip: bool,
        fill_mode: str,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rotation = rotation
        self.zoom = zoom
        self.keep_aspect = keep_aspect
        self.flip = flip
        self.fill_mode = fill_mode
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Transform a float batch (b, height, width, 3); outside training, return it as it is."""
        if not training:
            return images
        count, height, width = ops.shape(images)[:3]
        return ops.image.affine_transform(
            images,
            self.draw_transforms(count, height, width),
            interpolation="bilinear",
            fill_mode=self.fill_mode,
        )

    def draw_transforms(self, count: int, height: int, width: int) -> Any:
        """Draw `count` transforms: float (count, 8), rows as `keras.ops.image.affine_transform`.

        Each maps output pixels to input pixels, turning about the centre of the image.
        """
        angle = self._uniform(count, self.rotation) * math.pi / 180
        zoom_y = 1 + self._uniform(count, self.zoom)
        zoom_x = zoom_y if self.keep_aspect else 1 + self._uniform(count, self.zoom)
        if self.flip:
            zoom_x = zoom_x * ops.where(self._uniform(count, 1.0) < 0, -1.0, 1.0)
            zoom_y = zoom_y * ops.where(self._uniform(count, 1.0) < 0, -1.0, 1.0)
        cos, sin = ops.cos(angle), ops.sin(angle)
        center_x, center_y = (width - 1) / 2, (height - 1) / 2
        a, b = cos * zoom_x, -sin * zoom_y
        c, d = sin * zoom_x, cos * zoom_y
        shift_x = center_x - a * center_x - b * center_y
        shift_y = center_y - c * center_x - d * center_y
        nothing = ops.zeros_like(a)
        return ops.stack([a, b, shift_x, c, d, shift_y, nothing, nothing], axis=1)

    def _uniform(self, count: int, largest: float) -> Any:
        return keras.random.uniform((count,), -largest, largest, seed=self.seed_generator)


def make_augmentation(kind: Augmentation, *, seed: int) -> keras.Sequential:
    """The augmentation of a recipe, as a model from float images in [0, 255] to the same.

    Args:
        kind: `original`: the ranges of the original's `ImageDataGenerator` (rotation up to 10
            degrees, zoom up to 10 % on each axis by itself, borders filled with the nearest
            pixel). `dermatoscopic`: a lesion has no up and no left, so any rotation and flip, a
            zoom that keeps its shape, and small changes of light; such transforms were common to
            the best entries of ISIC 2018 (Codella et al., arXiv:1902.03368). `none`.
        seed: of the random draws.
    """
    # In float32 whatever the precision of the classifier: half precision has too few steps for
    # values up to 255.
    exact: dict[str, Any] = {"dtype": "float32"}
    layers: list[keras.layers.Layer]
    if kind == "original":
        ranges: dict[str, Any] = {"rotation": 10, "zoom": 0.1, "keep_aspect": False, "flip": False}
        layers = [RandomAffine(**ranges, fill_mode="nearest", seed=seed, **exact)]
    elif kind == "dermatoscopic":
        ranges = {"rotation": 180, "zoom": 0.15, "keep_aspect": True, "flip": True}
        layers = [
            RandomAffine(**ranges, fill_mode="reflect", seed=seed, **exact),
            keras.layers.RandomBrightness(0.1, value_range=(0, 255), seed=seed + 1, **exact),
            keras.layers.RandomContrast(0.1, value_range=(0, 255), seed=seed + 2, **exact),
        ]
    else:
        layers = [keras.layers.Identity(**exact)]
    return keras.Sequential(layers, name="augmentation")
