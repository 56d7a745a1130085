"""The settings of a run and the recipes: every choice that training depends on, as data."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skinlesion.files import InputError

Split = Literal["grouped", "original"]
Resize = Literal["bilinear", "nearest"]
Preprocessing = Literal["imagenet", "divide_by_255"]
Augmentation = Literal["dermatoscopic", "original", "none"]
Head = Literal["pooled", "original"]
Stage = Literal["conv1", "conv2", "conv3", "conv4", "conv5"]
STAGES: tuple[Stage, ...] = ("conv1", "conv2", "conv3", "conv4", "conv5")
"""The stages of ResNet50, in Keras' layer names. He et al., arXiv:1512.03385, table 1."""

Pixels = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Config(BaseModel):
    """Everything that decides how a model is trained. Notebook 3 shows these descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    recipe: str = Field(description="name of the recipe that these settings started from")
    split: Split = Field(
        description='"grouped" keeps all images of a lesion together; "original" splits by image'
    )
    seed: int = Field(
        default=42,
        ge=0,
        lt=2**31,
        description="of the split, the initial weights, the order of images and the augmentation",
    )
    weights: str = Field(
        default="imagenet",
        description='pretrained weights of the backbone: "imagenet", "none", or the path of a file',
    )
    image_size: tuple[Pixels, Pixels] = Field(
        default=(224, 224), description="(height, width) of the network's input in pixels"
    )
    resize: Resize = Field(
        default="bilinear", description="filter that brings images to image_size"
    )
    preprocessing: Preprocessing = Field(
        default="imagenet",
        description='"imagenet" is what the ImageNet weights were trained with (BGR, channel means '
        'subtracted); "divide_by_255" is what the original notebook did',
    )
    top_stage: Literal["conv2", "conv3", "conv4", "conv5"] = Field(
        description='last ResNet50 stage of the backbone, "conv2" to "conv5"'
    )
    head: Head = Field(
        description='"pooled" averages each feature map (He et al., arXiv:1512.03385); "original" '
        "is the head of the original notebook"
    )
    linear_probe: bool = Field(
        default=False,
        description="fit the last layer as a logistic regression on the pretrained features before "
        "the first epoch (Kumar et al., arXiv:2202.10054); with epochs = 0 this is all of the "
        "training; skipped before epochs that start without pretrained weights",
    )
    augmentation: Augmentation = Field(
        description='random transforms of the training images: "dermatoscopic", "original", "none"'
    )
    batch_size: int = Field(default=32, ge=1, description="images in a training step")
    epochs: int = Field(ge=0, description="the largest number of epochs")
    learning_rate: Rate = Field(
        default=1e-4, description="Adam's learning rate when the backbone has pretrained weights"
    )
    scratch_learning_rate: Rate = Field(
        default=1e-3, description="Adam's learning rate when all weights start at random"
    )
    schedule: Literal["cosine", "plateau"] = Field(
        default="cosine",
        description='"cosine" warms up and decays to a hundredth; "plateau" halves the rate when '
        "the validation accuracy has not improved for 4 epochs, never below 1e-4 (the original's)",
    )
    fine_tune_from: Stage = Field(
        description="the first pretrained stage that is trained; earlier ones stay frozen"
    )
    train_batch_norm: bool = Field(
        default=False, description="whether pretrained BatchNorm layers are trained"
    )
    batch_norm_momentum: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="of the BatchNorm layers without pretrained weights",
    )
    class_weights: Literal["balanced", "none"] = Field(
        default="balanced",
        description='"balanced" weighs each class by its inverse frequency, in training and in the '
        "validation loss",
    )
    early_stopping_patience: int = Field(
        default=6,
        ge=1,
        description='with "plateau": epochs without a lower validation loss before training stops; '
        'the best epoch is kept. "cosine" goes to its end, and the last epoch is kept',
    )
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = Field(
        default="auto",
        description='"mixed_float16" computes with half the bits (Micikevicius et al., '
        'arXiv:1710.03740); "auto" does so on GPUs with Tensor Cores; "mixed_bfloat16" suits '
        "processors with AMX, such as Intel's Xeon since 2023 (Kalamkar et al., arXiv:1905.12322)",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="largest number of training images of the dataset itself; None uses all; the "
        "validation and test images stay all",
    )
    deterministic: bool = Field(
        default=False,
        description="repeat results exactly on one machine, at some cost in speed",
    )

    @model_validator(mode="after")
    def _require_training(self) -> "Config":
        if self.linear_probe and self.head != "pooled":
            raise ValueError("linear_probe needs head='pooled': it is fitted on pooled features")
        if not (self.epochs or self.linear_probe):
            raise ValueError("epochs must be 1 or more without linear_probe")
        return self


RECIPES = {
    # The Kaggle notebook that this project replaces, to the letter. It shares lesions between the
    # splits, its preprocessing does not fit the weights, and its schedule never lowers the rate.
    "original": Config(
        recipe="original",
        split="original",
        resize="nearest",
        preprocessing="divide_by_255",
        top_stage="conv5",
        head="original",
        augmentation="original",
        epochs=8,
        scratch_learning_rate=1e-4,
        schedule="plateau",
        fine_tune_from="conv1",
        train_batch_norm=True,
        batch_norm_momentum=0.99,
        class_weights="none",
        early_stopping_patience=3,
    ),
    # A linear probe, then fine-tuning of the upper stages at a low rate with BatchNorm in inference
    # mode: Kumar et al., arXiv:2202.10054, https://keras.io/guides/transfer_learning/. Lower stages
    # hold general edges and colours: Yosinski et al., arXiv:1411.1792. docs/experiments.md has the
    # measurements behind each value.
    "default": Config(
        recipe="default",
        split="grouped",
        image_size=(128, 128),
        top_stage="conv4",
        head="pooled",
        linear_probe=True,
        augmentation="dermatoscopic",
        epochs=12,
        fine_tune_from="conv3",
    ),
    # Only a linear layer is fitted: the baseline that every trained network has to beat. It takes
    # minutes without a GPU. Features of conv4 suit images unlike those of ImageNet better than
    # features of conv5: Yosinski et al., arXiv:1411.1792.
    "probe": Config(
        recipe="probe",
        split="grouped",
        image_size=(128, 128),
        top_stage="conv4",
        head="pooled",
        linear_probe=True,
        augmentation="none",
        epochs=0,
        fine_tune_from="conv5",
    ),
}


def make_config(recipe: str = "default", **overrides: Any) -> Config:
    """Return a recipe's settings with some of them replaced.

    Args:
        recipe: one of `RECIPES`.
        **overrides: fields of `Config`; None keeps the recipe's value.

    Raises:
        InputError: an unknown recipe or setting, or a value out of range.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return read_config(RECIPES[recipe].model_dump() | given)


def read_config(settings: dict[str, Any]) -> Config:
    """Check settings, for example those of a `config.json`.

    Raises:
        InputError: an unknown or missing setting, or a value out of range; names each of them.
    """
    size = settings.get("image_size")
    if isinstance(size, list):  # JSON has no tuples
        settings = settings | {"image_size": tuple(size)}
    try:
        return Config(**settings)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise InputError(f"settings: {problems}") from error


def find_differences(ours: Config, theirs: Config) -> str:
    """Name the settings that differ, as `name: ours, here theirs`; empty if none does."""
    left, right = ours.model_dump(), theirs.model_dump()
    return "; ".join(
        f"{name}: {left[name]}, here {right[name]}" for name in left if left[name] != right[name]
    )


def _describe(problem: Any) -> str:
    """One problem that pydantic found, in a few words."""
    if not problem["loc"]:  # several settings that do not go together
        return problem["msg"].removeprefix("Value error, ")
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Config.model_fields, 1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(Config.model_fields)}"
        return f"unknown setting {name} ({known})"
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        return f"setting {name} is missing"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if name == "image_size" and "than" not in problem["type"]:
        message = "must be two whole numbers, height and width, such as [128, 128]"
    return f"{name}: {message}. Received: {name}={problem['input']!r}"
