"""From an image file to pixels: the only code that decodes images for the network."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from skinlesion.config import Resize
from skinlesion.data.cache import MEMORY_BUDGET, make_array, make_key
from skinlesion.data.guard import GuardedFile, require_compiled, require_little_exif
from skinlesion.files import InputError, name_some, stat_file
from skinlesion.machine import progress_bar

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded. HAM10000's have 270,000 pixels."""
MAX_DECODED = 24_500_000
"""Most pixels after the decoder has reduced a JPEG; a dermatoscopic camera has 24 million. Decoding
takes up to 300 MB and 2 s (docs/demo.md)."""
MAX_WEBP = 17_000_000
"""The same for WebP, of which Pillow's decoder keeps four copies."""
DARKEST = 16
"""Images of 16 bits whose brightest value, of 255, is below this are refused: the values have 12
bits or fewer, so that the image would be black."""
CHUNK = 64
"""Images decoded at a time, so that memory use is bounded."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""The image formats that are opened, whatever a file is called. For EPS, Pillow would start
Ghostscript on a stranger's program."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""The usual endings of files in these formats."""

DECODER = "2"
"""Increase this when `decode_image` returns other pixels than before: old cache files become
invalid."""


def open_upright(path: str | Path, *, at_least: int | None = None) -> Image.Image:
    """Read an image file completely, turn it upright (EXIF) and convert it to RGB.

    Args:
        path: a file in one of `FORMATS`. Of an animation, the first frame is read.
        at_least: a length in pixels. The decoder may reduce a JPEG to a half, a quarter or an
            eighth while both sides stay at least this long. This takes half the time and changes
            pixels by 0.4 grey levels on average. None keeps the full size.

    Returns:
        An RGB image. Transparent pixels are white.

    Raises:
        InputError: the file is not an image, is truncated, has too many pixels, holds numbers whose
            range it does not declare, or would cost more than `guard` allows. The message names the
            file without its folder, so that the demo can show it.
    """
    name = Path(path).name
    try:
        with GuardedFile(path) as file, Image.open(file, formats=FORMATS) as image:
            _require_size(name, image, MAX_PIXELS)
            require_compiled(image, name)
            if at_least is not None:
                image.draft("RGB", (at_least, at_least))
            _require_size(name, image, MAX_WEBP if image.format == "WEBP" else MAX_DECODED)
            return _load_rgb(name, image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow refuses to open it
        raise InputError(
            f"{name}: hundreds of millions of pixels are too many; make it smaller than "
            f"{MAX_PIXELS // 1_000_000} million pixels"
        ) from error
    # On damaged files, Pillow's decoders raise SyntaxError, struct.error, IndexError, EOFError,
    # zlib.error and more.
    except Exception as error:
        # Without Pillow's own text, which contains the full path.
        reason = getattr(error, "strerror", None) or "damaged, truncated, or not an image"
        if isinstance(error, MemoryError):
            reason = "not enough memory"
        raise InputError(
            f"{name}: cannot be read as an image ({reason}); use a JPEG or PNG file"
        ) from error


def decode_image(
    path: str | Path, *, image_size: tuple[int, int], resize: Resize = "bilinear"
) -> np.ndarray:
    """Read an image file, turn it upright and resize it to the network's input.

    Training, evaluation and the demo all use this function, because decoders and resizers differ.
    Pillow's bilinear filter averages over all source pixels when it makes an image smaller.

    Args:
        path: a file in one of `FORMATS`.
        image_size: (height, width) in pixels.
        resize: `bilinear`, or `nearest` as in the original notebook.

    Returns:
        uint8 array of shape (height, width, 3), RGB. Transparent pixels are white.

    Raises:
        InputError: as `open_upright`.
    """
    height, width = image_size
    # EXIF may swap height and width, so both sides must be as long as the longer one.
    at_least = max(image_size) if resize == "bilinear" else None
    image = open_upright(path, at_least=at_least)
    return np.asarray(image.resize((width, height), RESAMPLING[resize]))


def load_images(
    paths: Sequence[str | Path],
    *,
    image_size: tuple[int, int],
    resize: Resize = "bilinear",
    cache: Path | None = None,
    budget: int = MEMORY_BUDGET,
) -> np.ndarray:
    """Decode many files on all cores.

    Args:
        paths: image files.
        image_size: (height, width) in pixels.
        resize: as for `decode_image`.
        cache: folder for a file with the decoded images, used if they take more than `budget`.
            Later calls use the file again until an image or `image_size` changes. None keeps all
            images in memory.
        budget: largest size in bytes that is kept in memory.

    Returns:
        uint8 array of shape (n, height, width, 3), in the order of `paths`.

    Raises:
        InputError: some files are not images (they are counted, and the first ones named), or
            the disk is full.
    """
    shape = (len(paths), *image_size, 3)
    chunks = _decode_chunks(paths, image_size, resize)
    key = make_key(DECODER, resize, str(image_size), *map(_stamp, paths)) if cache else ""
    return make_array(shape, np.uint8, chunks, key=key, folder=cache, budget=budget)


def _decode_chunks(
    paths: Sequence[str | Path], image_size: tuple[int, int], resize: Resize
) -> Iterator[np.ndarray]:
    """Yield the images in parts. Unreadable files are reported after all others were decoded."""
    errors: list[str] = []

    def load(path: str | Path) -> np.ndarray:
        try:
            return decode_image(path, image_size=image_size, resize=resize)
        except InputError as error:
            errors.append(str(error))
            return np.zeros((*image_size, 3), np.uint8)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar(None, "decoding images", len(paths)) as bar,
    ):
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            yield np.stack(list(pool.map(load, chunk)))
            bar.update(len(chunk))
    if len(errors) == 1:
        raise InputError(errors[0])
    if errors:
        named = name_some(sorted(errors), shown=3)
        raise InputError(f"{len(errors):,} images cannot be used: {named}")


def _stamp(path: str | Path) -> str:
    """Identify the version of a file without reading it: name, size and date."""
    status = stat_file(path)
    return f"{Path(path).name} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class ImageFacts:
    """What is in a file that should be an image.

    Attributes:
        sha256: of its bytes.
        problem: why it cannot be used: `empty`, `truncated`, or a reason in one line; empty if it
            can.
        format: name of its format, such as JPEG; empty if it is not an image.
        mode: Pillow's name of its colours, such as RGB or L (grey).
        size: width and height in pixels, such as `600x450`, as stored.
        thumbnail: uint8 (`THUMBNAIL`, `THUMBNAIL`, 3), RGB; None if there is a problem.
    """

    sha256: str = ""
    problem: str = ""
    format: str = ""
    mode: str = ""
    size: str = ""
    thumbnail: np.ndarray | None = None


THUMBNAIL = 8
"""Width and height in pixels of the thumbnails that tell alike images."""


def inspect_image(path: Path) -> ImageFacts:
    """Read a file completely and say what is in it, whatever it is called. Nothing is raised."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return ImageFacts(problem=f"cannot be opened ({error.strerror})")
    sha256, kind = hashlib.sha256(content).hexdigest(), ("", "", "")
    if not content:
        return ImageFacts(sha256, problem="empty")
    with suppress(Exception), Image.open(path, formats=FORMATS) as image:
        kind = (image.format or "", image.mode, f"{image.width}x{image.height}")
    try:
        whole = open_upright(path, at_least=4 * THUMBNAIL)  # says why the line above failed
    except InputError as error:
        is_cut = "truncated" in str(error.__cause__).lower()
        problem = "truncated" if is_cut else str(error).removeprefix(f"{path.name}: ")
        return ImageFacts(sha256, problem, *kind)
    thumbnail = whole.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return ImageFacts(sha256, "", *kind, np.asarray(thumbnail))


def inspect_images(paths: Sequence[Path]) -> list[ImageFacts]:
    """Inspect many files on all cores, in the order of `paths`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(progress_bar(pool.map(inspect_image, paths), "reading images", len(paths)))


def list_image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List what is directly in a folder.

    Returns:
        The image files, which have an ending of `ENDINGS` in upper or lower case or begin as an
        image does, and all other files and folders; both sorted. What is hidden is left out.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read as a folder ({error.strerror})") from error
    images = [path for path in paths if _seems_image(path)]
    found = set(images)
    return images, [path for path in paths if path not in found]


def _seems_image(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with GuardedFile(path) as file:
            Image.open(file, formats=FORMATS).close()
    except Exception:  # as in `open_upright`
        return False
    return True


def _require_size(name: str, image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise InputError(
            f"{name}: {image.width} x {image.height} pixels are too many; make it smaller than "
            f"{most / 1e6:g} million pixels"
        )


def _load_rgb(name: str, image: ImageFile.ImageFile) -> Image.Image:
    """Decode an opened file, upright and as RGB; refuse what would silently become black."""
    if image.mode in ("I", "F") and image.format != "PNG":
        raise InputError(
            f"{name}: holds numbers without a declared range ({image.mode}, 32 bits); save it with "
            "8 bits for each colour"
        )
    is_deep = image.mode.startswith("I") or ";16" in str(image.tile)
    image.load()
    require_little_exif(image, name)
    ImageOps.exif_transpose(image, in_place=True)
    rgb = _to_rgb(image)
    if is_deep and np.max(rgb.getextrema()) < DARKEST:
        raise InputError(
            f"{name}: its 16-bit values use the lowest 12 bits only, so that it would be black; "
            "save it with 8 bits for each colour"
        )
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")
