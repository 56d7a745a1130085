"""Near duplicates: images that show one lesion under different lesion ids.

Such pairs are shifted, rotated, zoomed or lit differently, so hashes of the pixels miss them. A
pretrained network proposes candidates. Geometry verifies each of them: many local features must
agree on one similarity transform, and the images, aligned by it, must agree in their details.
`near_duplicates.csv` is the list for HAM10000; docs/near_duplicates.md says how it was made.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skinlesion.data.images import decode_image
from skinlesion.data.metadata import normalise_id
from skinlesion.files import InputError, name_some
from skinlesion.machine import progress_bar

COLUMNS = ("image_id_1", "image_id_2")
NEIGHBOURS = 50
"""Number of candidates for each image."""
SIZE = (300, 400)
"""(height, width) in pixels at which images are compared."""
BORDER = 20
"""Width in pixels of the ignored edge, where dermatoscopes print their marks."""
RATIO = 0.85
"""Largest ratio of the best distance of a match to the second best. D. Lowe, "Distinctive Image
Features from Scale-Invariant Keypoints", IJCV 60 (2004), section 7.1, proposes 0.8."""
MIN_MATCHES = 8
"""Least number of local features that agree on one transform."""
MIN_SPREAD = 6.0
"""Least standard deviation in pixels of the matched points across their main direction. It rejects
the ticks of a ruler, which many images share: they lie on a line."""
MIN_AGREEMENT = 5.6
"""Least product of the number of matches and the correlation of details. Chosen by looking at the
pairs near this value, see docs/near_duplicates.md."""


def read_near_duplicates(csv: Path | None = None) -> pd.DataFrame:
    """Read a list of pairs of images that show one lesion.

    Args:
        csv: a file with at least the columns `image_id_1` and `image_id_2`. None reads the list
            for HAM10000, which is part of this package.

    Raises:
        InputError: the file cannot be read, a column is missing, or a cell is empty.
    """
    source = csv or files("skinlesion.data") / "near_duplicates.csv"  # possibly inside a wheel
    try:
        with source.open() as file:
            pairs = pd.read_csv(file, dtype=dict.fromkeys(COLUMNS, str), index_col=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot be read as a list of pairs ({error})") from error
    absent = [column for column in COLUMNS if column not in pairs.columns]
    if absent:
        raise InputError(f"{source}: columns missing: {', '.join(absent)}")
    empty = [str(row + 2) for row in pairs.index[pairs[list(COLUMNS)].isna().any(axis=1)]]
    if empty:
        raise InputError(f"{source}: an image_id is empty in line {name_some(empty)}")
    return pairs.assign(**{column: pairs[column].map(normalise_id) for column in COLUMNS})


def merge_lesions(table: pd.DataFrame, pairs: pd.DataFrame | None) -> pd.Series:
    """Group each image: its lesion, merged with the lesions of its near duplicates.

    Args:
        table: metadata with `image_id` and `lesion_id`.
        pairs: `image_id_1` and `image_id_2`. Pairs with images that the table lacks are ignored.

    Returns:
        For each row the smallest `lesion_id` of its group.
    """
    if pairs is None or pairs.empty:
        return table["lesion_id"]
    lesions, lesion_of = np.unique(table["lesion_id"].astype(str), return_inverse=True)
    row_of = dict(zip(table["image_id"], lesion_of, strict=True))
    known = pairs[pairs["image_id_1"].isin(row_of) & pairs["image_id_2"].isin(row_of)]
    ends = [known[column].map(row_of).to_numpy(int) for column in ("image_id_1", "image_id_2")]
    edges = coo_array((np.ones(len(known)), ends), shape=(len(lesions), len(lesions)))
    component = connected_components(edges, directed=False)[1]
    names = pd.Series(lesions).groupby(component).transform("min")
    return pd.Series(names.to_numpy()[lesion_of], index=table.index)


def find_near_duplicates(
    table: pd.DataFrame, features: np.ndarray, *, neighbours: int = NEIGHBOURS
) -> pd.DataFrame:
    """Find pairs of images that have different lesion ids and show the same lesion.

    Args:
        table: from `load_metadata`.
        features: float (n, d), a description of each image by a pretrained network.
        neighbours: number of candidates for each image.

    Returns:
        One row for each pair: `image_id`, `lesion_id` and `dx` of both images (with the suffixes
        `_1` and `_2`), and the scores `similarity` (cosine of the features, -1 to 1), `matches`
        (number of local features that agree) and `correlation` (of the details, -1 to 1).

    Raises:
        InputError: OpenCV is missing, or a file is not an image.
    """
    require_opencv()
    pairs, similarity = propose_pairs(features, table["lesion_id"].to_numpy(), neighbours)
    with ThreadPoolExecutor() as pool:
        paths = table["path"].tolist()
        shots = list(progress_bar(pool.map(Shot, paths), "describing", len(paths)))
        scores = pool.map(lambda pair: compare_shots(shots[pair[0]], shots[pair[1]]), pairs)
        matches, correlation = np.array(
            list(progress_bar(scores, "verifying", len(pairs), unit="pairs"))
        ).T.reshape(2, -1)
    found = np.flatnonzero(matches * correlation >= MIN_AGREEMENT)
    sides = [
        table[["image_id", "lesion_id", "dx"]]
        .iloc[pairs[found, side]]
        .reset_index(drop=True)
        .add_suffix(f"_{side + 1}")
        for side in (0, 1)
    ]
    scored = pd.concat(sides, axis=1).assign(
        similarity=similarity[found].round(3),
        matches=matches[found].astype(int),
        correlation=correlation[found].round(3),
    )
    return scored.sort_values(list(COLUMNS), ignore_index=True)


def propose_pairs(
    features: np.ndarray, lesions: Sequence[str] | np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each image the nearest images of other lesions.

    Args:
        features: float (n, d).
        lesions: (n,), the lesion id of each image.
        neighbours: number of candidates for each image.

    Returns:
        Pairs of indices, int (p, 2), smaller index first, each pair once; and their similarity,
        float (p,): the cosine of the standardised features.
    """
    unit = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    unit = (unit / (np.linalg.norm(unit, axis=1, keepdims=True) + 1e-6)).astype(np.float32)
    lesion_of = np.unique(np.asarray(lesions), return_inverse=True)[1]
    pairs = []
    for start in range(0, len(unit), 1000):  # in blocks: the full matrix is too large
        similarity = unit[start : start + 1000] @ unit.T
        similarity[lesion_of[start : start + 1000, None] == lesion_of] = -np.inf
        count = min(neighbours, similarity.shape[1] - 1)
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        rows = np.repeat(np.arange(len(nearest)), count)
        other = np.isfinite(similarity[rows, nearest.ravel()])
        pairs.append(np.stack([rows + start, nearest.ravel()], axis=1)[other])
    unique = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return unique, np.einsum("pd,pd->p", unit[unique[:, 0]], unit[unique[:, 1]])


class Shot:
    """One photograph of a lesion and its local features (SIFT).

    Attributes:
        path: the image file.
        points: float32 (k, 2), x and y in pixels at `SIZE`.
        descriptors: float32 (k, 128), the square roots of normalised SIFT descriptors (RootSIFT:
            Arandjelovic and Zisserman, CVPR 2012). Their dot product is a similarity in [0, 1].
    """

    def __init__(self, path: Path) -> None:
        import cv2

        self.path = path
        detector = cv2.SIFT.create(nfeatures=400, contrastThreshold=0.01)
        keypoints, found = detector.detectAndCompute(_read_brightness(path).astype(np.uint8), None)
        self.points = np.array([point.pt for point in keypoints], np.float32).reshape(-1, 2)
        raw = np.zeros((0, 128), np.float32) if found is None else found
        self.descriptors = np.sqrt(raw / np.maximum(raw.sum(axis=1, keepdims=True), 1e-6))


def compare_shots(one: Shot, other: Shot) -> tuple[int, float]:
    """Measure how well two shots agree on one similarity transform (shift, rotation, zoom).

    Returns:
        The number of matched local features that agree, and the correlation, -1 to 1, of the
        details (3 to 15 pixels wide) in the overlap. (0, 0.0) if there are too few matches, or if
        they lie on a line.
    """
    import cv2

    if min(len(one.points), len(other.points)) < MIN_MATCHES:
        return 0, 0.0
    likeness = one.descriptors @ other.descriptors.T
    best = likeness.argmax(axis=1)
    first = likeness.max(axis=1)
    likeness[np.arange(len(best)), best] = -1
    # For unit vectors, the squared distance is 2 - 2 times the dot product.
    near = (1 - first) < RATIO**2 * (1 - likeness.max(axis=1))
    if near.sum() < MIN_MATCHES:
        return 0, 0.0
    source, target = one.points[near], other.points[best[near]]
    cv2.setRNGSeed(0)
    transform, agrees = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=5, maxIters=500
    )
    if transform is None:
        return 0, 0.0
    inside = agrees.ravel().astype(bool)
    matches = min(_distinct(source[inside]), _distinct(target[inside]))
    if matches < MIN_MATCHES or min(map(_spread, (source[inside], target[inside]))) < MIN_SPREAD:
        return 0, 0.0
    return matches, _correlate_details(one.path, other.path, transform)


def _distinct(points: np.ndarray) -> int:
    """Count points a few pixels apart. SIFT may return one point with several orientations."""
    return len(np.unique(np.round(points / 3), axis=0))


def _spread(points: np.ndarray) -> float:
    """Return the standard deviation across the main direction of the points, in pixels."""
    centred = points - points.mean(axis=0)
    return float(np.linalg.svd(centred, compute_uv=False)[-1] / np.sqrt(len(points)))


def _read_brightness(path: Path) -> np.ndarray:
    """Return the brightness at `SIZE`, float32 (height, width), 0 to 255."""
    return decode_image(path, image_size=SIZE).mean(axis=2).astype(np.float32)


def _correlate_details(one: Path, other: Path, transform: np.ndarray) -> float:
    import cv2

    height, width = SIZE
    # The images are read again: keeping the pixels of thousands of them would fill memory.
    moved = cv2.warpAffine(_read_brightness(one), transform, (width, height), flags=cv2.INTER_AREA)
    seen = cv2.warpAffine(np.ones_like(moved), transform, (width, height)) > 0.99
    seen[:BORDER] = seen[-BORDER:] = seen[:, :BORDER] = seen[:, -BORDER:] = False
    # Without the edge of the overlap, where the wide blur mixes in pixels from outside.
    overlap = cv2.erode(seen.astype(np.uint8), np.ones((31, 31)), borderValue=0) > 0
    if overlap.sum() < 2000:
        return 0.0
    details: list[Any] = [
        cv2.GaussianBlur(image, (0, 0), 3) - cv2.GaussianBlur(image, (0, 0), 15)
        for image in (moved, _read_brightness(other))
    ]
    return float(np.nan_to_num(np.corrcoef(details[0][overlap], details[1][overlap])[0, 1]))


def require_opencv() -> None:
    """Raise `InputError` when OpenCV is missing."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the search for near duplicates needs OpenCV: pip install opencv-python-headless"
        ) from error
