"""Scalar functions that Numba inlines into the loops of this package.

`exp`, `tanh` and `erf` have float32 forms without branches or library calls, which LLVM turns into SIMD code; float64
calls the C library. The polynomials are fitted at Chebyshev nodes to the exact functions; relative errors are below 3e-7
(two or three units in the last place).
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

from .jit import njit

_inline = register_jitable(fastmath={"contract"})  # a * b + c in one rounding; NaN and infinity are kept


def constant(value, like):
    """`value` in the floating type of `like`, a scalar or an array. Compiled code only.

    A bare literal would turn float32 arithmetic into float64.
    """
    raise NotImplementedError("constant() exists in compiled code only")


@overload(constant)
def _constant(value, like):
    kind = as_dtype(getattr(like, "dtype", like)).type
    return lambda value, like: kind(value)


def exp(x):
    """e^x. Compiled code only."""
    raise NotImplementedError("exp() exists in compiled code only")


_LOWEST, _HIGHEST = np.float32(-104), np.float32(89)  # outside, e^x is 0 or infinite in float32
_LOG2_E, _HALF, _ONE, _TWO = np.float32(math.log2(math.e)), np.float32(0.5), np.float32(1), np.float32(2)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
_EXP = tuple(np.float32(c) for c in (0.5, 0.16666667, 0.041666463, 0.0083332984, 0.0013933884, 0.00019899587))
_BIAS, _MANTISSA = 127, 23  # of float32's exponent, and the bits below it


@_inline
def _power_of_two(n):
    return np.int32((n + _BIAS) << _MANTISSA).view(np.float32)  # the bits of the exponent field


@_inline
def _reduced_exp(x):
    """(n, e^r - 1) with x = n ln 2 + r and |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2)."""
    t = _LOWEST if x < _LOWEST else x
    t = _HIGHEST if t > _HIGHEST else t
    n = np.floor(t * _LOG2_E + _HALF)
    r = t - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_EXP[5] * r + _EXP[4]) * r + _EXP[3]) * r + _EXP[2]) * r + _EXP[1]) * r + _EXP[0]
    return np.int32(n), p * r * r + r


@_inline
def _exp32(x):
    n, y = _reduced_exp(x)
    half = n >> 1  # two factors, because 2^n alone leaves float32 before e^x does
    scaled = (y + _ONE) * _power_of_two(half) * _power_of_two(n - half)
    return x if x != x else scaled


@overload(exp)
def _exp(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    return lambda x: math.exp(x)


def expm1_negative(x):
    """e^x - 1 for x <= 0, exact near 0. Compiled code only."""
    raise NotImplementedError("expm1_negative() exists in compiled code only")


_ALL_GONE = np.float32(-20)  # e^-20 is lost next to 1 in float32


@_inline
def _expm1_negative32(x):
    n, y = _reduced_exp(_ALL_GONE if x < _ALL_GONE else x)
    power = _power_of_two(n)
    return x if x != x else y * power + (power - _ONE)


@overload(expm1_negative)
def _expm1_negative(x):
    if x == types.float32:
        return lambda x: _expm1_negative32(x)
    return lambda x: math.expm1(x)


def tanh(x):
    """Hyperbolic tangent. Compiled code only."""
    raise NotImplementedError("tanh() exists in compiled code only")


_TANH = tuple(np.float32(c) for c in (1.0, -0.33333263, 0.1333115, -0.05372268, 0.02059568, -0.0056647751))
_TANH_NEAR = np.float32(0.625)


@_inline
def _tanh32(x):
    u = x * x
    near = x * (((((_TANH[5] * u + _TANH[4]) * u + _TANH[3]) * u + _TANH[2]) * u + _TANH[1]) * u + _TANH[0])
    size = abs(x)
    e = _exp32(-_TWO * size)
    far = (_ONE - e) / (_ONE + e)
    return near if size < _TANH_NEAR else (far if x > 0 else -far)


@overload(tanh)
def _tanh(x):
    if x == types.float32:
        return lambda x: _tanh32(x)
    return lambda x: math.tanh(x)


def erf(x):
    """Error function. Compiled code only."""
    raise NotImplementedError("erf() exists in compiled code only")


# erf(x) = x P(x^2) for |x| <= 1, and 1 - e^-Q(|x|) beyond, where Q(t) = -log erfc(t).
_ERF = tuple(
    np.float32(c)
    for c in (1.1283791, -0.37612626, 0.11283597, -0.026854329, 0.0051893122, -0.00080188555, 7.8824974e-05)
)
_LOG_ERFC = tuple(
    np.float32(c)
    for c in (
        0.0007569686276838183, 1.125925898551941, 0.6390933394432068, 0.10331898182630539,
        -0.022621985524892807, 0.0034368676133453846, -0.0003175720339640975, 1.330939085164573e-05,
    )
)  # fmt: skip
_ERF_ONE = np.float32(4)  # erf(4) rounds to 1 in float32


@_inline
def _erf32(x):
    u = x * x
    near = ((((_ERF[6] * u + _ERF[5]) * u + _ERF[4]) * u + _ERF[3]) * u + _ERF[2]) * u + _ERF[1]
    near = x * (near * u + _ERF[0])
    size = abs(x)
    t = _ERF_ONE if size > _ERF_ONE else size
    q = ((_LOG_ERFC[7] * t + _LOG_ERFC[6]) * t + _LOG_ERFC[5]) * t + _LOG_ERFC[4]
    q = (((q * t + _LOG_ERFC[3]) * t + _LOG_ERFC[2]) * t + _LOG_ERFC[1]) * t + _LOG_ERFC[0]
    far = _ONE - _exp32(-q)
    return near if size <= _ONE else (far if x > 0 else -far)


@overload(erf)
def _erf(x):
    if x == types.float32:
        return lambda x: _erf32(x)
    return lambda x: math.erf(x)


# -- reductions over a contiguous row --------------------------------------------------------------------------------


@njit(nogil=True)
def row_max(row):
    """Largest element of a row (n,), n > 0. Where there are NaNs the result may miss them; the caller's sum does not."""
    lanes = np.full(16, row[0])
    whole = row.size // 16 * 16
    for start in range(0, whole, 16):
        for j in range(16):
            v = row[start + j]
            lanes[j] = v if v > lanes[j] else lanes[j]
    largest = row[0]
    for v in lanes:
        largest = v if v > largest else largest
    for v in row[whole:]:
        largest = v if v > largest else largest
    return largest


_SUMMED_AT_ONCE = 1024  # elements that are added in their own precision, in SIMD lanes, before float64 takes over


@njit(nogil=True, fastmath={"reassoc"})  # lets the additions run in lanes; NaN and infinity are kept
def row_sum(row):
    """Sum of a row (n,), accumulated in float64 over short pieces."""
    total = 0.0
    for start in range(0, row.size, _SUMMED_AT_ONCE):
        part = constant(0.0, row)
        for v in row[start : start + _SUMMED_AT_ONCE]:
            part += v
        total += part
    return total


# -- functions of one element ----------------------------------------------------------------------------------------


@_inline
def square(x):
    return x * x


@_inline
def sqrt(x):
    return np.sqrt(x)


@_inline
def rsqrt(x):
    return constant(1.0, x) / np.sqrt(x)


@_inline
def plain_exp(x):
    return exp(x)


@_inline
def plain_tanh(x):
    return tanh(x)


@_inline
def plain_erf(x):
    return erf(x)


@_inline
def sigmoid(x):
    one, e = constant(1.0, x), exp(-abs(x))  # e <= 1: nothing overflows
    return (one if x >= 0 else e) / (one + e)


@_inline
def silu(x):
    return x * sigmoid(x)


@_inline
def softplus(x):
    zero = constant(0.0, x)
    return (x if x > zero else zero) + np.log1p(exp(-abs(x)))


@_inline
def relu(x):
    zero = constant(0.0, x)
    return zero if x < zero else x


@_inline
def relu6(x):
    zero, six = constant(0.0, x), constant(6.0, x)
    return zero if x < zero else (six if x > six else x)


@_inline
def hard_sigmoid(x):
    return relu6(x + constant(3.0, x)) / constant(6.0, x)


@_inline
def hard_swish(x):
    return x * hard_sigmoid(x)


@_inline
def gelu(x):
    half = constant(0.5, x)
    return half * x * (constant(1.0, x) + erf(x * constant(0.7071067811865476, x)))


@_inline
def gelu_tanh(x):
    half, one = constant(0.5, x), constant(1.0, x)
    inner = constant(0.7978845608028654, x) * (x + constant(0.044715, x) * x * x * x)
    return half * x * (one + tanh(inner))


@_inline
def leaky_relu(x, alpha):
    return x if x > 0 else alpha * x


@_inline
def elu(x, alpha):
    zero = constant(0.0, x)
    return x if x > zero else alpha * expm1_negative(x)


# -- functions of two elements ---------------------------------------------------------------------------------------


@_inline
def add(a, b):
    return a + b


@_inline
def subtract(a, b):
    return a - b


@_inline
def multiply(a, b):
    return a * b


@_inline
def divide(a, b):
    return a / b


@_inline
def maximum(a, b):
    return a if (a > b or a != a) else b


@_inline
def minimum(a, b):
    return a if (a < b or a != a) else b


@_inline
def relu_grad(g, y):
    zero = constant(0.0, g)
    return zero if y <= 0 else g


@_inline
def relu6_grad(g, y):
    zero = constant(0.0, g)
    return zero if (y <= 0 or y >= 6) else g


@_inline
def leaky_relu_grad(g, y, alpha):
    return g if y > 0 else alpha * g
