"""Modules: the tree, state, freezing, and what layers compute against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn
from graftwork.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.bn = nn.BatchNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.global_avg_pool2d(F.relu(self.bn(self.conv(x)))))


def test_names_follow_attributes():
    names = [n for n, _ in Net().named_parameters()]
    assert names == ["conv.weight", "conv.bias", "bn.gamma", "bn.beta", "head.weight", "head.bias"]
    assert [n for n, _ in Net().named_buffers()] == ["bn.moving_mean", "bn.moving_variance"]


def test_state_round_trip_and_nothing_half_loaded():
    gw.manual_seed(1)
    a, b = Net(), Net()
    b.load_state_dict(a.state_dict())
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy(), err_msg=name)
    before, state = b.state_dict(), a.state_dict()
    state["conv.weight"] = np.zeros((3, 3, 3, 5), np.float32)
    del state["head.bias"]
    with pytest.raises(errors.WeightsError, match=r"1 missing, 1 mismatched\n +missing +head.bias.*\n +mismatched +conv"):
        b.load_state_dict({**{k: v + 1 for k, v in state.items()}})
    for name, value in b.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_training_updates_statistics_and_freezing_stops_it(rng):
    net, x = Net(), gw.tensor(rng.random((8, 5, 5, 3)).astype(np.float32))
    start = net.bn.moving_mean.numpy().copy()
    net.train()(x)
    moved = net.bn.moving_mean.numpy().copy()
    assert not np.array_equal(start, moved)
    net.freeze().train()
    net(x)
    np.testing.assert_array_equal(net.bn.moving_mean.numpy(), moved)
    assert not any(p.requires_grad for p in net.parameters())
    net.unfreeze().train()
    net(x).sum().backward()
    assert net.conv.weight.grad is not None


def test_forgotten_super_init_is_explained():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)

    with pytest.raises(AttributeError, match=r"super\(\).__init__"):
        Forgetful()


def test_dropout_scales_and_repeats_with_the_seed():
    x = gw.tensor(np.ones((200, 50), np.float32))
    layer = nn.Dropout(0.3)
    gw.manual_seed(5)
    a = layer(x).numpy()
    b = layer(x).numpy()
    gw.manual_seed(5)
    np.testing.assert_array_equal(layer(x).numpy(), a)
    assert not np.array_equal(a, b)
    assert np.allclose(np.unique(a), [0, 1 / 0.7]) and abs((a == 0).mean() - 0.3) < 0.02  # 10,000 draws: 4 deviations
    assert layer.eval()(x) is x


PADDINGS = ["valid", 1, (0, 2), ((1, 2), (0, 1))]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_conv2d_and_gradients_equal_pytorch(rng, padding, stride, groups):
    torch = pytest.importorskip("torch")
    x, w, b = rng.standard_normal((2, 7, 8, 4)), rng.standard_normal((3, 2, 4 // groups, 6)), rng.standard_normal(6)
    ours = [gw.tensor(a, requires_grad=True) for a in (x, w, b)]
    y = F.conv2d(*ours, stride=stride, padding=padding, groups=groups)
    y.sum().backward()
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    (top, bottom), (left, right) = {
        "valid": ((0, 0), (0, 0)), 1: ((1, 1), (1, 1)), (0, 2): ((0, 0), (2, 2)),
    }.get(padding, padding)  # fmt: skip
    nchw = torch.nn.functional.pad(theirs[0].permute(0, 3, 1, 2), (left, right, top, bottom))
    z = torch.nn.functional.conv2d(nchw, theirs[1].permute(3, 2, 0, 1), theirs[2], stride, groups=groups)
    z.sum().backward()
    np.testing.assert_allclose(y.numpy(), z.permute(0, 2, 3, 1).detach().numpy(), rtol=1e-11, atol=1e-11)  # float64
    for a, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), t.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size, stride, window, expected", [(5, 2, 3, (1, 1)), (6, 2, 3, (0, 1)), (7, 1, 4, (1, 2))])
def test_same_padding_puts_the_odd_pixel_last(size, stride, window, expected):
    from graftwork.nn.ops.common import normal_padding

    assert normal_padding("t", "same", (size, size), (window, window), (stride, stride))[0] == expected


def test_transposed_convolution_equals_pytorch(rng):
    torch = pytest.importorskip("torch")
    x, w = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((3, 3, 6, 3))
    y = F.conv2d_transpose(gw.tensor(x), gw.tensor(w), stride=2, padding=1, output_padding=1)
    z = torch.nn.functional.conv_transpose2d(
        torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w).permute(3, 2, 0, 1), stride=2, padding=1, output_padding=1
    )
    np.testing.assert_allclose(y.numpy(), z.permute(0, 2, 3, 1).numpy(), rtol=1e-11, atol=1e-11)


ELEMENTWISE = {
    "silu": "silu", "softplus": "softplus", "elu": "elu", "hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid",
    "relu6": "relu6", "sigmoid": "sigmoid", "tanh": "tanh", "gelu": "gelu", "leaky_relu": "leaky_relu",
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activations_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    x = np.linspace(-30, 30, 40001).astype(np.float32)  # large enough for the compiled loops
    ours = getattr(F, name)(gw.tensor(x)).numpy()
    theirs = getattr(torch.nn.functional, ELEMENTWISE[name])(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)  # float32 exponentials by two implementations


def test_cross_entropy_equals_pytorch_and_refuses_bad_labels(rng):
    torch = pytest.importorskip("torch")
    x, t = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    ours = F.cross_entropy(gw.tensor(x), gw.tensor(t), label_smoothing=0.1).item()
    theirs = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(t), label_smoothing=0.1).item()
    assert ours == pytest.approx(theirs, rel=1e-12)
    with pytest.raises(errors.ShapeError, match="labels run from 0 to 7, but the logits have 5 classes"):
        F.cross_entropy(gw.tensor(x), gw.tensor(np.array([0, 7, 1, 1, 1, 1])))


def test_mismatched_losses_do_not_broadcast():
    with pytest.raises(errors.ShapeError, match="mse_loss"):
        F.mse_loss(gw.tensor(np.ones((4, 1))), gw.tensor(np.ones(4)))
