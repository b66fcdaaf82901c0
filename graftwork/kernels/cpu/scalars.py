"""Scalar functions that Numba compiles into ufuncs for small and float64 arrays.

`exp`, `tanh`, `erf` and `expm1` of float32 are those of `functions.py`; float64 calls the C library.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

from . import functions
from .vector import compiled

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


def expm1(x):
    """e^x - 1, exact near 0. Compiled code only."""
    raise NotImplementedError("expm1() exists in compiled code only")


def tanh(x):
    """Hyperbolic tangent. Compiled code only."""
    raise NotImplementedError("tanh() exists in compiled code only")


def erf(x):
    """Error function. Compiled code only."""
    raise NotImplementedError("erf() exists in compiled code only")


_exp32, _expm132, _tanh32, _erf32 = map(compiled, (functions.exp, functions.expm1, functions.tanh, functions.erf))


@overload(exp)
def _exp(x):
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(expm1)
def _expm1(x):
    return (lambda x: _expm132(x)) if x == types.float32 else (lambda x: math.expm1(x))


@overload(tanh)
def _tanh(x):
    return (lambda x: _tanh32(x)) if x == types.float32 else (lambda x: math.tanh(x))


@overload(erf)
def _erf(x):
    return (lambda x: _erf32(x)) if x == types.float32 else (lambda x: math.erf(x))


@_inline
def rsqrt(x):
    return constant(1.0, x) / np.sqrt(x)


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
    return x if x > zero else alpha * expm1(zero if x > zero else x)
