"""What is known about a dataset's classes: it travels with a run and its saved model."""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

FEWEST_CLASSES, MOST_CLASSES = 2, 50

DISCLAIMER = "For research and education only: not a medical device, not for clinical use."
BY_IMAGE_NOTE = (
    "No lesion ids: the split is by image. Images of one lesion may be in several parts of it, so "
    "that figures can be too good and intervals too narrow."
)
SYNTHETIC_NOTE = "Synthetic sample: drawn by a program. It says nothing about real skin lesions."


class Diagnosis(NamedTuple):
    """One class: its `dx` code, its full name, and whether it counts as malignant.

    `malignant` is None if the dataset does not say which classes are malignant.
    """

    code: str
    name: str
    malignant: bool | None


class DatasetInfo(BaseModel):
    """What every step has to know about a dataset beside its rows and images.

    Attributes:
        source: name of the dataset, for readers.
        labels: the `dx` code of each class, in the order of every probability vector.
        names: the full name of each class, in the same order.
        malignant: whether each class counts as malignant, in the same order; None: not known.
        focus: code of the class whose sensitivity is reported by itself; None: no class.
        isic_columns: how the classes are ordered in prediction and truth files, as their codes in
            capital letters; None: as in `labels`.
        synthetic: whether a program has drawn the images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    malignant: tuple[bool, ...] | None
    focus: str | None
    isic_columns: tuple[str, ...] | None
    synthetic: bool

    @model_validator(mode="after")
    def _require_consistent(self) -> "DatasetInfo":
        count = len(self.labels)
        if not FEWEST_CLASSES <= count <= MOST_CLASSES:
            raise ValueError(f"labels: {count} classes, not {FEWEST_CLASSES} to {MOST_CLASSES}")
        if len({label.upper() for label in self.labels}) != count:
            raise ValueError("labels: two are equal, apart from case")
        if len(self.names) != count or len(self.malignant or self.names) != count:
            raise ValueError(f"names and malignant: must be given for each of {count} labels")
        if sorted(self.columns) != sorted(label.upper() for label in self.labels):
            raise ValueError("isic_columns: must be the labels in capital letters")
        if self.focus not in (None, *self.labels):
            raise ValueError(f"focus: {self.focus} is none of the labels")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of prediction and truth files after `image`, in the order of writing."""
        return self.isic_columns or tuple(label.upper() for label in self.labels)

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """The classes, in the order of `labels`."""
        malignant = self.malignant or (None,) * len(self.labels)
        return tuple(map(Diagnosis, self.labels, self.names, malignant))

    @property
    def focus_name(self) -> str:
        """The name of the class `focus` in small letters; empty without one."""
        return self.names[self.labels.index(self.focus)].lower() if self.focus else ""

    @property
    def label_of(self) -> dict[str, int]:
        """`dx` code to integer label, from 0."""
        return {code: label for label, code in enumerate(self.labels)}
