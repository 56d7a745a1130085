"""Drawings of lesions, for the synthetic sample.

The images are stylised drawings, not skin. With them, every command can be run and tested without
the real data. Each class has its own outline and structures. Skin tone, lesion tone, brightness and
lighting are drawn from the same ranges for all classes: a classifier has to use shapes and
textures, because the mean colour is almost uninformative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = (300, 225)
"""Width and height in pixels: half of HAM10000's 600 x 450."""


# A lesion is drawn once on a square of this side, large enough for any rotation, shift and zoom.
_CANVAS = 448
_RADIUS = (62.0, 84.0)

Array = NDArray[np.floating]
Rng = np.random.Generator
ImageAndMask = tuple[Image.Image, Image.Image]
Layer = tuple[Array, Array]  # a colour (3,) and its opacity (_CANVAS, _CANVAS), both in 0..1


@dataclass(frozen=True)
class _Traits:
    """What a class looks like before its structures are painted."""

    lobes: float  # how far the outline bulges in and out, in radii
    ragged: float  # small-scale raggedness of the outline, in radii
    softness: float  # width of the fading border, in radii
    opacity: float  # how much of the skin the pigment covers
    age: float  # mean age of the patients
    paint: Callable[[_Lesion], Iterator[Layer]]  # its structures, bottom to top


@dataclass(frozen=True)
class _Lesion:
    """The canvas that structures are painted on; coordinates are in lesion radii."""

    rng: Rng
    x: Array  # (_CANVAS, _CANVAS)
    y: Array
    body: Array  # 1 inside the outline, 0 outside, soft in between
    dark: Array  # colour (3,) of pigmented structures
    pale: Array  # colour (3,) of scale, scars and milia


def _noise(rng: Rng, cells: int) -> Array:
    """Return smooth noise, of unit variance at its knots: `cells` bumps along each side."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC))


def _step(values: Array, edge: float, width: float) -> Array:
    """Rise linearly from 0 to 1 over `width` around `edge`."""
    return np.clip((values - edge) / width + 0.5, 0, 1).astype(np.float32)


def _hsv(hue: float, saturation: float, value: float) -> Array:
    """Return one colour as RGB in 0..1; the hue wraps around."""
    sectors = (np.array([5, 3, 1]) + 6 * (hue % 1.0)) % 6
    ramp = np.clip(np.minimum(sectors, 4 - sectors), 0, 1)
    return (value * (1 - saturation * ramp)).astype(np.float32)


def _lattice(lesion: _Lesion, period: float, warp: float) -> Array:
    """Return a hexagonal lattice in -0.5..1, with peaks at the nodes and valleys between them."""
    x = lesion.x + warp * period * _noise(lesion.rng, 14)
    y = lesion.y + warp * period * _noise(lesion.rng, 14)
    angles = lesion.rng.uniform(0, np.pi) + np.arange(3) * np.pi / 3
    waves = [np.cos(2 * np.pi / period * (x * np.cos(a) + y * np.sin(a))) for a in angles]
    return (sum(waves) / 3).astype(np.float32)


def _discs(lesion: _Lesion, count: int, reach: float, radius: float) -> Array:
    """Return the opacity of `count` spots, spread like sunflower seeds up to `reach` radii."""
    rng, seeds = lesion.rng, np.arange(count) + 0.5
    angles = rng.uniform(0, 2 * np.pi) + seeds * np.pi * (3 - np.sqrt(5))
    centres = reach * np.sqrt(seeds / count) * np.stack([np.cos(angles), np.sin(angles)])
    centres += 0.3 * radius * rng.standard_normal((2, count))
    dents = 1 + 0.15 * _noise(rng, 40)
    spots = np.zeros_like(lesion.x)
    for (x, y), size in zip(centres.T, radius * rng.uniform(0.6, 1.3, count), strict=True):
        distance = np.hypot(lesion.x - np.float32(x), lesion.y - np.float32(y))
        np.maximum(spots, _step(dents - distance / np.float32(size), 0.15, 0.4), out=spots)
    return spots


def _strokes(size: tuple[int, int], lines: list[tuple[Array, int]]) -> Array:
    """Return the opacity (height, width) of soft lines, each with points (n, 2) and a width."""
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for points, width in lines:
        draw.line([(float(x), float(y)) for x, y in points], fill=255, width=width, joint="curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / 255


def _walk(rng: Rng, start: Array, heading: float, steps: int, stride: float, bend: float) -> Array:
    """Return a wandering line from `start`, points (steps, 2)."""
    headings = heading + np.cumsum(rng.normal(0, bend, steps))
    moves = stride * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return (start + np.cumsum(moves, axis=0)).astype(np.float32)


def _akiec(lesion: _Lesion) -> Iterator[Layer]:
    """Actinic keratosis: a patchy base under broken parallel streaks of cream-coloured scale."""
    rng, angle = lesion.rng, lesion.rng.uniform(0, np.pi)
    across = lesion.x * np.cos(angle) + lesion.y * np.sin(angle) + 0.05 * _noise(rng, 20)
    streaks = _step(np.cos(2 * np.pi * across / 0.42) + 0.3 * _noise(rng, 60), 0.35, 0.9)
    yield lesion.dark, 0.4 * lesion.body * _step(_noise(rng, 24), 0.5, 1.0)
    yield lesion.pale, 0.8 * lesion.body * streaks * _step(_noise(rng, 28), -0.5, 0.8)


def _bcc(lesion: _Lesion) -> Iterator[Layer]:
    """Basal cell carcinoma: translucent, with blue-grey nests and branching vessels on top."""
    yield _hsv(0.64, 0.25, 0.4), 0.7 * lesion.body * _discs(lesion, 4, 0.75, 0.26)
    rng, scale = lesion.rng, 1 / float(lesion.x[0, 1] - lesion.x[0, 0])
    lines: list[tuple[Array, int]] = []
    for heading in rng.uniform(0, 2 * np.pi) + np.arange(4) * np.pi / 2 + rng.normal(0, 0.2, 4):
        start = _CANVAS / 2 - scale * 1.15 * np.array([np.cos(heading), np.sin(heading)])
        trunk = _walk(rng, start, heading, 14, scale * 0.075, 0.2)
        lines.append((trunk, 4))
        for knot, side in ((3, 0.9), (6, -0.9), (9, 0.8)):
            lines.append((_walk(rng, trunk[knot], heading + side, 8, scale * 0.07, 0.2), 2))
    yield _hsv(0.98, 0.8, 0.55), 0.8 * _strokes((_CANVAS, _CANVAS), lines)


def _bkl(lesion: _Lesion) -> Iterator[Layer]:
    """Benign keratosis: sharply bordered, sprinkled with white milia and dark comedo openings."""
    yield lesion.dark, 0.85 * lesion.body * _discs(lesion, 9, 0.85, 0.15)
    yield lesion.pale, 0.8 * lesion.body * _discs(lesion, 16, 0.9, 0.13)


def _df(lesion: _Lesion) -> Iterator[Layer]:
    """Dermatofibroma: a white scar-like centre inside a delicate ring of pigment."""
    distance = np.hypot(lesion.x, lesion.y) + 0.06 * _noise(lesion.rng, 20)
    yield lesion.dark, 0.35 * lesion.body * _step(-_lattice(lesion, 0.24, 0.15), 0.15, 0.4)
    yield lesion.pale, 0.9 * _step(-distance, -lesion.rng.uniform(0.42, 0.58), 0.35)


def _mel(lesion: _Lesion) -> Iterator[Layer]:
    """Melanoma: dark blotches on one side, a blue-grey veil on the other, a coarse network."""
    rng, angle = lesion.rng, lesion.rng.uniform(0, 2 * np.pi)
    side = lesion.x * np.cos(angle) + lesion.y * np.sin(angle)
    yield lesion.dark, 0.45 * lesion.body * _step(-_lattice(lesion, 0.36, 0.5), 0.15, 0.3)
    yield 0.6 * lesion.dark, 0.9 * lesion.body * _step(side + 0.3 * _noise(rng, 16), 0.15, 0.3)
    veil = np.hypot(lesion.x + 0.4 * np.cos(angle), lesion.y + 0.4 * np.sin(angle))
    yield _hsv(0.61, 0.25, 0.55), 0.7 * lesion.body * _step(-veil, -0.4, 0.4)


def _nv(lesion: _Lesion) -> Iterator[Layer]:
    """Naevus: round and even, with a regular pigment network."""
    yield lesion.dark, 0.75 * lesion.body * _step(-_lattice(lesion, 0.36, 0.12), 0.2, 0.4)


def _vasc(lesion: _Lesion) -> Iterator[Layer]:
    """Vascular lesion: a cluster of well-defined red to purple lacunae."""
    lacunae = _discs(lesion, 10, 0.75, 0.33)
    yield lesion.dark, 0.9 * lacunae
    yield _hsv(lesion.rng.uniform(0.92, 1.0), 0.75, 0.65), 0.75 * _step(lacunae, 0.9, 0.2)


TRAITS = {
    "akiec": _Traits(lobes=0.12, ragged=0.10, softness=0.30, opacity=0.65, age=66, paint=_akiec),
    "bcc": _Traits(lobes=0.10, ragged=0.04, softness=0.50, opacity=0.55, age=67, paint=_bcc),
    "bkl": _Traits(lobes=0.10, ragged=0.03, softness=0.08, opacity=0.90, age=64, paint=_bkl),
    "df": _Traits(lobes=0.05, ragged=0.03, softness=0.45, opacity=0.75, age=53, paint=_df),
    "mel": _Traits(lobes=0.28, ragged=0.10, softness=0.15, opacity=0.85, age=61, paint=_mel),
    "nv": _Traits(lobes=0.05, ragged=0.02, softness=0.25, opacity=0.80, age=46, paint=_nv),
    "vasc": _Traits(lobes=0.08, ragged=0.03, softness=0.30, opacity=0.45, age=51, paint=_vasc),
}
"""What each class of HAM10000 looks like, by its code."""


def draw_lesion(rng: Rng, code: str) -> ImageAndMask:
    """Draw a lesion of class `code` on skin; return the RGB canvas and its mask (0 or 255)."""
    traits = TRAITS[code]
    radius = rng.uniform(*_RADIUS)
    y, x = (np.mgrid[:_CANVAS, :_CANVAS].astype(np.float32) - _CANVAS / 2) / np.float32(radius)
    angle = np.arctan2(y, x)
    outline = 1 + traits.ragged * _noise(rng, 56)
    for k in range(2, 6):
        bulge, phase = rng.normal(0, traits.lobes), rng.uniform(0, 2 * np.pi)
        outline += np.float32(bulge * 1.5 / k) * np.cos(k * angle + np.float32(phase))
    depth = 1 - np.hypot(x, y) / np.clip(outline, 0.5, 1.6)
    body = _step(depth, 0.0, traits.softness)
    skin = _hsv(rng.normal(0.03, 0.03), rng.uniform(0.2, 0.5), rng.uniform(0.68, 0.97))
    tone = _hsv(rng.normal(0.01, 0.04), rng.uniform(0.45, 0.75), rng.uniform(0.35, 0.6))
    shade = 1 + 0.03 * _noise(rng, 8) + 0.02 * _noise(rng, 60)
    image = skin * shade[..., None]
    dark, pale = tone * np.float32(0.4), (0.25 * skin + 0.75).astype(np.float32)
    lesion = _Lesion(rng, x, y, body, dark, pale)
    blotchy = np.clip(traits.opacity * body * (1 + 0.12 * _noise(rng, 14)), 0, 1)
    for colour, opacity in ((tone, blotchy), *traits.paint(lesion)):
        image += (colour - image) * opacity[..., None]
    # Dark or pale structures shift the mean brightness, which would reveal the class: it is drawn
    # again from one range for all classes. The limit keeps dark lesions from becoming too bright.
    gain = np.float32(rng.uniform(0.32, 0.46)) / image[depth > 0].mean()
    image *= 1 + (np.minimum(gain, 1.6) - 1) * body[..., None]
    mask = Image.fromarray(np.where(depth > 0, 255, 0).astype(np.uint8))
    return _to_picture(image), mask


def _to_picture(image: Array) -> Image.Image:
    """Clip values to 0..1 and scale them to 0..255."""
    return Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def photograph(rng: Rng, canvas: Image.Image, mask: Image.Image) -> ImageAndMask:
    """Take one shot of a drawn lesion, with its own rotation, shift, zoom and light; with mask."""
    width, height = IMAGE_SIZE
    turn, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.2)
    a, b = np.cos(turn) / zoom, np.sin(turn) / zoom
    cx, cy = _CANVAS / 2 + rng.uniform(-16, 16, 2)
    matrix = (a, -b, cx - (a * width - b * height) / 2, b, a, cy - (b * width + a * height) / 2)
    affine = Image.Transform.AFFINE
    picture = canvas.transform(IMAGE_SIZE, affine, matrix, Image.Resampling.BILINEAR)
    image = np.asarray(picture, np.float32) / 255
    hairs = [
        (_walk(rng, rng.uniform(0, IMAGE_SIZE), rng.uniform(0, 2 * np.pi), 30, 5.0, 0.06), 1)
        for _ in range(max(0, int(rng.integers(-4, 8))))
    ]
    image = image * (1 - 0.7 * _strokes(IMAGE_SIZE, hairs))[..., None]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light = np.float32(rng.uniform(0.85, 1.1))
    light = light * (1 + rng.uniform(-0.06, 0.06) * x + rng.uniform(-0.06, 0.06) * y)
    light *= 1 - rng.uniform(0, 0.25) * (x**2 + y**2) / 2
    if rng.random() < 0.1:  # the black surround of a round field of view
        light *= _step(-np.hypot(x * width / height, y), -rng.uniform(1.2, 1.35), 0.04)
    image = image * light[..., None] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    image += rng.normal(0, 0.012, image.shape).astype(np.float32)
    return _to_picture(image), mask.transform(IMAGE_SIZE, affine, matrix)
