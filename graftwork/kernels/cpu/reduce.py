"""Reductions. Sums and means of float32 accumulate in float64, in pieces whose number depends on the shape alone, so that
results depend neither on the number of threads nor on their timing. What has no plan is NumPy's."""

from __future__ import annotations

import builtins
import math

import numpy as np

from ..plan import Plan, Spec
from . import atomic, runtime
from .jit import njit
from .planning import FLOAT32, carry_out, parts_for
from .simd import LANES
from .vector import (
    double,
    fill,
    fill64,
    lanes_below,
    largest,
    load,
    load_some,
    maximum,
    product,
    single,
    store_some,
    total,
    where,
)  # fmt: skip

PARALLEL_FROM = 1 << 15  # elements from which kernels go through a plan
CHUNKS = 32  # most pieces that one reduced axis is cut into; fixed, so that results do not depend on the thread count
Axes = tuple[int, ...]
_CODES = {"sum": 0, "mean": 0, "max": 1, "min": 2, "prod": 3}
_START = {0: 0.0, 1: -np.inf, 2: np.inf, 3: 1.0}


# -- tasks -------------------------------------------------------------------------------------------------------------
# The input is seen as (outer, n, inner), reduced over n. Partial results are float64: (outer, chunks, inner).


@njit(nogil=True)
def _row_sum(x, at, n):
    a, b, c, d = fill64(0.0), fill64(0.0), fill64(0.0), fill64(0.0)
    i = 0
    while i + 4 * LANES <= n:
        a += double(load(x, at + i))
        b += double(load(x, at + i + LANES))
        c += double(load(x, at + i + 2 * LANES))
        d += double(load(x, at + i + 3 * LANES))
        i += 4 * LANES
    while i < n:
        a += double(load_some(x, at + i, n - i))
        i += LANES
    return total((a + b) + (c + d))


@njit(nogil=True)
def _row_product(x, at, n):
    a = fill64(1.0)
    i = 0
    while i < n:
        a *= double(where(lanes_below(n - i), load_some(x, at + i, n - i), fill(np.float32(1))))
        i += LANES
    return product(a)


@njit(nogil=True)
def _row_extreme(x, at, n, sign):
    """Largest of sign * x, or NaN if there is one."""
    low = fill(np.float32(-np.inf))
    a, b = low, low
    i = 0
    while i + 2 * LANES <= n:
        a = maximum(load(x, at + i) * sign, a)
        b = maximum(load(x, at + i + LANES) * sign, b)
        i += 2 * LANES
    while i < n:
        a = maximum(where(lanes_below(n - i), load_some(x, at + i, n - i) * sign, low), a)
        i += LANES
    a = maximum(a, b)
    odd = total(where(a != a, a, fill(np.float32(0))))
    return odd if odd != odd else largest(a)


@runtime.task
def reduce_rows(a, part):
    """inner == 1. Words: parts, code, outer, n, chunks, x, partial."""
    code, n, chunks = a[1], a[3], a[4]
    x, partial = atomic.f32(a, 5), atomic.f64(a, 6)
    for k in range(a[2] * chunks * part // a[0], a[2] * chunks * (part + 1) // a[0]):
        o, chunk = k // chunks, k % chunks
        first, last = n * chunk // chunks, n * (chunk + 1) // chunks
        if code == 0:
            partial[k] = _row_sum(x, o * n + first, last - first)
        elif code == 1:
            partial[k] = np.float64(_row_extreme(x, o * n + first, last - first, np.float32(1)))
        elif code == 2:
            partial[k] = -np.float64(_row_extreme(x, o * n + first, last - first, np.float32(-1)))
        else:
            partial[k] = _row_product(x, o * n + first, last - first)


@njit(nogil=True)
def _column_sums(x, at, rows, pitch, partial, target, count):
    """Add `rows` rows of one vector of columns to the sums in `partial`."""
    a, b = load_some(partial, target, count), fill64(0.0)
    r = 0
    while r + 2 <= rows:
        a += double(load_some(x, at, count))
        b += double(load_some(x, at + pitch, count))
        at += 2 * pitch
        r += 2
    if r < rows:
        a += double(load_some(x, at, count))
    store_some(partial, target, a + b, count)


@njit(nogil=True)
def _column_extremes(x, at, rows, pitch, partial, target, count, sign):
    a = single(load_some(partial, target, count)) * sign
    b = a
    r = 0
    while r + 2 <= rows:
        a = maximum(load_some(x, at, count) * sign, a)
        b = maximum(load_some(x, at + pitch, count) * sign, b)
        at += 2 * pitch
        r += 2
    if r < rows:
        a = maximum(load_some(x, at, count) * sign, a)
    store_some(partial, target, double(maximum(a, b) * sign), count)


@njit(nogil=True)
def _column_products(x, at, rows, pitch, partial, target, count):
    a = load_some(partial, target, count)
    for _ in range(rows):
        a *= double(load_some(x, at, count))
        at += pitch
    store_some(partial, target, a, count)


_TILE = 256  # columns that are reduced together
_BAND = 16  # rows that one vector of columns after the other goes through, so that whole pieces of rows are read


@runtime.task
def reduce_columns(a, part):
    """inner > 1. Words: parts, code, outer, n, chunks, x, partial, inner, start."""
    code, n, chunks, inner = a[1], a[3], a[4], a[7]
    x, partial, start = atomic.f32(a, 5), atomic.f64(a, 6), fill64(atomic.real(a, 8))
    tiles = (inner + _TILE - 1) // _TILE
    for k in range(a[2] * chunks * tiles * part // a[0], a[2] * chunks * tiles * (part + 1) // a[0]):
        piece, left = k // tiles, k % tiles * _TILE
        right = builtins.min(left + _TILE, inner)
        o, chunk = piece // chunks, piece % chunks
        first, last = n * chunk // chunks, n * (chunk + 1) // chunks
        band = builtins.max(_BAND, 4096 // (right - left))
        for c in range(left, right, LANES):
            store_some(partial, piece * inner + c, start, right - c)
        for r in range(first, last, band):
            rows = builtins.min(band, last - r)
            for c in range(left, right, LANES):
                at, target, count = (o * n + r) * inner + c, piece * inner + c, right - c
                if code == 0:
                    _column_sums(x, at, rows, inner, partial, target, count)
                elif code == 1:
                    _column_extremes(x, at, rows, inner, partial, target, count, np.float32(1))
                elif code == 2:
                    _column_extremes(x, at, rows, inner, partial, target, count, np.float32(-1))
                else:
                    _column_products(x, at, rows, inner, partial, target, count)


@runtime.task
def finish_reduction(a, part):
    """Partial results (outer, chunks, inner) to float32 (outer, inner). Words: parts, code, outer, chunks, inner, partial, out,
    and what a sum is multiplied by."""
    code, chunks, inner = a[1], a[3], a[4]
    partial, out, scale = atomic.f64(a, 5), atomic.f32(a, 6), atomic.real(a, 7)
    for k in range(a[2] * inner * part // a[0], a[2] * inner * (part + 1) // a[0]):
        o, c = k // inner, k % inner
        at = o * chunks * inner + c
        result = partial[at]
        for i in range(1, chunks):
            value = partial[at + i * inner]
            if code == 0:
                result += value
            elif code == 3:
                result *= value
            elif value != value or (result == result and ((code == 1) == (value > result))):
                result = value
        out[k] = np.float32(result * scale) if code == 0 else np.float32(result)


@runtime.task
def index_extreme(a, part):
    """Words: parts, outer, n, inner, x, out (int64), sign: the first largest sign * x, or the first NaN."""
    n, inner = a[2], a[3]
    x, out, sign = atomic.f32(a, 4), atomic.i64(a, 5), np.float32(atomic.real(a, 6))
    for k in range(a[1] * inner * part // a[0], a[1] * inner * (part + 1) // a[0]):
        o, c = k // inner, k % inner
        at = o * n * inner + c
        best, where_best = x[at] * sign, 0
        if inner == 1:
            wanted = _row_extreme(x, at, n, sign)
            for i in range(n):
                value = x[at + i] * sign
                if value == wanted or value != value:
                    where_best = i
                    break
        else:
            for i in range(1, n):
                value = x[at + i * inner] * sign
                if value > best or (value != value and best == best):
                    best, where_best = value, i
        out[k] = where_best


# -- plans -------------------------------------------------------------------------------------------------------------


def _split(shape: tuple[int, ...], axis: Axes) -> tuple[int, int, int] | None:
    """(outer, n, inner) where the axes with more than one entry are neighbours; else None."""
    real = [i for i in axis if shape[i] != 1]
    if not real:
        return math.prod(shape), 1, 1
    first, last = real[0], real[-1]
    if any(shape[i] != 1 and i not in real for i in range(first, last)):
        return None
    return math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :])


def _reduction(op: str):
    code = _CODES[op]

    def plan(x: Spec, *, out: Spec, axis: Axes, keepdims: bool) -> Plan | None:
        split = _split(x.shape, axis)
        if x.dtype != FLOAT32 or split is None or 0 in x.shape:
            return None
        outer, n, inner = split
        tiles = 1 if inner == 1 else -(-inner // _TILE)
        chunks = builtins.max(1, builtins.min(CHUNKS // (outer * tiles), n * inner // 2048, n // 16))
        parts, finish = parts_for(outer * chunks * tiles, x.size), parts_for(outer * inner, 4 * outer * chunks * inner)
        task = reduce_rows if inner == 1 else reduce_columns

        def bind(inputs, outputs, workspace):
            words = (parts, code, outer, n, chunks, inputs[0], workspace, inner, _START[code])
            scale = 1.0 / n if op == "mean" else 1.0
            return [
                runtime.row(task, parts, *words),
                runtime.row(finish_reduction, finish, finish, code, outer, chunks, inner, workspace, outputs[0], scale),
            ]

        return Plan(bind, workspace=8 * outer * chunks * inner, variant=op)

    return plan


plan_sum, plan_mean, plan_max, plan_min, plan_prod = map(_reduction, ("sum", "mean", "max", "min", "prod"))


def _index_plan(sign: float):
    def plan(x: Spec, *, out: Spec, axis: int | None, keepdims: bool) -> Plan | None:
        if x.dtype != FLOAT32 or x.size == 0:
            return None
        if axis is None:
            outer, n, inner = 1, x.size, 1
        else:
            outer, n, inner = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
        parts = parts_for(outer * inner, 2 * x.size)

        def bind(inputs, outputs, workspace):
            return [runtime.row(index_extreme, parts, parts, outer, n, inner, inputs[0], outputs[0], sign)]

        return Plan(bind)

    return plan


plan_argmax, plan_argmin = _index_plan(1.0), _index_plan(-1.0)


@runtime.task
def running_sum(a, part):
    """Words: parts, outer, n, inner, x, out."""
    n, inner = a[2], a[3]
    x, out = atomic.f32(a, 4), atomic.f32(a, 5)
    for k in range(a[1] * inner * part // a[0], a[1] * inner * (part + 1) // a[0]):
        at, value = k // inner * n * inner + k % inner, 0.0
        for i in range(n):
            value += x[at + i * inner]
            out[at + i * inner] = np.float32(value)


def plan_cumsum(x: Spec, *, out: Spec, axis: int) -> Plan | None:
    if x.dtype != FLOAT32:
        return None
    outer, n, inner = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    parts = parts_for(outer * inner, 4 * x.size)

    def bind(inputs, outputs, workspace):
        return [runtime.row(running_sum, parts, parts, outer, n, inner, inputs[0], outputs[0])] if out.size else []

    return Plan(bind)


# -- eager kernels -----------------------------------------------------------------------------------------------------


def _planned(planner, x: np.ndarray, out: np.ndarray, **attrs) -> bool:
    return x.size >= PARALLEL_FROM and carry_out(planner, (x,), (out,), **attrs)


def _wide(x: np.ndarray) -> bool:
    """Whether sums of x should leave float32 on the way: NumPy's pairwise sum runs along the last axis only."""
    return x.dtype == FLOAT32 and x.size >= PARALLEL_FROM


def sum(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Sum over the axes; zero where they are empty."""
    if not _planned(plan_sum, x, out, axis=axis, keepdims=keepdims):
        if _wide(x):
            np.copyto(out, np.add.reduce(x, axis, np.float64, keepdims=keepdims), casting="same_kind")
        else:
            np.add.reduce(x, axis, out.dtype, out, keepdims)


def mean(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Mean over the axes; NaN where they are empty."""
    count = math.prod([x.shape[a] for a in axis])
    if _planned(plan_mean, x, out, axis=axis, keepdims=keepdims):
        return
    if count == 0:
        out.fill(np.nan)
    else:
        sum(x, out=out, axis=axis, keepdims=keepdims)
        np.divide(out, out.dtype.type(count), out)


def prod(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Product over the axes; one where they are empty."""
    if not _planned(plan_prod, x, out, axis=axis, keepdims=keepdims):
        np.multiply.reduce(x, axis, out.dtype, out, keepdims)


def max(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Largest element over the axes; a NaN wins."""
    if not _planned(plan_max, x, out, axis=axis, keepdims=keepdims):
        np.maximum.reduce(x, axis, None, out, keepdims)


def min(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Smallest element over the axes; a NaN wins."""
    if not _planned(plan_min, x, out, axis=axis, keepdims=keepdims):
        np.minimum.reduce(x, axis, None, out, keepdims)


def argmax(x: np.ndarray, *, out: np.ndarray, axis: int | None, keepdims: bool) -> None:
    """int64 position of the first largest element (or the first NaN); axis None searches the flattened array."""
    if not _planned(plan_argmax, x, out, axis=axis, keepdims=keepdims):
        x.argmax(axis, out, keepdims=keepdims)


def argmin(x: np.ndarray, *, out: np.ndarray, axis: int | None, keepdims: bool) -> None:
    """int64 position of the first smallest element (or the first NaN); axis None searches the flattened array."""
    if not _planned(plan_argmin, x, out, axis=axis, keepdims=keepdims):
        x.argmin(axis, out, keepdims=keepdims)


def cumsum(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Running sum along one axis."""
    np.add.accumulate(x, axis, out.dtype, out)
