"""From image files to results: one pass for each image, and the command `predict`."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from skinlesion.data.dataset import list_images
from skinlesion.data.images import ENDINGS, RESAMPLING, list_image_files, open_upright
from skinlesion.data.isic_csv import write_isic
from skinlesion.demo.result import (
    Failure,
    RankedDiagnosis,
    Result,
    find_operating_point,
    make_table,
)
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import (
    load_calibration,
    make_prediction_sets,
    sum_malignant,
)
from skinlesion.evaluation.gradcam import compute_grad_cam, overlay_heat
from skinlesion.evaluation.metrics import find_malignant
from skinlesion.evaluation.ood import is_in_distribution
from skinlesion.evaluation.quality import find_problems
from skinlesion.files import InputError, name_some, require_no_folder, write_csv
from skinlesion.machine import progress_bar, say
from skinlesion.model.bundle import ModelInfo
from skinlesion.model.predictor import BATCH_SIZE, Predictor
from skinlesion.model.run import Run

SHOWN_SIZE = 640
"""Longest side, in pixels, of the pictures that the page shows."""


class OpenedImage(NamedTuple):
    """An image file, decoded once for everything that needs it.

    Attributes:
        file: name of the file.
        pixels: uint8 (height, width, 3), the network's input.
        picture: RGB, upright, to be shown; its longest side has at most `SHOWN_SIZE` pixels.
        size: (height, width) in pixels of the decoded image.
    """

    file: str
    pixels: np.ndarray
    picture: Image.Image
    size: tuple[int, int]


class Prediction(NamedTuple):
    """A result, and what else the same pass of the network gave.

    Attributes:
        result: what is said about the image.
        y_prob: float32 (classes,), uncalibrated probabilities.
        picture: the image, to be shown.
        maps: float32 (h, w, c), what Grad-CAM explains; None if not asked for.
    """

    result: Result
    y_prob: np.ndarray
    picture: Image.Image
    maps: np.ndarray | None


def open_image(path: str | Path, info: ModelInfo) -> OpenedImage:
    """Decode an image file. The pixels are those of `Predictor.decode`.

    Raises:
        InputError: the file cannot be read as an image.
    """
    height, width = info.image_size
    # As in `decode_image`. A JPEG that is reduced while it is decoded stays at least as large as
    # the network's input, so it is "small" exactly if the file is.
    at_least = max(height, width) if info.resize == "bilinear" else None
    picture = open_upright(path, at_least=at_least)
    size = picture.height, picture.width
    pixels = np.asarray(picture.resize((width, height), RESAMPLING[info.resize]))
    picture.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
    return OpenedImage(Path(path).name, pixels, picture, size)


class CalibratedPredictor:
    """A trained, calibrated model that turns image files into results.

    Args:
        run: folder of a run, or of a saved model by itself.

    Raises:
        InputError: there is no trained model, or it is damaged or not calibrated, or its metrics
            are damaged.
    """

    def __init__(self, run: str | Path | Run) -> None:
        found = Run.find(run)
        # The small files first: the network is only read if they are as they should be.
        self.calibration = load_calibration(found)
        self.operating_point = find_operating_point(self.calibration, found.metrics)
        self.predictor = Predictor.load(found)
        self.info = self.predictor.info

    def predict_file(self, path: str | Path, *, maps: bool = False) -> Prediction:
        """Decode and predict one image file.

        Raises:
            InputError: the file cannot be read as an image.
        """
        return self.predict_opened([open_image(path, self.info)], maps=maps)[0]

    def predict_files(self, paths: Sequence[str | Path]) -> Iterator[Prediction | Failure]:
        """Yield a prediction of each file, in order, or why it cannot be read.

        Threads decode one batch while the network predicts the batch before. Memory therefore does
        not grow with the number of files.
        """
        starts = range(0, len(paths), BATCH_SIZE)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            batches = [paths[start : start + BATCH_SIZE] for start in starts]
            ahead = pool.map(self._open, batches[0]) if batches else iter(())
            for following in [*batches[1:], []]:
                batch, ahead = list(ahead), pool.map(self._open, following)
                readable = [one for one in batch if isinstance(one, OpenedImage)]
                predictions = iter(self.predict_opened(readable) if readable else ())
                for one in batch:
                    yield one if isinstance(one, Failure) else next(predictions)

    def predict_opened(
        self, images: Sequence[OpenedImage], *, maps: bool = False
    ) -> list[Prediction]:
        """Predict decoded images, one or more, in one pass of the network."""
        pixels = np.stack([image.pixels for image in images])
        outputs = self.predictor.predict_images(pixels, maps=maps)
        calibrated = self.calibration.apply(outputs.y_prob)
        decided = self.calibration.decide(calibrated)
        sets = make_prediction_sets(calibrated, self.calibration)
        scores = self.calibration.ood.compute_scores(outputs.features)
        return [
            Prediction(
                self._make_result(image, calibrated[i], sets[i], decided[i], float(scores[i])),
                outputs.y_prob[i],
                image.picture,
                outputs.maps[i] if outputs.maps is not None else None,
            )
            for i, image in enumerate(images)
        ]

    def explain(self, prediction: Prediction) -> np.ndarray:
        """Draw an image with the Grad-CAM heat of the diagnosis that the model decides on.

        Args:
            prediction: of this model, with maps.

        Returns:
            uint8 (height, width, 3), upright. The longest side has `SHOWN_SIZE` pixels.
        """
        assert prediction.maps is not None
        label = self.info.label_of[prediction.result.prediction]
        heat = compute_grad_cam(self.predictor, prediction.maps[None], np.array([label]))[0]
        picture = prediction.picture
        scale = SHOWN_SIZE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return overlay_heat(np.asarray(picture.resize(size)), heat)

    def _make_result(
        self,
        image: OpenedImage,
        probabilities: np.ndarray,
        in_set: np.ndarray,
        decided: int,
        ood_score: float,
    ) -> Result:
        judged = zip(self.info.diagnoses, probabilities, in_set, strict=True)
        diagnoses = [
            RankedDiagnosis(*one, float(share), bool(chosen)) for one, share, chosen in judged
        ]
        diagnoses.sort(key=lambda diagnosis: -diagnosis.probability)
        p_malignant, is_malignant = self._judge_malignancy(probabilities)
        if self.calibration.costs:
            is_malignant = self.info.diagnoses[decided].malignant
        problems = find_problems(image.pixels, self.calibration.quality, original_size=image.size)
        return Result(
            file=image.file,
            is_in_distribution=bool(is_in_distribution(np.array([ood_score]))[0]),
            ood_score=ood_score,
            problems=tuple(problems),
            diagnoses=tuple(diagnoses),
            p_malignant=p_malignant,
            prediction=self.info.labels[decided],
            rule=self.calibration.rule,
            is_malignant=is_malignant,
            prediction_set=tuple(one.code for one in diagnoses if one.in_prediction_set),
            operating_point=self.operating_point,
        )

    def _judge_malignancy(self, probabilities: np.ndarray) -> tuple[float | None, bool | None]:
        """The probability of malignancy, and whether it reaches the threshold, as `Result` says."""
        malignant, threshold = find_malignant(self.info), self.operating_point.threshold
        if malignant is None:
            return None, None
        p_malignant = float(sum_malignant(probabilities[None], malignant)[0])
        return p_malignant, None if threshold is None else bool(p_malignant >= threshold)

    def _open(self, path: str | Path) -> OpenedImage | Failure:
        try:
            return open_image(path, self.info)
        except InputError as error:
            return Failure(Path(path).name, str(error))


def predict_image(run: str | Path | Run, path: str | Path) -> Result:
    """Predict one image file.

    Args:
        run: folder of a run, or of a saved model by itself.
        path: the image file.

    Raises:
        InputError: the model is missing or not calibrated, or the file cannot be read.
    """
    return CalibratedPredictor(run).predict_file(path).result


def predict(
    run: str | Path | Run, paths: Sequence[str | Path], out: str | Path, *, isic: bool = False
) -> pd.DataFrame:
    """Predict image files and folders of images, and write a CSV file.

    Args:
        run: folder of a run, or of a saved model by itself.
        paths: image files, and folders with image files directly in them.
        out: the CSV file to write.
        isic: write uncalibrated probabilities in the form of ISIC 2018 Task 3 instead of the table.
            Files that cannot be read are left out.

    Returns:
        The table of `make_table`, a row for each file with its path as given.

    Raises:
        InputError: there is nothing to predict, the model is missing or not calibrated, or, with
            `isic`, two files have the same name.
    """
    require_no_folder(Path(out))
    files = list_files(paths)
    if isic:
        _require_unique_names(files)
    model = CalibratedPredictor(run)
    results: list[Result | Failure] = []
    names, y_prob = [], []
    predictions = progress_bar(model.predict_files(files), "predicting", len(files))
    for path, one in zip(files, predictions, strict=True):
        if isinstance(one, Failure):
            results.append(one)
        else:
            results.append(one.result)
            names.append(path.stem)
            y_prob.append(one.y_prob)
    table = make_table(results, model.info).assign(file=[str(path) for path in files])
    if isic:
        shape = (-1, len(model.info.labels))
        write_isic(Path(out), names, np.reshape(y_prob, shape), model.info)
    else:
        write_csv(Path(out), table)
    if model.info.synthetic:
        say(SYNTHETIC_NOTE)
    say(f"predict: wrote {len(names):,} predictions to {out}; the model {model.calibration.rule}")
    say_problems(table, name_all=isic)
    return table


def say_problems(table: pd.DataFrame, *, name_all: bool) -> None:
    """Name the files that cannot be read, and the images that are out of distribution."""
    errors = list(table.loc[table["error"] != "", "error"])
    if errors:
        named = name_some(errors, shown=len(errors) if name_all else 5)
        say(f"predict: {len(errors):,} of {len(table):,} files cannot be predicted: {named}")
    outside = list(table.loc[table["in_distribution"].eq(False), "file"])
    if outside:
        say(
            f"predict: {len(outside):,} of {len(table):,} images are out of distribution, so their "
            f"predictions are not meaningful: {name_some(outside)}"
        )


def list_files(paths: Sequence[str | Path]) -> list[Path]:
    """List named files, and the image files directly in named folders.

    The other files of a folder are named in one printed line.

    Raises:
        InputError: a path does not exist, a folder has no image file, nothing is named, or a name
            is not UTF-8, which the files with the predictions are.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images, others = list_image_files(path)
            if not images:
                raise InputError(f"{path}: no image file directly in it ({', '.join(ENDINGS)})")
            if others:
                names = [f"{other.name}/" if other.is_dir() else other.name for other in others]
                ignored = name_some(names, shown=len(names))
                say(f"predict: {path}: ignored, not image files: {ignored}")
            files += images
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not files:
        raise InputError("nothing to predict: name image files, or folders of image files")
    foreign = [ascii(x) for x in map(str, files) if x.encode(errors="ignore").decode() != x]
    if foreign:
        raise InputError(f"names that are not UTF-8: {name_some(foreign)}; rename these files")
    return files


def _require_unique_names(files: Sequence[Path]) -> None:
    names = pd.Series([path.stem for path in files])
    doubled = sorted(set(names[names.duplicated()]))
    if doubled:
        raise InputError(
            "the ISIC form names images without their folder, and several files have the same "
            f"name; rename them: {name_some(doubled)}"
        )


def find_example(run: str | Path | Run, data: Path, code: str) -> Path:
    """Find a test image of one diagnosis, or the first test image if there is none of it.

    Args:
        run: folder of a run.
        data: folder of the dataset.
        code: `dx` code, such as `mel`.

    Raises:
        InputError: this is a saved model by itself, or the dataset lacks the test images.
    """
    rows = Run.find(run).rows("test").sort_values("dx", key=lambda dx: dx != code, kind="stable")
    images = list_images(data)
    if rows.empty or rows["image_id"].iloc[0] not in images:
        raise InputError(f"{data}: has no test image of {run}; name the dataset of this run")
    return images[rows["image_id"].iloc[0]]
