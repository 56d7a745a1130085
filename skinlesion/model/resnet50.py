"""The network: preprocessing, a ResNet50 backbone and a head, in one model."""

import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf

from skinlesion.config import STAGES, Head, Preprocessing
from skinlesion.data.images import load_images
from skinlesion.diagnoses import NUM_CLASSES
from skinlesion.files import InputError
from skinlesion.machine import progress_bar

BACKBONE_NAME = "resnet50"
SMALLEST_SIZE: dict[Head, int] = {"original": 97, "pooled": 32}
"""Least height and width in pixels: ResNet50 divides both by 32, rounding up, and the original
head's 3x3 convolution and 2x2 pooling need a feature map of 4x4 at least. Keras takes no less than
32 pixels."""

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
"""What `keras.applications.ResNet50(weights="imagenet", include_top=False)` downloads: fetched here
so that it goes through the same check and report as any other file."""

FEATURE_BATCH = 64
"""Images that are described at a time."""

DOWNLOAD_TIMEOUT = 30
"""Seconds without an answer after which the download of weights is given up."""


class WeightsUnavailableError(InputError):
    """The ImageNet weights could not be downloaded."""


@dataclass(frozen=True)
class LoadedWeights:
    """Which layers of the backbone were given pretrained weights.

    Attributes:
        source: `imagenet`, `none` or the path of a file.
        layers: names of the layers that were loaded.
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


def build_model(
    *,
    image_size: tuple[int, int],
    weights: str = "imagenet",
    preprocessing: Preprocessing = "imagenet",
    head: Head = "original",
    top_stage: str = "conv5",
    batch_norm_momentum: float = 0.99,
    precision: str = "float32",
) -> tuple[keras.Model, LoadedWeights]:
    """Build the classifier; with the original's head 24,801,223 parameters at 224x224.

    Args:
        image_size: (height, width) in pixels, each at least `SMALLEST_SIZE[head]`.
        weights: `imagenet` (downloaded by Keras), `none`, or an HDF5 file with weights for all
            layers of the backbone or for some, which are found by name.
        preprocessing: `imagenet` or, as the original did, `divide_by_255`; part of the model.
        head: `original` or `pooled`; see `head_layers`.
        top_stage: the last stage of ResNet50 that is used, `conv2` to `conv5`, or `pretrained`: the
            last one for which weights were loaded, or `conv5` where none were.
        batch_norm_momentum: of BatchNorm layers without pretrained weights. Keras' default of
            0.99 needs hundreds of steps until the moving statistics can be used.
        precision: the dtype policy of all layers but the last: `float32` or `mixed_float16`.

    Returns:
        The model, from RGB images in [0, 255], float (b, height, width, 3), to probabilities,
        float (b, 7); and which backbone layers were loaded.

    Raises:
        InputError: the image size is too small, or the weights cannot be used.
        WeightsUnavailableError: `imagenet` could not be downloaded.
    """
    smallest = SMALLEST_SIZE[head]
    if min(image_size) < smallest:
        raise InputError(
            f"image size too small for the {head} head: height and width must be at least "
            f"{smallest} pixels. Received: image_size={tuple(image_size)}"
        )
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)  # Keras' own ResNet50 takes it from nowhere else
    try:
        backbone, loaded = build_backbone(image_size, weights, top_stage)
        inputs = keras.Input((*image_size, 3), name="image")
        x = backbone(_preprocess(inputs, preprocessing))
        for layer in head_layers(head):
            x = layer(x)
        model = keras.Model(inputs, x, name="skin_lesion_classifier")
    finally:
        keras.config.set_dtype_policy(usual)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.name not in loaded.layers:
            layer.momentum = batch_norm_momentum
    return model, loaded


def frozen_stage(model: keras.Model) -> str | None:
    """The last ResNet50 stage up to which nothing is trained, `conv2` to `conv5`; None: none."""
    found = None
    names = [layer.name for layer in model.get_layer(BACKBONE_NAME).layers]
    for stage, output in STAGE_OUTPUTS.items():
        if output not in names:
            break
        below = names[: names.index(output) + 1]
        backbone = model.get_layer(BACKBONE_NAME)
        if any(backbone.get_layer(name).trainable_weights for name in below):
            break
        found = stage
    return found


def split_model(
    model: keras.Model, stage: str, preprocessing: Preprocessing
) -> tuple[keras.Model, keras.Model]:
    """Cut a classifier behind a stage; both parts share their layers with it.

    Args:
        model: from `build_model`.
        stage: `conv2` to `conv5`, not above the model's own top stage.
        preprocessing: the one that `model` was built with.

    Returns:
        From images to the feature maps of that stage, and from these to probabilities.
    """
    backbone = model.get_layer(BACKBONE_NAME)
    maps = backbone.get_layer(STAGE_OUTPUTS[stage]).output
    inputs = keras.Input(model.input_shape[1:], name="image")
    lower = keras.Model(backbone.input, maps)(_preprocess(inputs, preprocessing))
    features = x = keras.Input(maps.shape[1:], name="features")
    if maps is not backbone.output:
        x = keras.Model(maps, backbone.output, name="upper_stages")(x)
    for layer in model.layers[model.layers.index(backbone) + 1 :]:
        x = layer(x)
    return keras.Model(inputs, lower), keras.Model(features, x)


def add_features(model: keras.Model, stage: str) -> keras.Model:
    """A classifier that also says how it sees an image: both come from one pass.

    Args:
        model: from `build_model`; shares its layers with the result.
        stage: `conv2` to `conv5`, not above the model's own top stage.

    Returns:
        From images to probabilities, float (b, 7), and the pooled output of the stage, float
        (b, channels).
    """
    backbone = model.get_layer(BACKBONE_NAME)
    maps = backbone.get_layer(STAGE_OUTPUTS[stage]).output
    # Operations, not layers: preprocessing is made of functions, which `layers` leaves out.
    position = model.operations.index(backbone)
    inner = keras.Model(backbone.input, [maps, backbone.output])
    maps, x = inner(model.operations[position - 1].output)
    for layer in model.operations[position + 1 :]:
        x = layer(x)
    return keras.Model(model.input, [x, keras.layers.GlobalAveragePooling2D()(maps)])


def _preprocess(inputs: keras.KerasTensor, preprocessing: Preprocessing) -> keras.KerasTensor:
    if preprocessing == "imagenet":
        return keras.applications.resnet50.preprocess_input(inputs)
    return keras.layers.Rescaling(1 / 255, name="divide_by_255")(inputs)


def head_layers(head: Head) -> list[keras.layers.Layer]:
    """From feature maps to probabilities: the original notebook's layers, or pooling and one layer.

    The softmax stays in float32 whatever the precision of the rest.
    """
    probabilities = keras.layers.Dense(
        NUM_CLASSES, activation="softmax", dtype="float32", name="probabilities"
    )
    if head == "pooled":
        return [
            keras.layers.GlobalAveragePooling2D(name="head_pool"),
            keras.layers.Dropout(0.4, name="head_dropout"),
            probabilities,
        ]
    return [
        keras.layers.Conv2D(64, 3, activation="relu", name="head_conv"),
        keras.layers.MaxPooling2D(2, name="head_pool"),
        keras.layers.Dropout(0.4, name="head_dropout_1"),
        keras.layers.Flatten(name="head_flatten"),
        keras.layers.Dense(128, activation="relu", name="head_dense"),
        keras.layers.Dropout(0.4, name="head_dropout_2"),
        probabilities,
    ]


def build_backbone(
    image_size: tuple[int, int], weights: str, top_stage: str = "conv5"
) -> tuple[keras.Model, LoadedWeights]:
    """ResNet50 without its top, and which of its layers were loaded. Arguments: `build_model`."""
    backbone = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(*image_size, 3), name=BACKBONE_NAME
    )
    path = None
    if weights != "none":
        path = _download_imagenet() if weights == "imagenet" else Path(weights)
    in_file = _layers_in(path) if path else set()
    if top_stage == "pretrained":
        top_stage = _last_stage(backbone, in_file)
    if top_stage != STAGES[-1]:
        output = backbone.get_layer(STAGE_OUTPUTS[top_stage]).output
        backbone = keras.Model(backbone.input, output, name=BACKBONE_NAME)
    ours = {layer.name for layer in backbone.layers if layer.weights}
    if path is None:
        return backbone, LoadedWeights("none", frozenset(), len(ours))
    names = in_file & ours
    if not names:
        raise InputError(f"{path}: holds no layer of Keras' ResNet50; nothing was loaded")
    try:
        # On the backbone itself: an outer model that nests it would load nothing and say nothing.
        backbone.load_weights(path, by_name=True)
    except ValueError as error:
        raise InputError(f"{path}: does not fit Keras' ResNet50 ({error})") from error
    return backbone, LoadedWeights(weights, frozenset(names), len(ours))


def _last_stage(backbone: keras.Model, names: set[str]) -> str:
    """The last stage up to which all layers are among `names`; `conv5` where there is none."""
    missing = [layer.name for layer in backbone.layers if layer.weights and layer.name not in names]
    first = min((STAGES.index(name[:5]) for name in missing), default=len(STAGES))
    return STAGES[first - 1] if first > 1 else STAGES[-1]


def top_stage_of(model: keras.Model) -> str:
    """The last ResNet50 stage of a classifier."""
    output = model.get_layer(BACKBONE_NAME).layers[-1].name
    return next(stage for stage, name in STAGE_OUTPUTS.items() if name == output)


def compute_features(
    paths: Sequence[Path], *, weights: str, image_size: tuple[int, int] = (120, 160)
) -> np.ndarray:
    """Describe images by the pooled output of ResNet50's middle stages, `conv3` and `conv4`.

    Args:
        paths: image files.
        weights: as for `build_model`; random ones describe nothing.
        image_size: (height, width) in pixels at which they are described.

    Returns:
        float32 (n, 1536).
    """
    backbone, _ = build_backbone(image_size, weights, "conv4")
    outputs = [backbone.get_layer(STAGE_OUTPUTS[stage]).output for stage in ("conv3", "conv4")]
    pooled = [keras.layers.GlobalAveragePooling2D()(output) for output in outputs]
    inputs = keras.Input((*image_size, 3))
    ready = keras.applications.resnet50.preprocess_input(inputs)
    describe = keras.Model(
        inputs, keras.Model(backbone.input, keras.layers.Concatenate()(pooled))(ready)
    )
    batches = (
        load_images(paths[start : start + FEATURE_BATCH], image_size=image_size)
        for start in range(0, len(paths), FEATURE_BATCH)
    )
    return np.concatenate(list(run_batches(describe, batches, len(paths), "computing features")))


def run_batches(
    model: keras.Model, batches: Iterable[np.ndarray], images: int, title: str
) -> Iterator[np.ndarray]:
    """The output of a model for uint8 batches, outside training, with a progress bar.

    One GPU of several does it: with `keras.Model.predict_on_batch`, each would answer for the whole
    batch.

    Args:
        model: from float images.
        batches: uint8 (b, height, width, 3) each.
        images: how many there are together.
        title: of the bar.
    """
    compute = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    with progress_bar(None, title, images) as bar:
        for batch in batches:
            yield compute(tf.cast(batch, tf.float32)).numpy()
            bar.update(len(batch))


def freeze_pretrained(model: keras.Model, loaded: LoadedWeights) -> None:
    """Train exactly the layers without pretrained weights; compile the model afterwards."""
    backbone = model.get_layer(BACKBONE_NAME)
    for layer in backbone.layers:
        layer.trainable = layer.name not in loaded.layers


def unfreeze(
    model: keras.Model, loaded: LoadedWeights, *, fine_tune_from: str, train_batch_norm: bool
) -> None:
    """Train the backbone from one stage on; compile the model afterwards.

    Args:
        model: from `build_model`.
        loaded: which layers are pretrained; the others are trained in any case.
        fine_tune_from: the first stage to train, `conv1` to `conv5`.
        train_batch_norm: if False, pretrained BatchNorm layers keep their statistics and run in
            inference mode, as https://keras.io/guides/transfer_learning/ advises.
    """
    trained = STAGES[STAGES.index(fine_tune_from) :]
    for layer in model.get_layer(BACKBONE_NAME).layers:
        batch_norm = isinstance(layer, keras.layers.BatchNormalization)
        kept = batch_norm and not train_batch_norm
        layer.trainable = layer.name not in loaded.layers or (
            layer.name.startswith(trained) and not kept
        )


def synchronize_batch_norm(model: keras.Model, synchronized: bool) -> None:
    """Whether BatchNorm takes its statistics over the batches of all GPUs."""
    for layer in model.get_layer(BACKBONE_NAME).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized


def _download_imagenet() -> Path:
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
            "dataset keras/resnet50 on Kaggle, or name a file with --weights FILE or the variable "
            f"SKINLESION_WEIGHTS, or use --weights none ({error})"
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
