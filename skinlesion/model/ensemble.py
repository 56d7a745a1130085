"""An ensemble as one network: it averages the probabilities of its members."""

from collections.abc import Sequence
from typing import Any

import keras


def build_ensemble(members: Sequence[keras.Sequential]) -> keras.Model:
    """Build the network that averages classifiers (Lakshminarayanan et al., arXiv:1612.01474).

    Args:
        members: classifiers of one structure, from `Run.load_model`. Their layers are used, not
            copied.

    Returns:
        What a classifier is to its users: from RGB images in [0, 255], float (b, height, width, 3),
        to probabilities, float (b, classes).
    """
    image = keras.Input(members[0].input_shape[1:], name="image")
    outputs = []
    for number, member in enumerate(members, start=1):
        layers = [keras.Input(member.input_shape[1:]), *member.layers]
        outputs.append(keras.Sequential(layers, name=f"member_{number}")(image))
    mean = keras.layers.Average(name="mean")(outputs)
    return keras.Model(image, mean, name="ensemble")


def find_members(model: Any) -> list[Any]:
    """The classifiers that a network averages; of a classifier, itself alone."""
    layers = getattr(model, "layers", [])
    if layers and isinstance(layers[-1], keras.layers.Average):
        return [layer for layer in layers[:-1] if not isinstance(layer, keras.layers.InputLayer)]
    return [model]
