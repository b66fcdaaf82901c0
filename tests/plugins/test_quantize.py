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
    return rng.standard_normal((8, 8, 8, 3)).astype(np.float32)


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
    with pytest.raises(ConfigError, match="skip names conv2d_99"):
        quantize(model, [pictures], skip=["conv2d_99"])
    with pytest.warns(UserWarning, match="1 examples for calibration"):
        quantised = quantize(model, [pictures[:1]])
    with pytest.raises(ConfigError, match="quantised already"):
        quantize(quantised, [pictures])
    with pytest.raises(ShapeError, match="calibrated for"):
        quantised(gw.tensor(np.zeros((1, 9, 8, 3), np.float32)))
    model.train()
    with pytest.raises(ConfigError, match="eval"):
        quantize(model, [pictures])


def test_constant_activations_are_named(model):
    quantised = quantize(model, [np.zeros((8, 8, 8, 3), np.float32)])
    assert "constant during calibration: x" in quantised.report()
    assert np.isfinite(quantised(gw.tensor(np.zeros((8, 8, 8, 3), np.float32))).numpy()).all()


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


def test_other_batch_sizes_have_the_weights_of_the_calibration(model, pictures):
    quantised = quantize(model, [pictures])
    before = quantised(gw.tensor(pictures)).numpy()
    assert quantised.model is model
    model.first.weight.data *= 2
    np.testing.assert_array_equal(quantised(gw.tensor(pictures[:3])).numpy(), before[:3])


def test_dynamic_ranges_are_of_each_call_and_example(model, pictures):
    quantised = quantize(model, [pictures], mode="dynamic")
    with gw.no_grad():
        wanted = model(gw.tensor(pictures)).numpy()
    assert relative(quantised(gw.tensor(pictures)).numpy(), wanted) < 0.04
    assert quantised.in_bytes == ["conv2d", "conv2d_2", "conv2d_3", "conv2d_4", "linear"]
    far = pictures * np.array([1, 100] * 4, np.float32)[:, None, None, None]  # no range of a calibration would fit both
    with gw.no_grad():
        wanted = model(gw.tensor(far)).numpy()
    found = quantised(gw.tensor(far)).numpy()
    assert all(relative(f, w) < 0.08 for f, w in zip(found, wanted, strict=True))
    np.testing.assert_allclose(quantised(gw.tensor(far[:1])).numpy(), found[:1], rtol=1e-5)  # whoever else is in the batch
    assert np.isfinite(quantised(gw.tensor(np.zeros((1, 8, 8, 3), np.float32))).numpy()).all()
    assert quantised.report().startswith("dynamic quantisation\n")


def test_modes_without_ranges_need_a_shape_only(model, pictures):
    for mode in ("dynamic", "weight_only"):
        with pytest.raises(ConfigError, match="what the input looks like"):
            quantize(model, mode=mode)
        model.input_shape = (8, 8, 3)
        assert quantize(model, mode=mode)(gw.tensor(pictures)).shape == (8, 5)
        del model.input_shape


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_files_of_lowered_graphs_shrink(mode, pictures, tmp_path):
    gw.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(192, 512), nn.Linear(512, 100)).eval()
    quantised = quantize(dense, [pictures], mode=mode)
    quantised.lowered((8, 8, 8, 3)).save(tmp_path / "small.h5")
    with gw.no_grad():
        gw.compile(dense).graph(gw.tensor(pictures)).save(tmp_path / "whole.h5")
    assert (tmp_path / "small.h5").stat().st_size < 0.3 * (tmp_path / "whole.h5").stat().st_size
    loaded = gw.load_graph(tmp_path / "small.h5")
    np.testing.assert_array_equal(loaded(gw.tensor(pictures)).numpy(), quantised(gw.tensor(pictures)).numpy())


class Uneven(nn.Module):
    """Channels of very different sizes between two layers; a function that equalisation finds its way through."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Linear(16, 4)
        spread = 10.0 ** np.linspace(-2, 2, 16).astype(np.float32)
        self.first.weight.data *= spread
        self.second.weight.data /= spread

    def forward(self, x):
        return self.head(F.global_avg_pool2d(F.relu(self.second(F.max_pool2d(F.relu(self.first(x)), 2)))))


def test_equalisation_makes_channels_alike_and_changes_no_result(pictures):
    gw.manual_seed(0)
    model = Uneven().eval()
    with gw.no_grad():
        wanted = model(gw.tensor(pictures)).numpy()
    plain, equalised = quantize(model, [pictures]), quantize(model, [pictures], equalize=True)
    assert equalised.calibration.equalized == 2 and "2 pairs" in equalised.report()
    exact = quantize(model, [pictures], equalize=True, skip=plain.in_bytes)
    np.testing.assert_allclose(exact(gw.tensor(pictures)).numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert relative(equalised(gw.tensor(pictures)).numpy(), wanted) < 0.5 * relative(plain(gw.tensor(pictures)).numpy(), wanted)


def test_bias_correction_takes_out_the_mean_error_of_rounded_weights(rng):
    gw.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 2, groups=2), nn.Flatten(), nn.Linear(16, 8)).eval()
    for layer in (model[0], model[2]):
        layer.weight.data[..., 0, :] *= 60  # an outlier in each output leaves few steps for the others
    x = rng.random((256, 2, 2, 16)).astype(np.float32)
    with gw.no_grad():
        wanted = model(gw.tensor(x)).numpy()
    for mode in ("static", "dynamic", "weight_only"):
        off = [np.abs((quantize(model, [x], mode=mode, correct_bias=c)(gw.tensor(x)).numpy() - wanted).mean(0)).mean()
               for c in (False, True)]  # fmt: skip
        assert off[1] < 0.3 * off[0], mode
