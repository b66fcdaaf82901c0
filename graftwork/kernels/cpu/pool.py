"""Pooling on the CPU: vectors over the channels, results in registers until their window is done."""

from __future__ import annotations

import numpy as np

from ..plan import Plan, Spec, pitch
from . import atomic, runtime
from .jit import njit
from .planning import all_float32, carry_out, parts_for
from .simd import LANES
from .vector import fill, lanes_below, load, load_some, maximum, store, store_some, where

_LOWEST = np.float32(-np.inf)
_ZERO = np.float32(0)


# -- tasks -------------------------------------------------------------------------------------------------------------
# Words of all: parts, images, height, width, channels, output height, output width, window (2), stride (2), padding (2), then
# what each says. Positions are those of NHWC images; the two pitches are elements from pixel to pixel.


@njit(nogil=True)
def _span(position, step, before, size, limit):
    """First and last+1 index inside the image of a window along one dimension."""
    start = position * step - before
    return max(start, 0), min(start + size, limit)


@njit(nogil=True)
def _windows_over(position, step, before, size, count):
    """First and last+1 window along one dimension that holds a position."""
    reach = position + before
    return max((reach - size + step) // step, 0), min(reach // step + 1, count)


@njit(nogil=True)
def _max_window4(x, corner, rows, columns, line, step, out, at):
    """Four vectors of channels of one window, `rows` by `columns` pixels from element `corner` on."""
    a = b = c = d = fill(_LOWEST)
    for iy in range(rows):
        p = corner + iy * line
        for _ in range(columns):
            a = maximum(load(x, p), a)
            b = maximum(load(x, p + LANES), b)
            c = maximum(load(x, p + 2 * LANES), c)
            d = maximum(load(x, p + 3 * LANES), d)
            p += step
    store(out, at, a)
    store(out, at + LANES, b)
    store(out, at + 2 * LANES, c)
    store(out, at + 3 * LANES, d)


@njit(nogil=True)
def _max_window1(x, corner, rows, columns, line, step, out, at, count):
    """Up to one vector of channels of one window."""
    a = fill(_LOWEST)
    for iy in range(rows):
        p = corner + iy * line
        for _ in range(columns):
            a = maximum(load_some(x, p, count), a)
            p += step
    store_some(out, at, a, count)


@runtime.task
def max_pool(a, part):
    """Further words: x, its pitch, out, its pitch."""
    height, width, channels, oh, ow = a[2], a[3], a[4], a[5], a[6]
    x, step, out, out_step = atomic.f32(a, 13), a[14], atomic.f32(a, 15), a[16]
    lines = a[1] * oh
    for number in range(lines * part // a[0], lines * (part + 1) // a[0]):
        image, oy = number // oh, number % oh
        y0, y1 = _span(oy, a[9], a[11], a[7], height)
        for ox in range(ow):
            x0, x1 = _span(ox, a[10], a[12], a[8], width)
            corner, at = ((image * height + y0) * width + x0) * step, (number * ow + ox) * out_step
            c = 0
            while c + 4 * LANES <= channels:
                _max_window4(x, corner + c, y1 - y0, x1 - x0, width * step, step, out, at + c)
                c += 4 * LANES
            while c < channels:
                _max_window1(x, corner + c, y1 - y0, x1 - x0, width * step, step, out, at + c, channels - c)
                c += LANES


@njit(nogil=True)
def _sum_window4(x, corner, rows, columns, line, step, scale, out, at):
    a = b = c = d = fill(_ZERO)
    for iy in range(rows):
        p = corner + iy * line
        for _ in range(columns):
            a += load(x, p)
            b += load(x, p + LANES)
            c += load(x, p + 2 * LANES)
            d += load(x, p + 3 * LANES)
            p += step
    store(out, at, a * scale)
    store(out, at + LANES, b * scale)
    store(out, at + 2 * LANES, c * scale)
    store(out, at + 3 * LANES, d * scale)


@njit(nogil=True)
def _sum_window1(x, corner, rows, columns, line, step, scale, out, at, count):
    a = fill(_ZERO)
    for iy in range(rows):
        p = corner + iy * line
        for _ in range(columns):
            a += load_some(x, p, count)
            p += step
    store_some(out, at, a * scale, count)


@runtime.task
def average_pool(a, part):
    """Further words: x, its pitch, out, its pitch, whether padding counts."""
    height, width, channels, oh, ow = a[2], a[3], a[4], a[5], a[6]
    x, step, out, out_step = atomic.f32(a, 13), a[14], atomic.f32(a, 15), a[16]
    lines = a[1] * oh
    for number in range(lines * part // a[0], lines * (part + 1) // a[0]):
        image, oy = number // oh, number % oh
        y0, y1 = _span(oy, a[9], a[11], a[7], height)
        for ox in range(ow):
            x0, x1 = _span(ox, a[10], a[12], a[8], width)
            corner, at = ((image * height + y0) * width + x0) * step, (number * ow + ox) * out_step
            scale = np.float32(1.0 / (a[7] * a[8] if a[17] else (y1 - y0) * (x1 - x0)))
            c = 0
            while c + 4 * LANES <= channels:
                _sum_window4(x, corner + c, y1 - y0, x1 - x0, width * step, step, scale, out, at + c)
                c += 4 * LANES
            while c < channels:
                _sum_window1(x, corner + c, y1 - y0, x1 - x0, width * step, step, scale, out, at + c, channels - c)
                c += LANES


@runtime.task
def average_pool_grad(a, part):
    """Further words: gradient, out (both contiguous), whether padding counts. A part owns lines of the input's gradient."""
    height, width, channels, oh, ow = a[2], a[3], a[4], a[5], a[6]
    g, out = atomic.f32(a, 13), atomic.f32(a, 14)
    lines = a[1] * height
    for number in range(lines * part // a[0], lines * (part + 1) // a[0]):
        image, iy = number // height, number % height
        oy0, oy1 = _windows_over(iy, a[9], a[11], a[7], oh)
        for ix in range(width):
            ox0, ox1 = _windows_over(ix, a[10], a[12], a[8], ow)
            at = (number * width + ix) * channels
            for c in range(0, channels, LANES):
                count = channels - c
                total = fill(_ZERO)
                for oy in range(oy0, oy1):
                    y0, y1 = _span(oy, a[9], a[11], a[7], height)
                    for ox in range(ox0, ox1):
                        x0, x1 = _span(ox, a[10], a[12], a[8], width)
                        scale = np.float32(1.0 / (a[7] * a[8] if a[15] else (y1 - y0) * (x1 - x0)))
                        total += load_some(g, ((image * oh + oy) * ow + ox) * channels + c, count) * scale
                store_some(out, at + c, total, count)


@runtime.task
def max_pool_grad(a, part):
    """Further words: gradient, x, y, out, bands of an image. A part owns whole bands of lines of the input's gradient, and goes
    through every window that reaches into them; each window's gradient goes to its first maximum in row-major order."""
    height, width, channels, oh, ow, bands = a[2], a[3], a[4], a[5], a[6], a[17]
    g, x, y, out = atomic.f32(a, 13), atomic.f32(a, 14), atomic.f32(a, 15), atomic.f32(a, 16)
    for number in range(a[1] * bands * part // a[0], a[1] * bands * (part + 1) // a[0]):
        image, band = number // bands, number % bands
        low, high = height * band // bands, height * (band + 1) // bands
        if high == low:
            continue
        first, last = (image * height + low) * width * channels, (image * height + high) * width * channels
        for i in range(first, last, LANES):
            store_some(out, i, fill(_ZERO), last - i)
        oy0, _ = _windows_over(low, a[9], a[11], a[7], oh)
        _, oy1 = _windows_over(high - 1, a[9], a[11], a[7], oh)
        for oy in range(oy0, oy1):
            y0, y1 = _span(oy, a[9], a[11], a[7], height)
            for ox in range(ow):
                x0, x1 = _span(ox, a[10], a[12], a[8], width)
                window = ((image * oh + oy) * ow + ox) * channels
                for c in range(0, channels, LANES):
                    count = channels - c
                    best, up = load_some(y, window + c, count), load_some(g, window + c, count)
                    open_lanes = lanes_below(count)
                    for iy in range(y0, min(y1, high)):
                        p = ((image * height + iy) * width + x0) * channels + c
                        for _ in range(x1 - x0):
                            value = load_some(x, p, count)
                            here = ((value == best) | (value != value)) & open_lanes
                            open_lanes = open_lanes & ~here
                            if iy >= low:
                                store_some(out, p, load_some(out, p, count) + where(here, up, fill(_ZERO)), count)
                            p += channels


@runtime.task
def max_pool_take(a, part):
    """Further words: gradient (like x), x, y, out."""
    height, width, channels, oh, ow = a[2], a[3], a[4], a[5], a[6]
    g, x, y, out = atomic.f32(a, 13), atomic.f32(a, 14), atomic.f32(a, 15), atomic.f32(a, 16)
    lines = a[1] * oh
    for number in range(lines * part // a[0], lines * (part + 1) // a[0]):
        image, oy = number // oh, number % oh
        y0, y1 = _span(oy, a[9], a[11], a[7], height)
        for ox in range(ow):
            x0, x1 = _span(ox, a[10], a[12], a[8], width)
            window = (number * ow + ox) * channels
            for c in range(0, channels, LANES):
                count = channels - c
                best, taken = load_some(y, window + c, count), fill(_ZERO)
                open_lanes = lanes_below(count)
                for iy in range(y0, y1):
                    p = ((image * height + iy) * width + x0) * channels + c
                    for _ in range(x1 - x0):
                        value = load_some(x, p, count)
                        here = ((value == best) | (value != value)) & open_lanes
                        open_lanes = open_lanes & ~here
                        taken = where(here, load_some(g, p, count), taken)
                        p += channels
                store_some(out, window + c, taken, count)


# -- plans -------------------------------------------------------------------------------------------------------------


def _geometry(image: tuple, pooled: tuple, window, stride, padding) -> tuple[int, ...]:
    return (*image, pooled[1], pooled[2], *window, *stride, padding[0][0], padding[1][0])


def _forward(task, x: Spec, out: Spec, window, stride, padding, *extra: int) -> Plan | None:
    if not all_float32(x, out):
        return None
    parts = parts_for(out.shape[0] * out.shape[1], out.size * window[0] * window[1])
    geometry = _geometry(x.shape, out.shape, window, stride, padding)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        (given,), (wanted,) = inputs, outputs
        return [runtime.row(task, parts, parts, *geometry, given, pitch(given), wanted, pitch(wanted), *extra)]

    return Plan(bind, strided=True, strided_inputs=(0,))


def _backward(task, image: tuple, pooled: tuple, lines: int, attrs: dict, work: int, *extra: int) -> Plan:
    parts = parts_for(lines, work)
    geometry = _geometry(image, pooled, attrs["window"], attrs["stride"], attrs["padding"])

    def bind(inputs, outputs, workspace):
        if outputs[0].size == 0:
            return []
        return [runtime.row(task, parts, parts, *geometry, *inputs, outputs[0], *extra)]

    return Plan(bind)


def plan_max_pool2d(x: Spec, *, out: Spec, window, stride, padding) -> Plan | None:
    return _forward(max_pool, x, out, window, stride, padding)


def plan_avg_pool2d(x: Spec, *, out: Spec, window, stride, padding, count_padding: bool) -> Plan | None:
    return _forward(average_pool, x, out, window, stride, padding, int(count_padding))


def plan_max_pool2d_grad(g: Spec, x: Spec, y: Spec, *, out: Spec, window, stride, padding) -> Plan | None:
    if not all_float32(g, x, y, out):
        return None
    attrs = {"window": window, "stride": stride, "padding": padding}
    work = y.size * window[0] * window[1] * 2
    bands = max(1, min(parts_for(1 << 30, work) // max(x.shape[0], 1), x.shape[1] // (2 * window[0])))
    return _backward(max_pool_grad, x.shape, y.shape, x.shape[0] * bands, attrs, work, bands)


def plan_max_pool2d_take(gg: Spec, x: Spec, y: Spec, *, out: Spec, window, stride, padding) -> Plan | None:
    if not all_float32(gg, x, y, out):
        return None
    attrs = {"window": window, "stride": stride, "padding": padding}
    return _backward(max_pool_take, x.shape, y.shape, y.shape[0] * y.shape[1], attrs, y.size * window[0] * window[1])


def plan_avg_pool2d_grad(g: Spec, *, out: Spec, input_shape, window, stride, padding, count_padding: bool) -> Plan | None:
    if not all_float32(g, out):
        return None
    attrs = {"window": window, "stride": stride, "padding": padding}
    lines = input_shape[0] * input_shape[1]
    return _backward(average_pool_grad, tuple(input_shape), g.shape, lines, attrs, out.size * 2, int(count_padding))


_plain = np.ascontiguousarray  # so that the loops compile for one layout


# -- eager kernels -----------------------------------------------------------------------------------------------------


def max_pool2d(x, *, out, window, stride, padding) -> None:
    """Largest value of each window; NaN wins, padding never does."""
    if not carry_out(plan_max_pool2d, (x,), (out,), window=window, stride=stride, padding=padding):
        _max(_plain(x), out, *window, *stride, padding[0][0], padding[1][0])


def max_pool2d_grad(g, x, y, *, out, window, stride, padding) -> None:
    """The gradient goes to the first largest value in row-major order."""
    if not carry_out(plan_max_pool2d_grad, (g, x, y), (out,), window=window, stride=stride, padding=padding):
        out[...] = 0
        _max_grad(_plain(g), _plain(x), _plain(y), out, *window, *stride, padding[0][0], padding[1][0])


def max_pool2d_take(gg, x, y, *, out, window, stride, padding) -> None:
    """Values of gg where each window's first largest value is."""
    if not carry_out(plan_max_pool2d_take, (gg, x, y), (out,), window=window, stride=stride, padding=padding):
        _max_take(_plain(gg), _plain(x), _plain(y), out, *window, *stride, padding[0][0], padding[1][0])


def avg_pool2d(x, *, out, window, stride, padding, count_padding: bool) -> None:
    """Mean of each window, with padding counted as zeros or left out."""
    attrs = {"window": window, "stride": stride, "padding": padding, "count_padding": count_padding}
    if not carry_out(plan_avg_pool2d, (x,), (out,), **attrs):
        _avg(_plain(x), out, *window, *stride, padding[0][0], padding[1][0], count_padding)


def avg_pool2d_grad(g, *, out, input_shape, window, stride, padding, count_padding: bool) -> None:
    """The adjoint of `avg_pool2d`."""
    attrs = {"window": window, "stride": stride, "padding": padding, "count_padding": count_padding}
    if not carry_out(plan_avg_pool2d_grad, (g,), (out,), input_shape=input_shape, **attrs):
        out[...] = 0
        _avg_grad(_plain(g), out, *window, *stride, padding[0][0], padding[1][0], count_padding)


# -- plain loops for float64 -------------------------------------------------------------------------------------------


@njit(nogil=True)
def _max(x, out, kh, kw, sh, sw, top, left):
    n, oh, ow, channels = out.shape
    for image in range(n):
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, x.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, x.shape[2])
                for c in range(channels):
                    best = x[image, y0, x0, c]
                    for iy in range(y0, y1):
                        for ix in range(x0, x1):
                            value = x[image, iy, ix, c]
                            best = value if (value > best) | (value != value) else best
                    out[image, oy, ox, c] = best


@njit(nogil=True)
def _first(x, best, image, y0, y1, x0, x1, c):
    """Where a window's first maximum (or NaN) is; (-1, -1) if nowhere."""
    for iy in range(y0, y1):
        for ix in range(x0, x1):
            value = x[image, iy, ix, c]
            if value == best or value != value:
                return iy, ix
    return -1, -1


@njit(nogil=True)
def _max_grad(g, x, y, out, kh, kw, sh, sw, top, left):
    n, oh, ow, channels = g.shape
    for image in range(n):
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, x.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, x.shape[2])
                for c in range(channels):
                    iy, ix = _first(x, y[image, oy, ox, c], image, y0, y1, x0, x1, c)
                    if iy >= 0:
                        out[image, iy, ix, c] += g[image, oy, ox, c]


@njit(nogil=True)
def _max_take(gg, x, y, out, kh, kw, sh, sw, top, left):
    n, oh, ow, channels = out.shape
    for image in range(n):
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, x.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, x.shape[2])
                for c in range(channels):
                    iy, ix = _first(x, y[image, oy, ox, c], image, y0, y1, x0, x1, c)
                    out[image, oy, ox, c] = gg[image, iy, ix, c] if iy >= 0 else 0


@njit(nogil=True)
def _avg(x, out, kh, kw, sh, sw, top, left, count_padding):
    n, oh, ow, channels = out.shape
    for image in range(n):
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, x.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, x.shape[2])
                count = kh * kw if count_padding else (y1 - y0) * (x1 - x0)
                for c in range(channels):
                    total = out.dtype.type(0)
                    for iy in range(y0, y1):
                        for ix in range(x0, x1):
                            total += x[image, iy, ix, c]
                    out[image, oy, ox, c] = total / count


@njit(nogil=True)
def _avg_grad(g, out, kh, kw, sh, sw, top, left, count_padding):
    n, oh, ow, channels = g.shape
    for image in range(n):
        for oy in range(oh):
            y0, y1 = _span(oy, sh, top, kh, out.shape[1])
            for ox in range(ow):
                x0, x1 = _span(ox, sw, left, kw, out.shape[2])
                count = kh * kw if count_padding else (y1 - y0) * (x1 - x0)
                for iy in range(y0, y1):
                    for ix in range(x0, x1):
                        for c in range(channels):
                            out[image, iy, ix, c] += g[image, oy, ox, c] / count
