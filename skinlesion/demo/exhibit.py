"""What a run gives the demo to show: its model, its figures, examples; and tables of verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.data.ham10000 import METADATA_NAME, find_local_dataset, list_images, read_metadata
from skinlesion.data.images import decode_image, read_size
from skinlesion.data.synthetic import make_sample
from skinlesion.demo.result import OperatingPoint, Verdict, find_operating_point, judge_image
from skinlesion.diagnoses import CLASS_CODES, CLASS_NAMES, LABEL_OF
from skinlesion.evaluation.gradcam import overlay_heat
from skinlesion.files import InputError, read_json
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import find_run, read_part, recall_dataset

MAX_FILES = 200
"""Images that are judged in one go; for more there is `python -m skinlesion predict`."""
SHOWN_SIZE, THUMBNAIL_SIZE = 640, 200
"""Longest side, in pixels, of pictures that the page makes."""
SHOWN_COLUMNS = {
    "image": "Image",
    "verdict": "Verdict",
    "most_probable": "Most probable",
    "confidence": "Confidence",
    "prediction_set": "Set",
    "malignancy": "Malignant",
    "quality": "Quality",
}
"""Columns of the table of several images that the page shows, and their titles."""
EXAMPLE_SEED = 1
"""Of the drawings shown for a model of the sample: another than the sample's own."""
NOT_EVALUATED = """\
This model was not evaluated, so nothing is known about how good it is:
`python -m skinlesion evaluate --run RUN` measures it, and this tab will show the figures."""
FIGURES = {
    "confusion_matrix_normalized": "Confusion matrix: each row is a true class",
    "reliability": "Reliability: are confidences what they say?",
    "roc_curves": "ROC curves, each class against the rest",
    "subgroups": "Subgroups",
    "risk_coverage": "What is gained when unsure images go to a doctor",
}
"""Figures of an evaluation that show no photograph, and what they are called in the page."""


@dataclass(frozen=True)
class Exhibit:
    """What the page shows.

    Attributes:
        predictor: the model.
        point: its operating point.
        metrics: its run's `metrics.json`; None: it was not evaluated.
        card: its model card, Markdown.
        figures: pictures of its evaluation, and what they are called.
        examples: image files, and what they show.
    """

    predictor: Predictor
    point: OperatingPoint
    metrics: dict[str, Any] | None = None
    card: str = NOT_EVALUATED
    figures: tuple[tuple[Path, str], ...] = ()
    examples: tuple[tuple[Path, str], ...] = ()


def gather_exhibit(
    run: Path, predictor: Predictor, *, data: str | Path | None, drawn: Path
) -> Exhibit:
    """Everything that a run directory, or a bundle by itself, gives the page to show.

    Args:
        run: its folder.
        predictor: its model.
        data: the dataset, for examples; None takes what is at hand without a download.
        drawn: an empty folder for drawings where they are needed.

    Raises:
        InputError: the model was not calibrated, or `data` is no dataset.
    """
    home = _find_home(run)
    evaluation, metrics = (home or run) / "evaluation", read_metrics(home or run)
    card = evaluation / "model_card.md"
    return Exhibit(
        predictor=predictor,
        point=find_operating_point(predictor, metrics),
        metrics=metrics,
        card=card.read_text("utf-8").split("\n---\n", 1)[-1] if card.is_file() else NOT_EVALUATED,
        figures=tuple(
            (evaluation / f"{name}.png", title)
            for name, title in FIGURES.items()
            if (evaluation / f"{name}.png").is_file()
        ),
        examples=tuple(_choose_examples(home, predictor, data, drawn)),
    )


def read_metrics(run: Path) -> dict[str, Any] | None:
    """What `evaluate` measured, a run's `metrics.json`; None: it was not evaluated."""
    path = run / "evaluation" / "metrics.json"
    return read_json(path) if path.is_file() else None


def judge_files(exhibit: Exhibit, paths: Sequence[str]) -> list[Verdict | dict[str, str]]:
    """A verdict of each file; of one that is no image, its name as `image` and the `error`."""

    def judge(path: str) -> Verdict | dict[str, str]:
        try:
            return judge_image(exhibit.predictor, path, exhibit.point)
        except InputError as error:
            return {"image": Path(path).name, "error": str(error)}

    return [judge(path) for path in paths]


def tabulate(judged: Sequence[Verdict | dict[str, str]]) -> pd.DataFrame:
    """A row a file: what is said about it, and the calibrated probability of each class."""
    columns = [*SHOWN_COLUMNS, *CLASS_CODES, "error"]
    return pd.DataFrame([_tabulate_one(one) for one in judged], columns=columns)


def draw_heat(
    predictor: Predictor, path: str | Path, *, even_if_foreign: bool = True
) -> np.ndarray | None:
    """An image file with the Grad-CAM heat of its most probable class.

    Returns:
        uint8 (height, width, 3), upright, the longest side `SHOWN_SIZE`; None for an image that
        does not look like a dermatoscopic one, unless that was asked for.

    Raises:
        InputError: it is no image.
    """
    prediction = predictor.predict(path)
    if prediction.is_foreign and not even_if_foreign:
        return None
    heat = predictor.explain([path], np.array([LABEL_OF[prediction.code]]))[0]
    return overlay_heat(draw_image(path, SHOWN_SIZE), heat)


def require_few(paths: list[str]) -> list[str]:
    """The same files. Raises: `InputError` when they are more than `MAX_FILES`."""
    if len(paths) > MAX_FILES:
        raise InputError(
            f"{len(paths)} files are too many, {MAX_FILES} at a time; for more: "
            "python -m skinlesion predict --run RUN FOLDER --out predictions.csv"
        )
    return paths


def _find_home(run: Path) -> Path | None:
    """The run directory that a bundle lies in; None: it is one by itself."""
    try:
        return find_run(run)
    except InputError:
        return None


def _choose_examples(
    home: Path | None, predictor: Predictor, data: str | Path | None, drawn: Path
) -> list[tuple[Path, str]]:
    """A test image of each class where the dataset is at hand; drawings for a model of drawings."""
    found = find_local_dataset(data or (recall_dataset(home) if home else None))
    if found and home:
        rows = read_part(home, "test").drop_duplicates("dx").sort_values("label")
        images = list_images(found)
        if set(rows["image_id"]) <= set(images):
            chosen = [images[image] for image in rows["image_id"]]
            return list(zip(chosen, (CLASS_NAMES[label] for label in rows["label"]), strict=True))
    if not predictor.bundle.info.synthetic:
        return []
    sample = make_sample(drawn / "sample", images_per_class=1, seed=EXAMPLE_SEED)
    table = read_metadata(sample / METADATA_NAME)
    images = list_images(sample)
    return [
        (images[image], CLASS_NAMES[LABEL_OF[code]])
        for image, code in sorted(zip(table["image_id"], table["dx"], strict=True))
    ]


def draw_image(path: str | Path, longest: int) -> np.ndarray:
    """The image upright and in its own proportions, uint8, its longest side `longest` pixels."""
    height, width = read_size(path)
    share = longest / max(height, width)
    size = (max(1, round(height * share)), max(1, round(width * share)))
    return decode_image(path, image_size=size)


def _tabulate_one(one: Verdict | dict[str, str]) -> dict[str, Any]:
    if not isinstance(one, Verdict):
        return one | {"verdict": ""}
    probabilities = {candidate.code: candidate.probability for candidate in one.candidates}
    return {
        "image": one.image,
        "verdict": one.call,
        "most_probable": one.candidates[0].name,
        "confidence": one.candidates[0].probability,
        "prediction_set": " ".join(c.code for c in one.candidates if c.in_prediction_set),
        "malignancy": one.malignancy,
        "quality": " ".join(one.problems) or "ok",
        **{code: probabilities[code] for code in CLASS_CODES},
        "error": "",
    }


def shorten(table: pd.DataFrame) -> pd.DataFrame:
    """The table as the page shows it: an error in the verdict's place, no more than is legible."""
    shown = table[list(SHOWN_COLUMNS)].round(3).astype(object)
    shown["verdict"] = table["verdict"].where(table["verdict"] != "", table["error"])
    return shown.rename(columns=SHOWN_COLUMNS).fillna("")
