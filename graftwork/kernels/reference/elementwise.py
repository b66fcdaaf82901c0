"""Elementwise ops in plain NumPy: one line of mathematics each, the oracle for every other backend."""

from __future__ import annotations

import math

import numpy as np

_vector_erf = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: np.ndarray) -> np.ndarray:
    return _vector_erf(x) if x.size else np.zeros(x.shape)


def _unary(compute):
    """Kernel that assigns `compute(x)`; floating-point exceptions are silent, as they are on every other backend."""

    def kernel(x: np.ndarray, *, out: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            out[...] = compute(x)

    return kernel


def _binary(compute):
    """Kernel that assigns `compute(a, b)` under NumPy broadcasting."""

    def kernel(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            out[...] = compute(a, b)

    return kernel


negative = _unary(np.negative)
abs = _unary(np.abs)
exp = _unary(np.exp)
log = _unary(np.log)
sqrt = _unary(np.sqrt)
rsqrt = _unary(lambda x: 1 / np.sqrt(x))
square = _unary(np.square)
reciprocal = _unary(np.reciprocal)
sin = _unary(np.sin)
cos = _unary(np.cos)
log1p = _unary(np.log1p)
expm1 = _unary(np.expm1)
sign = _unary(np.sign)
floor = _unary(np.floor)
ceil = _unary(np.ceil)
round = _unary(np.rint)
tanh = _unary(np.tanh)
erf = _unary(_erf)
logical_not = _unary(np.logical_not)
sigmoid = _unary(lambda x: 1 / (1 + np.exp(-x)))
relu = _unary(lambda x: np.maximum(x, 0))
relu6 = _unary(lambda x: np.minimum(np.maximum(x, 0), 6))
silu = _unary(lambda x: x / (1 + np.exp(-x)))
hard_sigmoid = _unary(lambda x: np.minimum(np.maximum(x + 3, 0), 6) / 6)
hard_swish = _unary(lambda x: x * (np.minimum(np.maximum(x + 3, 0), 6) / 6))
softplus = _unary(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))

add = _binary(np.add)
subtract = _binary(np.subtract)
multiply = _binary(np.multiply)
divide = _binary(np.divide)
power = _binary(np.power)
maximum = _binary(np.maximum)
minimum = _binary(np.minimum)
equal = _binary(np.equal)
not_equal = _binary(np.not_equal)
less = _binary(np.less)
less_equal = _binary(np.less_equal)
greater = _binary(np.greater)
greater_equal = _binary(np.greater_equal)
logical_and = _binary(np.logical_and)
logical_or = _binary(np.logical_or)
relu_grad = _binary(lambda g, y: np.where(y <= 0, 0, g))
relu6_grad = _binary(lambda g, y: np.where((y <= 0) | (y >= 6), 0, g))


def leaky_relu(x: np.ndarray, *, out: np.ndarray, alpha: float) -> None:
    """x where x is positive, alpha * x elsewhere."""
    out[...] = np.where(x > 0, x, alpha * x)


def leaky_relu_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, alpha: float) -> None:
    """g where y is positive, alpha * g elsewhere; y is the output of `leaky_relu` with alpha >= 0."""
    out[...] = np.where(y > 0, g, alpha * g)


def elu(x: np.ndarray, *, out: np.ndarray, alpha: float) -> None:
    """x where x is positive, alpha * (e^x - 1) elsewhere."""
    out[...] = np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def gelu(x: np.ndarray, *, out: np.ndarray, approximate: bool) -> None:
    """x * Phi(x), with Phi the normal distribution function, or its tanh approximation (Hendrycks and Gimpel, 2016)."""
    with np.errstate(all="ignore"):
        if approximate:
            phi = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        else:
            phi = 0.5 * (1 + _erf(x / math.sqrt(2)))
        out[...] = x * phi


def clip(x: np.ndarray, *, out: np.ndarray, low: float | None, high: float | None) -> None:
    """x limited to [low, high]; None leaves that side open, NaN stays NaN."""
    out[...] = x
    if low is not None:
        np.maximum(out, x.dtype.type(low), out=out)
    if high is not None:
        np.minimum(out, x.dtype.type(high), out=out)


def cast(x: np.ndarray, *, out: np.ndarray, dtype: str) -> None:
    """x converted to `dtype`, which is the dtype of `out`."""
    with np.errstate(all="ignore"):
        out[...] = x.astype(dtype)


def where(condition: np.ndarray, a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """a where the condition holds, b elsewhere; all three broadcast."""
    out[...] = np.where(condition, a, b)
