"""Every CPU kernel, every variant, against the NumPy reference on shapes, layouts and attributes that Hypothesis picks.

One table, `ROWS`, says for each op how its inputs are made and how far a result may be off; a kernel without a row fails.
Half of the examples lower the sizes from which kernels turn to threads or cut their work in pieces, so that small arrays
take those paths too. Outputs are surrounded by marks that no kernel may touch, and inputs must come back unchanged.

Tolerances. The reference runs in float64 on the same (float32 or float16) numbers. Moves, choices and comparisons must be
equal. A function of one value may be off by 16 eps of the result: our polynomials err by 3 eps and are followed by up to
four roundings. A sum of n products of which each rounding costs eps / 2 is off by at most (n + 2) eps / 2 times the sum
of the terms' absolute values, in any order; at most 126 terms occur here, hence 64 eps of that sum, never of the result,
which may cancel. Where a formula subtracts, its row states the size of what is subtracted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwork import kernels
from graftwork.kernels.cpu import conv, elementwise, index, norm, random, reduce, softmax, update
from graftwork.kernels.cpu import matmul as products
from graftwork.nn.op import OPS

# Winograd's rounding errors are those of whole tiles, not of the terms of one pixel: it has tests of its own, by norms.
NOT_HERE = ("reference", "winograd")
BYTES = {"quantize", "dequantize", "quantized_add", "byte_table", "quantized_max_pool2d", "quantized_avg_pool2d",
         "quantized_conv2d_add"}  # test_byte_kernels.py holds them to the reference's bits
ENTRIES = [
    e for e in kernels.list(device="cpu") if e.variant not in NOT_HERE and isinstance(e.target, str) and e.op not in BYTES
]
MARGIN = 64  # elements before and behind every output
SPECIALS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.0, 5.5, 150.0, -150.0)
LOWERED = {
    elementwise: {"PARALLEL_FROM": 1}, reduce: {"PARALLEL_FROM": 1}, softmax: {"PARALLEL_FROM": 1},
    index: {"PARALLEL_FROM": 1, "COLUMNS": 1}, update: {"PARALLEL_FROM": 1}, random: {"PARALLEL_FROM": 1},
    norm: {"SMALL": 1, "BLOCK": 4},
    conv: {"DIRECT_BELOW": 0, "CHUNK_BYTES": 1, "GRADIENT_CHUNK_BYTES": 1}, products: {"GEMM_FROM": 1, "GEMM_ROWS": 1},
}  # fmt: skip


@contextmanager
def thresholds(lowered: bool) -> Iterator[None]:
    """Threads and small chunks for arrays of any size, if `lowered`."""
    with pytest.MonkeyPatch.context() as patch:
        for module, values in LOWERED.items() if lowered else ():
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield


# -- what an example is made of ---------------------------------------------------------------------------------------

LAYOUTS = ("plain", "plain", "every second", "reversed", "transposed")  # plain twice: only contiguous arrays meet threads
SHARING = ("broadcast first", "broadcast last")  # several elements in one place of memory


def arrange(a: np.ndarray, layout: str) -> np.ndarray:
    """The values of `a` in memory of its own, laid out as asked for; the gaps hold what would be noticed."""
    if a.ndim == 0:
        return np.array(a)
    if layout == "every second":
        wide = np.full([2 * n for n in a.shape], np.nan if a.dtype.kind == "f" else 99, a.dtype)
        view = wide[(slice(None, None, 2),) * a.ndim]
        view[...] = a
        return view
    if layout == "reversed":
        back = (slice(None, None, -1),) * a.ndim
        return a[back].copy()[back]
    if layout == "transposed":
        return a.T.copy().T
    if layout in SHARING and a.size > 1:
        axis = 0 if layout == "broadcast first" else a.ndim - 1
        if a.shape[axis] > 1:
            return np.broadcast_to(np.take(a, [0], axis), a.shape)
    return a.copy()


class Pick:
    """Draws for one example; its table row turns them into arrays and attributes."""

    def __init__(self, draw: Callable, entry: kernels.Entry, dtypes: tuple[str, ...], special: bool) -> None:
        self.draw, self.variant, self.special = draw, entry.variant, special
        self.lowered = draw(st.booleans())
        self.dtype = np.dtype(draw(st.sampled_from([d for d in dtypes if entry.accepts(np.dtype(d))])))
        self.rng = np.random.default_rng(draw(st.integers(0, 9999)))
        self.sharing = SHARING

    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.int(low, high), self.int(low, high)

    def shape(self, fewest: int = 0, most: int = 3, least: int = 0) -> tuple[int, ...]:
        return tuple(self.one(*{least, 1}, 2, 3, 4, 5) for _ in range(self.int(fewest, most)))

    def axes(self, ndim: int) -> tuple[int, ...]:
        return tuple(i for i in range(ndim) if self.draw(st.booleans()))

    def values(self, *shape: int, dtype: Any = None, positive: bool = False, low: int = -9) -> np.ndarray:
        """Numbers near 1, in half of the arrays halves of integers (which tie); with NaN and infinities if `special`."""
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        if dtype.kind == "b":
            return np.asarray(self.rng.random(shape) > 0.5)
        if dtype.kind in "iu":
            return np.asarray(self.rng.integers(0 if positive or dtype.kind == "u" else low, 10, shape), dtype)
        x = np.asarray(2 * self.rng.standard_normal(shape))
        x = np.round(2 * x) / 2 if self.draw(st.booleans()) else x
        x = np.abs(x) + 0.25 if positive else x
        if self.special:
            x = np.where(self.rng.random(shape) < 0.3, self.rng.choice(SPECIALS, shape), x)
        return np.asarray(x, dtype)

    def spread(self, count: int) -> list[tuple[int, ...]]:
        """Shapes that broadcast together."""
        whole = self.shape()
        return [
            tuple(1 if self.int(0, 3) == 0 else n for n in whole[self.one(0, 0, self.int(0, len(whole))) :])
            for _ in range(count)
        ]

    def indices(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self.one("int64", "int32", "uint8"))
        return np.asarray(self.rng.integers(0 if dtype.kind == "u" else low, high, shape).astype(dtype))


Inputs = tuple[tuple[np.ndarray, ...], dict[str, Any]]
Bounds = Callable[[str, list[np.ndarray], dict[str, Any], list[np.ndarray]], list[Any]]


@dataclass(frozen=True)
class Row:
    """How an op is tried. `bounds` -> for each output, what 16 or 64 eps are relative to; None: results must be equal."""

    make: Callable[[Pick], Inputs]
    bounds: Bounds | None
    dtypes: tuple[str, ...] = ("float32", "float64")
    special: bool = False  # whether NaN and infinity have a meaning that the reference defines


# -- bounds -----------------------------------------------------------------------------------------------------------


def value(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], want: list[np.ndarray]) -> list[Any]:
    """A function of single values: relative to the result. A quarter, because 16 eps and not 64 are allowed."""
    return [np.abs(w) / 4 for w in want]


def sizes(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(np.abs(a)) if a.dtype.kind == "f" else a for a in arrays]


def terms(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], want: list[np.ndarray]) -> list[Any]:
    """An op that is linear in its arrays with coefficients of no sign: its value for their absolute values."""
    attrs = {**attrs, "activation": None} if "activation" in attrs else attrs  # an activation enlarges no difference
    return outputs(op, reference(op), sizes(arrays), attrs)


def of_input(scale: Callable[[np.ndarray], Any]) -> Bounds:
    return lambda op, arrays, attrs, want: [scale(arrays[0])]


def finite(x: np.ndarray) -> np.ndarray:
    return np.abs(np.where(np.isfinite(x), x, 0))


def largest(x: np.ndarray, axis: int) -> np.ndarray:
    return np.max(finite(x), axis=axis, keepdims=True, initial=0)


def softmax_bound(op, arrays, attrs, want):
    """x - max rounds at the size of the larger; exp turns that into a relative error, which log turns back."""
    room = 1 + 2 * largest(arrays[0], attrs["axis"])
    return [room * want[0] if op == "softmax" else room + math.log(arrays[0].size + 1)]


def softmax_grad_bound(op, arrays, attrs, want):
    g, y = map(np.abs, arrays)
    if op == "softmax_grad":
        return [y * (g + np.sum(g * y, axis=attrs["axis"], keepdims=True))]
    return [g + np.exp(arrays[1]) * (1 + y) * np.sum(g, axis=attrs["axis"], keepdims=True)]


def cross_entropy_bound(op, arrays, attrs, want):
    return [1 + 4 * largest(arrays[0], 1)[:, 0] + math.log(arrays[0].shape[1])]


def normalised_bound(x, mean, scale, gamma, beta):
    return (np.abs(x) + np.abs(mean)) * scale * np.abs(gamma) + np.abs(beta)


def batch_norm_bound(op, arrays, attrs, want):
    x, gamma, beta, mean, var = arrays
    return [normalised_bound(x, mean, 1 / np.sqrt(var + attrs["epsilon"]), gamma, beta)]


def batch_norm_train_bound(op, arrays, attrs, want):
    """The variance comes from squares of differences of up to 2 max |x|; its relative error is the scale's twice over."""
    (x, gamma, beta), (_, mean, var) = arrays, want
    rows = tuple(range(x.ndim - 1))
    squares = 4 * np.max(x * x, axis=rows)
    room = 1 + squares / (var + attrs["epsilon"])
    y = normalised_bound(x, mean, room / np.sqrt(var + attrs["epsilon"]), gamma, beta)
    return [y, np.mean(np.abs(x), axis=rows), squares]


def batch_norm_grad_bound(op, arrays, attrs, want):
    g, x, gamma, mean, var = arrays
    rows, count = tuple(range(x.ndim - 1)), max(1, math.prod(x.shape[:-1]))
    scale = 1 / np.sqrt(var + attrs["epsilon"])
    normal = (np.abs(x) + np.abs(mean)) * scale
    along, total = np.sum(np.abs(g) * normal, axis=rows), np.sum(np.abs(g), axis=rows)
    return [np.abs(gamma) * scale * (np.abs(g) + total / count + normal * along / count), along, total]


def layer_norm_bound(op, arrays, attrs, want):
    (x, gamma, beta), (_, mean, rstd) = arrays, want
    room = 1 + 4 * np.max(x * x, axis=-1) * rstd**2
    y = normalised_bound(x, mean[..., None], (room * rstd)[..., None], gamma, beta)
    return [y, np.mean(np.abs(x), axis=-1), room * rstd]


def layer_norm_grad_bound(op, arrays, attrs, want):
    g, x, gamma, mean, rstd = arrays
    rows = tuple(range(x.ndim - 1))
    normal, scaled = (np.abs(x) + np.abs(mean)[..., None]) * rstd[..., None], np.abs(g * gamma)
    inner = np.mean(scaled, axis=-1, keepdims=True) + normal * np.mean(scaled * normal, axis=-1, keepdims=True)
    return [rstd[..., None] * (scaled + inner), np.sum(np.abs(g) * normal, axis=rows), np.sum(np.abs(g), axis=rows)]


def sgd_bound(op, arrays, attrs, want):
    """The step's terms without their signs: a negative rate adds what the update subtracts."""
    param, grad, buf, rate = sizes(arrays)
    return outputs(op, reference(op), [param, grad, buf, -rate], attrs)


def adam_bound(op, arrays, attrs, want):
    param, grad, m, v, step, rate = sizes(arrays)
    _, m, v = outputs(op, reference(op), [param, grad, m, v, step, -rate], {**attrs, "decoupled": False})
    root = np.sqrt(want[2]) / np.sqrt(1 - attrs["beta2"] ** step) + attrs["epsilon"]
    pace = rate / (1 - attrs["beta1"] ** step) * m / root
    return [param + pace * (1 + v / want[2]), m, v]


# -- inputs -----------------------------------------------------------------------------------------------------------


def unary(**attributes: Callable[[Pick], Any]) -> Callable[[Pick], Inputs]:
    return lambda p: ((p.values(*p.shape()),), {name: choose(p) for name, choose in attributes.items()})


def positive_unary(p: Pick) -> Inputs:
    return (p.values(*p.shape(), positive=True),), {}


def binary(p: Pick) -> Inputs:
    return tuple(p.values(*shape) for shape in p.spread(2)), {}


def nonzero_second(p: Pick) -> Inputs:
    a, b = p.spread(2)
    return (p.values(*a), p.values(*b, positive=not p.special)), {}


def power(p: Pick) -> Inputs:
    a, b = p.spread(2)
    exponent = np.asarray(p.values(*b) if p.dtype.kind == "f" else p.values(*b, positive=True) % 4)
    return (p.values(*a, positive=not p.special), exponent), {}


def where(p: Pick) -> Inputs:
    c, a, b = p.spread(3)
    return (p.values(*c, dtype=bool), p.values(*a), p.values(*b)), {}


def clip(p: Pick) -> Inputs:
    return (p.values(*p.shape()),), {"low": p.one(None, 0, 2), "high": p.one(None, 3, 5)}


def cast(p: Pick) -> Inputs:
    targets = ("float64", "float32", "float16") + (() if p.special else ("int32", "int64", "uint8", "bool"))
    return (p.values(*p.shape(), positive=not p.special),), {"dtype": p.one(*targets)}


def rectifier_grad(p: Pick) -> Inputs:
    shape = p.shape()
    y = p.values(*shape)
    return (p.values(*shape), y if p.special else np.asarray(np.clip(2 * y, -1, 6))), {}


def leaky_grad(p: Pick) -> Inputs:
    return rectifier_grad(p)[0], {"alpha": p.one(0.0, 0.2)}


def reduction(p: Pick, least: int = 0) -> Inputs:
    x = p.values(*p.shape(least=least))
    return (x,), {"axis": p.axes(x.ndim), "keepdims": p.one(False, True)}


def nonempty_reduction(p: Pick) -> Inputs:
    shape = p.shape()
    axis = p.axes(len(shape))
    shape = tuple(n or 1 if i in axis else n for i, n in enumerate(shape))
    return (p.values(*shape),), {"axis": axis, "keepdims": p.one(False, True)}


def product(p: Pick) -> Inputs:
    (x,), attrs = reduction(p)
    return (x if p.dtype.kind != "f" or p.special else np.asarray(1 + x / 100, p.dtype),), attrs


def arg_extreme(p: Pick) -> Inputs:
    shape = p.shape(1)
    axis = p.one(None, *range(len(shape)))
    shape = tuple(n or 1 if axis in (None, i) else n for i, n in enumerate(shape))
    return (p.values(*shape),), {"axis": axis, "keepdims": p.one(False, True)}


def along_axis(p: Pick, count: int = 1, fewest: int = 0) -> Inputs:
    shape = p.shape(1)
    axis = p.int(0, len(shape) - 1)
    shape = tuple(max(n, fewest) if i == axis else n for i, n in enumerate(shape))
    return tuple(p.values(*shape) for _ in range(count)), {"axis": axis}


def cross_entropy(p: Pick) -> Inputs:
    rows, classes = p.int(0, 5), p.int(1, 20)
    return (p.values(rows, classes), p.indices(0, classes, (rows,))), {"label_smoothing": p.one(0.0, 0.1)}


def gather(p: Pick) -> Inputs:
    shape, axis, places = p.shape(1), 0, p.shape(0, 2)
    axis = p.int(0, len(shape) - 1)
    places = places if shape[axis] else (0, *places[1:])
    return (p.values(*shape), p.indices(-shape[axis], max(1, shape[axis]), places)), {"axis": axis}


def in_range(p: Pick) -> Inputs:
    limits = {"low": -3, "high": 5, "what": "positions", "limit": "there are five"}
    return (p.indices(-3, 5, p.shape(0, 2)),), limits


def increment(p: Pick) -> Inputs:
    return (p.values(),), {}


def scatter_add(p: Pick) -> Inputs:
    (x, idx), attrs = gather(p)
    axis = attrs["axis"]
    g = p.values(*x.shape[:axis], *idx.shape, *x.shape[axis + 1 :])
    return (g, idx), {"axis": axis, "size": x.shape[axis]}


def one_hot(p: Pick) -> Inputs:
    depth = p.int(1, 6)
    return (p.indices(0, depth, p.shape(0, 2)),), {"depth": depth, "dtype": p.one("float32", "float64", "int64", "bool")}


def concat(p: Pick) -> Inputs:
    shape = p.shape(1)
    axis = p.int(0, len(shape) - 1)
    parts = [tuple(p.int(0, 4) if i == axis else n for i, n in enumerate(shape)) for _ in range(p.int(1, 4))]
    return tuple(p.values(*part) for part in parts), {"axis": axis}


def pad(p: Pick) -> Inputs:
    x = p.values(*p.shape())
    return (x,), {"widths": tuple(p.pair(0, 3) for _ in x.shape), "value": p.one(0, 3), "mode": "constant"}


def slice_scatter(p: Pick) -> Inputs:
    shape = p.shape(1)
    cut = []
    for n in shape[: p.int(1, len(shape))]:
        piece = slice(p.one(None, 1, -3), p.one(None, 4, -1), p.one(None, 2, -1, -2))
        cut.append(p.int(-n, n - 1) if n and p.int(0, 3) == 0 else piece)
    return (p.values(*np.empty(shape)[tuple(cut)].shape),), {"shape": shape, "index": tuple(cut)}


def contiguous(p: Pick) -> Inputs:
    return (p.values(*p.shape()),), {}


def chain(p: Pick) -> Inputs:
    """x * b + c, limited, then chosen by a comparison with b: broadcasts, parameters and truth values between the steps."""
    steps = (("multiply", (0, 1), ()), ("add", (3, 2), ()), ("clip", (4,), (("high", 2.0), ("low", -2.0))),
             ("greater", (5, 1), ()), ("where", (6, 5, 2), ()))  # fmt: skip
    return tuple(p.values(*shape) for shape in p.spread(3)), {"program": steps[: p.int(1, len(steps))]}


def chain_bound(op, arrays, attrs, want):
    """Two roundings at the size of the terms; a comparison that they turn chooses between two values of that size, which is
    kept from happening by halves of integers (see `values`) or is within the bound."""
    x, b, c = sizes(arrays)
    return [np.broadcast_to(x * b + c, want[0].shape) if want[0].dtype.kind == "f" else 0]


def matmul(p: Pick) -> Inputs:
    (m, k, n), (a, b) = (p.one(0, 1, 2, 5, 9) for _ in range(3)), p.spread(2)
    return (p.values(*a[-2:], m, k), p.values(*b[-2:], k, n)), {}


def linear(p: Pick) -> Inputs:
    lead, (k, n) = p.shape(), (p.one(0, 1, 2, 5, 9) for _ in range(2))
    arrays = p.values(*lead, k), p.values(k, n), p.values(n), p.values(*lead, n)
    return arrays[: p.one(2, 3, 4)], {"activation": p.one(None, "relu", "relu6")}


def normalisation(p: Pick, fewest: int) -> tuple[np.ndarray, ...]:
    *lead, channels = p.shape(2, 4, fewest) if fewest else p.shape(2, 4)
    x = p.values(*lead, max(channels, 1))
    return x, p.values(x.shape[-1]), p.values(x.shape[-1])


def batch_norm(p: Pick) -> Inputs:
    x, gamma, beta = normalisation(p, 0)
    return (x, gamma, beta, p.values(*beta.shape), p.values(*beta.shape, positive=True)), {"epsilon": 1e-3}


def norm_forward(fewest: int) -> Callable[[Pick], Inputs]:
    return lambda p: (normalisation(p, fewest), {"epsilon": 1e-3})


def batch_norm_grad(p: Pick) -> Inputs:
    (x, gamma, _, mean, var), attrs = batch_norm(p)
    return (p.values(*x.shape), x, gamma, mean, var), attrs


def layer_norm_grad(p: Pick) -> Inputs:
    x, gamma, _ = normalisation(p, 0)
    return (p.values(*x.shape), x, gamma, p.values(*x.shape[:-1]), p.values(*x.shape[:-1], positive=True)), {}


def sgd(p: Pick) -> Inputs:
    shape = p.shape()
    attrs = {"momentum": p.one(0.0, 0.9), "nesterov": p.one(False, True), "weight_decay": p.one(0.0, 0.1)}
    arrays = *(p.values(*shape) for _ in range(3)), np.array(0.1, p.dtype)
    return arrays, {**attrs, "dampening": p.one(0.0, 0.5)}


def adam(p: Pick) -> Inputs:
    shape = p.shape()
    attrs = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": p.one(0.0, 0.1), "decoupled": p.one(False, True)}
    state = *(p.values(*shape) for _ in range(3)), p.values(*shape, positive=True)
    return (*state, np.array(p.int(1, 9), p.dtype), np.array(0.1, p.dtype)), attrs


def moving_average(p: Pick) -> Inputs:
    shape = p.shape()
    return (p.values(*shape), p.values(*shape)), {"momentum": p.one(0.0, 0.9, 1.0)}


def dropout(p: Pick) -> Inputs:
    state = np.array([p.int(0, 2**64 - 1), p.one(0, 7, 2**32 - 2)], np.uint64)
    return (p.values(*p.shape()), state), {"rate": p.one(0.0, 0.25, 0.9)}


def dropout_grad(p: Pick) -> Inputs:
    shape = p.shape()
    return (p.values(*shape), p.values(*shape, dtype=bool).astype(np.uint8)), {"rate": p.one(0.0, 0.25, 0.9)}


def extent(p: Pick, window: int, stride: int, pads: tuple[int, int], dilation: int, most: int) -> int:
    """A size of image that gives up to `most` outputs, with pixels left over that no window reaches."""
    places, rest = p.int(1, most), p.int(0, stride - 1)
    size = (places - 1) * stride + (window - 1) * dilation + 1 + rest - sum(pads)
    return max(size, 1)


def pooling(p: Pick) -> tuple[tuple[int, ...], dict[str, Any]]:
    window, stride = p.pair(1, 4), p.pair(1, 3)
    padding = tuple((p.int(0, k - 1), p.int(0, k - 1)) for k in window)
    sizes = [extent(p, k, s, pads, 1, 5) for k, s, pads in zip(window, stride, padding, strict=True)]
    return (p.one(1, 2, 3, 0), *sizes, p.one(1, 3, 8, 0)), {"window": window, "stride": stride, "padding": padding}


def max_pool(p: Pick) -> Inputs:
    shape, attrs = pooling(p)
    return (p.values(*shape),), attrs


def max_pool_grad(of_output: bool) -> Callable[[Pick], Inputs]:
    def make(p: Pick) -> Inputs:
        p.sharing = ()  # y belongs to x
        (x,), attrs = max_pool(p)
        (y,) = outputs("max_pool2d", reference("max_pool2d"), [x], attrs)
        g = np.asarray(p.rng.standard_normal((y if of_output else x).shape), p.dtype)
        return (g, x, y), attrs

    return make


def avg_pool(p: Pick) -> Inputs:
    shape, attrs = pooling(p)
    return (p.values(*shape),), {**attrs, "count_padding": p.one(False, True)}


def avg_pool_grad(p: Pick) -> Inputs:
    (x,), attrs = avg_pool(p)
    shape, _ = OPS["avg_pool2d"].infer(x, **attrs)
    return (p.values(*shape),), {"input_shape": x.shape, **attrs}


def resize(p: Pick) -> Inputs:
    x = p.values(p.one(1, 2, 0), *p.pair(1, 15), p.one(1, 3, 0))
    return (x,), {"size": p.pair(1, 15), "method": p.one("nearest", "bilinear")}


def resize_grad(p: Pick) -> Inputs:
    (x,), attrs = resize(p)
    return (x,), {"input_size": attrs["size"], "method": attrs["method"]}


def convolution(p: Pick) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of image and weight, and attributes, as far as the variant takes them (its docstring, and the dispatch)."""
    plain, tiles, ours = p.variant == "pointwise", p.variant == "winograd", p.variant == "implicit_gemm"
    window = (1, 1) if plain else (3, 3) if tiles else p.pair(1, 4)
    stride = (1, 1) if plain or tiles else p.pair(1, 3)
    dilation = (1, 1) if tiles else p.pair(1, 2)
    padding = tuple((0, 0) if plain else p.pair(0, 2 if tiles else 3) for _ in range(2))
    groups = 1 if plain or tiles else p.one(1, 2, 3)
    cin = 1 if p.variant == "depthwise" else p.int(1, 5)  # of one group; 4 * 4 * 5 taps are below 126
    cout = p.int(1, 50) if ours or tiles else p.int(1, 4)  # whole and partial vectors
    places = (3, 5) if p.op == "conv2d_weight_grad" else (4, 30 if ours else 5)  # a weight's gradient sums over 2 * 3 * 5
    sizes = [extent(p, *geometry) for geometry in zip(window, stride, padding, dilation, places, strict=True)]
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (p.one(1, 2, 2, 0), *sizes, groups * cin), (*window, cin, groups * cout), attrs


def conv2d(p: Pick) -> Inputs:
    x, w, attrs = convolution(p)
    arrays = p.values(*x), p.values(*w), p.values(w[3]), p.values(*conv2d_output(x, w, attrs))
    return arrays[: p.one(2, 3, 4)], {**attrs, "activation": p.one(None, "relu", "relu6")}


def conv2d_output(x, w, attrs) -> tuple[int, ...]:
    return OPS["conv2d"].infer(np.empty(x), np.empty(w), **attrs)[0]


def conv2d_input_grad(p: Pick) -> Inputs:
    x, w, attrs = convolution(p)
    return (p.values(*conv2d_output(x, w, attrs)), p.values(*w)), {"input_shape": x, **attrs}


def conv2d_weight_grad(p: Pick) -> Inputs:
    x, w, attrs = convolution(p)
    return (p.values(*x), p.values(*conv2d_output(x, w, attrs))), {"kernel_shape": w[:2], **attrs}


def quantized(p: Pick, x: tuple[int, ...], w: tuple[int, ...], geometry: dict[str, Any]) -> Inputs:
    """8-bit arrays, scales and the rest of a quantized product; outputs spread over their range and some saturate."""
    limits, dtype = np.iinfo(p.dtype), p.one("int8", "uint8", "float32")
    whole = lambda shape, low, high, kind: p.rng.integers(low, high, shape, endpoint=True).astype(kind)  # noqa: E731
    scale = p.rng.uniform(0.5, 2.0, w[-1]).astype(np.float32)
    arrays = whole(x, limits.min, limits.max, p.dtype), whole(w, -127, 127, np.int8), scale, whole(w[-1], -9999, 9999, np.int32)
    low, high = p.one((None, None), (0.0, None), (0.0, 6.0))
    floating = dtype == "float32"
    attrs = {
        "x_scale": 0.01, "x_zero_point": p.int(limits.min, limits.max), "low": low, "high": high, "dtype": dtype,
        "out_scale": None if floating else p.one(0.01, 3.0), "out_zero_point": 0 if floating else p.int(0, 100),
    }  # fmt: skip
    return arrays[: p.one(3, 4)], {**geometry, **attrs}


def quantized_matmul(p: Pick) -> Inputs:
    k, n = (p.one(0, 1, 2, 5, 9, 40) for _ in range(2))
    return quantized(p, (*p.shape(), k), (k, n), {})


def quantized_conv2d(p: Pick) -> Inputs:
    return quantized(p, *convolution(p))


# -- the table --------------------------------------------------------------------------------------------------------

FLOATS = ("float32", "float64", "float16")
NUMBERS = (*FLOATS, "int32", "int64", "uint8")
ANY = (*NUMBERS, "bool")


def size_of_image(x: np.ndarray) -> Any:
    """An interpolation's weights are rounded at the size of 1, whatever they are."""
    return np.max(np.abs(x), initial=0)


ROWS: dict[str, Row] = {
    **{op: Row(unary(), None, NUMBERS, True) for op in ("negative", "abs")},
    **{op: Row(unary(), None, FLOATS, True) for op in ("sign", "floor", "ceil", "round", "relu", "relu6")},
    **{op: Row(unary(), value, FLOATS, True) for op in (
        "exp", "sin", "cos", "erf", "tanh", "sigmoid", "silu", "softplus", "expm1")},
    **{op: Row(positive_unary, value, FLOATS, True) for op in ("log", "sqrt", "rsqrt", "log1p", "reciprocal")},
    "square": Row(unary(), value, NUMBERS, True),
    "hard_sigmoid": Row(unary(), of_input(np.ones_like), FLOATS, True),
    "hard_swish": Row(unary(), of_input(np.abs), FLOATS, True),  # x + 3 cancels, then counts |x| / 6 times
    "gelu": Row(unary(approximate=lambda p: p.one(False, True)), of_input(np.abs), FLOATS, True),  # 1 + erf cancels
    "leaky_relu": Row(unary(alpha=lambda p: p.one(0.2, 1.0)), value, FLOATS, True),
    "elu": Row(unary(alpha=lambda p: p.one(0.7, 1.0)), value, FLOATS, True),
    "clip": Row(clip, None, NUMBERS, True),
    "cast": Row(cast, None, ANY, True),
    "logical_not": Row(unary(), None, ("bool",)),
    **{op: Row(binary, None, ("bool",)) for op in ("logical_and", "logical_or")},
    **{op: Row(binary, None, ANY, True) for op in (
        "maximum", "minimum", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal")},
    **{op: Row(binary, value, ANY, True) for op in ("add", "multiply")},
    "subtract": Row(binary, value, NUMBERS, True),
    "divide": Row(nonzero_second, value, FLOATS, True),
    "power": Row(power, value, NUMBERS, True),
    "where": Row(where, None, ANY, True),
    **{op: Row(rectifier_grad, None, FLOATS, True) for op in ("relu_grad", "relu6_grad")},
    "leaky_relu_grad": Row(leaky_grad, value, FLOATS, True),
    "sum": Row(reduction, terms, ANY, True),
    "mean": Row(reduction, terms, FLOATS, True),
    "prod": Row(product, lambda op, arrays, attrs, want: [np.abs(want[0])], ("float32", "float64", "int32", "bool"), True),
    **{op: Row(nonempty_reduction, None, ANY, True) for op in ("max", "min")},
    **{op: Row(arg_extreme, None, ANY, True) for op in ("argmax", "argmin")},
    "cumsum": Row(along_axis, terms, NUMBERS, True),
    **{op: Row(lambda p: along_axis(p, fewest=1), softmax_bound, special=True) for op in ("softmax", "log_softmax")},
    **{op: Row(lambda p: along_axis(p, 2), softmax_grad_bound) for op in ("softmax_grad", "log_softmax_grad")},
    "cross_entropy": Row(cross_entropy, cross_entropy_bound, special=True),
    "gather": Row(gather, None, ANY, True),
    "scatter_add": Row(scatter_add, terms, NUMBERS, True),
    "one_hot": Row(one_hot, None, ("int64",)),
    "concat": Row(concat, None, ANY, True),
    "pad": Row(pad, None, ANY, True),
    "slice_scatter": Row(slice_scatter, None, ANY, True),
    "batch_norm": Row(batch_norm, batch_norm_bound),
    "batch_norm_train": Row(norm_forward(1), batch_norm_train_bound),
    "batch_norm_grad": Row(batch_norm_grad, batch_norm_grad_bound),
    "layer_norm": Row(norm_forward(0), layer_norm_bound),
    "layer_norm_grad": Row(layer_norm_grad, layer_norm_grad_bound),
    "sgd_update": Row(sgd, sgd_bound),
    "adam_update": Row(adam, adam_bound),
    "moving_average": Row(moving_average, terms),
    "increment": Row(increment, value),
    "in_range": Row(in_range, None),
    "dropout": Row(dropout, value),
    "dropout_grad": Row(dropout_grad, value),
    "contiguous": Row(contiguous, None, ANY, True),
    "chain": Row(chain, chain_bound, ("float32", "float64")),
    "matmul": Row(matmul, terms, (*FLOATS, "int32", "int64")),
    "linear": Row(linear, terms, FLOATS),
    "conv2d": Row(conv2d, terms),
    "conv2d_input_grad": Row(conv2d_input_grad, terms),
    "conv2d_weight_grad": Row(conv2d_weight_grad, terms),
    "quantized_matmul": Row(quantized_matmul, None, ("int8", "uint8")),
    "quantized_conv2d": Row(quantized_conv2d, None, ("int8", "uint8")),
    "max_pool2d": Row(max_pool, None, special=True),
    "max_pool2d_grad": Row(max_pool_grad(True), lambda op, arrays, attrs, want: outputs(
        op, reference(op), [np.abs(arrays[0]), *arrays[1:]], attrs), special=True),
    "max_pool2d_take": Row(max_pool_grad(False), None, special=True),
    "avg_pool2d": Row(avg_pool, terms, special=True),
    "avg_pool2d_grad": Row(avg_pool_grad, terms),
    "resize": Row(resize, of_input(size_of_image)),
    "resize_grad": Row(resize_grad, of_input(lambda g: np.sum(np.abs(g), axis=(1, 2), keepdims=True))),
}  # fmt: skip


# -- the tests --------------------------------------------------------------------------------------------------------


def reference(op: str) -> Callable:
    return kernels.get(op, variant="reference")


def framed(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """An output full of NaN (or 77) inside a longer piece of memory."""
    size = math.prod(shape)
    memory = np.full(size + 2 * MARGIN, np.nan if np.dtype(dtype).kind == "f" else 77, dtype)
    return memory[MARGIN : MARGIN + size].reshape(shape), memory


def outputs(op: str, fn: Callable, arrays: list[np.ndarray], attrs: dict[str, Any]) -> list[np.ndarray]:
    """Run a kernel on arrays that it may keep -> its outputs, then the inputs that the op is declared to write."""
    declared = OPS[op]
    arrays = [a.copy() if i in declared.writes and fn is reference(op) else a for i, a in enumerate(arrays)]
    before = [None if i in declared.writes else a.copy() for i, a in enumerate(arrays)]
    specs = declared.infer(*arrays, **attrs)
    frames = [framed(*spec) for spec in ([] if specs is None else specs if declared.multi else [specs])]
    outs = tuple(out for out, _ in frames)
    with np.errstate(all="ignore"):
        fn(*arrays, out=outs if declared.multi else outs[0] if outs else None, **attrs)
    for out, memory in frames:
        edges = np.concatenate([memory[:MARGIN], memory[MARGIN + out.size :]])
        np.testing.assert_array_equal(edges, framed((0,), out.dtype)[1], "the kernel wrote beside its output")
    for a, b in zip(arrays, before, strict=True):
        if b is not None:
            np.testing.assert_array_equal(a, b, "the kernel changed an input")
    return [*outs, *(arrays[i] for i in declared.writes)]


def widened(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) if a.dtype.kind == "f" else a


def assert_close(got: np.ndarray, want: np.ndarray, bound: Any) -> None:
    """Equal where not finite (or not floating), within 64 eps of `bound` elsewhere."""
    assert got.shape == want.shape
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    with np.errstate(all="ignore"):
        rounded, kind = want.astype(got.dtype), np.finfo(got.dtype)
        tolerance = np.broadcast_to(64 * kind.eps * bound + kind.tiny, want.shape)
    measured = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~measured], rounded[~measured])
    off = np.abs(got[measured].astype(np.float64) - want[measured])
    worst = np.flatnonzero(~(off <= tolerance[measured]))[:5]
    assert not worst.size, (
        f"got {got[measured][worst]}, expected {want[measured][worst]}, allowed {tolerance[measured][worst]}"
    )


def check(entry: kernels.Entry, data: Any, special: bool) -> None:
    op, row = entry.op, ROWS[entry.op]
    dtypes = tuple(d for d in row.dtypes if not special or d.startswith("float"))
    p = Pick(data.draw, entry, dtypes, special)
    p.op = op
    values, attrs = row.make(p)
    layouts = [p.one(*LAYOUTS, *(() if i in OPS[op].writes else p.sharing)) for i in range(len(values))]
    given_arrays = [arrange(a, layout) for a, layout in zip(values, layouts, strict=True)]
    plain = [a.copy() for a in given_arrays]  # after the arrangement: a broadcast view repeats its first values
    with thresholds(p.lowered):
        got = outputs(op, entry.function(), given_arrays, attrs)
    want = outputs(op, reference(op), plain if row.bounds is None else [widened(a) for a in plain], attrs)
    with np.errstate(all="ignore"):
        bounds = itertools.repeat(0) if row.bounds is None else row.bounds(op, [widened(a) for a in plain], attrs, want)
        bounds = [*itertools.islice(bounds, len(want))] + [0] * len(want)  # a state that is written must be equal
    for g, w, bound in zip(got, want, bounds, strict=False):
        if row.bounds is None:
            assert g.dtype == w.dtype
            np.testing.assert_array_equal(g, w)
        else:
            assert_close(g, w, bound)


def name(entry: kernels.Entry) -> str:
    return f"{entry.op}-{entry.variant}"


SETTINGS = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def test_every_kernel_has_a_row():
    assert {entry.op for entry in ENTRIES} == set(ROWS)


@pytest.mark.parametrize("entry", ENTRIES, ids=name)
@settings(max_examples=40, **SETTINGS)
@given(data=st.data())
def test_kernels_equal_the_reference(entry, data):
    check(entry, data, special=False)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.op in ROWS and ROWS[e.op].special], ids=name)
@settings(max_examples=20, **SETTINGS)
@given(data=st.data())
def test_nan_and_infinity_follow_the_reference(entry, data):
    check(entry, data, special=True)
