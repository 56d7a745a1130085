"""What the page shows: a model, the figures of its evaluation, examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinlesion.data.dataset import find_local_dataset, list_images
from skinlesion.data.forms import read_dataset
from skinlesion.data.ham10000 import HAM10000
from skinlesion.data.synthetic import make_sample
from skinlesion.demo.predict import CalibratedPredictor
from skinlesion.model.run import Run

EXAMPLE_SEED = 1
"""Seed of the example drawings for a model of the sample. The sample itself has seed 0."""
NOT_EVALUATED = """\
This model has not been evaluated, so its accuracy is unknown. Run
`python -m skinlesion evaluate --run RUN`, and this tab shows the figures."""
FIGURES = {
    "confusion_matrix_normalized": "Confusion matrix: each row is a true class",
    "reliability": "Reliability: do probabilities match frequencies?",
    "decision_curve": "Decision curve: is it worth acting on the probability of malignancy?",
    "roc_curves": "ROC curves, each class against the rest",
    "subgroups": "Subgroups",
    "risk_coverage": "Selective prediction: error when uncertain images are left out",
}
"""Figures of an evaluation that show no photograph, and their titles on the page."""


@dataclass(frozen=True)
class Content:
    """What the page shows.

    Attributes:
        model: the model.
        metrics: of its run; None if it was not evaluated.
        card: its model card, Markdown.
        figures: pictures of its evaluation, and their titles.
        examples: image files, and their true diagnoses.
    """

    model: CalibratedPredictor
    metrics: dict[str, Any] | None
    card: str
    figures: tuple[tuple[Path, str], ...]
    examples: tuple[tuple[Path, str], ...]


def load_content(run: Run, *, data: str | Path | None, drawn: Path) -> Content:
    """Load everything that a run, or a saved model by itself, gives the page.

    Args:
        run: from `Run.find`.
        data: the dataset, for examples. None: the one at hand, without a download.
        drawn: an empty folder for drawings, if these are the examples.

    Raises:
        InputError: the model is damaged or not calibrated, or `data` is not a dataset.
    """
    figures = ((run.evaluation_dir / f"{name}.png", title) for name, title in FIGURES.items())
    return Content(
        model=CalibratedPredictor(run),
        metrics=run.metrics,
        card=read_card(run) or NOT_EVALUATED,
        figures=tuple((path, title) for path, title in figures if path.is_file()),
        examples=tuple(choose_examples(run, data, drawn)),
    )


def read_card(run: Run) -> str | None:
    """Read a model card without its header for the Hugging Face Hub; None: not evaluated."""
    path = run.evaluation_dir / "model_card.md"
    return path.read_text("utf-8").split("\n---\n", 1)[-1] if path.is_file() else None


def choose_examples(run: Run, data: str | Path | None, drawn: Path) -> list[tuple[Path, str]]:
    """Choose a test image of each class; without the dataset, drawings if the model knows them."""
    found = find_local_dataset(data or run.dataset)
    if found and run.has_split:
        rows = run.rows("test").drop_duplicates("dx").sort_values("label")
        images = list_images(found)
        if set(rows["image_id"]) <= set(images):
            names = run.info.names
            return [(images[row.image_id], names[row.label]) for row in rows.itertuples()]
    if not run.synthetic:
        return []
    classes = None if run.info.labels == HAM10000.labels else len(run.info.labels)
    sample = make_sample(drawn / "sample", images_per_class=1, seed=EXAMPLE_SEED, classes=classes)
    (table, _), images = read_dataset(sample), list_images(sample)
    return [
        (images[image], run.info.names[run.info.label_of[code]])
        for image, code in sorted(zip(table["image_id"], table["dx"], strict=True))
    ]
