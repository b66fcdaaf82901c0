"""Every function of `nn.functional` that PyTorch has too: values and gradients in float64, and values in float32."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork.nn import functional as F

torch = pytest.importorskip("torch")
T = torch.nn.functional

# A float for people; random bits; a node of the tape; 8-bit products, whose rounding is our own.
OURS_ALONE = {"accuracy", "dropout", "identity", "quantized_matmul", "quantized_conv2d"}
CASES = []  # name, label, ours, theirs, inputs, whether it is differentiated


def case(name, theirs, *inputs, ours=None, label="", gradient=True):
    CASES.append(pytest.param(ours or getattr(F, name), theirs, inputs, gradient, id=f"{name}{'-' + label if label else ''}"))
    NAMES.add(name)


NAMES: set[str] = set()
RNG = np.random.default_rng(5)


def values(*shape):
    """Away from zero, where kinks are."""
    x = RNG.standard_normal(shape)
    return np.where(np.abs(x) < 0.05, 0.3, x)


def positive(*shape):
    return RNG.random(shape) + 0.3


def distinct(*shape):
    """No two values alike, so that a maximum has one place."""
    return RNG.permutation(int(np.prod(shape))).reshape(shape) * 0.1 - 3.0


def integers(high, *shape):
    return RNG.integers(0, high, shape)


def nchw(function):
    """PyTorch's function of (batch, channels, height, width) as one of our layout, for its first argument and its result."""
    return lambda x, *rest: function(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)


# -- elementwise -----------------------------------------------------------------------------------------------------

for _name in ("abs", "ceil", "cos", "erf", "exp", "expm1", "floor", "negative", "reciprocal", "round", "sigmoid", "sign", "sin",
              "square", "tanh"):  # fmt: skip
    case(_name, getattr(torch, _name), values(3, 4))
for _name in ("log", "log1p", "rsqrt", "sqrt"):
    case(_name, getattr(torch, _name), positive(3, 4))
for _name, _theirs in {
    "elu": T.elu, "gelu": T.gelu, "hard_swish": T.hardswish, "leaky_relu": T.leaky_relu,
    "relu": T.relu, "relu6": T.relu6, "silu": T.silu, "softplus": T.softplus,
}.items():  # fmt: skip
    case(_name, _theirs, values(4, 5) * 4)
case("hard_sigmoid", lambda x: T.relu6(x + 3) / 6, values(4, 5) * 4)  # their gradient of hardsigmoid rounds 1/6 to float32
for _name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
    for _shapes in (((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1, 4), (3, 1)), ((), (2, 3))):
        case(_name, getattr(torch, _name), values(*_shapes[0]), values(*_shapes[1]), label=str(_shapes))
case("maximum", torch.maximum, np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), label="tie")
case("power", torch.pow, positive(3, 4), values(4))
for _name, _theirs in {
    "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le, "greater": torch.gt,
    "greater_equal": torch.ge,
}.items():  # fmt: skip
    case(_name, _theirs, np.round(values(4, 5)), np.round(values(5)), gradient=False)
for _name in ("logical_and", "logical_or"):
    case(_name, getattr(torch, _name), values(3, 4) > 0, values(4) > 0, gradient=False)
case("logical_not", torch.logical_not, values(3, 4) > 0, gradient=False)
case("where", torch.where, values(3, 4) > 0, values(3, 4), values(4))
case("clip", lambda x: torch.clamp(x, -0.5, 0.8), values(4, 5), ours=lambda x: F.clip(x, -0.5, 0.8))
case("clip", lambda x: torch.clamp(x, min=-0.5), values(4, 5), ours=lambda x: F.clip(x, low=-0.5), label="open")
case("cast", lambda x: x.int(), values(4, 5) * 5, ours=lambda x: F.cast(x, dtype="int32"), gradient=False)

# -- reductions ------------------------------------------------------------------------------------------------------

for _axis in (None, 0, (0, 2), -1):
    _dims = tuple(range(3)) if _axis is None else _axis
    for _keep in (False, True):
        _label = f"{_axis}-{_keep}"
        for _name in ("sum", "mean"):
            case(_name, lambda x, n=_name, d=_dims, k=_keep: getattr(torch, n)(x, d, k), values(2, 3, 4),
                 ours=lambda x, n=_name, a=_axis, k=_keep: getattr(F, n)(x, a, k), label=_label)  # fmt: skip
        for _name, _theirs in (("max", torch.amax), ("min", torch.amin)):
            case(_name, lambda x, f=_theirs, d=_dims, k=_keep: f(x, d, k), distinct(2, 3, 4),
                 ours=lambda x, n=_name, a=_axis, k=_keep: getattr(F, n)(x, a, k), label=_label)  # fmt: skip
        for _name in ("var", "std"):
            case(_name, lambda x, n=_name, d=_dims, k=_keep: getattr(torch, n)(x, d, correction=0, keepdim=k), values(2, 3, 4),
                 ours=lambda x, n=_name, a=_axis, k=_keep: getattr(F, n)(x, a, k), label=_label)  # fmt: skip
case("max", lambda x: torch.amax(x, 1), np.array([[1.0, 2.0, 2.0]]), ours=lambda x: F.max(x, 1), label="tie")
case("prod", lambda x: torch.prod(x, 1), values(3, 4), ours=lambda x: F.prod(x, 1))
ZEROS = np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
case("prod", lambda x: torch.prod(x, 1), ZEROS, ours=lambda x: F.prod(x, 1), label="zeros")
case("cumsum", lambda x: torch.cumsum(x, 1), values(3, 4), ours=lambda x: F.cumsum(x, 1))
for _name in ("argmax", "argmin"):
    for _axis in (None, 0, 1):
        case(_name, lambda x, n=_name, a=_axis: getattr(torch, n)(x, a), distinct(4, 5), label=str(_axis), gradient=False,
             ours=lambda x, n=_name, a=_axis: getattr(F, n)(x, a))  # fmt: skip

# -- shapes, picking, joining ----------------------------------------------------------------------------------------

case("reshape", lambda x: x.reshape(4, -1), values(2, 3, 4), ours=lambda x: F.reshape(x, 4, -1))
case("flatten", lambda x: x.flatten(1), values(2, 3, 4))
case("transpose", lambda x: x.permute(2, 0, 1), values(2, 3, 4), ours=lambda x: F.transpose(x, 2, 0, 1))
case("swap_last", lambda x: x.transpose(-1, -2), values(2, 3, 4))
case("expand_dims", lambda x: x.unsqueeze(1), values(2, 3), ours=lambda x: F.expand_dims(x, 1))
case("squeeze", lambda x: x.squeeze(1), values(2, 1, 3), ours=lambda x: F.squeeze(x, 1))
case("broadcast_to", lambda x: x.expand(4, 2, 3), values(2, 1), ours=lambda x: F.broadcast_to(x, (4, 2, 3)))
case("getitem", lambda x: x[1:, ..., ::2, None], values(3, 2, 5), ours=lambda x: x[1:, ..., ::2, None])
case("getitem", lambda x: x[:, [2, 0, 2]], values(3, 4), ours=lambda x: x[:, [2, 0, 2]], label="list")
case("concat", lambda *x: torch.cat(x, 1), values(2, 3), values(2, 1), ours=lambda *x: F.concat(x, 1))
case("stack", lambda *x: torch.stack(x, 1), values(2, 3), values(2, 3), ours=lambda *x: F.stack(x, 1))
case("split", lambda x: torch.split(x, [1, 3], 1)[1], values(2, 4), ours=lambda x: F.split(x, [1, 3], 1)[1])
case("split", lambda x: torch.chunk(x, 2, 1)[0], values(2, 4), ours=lambda x: F.split(x, 2, 1)[0], label="equal")
case("pad", lambda x: T.pad(x, (2, 0, 1, 3), value=1.5), values(3, 4), ours=lambda x: F.pad(x, ((1, 3), (2, 0)), 1.5))
case("gather", lambda x, i: torch.index_select(x, 1, i.flatten()).reshape(4, 2, 3), values(4, 5), integers(5, 2, 3),
     ours=lambda x, i: F.gather(x, i, 1))  # fmt: skip
case("embedding", lambda x, i: T.embedding(i, x), values(6, 3), integers(6, 2, 5))
case("one_hot", lambda i: T.one_hot(i, 5).to(torch.float32), integers(5, 2, 3), gradient=False, ours=lambda i: F.one_hot(i, 5))

# -- products, softmax, losses ---------------------------------------------------------------------------------------

for _a, _b in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 2))):
    case("matmul", torch.matmul, values(*_a), values(*_b), label=f"{_a}x{_b}")
case("linear", lambda x, w, b: T.linear(x, w.T, b), values(2, 3, 4), values(4, 5), values(5))
case("linear", lambda x, w: T.linear(x, w.T), values(4), values(4, 5), label="vector")
for _name in ("softmax", "log_softmax"):
    for _axis in (0, 1, -1):
        case(_name, lambda x, n=_name, a=_axis: getattr(T, n)(x, a), values(3, 4, 5) * 5, label=str(_axis),
             ours=lambda x, n=_name, a=_axis: getattr(F, n)(x, a))  # fmt: skip
    case(_name, lambda x, n=_name: getattr(T, n)(x, -1), values(3, 4) * 1e3, label="large")
for _smoothing in (0.0, 0.1):
    for _reduction in ("mean", "sum", "none"):
        _options = {"label_smoothing": _smoothing, "reduction": _reduction}
        case("cross_entropy", lambda x, t, o=_options: T.cross_entropy(x, t, **o), values(6, 5), integers(5, 6),
             ours=lambda x, t, o=_options: F.cross_entropy(x, t, **o), label=f"{_smoothing}-{_reduction}")  # fmt: skip
for _reduction in ("mean", "sum", "none"):
    for _name in ("mse_loss", "l1_loss"):
        case(_name, lambda x, t, n=_name, r=_reduction: getattr(T, n)(x, t, reduction=r), values(3, 4), values(3, 4) + 3,
             ours=lambda x, t, n=_name, r=_reduction: getattr(F, n)(x, t, r), label=_reduction)  # fmt: skip

# -- images ----------------------------------------------------------------------------------------------------------

IMAGE = (2, 7, 6, 4)
for _stride, _padding, _dilation, _groups, _window in (
    (1, 1, 1, 1, 3), (2, 1, 1, 1, 3), ((2, 1), (0, 2), 1, 2, 3), (1, 2, 2, 1, 3), (1, 0, 1, 1, 1), (2, 0, 1, 1, 1),
    (1, 1, 1, 4, 3),
):  # fmt: skip
    case("conv2d",
         nchw(lambda x, w, b, s=_stride, p=_padding, d=_dilation, g=_groups: T.conv2d(x, w.permute(3, 2, 0, 1), b, s, p, d, g)),
         values(*IMAGE), values(_window, _window, 4 // _groups, 8), values(8),
         ours=lambda x, w, b, s=_stride, p=_padding, d=_dilation, g=_groups: F.conv2d(x, w, b, s, p, d, g),
         label=f"stride{_stride}-padding{_padding}-dilation{_dilation}-groups{_groups}-{_window}x{_window}")  # fmt: skip
for _stride, _padding, _extra, _groups in ((1, 0, 0, 1), (2, 1, 1, 1), (2, 0, 0, 2), ((3, 2), (1, 0), (1, 1), 1)):
    case("conv2d_transpose",
         nchw(lambda x, w, b, s=_stride, p=_padding, e=_extra, g=_groups:
              T.conv_transpose2d(x, w.permute(3, 2, 0, 1), b, s, p, e, g)),
         values(2, 4, 5, 4), values(3, 3, 6 // _groups, 4), values(6),
         ours=lambda x, w, b, s=_stride, p=_padding, e=_extra, g=_groups:
              F.conv2d_transpose(x, w, b, s, p, groups=g, output_padding=e),
         label=f"stride{_stride}-padding{_padding}-extra{_extra}-groups{_groups}")  # fmt: skip
for _window, _stride, _padding in ((2, 2, 0), (3, 2, 1), ((3, 2), (1, 2), (1, 0))):
    _label = f"{_window}-{_stride}-{_padding}"
    case("max_pool2d", nchw(lambda x, w=_window, s=_stride, p=_padding: T.max_pool2d(x, w, s, p)), distinct(*IMAGE),
         label=_label, ours=lambda x, w=_window, s=_stride, p=_padding: F.max_pool2d(x, w, s, p))  # fmt: skip
    for _count in (False, True):
        case("avg_pool2d",
             nchw(lambda x, w=_window, s=_stride, p=_padding, c=_count: T.avg_pool2d(x, w, s, p, count_include_pad=c)),
             values(*IMAGE), ours=lambda x, w=_window, s=_stride, p=_padding, c=_count: F.avg_pool2d(x, w, s, p, c),
             label=f"{_label}-counted{_count}")  # fmt: skip
case("max_pool2d", nchw(lambda x: T.max_pool2d(T.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)), distinct(*IMAGE), label="same",
     ours=lambda x: F.max_pool2d(x, 2, 1, "same"))  # fmt: skip
case("global_avg_pool2d", lambda x: x.mean((1, 2)), values(*IMAGE))
case("global_max_pool2d", lambda x: x.amax((1, 2)), distinct(*IMAGE))
for _size in ((14, 12), (3, 4), (5, 9), (1, 1)):
    for _method, _mode in (("nearest", "nearest-exact"), ("bilinear", "bilinear")):
        case("resize", nchw(lambda x, s=_size, m=_mode: T.interpolate(x, s, mode=m)), values(*IMAGE),
             label=f"{_method}-{_size}", ours=lambda x, s=_size, m=_method: F.resize(x, s, m))  # fmt: skip
case("layer_norm", lambda x, g, b: T.layer_norm(x, (6,), g, b, 1e-3), values(2, 3, 6), values(6), values(6))
# PyTorch does not differentiate the statistics of its own function
case("batch_norm", lambda x, g, b, m, v: (x - m) * torch.rsqrt(v + 1e-3) * g + b, values(*IMAGE), values(4), values(4),
     values(4), positive(4), label="inference")  # fmt: skip


def in_training(x, gamma, beta):
    mean, var = (gw.tensor(np.full(4, v, x.dtype)) for v in (0.0, 1.0))
    return F.batch_norm(x, gamma, beta, mean, var, training=True)


case("batch_norm", nchw(lambda x, g, b: T.batch_norm(x, None, None, g, b, True, eps=1e-3)), values(*IMAGE), values(4),
     values(4), ours=in_training, label="training")  # fmt: skip


# -- the comparison --------------------------------------------------------------------------------------------------


def floating(a):
    return a.dtype.kind == "f"


@pytest.mark.parametrize("ours, theirs, inputs, gradient", CASES)
def test_values_and_gradients_equal_pytorch(ours, theirs, inputs, gradient):
    mine = [gw.tensor(a, requires_grad=gradient and floating(a)) for a in inputs]
    other = [torch.tensor(a, requires_grad=gradient and floating(a)) for a in inputs]
    y, z = ours(*mine), theirs(*other)
    assert y.shape == tuple(z.shape) and str(y.dtype) == str(z.dtype).removeprefix("torch.")
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-10, atol=1e-10)  # float64, sums of up to 100 terms
    if not gradient:
        return
    g = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(gw.tensor(np.asarray(g)))
    z.backward(torch.tensor(g))
    for a, b in zip(mine, other, strict=True):
        if b.requires_grad:
            found = np.zeros(a.shape) if a.grad is None else a.grad.numpy()  # no gradient at all is a gradient of zero
            np.testing.assert_allclose(found, b.grad.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ours, theirs, inputs, gradient", [c for c in CASES if floating(c.values[2][0])])
def test_float32_values_equal_pytorch(ours, theirs, inputs, gradient):
    arrays = [a.astype(np.float32) if floating(a) else a for a in inputs]
    y, z = ours(*map(gw.tensor, arrays)).numpy(), theirs(*map(torch.tensor, arrays)).numpy()
    assert y.dtype == z.dtype
    np.testing.assert_allclose(y, z, rtol=2e-5, atol=2e-5)  # a few units in the last place of sums of up to 100 terms


def test_running_statistics_are_pytorchs_but_for_the_variances_correction():
    x = values(*IMAGE)
    mean, var = gw.tensor(np.zeros(4)), gw.tensor(np.ones(4))
    F.batch_norm(gw.tensor(x), gw.tensor(np.ones(4)), gw.tensor(np.zeros(4)), mean, var, training=True, momentum=0.9)
    m, v = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    T.batch_norm(torch.tensor(x).permute(0, 3, 1, 2), m, v, training=True, momentum=0.1)
    np.testing.assert_allclose(mean.numpy(), m.numpy(), rtol=1e-12)
    n = x.size // 4
    np.testing.assert_allclose(var.numpy(), 0.9 + (v.numpy() - 0.9) * (n - 1) / n, rtol=1e-12)  # theirs is unbiased


def test_nothing_is_left_out():
    assert set(F.__all__) == NAMES | OURS_ALONE and not NAMES & OURS_ALONE
