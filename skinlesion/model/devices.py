"""What this machine computes with: its GPUs, and the precision that they gain by."""

import os
import platform

import tensorflow as tf

from skinlesion.config import Config, Precision
from skinlesion.files import InputError

CPU_CORE_RATE = 10
"""Training images a second and core at 128x128, seen on a server's processor."""
GPU_RATE = 400
"""Training images a second at 128x128: a guess for one T4, for telling minutes from hours."""
TENSOR_CORES = (7, 0)
"""Compute capability from which a GPU is faster with half precision:
https://www.tensorflow.org/guide/mixed_precision."""


def make_strategy() -> tf.distribute.Strategy:
    """One that uses every GPU of this machine.

    The batch of the settings is divided among the GPUs, so that a run has the same steps, the same
    learning rates and, BatchNorm being synchronised, the same result however many there are, but
    for what is random: each GPU draws the same augmentation for its own images.
    """
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def require_even_shares(batch_size: int, devices: int) -> None:
    """Raise `InputError` unless a batch can be divided among the GPUs."""
    if batch_size % devices:
        raise InputError(
            f"a batch of {batch_size} images cannot be shared out evenly among {devices} GPUs: "
            "choose a multiple with --batch-size"
        )


def choose_precision(wanted: Precision) -> str:
    """The Keras policy to train with: `float32` or `mixed_float16`."""
    if wanted != "auto":
        return wanted
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    capabilities = [detail.get("compute_capability", (0, 0)) for detail in details]
    fast = capabilities and min(capabilities) >= TENSOR_CORES
    return "mixed_float16" if fast else "float32"


def describe_device() -> str:
    """The names of the GPUs, or the kind of the processor."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    names = [detail.get("device_name", "GPU") for detail in details]
    return ", ".join(names) or f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def estimate_duration(config: Config, images: int) -> str:
    """A rough guess, before the first epoch tells: from images, pixels and cores."""
    height, width = config.image_size
    gpus = len(tf.config.list_physical_devices("GPU"))
    rate = gpus * GPU_RATE if gpus else CPU_CORE_RATE * (os.cpu_count() or 1)
    seconds = config.epochs * images / (rate * 128 * 128 / (height * width))
    return f"very roughly {max(1, round(seconds / 60)):,} minutes"
