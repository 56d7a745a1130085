import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinlesion.config import make_config
from skinlesion.errors import InputError
from skinlesion.input_pipeline import load_images
from skinlesion.metadata import load_metadata
from skinlesion.model import LoadedWeights, build_model
from skinlesion.training import (
    STRENGTHS,
    balanced_class_weights,
    fit,
    fit_regression,
    plan_phases,
    seed_everything,
)

NOTHING = LoadedWeights("none", frozenset(), 106)
SOMETHING = LoadedWeights("file", frozenset({"conv1_conv"}), 106)


def config(**changes):
    small = {"image_size": (32, 32), "weights": "none", "batch_size": 8, "epochs": 2}
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


def train(run, settings, loaded_layers=()):
    model, loaded = build(settings, loaded_layers)
    history = fit(
        model,
        loaded,
        settings,
        train=random_images(24, 1),
        validation=random_images(16, 2),
        run=run,
        verbose=0,
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
    assert (tmp_path / "checkpoints" / "best.weights.h5").is_file()


def test_the_model_ends_with_the_weights_of_the_best_epoch(tmp_path):
    settings = config(epochs=4, head_learning_rate=0.01, class_weights="none", seed=3)
    model, history = train(tmp_path, settings)
    images, labels = random_images(16, 2)
    model.compile(loss="categorical_crossentropy")
    loss = model.evaluate(images.astype("float32"), np.eye(7)[labels], verbose=0)
    # At this rate the loss jumps about: the best epoch is not the last one.
    assert history["val_loss"].idxmin() < 3
    assert loss == pytest.approx(history["val_loss"].min(), rel=1e-3)


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


def test_deterministic_training_repeats_itself(tmp_path):
    settings = config(deterministic=True, epochs=1)
    first = train(tmp_path / "a", settings)[1]
    second = train(tmp_path / "b", settings)[1]
    columns = ["loss", "val_loss", "accuracy"]
    assert first[columns].equals(second[columns])


def test_plateau_lowers_the_rate_but_not_in_the_original(tmp_path):
    plateau = {
        "schedule": "plateau",
        "plateau_monitor": "val_accuracy",
        "plateau_patience": 1,
        "epochs": 4,
        # So low that the validation accuracy stands still.
        "head_learning_rate": 1e-9,
    }
    _, lowered = train(tmp_path / "a", config(**plateau, plateau_min_rate=1e-12))
    assert lowered["learning_rate"].iloc[-1] < 1e-9 * 0.6
    _, floored = train(tmp_path / "b", config(**plateau, plateau_min_rate=1e-9))
    assert np.allclose(floored["learning_rate"], 1e-9)


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
            verbose=0,
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
        history = fit_regression(model, config, train=parts[0], validation=parts[1], run=run)
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
            model, config, train=(images[some], labels[some]), validation=validation, run=tmp_path
        )
        y_prob = model.predict(validation[0].astype("float32"), verbose=0)
        assert np.allclose(y_prob[:, [1, 4]].sum(axis=1), 1)
        assert set(y_prob.argmax(axis=1)) == {1, 4}

    def test_it_needs_pooled_features(self):
        with pytest.raises(InputError, match="head must be pooled"):
            make_config("probe", head="original")
