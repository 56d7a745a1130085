import json

import numpy as np
import pytest
from conftest import seal

from skinlesion.files import InputError
from skinlesion.model.run import Run


def test_a_run_and_its_model_folder_are_both_found(trained_run):
    assert Run.find(trained_run).model_dir == Run.find(trained_run / "model").model_dir
    assert Run.find(trained_run / "model").has_split
    info = Run.find(trained_run).info
    assert info.image_size == (32, 32)
    assert info.synthetic


def test_a_saved_model_by_itself_is_found(run_copy, tmp_path):
    alone = (run_copy / "model").rename(tmp_path / "alone")
    run = Run.find(alone)
    assert run.info.recipe == "default"
    assert run.metrics is None
    with pytest.raises(InputError, match="is not a run folder"):
        _ = run.split


def test_a_reloaded_model_gives_the_same_probabilities(trained_run, tmp_path):
    run = Run(trained_run)
    model = run.load_model()
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    before = model.predict_on_batch(pixels)
    # Over what an interrupted run may have left there.
    copy = Run(tmp_path)
    copy.model_dir.mkdir()
    (copy.model_dir / "junk").write_text("")
    copy.save_model(model, run.info)
    again = copy.load_model()
    assert np.allclose(again.predict_on_batch(pixels), before, atol=1e-6)
    assert copy.info == run.info
    assert again.input_shape == (None, 32, 32, 3)


def test_a_calibration_survives_and_leaves_the_network_as_it_is(run_copy):
    run, other = Run(run_copy), Run(run_copy)
    digest = run.digest
    arrays = {"mean": np.arange(3, dtype="float32"), "precision": np.eye(3, dtype="float32")}
    assert other.info == run.info
    run.save_calibration({"temperature": 2.0}, arrays)
    assert other.info.calibration == {"temperature": 2.0}
    values, read = run.read_calibration()
    assert values == {"temperature": 2.0}
    assert read["mean"].tolist() == [0, 1, 2]
    assert run.digest == digest


def test_missing_checksums_are_noticed(run_copy):
    (run_copy / "model" / "SHA256SUMS").write_text("")
    with pytest.raises(InputError, match=r"model\.keras: damaged or changed"):
        Run(run_copy).load_model()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.keras", Run.load_model),
        ("bundle.json", lambda run: run.info),
        ("calibration.npz", Run.read_calibration),
    ],
)
def test_damage_is_noticed(run_copy, name, read):
    path = run_copy / "model" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: damaged or changed"):
        read(Run(run_copy))


def test_the_current_folder_can_be_a_run(trained_run, monkeypatch):
    monkeypatch.chdir(trained_run)
    assert Run.find(".").is_finished


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file; name the folder of a run"):
        Run(tmp_path / "file")


def test_a_folder_in_a_run_that_does_not_exist_is_not_taken_for_the_run(trained_run):
    with pytest.raises(InputError, match="modle: no such folder"):
        Run.find(trained_run / "modle")


def test_nothing_trained_says_how_to_train(tmp_path):
    with pytest.raises(InputError, match="skinlesion train"):
        Run.find(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        Run.find(tmp_path / "nowhere")


def test_an_unfinished_run_says_how_to_continue(run_copy):
    (run_copy / "model" / "bundle.json").unlink()
    with pytest.raises(InputError, match="not finished; continue it"):
        Run.find(run_copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["nv", "mel"]}, "names and malignant: must be given for each of 2 labels"),
        ({"image_size": "large"}, "does not fit this version"),
        ({"surprise": 1}, "does not fit this version"),
    ],
)
def test_another_description_of_the_model_is_refused(run_copy, changes, message):
    path = run_copy / "model" / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    seal(path.parent)
    with pytest.raises(InputError, match=message) as caught:
        _ = Run(run_copy).info
    assert "\n" not in str(caught.value)


def test_the_dataset_is_remembered_while_it_is_there(trained_run, sample, tmp_path):
    assert Run(trained_run).dataset == sample.resolve()
    assert Run(tmp_path / "nothing").dataset is None


def test_predictions_come_in_the_order_that_is_asked_for(run_copy):
    run = Run(run_copy)
    y_prob = np.eye(7)[[0, 3]]
    run.write_predictions("test", ["a", "b"], y_prob)
    assert run.read_predictions("test", ["b", "a"]).argmax(axis=1).tolist() == [3, 0]
    with pytest.raises(InputError, match="not predicted yet"):
        run.read_predictions("test", ["a", "b"], tta=True)
