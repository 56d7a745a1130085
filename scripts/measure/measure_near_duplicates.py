"""Measure how many near duplicates the search finds, on pairs that are known.

    .venv/bin/python scripts/measure/measure_near_duplicates.py --data DIR --weights FILE

HAM10000 has 1,956 lesions with several images under one lesion id. The search looks for such pairs
under different ids, so the share of the known pairs that it proposes and verifies estimates the
share of the unknown pairs that it finds. Random pairs of different lesions show how often it errs.
"""

import argparse
from pathlib import Path

import numpy as np

from skinlesion.data.dataset import load_metadata
from skinlesion.data.near_duplicates import MIN_AGREEMENT, NEIGHBOURS, Shot, compare_shots
from skinlesion.model.resnet50 import compute_features

VERIFIED, RANDOM = 600, 4000


def known_pairs(lesions: np.ndarray) -> np.ndarray:
    """All pairs of rows of one lesion: int (p, 2)."""
    order = np.argsort(lesions, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(lesions[order])) + 1)
    pairs = [(a, b) for rows in groups for i, a in enumerate(rows) for b in rows[:i]]
    return np.array(pairs)


def ranks(features: np.ndarray, lesions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """How many images of other lesions are nearer, from the better of both sides: int (p,)."""
    unit = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)

    def nearer(one: int, other: int) -> int:
        similarity = unit @ unit[one]
        return int((similarity[lesions != lesions[one]] > similarity[other]).sum())

    return np.array([min(nearer(a, b), nearer(b, a)) for a, b in pairs])


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", required=True, metavar="FILE")
    arguments = parser.parse_args()
    table = load_metadata(arguments.data)
    paths = list(table["path"])
    lesions = np.unique(table["lesion_id"], return_inverse=True)[1]
    features = compute_features(paths, weights=arguments.weights)
    pairs = known_pairs(lesions)
    proposed = ranks(features, lesions, pairs) < NEIGHBOURS
    print(f"pairs of one lesion id: {len(pairs):,}; proposed: {proposed.mean():.1%}")

    rng = np.random.default_rng(0)
    shots: dict[int, Shot] = {}

    def agree(one: int, other: int) -> bool:
        for row in (one, other):
            shots.setdefault(row, Shot(paths[row]))
        return bool(np.prod(compare_shots(shots[one], shots[other])) >= MIN_AGREEMENT)

    chosen = rng.choice(len(pairs), VERIFIED, replace=False)
    verified = np.array([agree(*pairs[row]) for row in chosen])
    both = (verified & proposed[chosen]).mean()
    print(f"of {VERIFIED} drawn from them, verified: {verified.mean():.1%}; both: {both:.1%}")
    drawn = rng.integers(0, len(paths), (RANDOM, 2))
    drawn = drawn[lesions[drawn[:, 0]] != lesions[drawn[:, 1]]]
    wrong = sum(agree(*pair) for pair in drawn)
    print(f"of {len(drawn):,} random pairs of different lesion ids, taken for one: {wrong}")


if __name__ == "__main__":
    main()
