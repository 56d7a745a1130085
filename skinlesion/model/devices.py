"""What this machine computes with: its GPUs, and the precision that suits them."""

import os
import platform
from typing import Any

import tensorflow as tf

from skinlesion.files import InputError

TENSOR_CORES = (7, 0)
"""Compute capability from which a GPU is faster in half precision:
https://www.tensorflow.org/guide/mixed_precision."""


def make_strategy(batch_size: int) -> tf.distribute.Strategy:
    """The strategy that uses every GPU of this machine.

    A batch is divided among the GPUs, and BatchNorm is synchronised, so that a run has the same
    steps and learning rates on any number of GPUs. Random transforms are an exception: each GPU
    draws the same ones for its own images.

    Args:
        batch_size: images in a training step.

    Raises:
        InputError: the batch cannot be divided evenly.
    """
    gpus = len(tf.config.list_logical_devices("GPU"))
    if gpus < 2:
        return tf.distribute.get_strategy()
    if batch_size % gpus:
        raise InputError(
            f"a batch of {batch_size} images cannot be divided evenly among {gpus} GPUs: choose a "
            "batch_size that is a multiple"
        )
    return tf.distribute.MirroredStrategy()


def has_gpu() -> bool:
    """Whether TensorFlow finds a GPU."""
    return bool(_gpu_details())


def choose_precision(wanted: str) -> str:
    """Return the Keras dtype policy to train with, such as `mixed_float16`."""
    if wanted != "auto":
        return wanted
    capabilities = [detail.get("compute_capability", (0, 0)) for detail in _gpu_details()]
    fast = capabilities and min(capabilities) >= TENSOR_CORES
    return "mixed_float16" if fast else "float32"


def describe_device() -> str:
    """Name the GPUs, or the kind of the processor."""
    names = [detail.get("device_name", "GPU") for detail in _gpu_details()]
    return ", ".join(names) or f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def _gpu_details() -> list[dict[str, Any]]:
    devices = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(device) for device in devices]
