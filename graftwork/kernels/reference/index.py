"""Gather, scatter, one-hot, concatenation and padding in plain NumPy."""

from __future__ import annotations

import numpy as np

from ...errors import RangeError


def _check_range(idx: np.ndarray, low: int, high: int) -> None:
    for value in idx.reshape(-1):
        if not low <= value < high:
            raise IndexError(f"index {value} is out of range for an axis of size {high}")


def gather(x: np.ndarray, idx: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """x taken at `idx` along the axis: shape x.shape[:axis] + idx.shape + x.shape[axis + 1:]. Negatives wrap.

    IndexError for an index outside [-size, size).
    """
    _check_range(idx, -x.shape[axis], x.shape[axis])
    out[...] = np.take(x, idx, axis=axis)


def scatter_add(g: np.ndarray, idx: np.ndarray, *, out: np.ndarray, axis: int, size: int) -> None:
    """Adjoint of `gather`: zeros with `size` places along the axis, to which g is added at `idx`."""
    _check_range(idx, -size, size)
    out[...] = 0
    np.add.at(out, (slice(None),) * axis + (idx,), g)


def one_hot(idx: np.ndarray, *, out: np.ndarray, depth: int, dtype: str) -> None:
    """Ones at `idx` along a new last axis of `depth` places; an index outside [0, depth) gives zeros."""
    out[...] = idx[..., None] == np.arange(depth)


def concat(*xs: np.ndarray, out: np.ndarray, axis: int) -> None:
    """The arrays one after another along the axis."""
    out[...] = np.concatenate(xs, axis=axis)


def pad(x: np.ndarray, *, out: np.ndarray, widths: tuple, value: float, mode: str) -> None:
    """x with `value` added around it: (before, after) places for every axis."""
    out[...] = np.pad(x, widths, mode=mode, constant_values=value) if widths else x


def slice_scatter(g: np.ndarray, *, out: np.ndarray, shape: tuple, index: tuple) -> None:
    """Adjoint of basic indexing: zeros of `shape` that hold g at `index`."""
    out[...] = 0
    out[index] = g


def contiguous(x: np.ndarray, *, out: np.ndarray) -> None:
    """x in row-major order, whatever its layout."""
    out[...] = x


def check_range(values: np.ndarray, low: int, high: int, what: str, limit: str) -> None:
    """RangeError unless all are at least `low` and below `high`: "{what} run from ... to ..., but {limit}"."""
    if values.size and (values.min() < low or values.max() >= high):
        raise RangeError(f"{what} run from {values.min()} to {values.max()}, but {limit} ({low} to {high - 1})")


def in_range(idx: np.ndarray, *, out: np.ndarray, low: int, high: int, what: str, limit: str) -> None:
    """A copy of `idx`, which is what `check_range` asks for."""
    check_range(idx, low, high, what, limit)
    out[...] = idx
