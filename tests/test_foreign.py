"""The gate for foreign images: the distance, what is fitted, the file, and what it turns away."""

import hashlib
import json
import re

import numpy as np
import pytest
from conftest import REAL_DATA, REAL_WEIGHTS, needs_real_data, needs_real_weights
from PIL import Image

from skinlesion import workflow
from skinlesion.config import make_config
from skinlesion.data.ham10000 import list_images
from skinlesion.data.split import read_split
from skinlesion.evaluation import evaluate as assessment
from skinlesion.evaluation.export import generate_images
from skinlesion.evaluation.ood import (
    ForeignGate,
    compute_distances,
    fit_gate,
    gate_from,
    is_foreign,
)
from skinlesion.files import InputError
from skinlesion.model.bundle import load_bundle, save_bundle
from skinlesion.model.predictor import Prediction, Predictor
from skinlesion.model.resnet50 import split_model


def make_gate(**changes):
    values = {
        "stage": "conv3",
        "mean": np.array([1, 2], np.float32),
        "precision": np.diag([1 / 4, 1 / 9]).astype(np.float32),  # deviations 2 and 3
        "threshold": 2.0,
        "images": 20,
    }
    return ForeignGate(**values | changes)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    mixing = np.eye(6) + rng.uniform(-0.3, 0.3, (6, 6))
    return [rng.normal(size=(n, 6)) @ mixing + 5 for n in (2000, 300, 1000)]


class TestScore:
    def test_worked_by_hand(self):
        # (3, 2) is one deviation away, (1, 8) two, (5, 8) sqrt(4 + 4); the threshold is 2.
        scores = make_gate().compute_scores(np.array([[1, 2], [3, 2], [1, 8], [5, 8]]))
        assert scores == pytest.approx([0, 0.5, 1, np.sqrt(2)], rel=1e-6)
        assert is_foreign(scores - 1e-6).tolist() == [False, False, False, True]

    def test_correlated_features_worked_by_hand(self):
        # Covariance [[2, 1], [1, 2]]: its inverse is [[2, -1], [-1, 2]] / 3. Along the correlation
        # (1, 1) is nearer than against it (1, -1): 2/3 and 6/3, squared.
        precision = np.array([[2, -1], [-1, 2]]) / 3
        distances = compute_distances(np.array([[1, 1], [1, -1]]), np.zeros(2), precision)
        assert distances**2 == pytest.approx([2 / 3, 2])

    def test_what_is_no_number_is_foreign(self):
        assert is_foreign(np.array([np.nan, np.inf, 1.0, 0.0])).tolist() == [
            True,
            True,
            False,
            False,
        ]

    def test_each_image_by_itself(self, features):
        train, validation, other = features
        gate = fit_gate(train, validation)
        assert np.allclose(gate.compute_scores(other)[::-1], gate.compute_scores(other[::-1]))
        assert gate.compute_scores(other[7:8]) == pytest.approx(gate.compute_scores(other)[7])


class TestFit:
    def test_the_gaussian_is_that_of_the_training_images(self, features):
        train, validation, _ = features
        gate = fit_gate(train, validation)
        assert np.allclose(gate.mean, train.mean(axis=0), atol=1e-4)
        # 2,000 images of 6 numbers: hardly anything is shrunk.
        assert np.allclose(gate.precision @ np.cov(train.T), np.eye(6), atol=0.05)

    @pytest.mark.parametrize("images", [1, 7, 19, 20, 21, 300])
    def test_at_most_5_percent_of_validation_are_turned_away(self, features, images):
        train, validation, _ = features
        gate = fit_gate(train, validation[:images])
        turned_away = is_foreign(gate.compute_scores(validation[:images]))
        assert turned_away.mean() <= 0.05
        assert gate.images == images
        # Not fewer than need be, either.
        assert turned_away.sum() == int(0.05 * (images - 1) + 1e-9)

    def test_other_images_of_the_same_kind_are_let_in(self, features):
        train, validation, other = features
        turned_away = is_foreign(fit_gate(train, validation).compute_scores(other))
        assert 0.01 < turned_away.mean() < 0.1

    def test_shift_and_scale_of_the_features_do_not_matter(self, features):
        train, validation, other = features
        one = fit_gate(train, validation).compute_scores(other)
        moved = fit_gate(8 * train - 3, 8 * validation - 3).compute_scores(8 * other - 3)
        assert np.allclose(one, moved, rtol=1e-3)

    def test_the_order_of_the_images_does_not_matter(self, features):
        train, validation, other = features
        one, turned = fit_gate(train, validation), fit_gate(train[::-1], validation[::-1])
        assert np.allclose(one.compute_scores(other), turned.compute_scores(other), rtol=1e-4)

    def test_fewer_images_than_features(self):
        rng = np.random.default_rng(1)
        gate = fit_gate(rng.normal(size=(20, 64)), rng.normal(size=(10, 64)))
        assert is_foreign(gate.compute_scores(rng.normal(size=(50, 64)) + 4)).all()


class TestBundle:
    def test_a_round_trip(self, trained_run, tmp_path):
        bundle = load_bundle(trained_run)
        again = load_bundle(save_bundle(bundle, tmp_path / "model"))
        assert again.info == bundle.info
        assert again.gate.to_dict() == bundle.gate.to_dict() == bundle.info.foreign_image_gate
        for name, array in bundle.gate.to_arrays().items():
            assert np.array_equal(again.gate.to_arrays()[name], array)

    def test_a_bundle_from_before_there_was_a_gate(self, run_copy, sample, tmp_path, capsys):
        path = sorted(sample.glob("HAM10000_images_part_1/*.jpg"))[0]
        with_gate = Predictor.load(run_copy).predict(path)
        forget_gate(run_copy / "model")
        predictor = Predictor.load(run_copy)
        prediction = predictor.predict(path)
        assert prediction.foreign_score is None
        assert prediction.is_foreign is None
        before, after = (list(p.probabilities.values()) for p in (with_gate, prediction))
        assert np.allclose(before, after, atol=1e-6)
        noise = tmp_path / "noise.png"
        Image.fromarray(generate_images((97, 97))[-1]).save(noise)
        workflow.predict(run_copy, [noise], tmp_path / "p.csv")
        assert "dermatoscopic" not in capsys.readouterr().out
        assert "foreign_image_gate" not in assessment.evaluate(run_copy, data=sample)

    def test_a_gate_can_be_added_to_it(self, run_copy, sample):
        fitted = load_bundle(run_copy).gate
        model = (run_copy / "model" / "model.keras").read_bytes()
        forget_gate(run_copy / "model")
        workflow.fit_gate(run_copy, sample)
        again = load_bundle(run_copy)
        assert again.gate.threshold == pytest.approx(fitted.threshold, rel=1e-3)
        assert np.allclose(again.gate.mean, fitted.mean, atol=1e-4)
        assert again.info.calibration is not None
        assert (run_copy / "model" / "model.keras").read_bytes() == model

    @pytest.mark.parametrize("damage", ["changed", "missing", "unlisted"])
    def test_a_damaged_gate_is_noticed(self, run_copy, damage):
        path, sums = run_copy / "model" / "gate.npz", run_copy / "model" / "SHA256SUMS"
        if damage == "changed":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "missing":
            path.unlink()
        else:
            sums.write_text(re.sub(r".*gate\.npz\n", "", sums.read_text()))
        with pytest.raises(InputError, match=r"gate\.npz: damaged or changed"):
            load_bundle(run_copy)

    def test_a_gate_of_another_version_is_refused(self):
        gate = make_gate()
        with pytest.raises(InputError, match="unknown method 'knn'"):
            gate_from(gate.to_dict() | {"method": "knn"}, gate.to_arrays())
        with pytest.raises(InputError, match="'precision'"):
            gate_from(gate.to_dict(), {"mean": gate.mean})

    def test_a_gate_holds_no_python_objects(self, run_copy):
        """A file that would run code when it is loaded is not loaded."""
        folder = run_copy / "model"
        np.savez(folder / "gate.npz", mean=np.array([print], object), precision=np.eye(1))
        renew_sum(folder, "gate.npz")
        with pytest.raises(ValueError, match="allow_pickle=False"):
            load_bundle(run_copy)


class TestPredictor:
    def test_the_gate_was_fitted_on_the_right_images(self, trained_run, sample):
        """Nine of ten validation images at least are let in, and the features are the stage's."""
        predictor = Predictor.load(trained_run)
        split = read_split(trained_run / "splits.csv")
        images = list_images(sample)
        parts = {
            name: predictor.describe([images[i] for i in split["image_id"][split["split"] == name]])
            for name in ("train", "validation")
        }
        gate = predictor.bundle.gate
        assert gate.images == len(parts["validation"])
        assert np.allclose(gate.mean, parts["train"].mean(axis=0), atol=1e-3)
        assert is_foreign(gate.compute_scores(parts["validation"])).mean() <= 0.05

    def test_probabilities_and_features_of_one_pass_are_those_of_two(self, trained_run):
        bundle = load_bundle(trained_run)
        images = generate_images(bundle.info.image_size)
        y_prob, scores = Predictor(bundle).judge_images(images)
        plain = bundle.model.predict_on_batch(images.astype(np.float32))
        assert np.allclose(y_prob, plain, atol=1e-5)
        lower, _ = split_model(bundle.model, "conv3", "imagenet")
        pooled = lower.predict_on_batch(images.astype(np.float32)).mean(axis=(1, 2))
        assert np.allclose(Predictor(bundle).describe_images(images), pooled, rtol=1e-3, atol=1e-4)
        assert np.allclose(scores, bundle.gate.compute_scores(pooled), rtol=1e-2)

    def test_another_engine_has_the_same_verdict(self, run_copy):
        for library in ("tf2onnx", "onnxruntime"):
            pytest.importorskip(library, reason="install the extra [export] to run this")
        keras_s, onnx_s = (Predictor.load(run_copy, engine=engine) for engine in ("keras", "onnx"))
        images = generate_images(keras_s.bundle.info.image_size)
        y_prob, scores = onnx_s.judge_images(images)
        expected, others = keras_s.judge_images(images)
        assert np.allclose(y_prob, expected, atol=1e-4)
        assert np.allclose(scores, others, rtol=1e-3)

    def test_more_images_than_a_batch_keep_their_order(self, trained_run, sample):
        predictor = Predictor.load(trained_run)
        paths = sorted(sample.glob("HAM10000_images_part_*/*.jpg"))
        y_prob, scores = predictor.judge(paths)
        assert np.array_equal(y_prob, predictor.predict_probabilities(paths))
        for index in (0, 31, 32, 70):
            alone = predictor.predict(paths[index])
            assert alone.foreign_score == pytest.approx(scores[index], rel=1e-3)

    def test_noise_and_plain_colours_are_turned_away(self, trained_run, sample):
        """By a network of random weights and one epoch on the synthetic sample."""
        predictor = Predictor.load(trained_run)
        images = generate_images(predictor.bundle.info.image_size)
        green = np.full_like(images[:1], (20, 200, 40))
        _, scores = predictor.judge_images(np.concatenate([images[:2], images[-2:], green]))
        assert is_foreign(scores).all()
        _, of_lesions = predictor.judge(sorted(sample.glob("HAM10000_images_part_*/*.jpg")))
        assert is_foreign(of_lesions).mean() < 0.2

    def test_a_prediction_has_a_verdict(self):
        scores = {0.5: False, 1.0: False, 1.1: True, float("nan"): True}
        verdicts = {score: Prediction("a", {}, score).is_foreign for score in scores}
        assert verdicts == scores


def test_predict_says_which_images_are_foreign(trained_run, sample, tmp_path, capsys):
    lesion = sorted(sample.glob("HAM10000_images_part_1/*.jpg"))[0]
    noise = tmp_path / "static.png"
    Image.fromarray(generate_images((97, 97))[-1]).save(noise)
    workflow.predict(trained_run, [lesion, noise], tmp_path / "p.csv")
    assert "1 of 2 images do not look like dermatoscopic ones" in (said := capsys.readouterr().out)
    assert said.split("means nothing: ")[1].splitlines()[0] == "static"
    # The file keeps the form of ISIC 2018.
    assert (tmp_path / "p.csv").read_text().startswith("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n")


def test_evaluate_reports_the_share_that_is_let_in(run_copy, sample, capsys):
    metrics = assessment.evaluate(run_copy, data=sample)
    found = json.loads((run_copy / "evaluation" / "metrics.json").read_text())["foreign_image_gate"]
    assert found == metrics["foreign_image_gate"]
    predictor = Predictor.load(run_copy)
    split, images = read_split(run_copy / "splits.csv"), list_images(sample)
    _, scores = predictor.judge([images[i] for i in split["image_id"][split["split"] == "test"]])
    assert found["let_in"]["value"] == pytest.approx((scores <= 1).mean())
    assert found["let_in"]["low"] <= found["let_in"]["value"] <= found["let_in"]["high"]
    assert found["per_class"]["mel"]["support"] == metrics["per_class"]["mel"]["support"]
    assert "gate for foreign images: " in capsys.readouterr().out


@needs_real_data
@needs_real_weights
def test_real_lesions_are_let_in_and_photographs_are_not(tmp_path):
    """With ImageNet features of 400 lesions, before any fine-tuning."""
    from sklearn.datasets import load_sample_images

    settings = make_config("probe", weights=REAL_WEIGHTS, image_size=(64, 64), epochs=1, limit=400)
    run = workflow.train(REAL_DATA, tmp_path / "run", settings)
    predictor = Predictor.load(run)
    split, images = read_split(run / "splits.csv"), list_images(REAL_DATA)
    chosen = split["image_id"][split["split"] == "test"][::10]
    _, scores = predictor.judge([images[name] for name in chosen])
    assert is_foreign(scores).mean() < 0.15
    photographs = []
    for number, photograph in enumerate(load_sample_images().images):
        photographs.append(tmp_path / f"{number}.jpg")
        Image.fromarray(photograph).save(photographs[-1])
    assert is_foreign(predictor.judge(photographs)[1]).all()


def forget_gate(folder):
    """Make a bundle as it was written before there was a gate."""
    (folder / "gate.npz").unlink()
    info = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(info | {"foreign_image_gate": None}))
    sums = folder / "SHA256SUMS"
    sums.write_text(re.sub(r".*gate\.npz\n", "", sums.read_text()))
    renew_sum(folder, "bundle.json")


def renew_sum(folder, name):
    sums, digest = folder / "SHA256SUMS", hashlib.sha256((folder / name).read_bytes()).hexdigest()
    sums.write_text(re.sub(rf".*  {re.escape(name)}\n", f"{digest}  {name}\n", sums.read_text()))
