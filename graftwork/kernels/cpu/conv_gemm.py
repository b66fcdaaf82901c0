"""float32 convolutions as implicit matrix products on the strips of `strips.py`: no im2col, any window, stride and groups.

In an NHWC image the values under one row of the window lie side by side, so an output pixel's dot product is `kh` runs of
`kw * channels` values, and neighbouring pixels start `stride * channels` further on: a strip whose segments are the window's
rows. Where the window reaches over the border (or groups or dilation tear the runs apart), a thread first copies the few
lines that it needs, with zeros around them, into memory of its own that stays in the second-level cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..plan import Plan, Spec, pitch
from . import atomic, caches, runtime
from ._epilogue import activation_code
from .gemm import FLOAT32, claim, clamps, counter, leave, pack_matrix, pack_weights, plan_product
from .jit import njit
from .runtime import Row
from .simd import LANES, PANEL, ROWS
from .strips import FINISH, STRIPS, advance, clear, copy, finish, is_null, null, strip

_LOW, _HIGH = np.float32(-np.inf), np.float32(np.inf)
LINE_BYTES_SHARE = 2  # the copied lines take this share of the second-level cache
WEIGHT_BYTES_SHARE = 4  # and a block of a panel's weights this one
SERIAL_BELOW = 1 << 17  # multiplications that one thread is done with before sharing out has paid


@njit(nogil=True)
def copy_lines(target, image, lines, top, left, height, width, line, pixel, channels, columns):
    """target[i, j] = image[top + i, left + j] for `lines` lines of `columns` pixels, zeros outside the image.

    line, pixel: elements between the image's lines and pixels; the target is contiguous.
    """
    low = min(max(-left, 0), columns)
    high = max(min(width - left, columns), low)
    for i in range(lines):
        to, y = advance(target, i * columns * channels), top + i
        if y < 0 or y >= height:
            clear(to, columns * channels)
            continue
        clear(to, low * channels)
        source = advance(image, y * line + (left + low) * pixel)
        if pixel == channels:
            copy(advance(to, low * channels), source, (high - low) * channels)
        else:
            for j in range(high - low):
                for c in range(channels):
                    to[(low + j) * channels + c] = source[j * pixel + c]
        clear(advance(to, high * channels), (columns - high) * channels)


@runtime.task
def convolve(a, part):
    """One share of a convolution. Units are (image, group, block of output lines, group of panels), claimed one by one.

    Words: 0 x, 1 packed weights, 2 out, 3 bias, 4 residual; 5 images, 6 groups, 7 lines, 8 columns, 9 output channels a
    group; 10 to 12 x's steps from image to image, line and pixel, 13 and 14 its lines and columns, 15 channels a group;
    16 to 18 out's steps, 19 to 21 the residual's; 22 and 23 vertical and horizontal stride, 24 and 25 where the first
    window begins, 26 lines below that it reaches, 27 columns of the copied lines; 28 run, 29 segments, 30 their offsets,
    31 segments a block; 32 lines a block, 33 panels a group, 34 whether lines are copied; 35 counter, 36 scratch, 37 its
    floats a part, 38 parts, 39 and 40 strips, 41 finish, 42 activation, 43 low, 44 high.
    """
    lines, block, per = a[7], a[32], a[33]
    blocks, panels = (lines + block - 1) // block, (a[9] + PANEL - 1) // PANEL
    parts = (panels + per - 1) // per
    while True:
        unit = claim(a[35])
        if unit >= a[5] * a[6] * blocks * parts:
            break
        first, rest = unit % blocks * block, unit // blocks
        at, rest = rest % parts * per, rest // parts
        _lines(a, part, rest // a[6], rest % a[6], first, min(block, lines - first), at, min(at + per, panels))
    leave(a[35], a[38])


@njit(nogil=True)
def _lines(a, part, image, group, first, count, at, last):
    """Output lines [first, first + count) of one image and group, panels [at, last)."""
    channels, columns, cout, code = a[15], a[8], a[9], a[42]
    top, left = first * a[22] + a[24], a[25]
    source = advance(atomic.f32(a, 0), image * a[10] + group * channels)
    line, pixel = a[11], a[12]
    if a[34] != 0:
        lines, width = (count - 1) * a[22] + a[26], a[27]
        scratch = advance(atomic.f32(a, 36), part * a[37])
        copy_lines(scratch, source, lines, top, left, a[13], a[14], line, pixel, channels, width)
        source, line, pixel = scratch, width * channels, channels
    else:
        source = advance(source, top * line + left * pixel)
    run, segments, offsets, at_once = a[28], a[29], atomic.i64(a, 30), a[31]
    wide = (cout + LANES - 1) // LANES * LANES
    for start in range(0, max(segments, 1), at_once):
        n = min(at_once, segments - start)
        final = start + n >= segments
        low = np.float32(atomic.real(a, 43)) if final else _LOW
        high = np.float32(atomic.real(a, 44)) if final else _HIGH
        for j in range(at, last):
            valid = min(cout - j * PANEL, PANEL)
            width = PANEL if valid > LANES else LANES
            weights = advance(atomic.f32(a, 1), segments * run * (group * wide + j * PANEL) + start * run * width)
            ahead = advance(weights, segments * run * PANEL) if j + 1 < last else weights
            channel = group * cout + j * PANEL
            bias = atomic.f32(a, 3)
            bias = advance(bias, channel) if start == 0 and not is_null(bias) else null()
            for i in range(count):
                out = advance(atomic.f32(a, 2), image * a[16] + (first + i) * a[17] + channel)
                residual = atomic.f32(a, 4)
                if final and not is_null(residual):
                    residual = advance(residual, image * a[19] + (first + i) * a[20] + channel)
                else:
                    residual = null()
                strip(a[40] if width == PANEL else a[39], advance(source, i * a[22] * line), weights, out, columns,
                      a[23] * pixel, 1, run, advance(offsets, start), n, a[18], valid, bias, residual, a[21],
                      1 if start > 0 else 0, low, high, ahead if i == 0 else weights)  # fmt: skip
                if final and code > 2:
                    finish(a[41], out, columns, valid, a[18], code)


# -- planning --------------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Where the taps of one convolution are: output pixel (y, x) meets input (y * stride + tap) for every tap."""

    stride: tuple[int, int]
    taps: tuple[tuple[int, int], ...]  # (down, right), negative above and left of the image; right ascending in each line


class Sizes(NamedTuple):
    """Of one convolution; channels are those of one group."""

    images: int
    height: int
    width: int
    channels: int
    lines: int
    columns: int
    cout: int
    groups: int


class Steps(NamedTuple):
    """Elements from image to image, line to line and pixel to pixel of an array, from its element `start` on."""

    image: int
    line: int
    pixel: int
    start: int = 0


class Layout(NamedTuple):
    """How one convolution is cut up. floats: scratch a part."""

    run: int
    offsets: np.ndarray
    at_once: int
    block: int
    per: int
    copies: bool
    box: tuple[int, int, int, int]  # top, left, lines, columns of the window's reach
    floats: int
    threads: int


def layout_of(sizes: Sizes, window: Window, merged: bool = True) -> Layout:
    """Choose blocks for a convolution. merged: pixels of the input follow each other without gaps."""
    threads = runtime.num_threads()
    box = _box(window, sizes.columns)
    top, left, reach, columns = box
    outside = (
        top < 0 or left < 0 or top + (sizes.lines - 1) * window.stride[0] + reach > sizes.height or left + columns > sizes.width
    )
    copies = bool(window.taps) and (outside or sizes.groups > 1 or not merged)
    pitch_ = columns if copies else sizes.width
    run, offsets = _segments(window, box, sizes.channels, pitch_)
    second = caches.sizes().second
    weight_bytes = 4 * run * PANEL
    at_once = max(1, min(len(offsets), second // WEIGHT_BYTES_SHARE // max(weight_bytes, 1)))
    at_once = -(-len(offsets) // max(-(-len(offsets) // at_once), 1)) or 1
    line_bytes = 4 * columns * sizes.channels
    most = max((second // LINE_BYTES_SHARE // max(line_bytes, 1) - reach) // window.stride[0] + 1, 1)
    work = sizes.images * sizes.groups * sizes.lines * sizes.columns * sizes.cout * max(len(offsets), 1) * run
    wanted = 1 if threads == 1 or work < SERIAL_BELOW else 6 * threads
    outer = sizes.images * sizes.groups
    panels = -(-sizes.cout // PANEL)
    least = max(1, -(-2 * ROWS // sizes.columns), 2 * reach if copies else 1)  # lines worth a unit of their own
    blocks = max(-(-sizes.lines // most), min(-(-wanted // outer), max(sizes.lines // least, 1)))
    block = -(-sizes.lines // blocks)
    blocks = -(-sizes.lines // block)
    shares = min(max(-(-wanted // (outer * blocks)), 1), panels)
    floats = (((block - 1) * window.stride[0] + reach) * columns * sizes.channels + 15) // 16 * 16 if copies else 0
    return Layout(run, offsets, at_once, block, -(-panels // shares), copies, box, floats, threads)


def _box(window: Window, columns: int) -> tuple[int, int, int, int]:
    if not window.taps:
        return 0, 0, 1, 1
    downs, rights = zip(*window.taps, strict=True)
    across = (columns - 1) * window.stride[1] + max(rights) - min(rights) + 1
    return min(downs), min(rights), max(downs) - min(downs) + 1, across


def _segments(window: Window, box, channels: int, columns: int) -> tuple[int, np.ndarray]:
    """(run, offsets): taps side by side become one run if all lines of the window allow the same."""
    rows: dict[int, list[int]] = {}
    for down, right in window.taps:
        rows.setdefault(down, []).append(right)
    gapless = all(r == list(range(r[0], r[0] + len(r))) for r in rows.values())
    if rows and gapless and len({len(r) for r in rows.values()}) == 1:
        starts, length = [(down, r[0]) for down, r in rows.items()], len(next(iter(rows.values())))
    else:
        starts, length = list(window.taps), 1
    offsets = [((down - box[0]) * columns + right - box[1]) * channels for down, right in starts]
    return length * channels, np.array(offsets, np.int64)


def convolution_rows(
    x, weights, out: np.ndarray, bias, residual, sizes: Sizes, window: Window, layout: Layout, x_steps: Steps,
    out_steps: Steps, residual_steps: Steps, code: int, workspace,
) -> list[Row]:  # fmt: skip
    """The row that computes one convolution."""
    panels = -(-sizes.cout // PANEL)
    units = sizes.images * sizes.groups * -(-sizes.lines // layout.block) * -(-panels // layout.per)
    parts = min(layout.threads, units)
    low, high = clamps(code)
    top, left, reach, columns = layout.box
    target = out if out_steps.start == 0 else out.reshape(-1)[out_steps.start :]
    return [
        runtime.row(
            convolve, parts, x, weights, target, bias, residual, sizes.images, sizes.groups, sizes.lines, sizes.columns,
            sizes.cout, x_steps.image, x_steps.line, x_steps.pixel, sizes.height, sizes.width, sizes.channels,
            out_steps.image, out_steps.line, out_steps.pixel, residual_steps.image, residual_steps.line,
            residual_steps.pixel, *window.stride, top, left, reach, columns, layout.run, len(layout.offsets),
            layout.offsets, layout.at_once, layout.block, layout.per, layout.copies, counter(), workspace, layout.floats,
            parts, STRIPS[0].address, STRIPS[1].address, FINISH.address if code > 2 else 0, code, low, high,
        )
    ]  # fmt: skip


def _steps(array: np.ndarray | None, shape) -> Steps:
    """Of a contiguous NHWC array or a channel slice of one."""
    if array is None:
        return Steps(0, 0, 0)
    pixel = pitch(array)
    return Steps(shape[1] * shape[2] * pixel, shape[2] * pixel, pixel)


def plan_forward(
    x: Spec, w: Spec, b: Spec | None = None, r: Spec | None = None, *, out: Spec, stride, padding, dilation, groups: int,
    activation=None,
) -> Plan | None:  # fmt: skip
    """out[n, y, x, o] = activation(sum over taps and channels of x * w + b[o] + r), float32, any geometry."""
    if x.dtype != FLOAT32 or 0 in out.shape:
        return None
    code = activation_code(activation)
    (kh, kw, channels, cout), (images, lines, columns, _) = w.shape, out.shape
    if kh == kw == 1 and stride == (1, 1) and groups == 1 and not any(map(any, padding)):
        return plan_product(images * lines * columns, cout, channels, code, strided=True)
    window = Window(
        tuple(stride),
        tuple((i * dilation[0] - padding[0][0], j * dilation[1] - padding[1][0]) for i in range(kh) for j in range(kw)),
    )
    sizes = Sizes(images, *x.shape[1:3], channels, lines, columns, cout // groups, groups)
    layout = layout_of(sizes, window)
    if groups == 1:
        pack = pack_matrix(kh * kw * channels, cout)
    else:
        taps = np.arange(kh * kw, dtype=np.int64) * (channels * cout)
        pack = pack_weights(f"grouped{groups}.{LANES}", taps, channels, sizes.cout, groups, (sizes.cout, cout, 1))

    def bind(inputs, outputs, workspace):
        x_, w_, b_, r_ = (*inputs, None, None)[:4]
        return convolution_rows(
            x_, w_, outputs[0], b_, r_, sizes, window, layout, _steps(x_, x.shape), _steps(outputs[0], out.shape),
            _steps(r_, out.shape), code, workspace,
        )  # fmt: skip

    return Plan(
        bind, workspace=4 * layout.floats * layout.threads, packs={1: pack}, strided=True, strided_inputs=(3,),
        variant="implicit_gemm",
    )  # fmt: skip
