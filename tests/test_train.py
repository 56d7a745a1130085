"""Training: what it writes, keeps, trains and refuses."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import TINY
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinlesion.config import make_config
from skinlesion.data.copies import copy_images
from skinlesion.data.dataset import list_images, load_metadata
from skinlesion.data.ham10000 import HAM10000, METADATA_NAME
from skinlesion.data.isic_csv import read_isic
from skinlesion.data.split import SPLITS, make_split, read_split, write_split
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import calibrate
from skinlesion.evaluation.evaluate import evaluate
from skinlesion.files import InputError, read_json
from skinlesion.machine import LOCK_NAME
from skinlesion.model import callbacks
from skinlesion.model.callbacks import (
    Progress,
    Resume,
    TimeLimit,
    describe_duration,
    make_callbacks,
)
from skinlesion.model.datasets import balanced_class_weights, make_batches, make_datasets
from skinlesion.model.linear_probe import STRENGTHS, fit_linear_probe
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import WeightsUnavailableError, build_model, find_part
from skinlesion.model.run import Run
from skinlesion.model.train import begin_run, compile_model, finish_run, train
from skinlesion.model.trained import find_trained_run


def tiny(**changes):
    return make_config("default", **TINY | {"epochs": 2} | changes)


def random_batches(count, seed, *, shuffle=False):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return make_batches(
        images, rng.integers(0, 7, count).astype("int32"), np.ones(7), 8, shuffle=shuffle
    )


def fit(run, config):
    """Train on noise; returns the model and the history."""
    model = build_model(config, 7)
    training, validation = random_batches(24, 1, shuffle=True), random_batches(16, 2)
    compile_model(model, config, steps=len(training))
    callbacks = make_callbacks(run, config)
    options = {"epochs": config.epochs, "shuffle": False, "verbose": 0}
    model.fit(training, validation_data=validation, callbacks=callbacks, **options)
    return model, run.history


class TestBatches:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 0, 1, 2], np.int32)

    def make(self, shuffle):
        return make_batches(self.images, self.labels, np.arange(7) + 0.5, 4, shuffle=shuffle)

    def seen(self, dataset):
        """(image value, label, weight) of every item of one epoch."""
        return [
            (int(x[0, 0, 0]), int(y), float(w))
            for batch in dataset.as_numpy_iterator()
            for x, y, w in zip(*batch, strict=True)
        ]

    def test_shapes_and_types(self):
        dataset = self.make(False)
        assert len(dataset) == 3
        batches = list(dataset.as_numpy_iterator())
        assert [len(x) for x, _, _ in batches] == [4, 4, 2]
        x, y, w = batches[0]
        assert (x.dtype, x.shape) == (np.float32, (4, 4, 4, 3))
        assert (y.dtype, y.tolist(), w.dtype) == (np.int32, [0, 1, 2, 3], np.float32)

    def test_each_image_keeps_its_label_and_weight_in_another_order_each_epoch(self):
        dataset = self.make(True)
        random.seed(3)
        first, second = self.seen(dataset), self.seen(dataset)
        expected = [(i, c, c + 0.5) for i, c in enumerate(self.labels)]
        assert sorted(first) == sorted(second) == expected
        assert first != second
        random.seed(3)
        assert self.seen(dataset) == first

    def test_the_same_seed_gives_the_same_batches_in_each_epoch(self, sample):
        """Made twice, each time seeded before each epoch as `Resume` does."""
        config, split = tiny(limit=20), make_split(load_metadata(sample))
        one, other = [], []
        for seen in (one, other):
            training, validation = make_datasets(sample, split, config)
            for epoch in range(2):
                keras.utils.set_random_seed(config.seed + epoch)
                seen.append([*training.as_numpy_iterator(), *validation.as_numpy_iterator()])
        for ours, theirs in zip(one, other, strict=True):
            for batch, same in zip(ours, theirs, strict=True):
                assert all(map(np.array_equal, batch, same))
        assert not np.array_equal(one[0][0][0], one[1][0][0])  # another order in the next epoch

    def test_images_are_given_up_with_their_dataset(self):
        images = np.zeros((8, 4, 4, 3), np.uint8)
        dataset = make_batches(images, np.zeros(8, np.int32), np.ones(7), 4, shuffle=True)
        alive = weakref.ref(images)
        del images
        assert sum(len(batch) for batch, _, _ in dataset) == 8
        del dataset
        import gc

        gc.collect()
        assert alive() is None

    def test_balanced_weights_hand_worked(self):
        # 6 images: four nv (5), two mel (4): 6 / (2 classes * count).
        weights = balanced_class_weights(np.array([5, 5, 5, 5, 4, 4]), 7)
        assert weights.tolist() == [1, 1, 1, 1, 1.5, 0.75, 1]


class TestFit:
    @pytest.fixture(scope="class")
    def fitted(self, tmp_path_factory):
        """The folder of a run after `fit`, its history, and the steps that were traced."""
        traced, compute_loss = [], keras.Sequential.compute_loss

        def count(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            traced.append("training" if training else "validation")
            return compute_loss(self, x, y, y_pred, sample_weight, training)

        folder = tmp_path_factory.mktemp("fitted")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(keras.Sequential, "compute_loss", count)
            _, history = fit(Run(folder), tiny())
        return folder, history, traced

    def test_history_and_checkpoint_are_written(self, fitted):
        folder, history, _ = fitted
        assert history["epoch"].tolist() == [1, 2]
        assert set(history["phase"]) == {"from_scratch"}
        assert (history["images_per_second"] > 0).all()
        assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history)
        # Cosine: the last rate is far below the highest.
        assert history["learning_rate"].iloc[-1] < 1e-4
        # The last weights are kept, whatever their loss.
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        assert kept == {"epoch_0002.npz", "state.json"}
        assert list((folder / "tensorboard").rglob("events.*"))

    def test_early_stopping_ends_with_the_weights_of_the_best_epoch(self, tmp_path):
        # A rate so high that the loss jumps about.
        settings = {"scratch_learning_rate": 0.1, "early_stopping_patience": 2}
        config = tiny(epochs=30, schedule="plateau", **settings)
        model, history = fit(Run(tmp_path), config)
        assert len(history) < 30
        assert len(history) - 1 - history["val_loss"].idxmin() == 2
        model.compile(loss="sparse_categorical_crossentropy")
        loss = model.evaluate(random_batches(16, 2), verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(history["val_loss"].min(), rel=1e-3)

    def test_each_step_is_traced_once(self, fitted):
        """Python runs a step only while TensorFlow traces it."""
        if len(tf.config.list_logical_devices("GPU")) > 1:
            pytest.skip("with several GPUs, a step is traced for each")
        assert sorted(fitted[2]) == ["training", "validation"]

    def test_on_one_gpu_keras_would_choose_xla(self):
        """It has no kernel for rotation."""
        model = build_model(tiny(), 7)
        compile_model(model, tiny(), steps=3)
        assert model.jit_compile is False

    def test_the_original_has_the_original_callbacks(self, tmp_path):
        callbacks = make_callbacks(Run(tmp_path), make_config("original"))
        plateau = next(c for c in callbacks if isinstance(c, keras.callbacks.ReduceLROnPlateau))
        assert (plateau.monitor, plateau.patience, plateau.factor, plateau.min_lr) == (
            "val_accuracy",
            4,
            0.5,
            1e-4,
        )
        stopping = next(c for c in callbacks if isinstance(c, keras.callbacks.EarlyStopping))
        assert (stopping.monitor, stopping.patience) == ("val_loss", 3)
        assert stopping.restore_best_weights

    def test_all_callbacks_but_three_are_keras_own(self, tmp_path):
        ours = {
            type(callback)
            for callback in make_callbacks(Run(tmp_path), tiny())
            if not type(callback).__module__.startswith("keras.")
        }
        assert ours == {Progress, Resume, TimeLimit}

    def test_a_loss_that_is_no_number_stops_with_an_error(self, tmp_path):
        config = tiny()
        model = build_model(config, 7)
        layer = find_part(model, "head").get_layer("probabilities")
        layer.bias.assign(np.full(7, np.nan))
        compile_model(model, config, steps=3)
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            model.fit(
                random_batches(24, 1),
                validation_data=random_batches(16, 2),
                epochs=2,
                callbacks=make_callbacks(Run(tmp_path), config),
                verbose=0,
            )

    def test_frozen_layers_keep_their_weights(self, conv2_weights, tmp_path):
        config = tiny(
            weights=str(conv2_weights), fine_tune_from="conv2", linear_probe=False, epochs=1
        )
        before = find_part(build_model(config, 7), "backbone")
        before = {layer.name: layer.get_weights() for layer in before.layers if layer.weights}
        model, history = fit(Run(tmp_path), config)
        assert history["phase"].tolist() == ["fine_tuning"]
        changed = {
            layer.name
            for layer in find_part(model, "backbone").layers
            if layer.weights
            and not all(map(np.array_equal, layer.get_weights(), before[layer.name]))
        }
        assert {name for name in before if name.startswith("conv2") and "_conv" in name} == changed


class TestLinearProbe:
    @pytest.fixture(scope="class")
    def datasets(self, sample, tmp_path_factory):
        csv = tmp_path_factory.mktemp("probe") / "splits.csv"
        split = write_split(sample, csv)
        return make_datasets(sample, split, make_config("probe", **self.settings))

    settings = TINY | {"image_size": (64, 64)}

    @pytest.fixture(scope="class")
    def fitted(self, datasets, tmp_path_factory):
        config = make_config("probe", **self.settings)
        model = build_model(config, 7)
        before = model.get_weights()
        run = Run(tmp_path_factory.mktemp("probe"))
        table = fit_linear_probe(model, *datasets, run, config)
        return model, before, table, run

    def describe(self, model, dataset):
        classifier = find_part(model, "classifier")
        images, labels, _ = (
            np.concatenate(x) for x in zip(*dataset.as_numpy_iterator(), strict=True)
        )
        prepared = classifier.get_layer("preprocessing")(images)
        maps = classifier.get_layer("backbone").predict(prepared, verbose=0)
        return images, maps.mean(axis=(1, 2)).astype("float64"), labels

    def test_the_last_layer_says_what_scikit_learn_says(self, fitted, datasets):
        model, _, table, _ = fitted
        _, features, labels = self.describe(model, datasets[0])
        images, others, truth = self.describe(model, datasets[1])
        strength = table.loc[table["val_loss"].idxmin(), "C"]
        expected = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
        ).fit(features, labels)
        y_prob = model.predict(images, verbose=0)
        theirs = expected.predict_proba(others)
        assert np.allclose(y_prob, theirs, atol=2e-3)
        assert table["val_accuracy"][table["val_loss"].idxmin()] == pytest.approx(
            (theirs.argmax(axis=1) == truth).mean()
        )

    def test_only_the_last_layer_changes(self, fitted):
        model, before, _, _ = fitted
        after = model.get_weights()
        changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [False] * (len(before) - 2) + [True, True]

    def test_each_strength_is_in_the_table(self, fitted):
        _, _, table, run = fitted
        assert table["C"].tolist() == list(STRENGTHS)
        assert pd.read_csv(run.folder / "linear_probe.csv").shape == table.shape
        assert np.isfinite(table["val_loss"]).all()

    def test_a_class_without_training_images_is_never_predicted(self, tmp_path):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (24, 64, 64, 3), np.uint8)
        labels = np.where(np.arange(24) % 2, 1, 4).astype("int32")
        config = make_config("probe", **self.settings)
        model = build_model(config, 7)
        batches = make_batches(images, labels, np.ones(7), 8, shuffle=False)
        fit_linear_probe(model, batches, batches, Run(tmp_path), config)
        y_prob = model.predict(images.astype("float32"), verbose=0)
        assert np.allclose(y_prob[:, [1, 4]].sum(axis=1), 1)
        assert set(y_prob.argmax(axis=1)) == {1, 4}

    def test_images_of_one_class_are_refused(self, sample, tmp_path):
        config = make_config("probe", **self.settings | {"limit": 1})
        with pytest.raises(InputError, match="training images are all of one class; raise limit"):
            train(sample, tmp_path / "run", config)

    def test_training_starts_from_it(self, sample, conv2_weights, tmp_path):
        """At a rate of nearly 0, the first epoch ends where the linear probe ended."""
        config = tiny(
            weights=str(conv2_weights), epochs=1, learning_rate=1e-12, class_weights="none"
        )
        run = train(sample, tmp_path / "run", config)
        probe = pd.read_csv(run.folder / "linear_probe.csv")
        assert run.history["val_loss"][0] == pytest.approx(probe["val_loss"].min(), rel=1e-3)

    def test_the_recipe_probe_trains_nothing_else(self, sample, tmp_path):
        run = train(sample, tmp_path / "run", make_config("probe", **TINY))
        assert run.is_finished
        assert run.history.empty
        assert len(pd.read_csv(run.folder / "linear_probe.csv")) == len(STRENGTHS)


class TestRunFolder:
    def test_it_holds_what_the_contract_says(self, trained_run):
        names = {
            str(path.relative_to(trained_run))
            for path in trained_run.rglob("*")
            if path.is_file() and "tensorboard" not in path.parts
        }
        assert names == {
            "config.json",
            "environment.json",
            "splits.csv",
            "history.csv",
            "predictions_validation.csv",
            "model/model.keras",
            "model/bundle.json",
            "model/calibration.npz",
            "model/SHA256SUMS",
        }
        described = json.loads((trained_run / "config.json").read_text())
        assert described["dataset"]["synthetic"] is True
        assert described["versions"]["tensorflow"]
        packages = json.loads((trained_run / "environment.json").read_text())["packages"]
        assert packages["tensorflow"] == described["versions"]["tensorflow"]
        assert described["seed"] == described["config"]["seed"] == 42
        assert len(described["dataset"]["fingerprint"]) == 64
        split = read_split(trained_run / "splits.csv").set_index("image_id")["split"]
        names, y_prob = read_isic(trained_run / "predictions_validation.csv", HAM10000)
        assert set(names) == set(split.index[split == "validation"])
        assert np.allclose(y_prob.sum(axis=1), 1, atol=1e-5)

    def test_validation_predictions_are_those_of_the_files(self, trained_run, predictor, sample):
        names, y_prob = read_isic(trained_run / "predictions_validation.csv", HAM10000)
        images = list_images(sample)
        again = predictor.predict_files([images[name] for name in names]).y_prob
        assert np.allclose(again, y_prob, atol=1e-5)

    def test_a_finished_run_is_kept(self, sample, tiny_config, trained_run, capsys):
        before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
        train(sample, trained_run, tiny_config)
        train(None, trained_run, tiny_config)  # needs no dataset
        assert capsys.readouterr().out.count("finished already") == 2
        assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")} == before

    def test_the_steps_of_a_notebook_restore_a_finished_run(self, sample, tiny_config, trained_run):
        """Run All a second time trains nothing, and ends with the trained model."""
        run = Run(trained_run)
        before = run.history_path.read_bytes()
        model = build_model(tiny_config, 7)
        datasets = make_datasets(sample, run.split, tiny_config)
        compile_model(model, tiny_config, steps=len(datasets[0]))
        fit_linear_probe(model, *datasets, run, tiny_config)
        options = {"epochs": tiny_config.epochs, "shuffle": False, "verbose": 0}
        callbacks = make_callbacks(run, tiny_config)
        model.fit(datasets[0], validation_data=datasets[1], callbacks=callbacks, **options)
        saved = run.load_model().get_weights()
        assert all(map(np.array_equal, model.get_weights(), saved))
        assert run.history_path.read_bytes() == before

    def test_what_a_killed_process_left_of_a_finished_run_is_removed(
        self, sample, tiny_config, run_copy
    ):
        (run_copy / "checkpoints").mkdir()
        (run_copy / "checkpoints" / "epoch_0001.npz").touch()
        (run_copy / ".model.old").mkdir()
        (run_copy / LOCK_NAME).touch()
        (run_copy / f".{LOCK_NAME}").touch()
        os.utime(run_copy / LOCK_NAME, (0, 0))
        train(sample, run_copy, tiny_config)
        left = {"checkpoints", ".model.old", LOCK_NAME, f".{LOCK_NAME}"}
        assert not left & {path.name for path in run_copy.iterdir()}

    def test_a_run_that_is_being_trained_is_left_alone(self, sample, tiny_config, tmp_path):
        (tmp_path / LOCK_NAME).write_text('{"host": "elsewhere", "process": 7}')
        with pytest.raises(InputError, match="is being trained by process 7 on elsewhere"):
            train(sample, tmp_path, tiny_config)
        assert {path.name for path in tmp_path.iterdir()} == {LOCK_NAME, f".{LOCK_NAME}"}

    def test_the_steps_of_a_notebook_lock_the_run(self, sample, tiny_config, tmp_path):
        def is_free():
            code = "import sys, pathlib, skinlesion.model.run_lock as run_lock\n"
            code += "run_lock.RunLock(pathlib.Path(sys.argv[1])).acquire()"
            command = [sys.executable, "-c", code, run]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0 or "is being trained by process" in done.stderr
            return done.returncode == 0

        run, model = tmp_path / "run", build_model(tiny_config, 7)
        split = write_split(sample, tmp_path / "splits.csv")
        begin_run(Run(run), model, sample, split, tiny_config)
        assert not is_free()
        begin_run(Run(run), model, sample, split, tiny_config)  # the cell is run again
        finish_run(Run(run), model, tiny_config)  # no epoch is finished
        assert is_free()
        other = tiny_config.model_copy(update={"epochs": 2})
        with pytest.raises(InputError, match="epochs: 1, here 2"):
            begin_run(Run(run), model, sample, split, other)
        assert is_free()

    def test_a_split_of_other_images_leaves_no_run_folder(self, sample, tiny_config, tmp_path):
        rows = [f"ISIC_{i},HAM_{i},nv,{part}" for i, part in enumerate(SPLITS)]
        (tmp_path / "s.csv").write_text("\n".join(["image_id,lesion_id,dx,split", *rows, ""]))
        with pytest.raises(InputError, match="the split names 3 images that the dataset lacks"):
            train(sample, tmp_path / "run", tiny_config, splits=tmp_path / "s.csv")
        assert not (tmp_path / "run").exists()

    def test_other_settings_are_refused_with_the_difference(self, sample, trained_run, tiny_config):
        other = tiny_config.model_copy(update={"epochs": 2})
        with pytest.raises(InputError, match="epochs: 1, here 2"):
            train(sample, trained_run, other)

    def test_another_split_is_refused(self, sample, tiny_config, trained_run, tmp_path):
        write_split(sample, tmp_path / "splits.csv", seed=7)
        with pytest.raises(InputError, match="another split"):
            train(sample, trained_run, tiny_config, splits=tmp_path / "splits.csv")

    def test_another_dataset_is_refused(self, flat_data, tiny_config, trained_run):
        with pytest.raises(InputError, match="another dataset"):
            train(flat_data, trained_run, tiny_config)

    def test_training_again_forgets_the_results_of_the_old_model(
        self, sample, tiny_config, evaluated_run, tmp_path
    ):
        run = tmp_path / "run"
        shutil.copytree(evaluated_run, run)
        shutil.rmtree(run / "model")
        begun = Run(run)
        begin_run(begun, build_model(tiny_config, 7), sample, begun.split, tiny_config)
        begun.lock.release()
        assert not list(run.glob("predictions_*.csv"))
        assert not (run / "evaluation").exists()

    def test_a_mistake_leaves_no_run_folder(self, flat_data, tmp_path):
        with pytest.raises(InputError, match="too small"):
            train(flat_data, tmp_path / "run", tiny(image_size=(16, 16)))
        assert not (tmp_path / "run").exists()


class TestIncompleteDataset:
    @pytest.fixture
    def incomplete(self, sample, tmp_path):
        """The sample without its first image and without the row of the last one."""
        data = Path(shutil.copytree(sample, tmp_path / "data"))
        csv = data / "HAM10000_metadata.csv"
        first, *_, last = pd.read_csv(csv)["image_id"]
        next(data.glob(f"HAM10000_images_part_*/{first}.jpg")).unlink()
        csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:-1]))
        return data, first, last

    def test_it_is_refused(self, incomplete, tiny_config, tmp_path):
        data, first, last = incomplete
        refused = f"{first}.* and .*{last}.*--allow-incomplete of copy and train"
        with pytest.raises(InputError, match=refused):
            train(data, tmp_path / "run", tiny_config)
        assert not (tmp_path / "run").exists()

    def test_where_it_is_allowed_the_run_lists_what_was_left_out(
        self, incomplete, tiny_config, tmp_path, capsys
    ):
        data, first, last = incomplete
        config = tiny_config.model_copy(update={"epochs": 0})
        run = train(data, Run(tmp_path / "run", allow_incomplete=True), config)
        assert read_json(tmp_path / "run" / "incomplete.json") == {
            "rows without an image": [first],
            "images without a row": [last],
        }
        assert not {first, last} & set(run.split["image_id"])
        assert "1 images without a row left out" in capsys.readouterr().err
        calibrate(tmp_path / "run")  # a later step needs no option

    def test_a_run_on_a_copy_lists_what_the_copy_left_out(self, incomplete, tiny_config, tmp_path):
        data, first, _ = incomplete
        copy = copy_images(data, tmp_path / "copy", allow_incomplete=True)
        run = train(copy, tmp_path / "run", tiny_config.model_copy(update={"epochs": 0}))
        assert read_json(run.folder / "incomplete.json")["rows without an image"] == [first]


class TestQuarantine:
    @pytest.fixture
    def damaged(self, sample, tmp_path):
        """The sample, with one image missing, one cut off and one empty."""
        data = Path(shutil.copytree(sample, tmp_path / "data"))
        images = list_images(data)
        missing, cut, empty = list(images)[:3]
        images[missing].unlink()
        images[cut].write_bytes(images[cut].read_bytes()[:-500])
        images[empty].write_bytes(b"")
        return data, {missing: "no image", cut: "truncated", empty: "empty"}

    def test_rows_without_a_usable_image_are_left_out_and_listed(
        self, damaged, tiny_config, tmp_path, capsys
    ):
        data, bad = damaged
        folder, config = tmp_path / "run", tiny_config.model_copy(update={"epochs": 0})
        with pytest.raises(InputError, match="images cannot be used"):
            train(data, Run(folder, allow_incomplete=True), config)
        run = train(data, folder, config, quarantine=True)  # in the folder of the failure
        assert read_json(run.folder / "quarantine.json") == bad
        named = set(pd.read_csv(data / METADATA_NAME)["image_id"])
        assert set(run.split["image_id"]) == named - set(bad)
        assert "train: 3 rows without a usable image left out" in capsys.readouterr().out
        calibrate(run.folder)  # later steps need no option
        evaluate(run.folder)

    def test_a_split_file_may_name_them_and_the_same_call_continues(
        self, sample, damaged, tiny_config, tmp_path, monkeypatch
    ):
        data, bad = damaged
        write_split(sample, tmp_path / "splits.csv")
        given = {"splits": tmp_path / "splits.csv", "quarantine": True}
        config, run = tiny_config.model_copy(update={"epochs": 0}), Run(tmp_path / "run")

        def interrupt(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("skinlesion.model.train.fit_linear_probe", interrupt)
            train(data, run.folder, config, **given)
        assert not run.is_finished
        before = run.split
        assert len(before) == 81
        assert set(before["image_id"]).isdisjoint(bad)
        train(data, run.folder, config, **given)
        assert run.is_finished
        pd.testing.assert_frame_equal(run.split, before)

    def test_a_clean_dataset_has_no_list(self, sample, tiny_config, tmp_path):
        config = tiny_config.model_copy(update={"epochs": 0})
        run = train(sample, tmp_path / "run", config, quarantine=True)
        assert not (run.folder / "quarantine.json").exists()
        assert len(run.split) == 84


class TestWithoutNetwork:
    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        def fail(**arguments):
            raise Exception("no network")

        monkeypatch.setattr(keras.utils, "get_file", fail)

    settings = make_config("default", **TINY | {"weights": "imagenet"}, epochs=1, limit=14)

    def test_the_sample_is_trained_from_random_weights_and_this_is_said(
        self, sample, tmp_path, monkeypatch, capsys
    ):
        """Watched, as in a live notebook: the bar takes the mean of all that is in the logs."""
        monkeypatch.setattr("skinlesion.model.train.is_watched", lambda: True)
        run = train(sample, tmp_path / "run", self.settings)
        said = capsys.readouterr().out
        assert run.is_finished
        assert "val_loss" in said  # of Keras' progress bar
        assert "could not be downloaded" in said
        assert "starts from random weights instead" in said
        assert SYNTHETIC_NOTE in said
        assert run.description["weights"]["source"] == "none"

    def test_real_data_is_an_error_that_says_how_to_give_a_file(self, flat_data, tmp_path):
        with pytest.raises(WeightsUnavailableError, match="name a file as `weights`"):
            train(flat_data, tmp_path / "run", self.settings)


class TestFindTrainedRun:
    def test_a_finished_run_is_found_and_other_settings_are_told(self, trained_run, sample, capsys):
        run = find_trained_run(trained_run, sample, tiny(epochs=9))
        assert run.is_finished
        assert "epochs: 1, here 9" in capsys.readouterr().out

    def test_a_missing_run_is_only_trained_when_asked_for(self, sample, tiny_config, tmp_path):
        with pytest.raises(InputError, match=r"03_train first .* train_if_missing = True"):
            find_trained_run(tmp_path / "run", sample, tiny_config)
        assert not (tmp_path / "run").exists()
        config = tiny_config.model_copy(update={"epochs": 0})
        run = find_trained_run(tmp_path / "run", sample, config, train_if_missing=True)
        assert run.is_finished


class TestChangedHead:
    @staticmethod
    def change_head(model):
        head = find_part(model, "head")
        head.pop()
        head.add(keras.layers.Dense(5, activation="relu", name="hidden"))
        head.add(keras.layers.Dense(7, activation="softmax", name="probabilities"))

    def test_the_model_that_was_trained_is_the_one_that_is_saved(self, sample, tmp_path):
        config = tiny(epochs=1, limit=14)
        run, split = Run(tmp_path / "run"), write_split(sample, tmp_path / "splits.csv")
        model = build_model(config, 7)
        self.change_head(model)
        begin_run(run, model, sample, split, config)
        training, validation = make_datasets(sample, split, config)
        compile_model(model, config, steps=len(training))
        options = {"shuffle": False, "verbose": 0, "callbacks": make_callbacks(run, config)}
        model.fit(training, validation_data=validation, epochs=1, **options)
        finish_run(run, model, config)
        images = next(iter(validation))[0]
        saved = run.load_model().predict(images, verbose=0)
        assert saved == pytest.approx(find_part(model, "classifier").predict(images, verbose=0))
        assert "hidden" in [layer.name for layer in find_part(run.load_model(), "head").layers]

    def test_the_logistic_regression_refuses_it_before_any_epoch(self, tmp_path, conv2_weights):
        config = tiny(weights=str(conv2_weights))
        model = build_model(config, 7)
        self.change_head(model)
        with pytest.raises(InputError, match="hidden, probabilities: set linear_probe to False"):
            fit_linear_probe(model, None, None, Run(tmp_path / "run"), config)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains_and_leaves_a_model_in_full_precision(precision, sample, tmp_path):
    config = tiny(precision=precision, image_size=(32, 48), epochs=1, limit=14)
    run = train(sample, tmp_path / "run", config)
    assert all(map(math.isfinite, run.history["val_loss"]))
    assert run.description["precision"] == precision
    classifier = Predictor.load(run).model
    layers = [*classifier.layers, *classifier.get_layer("backbone").layers]
    assert {layer.dtype_policy.name for layer in layers} == {"float32"}
    assert not run.has_predictions("validation")
    calibrate(run, sample)
    assert run.has_predictions("validation")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(20, "under a minute"), (60, "1 minute"), (2400, "40 minutes"), (12600, "3.5 hours")],
)
def test_durations_are_written_for_readers(seconds, said):
    assert describe_duration(seconds) == said


def test_the_estimate_counts_validation_and_all_epochs(monkeypatch, capsys):
    """Steps of 64 s: 3 epochs of 10 steps and 40 images, which cost as much as 2.5 steps."""
    now = iter(range(0, 64 * 20, 64))
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(now)))
    progress = Progress(batch_size=8, validation_images=40)
    progress.set_params({"steps": 10, "epochs": 3})
    progress.on_epoch_begin(0)
    for batch in range(10):
        progress.on_train_batch_end(batch)
    assert capsys.readouterr().out == "train: estimated time for 3 epochs: 40 minutes\n"


def test_without_a_gpu_the_way_to_one_is_told(flat_data, tmp_path, capsys):
    config = tiny()
    split = write_split(flat_data, tmp_path / "splits.csv")
    begin_run(Run(tmp_path / "run"), build_model(config, 7), flat_data, split, config)
    assert "no GPU, so training is slow" in capsys.readouterr().out


def test_a_head_that_could_not_predict_is_refused_before_any_epoch(sample, tmp_path):
    config = tiny()
    model = build_model(config, 7)
    find_part(model, "head").add(keras.layers.Dense(7, activation="softmax", name="last"))
    split = write_split(sample, tmp_path / "splits.csv")
    with pytest.raises(
        InputError, match="the layer 'probabilities', not with conv2_block3_out, la"
    ):
        begin_run(Run(tmp_path / "run"), model, sample, split, config)
    assert not (tmp_path / "run").exists()
