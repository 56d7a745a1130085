"""The classifier: preprocessing, a ResNet50 backbone and a head, with augmentation in front."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from skinlesion.config import STAGES, Config
from skinlesion.data.images import load_images
from skinlesion.files import InputError
from skinlesion.machine import progress_bar
from skinlesion.model.augmentation import make_augmentation
from skinlesion.model.devices import choose_precision, make_strategy

SMALLEST_SIZE = {"original": 97, "pooled": 32}
"""Least height and width in pixels for each head. ResNet50 divides both by 32, rounding up; the
original head needs a feature map of 4x4, and Keras takes no image below 32 pixels."""

PARTS = ("preprocessing", "backbone", "head")
"""The parts of the classifier, in order."""

STAGE_OUTPUTS = {
    "conv2": "conv2_block3_out",
    "conv3": "conv3_block4_out",
    "conv4": "conv4_block6_out",
    "conv5": "conv5_block3_out",
}
"""Keras' name of the layer that ends each stage."""

WEIGHTS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
WEIGHTS_MD5 = "4d473c1dd8becc155b73f8504c6f6626"
"""The file that `keras.applications.ResNet50(weights="imagenet", include_top=False)` downloads. It
is fetched here so that it goes through the same check as any other file of weights."""

FEATURE_BATCH = 64
"""Images in a batch of `compute_features`."""

DOWNLOAD_TIMEOUT = 30
"""Seconds without an answer after which the download of weights is given up."""


class WeightsUnavailableError(InputError):
    """The ImageNet weights could not be downloaded."""


@dataclass(frozen=True)
class PretrainedWeights:
    """Which layers of a backbone have pretrained weights.

    Attributes:
        source: `imagenet`, `none` or the path of a file.
        layers: names of the layers with pretrained weights.
        total: number of layers with weights in the backbone.
    """

    source: str
    layers: frozenset[str]
    total: int

    def __str__(self) -> str:
        if not self.layers:
            return f"no pretrained weights: all {self.total} backbone layers start at random"
        rest = self.total - len(self.layers)
        tail = f", the other {rest} start at random" if rest else ""
        return f"{len(self.layers)} of {self.total} backbone layers loaded from {self.source}{tail}"


def build_model(config: Config, num_classes: int) -> keras.Sequential:
    """Build the model that is trained: `augmentation`, then `classifier`.

    The classifier is what is saved and predicted with: `preprocessing`, `backbone` and `head`.
    Fetch each part by its name with `get_layer`. Python, NumPy and TensorFlow are seeded first, so
    that the same settings give the same initial weights. On several GPUs the model is built under
    `tf.distribute.MirroredStrategy`.

    Args:
        config: the settings.
        num_classes: classes of the dataset.

    Returns:
        From RGB images in [0, 255], float (b, height, width, 3), to probabilities, float
        (b, num_classes).
        Pretrained layers below `config.fine_tune_from` are frozen.

    Raises:
        InputError: the image size is too small, or the weights cannot be used.
        WeightsUnavailableError: `imagenet` could not be downloaded.
    """
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    usual = keras.config.dtype_policy()
    strategy = make_strategy(config.batch_size)
    keras.config.set_dtype_policy(choose_precision(config.precision))
    try:
        with strategy.scope():
            augmentation = make_augmentation(config.augmentation, seed=config.seed)
            classifier = build_classifier(config, num_classes)
            inputs = keras.Input((*config.image_size, 3), name="image")
            model = keras.Sequential([inputs, augmentation, classifier], name="training")
    finally:
        keras.config.set_dtype_policy(usual)
    freeze(classifier.get_layer("backbone"), config)
    for layer in batch_norms(model):
        layer.synchronized = strategy.num_replicas_in_sync > 1
    return model


def build_classifier(config: Config, num_classes: int) -> keras.Sequential:
    """Build the classifier alone, in Keras' current precision.

    With the original's head it has 24,801,223 parameters at 224x224 for HAM10000's classes.
    `pretrained_weights` tells which layers of its backbone were loaded. Arguments, result and
    errors: see `build_model`.
    """
    smallest = SMALLEST_SIZE[config.head]
    if min(config.image_size) < smallest:
        raise InputError(
            f"image size too small for the {config.head} head: height and width must be at least "
            f"{smallest} pixels. Received: image_size={config.image_size}"
        )
    backbone = build_backbone(config.image_size, config.weights, config.top_stage)
    for layer in batch_norms(backbone):
        if layer.name not in backbone.pretrained.layers:
            layer.momentum = config.batch_norm_momentum
    preprocessing = _make_preprocessing(config.preprocessing, config.image_size)
    parts = [preprocessing, backbone, _make_head(config.head, num_classes)]
    image = keras.Input((*config.image_size, 3), name="image")
    return keras.Sequential([image, *parts], name="classifier")


def _make_preprocessing(kind: str, image_size: tuple[int, int]) -> keras.layers.Layer:
    if kind == "divide_by_255":
        return keras.layers.Rescaling(1 / 255, name="preprocessing")
    image = keras.Input((*image_size, 3))
    prepared = keras.applications.resnet50.preprocess_input(image)
    return keras.Model(image, prepared, name="preprocessing")


def _make_head(head: str, num_classes: int) -> keras.Sequential:
    """From feature maps to probabilities. The softmax is float32 in any precision."""
    probabilities = keras.layers.Dense(
        num_classes, activation="softmax", dtype="float32", name="probabilities"
    )
    if head == "pooled":
        layers = [
            keras.layers.GlobalAveragePooling2D(name="pool"),
            probabilities,
        ]
    else:
        layers = [
            keras.layers.Conv2D(64, 3, activation="relu", name="conv"),
            keras.layers.MaxPooling2D(2, name="pool"),
            keras.layers.Dropout(0.4, name="dropout_1"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(128, activation="relu", name="dense"),
            keras.layers.Dropout(0.4, name="dropout_2"),
            probabilities,
        ]
    return keras.Sequential(layers, name="head")


def build_backbone(
    image_size: tuple[int, int], weights: str, top_stage: str = "conv5"
) -> keras.Model:
    """Build ResNet50 without its top, cut behind a stage, with pretrained weights.

    Args:
        image_size: (height, width) in pixels.
        weights: `imagenet` (downloaded), `none`, or a legacy Keras HDF5 file with weights for all
            layers or for some of them, which are found by name.
        top_stage: see `Config.top_stage`.

    Raises:
        InputError: the file holds no layer of Keras' ResNet50, or does not fit it.
    """
    backbone = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(*image_size, 3), name="backbone"
    )
    path = None
    if weights != "none":
        path = download_imagenet() if weights == "imagenet" else Path(weights)
    in_file = _layers_in(path) if path else set()
    if top_stage != STAGES[-1]:
        output = backbone.get_layer(STAGE_OUTPUTS[top_stage]).output
        backbone = keras.Model(backbone.input, output, name="backbone")
    ours = {layer.name for layer in backbone.layers if layer.weights}
    names = in_file & ours
    if path is not None:
        if not names:
            raise InputError(f"{path}: holds no layer of Keras' ResNet50; nothing was loaded")
        try:
            # On the backbone itself: an outer model that nests it would load nothing, silently.
            backbone.load_weights(path, by_name=True)
        except ValueError as error:
            raise InputError(f"{path}: does not fit Keras' ResNet50 ({error})") from error
    backbone.pretrained = PretrainedWeights(weights, frozenset(names), len(ours))
    return backbone


def pretrained_weights(model: keras.Model) -> PretrainedWeights:
    """Which layers are pretrained, of a model, a classifier or a backbone built here."""
    return find_part(model, "backbone").pretrained


def find_part(model: keras.Model, name: str) -> Any:
    """A part of a model by its name, in the model itself or in its classifier."""
    if model.name == name:
        return model
    names = [layer.name for layer in model.layers]
    return (
        model.get_layer(name) if name in names else find_part(model.get_layer("classifier"), name)
    )


def top_stage_of(backbone: keras.Model) -> str:
    """The last ResNet50 stage of a backbone, `conv2` to `conv5`."""
    output = backbone.layers[-1].name
    return next(stage for stage, name in STAGE_OUTPUTS.items() if name == output)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers of a model's backbone."""
    layers = find_part(model, "backbone").layers
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def freeze(backbone: keras.Model, config: Config) -> None:
    """Freeze exactly the pretrained layers that the settings do not train.

    These are the stages below `fine_tune_from`, and without `train_batch_norm` all pretrained
    BatchNorm layers: they keep their statistics and run in inference mode, as
    https://keras.io/guides/transfer_learning/ advises.
    """
    trained = STAGES[STAGES.index(config.fine_tune_from) :]
    for layer in backbone.layers:
        batch_norm = isinstance(layer, keras.layers.BatchNormalization)
        kept = not layer.name.startswith(trained) or (batch_norm and not config.train_batch_norm)
        layer.trainable = not (layer.name in backbone.pretrained.layers and kept)


def compute_features(
    paths: Sequence[Path], *, weights: str, image_size: tuple[int, int] = (120, 160)
) -> np.ndarray:
    """Describe images by the pooled outputs of ResNet50's middle stages, `conv3` and `conv4`.

    Args:
        paths: image files.
        weights: see `build_backbone`; features of random weights mean nothing.
        image_size: (height, width) in pixels at which the images are described.

    Returns:
        float32 (n, 1536).
    """
    backbone = build_backbone(image_size, weights, "conv4")
    outputs = [backbone.get_layer(STAGE_OUTPUTS[stage]).output for stage in ("conv3", "conv4")]
    pooled = [keras.layers.GlobalAveragePooling2D()(output) for output in outputs]
    describe = keras.Model(backbone.input, keras.layers.Concatenate()(pooled))
    parts = []
    starts = range(0, len(paths), FEATURE_BATCH)
    for start in progress_bar(starts, "computing features", len(starts), unit="batches"):
        images = load_images(paths[start : start + FEATURE_BATCH], image_size=image_size)
        prepared = keras.applications.resnet50.preprocess_input(images.astype(np.float32))
        parts.append(describe.predict_on_batch(prepared))
    return np.concatenate(parts)


def download_imagenet() -> Path:
    """Keras' own file of the complete weights, from its cache or the network."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return Path(
            keras.utils.get_file(origin=WEIGHTS_URL, file_hash=WEIGHTS_MD5, cache_subdir="models")
        )
    except Exception as error:  # get_file raises a bare Exception on network errors
        raise WeightsUnavailableError(
            "the ImageNet weights could not be downloaded: connect to the internet, attach the "
            "dataset keras/resnet50 on Kaggle, name a file as `weights` or in the variable "
            f'SKINLESION_WEIGHTS, or set `weights` to "none" for random ones ({error})'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _layers_in(path: Path) -> set[str]:
    """Names of the layers that have weights in a legacy Keras HDF5 file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    try:
        with h5py.File(path) as file:
            root = file.get("model_weights", file)
            # By the list that Keras itself goes by, not by the groups: what it skips is not loaded.
            listed = [n.decode() if isinstance(n, bytes) else n for n in root.attrs["layer_names"]]
            return {name for name in listed if len(root[name])}
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read as a legacy Keras HDF5 file of weights ({error})"
        ) from error
