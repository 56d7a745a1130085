import json

import pytest

from skinlesion.config import RECIPES, find_differences, make_config, read_config
from skinlesion.files import InputError


def test_original_is_to_the_letter():
    original = RECIPES["original"]
    assert original.epochs == 8
    assert original.batch_size == 32
    assert original.image_size == (224, 224)
    assert original.learning_rate == original.scratch_learning_rate == 1e-4
    assert original.schedule == "plateau"
    assert original.early_stopping_patience == 3
    assert original.preprocessing == "divide_by_255"
    assert original.train_batch_norm
    assert original.class_weights == "none"


@pytest.mark.parametrize("recipe", RECIPES)
def test_survives_json(recipe):
    config = RECIPES[recipe]
    assert read_config(json.loads(json.dumps(config.model_dump()))) == config


def test_none_keeps_the_recipe():
    assert make_config("default", epochs=None, seed=None) == RECIPES["default"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", -1),
        ("epochs", 2.5),
        ("batch_size", True),
        ("batch_size", 0),
        ("image_size", (128,)),
        ("image_size", (128, -1)),
        ("image_size", (128, 1_000_000)),
        ("image_size", (128.0, 128)),
        ("image_size", 128),
        ("split", "random"),
        ("fine_tune_from", "conv6"),
        ("batch_norm_momentum", 1.0),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("scratch_learning_rate", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
        ("limit", 2.5),
        ("limit", "5"),
        ("limit", 0),
        ("precision", "float16"),
        ("early_stopping_patience", 0),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting, value):
    with pytest.raises(InputError, match=rf"^settings: {setting}: .* Received: {setting}="):
        make_config("default", **{setting: value})


def test_several_wrong_values_are_named_in_one_line():
    with pytest.raises(InputError) as caught:
        make_config("default", epochs=-1, seed=-1)
    assert "epochs: " in str(caught.value)
    assert "seed: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [128, "128x128", [128], [128, "a"], [128.5, 128]])
def test_a_wrong_image_size_is_told_what_it_must_be(size):
    with pytest.raises(InputError, match=r"two whole numbers, height and width, .* \[128, 128\]"):
        make_config(image_size=size)


def test_settings_that_do_not_go_together_are_refused_with_the_reason():
    with pytest.raises(InputError, match="linear_probe needs head='pooled'"):
        make_config("default", head="original")
    with pytest.raises(InputError, match="epochs must be 1 or more without linear_probe"):
        make_config("default", epochs=0, linear_probe=False)


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant():
    with pytest.raises(InputError, match=r"learning_rte \(did you mean learning_rate\?\)"):
        make_config("default", learning_rte=1.0)


def test_a_missing_setting_is_named():
    settings = RECIPES["default"].model_dump()
    del settings["head"]
    with pytest.raises(InputError, match="setting head is missing"):
        read_config(settings)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(InputError, match="original, default"):
        make_config("best")


def test_differences_name_settings():
    ours, theirs = make_config("default", epochs=3), make_config("default", epochs=4)
    assert find_differences(ours, theirs) == "epochs: 3, here 4"
    assert find_differences(ours, ours) == ""
