"""Resizing on the CPU, with half-pixel centres: rows and columns to read, and weights, come from small tables."""

from __future__ import annotations

import numpy as np

from ..plan import Plan, Spec
from . import atomic, runtime
from .copies import fill_row
from .jit import njit
from .planning import all_float32, carry_out, parts_for
from .simd import LANES
from .vector import fill, load_some, store_some


def _taps(source: int, target: int, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target position: the two source positions, and the weight of the second."""
    centres = (np.arange(target) + 0.5) * (source / target)
    if method == "nearest":
        index = np.minimum(np.floor(centres).astype(np.int64), source - 1)
        return index, index, np.zeros(target)
    position = np.maximum(centres - 0.5, 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), position - low


def _readers(source: int, target: int, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The other way round: for each source position the first and last+1 target positions that read it, and all weights as
    (source, target)."""
    low, high, second = _taps(source, target, method)
    weights = np.zeros((source, target), np.float32)
    np.add.at(weights, (low, np.arange(target)), 1 - second)
    np.add.at(weights, (high, np.arange(target)), second)
    used = weights != 0
    first = np.where(used.any(1), used.argmax(1), 0)
    last = np.where(used.any(1), target - used[:, ::-1].argmax(1), 0)
    return first.astype(np.int64), last.astype(np.int64), weights


@runtime.task
def interpolate(a, part):
    """Words: parts, images, height, width, channels, output height, output width, x, out, then for rows and columns the two
    positions (int64) and the second's weight (float64)."""
    height, width, channels, oh, ow = a[2], a[3], a[4], a[5], a[6]
    x, out = atomic.f32(a, 7), atomic.f32(a, 8)
    y0, y1, wy = atomic.i64(a, 9), atomic.i64(a, 10), atomic.f64(a, 11)
    x0, x1, wx = atomic.i64(a, 12), atomic.i64(a, 13), atomic.f64(a, 14)
    for line in range(a[1] * oh * part // a[0], a[1] * oh * (part + 1) // a[0]):
        image, oy = line // oh, line % oh
        upper, lower = (image * height + y0[oy]) * width, (image * height + y1[oy]) * width
        b = np.float32(wy[oy])
        for ox in range(ow):
            left, right, w = x0[ox], x1[ox], np.float32(wx[ox])
            for c in range(0, channels, LANES):
                n = channels - c
                p, q = load_some(x, (upper + left) * channels + c, n), load_some(x, (lower + left) * channels + c, n)
                first = p + (load_some(x, (upper + right) * channels + c, n) - p) * w
                second = q + (load_some(x, (lower + right) * channels + c, n) - q) * w
                store_some(out, (line * ow + ox) * channels + c, first + (second - first) * b, n)


@runtime.task
def spread_back(a, part):
    """The adjoint. Words: parts, images, height, width, channels, gradient's height, its width, g, out, then for rows and
    columns the first and last+1 reader (int64) and the weights (float32, by source and target). A part owns lines of `out`."""
    height, width, channels, oh, ow = a[2], a[3], a[4], a[5], a[6]
    g, out = atomic.f32(a, 7), atomic.f32(a, 8)
    y0, y1, wy = atomic.i64(a, 9), atomic.i64(a, 10), atomic.f32(a, 11)
    x0, x1, wx = atomic.i64(a, 12), atomic.i64(a, 13), atomic.f32(a, 14)
    for line in range(a[1] * height * part // a[0], a[1] * height * (part + 1) // a[0]):
        image, iy = line // height, line % height
        for ix in range(width):
            for c in range(0, channels, LANES):
                n = channels - c
                value = fill(np.float32(0))
                for oy in range(y0[iy], y1[iy]):
                    row = fill(np.float32(0))
                    for ox in range(x0[ix], x1[ix]):
                        row += load_some(g, ((image * oh + oy) * ow + ox) * channels + c, n) * wx[ix * ow + ox]
                    value += row * wy[iy * oh + oy]
                store_some(out, (line * width + ix) * channels + c, value, n)


def plan_resize(x: Spec, *, out: Spec, size, method: str) -> Plan | None:
    if not all_float32(x, out):
        return None
    parts = parts_for(out.shape[0] * out.shape[1], 4 * out.size)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        tables = (*_taps(x.shape[1], size[0], method), *_taps(x.shape[2], size[1], method))
        words = (parts, *x.shape, *out.shape[1:3], inputs[0], outputs[0], *tables)
        return [runtime.row(interpolate, parts, *words)]

    return Plan(bind)


def plan_resize_grad(g: Spec, *, out: Spec, input_size, method: str) -> Plan | None:
    if not all_float32(g, out):
        return None
    parts = parts_for(out.shape[0] * out.shape[1], 4 * (out.size + g.size))

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        if g.size == 0:
            return [fill_row(outputs[0])]
        tables = (*_readers(input_size[0], g.shape[1], method), *_readers(input_size[1], g.shape[2], method))
        words = (parts, *out.shape, *g.shape[1:3], inputs[0], outputs[0], *tables)
        return [runtime.row(spread_back, parts, *words)]

    return Plan(bind)


def resize(x, *, out, size, method: str) -> None:
    """Nearest or bilinear; see the op."""
    if out.size and not carry_out(plan_resize, (x,), (out,), size=size, method=method):
        _resize(np.ascontiguousarray(x), out, *_taps(x.shape[1], size[0], method), *_taps(x.shape[2], size[1], method))


def resize_grad(g, *, out, input_size, method: str) -> None:
    """The adjoint of `resize`."""
    if carry_out(plan_resize_grad, (g,), (out,), input_size=input_size, method=method):
        return
    out[...] = 0
    if g.size:
        rows, columns = _taps(input_size[0], g.shape[1], method), _taps(input_size[1], g.shape[2], method)
        _resize_grad(np.ascontiguousarray(g), out, *rows, *columns)


# -- plain loops for float64 -------------------------------------------------------------------------------------------


@njit(nogil=True)
def _resize(x, out, y0, y1, wy, x0, x1, wx):
    n, oh, ow, channels = out.shape
    for image in range(n):
        for oy in range(oh):
            upper, lower, b = x[image, y0[oy]], x[image, y1[oy]], x.dtype.type(wy[oy])
            for ox in range(ow):
                i, j, a = x0[ox], x1[ox], x.dtype.type(wx[ox])
                for c in range(channels):
                    first = upper[i, c] + (upper[j, c] - upper[i, c]) * a
                    second = lower[i, c] + (lower[j, c] - lower[i, c]) * a
                    out[image, oy, ox, c] = first + (second - first) * b


@njit(nogil=True)
def _resize_grad(g, out, y0, y1, wy, x0, x1, wx):
    n, oh, ow, channels = g.shape
    for image in range(n):
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
