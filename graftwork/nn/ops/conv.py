"""Convolution and its two gradients, NHWC with HWIO weights.

The three are closed under differentiation: the gradient of each is made of the other two, so gradients of any order are
convolutions again. Transposed convolution is the input gradient under its own name.
"""

from __future__ import annotations

import math

from ...errors import ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import normal, normal_padding, pair, require_floats, require_nhwc, require_shape, window_output  # fmt: skip
from .matmul import activation_grad, check_activation
from .reduce import sum as reduce_sum


def _check_weight(name, channels, w, groups):
    if w.ndim != 4:
        raise ShapeError(f"{name}: weight has shape {tuple(w.shape)}, expected (height, width, in / groups, out)")
    if groups < 1 or channels % groups or w.shape[3] % groups or w.shape[2] != channels // groups:
        raise ShapeError(
            f"{name}: input has {channels} channels, weight {tuple(w.shape)} and groups={groups}; expected a weight of "
            f"(height, width, {channels}/groups, out) with both channel counts divisible by groups"
        )


def _infer(x, w, b=None, r=None, *, stride, padding, dilation, groups, activation=None):
    require_nhwc("conv2d", x)
    require_floats("conv2d", *[a for a in (x, w, b, r) if a is not None])
    _check_weight("conv2d", x.shape[3], w, groups)
    if b is not None:
        require_shape("conv2d", "the bias", b, (w.shape[3],))
    check_activation("conv2d", activation)
    size = window_output("conv2d", x.shape[1:3], w.shape[:2], stride, padding, dilation)
    shape = (x.shape[0], *size, w.shape[3])
    if r is not None:
        require_shape("conv2d", "the residual", r, shape)
    return shape, x.dtype


def _cost(x, w, *rest, **attrs):
    out = _infer(x, w, *rest, **attrs)[0]
    return 2 * math.prod(out) * math.prod(w.shape[:3])


def _vjp(g, y, x, w, b=None, r=None, *, activation=None, **geometry):
    g = activation_grad("conv2d", activation, g, y)
    grads = (
        lambda: INPUT_GRAD(g, w, input_shape=tuple(x.shape), **geometry),
        lambda: WEIGHT_GRAD(x, g, kernel_shape=tuple(w.shape[:2]), **geometry),
        lambda: reduce_sum(g, axis=(0, 1, 2)),
        g,
    )
    return grads[: 4 if r is not None else 3 if b is not None else 2]


def _input_grad_infer(g, w, *, input_shape, stride, padding, dilation, groups):
    require_nhwc("conv2d_input_grad", g)
    require_floats("conv2d_input_grad", g, w)
    _check_weight("conv2d_input_grad", input_shape[3], w, groups)
    size = window_output("conv2d_input_grad", input_shape[1:3], w.shape[:2], stride, padding, dilation)
    require_shape("conv2d_input_grad", "the gradient", g, (input_shape[0], *size, w.shape[3]))
    return input_shape, g.dtype


def _input_grad_vjp(gg, out, g, w, *, input_shape, **geometry):
    return (
        lambda: CONV2D(gg, w, activation=None, **geometry),
        lambda: WEIGHT_GRAD(gg, g, kernel_shape=tuple(w.shape[:2]), **geometry),
    )


def _weight_grad_infer(x, g, *, kernel_shape, stride, padding, dilation, groups):
    require_nhwc("conv2d_weight_grad", x)
    require_floats("conv2d_weight_grad", x, g)
    size = window_output("conv2d_weight_grad", x.shape[1:3], kernel_shape, stride, padding, dilation)
    require_shape("conv2d_weight_grad", "the gradient", g, (x.shape[0], *size, g.shape[3]))
    return (*kernel_shape, x.shape[3] // groups, g.shape[3]), x.dtype


def _weight_grad_vjp(gw, out, x, g, *, kernel_shape, **geometry):
    return (
        lambda: INPUT_GRAD(g, gw, input_shape=tuple(x.shape), **geometry),
        lambda: CONV2D(x, gw, activation=None, **geometry),
    )


GEOMETRIES = (  # input, weight, stride, padding, dilation, groups
    ((2, 6, 5, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 7, 6, 3), (3, 2, 3, 2), (2, 2), ((0, 1), (1, 2)), (1, 1), 1),
    ((1, 5, 5, 4), (1, 1, 4, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((1, 5, 5, 4), (1, 1, 4, 3), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 8, 7, 4), (3, 3, 2, 6), (1, 2), ((2, 2), (2, 2)), (2, 2), 2),
    ((2, 6, 6, 3), (3, 3, 1, 6), (2, 1), ((1, 1), (1, 1)), (1, 1), 3),
    ((2, 5, 5, 4), (3, 3, 1, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    ((0, 5, 5, 2), (3, 3, 2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
)


def _geometry_samples(make):
    def samples(rng):
        for xs, ws, stride, padding, dilation, groups in GEOMETRIES:
            geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            size = window_output("sample", xs[1:3], ws[:2], stride, padding, dilation)
            yield from make(rng, xs, ws, (xs[0], *size, ws[3]), geometry)

    return samples


def _conv_samples(rng, xs, ws, gs, geometry):
    x, w, b = normal(rng, *xs), normal(rng, *ws), normal(rng, ws[3])
    yield Sample((x, w, b), {**geometry, "activation": None})
    if xs[0] == 1:
        yield Sample((x, w), {**geometry, "activation": None})
        yield Sample((x, w, b), {**geometry, "activation": "relu"}, False)
        for activation in (None, "sigmoid", "hard_sigmoid", "tanh"):
            yield Sample((x, w, b, normal(rng, *gs)), {**geometry, "activation": activation})


def _input_grad_samples(rng, xs, ws, gs, geometry):
    yield Sample((normal(rng, *gs), normal(rng, *ws)), {"input_shape": xs, **geometry})


def _weight_grad_samples(rng, xs, ws, gs, geometry):
    yield Sample((normal(rng, *xs), normal(rng, *gs)), {"kernel_shape": ws[:2], **geometry})


CONV2D = Op("conv2d", infer=_infer, vjp=_vjp, keeps_output=True, cost=_cost, samples=_geometry_samples(_conv_samples))
INPUT_GRAD = Op(
    "conv2d_input_grad", infer=_input_grad_infer, vjp=_input_grad_vjp, samples=_geometry_samples(_input_grad_samples),
    cost=lambda g, w, **attrs: 2 * math.prod(g.shape) * math.prod(w.shape[:3]),
)  # fmt: skip
WEIGHT_GRAD = Op(
    "conv2d_weight_grad", infer=_weight_grad_infer, vjp=_weight_grad_vjp,
    samples=_geometry_samples(_weight_grad_samples),
    cost=lambda x, g, kernel_shape, groups, **attrs: (
        2 * math.prod(g.shape) * math.prod(kernel_shape) * (x.shape[3] // groups)
    ),
)  # fmt: skip


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding="valid", dilation=1,
           groups: int = 1) -> Tensor:  # fmt: skip
    """Two-dimensional convolution (cross-correlation).

    x: (batch, height, width, channels). weight: (height, width, channels / groups, out); for a depthwise convolution
    groups = channels and output channel c * multiplier + m comes from input channel c. bias: (out,).
    stride, dilation: one integer or (vertical, horizontal). padding: "same" (Keras's rule), "valid", an integer,
    (vertical, horizontal) or ((top, bottom), (left, right)).
    Returns (batch, out_height, out_width, out). Raises ShapeError or DTypeError naming what does not fit.
    """
    require_nhwc("conv2d", x)
    _check_weight("conv2d", x.shape[3], weight, groups)
    stride, dilation = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    padding = normal_padding("conv2d", padding, x.shape[1:3], weight.shape[:2], stride, dilation)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return CONV2D(*inputs, stride=stride, padding=padding, dilation=dilation, groups=groups, activation=None)


def conv2d_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding="valid", dilation=1,
                     groups: int = 1, output_padding=0) -> Tensor:  # fmt: skip
    """Transposed convolution: the gradient of `conv2d` with respect to its input, as a layer.

    x: (batch, height, width, in). weight: (height, width, out / groups, in), the weight of the convolution that it
    transposes (Keras's layout). "same" gives height * stride outputs, "valid" (height - 1) * stride + window; other
    padding is taken off that, and `output_padding` rows or columns are added at the bottom and right.
    """
    require_nhwc("conv2d_transpose", x)
    if weight.ndim != 4 or weight.shape[3] != x.shape[3]:
        raise ShapeError(
            f"conv2d_transpose: input has {x.shape[3]} channels and weight shape {weight.shape}; expected "
            f"(height, width, out / groups, {x.shape[3]})"
        )
    stride, dilation = pair("conv2d_transpose", "stride", stride), pair("conv2d_transpose", "dilation", dilation)
    extra = pair("conv2d_transpose", "output_padding", output_padding, least=0)
    span = [(k - 1) * d + 1 for k, d in zip(weight.shape[:2], dilation, strict=True)]
    if padding == "same":
        size = tuple(n * s for n, s in zip(x.shape[1:3], stride, strict=True))
        sides = normal_padding("conv2d_transpose", "same", size, weight.shape[:2], stride, dilation)
    else:
        sides = normal_padding("conv2d_transpose", padding, x.shape[1:3], weight.shape[:2], stride, dilation)
        size = tuple(
            (n - 1) * s + k + e - sum_
            for n, s, k, e, sum_ in zip(x.shape[1:3], stride, span, extra, map(sum, sides), strict=True)
        )
    shape = (x.shape[0], *size, weight.shape[2] * groups)
    y = INPUT_GRAD(x, weight, input_shape=shape, stride=stride, padding=sides, dilation=dilation, groups=groups)
    return y if bias is None else y + bias
