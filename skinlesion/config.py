"""The settings of a run: one frozen, validated table, and the named recipes."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from skinlesion.files import InputError

Split = Literal["grouped", "original"]
Resize = Literal["bilinear", "nearest"]
Preprocessing = Literal["imagenet", "divide_by_255"]
Augmentation = Literal["dermatoscopic", "original", "none"]
Head = Literal["pooled", "original"]
Schedule = Literal["cosine", "plateau"]
ClassWeights = Literal["balanced", "none"]
Method = Literal["network", "regression"]
HeadStart = Literal["random", "regression"]
Sampling = Literal["natural", "balanced"]
MixingKind = Literal["none", "mixup", "cutmix"]
Precision = Literal["auto", "float32", "mixed_float16"]


def _check_type(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        _require(value in choices, name, f"one of {', '.join(choices)}", value)
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(number and math.isfinite(value), name, "a number", value)
    elif hint in (int, int | None):
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole or (value is None and hint is not int), name, "a whole number", value)
    elif hint is bool or hint is str:
        _require(isinstance(value, hint), name, f"a {hint.__name__}", value)


def _require(holds: bool, name: str, what: str, value: Any) -> None:
    if not holds:
        raise InputError(f"setting {name} must be {what}. Received: {name}={value!r}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides how a model is trained.

    Attributes:
        recipe: name of the recipe these settings started from.
        split: `grouped` keeps all images of a lesion together; `original` splits image by image.
        seed: seed of the split, the initial weights, the order of images and the augmentation.
        weights: `imagenet`, `none`, or the path of a weights file.
        image_size: (height, width) of the network's input in pixels.
        resize: how images are brought to `image_size`.
        preprocessing: `imagenet` is what the ImageNet weights were trained with (BGR, channel
            means subtracted); `divide_by_255` is what the original did.
        method: `network` trains the network by gradient descent; `regression` keeps it as it was
            pretrained and fits a logistic regression on its pooled features, chosen on validation
            (a linear probe: Alain and Bengio, arXiv:1610.01644). What describes epochs, rates and
            augmentation is then without effect.
        top_stage: the last ResNet50 stage that is used, `conv2` to `conv5`; `pretrained`: the last
            one for which there are pretrained weights (without any, `conv5`).
        head: `original` is the head of the original notebook, 24,801,223 parameters with the
            backbone at 224x224; `pooled` averages each feature map (He et al., arXiv:1512.03385).
        head_start: `regression` starts the last layer as a logistic regression on the features of
            the pretrained layers, as `method` does, before the first epoch (linear probing, then
            fine-tuning: Kumar et al., arXiv:2202.10054); without pretrained weights it is left out.
        augmentation: which random transforms training images go through.
        batch_size: images in a training step.
        epochs: all epochs together.
        frozen_share: of these, the share that trains only the layers that were not pretrained.
        head_learning_rate: Adam's rate while nothing pretrained is trained.
        learning_rate: Adam's rate once pretrained layers are trained too.
        fine_tune_from: name of the first ResNet50 stage that fine-tuning trains (`conv1` to
            `conv5`); earlier pretrained stages stay as they are.
        train_batch_norm: whether pretrained BatchNorm layers are trained too.
        batch_norm_momentum: of the BatchNorm layers that were not pretrained.
        class_weights: `balanced` weighs each class by the inverse of its frequency, in training
            and in the validation loss, so that every class counts the same.
        sampling: `natural` shows each training image once an epoch; `balanced` draws them so that
            all classes come equally often (Buda et al., arXiv:1710.05381).
        focal_gamma: 0 is cross-entropy; above, the focal loss, which gives less weight to what is
            easy (Lin et al., arXiv:1708.02002, use 2).
        label_smoothing: share of the truth that is spread over all classes (Szegedy et al.,
            arXiv:1512.00567, use 0.1).
        mixing: `mixup` blends pairs of training images and their labels (Zhang et al.,
            arXiv:1710.09412); `cutmix` pastes a rectangle of one into the other (Yun et al.,
            arXiv:1905.04899).
        mixing_alpha: both parameters of the beta distribution of the share of an image.
        weight_decay: 0 is Adam; above, AdamW, which lets the kernels of convolutions and dense
            layers decay, not biases and norms (Loshchilov and Hutter, arXiv:1711.05101).
        cache_features: while the lower layers are frozen, compute their output for each image
            once; of the augmentation, only flips and quarter turns are left for these epochs.
        precision: `mixed_float16` computes with half the bits (Micikevicius et al.,
            arXiv:1710.03740); `auto` does so on GPUs that gain by it.
        schedule: `cosine` warms up and decays to a hundredth in each phase; `plateau` lowers the
            rate when `plateau_monitor` stands still.
        plateau_monitor: quantity that `plateau` watches.
        plateau_patience: epochs without progress before the rate is lowered.
        plateau_factor: what the rate is multiplied by.
        plateau_min_rate: the floor under the rate.
        early_stopping_patience: epochs without a better validation loss before training stops.
        limit: train on at most this many training images (None: all).
        deterministic: same numbers from run to run on one machine, at some cost in speed.
    """

    recipe: str
    split: Split
    seed: int = 42
    weights: str = "imagenet"
    image_size: tuple[int, int] = (224, 224)
    resize: Resize
    preprocessing: Preprocessing
    method: Method = "network"
    top_stage: str = "conv5"
    head: Head
    head_start: HeadStart = "random"
    augmentation: Augmentation
    batch_size: int = 32
    epochs: int
    frozen_share: float
    head_learning_rate: float
    learning_rate: float
    fine_tune_from: str
    train_batch_norm: bool
    batch_norm_momentum: float
    class_weights: ClassWeights
    sampling: Sampling = "natural"
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    mixing: MixingKind = "none"
    mixing_alpha: float = 0.2
    weight_decay: float = 0.0
    cache_features: bool = False
    precision: Precision = "auto"
    schedule: Schedule
    plateau_monitor: str = "val_loss"
    plateau_patience: int = 2
    plateau_factor: float = 0.5
    plateau_min_rate: float = 1e-6
    early_stopping_patience: int
    limit: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        size = tuple(self.image_size) if isinstance(self.image_size, list) else self.image_size
        object.__setattr__(self, "image_size", size)
        _require(
            isinstance(size, tuple)
            and len(size) == 2
            and all(type(side) is int and side > 0 for side in size),
            "image_size",
            "two whole numbers of pixels, height and width",
            size,
        )
        for name, hint in get_type_hints(Config).items():
            _check_type(name, getattr(self, name), hint)
        for name in (
            "batch_size",
            "epochs",
            "head_learning_rate",
            "learning_rate",
            "early_stopping_patience",
            "plateau_patience",
            "plateau_factor",
            "mixing_alpha",
        ):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("focal_gamma", "weight_decay"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "label_smoothing", "0 or more and below 1", smoothing)
        _require(
            self.mixing == "none" or self.class_weights == "none",
            "class_weights",
            f"none with {self.mixing}: a mixed image has two classes, and no weight of its own",
            self.class_weights,
        )
        _require(
            self.sampling == "natural" or self.class_weights == "none",
            "class_weights",
            "none with balanced sampling: rare classes would count twice",
            self.class_weights,
        )
        _require(self.plateau_factor < 1, "plateau_factor", "below 1", self.plateau_factor)
        _require(self.plateau_min_rate >= 0, "plateau_min_rate", "0 or more", self.plateau_min_rate)
        _require(0 <= self.frozen_share <= 1, "frozen_share", "0 to 1", self.frozen_share)
        _require(0 <= self.seed < 2**31, "seed", "0 to 2147483647", self.seed)
        _require(self.limit is None or self.limit > 0, "limit", "above 0", self.limit)
        _require(
            0 < self.batch_norm_momentum < 1,
            "batch_norm_momentum",
            "between 0 and 1",
            self.batch_norm_momentum,
        )
        tops = (*STAGES[1:], "pretrained")
        _require(self.top_stage in tops, "top_stage", f"one of {', '.join(tops)}", self.top_stage)
        regression = "regression" in (self.method, self.head_start)
        _require(
            not regression or self.head == "pooled",
            "head",
            "pooled for a regression, which is fitted on pooled features",
            self.head,
        )
        _require(
            self.fine_tune_from in STAGES,
            "fine_tune_from",
            f"one of {', '.join(STAGES)}",
            self.fine_tune_from,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return dataclasses.asdict(self) | {"image_size": list(self.image_size)}


STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")
"""The stages of ResNet50, in Keras' own layer names. He et al., arXiv:1512.03385, table 1."""

RECIPES = {
    # To the letter what the Kaggle notebook does that this project replaces, so that anyone can
    # see what was wrong with it: lesions shared between splits, preprocessing that the weights do
    # not know, a schedule whose floor equals the starting rate, accuracy on unbalanced classes.
    "original": Config(
        recipe="original",
        split="original",
        resize="nearest",
        preprocessing="divide_by_255",
        head="original",
        augmentation="original",
        epochs=8,
        frozen_share=0.0,
        head_learning_rate=1e-4,
        learning_rate=1e-4,
        fine_tune_from="conv1",
        train_batch_norm=True,
        batch_norm_momentum=0.99,
        class_weights="none",
        schedule="plateau",
        plateau_monitor="val_accuracy",
        plateau_patience=4,
        plateau_factor=0.5,
        plateau_min_rate=1e-4,
        early_stopping_patience=3,
    ),
    # Fit the last layer, then fine-tune the upper stages at a low rate with BatchNorm in inference
    # mode: Kumar et al., arXiv:2202.10054, https://keras.io/guides/transfer_learning/. Lower stages
    # hold general edges and colours: Yosinski et al., arXiv:1411.1792. The original's head is not
    # used: at the rates that new layers need, all its ReLUs die within some hundred steps and the
    # loss stays at ln 7. Why each other value is what it is: docs/results.md.
    "default": Config(
        recipe="default",
        split="grouped",
        resize="bilinear",
        preprocessing="imagenet",
        top_stage="pretrained",
        head="pooled",
        head_start="regression",
        augmentation="dermatoscopic",
        epochs=20,
        frozen_share=0.0,
        head_learning_rate=1e-3,
        learning_rate=1e-4,
        fine_tune_from="conv3",
        train_batch_norm=False,
        batch_norm_momentum=0.9,
        class_weights="balanced",
        cache_features=True,
        schedule="cosine",
        early_stopping_patience=6,
    ),
    # The floor that every trained network has to beat, and what a machine without GPU does in
    # minutes: only a linear layer is fitted. `conv4` is the last stage of which the features serve
    # for images unlike ImageNet's: Yosinski et al., arXiv:1411.1792.
    "probe": Config(
        recipe="probe",
        split="grouped",
        image_size=(128, 128),
        resize="bilinear",
        preprocessing="imagenet",
        method="regression",
        top_stage="conv4",
        head="pooled",
        augmentation="none",
        epochs=1,
        frozen_share=1.0,
        head_learning_rate=1e-3,
        learning_rate=1e-4,
        fine_tune_from="conv5",
        train_batch_norm=False,
        batch_norm_momentum=0.99,
        class_weights="balanced",
        schedule="cosine",
        early_stopping_patience=1,
    ),
}


def make_config(recipe: str = "default", **overrides: Any) -> Config:
    """A recipe's settings with some of them replaced.

    Args:
        recipe: one of `RECIPES`.
        **overrides: fields of `Config`; a value of None keeps the recipe's.

    Raises:
        InputError: an unknown recipe or setting, or a value out of range.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return config_from_dict(RECIPES[recipe].to_dict() | given)


def config_from_dict(settings: Mapping[str, Any]) -> Config:
    """The inverse of `Config.to_dict`.

    Raises:
        InputError: an unknown or missing setting, or a value out of range.
    """
    fields = dataclasses.fields(Config)
    names = {field.name for field in fields}
    unknown = sorted(set(settings) - names)
    # Settings with a default are newer than the first version: a run without them had the default.
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    missing = sorted(needed - set(settings))
    if unknown or missing:
        near = [difflib.get_close_matches(name, names, 1) for name in unknown]
        meant = f"; did you mean {' and '.join(x[0] for x in near)}?" if all(near) and near else ""
        raise InputError(
            f"settings do not fit this version: unknown {unknown or 'none'}, missing "
            f"{missing or 'none'}{meant or '; known settings are ' + ', '.join(sorted(names))}"
        )
    return Config(**settings)


def differences(ours: Config, theirs: Config) -> str:
    """Name the settings that differ, as `name: ours instead of theirs`; empty when none does."""
    left, right = ours.to_dict(), theirs.to_dict()
    return "; ".join(
        f"{name}: {left[name]} instead of {right[name]}"
        for name in left
        if left[name] != right[name]
    )
