"""The one way from an image file to pixels, and from pixels to batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from skinlesion.config import Resize
from skinlesion.data.cache import MEMORY_BUDGET, make_array, make_key
from skinlesion.files import InputError, name_some
from skinlesion.machine import progress_bar

if TYPE_CHECKING:
    pass

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded; HAM10000's have 270,000 pixels."""
CHUNK = 64
"""Images that are decoded before the next ones are begun, so that memory stays bounded."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""The image formats that are opened, whatever a file is called. For EPS, Pillow would start
Ghostscript on a stranger's program."""

DECODER = "1"
"""Goes up when `decode_image` gives other pixels than before, so that no old cache is used."""


def decode_image(
    path: str | Path, *, image_size: tuple[int, int], resize: Resize = "bilinear"
) -> np.ndarray:
    """Read an image file, turn it upright (EXIF), and bring it to the network's size.

    Training, evaluation and the demo all use this function and no other, because decoders and
    resizers differ. Pillow's bilinear filter averages over all source pixels when it makes an
    image smaller. A JPEG of more than twice the size is halved by its decoder already, which takes
    half the time and changes pixels by 0.4 grey levels on average.

    Args:
        path: a file in one of `FORMATS`; the first frame of an animation.
        image_size: (height, width) in pixels.
        resize: `bilinear`, or `nearest` as the original did.

    Returns:
        uint8 array of shape (height, width, 3), RGB. Transparent pixels become white.

    Raises:
        InputError: the file is no image, is truncated, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{Path(path).name}: {image.width} x {image.height} pixels are too many; "
                    f"make it smaller than {MAX_PIXELS // 1_000_000} million pixels"
                )
            if resize == "bilinear":
                # Of a turned image height and width may change places: both may be the longer one.
                image.draft("RGB", (max(image_size), max(image_size)))
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow does not even open it
        raise InputError(
            f"{Path(path).name}: hundreds of millions of pixels are too many; make it smaller than "
            f"{MAX_PIXELS // 1_000_000} million pixels"
        ) from error
    # Pillow's decoders raise all kinds of errors on damaged files: SyntaxError, struct.error,
    # IndexError, EOFError, zlib.error and more.
    except Exception as error:
        # Not Pillow's own text: it holds the full path, which the demo must not show.
        reason = getattr(error, "strerror", None) or "damaged, cut off, or no image at all"
        raise InputError(
            f"{Path(path).name}: cannot be read as an image ({reason}); use a JPEG or PNG file"
        ) from error
    height, width = image_size
    return np.asarray(upright.resize((width, height), RESAMPLING[resize]))


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of an image file that `decode_image` has read, once upright."""
    with Image.open(path, formats=FORMATS) as image:
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if lies else (image.height, image.width)


def load_images(
    paths: Sequence[str | Path],
    *,
    image_size: tuple[int, int],
    resize: Resize = "bilinear",
    cache: Path | None = None,
    budget: int = MEMORY_BUDGET,
) -> np.ndarray:
    """Decode many files, each once, on all cores.

    Args:
        paths: image files.
        image_size: (height, width) in pixels.
        resize: as for `decode_image`.
        cache: folder for a file with the decoded images where they take more than `budget`; the
            file is used again until names, sizes or dates of the images change, or `image_size`.
            None keeps all in memory.
        budget: in bytes.

    Returns:
        uint8 array of shape (n, height, width, 3), in the order of `paths`.

    Raises:
        InputError: some files are no images; all of them are counted, the first ones named. Or
            there is no room for the file.
    """
    shape = (len(paths), *image_size, 3)
    chunks = _decode_chunks(paths, image_size, resize)
    key = make_key(DECODER, resize, str(image_size), *map(_stamp, paths)) if cache else ""
    return make_array(shape, np.uint8, chunks, key=key, folder=cache, budget=budget)


def _decode_chunks(
    paths: Sequence[str | Path], image_size: tuple[int, int], resize: Resize
) -> Iterator[np.ndarray]:
    """The images in parts; what cannot be read is told when all others were."""
    errors: list[str] = []

    def load(path: str | Path) -> np.ndarray:
        try:
            return decode_image(path, image_size=image_size, resize=resize)
        except InputError as error:
            errors.append(str(error))
            return np.zeros((*image_size, 3), np.uint8)

    starts = range(0, len(paths), CHUNK)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar(None, "decoding images", len(paths)) as bar,
    ):
        for start in starts:
            chunk = paths[start : start + CHUNK]
            yield np.stack(list(pool.map(load, chunk)))
            bar.update(len(chunk))
    if len(errors) == 1:
        raise InputError(errors[0])
    if errors:
        named = name_some(sorted(errors), shown=3)
        raise InputError(f"{len(errors):,} images cannot be used: {named}")


def _stamp(path: str | Path) -> str:
    """What tells a file from another one without reading it."""
    status = Path(path).stat()
    return f"{Path(path).name} {status.st_size} {status.st_mtime_ns}"


def find_unreadable(paths: Sequence[str | Path]) -> list[str]:
    """Why each file that is no whole image cannot be read, in the order of `paths`."""

    def read(path: str | Path) -> str | None:
        try:
            decode_image(path, image_size=(8, 8), resize="nearest")
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = progress_bar(pool.map(read, paths), "reading images", len(paths))
        return [reason for reason in reading if reason]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
