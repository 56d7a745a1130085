"""The one way from an image file to pixels, and from pixels to batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from skinlesion.config import Resize
from skinlesion.errors import InputError, name_some
from skinlesion.workspace import progress_bar

if TYPE_CHECKING:
    import tensorflow as tf

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded; HAM10000's have 270,000 pixels."""


def decode_image(
    path: str | Path, *, image_size: tuple[int, int], resize: Resize = "bilinear"
) -> np.ndarray:
    """Read an image file, turn it upright (EXIF), and bring it to the network's size.

    Training, evaluation and the demo all use this function and no other, because decoders and
    resizers differ. Pillow's bilinear filter averages over all source pixels when it makes an
    image smaller.

    Args:
        path: a file in any format that Pillow reads; the first frame of an animation.
        image_size: (height, width) in pixels.
        resize: `bilinear`, or `nearest` as the original did.

    Returns:
        uint8 array of shape (height, width, 3), RGB. Transparent pixels become white.

    Raises:
        InputError: the file is no image, is truncated, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{Path(path).name}: {image.width} x {image.height} pixels are too many; "
                    f"make it smaller than {MAX_PIXELS // 1_000_000} million pixels"
                )
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    # Pillow's decoders raise all kinds of errors on damaged files: SyntaxError, struct.error,
    # IndexError, EOFError, zlib.error and more.
    except Exception as error:
        # Not Pillow's own text: it holds the full path, which the demo must not show.
        reason = getattr(error, "strerror", None) or "damaged, cut off, or no image at all"
        raise InputError(
            f"{Path(path).name}: cannot be read as an image ({reason}); use a JPEG or PNG file"
        ) from error
    height, width = image_size
    return np.asarray(upright.resize((width, height), RESAMPLING[resize]))


def load_images(
    paths: Sequence[str | Path],
    *,
    image_size: tuple[int, int],
    resize: Resize = "bilinear",
) -> np.ndarray:
    """Decode many files, each once, on all cores.

    Returns:
        uint8 array of shape (n, height, width, 3), in the order of `paths`.

    Raises:
        InputError: some files are no images; all of them are counted, the first ones named.
    """
    images = np.empty((len(paths), *image_size, 3), np.uint8)

    def load(index: int) -> str | None:
        try:
            images[index] = decode_image(paths[index], image_size=image_size, resize=resize)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loading = progress_bar(pool.map(load, range(len(paths))), "decoding images", len(paths))
        errors = [error for error in loading if error]
    if len(errors) == 1:
        raise InputError(errors[0])
    if errors:
        raise InputError(f"{len(errors):,} images cannot be used: {name_some(errors, shown=3)}")
    return images


def find_unreadable(paths: Sequence[str | Path]) -> list[str]:
    """Why each file that is no whole image cannot be read, in the order of `paths`."""

    def read(path: str | Path) -> str | None:
        try:
            decode_image(path, image_size=(8, 8), resize="nearest")
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = progress_bar(pool.map(read, paths), "reading images", len(paths))
        return [reason for reason in reading if reason]


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    class_weights: np.ndarray | None = None,
    shuffle_seed: int | None = None,
) -> tf.data.Dataset:
    """Batches for `fit` from decoded images.

    Args:
        images: uint8, (n, height, width, 3); stays where it is, each batch is gathered from it.
        labels: int, (n,).
        batch_size: images in a batch; the last batch may be smaller.
        class_weights: float, (num_classes,): the weight of each image by its class.
        shuffle_seed: a new order in each epoch, the same for the same seed; None keeps the order.

    Returns:
        A dataset of (float32 (b, height, width, 3) in [0, 255], float32 one-hot (b, 7), float32
        weights (b,)).
    """
    import tensorflow as tf

    from skinlesion.labels import NUM_CLASSES

    weights = np.ones(NUM_CLASSES) if class_weights is None else class_weights
    weights = np.asarray(weights, np.float32)[labels]
    one_hot = np.eye(NUM_CLASSES, dtype=np.float32)[labels]

    def gather(indices: np.ndarray) -> np.ndarray:
        return images[indices]

    def assemble(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(gather, [indices], tf.uint8)
        batch = tf.ensure_shape(batch, (None, *images.shape[1:]))
        chosen = tf.gather(one_hot, indices), tf.gather(weights, indices)
        return tf.cast(batch, tf.float32), *chosen

    dataset = tf.data.Dataset.range(len(images))
    if shuffle_seed is not None:
        # Indices are small: the buffer holds all of them, so the shuffle is complete.
        dataset = dataset.shuffle(len(images), seed=shuffle_seed)
    return dataset.batch(batch_size).map(assemble).prefetch(2)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
