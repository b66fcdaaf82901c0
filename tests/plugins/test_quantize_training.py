"""Quantisation-aware training: the same roundings as in bytes, straight-through gradients, ranges that move and freeze."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn, plugins
from graftwork.errors import ConfigError, ShapeError
from graftwork.nn import functional as F
from graftwork.plugins.quantize import FreezeRanges, convert, prepare_qat, quantize
from graftwork.plugins.quantize.qat import fake_quantize, fake_quantize_weight


class Net(nn.Module):
    """Batch norm, a residual, a gate in float32, a reshape that knows the batch's size."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm(8)
        self.second, self.gate = nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(128, 3)

    def forward(self, x):
        x = F.silu(self.norm(self.first(x)))
        y = F.relu(self.second(x) + x)
        y = y * F.sigmoid(self.gate(F.global_avg_pool2d(y, keepdims=True)))
        return self.head(F.reshape(F.max_pool2d(y, 2), (x.shape[0], 128)))


@pytest.fixture
def net():
    gw.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images(rng):
    return rng.standard_normal((24, 8, 8, 3)).astype(np.float32)


def relative(found, wanted) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_fake_quantisation_rounds_within_the_range_and_lets_the_gradient_through():
    x = gw.tensor(np.array([-2.0, -0.4, 0.0, 0.26, 0.9, 3.0], np.float32), requires_grad=True)
    low, high = (gw.tensor(np.float32(v)) for v in (-0.5, 1.0))
    y = fake_quantize(x, low, high)
    scale = 1.5 / 255
    np.testing.assert_allclose(y.numpy() / scale, np.round(y.numpy() / scale), atol=1e-3)  # whole steps, zero among them
    np.testing.assert_allclose(y.numpy(), [-0.5, -0.4, 0.0, 0.26, 0.9, 1.0], atol=0.5 * scale)
    y.sum().backward()
    assert x.grad.numpy().tolist() == [0, 1, 1, 1, 1, 0]


def test_fake_weights_are_those_of_the_int8_kernels(rng):
    from graftwork.plugins.quantize.rewrite import quantise_weight

    array = rng.standard_normal((3, 3, 4, 5)).astype(np.float32)
    array[..., 2] = 0
    stored, scale, _ = quantise_weight(array, None, 1.0)
    weight = gw.tensor(array, requires_grad=True)
    found = fake_quantize_weight(weight)
    np.testing.assert_allclose(found.numpy(), stored * scale, atol=1e-6)
    found.sum().backward()
    np.testing.assert_allclose(weight.grad.numpy(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_fake_network_computes_what_the_bytes_do_before_and_after_conversion(net, images, corrected):
    quantised = quantize(net, [images], correct_bias=corrected)
    fake = prepare_qat(quantised).eval()
    x = gw.tensor(images[:5])  # another batch size than the calibration's
    bytes_ = quantised(x).numpy()
    with gw.no_grad():
        # biases that are not zero are rounded to whole numbers in bytes: that may tip a value over to the next step
        assert relative(fake(x).numpy(), bytes_) < (0.005 if corrected else 1e-5)
        assert relative(convert(fake)(x).numpy(), bytes_) < 1e-5
        with pytest.raises(ShapeError, match="prepared for"):
            fake(gw.tensor(np.zeros((1, 9, 8, 3), np.float32)))
    assert set(dict(fake.named_parameters())) == {
        "first.weight", "norm.beta", "second.weight", "second.bias", "gate.weight", "gate.bias", "head.weight", "head.bias"
    }  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
def test_training_recovers_what_rounding_has_cost(net, images, compiled):
    """Its weights disturbed, the network learns to give its own float32 outputs again, in 8 bits."""
    with gw.no_grad():
        wanted = net(gw.tensor(images)).numpy()
    fake = prepare_qat(net, [images], momentum=0.9)
    for parameter in fake.parameters():  # as if trained for something else
        parameter.data += 0.02 * np.random.default_rng(1).standard_normal(parameter.shape).astype(np.float32)
    before = relative(convert(fake)(gw.tensor(images)).numpy(), wanted)
    high = float(fake._buffers["silu.high"].numpy())
    loader = nn.DataLoader(nn.ArrayDataset(images, wanted), 12, seed=0)
    loss = lambda y, t: F.mean(F.square(y - t))  # noqa: E731
    trainer = nn.Trainer(fake, nn.optim.Adam(fake.parameters(), lr=0.003), loss, progress=False, compile=compiled)
    with plugins.registered(FreezeRanges(fake, 20), "freeze"):
        trainer.fit(loader, 30)
    assert not fake.observing
    assert float(fake._buffers["silu.high"].numpy()) != high
    after = convert(fake)
    assert relative(after(gw.tensor(images)).numpy(), wanted) < 0.5 * before
    with gw.no_grad():
        # 0.005: as above
        assert relative(after(gw.tensor(images)).numpy(), fake.eval()(gw.tensor(images)).numpy()) < 0.005
    assert "trained in 8 bits" in after.report()


def test_ranges_move_in_training_only_and_until_they_are_frozen(net, images):
    fake = prepare_qat(net, [images])
    wide = gw.tensor(images * 3)

    def ranges():
        return [float(b.numpy()) for name, b in fake.named_buffers() if name.endswith((".low", ".high"))]

    start = ranges()
    fake.eval()(wide)
    assert ranges() == start
    fake.train()(wide)
    moved = ranges()
    assert moved != start
    fake.freeze_ranges()
    fake(wide)
    assert ranges() == moved and "frozen" in repr(fake)


def test_bad_input_is_explained(net, images):
    with pytest.raises(ConfigError, match="only static"):
        prepare_qat(quantize(net, [images], mode="dynamic"))
    with pytest.raises(ConfigError, match="calibrated already"):
        prepare_qat(quantize(net, [images]), [images])
    with pytest.raises(ConfigError, match="momentum=1"):
        prepare_qat(net, [images], momentum=1)
    with pytest.raises(ConfigError, match="a Net given"):
        convert(net)
    fake = prepare_qat(net, [images])
    with pytest.raises(ConfigError, match="epochs=0"):
        FreezeRanges(fake, 0)
    next(fake.parameters()).data[...] = np.nan
    with pytest.raises(ConfigError, match="diverged"):
        convert(fake)
