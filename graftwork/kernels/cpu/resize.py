"""Resizing on the CPU, with half-pixel centres: rows and columns to read, and weights, come from two small tables."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import njit


def resize(x, *, out, size, method: str) -> None:
    """Nearest or bilinear; see the op."""
    if out.size:
        _resize(np.ascontiguousarray(x), out, *_taps(x.shape[1], size[0], method), *_taps(x.shape[2], size[1], method))


def resize_grad(g, *, out, input_size, method: str) -> None:
    """The adjoint of `resize`."""
    out[...] = 0
    if g.size:
        rows, columns = _taps(input_size[0], g.shape[1], method), _taps(input_size[1], g.shape[2], method)
        _resize_grad(np.ascontiguousarray(g), out, *rows, *columns)


def _taps(source: int, target: int, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target position: the two source positions, and the weight of the second."""
    centres = (np.arange(target) + 0.5) * (source / target)
    if method == "nearest":
        index = np.minimum(np.floor(centres).astype(np.int64), source - 1)
        return index, index, np.zeros(target)
    position = np.maximum(centres - 0.5, 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), position - low


@njit(parallel=True)
def _resize(x, out, y0, y1, wy, x0, x1, wx):
    n, oh, ow, channels = out.shape
    for line in prange(n * oh):
        image, oy = line // oh, line % oh
        upper, lower, b = x[image, y0[oy]], x[image, y1[oy]], x.dtype.type(wy[oy])
        for ox in range(ow):
            i, j, a = x0[ox], x1[ox], x.dtype.type(wx[ox])
            for c in range(channels):
                first = upper[i, c] + (upper[j, c] - upper[i, c]) * a
                second = lower[i, c] + (lower[j, c] - lower[i, c]) * a
                out[image, oy, ox, c] = first + (second - first) * b


@njit(parallel=True)
def _resize_grad(g, out, y0, y1, wy, x0, x1, wx):
    n, oh, ow, channels = g.shape
    for image in prange(n):
        for oy in range(oh):
            b = wy[oy]
            for ox in range(ow):
                a = wx[ox]
                for c in range(channels):
                    value = g[image, oy, ox, c]
                    out[image, y0[oy], x0[ox], c] += value * (1 - b) * (1 - a)
                    out[image, y0[oy], x1[ox], c] += value * (1 - b) * a
                    out[image, y1[oy], x0[ox], c] += value * b * (1 - a)
                    out[image, y1[oy], x1[ox], c] += value * b * a
