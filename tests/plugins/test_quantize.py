"""The quantize plugin: a small network of every kind of node, ranges, observers, bad input."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn
from graftwork.errors import ConfigError, DataError, ShapeError
from graftwork.nn import functional as F
from graftwork.plugins.quantize import quantize
from graftwork.plugins.quantize.observers import OBSERVERS, make
from graftwork.plugins.quantize.rewrite import form_of, quantise_weight


class Small(nn.Module):
    """Convolution, batch norm, depthwise, residual, concatenation, pooling, a table (silu), a dense head."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.second, self.third = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        y = F.relu(self.second(F.relu6(self.depthwise(x))) + x)
        y = F.max_pool2d(y, 2)
        z = F.concat([y, F.silu(self.third(y))])
        return self.head(F.global_avg_pool2d(z))


@pytest.fixture
def model():
    gw.manual_seed(0)
    model = Small()
    model.eval()
    return model


@pytest.fixture
def pictures(rng):
    return rng.standard_normal((6, 8, 8, 3)).astype(np.float32)


def relative(found, wanted) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_a_network_in_bytes_from_end_to_end(model, pictures):
    quantised = quantize(model, [pictures[:4], pictures[4:]])
    with gw.no_grad():
        wanted = model(gw.tensor(pictures)).numpy()
    assert relative(quantised(gw.tensor(pictures)).numpy(), wanted) < 0.06  # five products of 8 bits, random weights
    assert relative(quantised(gw.tensor(pictures[:1])).numpy(), quantised(gw.tensor(pictures)).numpy()[:1]) == 0
    names = [n.op.name for n in quantised.graph().nodes]
    assert names.count("quantize") == 1 and "dequantize" not in names  # no detour through float
    assert quantised.in_float == []
    assert {"quantized_conv2d_add", "quantized_max_pool2d", "byte_table", "concat", "quantized_avg_pool2d"} <= set(names)
    assert "8 bits" in quantised.report()


def test_what_is_skipped_or_weight_only_stays_in_float(model, pictures):
    with gw.no_grad():
        wanted = model(gw.tensor(pictures)).numpy()
    some = quantize(model, [pictures], skip=("conv2d",))
    assert some.in_float == ["conv2d"]
    assert relative(some(gw.tensor(pictures)).numpy(), wanted) < 0.06
    rounded = quantize(model, [pictures], mode="weight_only")
    assert relative(rounded(gw.tensor(pictures)).numpy(), wanted) < 0.02
    assert all(n.op.name != "quantize" for n in rounded.graph().nodes)


def test_bad_input_is_explained(model, pictures):
    with pytest.raises(DataError, match="no calibration data"):
        quantize(model, [])
    with pytest.raises(DataError, match="NaN"):
        quantize(model, [np.full((1, 8, 8, 3), np.nan, np.float32)])
    with pytest.raises(DataError, match="expected float32"):
        quantize(model, [np.zeros((1, 8, 8, 3))])
    with pytest.raises(ConfigError, match="observer='best'"):
        quantize(model, [pictures], observer="best")
    with pytest.raises(ConfigError, match="mode='int4'"):
        quantize(model, [pictures], mode="int4")
    quantised = quantize(model, [pictures[:1]])
    with pytest.raises(ConfigError, match="quantised already"):
        quantize(quantised, [pictures])
    with pytest.raises(ShapeError, match="calibrated for"):
        quantised(gw.tensor(np.zeros((1, 9, 8, 3), np.float32)))
    model.train()
    with pytest.raises(ConfigError, match="eval"):
        quantize(model, [pictures])


def test_constant_activations_are_named(model):
    quantised = quantize(model, [np.zeros((2, 8, 8, 3), np.float32)])
    assert "constant during calibration: x" in quantised.report()
    assert np.isfinite(quantised(gw.tensor(np.zeros((2, 8, 8, 3), np.float32))).numpy()).all()


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_cover_what_matters(name, rng):
    observer = make(name)
    for _ in range(3):
        observer.update(rng.standard_normal(20000).astype(np.float32))
    low, high = observer.range()
    assert -6 < low < -1.5 and 1.5 < high < 6
    if name in ("percentile", "mse", "entropy"):  # one outlier does not cost them their resolution
        observer.update(np.array([60.0], np.float32))
        assert observer.range()[1] < 59
    with pytest.raises(DataError, match="NaN or infinity"):
        observer.update(np.array([np.inf], np.float32))


def test_forms_hold_zero_and_weights_have_a_scale_a_channel():
    assert form_of(0.0, 2.55).zero == 0 and form_of(-1.0, -0.5).zero == 255
    assert form_of(0.0, 0.0) == (1.0, 0)
    values = np.array([[1.5, 0.0], [-2.0, 0.0]], np.float32)
    weight, scale, bias = quantise_weight(values, np.array([1.0, 3.0], np.float32), 0.5)
    assert weight.tolist() == [[95, 0], [-127, 0]]
    np.testing.assert_allclose(bias * 0.5 * scale, [1.0, 3.0], rtol=0.01)


class Gate(nn.Module):
    """A convolution with silu, squeezed and excited."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.silu(self.first(x))
        x = x * F.sigmoid(self.gate(F.global_avg_pool2d(x, keepdims=True)))
        return self.last(x)


def test_a_gate_before_a_float_product_is_computed_in_float(pictures):
    gw.manual_seed(0)
    model = Gate().eval()
    model.first.weight.data *= 30  # wide: the negative half of what silu sees ends as zeros
    quantised = quantize(model, [pictures])
    assert {"sigmoid", "multiply"} <= {name.split("_")[0] for name in quantised.in_float}
    convs = [n for n in quantised.graph().nodes if n.op.name == "quantized_conv2d"]
    assert convs[1].attrs["dtype"] == "float32"  # no byte between the gate's convolution and its sigmoid
    steps = convs[0].attrs["out_zero_point"]
    assert steps < 64  # silu's flat side does not take half of the bytes
    with gw.no_grad():
        assert relative(quantised(gw.tensor(pictures)).numpy(), model(gw.tensor(pictures)).numpy()) < 0.03
