"""Small files that would keep a decoder busy for minutes are refused; unusual good ones are not."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from skinlesion.data.guard import EXIF_BLOCKS, MAX_EXIF, MAX_SCANS
from skinlesion.data.images import decode_image, open_upright
from skinlesion.files import InputError


def save(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.new("RGB", (64, 48), (200, 30, 30))).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data=b""):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_with(chunks):
    """A PNG with more chunks behind its header."""
    whole = save("PNG")
    return whole[:33] + chunks + whole[33:]


def gif_of_comments(count):
    whole = save("GIF", Image.new("P", (64, 48)))
    at = whole.index(b"\x2c")  # the first frame
    return whole[:at] + b"\x21\xfe" + b"\x01A" * count + b"\0" + whole[at:]


def jpeg_of_scans(count):
    whole = save("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (count - whole.count(b"\xff\xda") + 1) + whole[-2:]


def jpeg_of_exif(blocks):
    whole = save("JPEG")
    block = (
        b"\xff\xe1" + struct.pack(">H", 2 + 6 + 14) + b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0\0\0\0\0"
    )
    return whole[:2] + block * blocks + whole[2:]


def tiff_of_overlaps(tags, length):
    """A TIFF with tags that all hold the same `length` bytes, those of the file itself."""
    whole = save("TIFF")
    (start,) = struct.unpack("<I", whole[4:8])
    (count,) = struct.unpack("<H", whole[start : start + 2])
    entries = whole[start + 2 : start + 2 + 12 * count]
    entries += b"".join(struct.pack("<HHII", 40_000 + i, 7, length, 1) for i in range(tags))
    new = whole[:4] + struct.pack("<I", len(whole)) + whole[8:]
    new += struct.pack("<H", count + tags) + entries + bytes(4)
    return new + bytes(max(0, length + 1 - len(new)))


def bmp_of_runs(width, height):
    """A BMP with run-length encoding: each row is one run and the end of the line."""
    rows = b"\x01\x01\0\0" * height + b"\0\x01"
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    head = struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078)
    head += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + head + palette + rows


def decode(content, folder):
    (folder / "upload.jpg").write_bytes(content)
    return decode_image(folder / "upload.jpg", image_size=(8, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: gif_of_comments(100_000), "too many parts"),
        (lambda: png_with(chunk(b"prIv") * 100_000), "too many parts"),
        (lambda: save("JPEG")[:2] + b"\xff\xfe\0\x02" * 100_000 + save("JPEG")[2:], "too many"),
        (lambda: save("JPEG")[:2] + b"\xff" * 100_000 + save("JPEG")[2:], "too many parts"),
        (lambda: jpeg_of_scans(MAX_SCANS + 1), "too many parts"),
        (lambda: jpeg_of_exif(EXIF_BLOCKS + 1), "too many parts"),
        (lambda: tiff_of_overlaps(200, 300_000), "too many parts"),
        (lambda: png_with(chunk(b"eXIf", b"MM\0*" + bytes(MAX_EXIF))), "too much EXIF data"),
        (lambda: bmp_of_runs(7000, 7000), "run-length"),
    ],
)
def test_what_would_take_minutes_is_refused_at_once(content, message, tmp_path):
    """Each would take minutes at the 20 MB that the demo accepts, or fill the memory."""
    with pytest.raises(InputError, match=rf"^upload\.jpg: .*{message}"):
        decode(content(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        lambda: jpeg_of_scans(MAX_SCANS),
        lambda: jpeg_of_exif(EXIF_BLOCKS),
        lambda: gif_of_comments(1000),
        lambda: png_with(chunk(b"tEXt", b"note\0text") * 1000),
        lambda: save("MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        # A strip for each row, which Pillow reads one by one.
        lambda: save("TIFF", Image.new("L", (3, 15_000)), tiffinfo={278: 1}),
    ],
)
def test_what_is_only_unusual_is_read(content, tmp_path):
    assert decode(content(), tmp_path).shape == (8, 12, 3)


def test_a_large_png_in_many_blocks_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    content = save("PNG", Image.fromarray(noise), compress_level=0)
    data = b"".join(
        content[at + 8 : at + 8 + length]
        for at, length in _parts(content)
        if content[at + 4 : at + 8] == b"IDAT"
    )
    blocks = b"".join(chunk(b"IDAT", data[at : at + 4096]) for at in range(0, len(data), 4096))
    expected = decode(content, tmp_path)
    assert (decode(content[:33] + blocks + chunk(b"IEND"), tmp_path) == expected).all()


def _parts(content):
    """Place and length of each chunk of a PNG."""
    at = 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        yield at, length
        at += 12 + length


def test_a_photograph_with_a_film_behind_it_is_read(tmp_path):
    """As phones write it. In 12 MB of a film, the bytes of a marker occur by chance."""
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), "peru").save(path)
    with path.open("ab") as file:
        file.write(random.Random(0).randbytes(12_000_000))
    assert open_upright(path).size == (64, 48)
