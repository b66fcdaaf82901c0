"""Elementwise kernels: a NumPy ufunc for small or strided arrays, a parallel Numba loop for large contiguous ones.

A ufunc call costs a quarter of a microsecond and handles broadcasting, strides and every dtype; starting threads costs
more than that but wins from `PARALLEL_FROM` elements. Functions that NumPy lacks become ufuncs through Numba.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange, vectorize

from . import scalars
from .jit import njit

PARALLEL_FROM = 1 << 15  # elements
Kernel = Callable[..., None]


class _UfuncByDtype(dict):
    """dtype character -> NumPy ufunc compiled from a scalar function at first use.

    float16 takes the float32 ufunc, between whose loops NumPy casts.
    """

    def __init__(self, scalar: Callable, inputs: int):
        super().__init__()
        self.scalar, self.inputs = scalar, inputs

    def __missing__(self, char: str) -> np.ufunc:
        real = "float64" if char == "d" else "float32"
        signature = f"{real}({', '.join([real] * self.inputs)})"
        function = _quiet(self.scalar) if self.inputs == 1 else _quiet_parametric(self.scalar)
        self[char] = vectorize([signature], cache=True)(function).ufunc
        return self[char]


# NumPy reports floating-point exceptions after a ufunc. SIMD comparisons raise one for NaN, so NaN goes around the function;
# silencing the report with `numpy.errstate` instead would take longer than all the rest of a small call.


def _quiet(scalar: Callable) -> Callable:
    def function(x):
        y = scalar(scalars.constant(0.0, x) if x != x else x)
        return x if x != x else y

    return function


def _quiet_parametric(scalar: Callable) -> Callable:
    def function(x, parameter):
        y = scalar(scalars.constant(0.0, x) if x != x else x, parameter)
        return x if x != x else y

    return function


class _ScalarByDtype(dict):
    """dtype -> one constant as a 0-d array of it: ufuncs take those faster than Python numbers."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def __missing__(self, dtype: np.dtype) -> np.ndarray:
        self[dtype] = np.array(self.value, dtype)
        return self[dtype]


_ZERO, _SIX = _ScalarByDtype(0), _ScalarByDtype(6)


# -- parallel loops over contiguous arrays ---------------------------------------------------------------------------
# The scalar functions are plain module-level functions, so that Numba's disk cache knows a closure over one again.


def _unary_loop(scalar: Callable) -> Callable:
    @njit(parallel=True, nogil=True)
    def loop(x, out):
        for i in prange(x.size):
            out[i] = scalar(x[i])

    return loop


def _parametric_loop(scalar: Callable) -> Callable:
    @njit(parallel=True, nogil=True)
    def loop(x, parameter, out):
        for i in prange(x.size):
            out[i] = scalar(x[i], parameter)

    return loop


def _binary_loop(scalar: Callable) -> Callable:
    @njit(parallel=True, nogil=True)
    def loop(a, b, out):
        for i in prange(a.size):
            out[i] = scalar(a[i], b[i])

    return loop


def _binary_parametric_loop(scalar: Callable) -> Callable:
    @njit(parallel=True, nogil=True)
    def loop(a, b, parameter, out):
        for i in prange(a.size):
            out[i] = scalar(a[i], b[i], parameter)

    return loop


def _row_loop(scalar: Callable) -> Callable:
    @njit(parallel=True, nogil=True)
    def loop(a, b, out):
        for i in prange(a.shape[0]):
            row, target = a[i], out[i]
            for j in range(b.size):
                target[j] = scalar(row[j], b[j])

    return loop


def _flat(*arrays: np.ndarray) -> bool:
    """Whether a flat loop may serve the arrays: contiguous, of one shape, and of one compiled dtype."""
    first = arrays[0]
    return all(a.flags.c_contiguous and a.shape == first.shape and a.dtype is first.dtype for a in arrays) and (
        first.dtype.char in "fd"
    )


# -- kernels of one input --------------------------------------------------------------------------------------------


def _numpy_unary(ufunc: np.ufunc) -> Kernel:
    def kernel(x, *, out):
        ufunc(x, out)

    return kernel


def _unary(ufunc: np.ufunc, scalar: Callable) -> Kernel:
    """A function that NumPy has too."""
    loop = _unary_loop(scalar)

    def kernel(x, *, out):
        if out.size < PARALLEL_FROM or not _flat(x, out):
            ufunc(x, out)
        else:
            loop(x.reshape(-1), out.reshape(-1))

    return kernel


def _compiled_unary(scalar: Callable) -> Kernel:
    """A function that NumPy lacks."""
    loop, ufuncs = _unary_loop(scalar), _UfuncByDtype(scalar, 1)

    def kernel(x, *, out):
        if out.size < PARALLEL_FROM or not _flat(x, out):
            ufuncs[x.dtype.char](x, out)
        else:
            loop(x.reshape(-1), out.reshape(-1))

    return kernel


def _parametric(scalar: Callable) -> Kernel:
    """A function of an element and `alpha`."""
    loop, ufuncs = _parametric_loop(scalar), _UfuncByDtype(scalar, 2)

    def kernel(x, *, out, alpha):
        alpha = x.dtype.type(alpha)
        if out.size < PARALLEL_FROM or not _flat(x, out):
            ufuncs[x.dtype.char](x, alpha, out)
        else:
            loop(x.reshape(-1), alpha, out.reshape(-1))

    return kernel


negative = _numpy_unary(np.negative)
abs = _numpy_unary(np.absolute)
log = _numpy_unary(np.log)
reciprocal = _numpy_unary(np.reciprocal)
sin = _numpy_unary(np.sin)
cos = _numpy_unary(np.cos)
log1p = _numpy_unary(np.log1p)
expm1 = _numpy_unary(np.expm1)
sign = _numpy_unary(np.sign)
floor = _numpy_unary(np.floor)
ceil = _numpy_unary(np.ceil)
round = _numpy_unary(np.rint)
logical_not = _numpy_unary(np.logical_not)
exp = _unary(np.exp, scalars.plain_exp)
tanh = _unary(np.tanh, scalars.plain_tanh)
sqrt = _unary(np.sqrt, scalars.sqrt)
square = _unary(np.square, scalars.square)
rsqrt = _compiled_unary(scalars.rsqrt)
erf = _compiled_unary(scalars.plain_erf)
sigmoid = _compiled_unary(scalars.sigmoid)
silu = _compiled_unary(scalars.silu)
softplus = _compiled_unary(scalars.softplus)
hard_sigmoid = _compiled_unary(scalars.hard_sigmoid)
hard_swish = _compiled_unary(scalars.hard_swish)
leaky_relu = _parametric(scalars.leaky_relu)
elu = _parametric(scalars.elu)
_gelu = _compiled_unary(scalars.gelu)
_gelu_tanh = _compiled_unary(scalars.gelu_tanh)
_relu_loop = _unary_loop(scalars.relu)
_relu6_loop = _unary_loop(scalars.relu6)


def relu(x: np.ndarray, *, out: np.ndarray) -> None:
    """max(x, 0); NaN stays NaN."""
    if out.size < PARALLEL_FROM or not _flat(x, out):
        np.maximum(x, _ZERO[x.dtype], out=out)
    else:
        _relu_loop(x.reshape(-1), out.reshape(-1))


def relu6(x: np.ndarray, *, out: np.ndarray) -> None:
    """min(max(x, 0), 6); NaN stays NaN."""
    if out.size < PARALLEL_FROM or not _flat(x, out):
        np.maximum(x, _ZERO[x.dtype], out=out)
        np.minimum(out, _SIX[x.dtype], out=out)
    else:
        _relu6_loop(x.reshape(-1), out.reshape(-1))


def gelu(x: np.ndarray, *, out: np.ndarray, approximate: bool) -> None:
    """x * Phi(x) from erf, or from the tanh approximation."""
    (_gelu_tanh if approximate else _gelu)(x, out=out)


def clip(x: np.ndarray, *, out: np.ndarray, low: float | None, high: float | None) -> None:
    """x limited to [low, high]; None leaves that side open, NaN stays NaN."""
    source = x
    if low is not None:
        np.maximum(source, x.dtype.type(low), out=out)
        source = out
    if high is not None:
        np.minimum(source, x.dtype.type(high), out=out)
    elif low is None:
        np.copyto(out, x)


def cast(x: np.ndarray, *, out: np.ndarray, dtype: str) -> None:
    """x converted to the dtype of `out`, as C would."""
    np.copyto(out, x, casting="unsafe")


# -- kernels of two inputs -------------------------------------------------------------------------------------------


def _numpy_binary(ufunc: np.ufunc) -> Kernel:
    def kernel(a, b, *, out):
        ufunc(a, b, out)

    return kernel


def _binary(ufunc: np.ufunc, scalar: Callable, commutes: bool) -> Kernel:
    """NumPy's ufunc; from `PARALLEL_FROM` elements, loops for equal shapes and for a scalar or a last-axis vector b."""
    same, rows, one = _binary_loop(scalar), _row_loop(scalar), _parametric_loop(scalar)

    def large(a, b, out):
        if commutes and a.size < b.size:
            a, b = b, a
        if _flat(a, b, out):
            same(a.reshape(-1), b.reshape(-1), out.reshape(-1))
        elif not _flat(a, out) or b.dtype is not a.dtype:
            ufunc(a, b, out=out)
        elif b.size == 1:
            one(a.reshape(-1), b.reshape(-1)[0], out.reshape(-1))
        elif b.size == b.shape[-1] == a.shape[-1]:
            width = b.size
            rows(a.reshape(-1, width), np.ascontiguousarray(b.reshape(-1)), out.reshape(-1, width))
        else:
            ufunc(a, b, out=out)

    def kernel(a, b, *, out):
        if out.size < PARALLEL_FROM:
            ufunc(a, b, out=out)
        else:
            large(a, b, out)

    return kernel


add = _binary(np.add, scalars.add, True)
subtract = _binary(np.subtract, scalars.subtract, False)
multiply = _binary(np.multiply, scalars.multiply, True)
divide = _binary(np.divide, scalars.divide, False)
maximum = _binary(np.maximum, scalars.maximum, True)
minimum = _binary(np.minimum, scalars.minimum, True)
power = _numpy_binary(np.power)
equal = _numpy_binary(np.equal)
not_equal = _numpy_binary(np.not_equal)
less = _numpy_binary(np.less)
less_equal = _numpy_binary(np.less_equal)
greater = _numpy_binary(np.greater)
greater_equal = _numpy_binary(np.greater_equal)
logical_and = _numpy_binary(np.logical_and)
logical_or = _numpy_binary(np.logical_or)
_relu_grad_loop = _binary_loop(scalars.relu_grad)
_relu6_grad_loop = _binary_loop(scalars.relu6_grad)
_leaky_relu_grad_loop = _binary_parametric_loop(scalars.leaky_relu_grad)


def where(condition: np.ndarray, a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """a where the bool condition holds, b elsewhere; all three broadcast."""
    np.copyto(out, b)
    np.copyto(out, a, where=condition)


def relu_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray) -> None:
    """g where y > 0 (or y is NaN), else 0."""
    if out.size < PARALLEL_FROM or out.dtype.char not in "fd":
        np.copyto(out, g)
        np.putmask(out, np.less_equal(y, _ZERO[y.dtype]), 0)
    else:
        _relu_grad_loop(np.ravel(g), np.ravel(y), out.reshape(-1))  # ravel copies strided ones, as concat's gradients are


def relu6_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray) -> None:
    """g where 0 < y < 6 (or y is NaN), else 0."""
    if out.size < PARALLEL_FROM or out.dtype.char not in "fd":
        np.copyto(out, g)
        np.putmask(out, np.less_equal(y, _ZERO[y.dtype]) | np.greater_equal(y, _SIX[y.dtype]), 0)
    else:
        _relu6_grad_loop(np.ravel(g), np.ravel(y), out.reshape(-1))


def leaky_relu_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, alpha: float) -> None:
    """g where y > 0, else alpha * g."""
    alpha = g.dtype.type(alpha)
    if out.size < PARALLEL_FROM or not _flat(g, y, out):
        np.multiply(g, alpha, out=out)
        np.copyto(out, g, where=np.greater(y, _ZERO[y.dtype]))
    else:
        _leaky_relu_grad_loop(g.reshape(-1), y.reshape(-1), alpha, out.reshape(-1))
