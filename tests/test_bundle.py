import json

import numpy as np
import pytest

from skinlesion.bundle import find_bundle, load_bundle
from skinlesion.errors import InputError


def test_run_and_bundle_are_both_accepted(trained_run):
    assert find_bundle(trained_run) == find_bundle(trained_run / "model")
    info = load_bundle(trained_run / "model").info
    assert info.image_size == (97, 97)
    assert info.synthetic


def test_a_reloaded_model_gives_the_same_probabilities(trained_run):
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 97, 97, 3)).astype("float32")
    first, second = (load_bundle(trained_run).model.predict_on_batch(pixels) for _ in range(2))
    assert np.array_equal(first, second)
    assert load_bundle(trained_run).model.input_shape == (None, 97, 97, 3)


@pytest.mark.parametrize("name", ["model.keras", "bundle.json"])
def test_damage_is_noticed(run_copy, name):
    path = run_copy / "model" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: damaged or changed"):
        load_bundle(run_copy)


def test_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="skinlesion train"):
        load_bundle(tmp_path)


def test_other_labels_are_refused(run_copy):
    folder = run_copy / "model"
    info = json.loads((folder / "bundle.json").read_text())
    info["labels"].reverse()
    (folder / "bundle.json").write_text(json.dumps(info))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text(sums[0] + "\n")
    with pytest.raises(InputError, match="made for labels"):
        load_bundle(run_copy)
