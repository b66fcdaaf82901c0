"""Pooling in plain NumPy: one shifted, strided copy of the image per position in the window. Images are (N, H, W, C)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Pair = tuple[int, int]


def max_pool2d(x, *, out, window: Pair, stride: Pair, padding) -> None:
    """out = the largest pixel of each window; padding never wins; NaN does."""
    padded = _pad(x, padding, _lowest(x.dtype))
    out[...] = _lowest(x.dtype)
    for rows, columns in _taps(window, out.shape, stride):
        np.maximum(out, padded[:, rows, columns], out=out)


def max_pool2d_grad(g, x, y, *, out, window: Pair, stride: Pair, padding) -> None:
    """The adjoint of `max_pool2d`: g goes to the first maximum of each window, in row-major order. out is like x."""
    (top, _), (left, _) = padding
    padded = _pad(np.zeros_like(x), padding, 0)
    for (rows, columns), first in _first_maxima(x, y, window, stride, padding):
        padded[:, rows, columns] += np.where(first, g, 0)
    out[...] = padded[:, top : top + x.shape[1], left : left + x.shape[2]]


def max_pool2d_take(gg, x, y, *, out, window: Pair, stride: Pair, padding) -> None:
    """out[window] = gg (shaped like x) at the window's first maximum: the adjoint of `max_pool2d_grad` in g."""
    padded = _pad(gg, padding, 0)
    out[...] = 0
    for (rows, columns), first in _first_maxima(x, y, window, stride, padding):
        np.copyto(out, padded[:, rows, columns], where=first)


def avg_pool2d(x, *, out, window: Pair, stride: Pair, padding, count_padding: bool) -> None:
    """out = the mean of each window; without `count_padding` only over the pixels inside the image."""
    padded = _pad(x, padding, 0)
    out[...] = 0
    for rows, columns in _taps(window, out.shape, stride):
        out += padded[:, rows, columns]
    out /= _counts(x.shape, out.shape, window, stride, padding, count_padding).astype(out.dtype)


def avg_pool2d_grad(g, *, out, input_shape, window: Pair, stride: Pair, padding, count_padding: bool) -> None:
    """The adjoint of `avg_pool2d`: g over the window's size, to each of its pixels. out has `input_shape`."""
    (top, _), (left, _) = padding
    share = g / _counts(input_shape, g.shape, window, stride, padding, count_padding).astype(g.dtype)
    padded = _pad(np.zeros(input_shape, out.dtype), padding, 0)
    for rows, columns in _taps(window, g.shape, stride):
        padded[:, rows, columns] += share
    out[...] = padded[:, top : top + input_shape[1], left : left + input_shape[2]]


def _pad(x, padding, value):
    return np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def _lowest(dtype):
    return -np.inf if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min


def _taps(window: Pair, out_shape, stride: Pair) -> Iterator[tuple[slice, slice]]:
    """The (rows, columns) of the padded image that each position in the window meets."""
    (sh, sw), (oh, ow) = stride, out_shape[1:3]
    for ky in range(window[0]):
        for kx in range(window[1]):
            yield slice(ky, ky + oh * sh, sh), slice(kx, kx + ow * sw, sw)


def _first_maxima(x, y, window: Pair, stride: Pair, padding) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Each tap with a mask (y's shape) that is true where the tap holds the window's first maximum."""
    padded = _pad(x, padding, _lowest(x.dtype))
    inside = _pad(np.ones((1, *x.shape[1:3], 1), bool), padding, False)
    open_windows = np.ones(y.shape, bool)
    for taps in _taps(window, y.shape, stride):
        rows, columns = taps
        pixels = padded[:, rows, columns]
        equal = (pixels == y) | ((pixels != pixels) & (y != y))
        first = equal & open_windows & inside[:, rows, columns]
        open_windows &= ~first
        yield taps, first


def _counts(input_shape, out_shape, window: Pair, stride: Pair, padding, count_padding: bool) -> np.ndarray:
    """How many pixels the mean of each window divides by: (1, oh, ow, 1)."""
    inside = _pad(np.ones((1, *input_shape[1:3], 1), np.int64), padding, int(count_padding))
    counts = np.zeros((1, *out_shape[1:3], 1), np.int64)
    for rows, columns in _taps(window, out_shape, stride):
        counts += inside[:, rows, columns]
    return counts
