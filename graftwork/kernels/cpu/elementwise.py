"""Elementwise kernels: a NumPy ufunc for small arrays and other dtypes, `chain.py`'s vector machine for large float32 ones.

A ufunc call costs a quarter of a microsecond and handles broadcasting, strides and every dtype; preparing a plan costs ten and
wins from `PARALLEL_FROM` elements. Functions that NumPy lacks become ufuncs through Numba.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import vectorize

from ..plan import Plan, Spec
from . import chain, runtime, scalars
from .copies import convert, convert_kinds
from .jit import STAMP
from .planning import carry_out, parts_for

PARALLEL_FROM = 1 << 16  # elements
Kernel = Callable[..., None]
_PLANNERS = {op: getattr(chain, f"plan_{op}") for op in chain.OPS}
_FLOAT32 = np.dtype(np.float32)


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
        made = vectorize(cache=True)(function)
        files = made._dispatcher.cache._cache_file
        files._source_stamp = (files._source_stamp, STAMP)  # compiled with functions of other files: see jit.py
        made.add(signature)
        made.disable_compile()
        self[char] = made.ufunc
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


def _machine(op: str, arrays: tuple[np.ndarray, ...], out: np.ndarray, gain: int = 1, **attrs) -> bool:
    """Run a large op on the vector machine; False, with nothing done, where that does not pay or cannot be.

    gain: how many times smaller an array may be than for NumPy's fastest functions."""
    if out.size * gain < PARALLEL_FROM or arrays[-1].dtype != _FLOAT32:
        return False
    return carry_out(_PLANNERS[op], arrays, (out,), **attrs)


# -- kernels of one input --------------------------------------------------------------------------------------------


def _numpy_unary(op: str, ufunc: np.ufunc) -> Kernel:
    """A function that NumPy has too."""

    def kernel(x, *, out):
        if not _machine(op, (x,), out):
            ufunc(x, out)

    return kernel


def _compiled_unary(op: str, scalar: Callable, **fixed) -> Kernel:
    """A function that NumPy lacks."""
    ufuncs = _UfuncByDtype(scalar, 1)

    def kernel(x, *, out):
        if not _machine(op, (x,), out, **fixed):
            ufuncs[x.dtype.char](x, out)

    return kernel


def _parametric(op: str, scalar: Callable) -> Kernel:
    """A function of an element and `alpha`."""
    ufuncs = _UfuncByDtype(scalar, 2)

    def kernel(x, *, out, alpha):
        if not _machine(op, (x,), out, alpha=alpha):
            ufuncs[x.dtype.char](x, x.dtype.type(alpha), out)

    return kernel


negative = _numpy_unary("negative", np.negative)
abs = _numpy_unary("abs", np.absolute)
exp = _numpy_unary("exp", np.exp)
log = _numpy_unary("log", np.log)
sqrt = _numpy_unary("sqrt", np.sqrt)
square = _numpy_unary("square", np.square)
reciprocal = _numpy_unary("reciprocal", np.reciprocal)
sin = _numpy_unary("sin", np.sin)
cos = _numpy_unary("cos", np.cos)
tanh = _numpy_unary("tanh", np.tanh)
log1p = _numpy_unary("log1p", np.log1p)
expm1 = _numpy_unary("expm1", np.expm1)
sign = _numpy_unary("sign", np.sign)
floor = _numpy_unary("floor", np.floor)
ceil = _numpy_unary("ceil", np.ceil)
round = _numpy_unary("round", np.rint)
logical_not = _numpy_unary("logical_not", np.logical_not)
rsqrt = _compiled_unary("rsqrt", scalars.rsqrt)
erf = _compiled_unary("erf", scalars.plain_erf)
sigmoid = _compiled_unary("sigmoid", scalars.sigmoid)
silu = _compiled_unary("silu", scalars.silu)
softplus = _compiled_unary("softplus", scalars.softplus)
hard_sigmoid = _compiled_unary("hard_sigmoid", scalars.hard_sigmoid)
hard_swish = _compiled_unary("hard_swish", scalars.hard_swish)
leaky_relu = _parametric("leaky_relu", scalars.leaky_relu)
elu = _parametric("elu", scalars.elu)
_gelu = _compiled_unary("gelu", scalars.gelu, approximate=False)
_gelu_tanh = _compiled_unary("gelu", scalars.gelu_tanh, approximate=True)


def relu(x: np.ndarray, *, out: np.ndarray) -> None:
    """max(x, 0); NaN stays NaN."""
    if not _machine("relu", (x,), out):
        np.maximum(x, _ZERO[x.dtype], out=out)


def relu6(x: np.ndarray, *, out: np.ndarray) -> None:
    """min(max(x, 0), 6); NaN stays NaN."""
    if not _machine("relu6", (x,), out):
        np.maximum(x, _ZERO[x.dtype], out=out)
        np.minimum(out, _SIX[x.dtype], out=out)


def gelu(x: np.ndarray, *, out: np.ndarray, approximate: bool) -> None:
    """x * Phi(x) from erf, or from the tanh approximation."""
    (_gelu_tanh if approximate else _gelu)(x, out=out)


def clip(x: np.ndarray, *, out: np.ndarray, low: float | None, high: float | None) -> None:
    """x limited to [low, high]; None leaves that side open, NaN stays NaN."""
    if _machine("clip", (x,), out, low=low, high=high):
        return
    source = x
    if low is not None:
        np.maximum(source, x.dtype.type(low), out=out)
        source = out
    if high is not None:
        np.minimum(source, x.dtype.type(high), out=out)
    elif low is None:
        np.copyto(out, x)


def plan_cast(x: Spec, *, out: Spec, dtype: str) -> Plan | None:
    """float32 from and to bool, float64, int32, int64 and uint8."""
    kinds = convert_kinds(x.dtype, out.dtype)
    if kinds is None or kinds == (0, 0):
        return chain.plan_cast(x, out=out, dtype=dtype)
    parts = parts_for(out.size, out.size)

    def bind(inputs, outputs, workspace):
        return [runtime.row(convert, parts, parts, out.size, *kinds, inputs[0], outputs[0])] if out.size else []

    return Plan(bind)


def cast(x: np.ndarray, *, out: np.ndarray, dtype: str) -> None:
    """x converted to the dtype of `out`, as C would."""
    if out.size < PARALLEL_FROM or not carry_out(plan_cast, (x,), (out,), dtype=dtype):
        np.copyto(out, x, casting="unsafe")


# -- kernels of two inputs -------------------------------------------------------------------------------------------


def _binary(op: str, ufunc: np.ufunc) -> Kernel:
    def kernel(a, b, *, out):
        if not _machine(op, (a, b), out):
            ufunc(a, b, out=out)

    return kernel


add = _binary("add", np.add)
subtract = _binary("subtract", np.subtract)
multiply = _binary("multiply", np.multiply)
divide = _binary("divide", np.divide)
maximum = _binary("maximum", np.maximum)
minimum = _binary("minimum", np.minimum)
power = _binary("power", np.power)
equal = _binary("equal", np.equal)
not_equal = _binary("not_equal", np.not_equal)
less = _binary("less", np.less)
less_equal = _binary("less_equal", np.less_equal)
greater = _binary("greater", np.greater)
greater_equal = _binary("greater_equal", np.greater_equal)
logical_and = _binary("logical_and", np.logical_and)
logical_or = _binary("logical_or", np.logical_or)


def where(condition: np.ndarray, a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """a where the bool condition holds, b elsewhere; all three broadcast."""
    if not _machine("where", (condition, a, b), out, gain=4):
        np.copyto(out, b)
        np.copyto(out, a, where=condition)


def relu_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray) -> None:
    """g where y > 0 (or y is NaN), else 0."""
    if not _machine("relu_grad", (g, y), out):
        np.copyto(out, g)
        np.putmask(out, np.less_equal(y, _ZERO[y.dtype]), 0)


def relu6_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray) -> None:
    """g where 0 < y < 6 (or y is NaN), else 0."""
    if not _machine("relu6_grad", (g, y), out):
        np.copyto(out, g)
        np.putmask(out, np.less_equal(y, _ZERO[y.dtype]) | np.greater_equal(y, _SIX[y.dtype]), 0)


def leaky_relu_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, alpha: float) -> None:
    """g where y > 0, else alpha * g."""
    if not _machine("leaky_relu_grad", (g, y), out, alpha=alpha):
        np.multiply(g, g.dtype.type(alpha), out=out)
        np.copyto(out, g, where=np.greater(y, _ZERO[y.dtype]))
