"""Does a run hold elsewhere? Its figures on images as other cameras and clinics would take them.

Each shift changes all images of one part in one known way, without chance, before they are resized
to the network's input. Strengths are relative to the image, so that networks of different input
sizes are compared on the same changes. Shifts are no other clinic: they show what a run depends on.
"""

import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter

from skinlesion.data.dataset import find_dataset
from skinlesion.data.images import RESAMPLING, open_upright
from skinlesion.data.isic_csv import read_isic_for, write_isic
from skinlesion.data.split import join_split
from skinlesion.diagnoses import DatasetInfo
from skinlesion.evaluation.bootstrap import Figure, draw_weights, summarise
from skinlesion.evaluation.metrics import compute_figures
from skinlesion.evaluation.subgroups import compute_subgroups
from skinlesion.files import InputError
from skinlesion.machine import progress_bar, say
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import Run

PARTS = ("validation", "test")
FIGURES = ("balanced_accuracy", "macro_auc")
"""What is measured under each shift, beside the sensitivity to the class `info.focus`."""
NONE, MEAN = "none", "mean"
"""Names in the table: the images as they are, and the mean over all shifts."""
SUBGROUPS = ["localization", "dx_type"]
"""Columns of the metadata whose subgroups are in the table."""
BATCH = 256
"""Images held at a time."""

WARM = (1.076, 0.989, 0.862)
COOL = (0.927, 1.005, 1.143)
"""Factors of red, green and blue, as of a camera whose white is D50 or D93 instead of D65: the von
Kries rule on linear sRGB, then the power 1/2.2. The white points are those of the CIE (xy 0.3457,
0.3585 and 0.2831, 0.2971). Red to blue changes by 1.3 standard deviations of HAM10000's own images
(0.176 in the logarithm, of the colour that is brighter than 70 % of an image, 400 images)."""
HUE = -0.05
"""Turn of the hue towards violet, in whole turns: half of the largest one with which F. Perez et
al., arXiv:1809.01442, augment images of skin."""
LESS, MORE = 0.7, 1.3
"""Factors of brightness and contrast: the least and the largest of Perez et al."""
BLUR = 2 / 224
"""Standard deviation of the blur as a share of the height: severity 2 of 5 in ImageNet-C, whose
images have 224 rows (D. Hendrycks and T. Dietterich, arXiv:1903.12261)."""
ROWS = 112
"""Rows of a pixelated image, the same severity."""
QUALITY = 25
"""Of a JPEG file, of 95: severity 1 of 5 in ImageNet-C."""
ZOOM_IN, ZOOM_OUT = 1.3, 0.75
"""Scale of the lesion: beyond the 15 % of the recipes' augmentation. Chosen without a source."""

Shift = Callable[[Image.Image], Image.Image]


def cast(image: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    """Multiply red, green and blue."""
    values = np.outer(gains, np.arange(256)).round().clip(0, 255).astype(int)
    return image.point(values.ravel().tolist())


def turn_hue(image: Image.Image) -> Image.Image:
    """Turn the hue by `HUE`."""
    return Image.fromarray(tf.image.adjust_hue(np.asarray(image), HUE).numpy())


def change_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Multiply all values."""
    return ImageEnhance.Brightness(image).enhance(factor)


def lower_contrast(image: Image.Image) -> Image.Image:
    """Draw all values towards the mean grey."""
    return ImageEnhance.Contrast(image).enhance(LESS)


def blur(image: Image.Image) -> Image.Image:
    """Gaussian blur, relative to the height."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * image.height))


def pixelate(image: Image.Image) -> Image.Image:
    """Reduce to `ROWS` rows and enlarge again, in squares."""
    small = (round(image.width * ROWS / image.height), ROWS)
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def compress(image: Image.Image) -> Image.Image:
    """Save as JPEG of `QUALITY` and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return Image.open(file).convert("RGB")


def zoom_in(image: Image.Image) -> Image.Image:
    """The centre of the image, so that the lesion is larger."""
    left, top = (round(side * (1 - 1 / ZOOM_IN) / 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def zoom_out(image: Image.Image) -> Image.Image:
    """The image within its own reflection, so that the lesion is smaller."""
    margins = [(round(side * (1 / ZOOM_OUT - 1) / 2),) * 2 for side in image.size[::-1]]
    return Image.fromarray(np.pad(np.asarray(image), [*margins, (0, 0)], mode="reflect"))


SHIFTS: dict[str, Shift] = {
    "warm": partial(cast, gains=WARM),
    "cool": partial(cast, gains=COOL),
    "hue": turn_hue,
    "dark": partial(change_brightness, factor=LESS),
    "bright": partial(change_brightness, factor=MORE),
    "low_contrast": lower_contrast,
    "blur": blur,
    "pixelate": pixelate,
    "jpeg": compress,
    "zoom_in": zoom_in,
    "zoom_out": zoom_out,
}
"""Each shift by name: from an RGB image of any size to another, which can have another size."""


def evaluate_shifts(
    run: str | Path | Run, *, on: str = "validation", data: str | Path | None = None
) -> pd.DataFrame:
    """Measure a run under all shifts, and in each body site and way of diagnosis.

    On `validation`, recipes can be chosen by it. Predictions are kept in `evaluation/shifts/`, as
    `PART_SHIFT.csv` in the ISIC form, and used again.

    Args:
        run: a trained run whose images of that part were predicted: validation by `calibrate`, test
            by `evaluate`.
        on: `validation` or `test`.
        data: the dataset; None: the run's own, else as `find_dataset`.

    Returns:
        `attribute` (`shift`, or one of `SUBGROUPS`), `subgroup`, `images`, `figure`, `value`,
        `low`, `high`, `undefined_resamples`. Subgroups of `shift` are `none`, the names of
        `SHIFTS`, and `mean`, over these.

    Raises:
        InputError: another part, no predictions for it, or data and run do not fit.
    """
    if on not in PARTS:
        raise InputError(f"on: must be one of {', '.join(PARTS)}. Received: {on}")
    run = Run.find(run)
    split = run.split
    table = run.load_dataset(find_dataset(data or run.dataset))
    rows = join_split(table, split).query("split == @on").reset_index(drop=True)
    y_prob = run.read_predictions(on, list(rows["image_id"]))
    shifts = compute_shifts(rows, {NONE: y_prob} | predict_shifts(run, rows, on), run.info)
    described = rows[["lesion_id", *(name for name in SUBGROUPS if name in rows)]]
    subgroups = compute_subgroups(rows["label"].to_numpy(), y_prob, described, run.info)
    return pd.concat([shifts, subgroups.filter(shifts.columns)], ignore_index=True)


def has_shifts(run: Run, part: str) -> bool:
    """Whether a part was predicted under all shifts."""
    return all(_predictions_path(run, part, name).is_file() for name in SHIFTS)


def predict_shifts(run: Run, rows: pd.DataFrame, part: str) -> dict[str, np.ndarray]:
    """Predict images under each shift, unless these predictions exist.

    Args:
        run: a trained run.
        rows: `image_id` and `path` of n images.
        part: their part of the split, in the names of the files.

    Returns:
        Name of the shift to uncalibrated probabilities, float (n, classes).
    """
    image_ids = list(rows["image_id"])
    missing = [name for name in SHIFTS if not _predictions_path(run, part, name).is_file()]
    if missing:
        say(f"evaluate: predicting {len(rows):,} {part} images under {len(missing)} shifts")
        predictor = Predictor.load(run)
        for name in progress_bar(missing, "shifts", len(missing), unit="shifts"):
            y_prob = predict_shifted(predictor, list(rows["path"]), SHIFTS[name])
            write_isic(_predictions_path(run, part, name), image_ids, y_prob, run.info)
    return {
        name: read_isic_for(_predictions_path(run, part, name), image_ids, run.info)
        for name in SHIFTS
    }


def predict_shifted(predictor: Predictor, paths: list[Path], shift: Shift) -> np.ndarray:
    """Predict image files that are changed after they were read, and then resized as usual.

    Args:
        predictor: the model.
        paths: n image files, one or more.
        shift: one of `SHIFTS`.

    Returns:
        Uncalibrated probabilities, float32 (n, classes).

    Raises:
        InputError: a file cannot be read as an image.
    """
    height, width = predictor.info.image_size
    resampling = RESAMPLING[predictor.info.resize]

    def load(path: Path) -> np.ndarray:
        return np.asarray(shift(open_upright(path)).resize((width, height), resampling))

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), BATCH):
            images = np.stack(list(pool.map(load, paths[start : start + BATCH])))
            parts.append(predictor.predict_images(images).y_prob)
    return np.concatenate(parts)


def compute_shifts(
    rows: pd.DataFrame, predictions: Mapping[str, np.ndarray], info: DatasetInfo
) -> pd.DataFrame:
    """Compute the figures of each set of predictions, and their means over the shifts.

    The same resamples of lesions are used under all shifts, so the means have intervals too.

    Args:
        rows: `label` and `lesion_id` of n images.
        predictions: name to float (n, classes); `none` is not part of the means.
        info: of the dataset.

    Returns:
        As `evaluate_shifts`, the rows of `shift`.
    """
    weights, _ = draw_weights(len(rows), rows["lesion_id"].to_numpy())
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, y_prob in predictions.items():
        overall, per_class = compute_figures(rows["label"].to_numpy(), y_prob, weights, info)
        values[name] = {figure: overall[figure] for figure in FIGURES}
        if info.focus:
            of_focus = per_class["sensitivity"][:, info.label_of[info.focus]]
            values[name][f"sensitivity_{info.focus}"] = of_focus
    shifted = [found for name, found in values.items() if name != NONE]
    values[MEAN] = {
        name: np.mean([found[name] for found in shifted], axis=0) for name in shifted[0]
    }
    return pd.DataFrame(
        [
            {"attribute": "shift", "subgroup": name, "images": len(rows), "figure": figure}
            | summarise(resampled)
            for name, found in values.items()
            for figure, resampled in found.items()
        ]
    )


def summarise_shifts(table: pd.DataFrame) -> dict[str, Any]:
    """What `metrics.json` holds of `evaluate_shifts`.

    Returns:
        `figures`: `none`, each shift and `mean`, to figure, to `Figure`; `worst`: figure to the
        name of the shift under which it is lowest, None if it is undefined.
    """
    shifts = table[table["attribute"] == "shift"]
    columns = ["value", "low", "high", "undefined_resamples"]
    figures: dict[str, dict[str, Figure]] = {
        str(name): found.set_index("figure")[columns].to_dict("index")
        for name, found in shifts.groupby("subgroup", sort=False)
    }
    worst = {}
    for figure in figures[NONE]:
        values = pd.Series({name: figures[name][figure]["value"] for name in SHIFTS})
        worst[figure] = None if values.isna().any() else str(values.idxmin())
    return {"figures": figures, "worst": worst}


def _predictions_path(run: Run, part: str, name: str) -> Path:
    return run.evaluation_dir / "shifts" / f"{part}_{name}.csv"
