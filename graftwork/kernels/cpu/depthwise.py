"""Depthwise convolution and its two gradients, float32, NHWC: every channel is filtered on its own.

The common kernels (3x3 and 5x5, stride 1 and 2, no dilation) work on blocks of 2 x 4 output pixels times LANES channels that
stay in registers: an input row is read once for all outputs it reaches. Rows above and below the image are read from an array
of zeros, columns beside it are masked, so that the innermost loop (over the channels, which lie side by side) has no branches.
Everything else takes one output pixel at a time.

Weights (kh, kw, 1, C * multiplier) are used where they are. Throughout, output pixel (y, x) meets input pixel
(y * sh - top + ky * dh, x * sw - left + kx * dw) at tap (ky, kx).
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import intrinsic, register_jitable

from .. import plan as plans
from . import atomic, runtime, scalars
from .jit import njit
from .simd import LANES
from .vectors import F32, INT, Emitter, address_of, copy_vector, offset, stack

ROWS, PIXELS = 2, 4  # of an output block
_CLAMPS = (None, "relu", "relu6")
ACTIVATIONS = dict.fromkeys(_CLAMPS, 0) | {"silu": 1, "hard_swish": 2, "sigmoid": 3, "hard_sigmoid": 4, "tanh": 5, "gelu": 6}
_RANGE = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
(_X, _K, _B, _R, _Y, _ZEROS, _N, _H, _W, _C, _OH, _OW, _COUT, _PITCH, _TOP, _LEFT, _SH, _SW, _DH, _DW, _KH, _KW, _KROW, _KCOL,
 _LINES, _GROUPS, _CHANNELS, _LOW, _HIGH, _CODE, _PARTS, _SUMS) = range(32)  # fmt: skip
_row_addresses, _one_address = stack(16, types.int64), stack(8, types.int64)
_block_patch = stack(ROWS * PIXELS * LANES)


# -- the block of registers ------------------------------------------------------------------------------------------


def _block(kh: int, kw: int, stride: int, masked: bool):
    """(rows, column, pixel, channel, pw, w_row, w_column, bias, y, y_row, y_pixel, first, last, low, high)

    rows: addresses of the input rows. Input column q of the block is `column + q * pixel + channel` elements into a row; if the
    block is `masked`, it counts as zeros unless first <= q < last. Values are kept within low ... high.
    """
    lines, columns = (ROWS - 1) * stride + kh, (PIXELS - 1) * stride + kw

    @intrinsic
    def block(typing_context, rows, column, pixel, channel, pw, w_row, w_column, bias, y, y_row, y_pixel, first, last, low,
              high):  # fmt: skip
        def code(context, builder, _, arguments):
            e = Emitter(context, builder)
            rows, column, pixel, channel, pw, w_row, w_column, bias, y, y_row, y_pixel, first, last, low, high = arguments
            at = [e.plus(column, e.times(pixel, q)) for q in range(columns)]
            if masked:
                valid = [e.both(builder.not_(e.less(q, first)), e.less(q, last)) for q in range(columns)]
                safe = e.plus(column, builder.mul(first, pixel))  # where a masked column is read: inside the row
                masks, at = [e.mask(v) for v in valid], [builder.select(v, a, safe) for v, a in zip(valid, at, strict=True)]
            start = e.load(bias)
            sums = {(i, p): start for i in range(ROWS) for p in range(PIXELS)}
            for line in range(lines):
                source = e.at(e.pointer(rows, line), channel)
                values = [e.load(source, a) for a in at]
                if masked:
                    values = [e.keep(v, m) for v, m in zip(values, masks, strict=True)]
                for i in range(ROWS):
                    ky = line - i * stride
                    if not 0 <= ky < kh:
                        continue
                    for kx in range(kw):
                        weight = e.load(pw, e.plus(e.times(w_row, ky), e.times(w_column, kx)))
                        for p in range(PIXELS):
                            sums[i, p] = e.fma(values[p * stride + kx], weight, sums[i, p])
            lowest, highest = e.splat(low), e.splat(high)
            for (i, p), value in sums.items():
                e.store(e.clamp(value, lowest, highest), e.at(y, e.times(y_row, i)), e.times(y_pixel, p))
            return context.get_dummy_value()

        words = types.CPointer(types.int64)
        return types.void(words, INT, INT, INT, F32, INT, INT, F32, F32, INT, INT, INT, INT, types.float32, types.float32), code

    return block


_3x3, _3x3s2, _5x5, _5x5s2 = (_block(k, k, s, False) for k in (3, 5) for s in (1, 2))
_3x3_edge, _3x3s2_edge, _5x5_edge, _5x5s2_edge = (_block(k, k, s, True) for k in (3, 5) for s in (1, 2))


@intrinsic
def _taps(typing_context, px, x_row, x_column, pw, w_row, w_column, high, wide, bias, y, low, top):
    """y = clamp(bias + sum over high x wide taps of x * w), LANES channels of one pixel; rows and columns of taps are as
    far apart in x and w as the steps say."""

    def code(context, builder, _, arguments):
        e = Emitter(context, builder)
        px, x_row, x_column, pw, w_row, w_column, high, wide, bias, y, low, top = arguments

        def line(i, total):
            source, weights = e.at(px, builder.mul(i, x_row)), e.at(pw, builder.mul(i, w_row))

            def tap(j, total):
                value, weight = e.load(source, builder.mul(j, x_column)), e.load(weights, builder.mul(j, w_column))
                return [e.fma(value, weight, total[0])]

            return e.loop(wide, total, tap)

        (total,) = e.loop(high, [e.load(bias)], line)
        e.store(e.clamp(total, e.splat(low), e.splat(top)), y)
        return context.get_dummy_value()

    return types.void(F32, INT, INT, F32, INT, INT, INT, INT, F32, F32, types.float32, types.float32), code


# -- compiled --------------------------------------------------------------------------------------------------------


@njit(nogil=True, boundscheck=False)
def _finish(y, pitch, r, r_pitch, pixels, channels, code, low, high):
    """What the sums still lack, in place on `pixels` x `channels` values: the residual (r_pitch > 0), then the activation."""
    for i in range(pixels):
        to, other = offset(y, i * pitch), offset(r, i * r_pitch)
        if r_pitch > 0:
            for k in range(channels):
                value = to[k] + other[k]
                value = low if value < low else value
                to[k] = high if value > high else value
        if code == 1:
            for k in range(channels):
                to[k] = scalars.silu(to[k])
        elif code == 2:
            for k in range(channels):
                to[k] = scalars.hard_swish(to[k])
        elif code == 3:
            for k in range(channels):
                to[k] = scalars.sigmoid(to[k])
        elif code == 4:
            for k in range(channels):
                to[k] = scalars.hard_sigmoid(to[k])
        elif code == 5:
            for k in range(channels):
                to[k] = scalars.tanh(to[k])
        elif code == 6:
            for k in range(channels):
                to[k] = scalars.gelu(to[k])


@register_jitable
def _channel_range(a, group):
    """The share of channels [first, last) of channel group `group`, in whole vectors except at the end."""
    vectors = (a[_CHANNELS] + LANES - 1) // LANES
    first, last = group * vectors // a[_GROUPS], (group + 1) * vectors // a[_GROUPS]
    return first * LANES, min(last * LANES, a[_CHANNELS])


@register_jitable
def _run_blocks(a, part, block, edge, stride, kh, kw):
    """Part = (image, share of the lines, group of channels). At least LANES channels."""
    height, width, channels, out_height, out_width = a[_H], a[_W], a[_C], a[_OH], a[_OW]
    x, weights, y, zeros = atomic.f32(a, _X), atomic.f32(a, _K), atomic.f32(a, _Y), atomic.f32(a, _ZEROS)
    b, r, pitch, left, krow, kcol = atomic.f32(a, _B), atomic.f32(a, _R), a[_PITCH], a[_LEFT], a[_KROW], a[_KCOL]
    low, high = np.float32(atomic.real(a, _LOW)), np.float32(atomic.real(a, _HIGH))
    least, most = (low, high) if a[_R] == 0 else (np.float32(-np.inf), np.float32(np.inf))
    shares = (out_height + a[_LINES] - 1) // a[_LINES]
    image, share, group = part // (shares * a[_GROUPS]), part // a[_GROUPS] % shares, part % a[_GROUPS]
    first_channel, last_channel = _channel_range(a, group)
    rows, patch = _row_addresses(), _block_patch()
    columns = (PIXELS - 1) * stride + kw
    for line in range(share * a[_LINES], min((share + 1) * a[_LINES], out_height), ROWS):
        count = min(ROWS, min((share + 1) * a[_LINES], out_height) - line)
        for i in range((ROWS - 1) * stride + kh):
            iy = line * stride - a[_TOP] + i
            inside = 0 <= iy < height
            rows[i] = address_of(offset(x, (image * height + iy) * width * channels) if inside else zeros)
        for pixel in range(0, out_width, PIXELS):
            start, wide = pixel * stride - left, min(PIXELS, out_width - pixel)
            first, last = max(0, -start), min(columns, width - start)
            if first >= last:  # no column of this block counts; any that can be read will do
                first, last = -start, -start
            place, column = (image * out_height + line) * out_width + pixel, start * channels
            whole = count == ROWS and wide == PIXELS
            if whole and first == 0 and last == columns:
                for channel in range(first_channel, last_channel, LANES):
                    c = min(channel, channels - LANES)
                    bias = offset(b, c) if a[_B] != 0 else zeros
                    block(rows, column, channels, c, offset(weights, c), krow, kcol, bias, offset(y, place * pitch + c),
                          out_width * pitch, pitch, first, last, least, most)  # fmt: skip
                continue
            for channel in range(first_channel, last_channel, LANES):
                c = min(channel, channels - LANES)
                bias, to = offset(b, c) if a[_B] != 0 else zeros, offset(y, place * pitch + c)
                if whole:
                    edge(rows, column, channels, c, offset(weights, c), krow, kcol, bias, to, out_width * pitch, pitch, first,
                         last, least, most)  # fmt: skip
                    continue
                edge(rows, column, channels, c, offset(weights, c), krow, kcol, bias, patch, PIXELS * LANES, LANES, first, last,
                     least, most)  # fmt: skip
                for i in range(count):
                    for j in range(wide):
                        copy_vector(offset(to, (i * out_width + j) * pitch), offset(patch, (i * PIXELS + j) * LANES))
        if a[_CODE] != 0 or a[_R] != 0:
            at, values = (image * out_height + line) * out_width, last_channel - first_channel
            to, other = offset(y, at * pitch + first_channel), offset(r, at * channels + first_channel)
            r_pitch = channels if a[_R] != 0 else 0
            _finish(to, pitch, other, r_pitch, count * out_width, values, a[_CODE], low, high)


@runtime.task
def depthwise_3x3(a, part):
    _run_blocks(a, part, _3x3, _3x3_edge, 1, 3, 3)


@runtime.task
def depthwise_3x3s2(a, part):
    _run_blocks(a, part, _3x3s2, _3x3s2_edge, 2, 3, 3)


@runtime.task
def depthwise_5x5(a, part):
    _run_blocks(a, part, _5x5, _5x5_edge, 1, 5, 5)


@runtime.task
def depthwise_5x5s2(a, part):
    _run_blocks(a, part, _5x5s2, _5x5s2_edge, 2, 5, 5)


@register_jitable
def _taps_inside(start, step, taps, size):
    """The taps k in [low, high) for which start + k * step lies inside [0, size)."""
    low = 0 if start >= 0 else (-start + step - 1) // step
    return low, max(low, min(taps, (size - 1 - start) // step + 1))


@runtime.task
def depthwise_any(a, part):
    """Any kernel, stride, dilation and multiplier; part = share of all output lines."""
    height, width, channels, out_height, out_width, cout = a[_H], a[_W], a[_C], a[_OH], a[_OW], a[_COUT]
    x, weights, y, zeros = atomic.f32(a, _X), atomic.f32(a, _K), atomic.f32(a, _Y), atomic.f32(a, _ZEROS)
    b, r, pitch, multiplier = atomic.f32(a, _B), atomic.f32(a, _R), a[_PITCH], cout // channels
    low, high = np.float32(atomic.real(a, _LOW)), np.float32(atomic.real(a, _HIGH))
    least, most = (low, high) if a[_R] == 0 else (np.float32(-np.inf), np.float32(np.inf))
    lines = a[_N] * out_height
    for line in range(part * lines // a[_PARTS], (part + 1) * lines // a[_PARTS]):
        image, iy = line // out_height, line % out_height * a[_SH] - a[_TOP]
        ky, ky_end = _taps_inside(iy, a[_DH], a[_KH], height)
        for pixel in range(out_width):
            ix = pixel * a[_SW] - a[_LEFT]
            kx, kx_end = _taps_inside(ix, a[_DW], a[_KW], width)
            source = offset(x, ((image * height + iy + ky * a[_DH]) * width + ix + kx * a[_DW]) * channels)
            kernel, place = offset(weights, ky * a[_KROW] + kx * a[_KCOL]), line * out_width + pixel
            row, column = a[_DH] * width * channels, a[_DW] * channels
            to = offset(y, place * pitch)
            if multiplier == 1 and channels >= LANES:
                for channel in range(0, channels, LANES):
                    c = min(channel, channels - LANES)
                    bias = offset(b, c) if a[_B] != 0 else zeros
                    _taps(offset(source, c), row, column, offset(kernel, c), a[_KROW], a[_KCOL], ky_end - ky, kx_end - kx, bias,
                          offset(to, c), least, most)  # fmt: skip
                continue
            for c in range(cout):
                total = b[c] if a[_B] != 0 else np.float32(0)
                for i in range(ky_end - ky):
                    for j in range(kx_end - kx):
                        total += source[i * row + j * column + c // multiplier] * kernel[i * a[_KROW] + j * a[_KCOL] + c]
                total = least if total < least else total
                to[c] = most if total > most else total
        if a[_CODE] != 0 or a[_R] != 0:
            to, other = offset(y, line * out_width * pitch), offset(r, line * out_width * cout)
            _finish(to, pitch, other, cout if a[_R] != 0 else 0, out_width, cout, a[_CODE], low, high)


# -- gradients -------------------------------------------------------------------------------------------------------


@register_jitable
def _first_tap(place, stride, dilation, taps, size):
    """(first tap, step of taps, first output, step of outputs, count) of the taps k for which place - k * dilation is a
    multiple of stride whose quotient lies inside [0, size). place = input position + padding."""
    step = 1
    while step * dilation % stride != 0:
        step += 1
    k = 0
    while k < min(step, taps) and (place - k * dilation) % stride != 0:
        k += 1
    if k >= min(step, taps):
        return 0, 1, 0, 1, 0
    while k < taps and (place - k * dilation) // stride >= size:
        k += step
    count = 0
    while k + count * step < taps and place - (k + count * step) * dilation >= 0:
        count += 1
    return k, step, (place - k * dilation) // stride, step * dilation // stride, count


@runtime.task
def depthwise_input_grad_any(a, part):
    """Every input pixel gathers what it gave. _X is the gradient (N, OH, OW, COUT), _Y the result (N, H, W, C)."""
    height, width, channels, out_height, out_width, cout = a[_H], a[_W], a[_C], a[_OH], a[_OW], a[_COUT]
    g, weights, y, zeros = atomic.f32(a, _X), atomic.f32(a, _K), atomic.f32(a, _Y), atomic.f32(a, _ZEROS)
    multiplier, pitch = cout // channels, a[_PITCH]
    low, top = np.float32(-np.inf), np.float32(np.inf)
    lines = a[_N] * height
    for line in range(part * lines // a[_PARTS], (part + 1) * lines // a[_PARTS]):
        image = line // height
        ky, ky_step, gy, gy_step, high = _first_tap(line % height + a[_TOP], a[_SH], a[_DH], a[_KH], out_height)
        for pixel in range(width):
            kx, kx_step, gx, gx_step, wide = _first_tap(pixel + a[_LEFT], a[_SW], a[_DW], a[_KW], out_width)
            source = offset(g, ((image * out_height + gy) * out_width + gx) * cout)
            kernel, to = offset(weights, ky * a[_KROW] + kx * a[_KCOL]), offset(y, (line * width + pixel) * pitch)
            row, column, krow, kcol = -gy_step * out_width * cout, -gx_step * cout, ky_step * a[_KROW], kx_step * a[_KCOL]
            if multiplier == 1 and channels >= LANES:
                for channel in range(0, channels, LANES):
                    c = min(channel, channels - LANES)
                    _taps(offset(source, c), row, column, offset(kernel, c), krow, kcol, high, wide, zeros, offset(to, c),
                          low, top)  # fmt: skip
                continue
            for c in range(channels):
                total = np.float32(0)
                for i in range(high):
                    for j in range(wide):
                        for k in range(c * multiplier, (c + 1) * multiplier):
                            total += source[i * row + j * column + k] * kernel[i * krow + j * kcol + k]
                to[c] = total


def _window(kh: int, kw: int):
    """(rows, count, x_pixel, column, step, pg, g_pixel, sums): for `count` output pixels, sums[kh * kw, LANES] += x * g. rows:
    addresses of the input rows that the taps of the first pixel meet, at `column`; taps are `column_step` apart."""

    @intrinsic
    def window(typing_context, rows, at, pixel, tap_step, pg, g_pixel, count, sums):
        def code(context, builder, _, arguments):
            e = Emitter(context, builder)
            rows, at, pixel, tap_step, pg, g_pixel, count, sums = arguments
            sources = [e.at(e.pointer(rows, i), at) for i in range(kh)]
            steps = [e.times(tap_step, j) for j in range(kw)]

            def body(i, totals):
                value, here = e.load(pg, builder.mul(i, g_pixel)), builder.mul(i, pixel)
                return [
                    e.fma(e.load(e.at(sources[t // kw], here), steps[t % kw]), value, total) for t, total in enumerate(totals)
                ]

            start = [e.load(sums, t * LANES) for t in range(kh * kw)]
            for t, total in enumerate(e.loop(count, start, body)):
                e.store(total, sums, t * LANES)
            return context.get_dummy_value()

        return types.void(types.CPointer(types.int64), INT, INT, INT, F32, INT, INT, F32), code

    return window


_window3, _window5, _window1 = _window(3, 3), _window(5, 5), _window(1, 1)


@register_jitable
def _outputs_inside(shift, stride, size, count):
    """The outputs o in [low, high) of `count` for which o * stride + shift lies inside [0, size)."""
    low = 0 if shift >= 0 else (-shift + stride - 1) // stride
    return low, max(low, min(count, (size - 1 - shift) // stride + 1))


@runtime.task
def depthwise_weight_grad(a, part):
    """Sums of one share of the output lines: _SUMS[share][vector of channels][tap][LANES]. At least LANES channels, multiplier
    1. Part = (share, group of channels)."""
    height, width, channels, out_height, out_width = a[_H], a[_W], a[_C], a[_OH], a[_OW]
    x, g, zeros = atomic.f32(a, _X), atomic.f32(a, _Y), atomic.f32(a, _ZEROS)
    kh, kw, lines, vectors = a[_KH], a[_KW], a[_N] * out_height, (channels + LANES - 1) // LANES
    taps, share, group = kh * kw, part // a[_GROUPS], part % a[_GROUPS]
    sums = offset(atomic.f32(a, _SUMS), share * vectors * taps * LANES)
    first, last = group * vectors // a[_GROUPS], (group + 1) * vectors // a[_GROUPS]
    for i in range(first * taps * LANES, last * taps * LANES):
        sums[i] = 0
    rows, one = _row_addresses(), _one_address()
    low, high = 0, out_width  # the output pixels that meet no edge
    for kx in range(kw):
        begin, end = _outputs_inside(kx * a[_DW] - a[_LEFT], a[_SW], width, out_width)
        low, high = max(low, begin), min(high, end)
    whole = kh == kw and (kh == 3 or kh == 5)
    high = max(high, low) if whole else low
    for line in range(share * lines // a[_LINES], (share + 1) * lines // a[_LINES]):
        image, iy = line // out_height, line % out_height * a[_SH] - a[_TOP]
        for i in range(kh):
            inside = 0 <= iy + i * a[_DH] < height
            here = offset(x, (image * height + iy + i * a[_DH]) * width * channels)
            if whole:
                rows[i] = address_of(here if inside else zeros)
        for vector in range(first, last):
            c = min(vector * LANES, channels - LANES)
            mine, pg = offset(sums, vector * taps * LANES), offset(g, line * out_width * channels + c)
            at, step = (low * a[_SW] - a[_LEFT]) * channels + c, a[_DW] * channels
            if whole and high > low:
                to = offset(pg, low * channels)
                if kh == 3:
                    _window3(rows, at, a[_SW] * channels, step, to, channels, high - low, mine)
                else:
                    _window5(rows, at, a[_SW] * channels, step, to, channels, high - low, mine)
            for tap in range(taps):  # the pixels at the edges, or all
                ky, kx = iy + tap // kw * a[_DH], tap % kw * a[_DW] - a[_LEFT]
                if not 0 <= ky < height:
                    continue
                one[0] = address_of(offset(x, (image * height + ky) * width * channels))
                begin, end = _outputs_inside(kx, a[_SW], width, out_width)
                middle, other = min(end, low), max(begin, high)
                if middle > begin:
                    _window1(one, (begin * a[_SW] + kx) * channels + c, a[_SW] * channels, step, offset(pg, begin * channels),
                             channels, middle - begin, offset(mine, tap * LANES))  # fmt: skip
                if end > other:
                    _window1(one, (other * a[_SW] + kx) * channels + c, a[_SW] * channels, step, offset(pg, other * channels),
                             channels, end - other, offset(mine, tap * LANES))  # fmt: skip


@runtime.task
def depthwise_weight_grad_sum(a, part):
    """_K[tap][channel] = the sum over the shares; part = share of the vectors of channels."""
    channels, taps, shares = a[_C], a[_KH] * a[_KW], a[_LINES]
    vectors = (channels + LANES - 1) // LANES
    out, sums = atomic.f32(a, _K), atomic.f32(a, _SUMS)
    for vector in range(part * vectors // a[_PARTS], (part + 1) * vectors // a[_PARTS]):
        c = min(vector * LANES, channels - LANES)
        for tap in range(taps):
            to = offset(out, tap * channels + c)
            for k in range(LANES):
                to[k] = 0
            for share in range(shares):
                source = offset(sums, ((share * vectors + vector) * taps + tap) * LANES)
                for k in range(LANES):
                    to[k] += source[k]


@runtime.task
def depthwise_weight_grad_any(a, part):
    """Any multiplier and any number of channels, tap by tap; part = share of the taps."""
    height, width, channels, out_height, out_width, cout = a[_H], a[_W], a[_C], a[_OH], a[_OW], a[_COUT]
    x, g, out, multiplier = atomic.f32(a, _X), atomic.f32(a, _Y), atomic.f32(a, _K), cout // channels
    taps = a[_KH] * a[_KW]
    for tap in range(part * taps // a[_PARTS], (part + 1) * taps // a[_PARTS]):
        to, ky, kx = offset(out, tap * cout), tap // a[_KW] * a[_DH] - a[_TOP], tap % a[_KW] * a[_DW] - a[_LEFT]
        for c in range(cout):
            to[c] = 0
        begin, end = _outputs_inside(kx, a[_SW], width, out_width)
        above, below = _outputs_inside(ky, a[_SH], height, out_height)
        for image in range(a[_N]):
            for line in range(above, below):
                for pixel in range(begin, end):
                    source = offset(x, ((image * height + line * a[_SH] + ky) * width + pixel * a[_SW] + kx) * channels)
                    given = offset(g, ((image * out_height + line) * out_width + pixel) * cout)
                    for c in range(cout):
                        to[c] += source[c // multiplier] * given[c]


# -- planning --------------------------------------------------------------------------------------------------------

_BLOCKS = {(3, 1): depthwise_3x3, (3, 2): depthwise_3x3s2, (5, 1): depthwise_5x5, (5, 2): depthwise_5x5s2}
_PART_VALUES = 1 << 15  # output values that are worth a part of their own
_no_values = np.zeros(1, np.float32)


def _zeros(count: int) -> np.ndarray:
    """At least `count` zeros, shared by all plans and never written."""
    global _no_values
    if _no_values.size < count:
        _no_values = np.zeros(count, np.float32)
    return _no_values


def supports(x: plans.Spec, w: plans.Spec, groups: int) -> bool:
    """Whether a convolution is a depthwise one of float32."""
    return x.dtype == w.dtype == np.float32 and groups == x.shape[3] and w.shape[2] == 1 and 0 not in (*x.shape, *w.shape)


class _Geometry:
    """The numbers of one depthwise convolution, and the words of its tasks."""

    def __init__(self, x_shape, w_shape, out_shape, stride, padding, dilation):
        self.x, self.w, self.out = tuple(x_shape), tuple(w_shape), tuple(out_shape)
        self.stride, self.padding, self.dilation = tuple(stride), padding, tuple(dilation)

    def block(self):
        """The task for blocks of pixels that does this convolution, or None."""
        (kh, kw), (sh, sw), channels = self.w[:2], self.stride, self.x[3]
        regular = kh == kw and sh == sw and self.dilation == (1, 1) and self.w[3] == self.out[3] == channels >= LANES
        return _BLOCKS.get((kh, sh)) if regular else None

    def words(self, arrays, pitch, *, lines=1, groups=1, channels=0, low=-math.inf, high=math.inf, code=0, parts=1, sums=None,
              turned=False):  # fmt: skip
        source, kernel, b, r, target = arrays
        n, h, w, c = self.x
        kh, kw, _, cout = self.w
        row, column = kw * cout, cout
        if turned:
            kernel, row, column = kernel.reshape(-1)[(kh * kw - 1) * cout :], -row, -column
        zeros = _zeros(max(w * c, cout, LANES))
        return (source, kernel, b, r, target, zeros, n, h, w, c, *self.out[1:3], cout, pitch, self.padding[0][0],
                self.padding[1][0], *self.stride, *self.dilation, kh, kw, row, column, lines, groups, channels or c, low, high,
                code, parts, sums)  # fmt: skip


def _forward_rows(geometry: _Geometry, arrays, low, high, code, turned=False):
    n, height, width, channels = geometry.out
    target, block = arrays[4], geometry.block()
    pitch, most = plans.pitch(target), 8 * runtime.num_threads()
    wanted = max(1, min(most, n * height * width * channels // _PART_VALUES))
    common = {"low": low, "high": high, "code": code, "turned": turned}
    if block is None:
        parts = min(n * height, wanted)
        return [runtime.row(depthwise_any, parts, *geometry.words(arrays, pitch, parts=parts, **common))]
    lines = max(ROWS, -(-height * n // wanted // ROWS) * ROWS)
    shares = n * -(-height // lines)
    groups = 1
    if channels % LANES == 0:
        groups = max(1, min(channels // LANES, wanted // shares))
    return [runtime.row(block, shares * groups, *geometry.words(arrays, pitch, lines=lines, groups=groups, **common))]


def plan(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None):
    """Plan of out = activation(x * w + b + r) for a depthwise convolution (groups = channels, any multiplier), or None."""
    if not supports(x, w, groups) or activation not in ACTIVATIONS or 0 in out.shape:
        return None
    geometry = _Geometry(x.shape, w.shape, out.shape, stride, padding, dilation)
    low, high = _RANGE.get(activation, (-math.inf, math.inf))
    has_bias, has_residual = b is not None, r is not None

    def bind(inputs, outputs, workspace):
        bias = inputs[2] if has_bias else None
        residual = inputs[2 + has_bias] if has_residual else None
        arrays = (inputs[0], inputs[1], bias, residual, outputs[0])
        return _forward_rows(geometry, arrays, low, high, ACTIVATIONS[activation])

    return plans.Plan(bind, strided=True, variant="depthwise" if geometry.block() is None else "depthwise blocks")


def plan_input_grad(g, w, *, out, input_shape, stride, padding, dilation, groups):
    """Plan of the adjoint of a depthwise convolution in its input: g is (N, oh, ow, C * multiplier), out has `input_shape`."""
    if not supports(out, w, groups) or g.dtype != np.float32 or 0 in g.shape:
        return None
    kernel, channels = w.shape[:2], input_shape[3]
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    sides = tuple((e - before, e - after) for e, (before, after) in zip(reach, padding, strict=True))
    turned = _Geometry(g.shape, w.shape, input_shape, stride, sides, dilation)
    if tuple(stride) == (1, 1) and min(map(min, sides)) >= 0 and turned.block() is not None:

        def bind(inputs, outputs, workspace):
            arrays = (inputs[0], inputs[1], None, None, outputs[0])
            return _forward_rows(turned, arrays, -math.inf, math.inf, 0, turned=True)

        return plans.Plan(bind, strided=True, variant="depthwise blocks, turned")
    geometry = _Geometry(input_shape, w.shape, g.shape, stride, padding, dilation)
    lines = input_shape[0] * input_shape[1]
    parts = max(1, min(8 * runtime.num_threads(), lines, lines * input_shape[2] * channels // _PART_VALUES))

    def bind_any(inputs, outputs, workspace):
        arrays = (inputs[0], inputs[1], None, None, outputs[0])
        words = geometry.words(arrays, plans.pitch(outputs[0]), parts=parts)
        return [runtime.row(depthwise_input_grad_any, parts, *words)]

    return plans.Plan(bind_any, strided=True, variant="depthwise gather")


def plan_weight_grad(x, g, *, out, kernel_shape, stride, padding, dilation, groups):
    """Plan of the adjoint of a depthwise convolution in its weight: out is (kh, kw, 1, C * multiplier)."""
    if not supports(x, out, groups) or g.dtype != np.float32 or 0 in g.shape:
        return None
    geometry = _Geometry(x.shape, out.shape, g.shape, stride, padding, dilation)
    channels, taps = x.shape[3], out.shape[0] * out.shape[1]
    if out.shape[3] != channels or channels < LANES:

        def bind_any(inputs, outputs, workspace):
            arrays = (inputs[0], outputs[0], None, None, inputs[1])
            parts = min(taps, 4 * runtime.num_threads())
            return [runtime.row(depthwise_weight_grad_any, parts, *geometry.words(arrays, 0, parts=parts))]

        return plans.Plan(bind_any, variant="depthwise, tap by tap")
    vectors, lines = -(-channels // LANES), g.shape[0] * g.shape[1]
    wanted = max(1, min(4 * runtime.num_threads(), g.size // _PART_VALUES))
    shares = min(wanted, lines)
    bytes_ = 4 * shares * vectors * taps * LANES

    def bind(inputs, outputs, workspace):
        arrays = (inputs[0], outputs[0], None, None, inputs[1])
        words = geometry.words(arrays, 0, lines=shares, groups=1, sums=workspace, parts=min(vectors, wanted))
        return [
            runtime.row(depthwise_weight_grad, shares, *words),
            runtime.row(depthwise_weight_grad_sum, min(vectors, wanted), *words),
        ]

    return plans.Plan(bind, bytes_, variant="depthwise windows")
