"""Measure OOD detection: on images without a lesion, and on the lesions of the test set.

    .venv/bin/python scripts/measure/measure_ood.py --run RUN --data DIR --out ood.csv

The images without a lesion are photographs that come with scikit-image, scikit-learn and matplotlib
and those in the folders named with `--photos` (docs/ood.md lists them), crops of these, and drawn
ones: noise, plain colours, skin colours, documents, and screenshots if Chromium is installed. They
are divided into two parts without a common photograph or drawing: the method was chosen on
`development`; `final` is for the result. The detector is fitted on lesions only.
"""

import argparse
import importlib.util
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import binomtest

from skinlesion.data.dataset import load_metadata
from skinlesion.data.split import join_split
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.evaluation.ood import OODDetector, is_in_distribution
from skinlesion.files import InputError, write_csv
from skinlesion.model.predictor import Predictor
from skinlesion.model.run import Run

PARTS = ("development", "final")
DRAWN = 100
"""Images of each drawn kind."""
SCREENSHOTS = 40
CROPS = 4
"""Crops of each photograph, beside the whole."""
SIZE = (450, 600)
"""Height and width in pixels of drawn images and of HAM10000's own."""

PHOTOGRAPHS = {
    "skimage": "astronaut brick camera chelsea clock_motion coffee coins grass gravel "
    "hubble_deep_field moon motorcycle_left rocket",
    "sklearn": "china flower",
    "matplotlib": "grace_hopper",
}
MEDICAL = "cell ihc microaneurysms retina"
"""Of scikit-image: fluorescent cells, a stained section, two images of the eye."""

SKIN = np.array(
    [
        (255, 224, 196),
        (241, 194, 168),
        (224, 172, 140),
        (198, 134, 104),
        (141, 85, 60),
        (86, 52, 40),
    ]
)
"""From light to dark, RGB."""


def main() -> None:
    """Print a row for each kind of image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="a row an image")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], metavar="DIR")
    parser.add_argument("--part", choices=PARTS, default="final")
    arguments = parser.parse_args()
    try:
        run = Run.find(arguments.run)
        detector = load_calibration(run).ood
        predictor = Predictor.load(run)
    except InputError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        rows = save_images(collect(arguments.part, arguments.photos), Path(folder))
        scores = detector.compute_scores(predictor.predict_files(list(rows["path"])).features)
    table = rows.assign(ood_score=scores, detected=~is_in_distribution(scores))
    table = table.drop(columns="path")
    write_csv(arguments.out, table)
    print(f"{'out of distribution, ' + arguments.part:32} images  from  detected (95 % interval)")
    for kind, part in [*table.groupby("kind", sort=False), ("all", table)]:
        shown = describe_share(part["detected"])
        print(f"{kind:32} {len(part):6,} {part.groupby(['kind', 'name']).ngroups:5,}  {shown}")
    if arguments.part == "final":
        print_lesions(predictor, detector, run, arguments.data)


def print_lesions(predictor: Predictor, detector: OODDetector, run: Run, data: Path) -> None:
    """Print the share of lesions in distribution, by diagnosis; validation was fitted on."""
    joined = join_split(load_metadata(data), run.split)
    for part in ("validation", "test"):
        rows = joined[joined["split"] == part]
        scores = detector.compute_scores(predictor.predict_files(list(rows["path"])).features)
        inside = pd.Series(is_in_distribution(scores), rows.index)
        print(f"\n{'lesions, ' + part:32} images        in distribution (95 % interval)")
        for code, group in [*inside.groupby(rows["dx"]), ("all", inside)]:
            print(f"{code:32} {len(group):6,}        {describe_share(group)}")


def describe_share(hits: pd.Series) -> str:
    """The share of hits with its Clopper-Pearson interval; images count as independent."""
    found = binomtest(int(hits.sum()), len(hits))
    low, high = found.proportion_ci(method="exact")
    return f"{found.statistic:7.1%} ({low:.1%} to {high:.1%})"


def save_images(images: Iterator[tuple[str, str, Image.Image]], folder: Path) -> pd.DataFrame:
    """Files as a user would upload them, JPEG of at most 1,200 pixels: kind, name, path."""
    rows = []
    for number, (kind, name, image) in enumerate(images):
        image.thumbnail((1200, 1200))
        path = folder / f"{number:05d}.jpg"
        image.save(path, quality=92)
        rows.append((kind, name, path))
    return pd.DataFrame(rows, columns=["kind", "name", "path"])


def collect(part: str, folders: list[Path]) -> Iterator[tuple[str, str, Image.Image]]:
    """The images without a lesion of one part: kind, name of its photograph or drawing, image."""
    seed = PARTS.index(part)
    for kind, paths in find_photographs(folders).items():
        for number, path in enumerate(paths[seed::2]):
            for image in crop(Image.open(path), np.random.default_rng([seed, number])):
                yield kind, path.name, image
    for kind, draw in DRAWINGS.items():
        for number in range(DRAWN):
            yield kind, f"{part} {number}", draw(np.random.default_rng([seed, number]))
    if shutil.which("chromium"):
        for number in range(SCREENSHOTS):
            image = shoot_page(np.random.default_rng([seed, number]))
            yield "screenshots", f"{part} {number}", image


def find_photographs(folders: list[Path]) -> dict[str, list[Path]]:
    """Kind to files, sorted by name."""
    places = {
        name: Path(importlib.util.find_spec(name).origin).parent  # type: ignore[union-attr,arg-type]
        for name in PHOTOGRAPHS
        if importlib.util.find_spec(name)
    }

    def find(place: Path, names: str) -> list[Path]:
        files = {p.stem: p for p in place.rglob("*") if p.suffix in (".png", ".jpg")}
        return [files[name] for name in names.split()]

    of_libraries = [p for name, place in places.items() for p in find(place, PHOTOGRAPHS[name])]
    found = {"photographs of libraries": of_libraries}
    if "skimage" in places:
        found["other medical images"] = find(places["skimage"], MEDICAL)
    for folder in folders:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg"))
        # Small files are icons; the rest of what is left out is drawn and no photograph.
        found[folder.name] = [
            p for p in files if p.stat().st_size > 15_000 and "cartoon" not in str(p)
        ]
    return found


def crop(photograph: Image.Image, rng: np.random.Generator) -> Iterator[Image.Image]:
    """The whole photograph and parts of it, of 20 to 60 % of its sides."""
    whole = photograph.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    yield whole
    for _ in range(CROPS):
        share = rng.uniform(0.2, 0.6)
        width, height = (int(share * side) for side in whole.size)
        left, top = (int(rng.uniform(0, 1 - share) * side) for side in whole.size)
        yield whole.crop((left, top, left + width, top + height))


def blobs(rng: np.random.Generator, cells: int, channels: int = 1) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1: float (height, width, channels)."""
    height, width = SIZE
    coarse = rng.normal(size=(channels, cells, max(1, cells * width // height)))
    layers = [
        np.asarray(Image.fromarray(layer.astype(np.float32)).resize((width, height), 3))
        for layer in coarse
    ]
    field = np.stack(layers, axis=-1)
    return (field - field.mean()) / (field.std() + 1e-9)


def as_image(values: np.ndarray) -> Image.Image:
    """From values in [0, 255], also of one channel."""
    pixels = np.broadcast_to(values, (*SIZE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_noise(rng: np.random.Generator) -> Image.Image:
    """Noise of one of four kinds, grey or coloured, and of any scale."""
    kind, channels = rng.integers(4), rng.choice([1, 3])
    if kind == 0:
        return as_image(rng.integers(0, 256, (*SIZE, channels)))
    if kind == 1:
        return as_image(rng.normal(rng.uniform(60, 200), rng.uniform(10, 80), (*SIZE, channels)))
    if kind == 2:
        return as_image(255 * (rng.random((*SIZE, channels)) < rng.uniform(0.05, 0.95)))
    cells = int(rng.integers(3, 100))
    return as_image(rng.uniform(60, 200) + rng.uniform(20, 80) * blobs(rng, cells, channels))


def draw_plain(rng: np.random.Generator) -> Image.Image:
    """One colour, or a gradient between two."""
    one, other = rng.integers(0, 256, (2, 3))
    if rng.random() < 0.5:
        other = one
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] / np.array(SIZE).reshape(2, 1, 1)
    angle = rng.uniform(0, np.pi / 2)
    along = (rows * np.sin(angle) + columns * np.cos(angle)) / (np.sin(angle) + np.cos(angle))
    return as_image(one + (other - one) * along[..., np.newaxis])


def draw_skin(rng: np.random.Generator) -> Image.Image:
    """One skin colour, lit a little unevenly in half of the images."""
    light = 1 + rng.choice([0, 0.06]) * blobs(rng, 2)
    return as_image(draw_skin_colour(rng) * light)


def draw_skin_texture(rng: np.random.Generator) -> Image.Image:
    """A skin colour with blotches, grain and uneven light; no lesion."""
    values = draw_skin_colour(rng) * (1 + rng.uniform(0.02, 0.1) * blobs(rng, 2))
    for cells in (8, 40, 160):
        values = values + rng.uniform(1, 8) * blobs(rng, cells)
    return as_image(values + rng.normal(0, rng.uniform(1, 6), (*SIZE, 1)))


def draw_skin_colour(rng: np.random.Generator) -> np.ndarray:
    """Between two neighbours of `SKIN`: float (3,)."""
    step = rng.uniform(0, len(SKIN) - 1)
    return SKIN[int(step)] + (step % 1) * (SKIN[int(step) + 1] - SKIN[int(step)])


def draw_document(rng: np.random.Generator) -> Image.Image:
    """A page: heading, paragraphs, now and then a table or a chart; scanned or photographed."""
    height, width = 900, 1200
    paper = tuple(int(v) for v in 255 - rng.integers(0, 30, 3))
    page = Image.new("RGB", (width, height), paper)
    pen, top, ink = ImageDraw.Draw(page), 40, tuple(int(v) for v in rng.integers(0, 90, 3))
    while top < height - 60:
        size = int(rng.choice([14, 18, 24, 48], p=[0.4, 0.3, 0.2, 0.1]))
        kind = rng.random()
        if kind < 0.7:
            font = ImageFont.load_default(size)
            for _ in range(int(rng.integers(1, 8))):
                pen.text((60, top), write_words(rng, 1000 // size * 2)[: 2200 // size], ink, font)
                top += int(1.4 * size)
        elif kind < 0.85:
            for row in range(int(rng.integers(2, 6))):
                for left in range(60, width - 200, 180):
                    pen.rectangle((left, top, left + 180, top + 32), outline=ink)
                    cell = str(rng.integers(0, 10**6) if row else write_words(rng, 8))
                    pen.text((left + 8, top + 6), cell, ink, ImageFont.load_default(18))
                top += 32
        else:
            heights = rng.integers(10, 140, 12)
            colour = tuple(int(v) for v in rng.integers(0, 256, 3))
            for bar, value in enumerate(heights):
                left = 80 + 60 * bar
                pen.rectangle((left, top + 150 - int(value), left + 40, top + 150), colour)
            top += 160
        top += 24
    if rng.random() < 0.5:
        page = page.rotate(
            rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True, fillcolor=(90, 75, 60)
        )
    return page


def write_words(rng: np.random.Generator, letters: int) -> str:
    """Words without a meaning."""
    text = "".join(rng.choice(list("etaoinshrdlucmfwypvbgk"), letters))
    return " ".join(text[i : i + 5] for i in range(0, letters, 5)).capitalize()


def shoot_page(rng: np.random.Generator) -> Image.Image:
    """A drawn web page, form, listing or dark window, as Chromium shows it."""
    dark = rng.random() < 0.4
    back, ink = ("#1e1e24", "#d8dce4") if dark else ("#ffffff", "#202124")
    accent = "#" + "".join(f"{v:02x}" for v in rng.integers(0, 256, 3))
    blocks = []
    for _ in range(int(rng.integers(4, 14))):
        words = write_words(rng, int(rng.integers(20, 400)))
        blocks.append(
            str(
                rng.choice(
                    [
                        f"<h2>{words[:30]}</h2>",
                        f"<p>{words}</p>",
                        f"<pre>{words.replace(' ', chr(10) + '    ')[:300]}</pre>",
                        f"<p><input value='{words[:12]}'> <button>{words[:8]}</button></p>",
                        f"<div style='background:{accent};height:60px;border-radius:8px'></div>",
                        "<table border=1>"
                        + f"<tr><td>{words[:9]}<td>{words[9:20]}" * 5
                        + "</table>",
                    ]
                )
            )
        )
    html = (
        f"<body style='background:{back};color:{ink};font-family:sans-serif;margin:0'><div style="
        f"'background:{accent};padding:12px'>{write_words(rng, 30)}</div><div style='padding:20px;"
        f"columns:{rng.integers(1, 4)}'>{''.join(blocks)}</div></body>"
    )
    with tempfile.TemporaryDirectory() as folder:
        page, out = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(html)
        size = [(1200, 900), (1280, 720), (390, 844)][rng.integers(3)]
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={size[0]},{size[1]}", f"--screenshot={out}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return Image.open(io.BytesIO(out.read_bytes())).convert("RGB")


DRAWINGS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "noise": draw_noise,
    "plain colours, gradients": draw_plain,
    "plain skin colours": draw_skin,
    "textured skin colours": draw_skin_texture,
    "documents": draw_document,
}


if __name__ == "__main__":
    main()
