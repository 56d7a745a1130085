"""Feed damaged and hostile files to everything that reads files, in one process with limits.

    python tests/hostile.py RUN FOLDER COUNT

Run by test_hostile.py. RUN is an evaluated run, FOLDER a place for files. COUNT files are made from
valid ones, the same every time. Each must give a right result or an `InputError`. A file may take
`SECONDS` of all processors together, and the process may take `MEMORY` beside what it has at its
start; otherwise it dies. The last line is JSON: how often each reader gave what, and what was
neither.
"""

import collections
import faulthandler
import io
import json
import math
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from conftest import seal
from PIL import Image

from skinlesion.data.ham10000 import HAM10000, METADATA_NAME
from skinlesion.data.images import decode_image
from skinlesion.data.isic_csv import read_isic, read_truth
from skinlesion.data.metadata import read_metadata
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import read_any_split, read_split
from skinlesion.demo import app
from skinlesion.demo.predict import CalibratedPredictor, open_image
from skinlesion.demo.result import find_operating_point
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.files import InputError
from skinlesion.model.run import Run

SECONDS = 10
MEMORY = 4 * 2**30
NUMBERS = (b"NaN", b"-1", b"1e999", b"0", b"99999999999999999999", b"null", b'"x"', b"[]", b"1.5")
BUNDLE = {
    ".json": "bundle.json",
    ".npz": "calibration.npz",
    ".keras": "model.keras",
    ".SHA256SUMS": "SHA256SUMS",
}
"""Ending to the file of a saved model in whose place it is read."""
LENGTHS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65_535)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_images(picture: Path) -> dict[str, bytes]:
    """Valid files by their ending, in the formats that are opened and in others."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB").resize((96, 64))
    grey, exif = image.convert("L"), Image.Exif()
    exif[274], exif[270] = 6, "text"
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    return {
        "jpg": save(image, "JPEG", exif=exif),
        "progressive.jpg": save(image, "JPEG", progressive=True),
        "cmyk.jpg": save(image.convert("CMYK"), "JPEG"),
        "mpo": save(image, "MPO", **frames),
        "png": save(image.convert("RGBA"), "PNG", exif=exif),
        "deep.png": save(deep, "PNG"),
        "apng": save(image, "PNG", **frames),
        "webp": save(image, "WEBP", exif=exif),
        "animated.webp": save(image, "WEBP", **frames),
        "gif": save(image.quantize(64), "GIF", **frames),
        "bmp": save(image, "BMP"),
        "palette.bmp": save(image.quantize(16), "BMP"),
        "tif": save(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": save(image, "TIFF", compression="jpeg"),
        "fax.tif": save(image.convert("1"), "TIFF", compression="group4"),
        "deep.tif": save(deep, "TIFF"),
        "ico": save(image, "ICO"),
        "eps": save(image, "EPS"),
        "pdf": save(image, "PDF"),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "html": b"<html><script>alert(1)</script></html>",
    }


def make_others(run: Path, data: Path) -> dict[str, bytes]:
    """The other files of a run and a dataset by their names, shortened."""
    names = ("config.json", "splits.csv", "history.csv", "predictions_test.csv")
    places = [run / name for name in names] + [
        data / METADATA_NAME,
        run / "evaluation/metrics.json",
    ]
    made = {place.name: place.read_bytes() for place in places}
    made |= {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    made["metadata.yaml"] = b"lesion_id: [HAM_1, HAM_2]\nimage_id: &a [*a, *a]\n"
    return made


def change(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A file in one of the ways in which files are damaged, or are made to do damage."""
    new = bytearray(content)
    way = rng.randrange(8)
    at, length = rng.randrange(len(new)), rng.randrange(1, 64)
    if way == 0:
        for _ in range(rng.randrange(1, 20)):
            new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    elif way == 1:
        del new[at:]
    elif way == 2:  # a length or an offset in the header
        at = rng.randrange(min(len(new), 200))
        new[at : at + 4] = rng.choice(LENGTHS).to_bytes(4, rng.choice(("big", "little")))
    elif way == 3:
        new += rng.choice(others)
    elif way == 4:
        del new[at : at + length]
    elif way == 5:
        new[at:at] = new[at : at + length] * rng.choice((1, 1000))
    elif way == 6:
        new[at:at] = rng.randbytes(length)
    else:  # a value in a text
        digits = [place for place, byte in enumerate(new[:4000]) if chr(byte).isdigit()] or [at]
        at = rng.choice(digits)
        end = at + 1
        while end < len(new) and chr(new[end]) in "0123456789.":
            end += 1
        new[at:end] = rng.choice(NUMBERS)
    return bytes(new)


class Readers:
    """Everything that reads files. A method gives a right result, or raises."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run = Path(shutil.copytree(run, folder / "run"))
        self.whole = run
        self.model = CalibratedPredictor(run)
        self.demo = app.launch(run)
        self.client = httpx.Client(base_url=f"{self.demo.local_url}gradio_api", timeout=60)

    def image(self, path: Path) -> None:
        pixels = decode_image(path, image_size=(32, 48))
        assert (pixels.shape, pixels.dtype) == ((32, 48, 3), np.uint8)
        assert open_image(path, self.model.info).pixels.shape == (32, 32, 3)

    def page(self, path: Path) -> None:
        """As other programs ask the demo; its error is one line without a folder."""
        with path.open("rb") as file:
            uploaded = self.client.post("/upload", files={"files": (path.name, file)})
        assert uploaded.status_code == 200, uploaded.text
        image = {"path": uploaded.json()[0], "meta": {"_type": "gradio.FileData"}}
        for endpoint in ("predict", "explain"):
            event = self.client.post(f"/call/{endpoint}", json={"data": [image]}).json()["event_id"]
            answer = self.client.get(f"/call/{endpoint}/{event}").text
            if "event: error" in answer:
                assert str(path.parent) not in answer and "Traceback" not in answer, answer
                raise InputError(answer.splitlines()[-1])
            if endpoint == "predict":
                (said,) = json.loads(answer.split("data: ")[1])
                shares = [one["probability"] for one in said["diagnoses"]]
                assert math.isclose(sum(shares), 1, abs_tol=1e-6), said

    def body(self, path: Path) -> None:
        """The file itself as a request."""
        kind = {"content-type": "application/json"}
        for place in ("/call/predict", "/queue/join", "/run/predict", "/upload"):
            answer = self.client.post(place, content=path.read_bytes(), headers=kind)
            assert answer.status_code < 500, f"{place}: {answer.status_code} {answer.text[:200]}"
        if answer.status_code >= 400:
            raise InputError(answer.text)

    def table(self, path: Path) -> None:
        readers = (
            *(read_metadata, read_split, read_any_split),
            *(partial(read, info=HAM10000) for read in (read_isic, read_truth)),
        )
        refusals = []
        for read in (*readers, read_near_duplicates):
            try:
                assert len(read(path)) >= 0
            except InputError as error:
                refusals.append(error)
        if len(refusals) > len(readers):
            raise refusals[0]

    def in_run(self, path: Path) -> None:
        """In the place of each file of the run that has its kind."""
        names = {
            ".csv": ("splits.csv", "history.csv", "predictions_test.csv"),
            ".json": ("config.json", "evaluation/metrics.json"),
        }
        for name in names.get(path.suffix, ()):
            shutil.copy(path, self.run / name)
            try:
                self._read_run()
            finally:
                shutil.copy(self.whole / name, self.run / name)

    def _read_run(self) -> None:
        run = Run.find(self.run)
        assert run.config.image_size and isinstance(run.description["precision"], str)
        assert run.dataset is None or run.dataset.is_dir()
        assert len(run.history.columns) >= 0
        ids = list(run.rows("test")["image_id"])
        assert run.read_predictions("test", ids).shape == (len(ids), 7)
        find_operating_point(self.model.calibration, run.metrics)

    def in_bundle(self, path: Path) -> None:
        """In the place of the file of the saved model that has its kind."""
        name = BUNDLE[path.suffix]
        bundle = self.run / "model"
        shutil.copy(path, bundle / name)
        try:
            if name != "SHA256SUMS":
                seal(bundle)
            run = Run.find(self.run)
            assert run.info.image_size == (32, 32)
            assert 0.01 < load_calibration(run).temperature < 100
            if name == "model.keras":
                model = CalibratedPredictor(run)
                y_prob = model.predictor.predict_images(np.zeros((1, 32, 32, 3), np.uint8)).y_prob
                assert math.isclose(y_prob.sum(), 1, abs_tol=1e-3)
        finally:
            for whole in (self.whole / "model").iterdir():
                shutil.copy(whole, bundle / whole.name)


def judge(read: Callable[[Path], None], path: Path) -> tuple[str, str]:
    """What a reader gave: `right` or `refused`, or `wrong` and why."""
    try:
        read(path)
    except InputError as error:
        if "\n" in str(error):
            return "wrong", f"several lines: {error!r}"
        return "refused", ""
    except BaseException as error:
        return "wrong", repr(error)[:400]
    return "right", ""


def make_files(run: Path, data: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` names and contents: every valid file once, then changed ones."""
    rng = random.Random(0)
    images = make_images(next(data.glob("HAM10000_images_part_1/*.jpg")))
    seeds = images | make_others(run, data)
    # A network takes a second to load: one of twenty is enough.
    often = [name for name in seeds if name != "model.keras"]
    yield from seeds.items()
    for number in range(count - len(seeds)):
        name = rng.choice(often) if number % 20 else "model.keras"
        yield name, change(seeds[name], list(images.values()), rng)


def main() -> None:
    """Feed all files, and print what came of it."""
    run, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    readers = Readers(run, folder)
    data = Run.find(run).dataset
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.register(signal.SIGXCPU, chain=True)  # shows where it was, then ends
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for number, (name, content) in enumerate(make_files(run, data, count)):
        path = folder / f"{number}.{name}"
        path.write_bytes(content)
        is_text = path.suffix in (".csv", ".json", ".yaml", ".SHA256SUMS")
        ways = [readers.table, readers.in_run] if is_text else [readers.image, readers.page]
        if path.suffix in BUNDLE:
            ways.append(readers.in_bundle)
        if is_text or number % 5 == 0:
            ways.append(readers.body)
        for read in ways:
            # Processor time: it does not pass while the machine stands still.
            end = math.ceil(time.process_time()) + SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
            outcome, why = judge(read, path)
            counts[f"{read.__name__} {outcome}"] += 1
            if outcome == "wrong":
                wrong.append(f"{path.name}, {read.__name__}: {why}")
    readers.demo.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    print(json.dumps({"files": count, "peak_mb": peak, "counts": counts, "wrong": wrong}))


if __name__ == "__main__":
    main()
