"""Networks of the zoo as static graphs, and in training."""

import filling
import numpy as np
import pytest

import graftwork as gw
from graftwork import zoo
from graftwork.nn.modules.module import assign
from graftwork.zoo.weights import layer_slots


def filled(name, size):
    model = zoo.create(name, classes=3, input_shape=(size, size, 3))
    for layer, slots in layer_slots(model).items():
        for slot in slots:
            assign(slot.tensor, filling.values(layer, slot.name, slot.shape).reshape(slot.tensor.shape))
    return model


def inputs(model, size):
    return gw.tensor((filling.pixels if model.preprocessing == "raw" else filling.pictures)(size, size))


@pytest.mark.parametrize(("name", "size"), [
    ("mobilenet", 32), ("mobilenet_v3_small", 32), ("mobilenet_v3_large", 32), ("densenet121", 32), ("nasnet_mobile", 32),
    ("inception_v3", 75), ("xception", 71),
])  # fmt: skip
def test_compiled_equals_eager(name, size):
    """float32 summed in another order: batch normalisation is folded into the convolutions."""
    model = filled(name, size)
    x, fast = inputs(model, size), gw.compile(model)
    with gw.no_grad():
        expected, found = model(x).numpy(), fast(x).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v3_small", "densenet121"])
def test_training_reaches_every_parameter(name):
    model = filled(name, 32).train()
    gw.nn.functional.cross_entropy(model(inputs(model, 32)), gw.tensor(np.array([0, 2]))).backward()
    assert all(p.grad is not None and np.isfinite(p.grad.numpy()).all() for p in model.parameters())
