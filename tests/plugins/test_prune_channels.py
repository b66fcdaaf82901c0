"""Channel pruning: what is coupled goes together, the smaller network computes what the larger one does with those channels
silent, and it trains and saves like any other."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.nn import functional as F
from graftwork.nn.modules.module import assign
from graftwork.nn.modules.resize import resize
from graftwork.plugins.prune import prune_channels
from graftwork.plugins.prune.dependencies import analyse


class Mixed(nn.Module):
    """An addition, a concatenation, batch norms, a depthwise and a separable convolution, a gate, and a flattened head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.stem_bn = nn.BatchNorm(8, scale=False)
        self.inner = nn.Conv2d(8, 6, 1)
        self.outer = nn.Conv2d(6, 8, 3, padding="same")
        self.depthwise = nn.DepthwiseConv2d(8, 3, padding="same", multiplier=2)
        self.depthwise_bn = nn.BatchNorm(16)
        self.side = nn.Conv2d(16, 4, 1)
        self.other = nn.Conv2d(16, 6, 1)
        self.separable = nn.SeparableConv2d(10, 8, 3, padding="same")
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(4 * 4 * 8, 5)

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = F.relu(self.depthwise_bn(self.depthwise(x)))
        x = F.concat([F.relu(self.side(x)), F.relu(self.other(x))])
        x = F.relu(self.separable(x))
        x = x * F.sigmoid(self.gate(x.mean((1, 2), keepdims=True)))
        return self.head(x.reshape((x.shape[0], -1)))


@pytest.fixture
def model():
    gw.manual_seed(0)
    net = Mixed()
    rng = np.random.default_rng(1)
    for _, value in [*net.named_parameters(), *net.named_buffers()]:
        assign(value, np.abs(rng.normal(1, 0.3, value.shape)) if value.ndim == 1 else rng.normal(0, 0.3, value.shape))
    return net.eval()


@pytest.fixture
def x():
    return gw.tensor(np.random.default_rng(2).standard_normal((2, 4, 4, 3)).astype(np.float32))


def lost(model, small, found):
    """Numbers of the channels that went, found by matching each layer's biases or scales, which are all different."""
    before, after, gone = model.state_dict(), small.state_dict(), set()
    for i, axes in found.axes.items():
        name = found.names[i]
        if before[name].ndim == 1:
            gone |= {n for n, v in zip(axes[0].tolist(), before[name], strict=True) if v not in after[name]}
    return gone


@pytest.mark.parametrize("options", [{"amount": 0.3}, {"amount": 0.4, "scope": "global", "importance": "l2"},
                                     {"target_macs": 0.5}, {"amount": 0.25, "importance": "batch_norm"}])  # fmt: skip
def test_the_smaller_network_computes_what_the_larger_does_without_those_channels(model, x, options):
    small, report = prune_channels(model, x, **options)
    found = analyse(model, x)
    gone = lost(model, small, found)
    assert gone
    for i, axes in found.axes.items():  # nobody reads or makes a lost channel any more
        array = found.tensors[i].numpy().copy()
        for axis, numbers in axes.items():
            np.moveaxis(array, axis, 0)[[n in gone for n in numbers.tolist()]] = 0
        assign(found.tensors[i], array)
    with gw.no_grad():
        np.testing.assert_allclose(small(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-5)  # sums in another order
    assert type(small) is Mixed and report.macs[1] < report.macs[0] and report.parameters[1] == small.count_parameters()


def test_joined_layers_lose_the_same_channels_and_the_original_stays(model, x):
    before = model.state_dict()
    small, report = prune_channels(model, x, amount=0.5)
    kept = small.stem.weight.shape[3]
    assert kept == 4 == small.outer.weight.shape[3] == small.depthwise.groups
    assert small.depthwise.weight.shape[3] == 8 == small.depthwise_bn.gamma.shape[0]
    assert small.separable.channels == small.separable.weight.shape[2] == 2 + 3
    assert small.gate.weight.shape[2:] == (4, 4) and small.head.weight.shape == (4 * 4 * 4, 5)
    assert dict((name, after) for name, _, after in report.layers)["stem.weight"] == 4
    assert "output" in report.kept["head.weight"]
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_least_important_channels_go(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    assign(net[0].weight, np.array([0.5, 0.1, 0.9, 0.2]) * np.ones((1, 1, 3, 4)))
    assign(net[0].bias, np.array([1, 2, 3, 4]))
    small, _ = prune_channels(net, x, amount=0.5)
    assert small[0].bias.numpy().tolist() == [1, 3]


def test_a_target_of_multiplications_is_met_closely_by_a_real_network():
    model = zoo.create("glyphnet", weights="glyphs")
    example = gw.tensor(np.zeros((1, *model.input_shape), np.float32))
    report = prune_channels(model, example, target_macs=0.6).report
    assert 0.55 < report.macs[1] / report.macs[0] <= 0.6
    assert "multiplications" in str(report) and report.to_dict()["macs"] == report.macs


def test_padded_shortcuts_keep_their_channels_and_the_blocks_inside_go():
    model = zoo.create("resnet20")
    example = gw.tensor(np.zeros((1, 32, 32, 3), np.float32))
    small, report = prune_channels(model, example, amount=0.5, multiple=4)
    assert small.stage2[1].conv1.weight.shape == (3, 3, 32, 16) and small.stage2[1].conv2.weight.shape == (3, 3, 16, 32)
    assert "pad" in report.kept["stage1.0.conv2.weight"]


def test_pruned_networks_train_and_save(model, x, tmp_path):
    small, _ = prune_channels(model.train(), x, amount=0.5)
    assert small.training
    optimizer = nn.optim.SGD(small.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(x), gw.tensor(np.array([0, 3])))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    zoo.save_weights(small, tmp_path / "w.h5")
    again = prune_channels(Mixed(), x, amount=0.5).model
    zoo.load_weights(again, tmp_path / "w.h5")
    with gw.no_grad():
        assert np.array_equal(again.eval()(x).numpy(), small.eval()(x).numpy())


def test_refusals(model, x):
    for options, message in [
        ({}, "give one of them"), ({"amount": 0.5, "target_macs": 0.5}, "give one of them"),
        ({"amount": 1.0}, "below 1"), ({"target_macs": 0.0}, "share to keep"), ({"amount": 0.5, "importance": "l3"}, "'l3'"),
        ({"amount": 0.5, "scope": "row"}, "'row'"), ({"amount": 0.5, "multiple": 0}, "multiple=0"),
        ({"amount": 0.5, "skip": ("nobody",)}, "'nobody' is no module"), ({"target_macs": 0.001}, "out of reach"),
    ]:  # fmt: skip
        with pytest.raises(errors.ConfigError, match=message):
            prune_channels(model, x, **options)
    with pytest.raises(errors.ConfigError, match="it is an output"):
        prune_channels(nn.Sequential(nn.Conv2d(3, 4, 1)), x, amount=0.5)
    small, report = prune_channels(model, x, amount=0.5, skip=("inner",))
    assert small.inner.weight.shape[3] == 6 and report.kept["inner.weight"] == "it is named in skip"


def test_code_that_insists_on_its_sizes_is_named(x):
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(64, 2)

        def forward(self, x):
            return self.head(self.conv(x).reshape((x.shape[0], 64)))

    with pytest.raises(errors.ModelError, match="does not run with fewer channels"):
        prune_channels(Stubborn(), x, amount=0.5)


def test_resize_refuses_what_does_not_fit(model):
    with pytest.raises(errors.ShapeError, match=r"nobody \(3,\)"):
        resize(model, {"nobody": np.zeros(3)})
    with pytest.raises(errors.ShapeError, match=r"inner.bias \(3, 3\)"):
        resize(model, {"inner.bias": np.zeros((3, 3))})


def test_reconstruction_makes_most_of_the_damage_good():
    model = zoo.create("glyphnet", weights="glyphs")
    seen, fresh = (gw.tensor(np.random.default_rng(i).random((24, *model.input_shape), np.float32)) for i in (0, 1))
    plain = prune_channels(model, seen, amount=0.25).model
    fitted = prune_channels(model.train(), seen, amount=0.25, reconstruct=True).model
    assert model.training and fitted.training
    with gw.no_grad():
        expected, cut, made_good = (net.eval()(fresh).numpy() for net in (model, plain, fitted))
    # weights are fitted to other inputs than these: half of the error is asked for, much more goes
    assert np.linalg.norm(made_good - expected) < 0.5 * np.linalg.norm(cut - expected)


def test_reconstruction_is_exact_where_the_lost_channels_repeat_others(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 2, 3, 2, padding=1), nn.Flatten(),
                        nn.Linear(8, 3)).eval()  # fmt: skip
    first = net[0].weight.numpy().copy()
    first[..., 2:] = 0.5 * first[..., :2]  # half as large, and so the first to go
    assign(net[0].weight, first)
    images = gw.tensor(np.random.default_rng(0).standard_normal((64, 4, 4, 3)).astype(np.float32))
    small = prune_channels(net, images, amount=0.5, skip=("2",), reconstruct=True).model
    assert small[0].weight.shape[3] == 2
    with gw.no_grad():  # the ridge, a thousandth, is what is left
        np.testing.assert_allclose(small(images).numpy(), net(images).numpy(), atol=0.02 * np.abs(net(images).numpy()).max())
