"""Reductions. Large floating-point sums and means run in parallel and accumulate in float64 (along
rows after short vectorised pieces); the rest is NumPy's."""

from __future__ import annotations

import builtins
import math

import numpy as np
from numba import prange

from .jit import njit
from .scalars import row_sum

PARALLEL_FROM = 1 << 15  # elements
TILE = 2048  # columns whose float64 accumulators stay in the first-level cache
CHUNKS = 32  # most pieces that one reduced axis is cut into; fixed, so that results do not depend on the thread count
Axes = tuple[int, ...]


@njit(parallel=True, nogil=True)
def _partial_sums(x, chunks):
    """Sums of (outer, n, inner) over n, in `chunks` pieces -> float64 (outer, chunks, inner)."""
    outer, n, inner = x.shape
    tiles = (inner + TILE - 1) // TILE
    partial = np.zeros((outer, chunks, inner))
    for task in prange(outer * chunks * tiles):
        o, rest = task // (chunks * tiles), task % (chunks * tiles)
        c, first = rest // tiles, rest % tiles * TILE
        last = builtins.min(inner, first + TILE)
        total = partial[o, c, first:last]
        for r in range(c * n // chunks, (c + 1) * n // chunks):
            row = x[o, r, first:last]
            for j in range(row.size):
                total[j] += row[j]
    return partial


@njit(parallel=True, nogil=True)
def _partial_row_sums(x, chunks):
    """Sums of (outer, n) over n, in `chunks` pieces -> float64 (outer, chunks)."""
    outer, n = x.shape
    partial = np.empty((outer, chunks))
    for task in prange(outer * chunks):
        o, c = task // chunks, task % chunks
        partial[o, c] = row_sum(x[o, c * n // chunks : (c + 1) * n // chunks])
    return partial


def _large_sum(x: np.ndarray, axis: Axes, divisor: float, out: np.ndarray) -> None:
    """Sum of a contiguous x over consecutive axes, over a divisor."""
    outer = math.prod(x.shape[: axis[0]])
    n = math.prod(x.shape[axis[0] : axis[-1] + 1])
    inner = x.size // (outer * n)
    chunks = builtins.max(1, builtins.min(CHUNKS // outer, n // 16))
    if inner == 1:
        partial = _partial_row_sums(x.reshape(outer, n), chunks)
    else:
        partial = _partial_sums(x.reshape(outer, n, inner), chunks)
    total = partial.sum(axis=1)
    np.divide(total, divisor, out=out.reshape(total.shape), casting="same_kind")


def _parallel(x: np.ndarray, axis: Axes) -> bool:
    return (
        x.size >= PARALLEL_FROM
        and x.dtype.char in "fd"
        and x.flags.c_contiguous
        and len(axis) > 0
        and axis[-1] - axis[0] == len(axis) - 1
    )


def sum(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Sum over the axes; zero where they are empty."""
    if _parallel(x, axis):
        _large_sum(x, axis, 1.0, out)
    else:
        np.add.reduce(x, axis, out.dtype, out, keepdims)


def mean(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Mean over the axes; NaN where they are empty."""
    count = math.prod([x.shape[a] for a in axis])
    if _parallel(x, axis):
        _large_sum(x, axis, count, out)
    elif count == 0:
        out.fill(np.nan)
    else:
        np.add.reduce(x, axis, out.dtype, out, keepdims)
        np.divide(out, out.dtype.type(count), out)


def prod(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Product over the axes; one where they are empty."""
    np.multiply.reduce(x, axis, out.dtype, out, keepdims)


def max(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Largest element over the axes; a NaN wins."""
    np.maximum.reduce(x, axis, None, out, keepdims)


def min(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Smallest element over the axes; a NaN wins."""
    np.minimum.reduce(x, axis, None, out, keepdims)


def argmax(x: np.ndarray, *, out: np.ndarray, axis: int | None, keepdims: bool) -> None:
    """int64 position of the first largest element (or the first NaN); axis None searches the flattened array."""
    x.argmax(axis, out, keepdims=keepdims)


def argmin(x: np.ndarray, *, out: np.ndarray, axis: int | None, keepdims: bool) -> None:
    """int64 position of the first smallest element (or the first NaN); axis None searches the flattened array."""
    x.argmin(axis, out, keepdims=keepdims)


def cumsum(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Running sum along one axis."""
    np.add.accumulate(x, axis, out.dtype, out)
