"""Every layer of Keras against outputs of Keras 3 itself: scripts/keras_layer_goldens.py made them."""

from __future__ import annotations

import json
from pathlib import Path

import filling
import numpy as np
import pytest

import graftwork as gw
from graftwork.zoo.keras.model import build_keras, legacy, plan_keras

GOLDENS = Path(__file__).parent / "goldens" / "layers"
FACTS = json.loads(GOLDENS.with_suffix(".json").read_text())
VERSION = FACTS.pop("keras")
TOLERANCE = 1e-5  # float32 sums in another order than Keras's, relative to the largest output
LOOSER = {  # where an output is a small difference of large terms
    "nested twice": 5e-5,
}


@pytest.fixture(scope="module")
def outputs():
    with np.load(GOLDENS.with_suffix(".npz")) as file:
        return dict(file)


def model_of(name):
    config = FACTS[name]["config"]
    weights = {
        layer: [(own[i].name, filling.layer_value(name, layer, n, own[i].name, own[i].shape)) for n, i in enumerate(legacy(own))]
        for layer, own in plan_keras(config, VERSION).weights().items()
    }
    return build_keras(config, weights, name, VERSION)


def inputs_of(name, batch=2):
    fact = FACTS[name]
    pairs = zip(fact["shapes"], fact["integers"], strict=True)
    return [gw.tensor(filling.layer_input(name, i, (batch, *shape), top)) for i, (shape, top) in enumerate(pairs)]


@pytest.mark.parametrize("name", FACTS)
def test_as_keras_computes_it(name, outputs):
    model = model_of(name)
    with gw.no_grad():
        found = model(*inputs_of(name))
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == sum(key.rpartition("/")[0] == name for key in outputs)
    for i, (y, shape) in enumerate(zip(found, model.output_shapes, strict=True)):
        want = outputs[f"{name}/{i}"]
        assert y.shape == want.shape and all(n in (None, m) for n, m in zip(shape, want.shape[1:], strict=True))
        np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=LOOSER.get(name, TOLERANCE) * max(abs(want).max(), 1e-6))
