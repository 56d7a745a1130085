"""Training and validation batches for `fit`."""

import random
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from skinlesion.config import Config
from skinlesion.data.also import load_also, require_unseen
from skinlesion.data.dataset import load_metadata
from skinlesion.data.forms import describe_dataset
from skinlesion.data.images import load_images
from skinlesion.data.split import join_split, take_limited
from skinlesion.machine import default_cache_dir


def make_datasets(
    data: Path, split: pd.DataFrame, config: Config, also: Sequence[Path] = ()
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Decode the training and validation images, and make batches for `fit`.

    Training images come in a new order each epoch, drawn with Python's `random`, which `Resume`
    seeds before each epoch. Augmentation is part of the model.

    Args:
        data: folder of the dataset.
        split: image_id and split of each image.
        config: the settings.
        also: datasets whose images are added to training, see `load_also`.

    Returns:
        Training and validation batches: images float32 (b, height, width, 3) in [0, 255], labels
        int32 (b,), weights float32 (b,).

    Raises:
        InputError: split and dataset do not fit, images cannot be read, or as `load_also` and
            `require_unseen`.
    """
    rows = join_split(load_metadata(data, allow_incomplete=True), split)
    parts = {name: rows[rows["split"] == name] for name in ("train", "validation")}
    parts["train"] = take_limited(parts["train"], config.limit, seed=config.seed)
    info = describe_dataset(data)
    if also:
        added = load_also(also, info)
        require_unseen(added, rows)
        parts["train"] = pd.concat([parts["train"], added], ignore_index=True)
    num_classes = len(info.labels)
    weights = np.ones(num_classes)
    if config.class_weights == "balanced":
        weights = balanced_class_weights(parts["train"]["label"].to_numpy(int), num_classes)
    made = []
    for name, part in parts.items():
        images = load_images(
            list(part["path"]),
            image_size=config.image_size,
            resize=config.resize,
            cache=default_cache_dir(),
        )
        labels = part["label"].to_numpy(np.int32)
        shuffle = name == "train"
        made.append(make_batches(images, labels, weights, config.batch_size, shuffle=shuffle))
    return made[0], made[1]


def make_batches(
    images: np.ndarray,
    labels: np.ndarray,
    class_weights: np.ndarray,
    batch_size: int,
    *,
    shuffle: bool,
) -> tf.data.Dataset:
    """Make batches from decoded images. They stay bytes until a batch is gathered.

    Args:
        images: uint8 (n, height, width, 3), also a memory map.
        labels: int32 (n,).
        class_weights: float (classes,), the weight of each image by its class.
        batch_size: images in a batch. On several GPUs up to one image for each is left out, because
            an empty share of a batch yields NaN.
        shuffle: draw a new order with Python's `random` at each iteration.

    Returns:
        See `make_datasets`.
    """
    replicas = max(1, len(tf.config.list_logical_devices("GPU")))
    count = len(labels) // replicas * replicas
    weights = np.asarray(class_weights, np.float32)[labels]
    # TensorFlow keeps the functions below until the process ends: they must not hold the images.
    held = weakref.proxy(images)

    def order() -> Iterator[int]:
        yield from random.sample(range(count), count) if shuffle else range(count)

    def gather(indices: np.ndarray) -> np.ndarray:
        return held[indices].astype(np.float32)

    def assemble(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(gather, [indices], tf.float32)
        batch = tf.ensure_shape(batch, (None, *images_shape))
        return batch, tf.gather(labels, indices), tf.gather(weights, indices)

    images_shape = images.shape[1:]
    indices = tf.data.Dataset.from_generator(
        order, output_signature=tf.TensorSpec((), tf.int64)
    ).apply(tf.data.experimental.assert_cardinality(count))
    batches = indices.batch(batch_size).map(assemble).prefetch(2)
    batches.images = images  # they live as long as the dataset
    return batches


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Inverse class frequencies, scaled so that the mean over images is 1; float (classes,).

    King and Zeng, "Logistic Regression in Rare Events Data" (2001), as in scikit-learn's
    `class_weight="balanced"`. A class without images gets weight 1.
    """
    weights = np.ones(num_classes)
    present = np.unique(labels)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights
