"""Elementwise operators."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from ....nn import functional as F
from ....nn.tensor import FLOATS, Tensor
from .table import Call, Value, direct, dtype_of, fixed, operator

direct({
    "Abs": F.abs, "Add": F.add, "Ceil": F.ceil, "Cos": F.cos, "Equal": F.equal, "Erf": F.erf, "Exp": F.exp, "Floor": F.floor,
    "Greater": F.greater, "GreaterOrEqual": F.greater_equal, "HardSwish": F.hard_swish, "Less": F.less,
    "LessOrEqual": F.less_equal, "Log": F.log, "Mul": F.multiply, "Neg": F.negative, "Not": F.logical_not, "And": F.logical_and,
    "Or": F.logical_or, "Reciprocal": F.reciprocal, "Round": F.round, "Sigmoid": F.sigmoid, "Sign": F.sign, "Sin": F.sin,
    "Softplus": F.softplus, "Sqrt": F.sqrt, "Sub": F.subtract, "Tanh": F.tanh, "Where": F.where, "Xor": F.not_equal,
    "IsNaN": lambda x: F.not_equal(x, x), "Softsign": lambda x: x / (F.abs(x) + 1.0),
    "Mish": lambda x: x * F.tanh(F.softplus(x)),
    "Tan": lambda x: F.sin(x) / F.cos(x), "Sinh": lambda x: (F.expm1(x) - F.expm1(-x)) * 0.5,
    "Cosh": lambda x: (F.exp(x) + F.exp(-x)) * 0.5, "Atanh": lambda x: (F.log1p(x) - F.log1p(-x)) * 0.5,
    "Asinh": lambda x: F.sign(x) * F.log(F.abs(x) + F.sqrt(F.square(x) + 1.0)),
    "Acosh": lambda x: F.log(x + F.sqrt(F.square(x) - 1.0)),
})  # fmt: skip


@operator("Relu")
def relu(c: Call) -> Value:
    return c.elementwise(lambda x: F.relu(x) if x.dtype in FLOATS else F.maximum(x, fixed(x, 0)))


@operator("LeakyRelu")
def leaky_relu(c: Call) -> Value:
    alpha = c.attr("alpha", 0.01)
    return c.elementwise(lambda x: F.leaky_relu(x, alpha) if alpha >= 0 else F.where(x > 0.0, x, x * alpha))


@operator("Elu", "Celu")
def elu(c: Call) -> Value:
    alpha = c.attr("alpha", 1.0)
    if c.node.kind == "Celu":
        return c.elementwise(lambda x: F.elu(x * (1.0 / alpha), 1.0) * alpha)
    return c.elementwise(lambda x: F.elu(x, alpha))


@operator("Selu")
def selu(c: Call) -> Value:
    alpha, gamma = c.attr("alpha", 1.6732632423543772), c.attr("gamma", 1.0507009873554805)
    return c.elementwise(lambda x: F.elu(x, alpha) * gamma)


@operator("ThresholdedRelu")
def thresholded_relu(c: Call) -> Value:
    alpha = c.attr("alpha", 1.0)
    return c.elementwise(lambda x: F.where(x > alpha, x, fixed(x, 0)))


@operator("HardSigmoid")
def hard_sigmoid(c: Call) -> Value:
    alpha, beta = c.attr("alpha", 0.2), c.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return c.elementwise(F.hard_sigmoid)
    return c.elementwise(lambda x: F.clip(x * alpha + beta, 0.0, 1.0))


@operator("Gelu")
def gelu(c: Call) -> Value:
    approximate = c.choice("approximate", "none", ("none", "tanh")) == "tanh"
    return c.elementwise(lambda x: F.gelu(x, approximate))


@operator("Swish")
def swish(c: Call) -> Value:
    alpha = c.attr("alpha", 1.0)
    return c.elementwise(lambda x: x * F.sigmoid(x * alpha))


@operator("Shrink")
def shrink(c: Call) -> Value:
    bias, limit = c.attr("bias", 0.0), c.attr("lambd", 0.5)
    return c.elementwise(lambda x: F.where(x < -limit, x + bias, F.where(x > limit, x - bias, fixed(x, 0))))


@operator("PRelu")
def prelu(c: Call) -> Value:
    return c.elementwise(lambda x, slope: F.where(F.less(x, fixed(x, 0)), x * slope, x))


@operator("Clip", known=(1, 2))
def clip(c: Call) -> Value:
    low, high = c.number(1, c.attr("min")), c.number(2, c.attr("max"))
    if low is not None and high is not None and low > high:  # the upper bound wins
        return c.elementwise(lambda x: F.clip(F.clip(x, low), None, high), 0)
    if (low, high) == (0.0, 6.0):
        return c.elementwise(lambda x: F.relu6(x) if x.dtype in FLOATS else F.clip(x, low, high), 0)
    return c.elementwise(lambda x: F.clip(x, low, high), 0)


@operator("Sum", "Max", "Min", "Mean")
def variadic(c: Call) -> Value:
    pick = {"Sum": F.add, "Mean": F.add, "Max": F.maximum, "Min": F.minimum}[c.node.kind]
    share = 1.0 / len(c.inputs) if c.node.kind == "Mean" else None
    return c.elementwise(lambda *xs: reduce(pick, xs) if share is None else reduce(pick, xs) * share)


@operator("Div")
def divide(c: Call) -> Value:
    return c.elementwise(lambda a, b: F.divide(a, b) if a.dtype in FLOATS else _quotient(c, a, b))


@operator("Mod")
def mod(c: Call) -> Value:
    fmod = c.attr("fmod", 0)

    def function(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in FLOATS:
            return _float_mod(a, b, bool(fmod))
        return a - b * _quotient(c, a, b, floor=not fmod)

    return c.elementwise(function)


def _float_mod(a: Tensor, b: Tensor, fmod: bool) -> Tensor:
    """What is left of a, with its own sign (fmod) or with b's. By an infinite b nothing is taken away."""
    q = F.divide(a, b)
    whole = F.sign(q) * F.floor(F.abs(q))
    left = F.where(F.equal(whole, fixed(a, 0)), a, a - b * whole)
    if fmod:
        return left
    other = F.logical_and(F.not_equal(left < 0.0, b < 0.0), F.not_equal(left, fixed(a, 0)))
    return F.where(other, left + b, left)


def _quotient(c: Call, a: Tensor, b: Tensor, floor: bool = False) -> Tensor:
    """Integers divided, rounded towards zero (or down).

    A float64 quotient of integers of 32 bits cannot round to a whole number that it is not. One of 64 bits can be off: what is
    left over is divided again, and a last look at its sign settles the rest.
    """
    if a.dtype == np.uint64:
        raise c.error("division of uint64 tensors is not supported; of other integers it is")
    q = F.floor(F.divide(a.astype("float64"), b.astype("float64"))).astype(a.dtype)
    if a.dtype.itemsize > 4:
        q = q + F.floor(F.divide((a - b * q).astype("float64"), b.astype("float64"))).astype(a.dtype)
        left = a - b * q  # has b's sign and is smaller, once q is right
        wrong = F.logical_and(F.not_equal(left < 0, b < 0), F.not_equal(left, fixed(a, 0)))
        q = F.where(wrong, q - 1, q)
        q = F.where(F.equal(a - b * q, b), q + 1, q)
    if floor:
        return q
    rounded_down = F.logical_and(F.not_equal(a < 0, b < 0), F.not_equal(a - b * q, fixed(a, 0)))
    return F.where(rounded_down, q + 1, q)


@operator("Pow")
def power(c: Call) -> Value:
    exponent = c.value(1).known
    if exponent is not None and exponent.size == 1 and exponent.ndim <= c.value().ndim and c.number(1) == 2.0:
        return c.elementwise(F.square, 0)

    def function(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in FLOATS or b.dtype not in FLOATS:
            return F.power(a, b.astype(a.dtype))
        return F.power(a.astype("float64"), b.astype("float64")).astype(a.dtype)

    return c.elementwise(function)


@operator("IsInf")
def is_inf(c: Call) -> Value:
    negative, positive = c.attr("detect_negative", 1), c.attr("detect_positive", 1)

    def function(x: Tensor) -> Tensor:
        if negative and positive:
            return F.equal(F.abs(x), fixed(x, math.inf))
        if not negative and not positive:
            return F.logical_and(F.equal(x, x), F.not_equal(x, x))
        return F.equal(x, fixed(x, math.inf if positive else -math.inf))

    return c.elementwise(function)


@operator("Cast")
def cast(c: Call) -> Value:
    dtype = dtype_of(c.required("to"), c.node)
    c.attr("saturate")  # of 8-bit floats, which are refused
    c.attr("round_mode")
    return _cast(c, dtype)


@operator("CastLike")
def cast_like(c: Call) -> Value:
    c.attr("saturate")
    c.attr("round_mode")
    return _cast(c, c.x(1).dtype)


def _cast(c: Call, dtype: np.dtype) -> Value:
    return c.elementwise(lambda x: x.astype(dtype), 0)


@operator("Identity")
def identity(c: Call) -> Value:
    return c.value()


@operator("Dropout")
def dropout(c: Call) -> tuple:
    """In inference the input itself, and a mask of ones."""
    c.attr("ratio")
    c.attr("seed")
    if c.has(2) and c.number(2) and c.number(1, 0.5) != 0:
        raise c.error("training_mode is not supported; the file describes training, export the network for inference")
    if len(c.node.outputs) < 2:
        return (c.value(),)
    mask = np.ones(c.x().shape, bool) if c.opset >= 10 else np.ones(c.x().shape, c.x().dtype)
    return c.value(), mask


@operator("SwiGLU")
def swiglu(c: Call) -> Value:
    alpha = c.attr("alpha", 1.0)
    return c.elementwise(lambda gate, x: gate * F.sigmoid(gate * alpha) * x)
