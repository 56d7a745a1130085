import hashlib
import json

import numpy as np
import pytest

from skinlesion.files import InputError
from skinlesion.model.bundle import find_bundle, load_bundle, save_bundle


def test_run_and_bundle_are_both_accepted(trained_run):
    assert find_bundle(trained_run) == find_bundle(trained_run / "model")
    info = load_bundle(trained_run / "model").info
    assert info.image_size == (97, 97)
    assert info.synthetic


def test_a_reloaded_model_gives_the_same_probabilities(trained_run, tmp_path):
    bundle = load_bundle(trained_run)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 97, 97, 3)).astype("float32")
    before = bundle.model.predict_on_batch(pixels)
    # Over what an interrupted run may have left there.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "junk").write_text("")
    again = load_bundle(save_bundle(bundle, tmp_path / "model"))
    assert np.allclose(again.model.predict_on_batch(pixels), before, atol=1e-6)
    assert again.info == bundle.info
    assert again.model.input_shape == (None, 97, 97, 3)


def test_missing_checksums_are_noticed(run_copy):
    (run_copy / "model" / "SHA256SUMS").write_text("")
    with pytest.raises(InputError, match=r"model\.keras: damaged or changed"):
        load_bundle(run_copy)


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
    digests = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model.keras", "bundle.json")
    ]
    (folder / "SHA256SUMS").write_text("".join(digests))
    with pytest.raises(InputError, match="made for labels"):
        load_bundle(run_copy)
