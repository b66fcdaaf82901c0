"""Pooling on the CPU: one output line a task, channels innermost so that they fill vectors."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import njit


def _prepare(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x)


def max_pool2d(x, *, out, window, stride, padding) -> None:
    """Largest value of each window; NaN wins, padding never does."""
    if out.size:
        _max(_prepare(x), out, *window, *stride, padding[0][0], padding[1][0])


def max_pool2d_grad(g, x, y, *, out, window, stride, padding) -> None:
    """The gradient goes to the first largest value in row-major order."""
    out[...] = 0
    if g.size:
        _max_grad(_prepare(g), _prepare(x), _prepare(y), out, *window, *stride, padding[0][0], padding[1][0])


def max_pool2d_take(gg, x, y, *, out, window, stride, padding) -> None:
    """Values of gg where each window's first largest value is."""
    if out.size:
        _max_take(_prepare(gg), _prepare(x), _prepare(y), out, *window, *stride, padding[0][0], padding[1][0])


def avg_pool2d(x, *, out, window, stride, padding, count_padding: bool) -> None:
    """Mean of each window, with padding counted as zeros or left out."""
    if out.size:
        _avg(_prepare(x), out, *window, *stride, padding[0][0], padding[1][0], count_padding)


def avg_pool2d_grad(g, *, out, input_shape, window, stride, padding, count_padding: bool) -> None:
    """The adjoint of `avg_pool2d`."""
    out[...] = 0
    if g.size:
        _avg_grad(_prepare(g), out, *window, *stride, padding[0][0], padding[1][0], count_padding)


@njit(inline="always")
def _span(position, step, before, size, limit):
    """First and last+1 index inside the image of a window along one dimension."""
    start = position * step - before
    return max(start, 0), min(start + size, limit)


@njit(parallel=True)
def _max(x, out, kh, kw, sh, sw, top, left):
    n, oh, ow, channels = out.shape
    for line in prange(n * oh):
        image, oy = line // oh, line % oh
        y0, y1 = _span(oy, sh, top, kh, x.shape[1])
        for ox in range(ow):
            x0, x1 = _span(ox, sw, left, kw, x.shape[2])
            target = out[image, oy, ox]
            for c in range(channels):
                target[c] = x[image, y0, x0, c]
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    source = x[image, iy, ix]
                    for c in range(channels):
                        value, best = source[c], target[c]
                        target[c] = value if (value > best) | (value != value) else best


@njit(parallel=True)
def _max_grad(g, x, y, out, kh, kw, sh, sw, top, left):
    n, oh, ow, channels = g.shape
    for image in prange(n):  # windows of one image may overlap, so an image is one task
        taken = np.empty(channels, np.bool_)
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, x.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, x.shape[2])
                taken[:] = False
                best, grad = y[image, oy, ox], g[image, oy, ox]
                for iy in range(y0, y1):
                    for ix in range(x0, x1):
                        source, target = x[image, iy, ix], out[image, iy, ix]
                        for c in range(channels):
                            here = ((source[c] == best[c]) | (source[c] != source[c])) & (not taken[c])
                            target[c] += grad[c] if here else 0
                            taken[c] = taken[c] | here


@njit(parallel=True)
def _max_take(gg, x, y, out, kh, kw, sh, sw, top, left):
    n, oh, ow, channels = out.shape
    for line in prange(n * oh):
        image, oy = line // oh, line % oh
        taken = np.empty(channels, np.bool_)
        y0, y1 = _span(oy, sh, top, kh, x.shape[1])
        for ox in range(ow):
            x0, x1 = _span(ox, sw, left, kw, x.shape[2])
            taken[:] = False
            best, target = y[image, oy, ox], out[image, oy, ox]
            for c in range(channels):
                target[c] = 0
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    source, grad = x[image, iy, ix], gg[image, iy, ix]
                    for c in range(channels):
                        here = ((source[c] == best[c]) | (source[c] != source[c])) & (not taken[c])
                        target[c] = grad[c] if here else target[c]
                        taken[c] = taken[c] | here


@njit(parallel=True)
def _avg(x, out, kh, kw, sh, sw, top, left, count_padding):
    n, oh, ow, channels = out.shape
    for line in prange(n * oh):
        image, oy = line // oh, line % oh
        y0, y1 = _span(oy, sh, top, kh, x.shape[1])
        for ox in range(ow):
            x0, x1 = _span(ox, sw, left, kw, x.shape[2])
            target = out[image, oy, ox]
            for c in range(channels):
                target[c] = 0
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    source = x[image, iy, ix]
                    for c in range(channels):
                        target[c] += source[c]
            count = kh * kw if count_padding else (y1 - y0) * (x1 - x0)
            for c in range(channels):
                target[c] /= count


@njit(parallel=True)
def _avg_grad(g, out, kh, kw, sh, sw, top, left, count_padding):
    n, oh, ow, channels = g.shape
    for image in prange(n):
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, out.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, out.shape[2])
                count = kh * kw if count_padding else (y1 - y0) * (x1 - x0)
                for iy in range(y0, y1):
                    for ix in range(x0, x1):
                        for c in range(channels):
                            out[image, iy, ix, c] += g[image, oy, ox, c] / count
