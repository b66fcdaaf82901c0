"""Every layer of Keras against outputs of Keras 3 itself: scripts/keras_layer_goldens.py made them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import filling
import numpy as np
import pytest

import graftwork as gw
from graftwork.errors import ModelError
from graftwork.zoo.keras import build_keras, plan_keras
from graftwork.zoo.keras.model import legacy

GOLDENS = Path(__file__).parent / "goldens" / "layers"
FACTS = json.loads(GOLDENS.with_suffix(".json").read_text())
VERSION = FACTS.pop("keras")
TOLERANCE = 1e-5  # float32 sums in another order than Keras's, relative to the largest output


@pytest.fixture(scope="module")
def outputs():
    with np.load(GOLDENS.with_suffix(".npz")) as file:
        return dict(file)


def model_of(name):
    config = FACTS[name]["config"]
    weights = {}
    for layer, own in plan_keras(config, VERSION).weights().items():
        tensors = [own[i] for i in legacy(own)]
        weights[layer] = [(w.name, filling.layer_value(name, layer, n, w.name, w.shape)) for n, w in enumerate(tensors)]
    return build_keras(config, weights, name, VERSION)


def inputs_of(name):
    pairs = zip(FACTS[name]["shapes"], FACTS[name]["integers"], strict=True)
    return [gw.tensor(filling.layer_input(name, i, (2, *shape), top)) for i, (shape, top) in enumerate(pairs)]


def results(found):
    return [y.numpy() for y in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("name", FACTS)
def test_as_keras_computes_it(name, outputs):
    model = model_of(name)
    with gw.no_grad():
        found = results(model(*inputs_of(name)))
    assert len(found) == sum(key.rpartition("/")[0] == name for key in outputs)
    for i, (y, shape) in enumerate(zip(found, model.output_shapes, strict=True)):
        want = outputs[f"{name}/{i}"]
        assert y.shape == want.shape and all(n in (None, m) for n, m in zip(shape, want.shape[1:], strict=True))
        np.testing.assert_allclose(y, want, rtol=0, atol=TOLERANCE * max(abs(want).max(), 1e-6))


@pytest.mark.parametrize("name", ["both state", "mask both", "heads causal", "nested", "conv3d same", "transformer"])
def test_compiled(name):
    """A capture unrolls recurrences and carries masks; the numbers stay."""
    model, inputs = model_of(name), inputs_of(name)
    with gw.no_grad():
        want, found = results(model(*inputs)), results(gw.compile(model)(*inputs))
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(abs(b).max(), 1e-6))


def test_recurrent_layers_learn():
    model = model_of("LSTM both")
    model.train()
    y = model(*inputs_of("LSTM both"))
    (y * y).sum().backward()
    assert all(np.abs(p.grad.numpy()).max() > 0 for p in model.parameters())


# -- damage ------------------------------------------------------------------------------------------------------------

WRONG = (None, True, -1, 0, 10**30, 2**31, 1.5, float("nan"), "x", "a/b", "", [], {}, [[]], [None], {"class_name": "Lambda"})


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(config, dice):
    """A copy with one to three nodes changed, deleted, or replaced by another part of the configuration."""
    config = json.loads(json.dumps(config))
    for _ in range(dice.randint(1, 3)):
        spots = list(places(config))[1:]
        if not spots:
            break
        path, other = dice.choice(spots), dice.choice(spots)
        target, source = config, config
        for key in path[:-1]:
            target = target[key]
        for key in other:
            source = source[key]
        action = dice.random()
        if action < 0.2:
            del target[path[-1]]
        elif action < 0.8:
            target[path[-1]] = dice.choice(WRONG)
        else:
            target[path[-1]] = json.loads(json.dumps(source))
    return config


def test_any_damage_to_a_configuration_is_a_clear_error():
    """Random nodes of random configurations changed: a plan or a ModelError, and nothing else."""
    dice, outcomes = random.Random(7), {"plan": 0, "refused": 0}
    names = sorted(FACTS)
    for _ in range(4000):
        try:
            plan_keras(mutated(FACTS[dice.choice(names)]["config"], dice), dice.choice((VERSION, "2.15.0", "1.2.2", None)))
            outcomes["plan"] += 1
        except ModelError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
