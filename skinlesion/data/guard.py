"""What a file may cost while it is decoded: few pixels can still keep a decoder busy for minutes.

docs/demo.md gives the times that these limits leave.
"""

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from skinlesion.files import InputError

MAX_SCANS = 50
"""Scans of a JPEG; progressive ones have about 10. Each is a pass over all pixels."""
MAX_SEGMENTS = 20_000
"""Segments of a JPEG; colour profiles and previews take some hundred."""
MAX_EXIF = 2**17
"""Bytes of EXIF data. A JPEG usually has at most 64 KiB, without which nothing is turned upright.
Entries may overlap, so reading them takes up to the square of this."""
EXIF_BLOCKS = 3
"""Blocks of EXIF data in a JPEG, of 64 KiB each."""

_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""The start of a segment of a JPEG. Within a scan, 255 is never followed by such a byte."""


class GuardedFile(io.BufferedReader):
    """An image file of which Pillow can read only so often and so much.

    Pillow reads the parts of a file in loops of Python. A file of millions of empty parts, or one
    whose parts overlap, would keep it busy for minutes, or fill the memory.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be opened.
        InputError: it is a JPEG with more than `MAX_SCANS` scans or `EXIF_BLOCKS` blocks of EXIF.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path))
        self.refusal = InputError(
            f"{Path(path).name}: has too many parts; save it again as JPEG or PNG"
        )
        size = Path(path).stat().st_size
        # A PNG has a few reads for each of its blocks of 8 KiB, a TIFF one for each row or tile.
        self.reads, self.bytes = 20_000 + size // 2048, 2**24 + 4 * size
        if self.peek(2)[:2] == b"\xff\xd8":
            self._require_simple_jpeg(Path(path).read_bytes())

    def _require_simple_jpeg(self, content: bytes) -> None:
        """Walk the segments up to the end of the image; phones append a film to some."""
        at = scans = exif = 0
        for _ in range(MAX_SEGMENTS):
            found = _MARKER.search(content, at)
            if not found or (scans and found[0] == b"\xff\xd9"):
                return
            scans += found[0] == b"\xff\xda"
            exif += content.startswith(b"Exif\0\0", found.end() + 2)
            if scans > MAX_SCANS or exif > EXIF_BLOCKS:
                break
            has_length = found[0] not in (b"\xff\xd8", b"\xff\xd9")
            length = int.from_bytes(content[found.end() : found.end() + 2], "big")
            at = found.end() + (length if has_length else 0)
        self.close()
        raise self.refusal

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual, or raise `InputError` if the file was read too often or too much."""
        content = super().read(size)
        self.reads, self.bytes = self.reads - 1, self.bytes - len(content)
        if self.reads < 0 or self.bytes < 0:
            raise self.refusal
        return content


def require_compiled(image: Image.Image, name: str) -> None:
    """Check that an opened image is not one that Pillow decodes in Python, pixel by pixel.

    Args:
        image: from `Image.open`.
        name: of the file, for the message.

    Raises:
        InputError: it is a BMP with run-length encoding.
    """
    tiles: Any = getattr(image, "tile", None)
    if tiles and tiles[0][0] == "bmp_rle":
        raise InputError(f"{name}: a BMP with run-length encoding; save it as JPEG or PNG")


def require_little_exif(image: Image.Image, name: str) -> None:
    """Raise `InputError` if a decoded image has more than `MAX_EXIF` bytes of EXIF data."""
    if len(image.info.get("exif", b"")) > MAX_EXIF:
        raise InputError(f"{name}: has too much EXIF data; save it again without it")
