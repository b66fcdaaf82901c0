"""Elementwise ops: one thread a value, one line of mathematics an op."""

from __future__ import annotations

import math
from collections.abc import Callable

from numba import cuda, float32

from .runtime import BLOCK, launch, over, spread

ZERO, HALF, ONE, THREE, SIX = float32(0), float32(0.5), float32(1), float32(3), float32(6)
ROOT_HALF, ROOT_2_PI, CUBE = float32(math.sqrt(0.5)), float32(math.sqrt(2 / math.pi)), float32(0.044715)

FUNCTIONS: dict[str, Callable] = {
    "negative": lambda x: -x,
    "abs": lambda x: math.fabs(x),
    "exp": lambda x: math.exp(x),
    "log": lambda x: math.log(x),
    "sqrt": lambda x: math.sqrt(x),
    "rsqrt": lambda x: ONE / math.sqrt(x),
    "square": lambda x: x * x,
    "reciprocal": lambda x: ONE / x,
    "sin": lambda x: math.sin(x),
    "cos": lambda x: math.cos(x),
    "erf": lambda x: math.erf(x),
    "tanh": lambda x: math.tanh(x),
    "sigmoid": lambda x: ONE / (ONE + math.exp(-x)),
    "relu": lambda x: ZERO if x < ZERO else x,  # NaN stays
    "relu6": lambda x: ZERO if x < ZERO else SIX if x > SIX else x,
    "silu": lambda x: x / (ONE + math.exp(-x)),
    "hard_sigmoid": lambda x: min(max(x + THREE, ZERO), SIX) / SIX,
    "hard_swish": lambda x: x * (min(max(x + THREE, ZERO), SIX) / SIX),
    "softplus": lambda x: max(x, ZERO) + math.log1p(math.exp(-math.fabs(x))),
    "log1p": lambda x: math.log1p(x),
    "expm1": lambda x: math.expm1(x),
    "sign": lambda x: ONE if x > ZERO else -ONE if x < ZERO else x,
    "floor": lambda x: math.floor(x),
    "ceil": lambda x: math.ceil(x),
    "round": lambda x: x - math.fmod(x, ONE) if math.fabs(x) >= 8388608 else (x + math.copysign(float32(12582912),
    x)) - math.copysign(float32(12582912), x),
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "power": lambda x, y: math.pow(x, y),
    "maximum": lambda x, y: x if x > y or x != x else y,  # a NaN wins
    "minimum": lambda x, y: x if x < y or x != x else y,
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "where": lambda c, x, y: x if c else y,
    "relu_grad": lambda g, y: ZERO if y <= ZERO else g,
    "relu6_grad": lambda g, y: ZERO if y <= ZERO or y >= SIX else g,
    "leaky_relu": lambda x, alpha: x if x > ZERO else alpha * x,
    "leaky_relu_grad": lambda g, y, alpha: g if y > ZERO else alpha * g,
    "elu": lambda x, alpha: x if x > ZERO else alpha * math.expm1(x),
    "gelu": lambda x: x * (HALF * (ONE + math.erf(x * ROOT_HALF))),
    "gelu_tanh": lambda x: x * (HALF * (ONE + math.tanh(ROOT_2_PI * (x + CUBE * x * x * x)))),
}  # fmt: skip


def kernel_of(name: str) -> Callable:
    """The kernel of a function: out[i] = f(inputs[i]..., parameters...) over flat arrays."""
    if name not in _kernels:
        f = cuda.jit(FUNCTIONS[name], device=True)
        _kernels[name] = _KERNELS[FUNCTIONS[name].__code__.co_argcount](f)
    return _kernels[name]


_kernels: dict[str, Callable] = {}


def _one(f):
    def kernel(out, x):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = f(x[i])

    return kernel


def _two(f):
    def kernel(out, x, y):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = f(x[i], y[i])

    return kernel


def _three(f):
    def kernel(out, x, y, z):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = f(x[i], y[i], z[i])

    return kernel


def _one_and_parameter(f):
    def kernel(out, x, parameter):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = f(x[i], parameter)

    return kernel


def _two_and_parameter(f):
    def kernel(out, x, y, parameter):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = f(x[i], y[i], parameter)

    return kernel


_KERNELS = {1: _one, 2: _two, 3: _three}
_PARAMETER = {"leaky_relu": _one_and_parameter, "elu": _one_and_parameter, "leaky_relu_grad": _two_and_parameter}


def with_parameter(name: str) -> Callable:
    """The same for a function whose last argument is one number."""
    if name not in _kernels:
        _kernels[name] = _PARAMETER[name](cuda.jit(FUNCTIONS[name], device=True))
    return _kernels[name]


def _flat(array, shape):
    return spread(array, shape).reshape(-1)


def _plain(name: str) -> Callable:
    def fn(*inputs, out) -> None:
        launch(kernel_of(name), over(out.size), BLOCK, out.reshape(-1), *(_flat(x, out.shape) for x in inputs))

    fn.__name__ = name
    return fn


def _parametrised(name: str) -> Callable:
    def fn(*inputs, out, alpha) -> None:
        launch(
            with_parameter(name), over(out.size), BLOCK, out.reshape(-1), *(_flat(x, out.shape) for x in inputs), float32(alpha)
        )

    fn.__name__ = name
    return fn


def gelu(x, *, out, approximate: bool) -> None:
    launch(kernel_of("gelu_tanh" if approximate else "gelu"), over(out.size), BLOCK, out.reshape(-1), _flat(x, out.shape))


globals().update(
    {name: _parametrised(name) if name in _PARAMETER else _plain(name) for name in FUNCTIONS if not name.startswith("gelu")}
)
