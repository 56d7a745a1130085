import json

import pytest

from skinlesion.config import RECIPES, config_from_dict, differences, make_config
from skinlesion.files import InputError


def test_original_is_to_the_letter():
    original = RECIPES["original"]
    assert original.epochs == 8
    assert original.batch_size == 32
    assert original.image_size == (224, 224)
    assert original.learning_rate == 1e-4
    # The floor that never fires: the schedule cannot go below the rate it starts from.
    assert original.plateau_min_rate == original.learning_rate
    assert (original.plateau_monitor, original.plateau_patience) == ("val_accuracy", 4)
    assert original.early_stopping_patience == 3
    assert original.preprocessing == "divide_by_255"


@pytest.mark.parametrize("recipe", RECIPES)
def test_survives_json(recipe):
    config = RECIPES[recipe]
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_none_keeps_the_recipe():
    assert make_config("default", epochs=None, seed=None) == RECIPES["default"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", True),
        ("image_size", (128,)),
        ("image_size", (128, -1)),
        ("split", "random"),
        ("fine_tune_from", "conv6"),
        ("batch_norm_momentum", 1.0),
        ("frozen_share", 1.5),
        ("learning_rate", "fast"),
        ("seed", -1),
        ("seed", 2**32),
        ("image_size", (128.0, 128)),
        ("image_size", 128),
        ("limit", 2.5),
        ("limit", "5"),
        ("learning_rate", True),
        ("learning_rate", float("nan")),
        ("plateau_factor", 2.0),
        ("plateau_patience", 0),
        ("label_smoothing", 1.0),
        ("focal_gamma", -1.0),
        ("weight_decay", -0.1),
        ("mixing_alpha", 0),
        ("mixing", "blend"),
        ("precision", "float16"),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting, value):
    with pytest.raises(InputError, match=f"{setting} must be .* Received: {setting}="):
        make_config("default", **{setting: value})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mixing": "mixup"}, "a mixed image has two classes"),
        ({"mixing": "cutmix"}, "a mixed image has two classes"),
        ({"sampling": "balanced"}, "rare classes would count twice"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_reason(settings, reason):
    with pytest.raises(InputError, match=reason):
        make_config("default", **settings)
    assert make_config("default", class_weights="none", **settings).class_weights == "none"


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(InputError, match="learning_rte"):
        make_config("default", learning_rte=1.0)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(InputError, match="original, default"):
        make_config("best")


def test_differences_name_settings():
    ours, theirs = make_config("default", epochs=3), make_config("default", epochs=4)
    assert differences(ours, theirs) == "epochs: 3 instead of 4"
    assert differences(ours, ours) == ""
