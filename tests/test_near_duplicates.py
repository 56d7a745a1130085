"""Images of one lesion under different ids: found on drawn lesions and on real ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA, needs_real_data
from PIL import Image, ImageDraw

from skinlesion.data.dataset import list_images, load_metadata
from skinlesion.data.near_duplicates import (
    MIN_AGREEMENT,
    Shot,
    compare_shots,
    find_near_duplicates,
    propose_pairs,
    read_near_duplicates,
)
from skinlesion.data.split import merge_lesions
from skinlesion.files import InputError

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")


def agree(one, other):
    matches, correlation = compare_shots(Shot(one), Shot(other))
    return matches * correlation >= MIN_AGREEMENT


@pytest.fixture(scope="module")
def table(sample):
    return load_metadata(sample)


def shots_of(table, same):
    """Pairs of images: of one lesion each, or of different lesions of one class."""
    key = "lesion_id" if same else "dx"
    pairs = []
    for _, rows in table.groupby(key):
        first, last = rows.iloc[0], rows.iloc[-1]
        if (first["lesion_id"] == last["lesion_id"]) == same and len(rows) > 1:
            pairs.append((first["path"], last["path"]))
    return pairs


def test_shots_of_one_drawn_lesion_agree_and_those_of_others_do_not(table):
    same, different = shots_of(table, same=True), shots_of(table, same=False)
    assert len(same) >= 15 and len(different) == 7
    assert np.mean([agree(*pair) for pair in same]) > 0.6
    assert not any(agree(*pair) for pair in different)


@pytest.fixture
def textured(tmp_path):
    """A photograph-like texture, and ways to change it."""
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(60, 200, (75, 100, 3), np.uint8))
    base = noise.resize((600, 450), Image.Resampling.BICUBIC)

    def save(name, image):
        path = tmp_path / name
        image.save(path, quality=90)
        return path

    return base, save


def test_a_turned_zoomed_shifted_and_darkened_copy_is_recognised(textured):
    base, save = textured
    changed = base.rotate(40, Image.Resampling.BICUBIC, translate=(25, -10)).crop(
        (60, 45, 540, 405)
    )
    darker = changed.resize((600, 450)).point(lambda value: int(value * 0.7))
    assert agree(save("a.jpg", base), save("b.jpg", darker))


def test_a_ruler_alone_does_not_make_two_images_one(textured, tmp_path):
    _, save = textured
    pictures = []
    for seed in (1, 2):
        smooth = np.random.default_rng(seed).integers(120, 180, (4, 5, 3), np.uint8)
        image = Image.fromarray(smooth).resize((600, 450), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for tick in range(60):
            height = 26 if tick % 5 == 0 else 13
            draw.line([(60 + 8 * tick, 400), (60 + 8 * tick, 400 - height)], fill="black", width=2)
        pictures.append(save(f"{seed}.png", image))
    assert not agree(*pictures)


def test_an_image_without_structure_agrees_with_nothing(tmp_path):
    Image.new("RGB", (600, 450), "pink").save(tmp_path / "a.png")
    assert compare_shots(Shot(tmp_path / "a.png"), Shot(tmp_path / "a.png")) == (0, 0.0)


def test_proposals_are_the_nearest_of_other_lesions_once_each():
    features = np.array([[0.0, 1], [0.1, 1], [0.2, 1], [5, -1], [5.1, -1], [-5, -1]])
    lesions = ["a", "a", "b", "c", "d", "e"]
    pairs, similarity = propose_pairs(features, lesions, 1)
    found = {tuple(pair) for pair in pairs.tolist()}
    assert {(0, 2), (1, 2), (3, 4)} <= found
    assert (0, 1) not in found  # one lesion
    assert all(one < other for one, other in found)
    assert len(found) == len(pairs) == len(similarity)
    assert similarity.max() <= 1 + 1e-6


def test_a_dataset_is_searched(table, tmp_path):
    """With the ids of lesions hidden, the pairs found are shots of one lesion."""
    hidden = table.assign(lesion_id=table["image_id"])
    rng = np.random.default_rng(0)
    of_lesion = {lesion: rng.normal(size=16) for lesion in table["lesion_id"]}
    features = np.stack([of_lesion[lesion] for lesion in table["lesion_id"]])
    features += 0.1 * rng.normal(size=features.shape)
    found = find_near_duplicates(hidden, features, neighbours=6)
    lesion = table.set_index("image_id")["lesion_id"]
    assert len(found) > 30
    same = lesion[found["image_id_1"]].to_numpy() == lesion[found["image_id_2"]].to_numpy()
    assert same.all()
    found.to_csv(tmp_path / "pairs.csv", index=False)
    merged = merge_lesions(hidden, read_near_duplicates(tmp_path / "pairs.csv"))
    assert merged.nunique() < len(hidden) - 20
    assert list(found.columns) == [
        *(f"{name}_{side}" for side in (1, 2) for name in ("image_id", "lesion_id", "dx")),
        "similarity",
        "matches",
        "correlation",
    ]


def test_nothing_found_is_an_empty_list(table):
    features = np.random.default_rng(0).normal(size=(len(table), 8))
    found = find_near_duplicates(table, features, neighbours=10)
    assert found.empty
    assert "image_id_1" in found


class TestList:
    def test_the_packages_own_is_about_pairs_of_images(self):
        pairs = read_near_duplicates()
        assert len(pairs) > 50
        ends = pairs[["image_id_1", "image_id_2"]].to_numpy().tolist()
        assert len({frozenset(pair) for pair in ends}) == len(pairs)
        assert (pairs["matches"] * pairs["correlation"] >= MIN_AGREEMENT - 0.01).all()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image_id_1\na\n", "columns missing: image_id_2"),
            ("image_id_1,image_id_2\na,\n", "empty in line 2"),
            ("image_id_1,image_id_2\n,b,\n", "empty in line 2"),  # a comma too much
            ("", "cannot be read"),
        ],
    )
    def test_bad_files_are_refused(self, tmp_path, text, message):
        (tmp_path / "pairs.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_near_duplicates(tmp_path / "pairs.csv")


@needs_real_data
class TestOnHam10000:
    def test_listed_pairs_agree_and_show_different_ids(self):
        pairs, images = read_near_duplicates(), list_images(Path(REAL_DATA))
        metadata = pd.read_csv(Path(REAL_DATA) / "HAM10000_metadata.csv")
        lesion = metadata.set_index("image_id")["lesion_id"]
        ends = [pairs[f"image_id_{side}"] for side in (1, 2)]
        assert (lesion[ends[0]].to_numpy() != lesion[ends[1]].to_numpy()).all()
        for row in pairs.iloc[::9].itertuples():
            assert agree(images[row.image_id_1], images[row.image_id_2]), row

    def test_images_drawn_at_random_do_not_agree(self):
        table = load_metadata(Path(REAL_DATA)).drop_duplicates("lesion_id")
        drawn = [Shot(path) for path in table["path"].sample(24, random_state=0)]
        agreeing = [
            (one.path, other.path)
            for index, one in enumerate(drawn)
            for other in drawn[:index]
            if np.prod(compare_shots(one, other)) >= MIN_AGREEMENT
        ]
        assert not agreeing
