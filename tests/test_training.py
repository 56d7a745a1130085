import dataclasses
import time

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinlesion import workflow
from skinlesion.config import make_config
from skinlesion.data.images import load_images, make_dataset
from skinlesion.data.metadata import load_metadata
from skinlesion.files import InputError
from skinlesion.model import checkpoints
from skinlesion.model import train as training
from skinlesion.model.augmentation import Mixing, make_augmentation
from skinlesion.model.checkpoints import find_best
from skinlesion.model.linear_probe import STRENGTHS, fit_regression
from skinlesion.model.predictor import Predictor
from skinlesion.model.resnet50 import LoadedWeights, build_model, split_model
from skinlesion.model.train import (
    Phase,
    TimeIsUpError,
    Trainer,
    _fit_epoch,
    balanced_class_weights,
    compile_trainer,
    fit,
    plan_phases,
    plateau_rate,
    seed_everything,
)

NOTHING = LoadedWeights("none", frozenset(), 106)
SOMETHING = LoadedWeights("file", frozenset({"conv1_conv"}), 106)


def config(**changes):
    small = {"image_size": (32, 32), "weights": "none", "batch_size": 8, "epochs": 2}
    small |= {"frozen_share": 0.25}
    return make_config("default", **small | changes)


def random_images(count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 7, count)


def build(settings, loaded_layers=()):
    seed_everything(settings)
    model, loaded = build_model(
        image_size=settings.image_size,
        weights="none",
        head=settings.head,
        batch_norm_momentum=settings.batch_norm_momentum,
    )
    return model, LoadedWeights("test", frozenset(loaded_layers), loaded.total)


def without_time(history):
    return history.drop(columns=["seconds", "images_per_second"])


def train(run, settings, loaded_layers=(), **options):
    model, loaded = build(settings, loaded_layers)
    history = fit(
        model,
        loaded,
        settings,
        train=random_images(24, 1),
        validation=random_images(16, 2),
        run=run,
        **options,
    )
    return model, history


def test_phases_add_up_to_the_epochs():
    for epochs in (1, 2, 3, 8, 20):
        phases = plan_phases(config(epochs=epochs), SOMETHING)
        assert sum(phase.epochs for phase in phases) == epochs
        assert all(phase.epochs > 0 for phase in phases)
        assert phases[0].name == "frozen"
    assert [p.epochs for p in plan_phases(config(epochs=20), SOMETHING)] == [5, 15]


def test_nothing_pretrained_nothing_frozen():
    (phase,) = plan_phases(config(epochs=4), NOTHING)
    assert (phase.name, phase.epochs) == ("from_scratch", 4)


def test_the_original_trains_all_layers_at_once():
    (phase,) = plan_phases(make_config("original"), SOMETHING)
    assert (phase.name, phase.epochs, phase.learning_rate) == ("fine_tuning", 8, 1e-4)


def test_balanced_weights_hand_worked():
    # 6 images: four nv (5), two mel (4): 6 / (2 classes * count).
    weights = balanced_class_weights(np.array([5, 5, 5, 5, 4, 4]))
    assert weights.tolist() == [1, 1, 1, 1, 1.5, 0.75, 1]


def test_history_and_checkpoint_are_written(tmp_path):
    _, history = train(tmp_path, config())
    written = pd.read_csv(tmp_path / "history.csv")
    assert written["epoch"].tolist() == [1, 2]
    assert set(written["phase"]) == {"from_scratch"}
    assert (written["images_per_second"] > 0).all()
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} <= set(written)
    assert np.allclose(written["val_loss"], history["val_loss"])
    # Cosine: the last rate is far below the highest.
    assert written["learning_rate"].iloc[-1] < 1e-4
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    best = history["val_loss"].idxmin() + 1
    assert kept == {f"epoch-{best:04}", "epoch-0002"}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_the_best_epoch_is_the_first_with_the_lowest_validation_loss():
    assert find_best([{"val_loss": loss} for loss in (3.0, 1.0, 2.0, 1.0)]) == 1


def test_the_model_ends_with_the_weights_of_the_best_epoch(tmp_path, monkeypatch):
    for module in (checkpoints, training):
        monkeypatch.setattr(module, "find_best", lambda rows: min(1, len(rows) - 1))
    settings = config(epochs=4, head_learning_rate=0.01, class_weights="none", seed=3)
    model, history = train(tmp_path, settings)
    images, labels = random_images(16, 2)
    model.compile(loss="categorical_crossentropy")
    loss = model.evaluate(images.astype("float32"), np.eye(7)[labels], verbose=0)
    assert loss == pytest.approx(history["val_loss"][1], rel=1e-3)
    assert loss != pytest.approx(history["val_loss"][3], rel=1e-3)


def test_frozen_layers_keep_their_weights_until_fine_tuning(tmp_path):
    frozen = ("conv1_conv", "conv1_bn", "conv3_block1_1_conv", "conv3_block1_1_bn")
    settings = config(epochs=1)
    model, _ = build(settings, frozen)
    before = {n: model.get_layer("resnet50").get_layer(n).get_weights() for n in frozen}

    def changed(trained):
        backbone = trained.get_layer("resnet50")
        return {
            name
            for name in frozen
            if not all(
                np.array_equal(old, new)
                for old, new in zip(
                    before[name], backbone.get_layer(name).get_weights(), strict=True
                )
            )
        }

    kept, history = train(tmp_path / "a", settings, frozen)
    assert history["phase"].tolist() == ["frozen"]
    assert changed(kept) == set()
    tuned = config(epochs=1, frozen_share=0.0)
    assert changed(train(tmp_path / "b", tuned, frozen)[0]) == {"conv3_block1_1_conv"}


def test_plateau_is_that_of_keras():
    settings = config(
        schedule="plateau", plateau_patience=2, plateau_factor=0.5, plateau_min_rate=0.1
    )
    rng = np.random.default_rng(0)
    for monitor in ("val_loss", "val_accuracy"):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(1.0))
        mode = {"val_loss": "min", "val_accuracy": "max"}[monitor]
        theirs = keras.callbacks.ReduceLROnPlateau(
            monitor, mode=mode, patience=2, factor=0.5, min_lr=0.1
        )
        theirs.set_model(model)
        theirs.on_train_begin()
        ours, seen = dataclasses.replace(settings, plateau_monitor=monitor), []
        for epoch, value in enumerate(rng.normal(size=30).round(1)):
            seen.append({monitor: float(value)})
            theirs.on_epoch_end(epoch, {monitor: value})
            assert plateau_rate(seen, 1.0, ours) == pytest.approx(
                float(model.optimizer.learning_rate)
            )
        assert plateau_rate(seen, 1.0, ours) == pytest.approx(0.1)


def test_a_plateau_lowers_the_rate_and_early_stopping_ends_each_phase(tmp_path):
    settings = config(
        epochs=6,
        frozen_share=0.5,
        schedule="plateau",
        plateau_patience=1,
        plateau_min_rate=1e-12,
        # So high that the loss jumps about.
        head_learning_rate=0.01,
        learning_rate=0.01,
        early_stopping_patience=2,
    )
    _, history = train(tmp_path, settings, ("conv1_conv", "conv1_bn"))
    assert history["epoch"].tolist() == list(range(1, len(history) + 1))
    for _, phase in history.groupby("phase"):
        worse = phase["val_loss"].to_numpy() > np.minimum.accumulate(phase["val_loss"])
        since_best = len(phase) - 1 - phase["val_loss"].to_numpy().argmin()
        assert since_best == 2 or (since_best < 2 and len(phase) == 3)
        rates = 0.01 * 0.5 ** np.concatenate([[0], worse.cumsum()[:-1]])
        assert np.allclose(phase["learning_rate"], rates)
    assert set(history["phase"]) == {"frozen", "fine_tuning"}


class TestFeatures:
    """Training the upper part on the output of the frozen part."""

    frozen = tuple(
        layer.name
        for layer in keras.applications.ResNet50(weights=None, include_top=False).layers
        if not layer.name.startswith("conv5")
    )

    def test_it_is_the_same_training(self, tmp_path, capsys):
        kernels, losses = [], []
        for cached in (True, False):
            settings = config(
                augmentation="none",
                frozen_share=1.0,
                head_learning_rate=1e-5,
                deterministic=True,
                cache_features=cached,
            )
            model, history = train(tmp_path / str(cached), settings, self.frozen)
            layer = model.get_layer("resnet50").get_layer("conv5_block3_3_conv")
            kernels.append(np.asarray(layer.kernel))
            losses.append(history[["loss", "val_loss"]])
            said = capsys.readouterr().out
            assert ("output of the frozen stages up to conv4 once" in said) == cached
        start = build(config(), self.frozen)[0].get_layer("resnet50")
        moved = np.abs(kernels[0] - np.asarray(start.get_layer("conv5_block3_3_conv").kernel))
        # Half precision of the features is all that differs.
        assert np.allclose(*losses, rtol=0.01)
        assert np.abs(kernels[0] - kernels[1]).mean() < 0.2 * moved.mean()

    def test_split_models_say_what_the_whole_says(self):
        model, _ = build(config())
        images = random_images(4, 0)[0].astype("float32")
        whole = np.asarray(model(images))
        for stage in ("conv2", "conv4", "conv5"):
            lower, upper = split_model(model, stage, "imagenet")
            assert np.allclose(np.asarray(upper(lower(images))), whole, atol=1e-5)


class TestSwitches:
    """The training step on a network that is small enough to try them all."""

    def step(self, **changes):
        settings = config(class_weights="none", **changes)
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Conv2D(4, 3, use_bias=False),
                keras.layers.BatchNormalization(),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(7, activation="softmax"),
            ]
        )
        mixing = None
        if settings.mixing != "none":
            mixing = Mixing(settings.mixing, alpha=settings.mixing_alpha, seed=0)
        trainer = Trainer(network, make_augmentation(settings.augmentation, seed=0), mixing)
        phase = Phase("from_scratch", 1, 0.1)
        compile_trainer(trainer, settings, phase, steps=3)
        # On a single GPU Keras would choose XLA, which has no kernel for rotation or mixing.
        assert trainer.jit_compile is False
        dataset = make_dataset(*random_images(24, 1), batch_size=8)
        row = _fit_epoch(trainer, dataset, dataset, 0, phase, np.inf, 0)
        return trainer, row

    @pytest.mark.parametrize(
        "switch",
        [
            {"label_smoothing": 0.1},
            {"focal_gamma": 2.0},
            {"weight_decay": 0.5},
            {"mixing": "mixup"},
            {"mixing": "cutmix", "mixing_alpha": 1.0},
            {"augmentation": "none"},
        ],
    )
    def test_each_changes_the_training(self, switch):
        plain, changed = self.step()[1], self.step(**switch)[1]
        assert np.isfinite([changed["loss"], changed["val_loss"]]).all()
        assert changed["loss"] != plain["loss"]

    def test_focal_loss_without_focus_is_cross_entropy(self):
        assert self.step(focal_gamma=1e-9)[1]["loss"] == pytest.approx(self.step()[1]["loss"])

    def test_decay_is_kept_off_biases_and_norms(self):
        trainer, _ = self.step(weight_decay=0.1)
        kinds = {True: set(), False: set()}
        for variable in trainer.trainable_variables:
            kinds[trainer.optimizer._use_weight_decay(variable)].add(variable.name)
        assert kinds == {True: {"kernel"}, False: {"bias", "gamma", "beta"}}


def test_half_precision_trains_and_leaves_a_model_in_full_precision(sample, tmp_path):
    settings = make_config(
        "default",
        image_size=(32, 48),
        weights="none",
        epochs=1,
        limit=14,
        precision="mixed_float16",
        class_weights="none",
        sampling="balanced",
    )
    run = workflow.train(sample, tmp_path / "run", settings)
    assert np.isfinite(pd.read_csv(run / "history.csv")["val_loss"]).all()
    model = Predictor.load(run).bundle.model
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert "mixed_float16" in (run / "config.json").read_text()


def test_a_deadline_in_the_past_stops_before_an_epoch(tmp_path):
    with pytest.raises(TimeIsUpError):
        train(tmp_path, config(), deadline=time.monotonic() - 1)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_deadline_stops_within_an_epoch_and_nothing_is_lost(tmp_path):
    """A clock that jumps: the deadline comes after some steps of the second epoch."""
    settings = config(epochs=3, deterministic=True)
    _, expected = train(tmp_path / "a", settings)

    class Late(float):
        asked = 0

        def __lt__(self, now):  # asked before each epoch and after each step
            Late.asked += 1
            return Late.asked > 6

    with pytest.raises(TimeIsUpError):
        train(tmp_path / "b", settings, deadline=Late("inf"))
    assert len(pd.read_csv(tmp_path / "b" / "history.csv")) == 1
    _, resumed = train(tmp_path / "b", settings)
    pd.testing.assert_frame_equal(without_time(resumed), without_time(expected))


def test_a_loss_that_is_no_number_stops_with_an_error(tmp_path):
    settings = config(epochs=2)
    model, loaded = build(settings)
    model.get_layer("probabilities").bias.assign(np.full(7, np.nan))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(
            model,
            loaded,
            settings,
            train=random_images(8, 1),
            validation=random_images(8, 2),
            run=tmp_path,
        )


class TestRegression:
    @pytest.fixture(scope="class")
    def parts(self, sample):
        table = load_metadata(sample).sample(frac=1, random_state=0)
        images = load_images(list(table["path"]), image_size=(64, 64))
        labels = table["label"].to_numpy()
        return (images[:60], labels[:60]), (images[60:], labels[60:])

    @pytest.fixture(scope="class")
    def fitted(self, parts, tmp_path_factory):
        keras.utils.set_random_seed(0)
        config = make_config("probe", image_size=(64, 64), weights="none", batch_size=16)
        model, _ = build_model(
            image_size=config.image_size, weights="none", head="pooled", top_stage="conv4"
        )
        before = model.get_weights()
        run = tmp_path_factory.mktemp("probe")
        out = run / "history.csv"
        history = fit_regression(model, config, train=parts[0], validation=parts[1], out=out)
        return model, before, history, run

    def test_the_last_layer_says_what_scikit_learn_says(self, fitted, parts):
        model, _, history, _ = fitted
        (images, labels), (others, truth) = parts
        pooled = keras.Model(model.input, model.get_layer("head_pool").output)

        def describe(pixels):
            return pooled.predict(pixels.astype("float32"), verbose=0).astype("float64")

        strength = history.loc[history["val_loss"].idxmin(), "C"]
        expected = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, class_weight="balanced", max_iter=300),
        ).fit(describe(images), labels)
        y_prob = model.predict(others.astype("float32"), verbose=0)
        theirs = expected.predict_proba(describe(others))
        assert np.allclose(y_prob, theirs, atol=2e-3)
        assert history["val_accuracy"][history["val_loss"].idxmin()] == pytest.approx(
            (theirs.argmax(axis=1) == truth).mean()
        )

    def test_only_the_last_layer_changes(self, fitted):
        model, before, _, _ = fitted
        changed = [
            not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)
        ]
        assert changed == [False] * (len(before) - 2) + [True, True]

    def test_each_strength_is_in_the_history(self, fitted):
        _, _, history, run = fitted
        assert history["C"].tolist() == list(STRENGTHS)
        assert pd.read_csv(run / "history.csv").shape == history.shape
        assert np.isfinite(history["val_loss"]).all()

    def test_the_backbone_ends_at_the_stage(self, fitted):
        backbone = fitted[0].get_layer("resnet50")
        assert backbone.output_shape == (None, 4, 4, 1024)
        assert not any(layer.name.startswith("conv5") for layer in backbone.layers)

    def test_a_class_without_training_images_is_never_predicted(self, parts, tmp_path):
        (images, labels), validation = parts
        some = np.flatnonzero((labels == 1) | (labels == 4))
        config = make_config("probe", image_size=(64, 64), weights="none")
        model, _ = build_model(
            image_size=(64, 64), weights="none", head="pooled", top_stage="conv4"
        )
        fit_regression(
            model,
            config,
            train=(images[some], labels[some]),
            validation=validation,
            out=tmp_path / "h.csv",
        )
        y_prob = model.predict(validation[0].astype("float32"), verbose=0)
        assert np.allclose(y_prob[:, [1, 4]].sum(axis=1), 1)
        assert set(y_prob.argmax(axis=1)) == {1, 4}

    def test_it_needs_pooled_features(self):
        with pytest.raises(InputError, match="head must be pooled"):
            make_config("probe", head="original")
