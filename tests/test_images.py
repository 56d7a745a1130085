import math
import os
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skinlesion.data.images import (
    MAX_DECODED,
    MAX_WEBP,
    decode_image,
    inspect_images,
    list_image_files,
    load_images,
    open_upright,
)
from skinlesion.files import InputError

RED, BLUE = (200, 30, 30), (30, 30, 200)


@pytest.fixture
def halves():
    """60x40 RGB, left half red, right half blue."""
    image = Image.new("RGB", (60, 40), BLUE)
    image.paste(RED, (0, 0, 30, 40))
    return image


def decode(image, path, **options):
    """Save as the format that the name says, and decode at 8x12."""
    image.save(path, **options)
    return decode_image(path, image_size=(8, 12))


def test_shape_type_and_order_of_channels(halves, tmp_path):
    pixels = decode(halves, tmp_path / "a.png")
    assert pixels.shape == (8, 12, 3)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[4, 1]) == RED
    assert tuple(pixels[4, 10]) == BLUE


def test_exif_orientation_is_applied(halves, tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # turned upside down
    pixels = decode(halves, tmp_path / "a.png", exif=exif)
    assert tuple(pixels[4, 1]) == BLUE


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA"])
def test_every_mode_becomes_rgb(halves, tmp_path, mode):
    name = "a.tiff" if mode == "CMYK" else "a.png"
    pixels = decode(halves.convert(mode), tmp_path / name)
    reference = np.asarray(halves.convert(mode).convert("RGB"))[20, 5]
    assert np.abs(pixels[4, 1].astype(int) - reference).max() <= 40


def test_black_and_white_becomes_grey_when_made_smaller(tmp_path):
    pixels = decode(Image.fromarray(np.indices((40, 60)).sum(axis=0) % 2 == 0), tmp_path / "a.png")
    assert np.abs(pixels.astype(int) - 127).max() <= 30


def test_transparent_pixels_become_white(tmp_path):
    pixels = decode(Image.new("RGBA", (60, 40), (0, 0, 0, 0)), tmp_path / "a.png")
    assert (pixels == 255).all()


def test_16_bit_grey_keeps_its_shades(tmp_path):
    grey = Image.fromarray(np.full((40, 60), 0x8000, np.uint16))
    pixels = decode(grey, tmp_path / "a.png")
    assert (np.abs(pixels.astype(int) - 127) <= 1).all()


GREY = np.linspace(0, 1, 40 * 60).reshape(40, 60)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("float.tif", GREY.astype(np.float32), "without a declared range"),
        ("nan.tif", np.full((40, 60), np.nan, np.float32), "without a declared range"),
        ("int32.tif", (GREY * 255).astype(np.int32), "without a declared range"),
        ("12bit.png", (GREY * 4095).astype(np.uint16), "use the lowest 12 bits only"),
        ("12bit.tif", (GREY * 4095).astype(np.uint16), "use the lowest 12 bits only"),
    ],
)
def test_numbers_that_would_become_black_are_refused(tmp_path, name, values, message):
    Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(InputError, match=f"^{name}: .*{message}.*save it with 8 bits"):
        decode_image(tmp_path / name, image_size=(8, 12))


def write_png_of_16_bit_colours(path, value):
    """60x40 pixels of one 16-bit grey value, as RGB; Pillow cannot write this."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    rows = (b"\0" + struct.pack(">H", value) * 3 * 60) * 40
    header = struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_16_bit_colours_are_scaled_and_12_bits_in_them_refused(tmp_path):
    write_png_of_16_bit_colours(tmp_path / "a.png", 0x8000)
    assert (decode_image(tmp_path / "a.png", image_size=(8, 12)) == 0x80).all()
    write_png_of_16_bit_colours(tmp_path / "b.png", 0x0FFF)
    with pytest.raises(InputError, match=r"b\.png: .* use the lowest 12 bits only"):
        decode_image(tmp_path / "b.png", image_size=(8, 12))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    pixels = decode(Image.new("RGBA", (60, 40), (0, 100, 200, 51)), tmp_path / "a.png")
    # A fifth of the colour and four fifths of white: 0.8 * 255 + 0.2 * (0, 100, 200).
    assert (pixels == (204, 224, 244)).all()


def test_nearest_takes_pixels_as_they_are(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    pixels = decode_image(tmp_path / "a.png", image_size=(4, 4), resize="nearest")
    assert set(np.unique(pixels)) <= set(range(64))
    assert (pixels[0, :, 0] == [9, 11, 13, 15]).all()


def test_a_large_jpeg_is_halved_by_its_decoder_but_looks_the_same(sample, tmp_path):
    with Image.open(next(sample.rglob("*.jpg"))) as image:
        image.resize((600, 450)).save(tmp_path / "large.jpg", quality=95)
        image.resize((600, 450)).save(tmp_path / "large.png")
    for size in ((224, 224), (168, 224), (64, 64)):
        jpeg, png = (
            decode_image(tmp_path / f"large.{ending}", image_size=size).astype(int)
            for ending in ("jpg", "png")
        )
        assert np.abs(jpeg - png).mean() < 1.5


def test_bilinear_averages_over_all_pixels(tmp_path):
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a.png")
    pixels = decode_image(tmp_path / "a.png", image_size=(8, 8))
    assert np.abs(pixels.astype(int) - 127).max() <= 16


def test_open_upright_turns_the_whole_image_and_keeps_its_size(halves, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # rotated by a quarter turn
    halves.save(tmp_path / "a.jpg", exif=exif)
    image = open_upright(tmp_path / "a.jpg")
    assert (image.mode, image.size) == ("RGB", (40, 60))
    assert image.getpixel((20, 5))[0] > 150  # the red half is at the top


def test_decode_image_is_the_resized_upright_image(halves, tmp_path):
    halves.save(tmp_path / "a.png")
    image = open_upright(tmp_path / "a.png").resize((12, 8), Image.Resampling.BILINEAR)
    assert (decode(halves, tmp_path / "a.png") == np.asarray(image)).all()


@pytest.mark.parametrize(("at_least", "size"), [(None, 256), (256, 256), (128, 128), (100, 128)])
def test_a_jpeg_is_reduced_only_down_to_the_size_that_is_needed(tmp_path, at_least, size):
    Image.new("RGB", (256, 256)).save(tmp_path / "a.jpg")
    assert open_upright(tmp_path / "a.jpg", at_least=at_least).size == (size, size)


def test_image_files_of_a_folder_are_found_by_ending_or_content(halves, tmp_path):
    names = ["b.JPG", "a.webp", "c.Tiff", "notes.txt", "d.gif", "e", ".hidden.png"]
    for name in names:
        (tmp_path / name).touch()
    halves.save(tmp_path / "f", format="JPEG")
    halves.save(tmp_path / "g.upload", format="WEBP")
    (tmp_path / "folder.png").mkdir()
    images, others = list_image_files(tmp_path)
    assert [path.name for path in images] == ["a.webp", "b.JPG", "c.Tiff", "d.gif", "f", "g.upload"]
    assert [path.name for path in others] == ["e", "folder.png", "notes.txt"]
    with pytest.raises(InputError, match="absent: cannot be read as a folder"):
        list_image_files(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"\xff\xd8\xff\xe0 cut off"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "upload.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"upload\.jpg: cannot be read as an image"):
        decode_image(tmp_path / "upload.jpg", image_size=(8, 12))


def test_a_truncated_image_is_refused(halves, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read"):
        decode_image(tmp_path / "a.jpg", image_size=(8, 12))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (10_000, 6_000)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="10000 x 6000 pixels are too many"):
        decode_image(tmp_path / "huge.png", image_size=(8, 12))


def test_only_a_jpeg_that_is_reduced_while_it_is_decoded_may_have_50_million_pixels(tmp_path):
    for ending in ("png", "jpg"):
        Image.new("L", (7_000, 6_000)).save(tmp_path / f"large.{ending}")
    assert decode_image(tmp_path / "large.jpg", image_size=(8, 12)).shape == (8, 12, 3)
    with pytest.raises(InputError, match=r"7000 x 6000 pixels .* smaller than 24.5 million"):
        decode_image(tmp_path / "large.png", image_size=(8, 12))
    assert inspect_images([tmp_path / "large.jpg"])[0].problem == ""


@pytest.mark.parametrize(
    ("name", "mode", "most"),
    [("a.webp", "RGBA", MAX_WEBP), ("a.png", "LA", MAX_DECODED), ("a.tif", "CMYK", MAX_DECODED)],
)
def test_the_largest_images_are_decoded_in_300_mb(name, mode, most, tmp_path):
    """Those that need most memory for each pixel, in a process of its own."""
    options: dict[str, Any] = {"lossless": True, "quality": 0, "method": 0, "compress_level": 1}
    side = math.isqrt(most)
    Image.new(mode, (side, side), (9,) * len(mode)).save(tmp_path / name, **options)
    program = (
        "import re, sys; from skinlesion.data.images import decode_image\n"
        "used = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = used(); decode_image(sys.argv[1], image_size=(224, 224), resize='nearest')\n"
        "print(used() - before)"
    )
    command = [sys.executable, "-c", program, tmp_path / name]
    asked = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert 3 * most / 1024 < int(asked.stdout) < 300 * 1000**2 / 1024  # KiB; the pixels, the limit


def test_an_image_that_vanishes_before_it_is_decoded_is_named(flat_data, tmp_path):
    paths = sorted(flat_data.rglob("*.jpg"))
    paths[3].unlink()
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(InputError, match=rf"{paths[3].name}: cannot be read .*No such file"):
            load_images(paths, image_size=(8, 12), cache=cache)


def test_many_images_keep_their_order(flat_data):
    paths = sorted(flat_data.rglob("*.jpg"))
    images = load_images(paths, image_size=(8, 12))
    assert images.shape == (98, 8, 12, 3)
    for index in (0, 17, 55):
        assert (images[index] == decode_image(paths[index], image_size=(8, 12))).all()


def test_damaged_images_are_all_counted(flat_data):
    paths = sorted(flat_data.rglob("*.jpg"))
    paths[3].write_bytes(b"no")
    paths[9].write_bytes(b"no")
    with pytest.raises(InputError, match=f"2 images cannot be used: {paths[3].name}"):
        load_images(paths, image_size=(8, 12))


def test_postscript_is_refused_before_ghostscript_is_started(tmp_path):
    """Pillow would start it on a stranger's program, here an endless loop."""
    script = tmp_path / "picture.jpg"
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n{ } loop\n")
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\nexit 1\n")
    ghostscript.chmod(0o755)
    program = (
        "from skinlesion.data.images import decode_image\n"
        f"decode_image({str(script)!r}, image_size=(8, 8))"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    asked = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError: picture.jpg: cannot be read as an image" in asked.stderr
    assert not (tmp_path / "started").exists()
