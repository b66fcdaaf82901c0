"""Gather, scatter, one-hot, concatenation and padding: memory moves, for which NumPy's own loops are already right."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .jit import njit

PARALLEL_FROM = 1 << 13  # elements of the gradient from which `scatter_add` runs compiled
COLUMNS = 64  # fewest columns worth a task of their own


def _check_range(idx: np.ndarray, low: int, high: int) -> None:
    if idx.size and (idx.min() < low or idx.max() >= high):
        value = idx[(idx < low) | (idx >= high)].flat[0]
        raise IndexError(f"index {value} is out of range for an axis of size {high}")


def gather(x: np.ndarray, idx: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """x taken at `idx` along the axis: shape x.shape[:axis] + idx.shape + x.shape[axis + 1:]. Negatives wrap.

    IndexError for an index outside [-size, size).
    """
    _check_range(idx, -x.shape[axis], x.shape[axis])
    if out.size:
        np.take(x, idx, axis, out, "wrap")  # "raise" would go through a second buffer


@njit(parallel=True, nogil=True)
def _scatter_rows(g, idx, out, tiles):
    """g (outer, k, inner) added to out (outer, size, inner) at idx (k,); tasks own disjoint columns, so none races."""
    outer, _, inner = g.shape
    size = out.shape[1]
    for task in prange(outer * tiles):
        o, t = task // tiles, task % tiles
        first, last = t * inner // tiles, (t + 1) * inner // tiles
        out[o, :, first:last] = 0
        for k in range(idx.size):
            at = idx[k] + size if idx[k] < 0 else idx[k]
            row, target = g[o, k, first:last], out[o, at, first:last]
            for j in range(row.size):
                target[j] += row[j]


def scatter_add(g: np.ndarray, idx: np.ndarray, *, out: np.ndarray, axis: int, size: int) -> None:
    """Adjoint of `gather`: zeros with `size` places along the axis, to which g is added at `idx`."""
    _check_range(idx, -size, size)
    if g.size < PARALLEL_FROM or g.dtype.char not in "fd":
        out.fill(0)
        np.add.at(out, (slice(None),) * axis + (idx,), g)
        return
    outer, inner = math.prod(out.shape[:axis]), math.prod(out.shape[axis + 1 :])
    tiles = 1 if outer > 1 else max(1, min(8, inner // COLUMNS))
    flat_idx = np.ascontiguousarray(idx, np.int64).reshape(-1)
    flat_g = np.ascontiguousarray(g).reshape(outer, flat_idx.size, inner)
    _scatter_rows(flat_g, flat_idx, out.reshape(outer, size, inner), tiles)


def one_hot(idx: np.ndarray, *, out: np.ndarray, depth: int, dtype: str) -> None:
    """Ones at `idx` along a new last axis of `depth` places. IndexError for an index outside [0, depth)."""
    _check_range(idx, 0, depth)
    out.fill(0)
    out.reshape(idx.size, depth)[np.arange(idx.size), idx.reshape(-1)] = 1


def concat(*xs: np.ndarray, out: np.ndarray, axis: int) -> None:
    """The arrays one after another along the axis."""
    np.concatenate(xs, axis, out)


def pad(x: np.ndarray, *, out: np.ndarray, widths: tuple, value: float, mode: str) -> None:
    """x with `value` added around it: (before, after) places for every axis. Only mode "constant" exists."""
    inside = out
    for axis, (before, after) in enumerate(widths):
        lead = (slice(None),) * axis
        end = inside.shape[axis] - after
        if before:
            inside[*lead, slice(0, before)] = value
        if after:
            inside[*lead, slice(end, None)] = value
        inside = inside[(*lead, slice(before, end))]
    inside[...] = x


def slice_scatter(g: np.ndarray, *, out: np.ndarray, shape: tuple, index: tuple) -> None:
    """Adjoint of basic indexing: zeros of `shape` that hold g at `index`."""
    out.fill(0)
    out[index] = g
