"""Convolutions and products of uint8 activations and int8 weights on the strips of `byte_strips.py`.

As in `conv_gemm.py`, a strip's segments are the rows of the window; where the window reaches over the border, a thread copies
the lines it needs with the zero point around them, so that the tile knows no borders. The zero point leaves the sums by the
sums of the weights, which stand in front of each packed panel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..plan import Pack, Plan, Spec, pitch
from ..reference.quantized import requantisation
from . import atomic, caches, runtime
from .byte_strips import BYTE_STRIPS, BYTE_WINDOWS, FORM_WORDS, PIXELS, U8, byte_strip, byte_window
from .conv_gemm import Window, _box
from .gemm import NOWHERE, claim, counter, leave
from .jit import njit
from .runtime import Row
from .simd import BYTE_DOT, BYTE_ROWS, LANES, PANEL
from .strips import advance, is_null

UINT8, INT8 = np.dtype(np.uint8), np.dtype(np.int8)
SERIAL_BELOW = 1 << 18  # multiplications that one thread is done with before sharing out has paid
SPARE = 64  # bytes after copied lines that a tile may read and multiply by zero
_HEADER, _STEP = 4, 4  # bytes of a column in a panel's header, and in a step of it


@intrinsic
def _copy(typing_context, target, source, count):
    """target[:count] = source[:count], bytes that do not overlap."""

    def code(context, builder, _, arguments):
        cgutils.raw_memcpy(builder, *arguments, 1, align=1)
        return context.get_dummy_value()

    return types.void(U8, U8, types.int64), code


@intrinsic
def _fill(typing_context, target, count, value):
    """target[:count] = the low byte of value."""

    def code(context, builder, _, arguments):
        target, count, value = arguments
        byte = builder.trunc(value, cgutils.int8_t)
        cgutils.memset(builder, target, count, byte)
        return context.get_dummy_value()

    return types.void(U8, types.int64, types.int64), code


@njit(nogil=True)
def copy_lines(target, image, lines, top, left, height, width, line, pixel, channels, room, columns, value):
    """target[i, j, :channels] = image[top + i, left + j] for `lines` lines of `columns` pixels that are `room` bytes apart, and
    `value` outside the image."""
    low = min(max(-left, 0), columns)
    high = max(min(width - left, columns), low)
    for i in range(lines):
        to, y = advance(target, i * columns * room), top + i
        if y < 0 or y >= height:
            _fill(to, columns * room, value)
            continue
        _fill(to, low * room, value)
        source = advance(image, y * line + (left + low) * pixel)
        if pixel == channels and room == channels:
            _copy(advance(to, low * room), source, (high - low) * channels)
        else:
            for j in range(high - low):
                _copy(advance(to, (low + j) * room), advance(source, j * pixel), channels)
        _fill(advance(to, high * room), (columns - high) * room, value)


# -- packing -----------------------------------------------------------------------------------------------------------------


def panel_bytes(width: int, steps: int) -> int:
    return width * (_HEADER + steps * _STEP)


@runtime.task
def pack_bytes(a, part):
    """Weights as panels. Words: source, target, segments, run, columns of a group, columns in all, panels, steps of a run.
    A part is a panel of a group. Source: a row for each (segment, position in the run), columns side by side."""
    source, target = atomic.i8(a, 0), atomic.i8(a, 1)
    segments, run, cout, row, panels, steps = a[2], a[3], a[4], a[5], a[6], a[7]
    group, panel = part // panels, part % panels
    first = panel * PANEL
    columns = min(cout - first, PANEL)
    width = PANEL if columns > LANES else LANES
    wide = (cout + LANES - 1) // LANES * LANES
    to = advance(target, (group * wide + first) * (_HEADER + segments * steps * _STEP))
    header = atomic_i32(to)
    for j in range(width):
        header[j] = 0
    data = advance(to, width * _HEADER)
    for i in range(segments * steps * width * _STEP):
        data[i] = 0
    for s in range(segments):
        for k in range(run):
            values = advance(source, (s * run + k) * row + group * cout + first)
            place = advance(data, (s * steps + k // 4) * width * _STEP + k % 4)
            for j in range(columns):
                place[j * _STEP] = values[j]
                header[j] += values[j]


@intrinsic
def atomic_i32(typing_context, pointer):
    """The pointer as one to int32."""
    result = types.CPointer(types.int32)

    def code(context, builder, _, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(pointer), code


def pack_panels(segments: int, run: int, cout: int, groups: int) -> Pack:
    """The pack of int8 weights (segments * run, groups * cout)."""
    steps, wide, panels = -(-run // 4), -(-cout // LANES) * LANES, -(-cout // PANEL)

    def bind(source: np.ndarray, packed: np.ndarray) -> list[Row]:
        words = (source, packed, segments, run, cout, groups * cout, panels, steps)
        return [runtime.row(pack_bytes, panels * groups, *words)]

    spec = Spec((groups * panel_bytes(wide, segments * steps),), INT8)
    return Pack(f"byte_panels{LANES}.{groups}.{segments}x{run}", spec, bind)


@runtime.task
def pack_window(a, part):
    """Depthwise weights (lines, kernel, channels): words source, target, lines, kernel, channels, groups of four. A part is a
    vector of channels."""
    source, target = atomic.i8(a, 0), atomic.i8(a, 1)
    lines, kernel, channels, groups = a[2], a[3], a[4], a[5]
    to = advance(target, part * LANES * (_HEADER + lines * groups * _STEP))
    header, data = atomic_i32(to), advance(to, LANES * _HEADER)
    for j in range(LANES):
        header[j] = 0
    for i in range(lines * groups * LANES * _STEP):
        data[i] = 0
    for y in range(lines):
        for x in range(kernel):
            for j in range(min(LANES, channels - part * LANES)):
                value = source[(y * kernel + x) * channels + part * LANES + j]
                data[((y * groups + x // 4) * LANES + j) * _STEP + x % 4] = value
                header[j] += value


# -- products ------------------------------------------------------------------------------------------------------------------


@runtime.task
def multiply_bytes(a, part):
    """One share of rows times panels. Units are (block of rows, group of panels).

    Words: 0 a, 1 panels, 2 out, 3 scale, 4 bias, 5 residual, 6 form, 7 rows, 8 columns, 9 k, 10 a_row, 11 out_row (bytes),
    12 residual_row, 13 rows a block, 14 panels a group, 15 counter, 16 parts, 17 and 18 strips, 19 one zero, 20 bytes of an
    output, 21 scratch (null: rows are read where they are), 22 its bytes a part.
    """
    m, n, k, block, per = a[7], a[8], a[9], a[13], a[14]
    blocks, panels = (m + block - 1) // block, (n + PANEL - 1) // PANEL
    groups = (panels + per - 1) // per
    steps = (k + 3) // 4
    while True:
        unit = claim(a[15])
        if unit >= blocks * groups:
            break
        first, at = unit % blocks * block, unit // blocks * per
        rows, last = min(block, m - first), min(at + per, panels)
        source, a_row = advance(atomic.u8(a, 0), first * a[10]), a[10]
        scratch = atomic.u8(a, 21)
        if not is_null(scratch):
            scratch = advance(scratch, part * a[22])
            for i in range(rows):
                _copy(advance(scratch, i * 4 * steps), advance(source, i * a_row), k)
            source, a_row = scratch, 4 * steps
        for j in range(at, last):
            columns = min(n - j * PANEL, PANEL)
            weights = advance(atomic.u8(a, 1), j * PANEL * (_HEADER + steps * _STEP))
            ahead = advance(weights, PANEL * (_HEADER + steps * _STEP)) if j + 1 < last else weights
            out = advance(atomic.u8(a, 2), first * a[11] + j * PANEL * a[20])
            bias, residual = atomic.i32(a, 4), atomic.u8(a, 5)
            if not is_null(bias):
                bias = advance(bias, j * PANEL)
            if not is_null(residual):
                residual = advance(residual, first * a[12] + j * PANEL)
            scale = advance(atomic.f32(a, 3), j * PANEL)
            byte_strip(a[18] if columns > LANES else a[17], source, weights, out, rows, a_row, steps, atomic.i64(a, 19), 1,
                       a[11], columns, scale, bias, residual, a[12], atomic.i32(a, 6), ahead)  # fmt: skip
    leave(a[15], a[16])


@runtime.task
def convolve_bytes(a, part):
    """One share of a convolution. Units are (image, group, block of output lines, group of panels).

    Words: 0 x, 1 panels, 2 out, 3 scale, 4 bias, 5 residual, 6 form; 7 images, 8 groups, 9 lines, 10 columns, 11 output
    channels a group; 12 to 14 x's bytes from image to image, line and pixel, 15 and 16 its lines and columns, 17 channels a
    group; 18 to 20 out's bytes, 21 to 23 the residual's; 24 and 25 strides, 26 and 27 where the first window begins, 28
    lines that it reaches, 29 columns of the copied lines; 30 run, 31 segments, 32 their offsets; 33 lines a block, 34
    panels a group, 35 whether lines are copied; 36 counter, 37 scratch, 38 its bytes a part, 39 parts, 40 and 41 strips, 42
    zero point of x, 43 bytes of an output.
    """
    lines, block, per = a[9], a[33], a[34]
    blocks, panels = (lines + block - 1) // block, (a[11] + PANEL - 1) // PANEL
    shares = (panels + per - 1) // per
    while True:
        unit = claim(a[36])
        if unit >= a[7] * a[8] * blocks * shares:
            break
        first, rest = unit % blocks * block, unit // blocks
        at, rest = rest % shares * per, rest // shares
        _lines(a, part, rest // a[8], rest % a[8], first, min(block, lines - first), at, min(at + per, panels))
    leave(a[36], a[39])


@njit(nogil=True)
def _lines(a, part, image, group, first, count, at, last):
    """Output lines [first, first + count) of one image and group, panels [at, last)."""
    channels, columns, cout = a[17], a[10], a[11]
    top, left = first * a[24] + a[26], a[27]
    source, line, pixel = advance(atomic.u8(a, 0), image * a[12] + group * channels), a[13], a[14]
    if a[35] != 0:
        lines, width = (count - 1) * a[24] + a[28], a[29]
        scratch = advance(atomic.u8(a, 37), part * a[38])
        copy_lines(scratch, source, lines, top, left, a[15], a[16], line, pixel, channels, channels, width, a[42])
        source, line, pixel = scratch, width * channels, channels
    else:
        source = advance(source, top * line + left * pixel)
    steps, segments = (a[30] + 3) // 4, a[31]
    wide = (cout + LANES - 1) // LANES * LANES
    bytes_ = _HEADER + segments * steps * _STEP
    for j in range(at, last):
        valid = min(cout - j * PANEL, PANEL)
        weights = advance(atomic.u8(a, 1), (group * wide + j * PANEL) * bytes_)
        ahead = advance(weights, PANEL * bytes_) if j + 1 < last else weights
        channel = group * cout + j * PANEL
        bias = atomic.i32(a, 4)
        if not is_null(bias):
            bias = advance(bias, channel)
        for i in range(count):
            out = advance(atomic.u8(a, 2), image * a[18] + (first + i) * a[19] + channel * a[43])
            residual = atomic.u8(a, 5)
            if not is_null(residual):
                residual = advance(residual, image * a[21] + (first + i) * a[22] + channel)
            here = advance(source, i * a[24] * line)
            byte_strip(a[41] if valid > LANES else a[40], here, weights, out, columns, a[25] * pixel, steps,
                       atomic.i64(a, 32), segments, a[20], valid, advance(atomic.f32(a, 3), channel), bias, residual,
                       a[23], atomic.i32(a, 6), ahead if i == 0 else weights)  # fmt: skip


@runtime.task
def filter_bytes(a, part):
    """A depthwise convolution. A part is (image, block of output lines).

    Words: 0 x, 1 packed weights, 2 out, 3 scale, 4 bias, 5 form; 6 lines, 7 columns, 8 channels; 9 and 10 lines and columns
    of x, 11 bytes of its pixel; 12 bytes of an output's pixel, 13 of an output; 14 stride, 15 and 16 where the first window
    begins, 17 the window's side, 18 columns of the copied lines, 19 lines a block, 20 scratch, 21 its bytes a part, 22 the
    tile, 23 zero point of x, 24 counter, 25 parts, 26 images.
    """
    lines, columns, channels, stride, block = a[6], a[7], a[8], a[14], a[19]
    blocks = (lines + block - 1) // block
    room = (channels + LANES - 1) // LANES * LANES
    groups = (a[17] + 3) // 4
    vector_bytes = LANES * (_HEADER + a[17] * groups * _STEP)
    scratch = advance(atomic.u8(a, 20), part * a[21])
    while True:
        unit = claim(a[24])
        if unit >= a[26] * blocks:
            break
        image, first = unit // blocks, unit % blocks * block
        count, width = min(block, lines - first), a[18]
        source = advance(atomic.u8(a, 0), image * a[9] * a[10] * a[11])
        reach, top = (count - 1) * stride + a[17], first * stride + a[15]
        copy_lines(scratch, source, reach, top, a[16], a[9], a[10], a[10] * a[11], a[11], channels, room, width, a[23])
        for i in range(count):
            for c in range(0, channels, LANES):
                valid = min(channels - c, LANES)
                bias = atomic.i32(a, 4)
                if not is_null(bias):
                    bias = advance(bias, c)
                for p in range(0, columns, PIXELS):
                    at = advance(scratch, (i * stride * width + p * stride) * room + c)
                    to = advance(atomic.u8(a, 2), ((image * lines + first + i) * columns + p) * a[12] + c * a[13])
                    weights = advance(atomic.u8(a, 1), c // LANES * vector_bytes)
                    byte_window(a[22], at, width * room, room, weights, to, a[12], min(PIXELS, columns - p), valid,
                                advance(atomic.f32(a, 3), c), bias, atomic.i32(a, 5))  # fmt: skip
    leave(a[24], a[25])


# -- planning ----------------------------------------------------------------------------------------------------------------


def form_of(x_scale, x_zero_point, out_scale, out_zero_point, low, high, dtype, other_scale=None,
            other_zero_point=0) -> np.ndarray:  # fmt: skip
    """The words that a strip finishes its sums with."""
    r = requantisation(x_scale, out_scale, out_zero_point, low, high, dtype)
    form = np.zeros(FORM_WORDS, np.int32)
    other = 0.0 if other_scale is None else other_scale / (1.0 if out_scale is None else out_scale)
    form[:4] = np.array([r.factor, r.low - r.zero, r.high - r.zero, other], np.float32).view(np.int32)
    form[4:] = r.zero, x_zero_point, other_zero_point, dtype == "float32"
    return form


def _steps(array: np.ndarray | None, shape: Sequence[int]) -> tuple[int, int, int]:
    """Bytes from image to image, line and pixel of a contiguous NHWC array or a channel slice of one."""
    if array is None:
        return 0, 0, 0
    pixel = pitch(array) * array.itemsize
    return shape[1] * shape[2] * pixel, shape[2] * pixel, pixel


def _takes(x: Spec, w: Spec, out: Spec) -> bool:
    return x.dtype == UINT8 and w.dtype == INT8 and 0 not in out.shape and 0 not in x.shape


def _split_inputs(inputs, biased: bool, other: bool):
    x, w, scale, *rest = inputs
    bias = rest.pop(0) if biased else None
    return x, w, scale, bias, rest.pop(0) if other else None


def plan_quantized_matmul(x: Spec, w: Spec, scale: Spec, bias: Spec | None = None, *, out: Spec, **form) -> Plan | None:
    """Rows of uint8 by int8 weights."""
    if not _takes(x, w, out):
        return None
    return _plan_product(math.prod(x.shape[:-1]), w.shape[1], w.shape[0], bias is not None, False, out, form)


def _plan_product(m: int, n: int, k: int, biased: bool, other: bool, out: Spec, form: dict) -> Plan:
    threads, panels = runtime.num_threads(), -(-n // PANEL)
    wanted = 1 if threads == 1 or m * n * k < SERIAL_BELOW else 6 * threads
    most = max(caches.sizes().second // 2 // max(k, 1) // BYTE_ROWS, 4) * BYTE_ROWS
    blocks = max(-(-m // most), min(wanted, m // (6 * BYTE_ROWS)), 1)
    block = math.ceil(m / blocks)
    if blocks > 1:
        block = math.ceil(block / BYTE_ROWS) * BYTE_ROWS
    blocks = -(-m // block)
    per = -(-panels // min(max(-(-wanted // blocks), 1), panels))
    parts = min(threads, blocks * -(-panels // per))
    room = (block * -(-k // 4) * 4 + SPARE) // 64 * 64 + 64 if k % 4 else 0
    words = form_of(**form)

    def bind(inputs, outputs, workspace):
        x, w, scale, bias, residual = _split_inputs(inputs, biased, other)
        to = outputs[0]
        return [
            runtime.row(
                multiply_bytes, parts, x, w, to, scale, bias, residual, words, m, n, k, pitch(x) if m > 1 else k,
                pitch(to) * to.itemsize, 0 if residual is None else pitch(residual), block, per, counter(), parts,
                BYTE_STRIPS[0].address, BYTE_STRIPS[1].address, NOWHERE, to.itemsize, workspace, room,
            )
        ]  # fmt: skip

    inputs = (0,) if m > 1 else ()
    return Plan(bind, workspace=room * parts, packs={1: pack_panels(1, k, n, 1)}, strided=len(out.shape) > 1,
                strided_inputs=(*inputs, 3 + biased) if other else inputs, variant=BYTE_DOT)  # fmt: skip


def plan_quantized_conv2d(x: Spec, w: Spec, scale: Spec, bias: Spec | None = None, *, out: Spec, stride, padding, dilation,
                          groups: int, **form) -> Plan | None:  # fmt: skip
    """Any geometry of uint8 images and int8 weights; depthwise 3x3 and 5x5 with tiles of their own."""
    return _plan_conv(x, w, bias is not None, False, out, stride, padding, dilation, groups, form)


def plan_quantized_conv2d_add(x: Spec, w: Spec, scale: Spec, bias: Spec, other: Spec, *, out: Spec, stride, padding, dilation,
                              groups: int, **form) -> Plan | None:  # fmt: skip
    """The same, with a uint8 image added before rounding."""
    return _plan_conv(x, w, True, True, out, stride, padding, dilation, groups, form) if other.dtype == UINT8 else None


def _plan_conv(x: Spec, w: Spec, biased, other, out: Spec, stride, padding, dilation, groups: int, form) -> Plan | None:
    if not _takes(x, w, out):
        return None
    (kh, kw, channels, cout), (images, lines, columns, _) = w.shape, out.shape
    if kh == kw == 1 and stride == (1, 1) and groups == 1 and not any(map(any, padding)):
        return _plan_product(images * lines * columns, cout, channels, biased, other, out, form)
    if groups == cout and channels == 1 and not other and groups == x.shape[3]:
        square = kh == kw and stride[0] == stride[1] and tuple(dilation) == (1, 1) and (kh, stride[0]) in BYTE_WINDOWS
        if square and cout >= 4:
            return _plan_depthwise(x, kh, stride[0], padding, biased, out, form)
    window = Window(
        tuple(stride),
        tuple((i * dilation[0] - padding[0][0], j * dilation[1] - padding[1][0]) for i in range(kh) for j in range(kw)),
    )
    return _plan_window(x, window, (kh, kw, channels, cout // groups), groups, dilation[1] == 1, biased, other, out, form)


def _plan_window(x: Spec, window: Window, kernel, groups: int, dense: bool, biased, other, out: Spec, form) -> Plan:
    (kh, kw, channels, cout), (images, lines, columns, _) = kernel, out.shape
    top, left, reach, across = box = _box(window, columns)
    height, width = x.shape[1:3]
    outside = top < 0 or left < 0 or top + (lines - 1) * window.stride[0] + reach > height or left + across > width
    run = kw * channels if dense else channels
    segments = kh if dense else kh * kw
    copies = outside or groups > 1 or run % 4 != 0
    starts = window.taps[::kw] if dense else window.taps

    def offsets(pixel: int, line: int) -> np.ndarray:
        return np.array([(down - box[0]) * line + (right - box[1]) * pixel for down, right in starts], np.int64)

    threads, second = runtime.num_threads(), caches.sizes().second
    most = max((second // 2 // max(across * channels, 1) - reach) // window.stride[0] + 1, 1)
    work = images * groups * lines * columns * cout * segments * run
    wanted = 1 if threads == 1 or work < SERIAL_BELOW else 6 * threads
    outer, panels = images * groups, -(-cout // PANEL)
    least = max(1, -(-2 * BYTE_ROWS // columns), 2 * reach if copies else 1)
    blocks = max(-(-lines // most), min(-(-wanted // outer), max(lines // least, 1)))
    block = -(-lines // blocks)
    blocks = -(-lines // block)
    per = -(-panels // min(max(-(-wanted // (outer * blocks)), 1), panels))
    parts = min(threads, outer * blocks * -(-panels // per))
    room = (((block - 1) * window.stride[0] + reach) * across * channels + SPARE) // 64 * 64 + 64 if copies else 0
    words = form_of(**form)

    def bind(inputs, outputs, workspace):
        x_, w_, scale, bias, residual = _split_inputs(inputs, biased, other)
        to, source = outputs[0], _steps(x_, x.shape)
        places = offsets(channels, across * channels) if copies else offsets(source[2], source[1])
        return [
            runtime.row(
                convolve_bytes, parts, x_, w_, to, scale, bias, residual, words, images, groups, lines, columns, cout, *source,
                height, width, channels, *_steps(to, out.shape), *_steps(residual, out.shape), *window.stride, top, left,
                reach, across, run, segments, places, block, per, copies, counter(), workspace, room, parts,
                BYTE_STRIPS[0].address, BYTE_STRIPS[1].address, form["x_zero_point"], to.itemsize,
            )
        ]  # fmt: skip

    pixels_apart = (0,) if copies or kw == 1 or not dense else ()  # a run of several pixels has no gaps
    return Plan(bind, workspace=room * parts, packs={1: pack_panels(segments, run, cout, groups)}, strided=True,
                strided_inputs=(*pixels_apart, *((3 + biased,) if other else ())), variant=BYTE_DOT)  # fmt: skip


def _plan_depthwise(x: Spec, kernel: int, stride: int, padding, biased: bool, out: Spec, form) -> Plan:
    images, lines, columns, channels = out.shape
    room, groups = -(-channels // LANES) * LANES, -(-kernel // 4)
    across = (-(-columns // PIXELS) * PIXELS - 1) * stride + 4 * groups
    threads, second = runtime.num_threads(), caches.sizes().second
    wanted = 1 if threads == 1 or out.size < SERIAL_BELOW // 16 else 4 * threads
    most = max((second // 2 // (across * room) - kernel) // stride + 1, 1)
    block = max(1, min(most, -(-lines // -(-wanted // images))))
    parts = min(threads, images * -(-lines // block))
    scratch = (((block - 1) * stride + kernel) * across * room + 127) // 64 * 64
    words = form_of(**form)
    vectors = room // LANES
    tile = BYTE_WINDOWS[kernel, stride]

    def pack(source, packed):
        return [runtime.row(pack_window, vectors, source, packed, kernel, kernel, channels, groups)]

    def bind(inputs, outputs, workspace):
        x_, w_, scale, bias, _ = _split_inputs(inputs, biased, False)
        to = outputs[0]
        return [
            runtime.row(
                filter_bytes, parts, x_, w_, to, scale, bias, words, lines, columns, channels, *x.shape[1:3], pitch(x_),
                pitch(to) * to.itemsize, to.itemsize, stride, -padding[0][0], -padding[1][0], kernel, across, block, workspace,
                scratch, tile.address, form["x_zero_point"], counter(), parts, images,
            )
        ]  # fmt: skip

    spec = Spec((room * (_HEADER + kernel * groups * _STEP),), INT8)
    packs = {1: Pack(f"byte_window{LANES}", spec, pack)}
    return Plan(bind, scratch * parts, packs, strided=True, strided_inputs=(0,), variant=f"depthwise_{BYTE_DOT}")
