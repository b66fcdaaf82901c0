"""Matrix products."""

from __future__ import annotations

import math

from ...errors import ConfigError, GradientError, ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import broadcast, normal, require_floats, require_same_dtype, require_shape, unbroadcast
from .elementwise import multiply, relu6_grad, relu_grad
from .reduce import sum as reduce_sum
from .shape import reshape, swap_last

# Fused epilogues and their gradients from the output g, y -> g'; None where the output does not determine it.
ACTIVATIONS = {
    None: lambda g, y: g,
    "relu": relu_grad,
    "relu6": relu6_grad,
    "sigmoid": lambda g, y: multiply(g, y * (1.0 - y)),
    "hard_sigmoid": lambda g, y: relu6_grad(g, y * 6.0) * (1 / 6),
    "tanh": lambda g, y: multiply(g, 1.0 - y * y),
    "silu": None,
    "hard_swish": None,
    "gelu": None,
}


def activation_grad(name: str, activation, g, y):
    """The gradient before a fused activation, from the one behind it and its output. Raises GradientError where the output
    does not determine it: such an activation is fused in inference only, where nobody asks."""
    rule = ACTIVATIONS[activation]
    if rule is None:
        raise GradientError(
            f"{name}: no gradient through the fused activation {activation!r}, which its output does not determine; call "
            f"{name} without it and apply {activation} as an op of its own"
        )
    return rule(g, y)


def check_activation(name: str, activation) -> None:
    if activation not in ACTIVATIONS:
        known = ", ".join(repr(a) for a in ACTIVATIONS)
        raise ConfigError(f"{name}: activation={activation!r}; a fused one is {known}; apply others as an op of their own")


def _infer(a, b):
    require_same_dtype("matmul", a, b)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (..., m, k) and (..., k, n) with equal k"
        )
    return (*broadcast("matmul", a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype


def _vjp(g, out, a, b):
    return (
        lambda: unbroadcast(matmul(g, swap_last(b)), a.shape),
        lambda: unbroadcast(matmul(swap_last(a), g), b.shape),
    )


def _samples(rng):
    for sa, sb in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 2)), ((0, 4), (4, 3)), ((3, 0), (0, 2))):
        yield Sample((normal(rng, *sa), normal(rng, *sb)))


matmul = Op("matmul", infer=_infer, vjp=_vjp, samples=_samples,
            cost=lambda a, b: 2 * math.prod(_infer(a, b)[0]) * a.shape[-1],
            doc="Matrix product of (..., m, k) and (..., k, n); leading dimensions broadcast.")  # fmt: skip


def _linear_infer(x, w, b=None, r=None, activation=None):
    require_floats("linear", *[a for a in (x, w, b, r) if a is not None])
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ShapeError(
            f"linear: input {tuple(x.shape)} and weight {tuple(w.shape)}; expected (..., in) and (in, out) with equal in"
        )
    if b is not None:
        require_shape("linear", "the bias", b, w.shape[1:])
    if r is not None:
        require_shape("linear", "the residual", r, (*x.shape[:-1], w.shape[1]))
    check_activation("linear", activation)
    return (*x.shape[:-1], w.shape[1]), x.dtype


def _linear_vjp(g, y, x, w, b=None, r=None, activation=None):
    g = activation_grad("linear", activation, g, y)
    rows = reshape(g, (-1, w.shape[1])) if g.ndim != 2 else g
    grads = (
        lambda: matmul(g, swap_last(w)) if g.ndim > 1 else reshape(matmul(rows, swap_last(w)), x.shape),
        lambda: matmul(swap_last(reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))), rows),
        lambda: reduce_sum(rows, axis=0),
        g,
    )
    return grads[: 4 if r is not None else 3 if b is not None else 2]


def _linear_samples(rng):
    for shape in ((3, 4), (2, 3, 4), (0, 4)):
        yield Sample((normal(rng, *shape), normal(rng, 4, 5), normal(rng, 5)), {"activation": None})
    yield Sample((normal(rng, 3, 4), normal(rng, 4, 5)), {"activation": None})
    yield Sample((normal(rng, 3, 4), normal(rng, 4, 5), normal(rng, 5)), {"activation": "relu"}, False)
    for activation in (None, "sigmoid", "tanh"):
        yield Sample((normal(rng, 3, 4), normal(rng, 4, 5), normal(rng, 5), normal(rng, 3, 5)), {"activation": activation})


LINEAR = Op("linear", infer=_linear_infer, vjp=_linear_vjp, keeps_output=True, samples=_linear_samples,
            cost=lambda x, w, *rest, activation=None: 2 * math.prod(x.shape) * w.shape[1])  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (in, out) plus bias (out,)."""
    return LINEAR(x, weight, activation=None) if bias is None else LINEAR(x, weight, bias, activation=None)
