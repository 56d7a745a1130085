"""Random transforms of training images, run in batches inside the training step."""

import math
from typing import Any

import keras
from keras import ops

from skinlesion.config import Augmentation, MixingKind


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


class RandomFlipAndTurn(keras.layers.Layer):
    """Flips of each image or feature map, and, where it is square, quarter turns: no resampling.

    A convolution of a flipped image is nearly the flipped convolution of the image: nearly, as
    kernels are not symmetric. So this is the part of the augmentation that can follow features
    which were computed once.

    Args:
        seed: of the random draws.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Transform a batch (b, height, width, channels); outside training, return it as it is."""
        if not training:
            return images
        images = self._choose(images[:, ::-1], images)
        images = self._choose(images[:, :, ::-1], images)
        if images.shape[1] == images.shape[2]:
            images = self._choose(ops.transpose(images, (0, 2, 1, 3)), images)
        return images

    def _choose(self, one: Any, other: Any) -> Any:
        """For each image one or the other, with probability 1/2."""
        shape = (ops.shape(one)[0], 1, 1, 1)
        return ops.where(keras.random.uniform(shape, seed=self.seed_generator) < 0.5, one, other)


class Mixing(keras.layers.Layer):
    """Blends the images of a batch in pairs, and their labels alike.

    Args:
        kind: `mixup` (Zhang et al., arXiv:1710.09412) or `cutmix` (Yun et al., arXiv:1905.04899).
        alpha: both parameters of the beta distribution from which the share of the first image
            is drawn, once for each batch.
        seed: of the random draws.
    """

    def __init__(self, kind: MixingKind, *, alpha: float, seed: int) -> None:
        super().__init__(dtype="float32")
        self.kind, self.alpha = kind, alpha
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """From float (b, height, width, channels) and (b, classes) to the same."""
        partner = keras.random.shuffle(ops.arange(ops.shape(images)[0]), seed=self.seed_generator)
        others, other_labels = ops.take(images, partner, axis=0), ops.take(labels, partner, axis=0)
        share = keras.random.beta((), self.alpha, self.alpha, seed=self.seed_generator)
        if self.kind == "mixup":
            mixed = share * images + (1 - share) * others
        else:
            inside = self._draw_rectangle(share, *images.shape[1:3])
            mixed = ops.where(inside, others, images)
            share = 1 - ops.mean(ops.cast(inside, "float32"))
        return mixed, share * labels + (1 - share) * other_labels

    def _draw_rectangle(self, share: Any, height: int, width: int) -> Any:
        """Bool (1, height, width, 1): of about 1 - `share` of the area, cut off at the border."""
        side = ops.sqrt(1 - share)
        inside = []
        for length in (height, width):
            center = keras.random.uniform((), 0, length, seed=self.seed_generator)
            distance = ops.abs(ops.arange(length, dtype="float32") + 0.5 - center)
            inside.append(distance < side * length / 2)
        return ops.reshape(inside[0][:, None] & inside[1][None, :], (1, height, width, 1))


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
    layers: dict[Augmentation, list[keras.layers.Layer]] = {
        "original": [
            RandomAffine(
                rotation=10, zoom=0.1, keep_aspect=False, flip=False, fill_mode="nearest", seed=seed
            )
        ],
        "dermatoscopic": [
            RandomAffine(
                rotation=180, zoom=0.15, keep_aspect=True, flip=True, fill_mode="reflect", seed=seed
            ),
            keras.layers.RandomBrightness(0.1, value_range=(0, 255), seed=seed + 1),
            keras.layers.RandomContrast(0.1, value_range=(0, 255), seed=seed + 2),
        ],
        "none": [keras.layers.Identity()],
    }
    return keras.Sequential(layers[kind], name="augmentation")


def make_feature_augmentation(kind: Augmentation, *, seed: int) -> keras.layers.Layer | None:
    """What of `make_augmentation` can be done to feature maps; None where nothing can."""
    if kind == "original":
        return None
    return RandomFlipAndTurn(seed=seed) if kind == "dermatoscopic" else keras.layers.Identity()
