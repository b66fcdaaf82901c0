"""Reductions in plain NumPy. Floating-point sums accumulate in float64."""

from __future__ import annotations

import numpy as np

Axes = tuple[int, ...]


def _accumulator(x: np.ndarray, out: np.ndarray) -> np.dtype:
    return np.dtype(np.float64) if out.dtype.kind == "f" else out.dtype


def sum(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Sum over the axes; zero where they are empty."""
    out[...] = np.sum(x, axis=axis, keepdims=keepdims, dtype=_accumulator(x, out))


def mean(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Mean over the axes; NaN where they are empty."""
    count = int(np.prod([x.shape[a] for a in axis], dtype=np.int64))
    with np.errstate(all="ignore"):
        out[...] = np.sum(x, axis=axis, keepdims=keepdims, dtype=np.float64) / np.float64(count)


def prod(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Product over the axes; one where they are empty."""
    out[...] = np.prod(x, axis=axis, keepdims=keepdims, dtype=_accumulator(x, out))


def max(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Largest element over the axes; a NaN wins."""
    out[...] = np.max(x, axis=axis, keepdims=keepdims)


def min(x: np.ndarray, *, out: np.ndarray, axis: Axes, keepdims: bool) -> None:
    """Smallest element over the axes; a NaN wins."""
    out[...] = np.min(x, axis=axis, keepdims=keepdims)


def argmax(x: np.ndarray, *, out: np.ndarray, axis: int | None, keepdims: bool) -> None:
    """int64 position of the first largest element (or the first NaN); axis None searches the flattened array."""
    out[...] = np.argmax(x, axis=axis, keepdims=keepdims)


def argmin(x: np.ndarray, *, out: np.ndarray, axis: int | None, keepdims: bool) -> None:
    """int64 position of the first smallest element (or the first NaN); axis None searches the flattened array."""
    out[...] = np.argmin(x, axis=axis, keepdims=keepdims)


def cumsum(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Running sum along one axis."""
    out[...] = np.cumsum(x, axis=axis, dtype=_accumulator(x, out))
