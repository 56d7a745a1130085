"""Compare ways to decode and resize JPEG files, in speed and in pixels.

    .venv/bin/python -m pip install simplejpeg opencv-python-headless pyvips[binary]
    .venv/bin/python scripts/measure/bench_decoders.py --out decoders.json

Without --images the files are drawn, as in `bench_input_pipeline.py`. Each way gives 224x224
pixels. Two threads share the files, as in `load_images`. The difference is the mean, in grey
levels, from Pillow's decoding at full size. Libraries that are not installed are left out.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from bench_input_pipeline import draw_images
from benchmark import measure, report
from PIL import Image

from skinlesion.data.images import decode_image

SIZE = (224, 224)
THREADS = 2
Way = Callable[[Path], np.ndarray]


def decode_full_size(path: Path) -> np.ndarray:
    """Pillow without the decoder's reduction."""
    with Image.open(path, formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def decode_only(path: Path) -> np.ndarray:
    """Pillow's decoding, reduced where it can be, without resizing: the least that is needed."""
    with Image.open(path, formats=("JPEG",)) as image:
        image.draft("RGB", SIZE)
        return np.asarray(image.convert("RGB"))


def find_ways() -> dict[str, Way]:
    """Ours, and one for each library that is installed."""
    ways: dict[str, Way] = {
        "ours (Pillow)": lambda path: decode_image(path, image_size=SIZE),
        "Pillow, full size": decode_full_size,
        "Pillow, decoding only": decode_only,
    }
    with contextlib.suppress(ImportError):
        import cv2
        import simplejpeg

        cv2.setNumThreads(1)

        def decode_turbo(path: Path) -> np.ndarray:
            least = {"min_height": SIZE[0], "min_width": SIZE[1], "min_factor": 1}
            image = simplejpeg.decode_jpeg(path.read_bytes(), **least)
            return cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA)

        ways["simplejpeg and OpenCV"] = decode_turbo
    with contextlib.suppress(ImportError, OSError):  # OSError: without the library itself
        import pyvips

        ways["libvips"] = lambda path: pyvips.Image.thumbnail(
            str(path), SIZE[1], height=SIZE[0], size="force"
        ).numpy()
    with contextlib.suppress(ImportError):
        import tensorflow as tf

        def decode_tensorflow(path: Path) -> np.ndarray:
            image = tf.io.decode_jpeg(tf.io.read_file(str(path)), channels=3, ratio=2)
            return tf.image.resize(image, SIZE, antialias=True).numpy()

        ways["TensorFlow"] = decode_tensorflow
    return ways


def count(pool: Executor, way: Way, paths: list[Path]) -> int:
    """Decode, and return the number of images."""
    return len(list(pool.map(way, paths)))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="files (default: 200)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or Path(folder)
        if not arguments.images:
            draw_images(images / "sample")
        compare(sorted(images.rglob("*.jpg"))[: arguments.count], arguments)


def compare(paths: list[Path], arguments: argparse.Namespace) -> None:
    """Measure and report all ways on these files."""
    if not paths:
        raise SystemExit("no .jpg file in the folder")
    ways = find_ways()
    expected = [decode_full_size(path).astype(float) for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        medians = measure(
            {name: partial(count, pool, way, paths) for name, way in ways.items()},
            repeat=arguments.repeat,
        )
    ours = medians["ours (Pillow)"]
    differences = {
        f"difference, {name}": round(
            float(
                np.mean([np.abs(way(p) - e).mean() for p, e in zip(paths, expected, strict=True)])
            ),
            2,
        )
        for name, way in ways.items()
        if name != "Pillow, decoding only"
    }
    report(
        medians,
        {f"{name}, against ours": ours / median for name, median in medians.items()},
        item="image",
        out=arguments.out,
        threads=THREADS,
        mean_kilobytes=round(np.mean([path.stat().st_size for path in paths]) / 1000, 1),
        **differences,
    )


if __name__ == "__main__":
    main()
