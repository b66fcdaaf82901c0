"""Sensitivity of layers to 8 bits, and mixed precision within a budget."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn
from graftwork.errors import ConfigError, DataError
from graftwork.nn import functional as F
from graftwork.plugins.quantize import mixed_precision, quantize, sensitivity


class Chain(nn.Module):
    """Three layers, of which the middle one has weights that 8 bits cannot hold: one entry dwarfs all others."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.middle.weight.data[3] *= 2000

    def forward(self, x):
        x = F.relu(self.first(x))
        mask = gw.tensor(np.array([1.0] * 3 + [1e-3] + [1.0] * 12, np.float32))
        return self.last(F.relu(self.middle(x * mask)))


@pytest.fixture
def chain():
    gw.manual_seed(1)
    return Chain().eval()


@pytest.fixture
def batches(rng):
    return [rng.standard_normal((32, 16)).astype(np.float32)]


@pytest.mark.parametrize("how", ["one", "without"])
def test_the_layer_that_8_bits_cannot_hold_comes_first(chain, batches, how):
    layers = sensitivity(chain, batches, how=how)
    assert layers[0].weight == "middle.weight" and len(layers) == 3
    assert layers[0].harm > 3 * layers[1].harm and layers[0].harm >= layers[1].harm >= layers[2].harm


def test_a_metric_and_a_quantised_model_are_used_as_given(chain, batches):
    quantised, asked = quantize(chain, batches), []

    def metric(model):
        asked.append(model)
        return -len(model.in_bytes)

    layers = sensitivity(quantised, [], metric)
    assert {len(m.in_bytes) for m in asked} == {0, 1} and {layer.harm for layer in layers} == {1.0}
    with pytest.raises(ConfigError, match="quantised already; observer"):
        sensitivity(quantised, batches, observer="mse")
    with pytest.raises(ConfigError, match="how='both'"):
        sensitivity(chain, batches, how="both")
    with pytest.raises(DataError, match="the metric gave nan"):
        sensitivity(quantised, batches, lambda model: float("nan"))


def test_a_budget_keeps_as_few_layers_in_float_as_it_needs(chain, batches):
    found = mixed_precision(chain, batches, budget=0.03)
    assert found.met and found.in_float == [found.layers[0].name] and found.missed_by == 0
    assert found.score >= found.float_score - 0.03 and (1, found.score) in found.tried
    assert found.in_float[0] in found.model.in_float and "1 of 3 layers" in str(found)
    assert mixed_precision(chain, batches, budget=10.0).in_float == []


def test_a_budget_that_cannot_be_met_gives_the_best_and_by_how_much_it_misses(chain, batches):
    found = mixed_precision(chain, batches, budget=0.0, most_float=0.4)
    assert not found.met and len(found.in_float) == 1 and 0 < found.missed_by < 0.05
    assert "missing by" in str(found)
    with pytest.raises(ConfigError, match="budget=-1"):
        mixed_precision(chain, batches, budget=-1)
