"""3x3 convolution with stride 1 by Winograd's minimal filtering, float32, NHWC.

The output is cut into m x m tiles (m = 2, 4 or 6). With n = m + 2, each n x n input patch is transformed to n * n numbers a
channel (V), which turns the convolution into n * n independent matrix products, tiles x channels times channels x output
channels, with the transformed weights U; their results go through the output transform, with bias, residual and activation.
Per output value that takes 4, 2.25 or 1.78 multiplications a channel instead of 9.

Two orders of work. "tiles": each thread takes a block of tiles through all steps, V stays in its second-level cache and the
weights are read once a block. "panels": V is computed for a large block of tiles first; then each thread takes a panel of
output channels through the products and the output transform, so that large weights are read once. In both, the products of
one panel (n * n numbers a tile for 32 output channels) never leave the second-level cache.

Layouts: V[position][tile][channel], U[panel][position][channel][PANEL], products [tile][position][PANEL] and one vector.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from .. import plan as plans
from . import atomic, runtime, scalars
from . import winograd_transforms as transforms
from .gemm import NOWHERE
from .jit import njit
from .simd import LANES, ROWS
from .strips import STRIPS, null, strip
from .vectors import PANEL, copy_vector, offset, stack, zero_vector

(_PHASE, _COUNTER, _X, _U, _B, _R, _Y, _V, _M, _ZEROS, _H, _W, _C, _OH, _OW, _COUT, _PITCH, _TOP, _LEFT, _TY, _TX, _FIRST,
 _COUNT, _STEP, _POSITION, _VSIZE, _MSIZE, _LOW, _HIGH, _CODE, _PARTS, _STRIP1, _STRIP2, _NOWHERE) = range(34)  # fmt: skip
_RESET, _TILES, _READ, _PANELS = range(4)
_CLAMPS = (None, "relu", "relu6")
ACTIVATIONS = dict.fromkeys(_CLAMPS, 0) | {"silu": 1, "hard_swish": 2, "sigmoid": 3, "hard_sigmoid": 4, "tanh": 5, "gelu": 6}
_RANGE = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
_input_patch, _output_patch, _taps, _panel_of_floats = (stack(n * LANES) for n in (64, 36, 9, 2))
_ZERO = np.zeros(PANEL, np.float32)


# -- compiled --------------------------------------------------------------------------------------------------------


@njit(nogil=True, boundscheck=False)
def _fill_patch(patch, source, row, pixel, rows, columns, y, x, height, width, lanes):
    """patch[rows, columns, LANES] = the image around (y, x), which is where `source` points; zeros outside."""
    for i in range(rows):
        for j in range(columns):
            to, at = offset(patch, (i * columns + j) * LANES), i * row + j * pixel
            inside = 0 <= y + i < height and 0 <= x + j < width
            if inside and lanes == LANES:
                copy_vector(to, offset(source, at))
            else:
                zero_vector(to)
                if inside:
                    for k in range(lanes):
                        to[k] = source[at + k]


@register_jitable
def _read(a, transform, m, v, number, row, first, last):
    """Transform channels [first, last) of tile `number` to row `row` of V."""
    x, height, width, channels = atomic.f32(a, _X), a[_H], a[_W], a[_C]
    pitch = (channels + LANES - 1) // LANES * LANES
    n, tiles, across = m + 2, a[_TY] * a[_TX], a[_TX]
    patch = _input_patch()
    image, place = number // tiles, number % tiles
    y, left = place // across * m - a[_TOP], place % across * m - a[_LEFT]
    inside = y >= 0 and left >= 0 and y + n <= height and left + n <= width
    at = ((image * height + y) * width + left) * channels
    for c in range(first, last, LANES):
        to, source = offset(v, row * pitch + c), offset(x, at + c)
        if inside and c + LANES <= channels:
            transform(source, width * channels, channels, to, a[_POSITION])
        else:
            lanes = min(channels - c, LANES)
            _fill_patch(patch, source, width * channels, channels, n, n, y, left, height, width, lanes)
            transform(patch, n * LANES, LANES, to, a[_POSITION])


@njit(nogil=True, boundscheck=False)
def _activate(y, row, pixel, rows, columns, code):
    for i in range(rows):
        for j in range(columns):
            to = offset(y, i * row + j * pixel)
            if code == 1:
                for k in range(LANES):
                    to[k] = scalars.silu(to[k])
            elif code == 2:
                for k in range(LANES):
                    to[k] = scalars.hard_swish(to[k])
            elif code == 3:
                for k in range(LANES):
                    to[k] = scalars.sigmoid(to[k])
            elif code == 4:
                for k in range(LANES):
                    to[k] = scalars.hard_sigmoid(to[k])
            elif code == 5:
                for k in range(LANES):
                    to[k] = scalars.tanh(to[k])
            else:
                for k in range(LANES):
                    to[k] = scalars.gelu(to[k])


@register_jitable
def _write(a, transform, m, products, bias, number, first):
    """Output transform of tile `number` for the channels of one panel, which begins with channel `first`."""
    y, r, zeros = atomic.f32(a, _Y), atomic.f32(a, _R), atomic.f32(a, _ZEROS)
    height, width, cout, pitch, code = a[_OH], a[_OW], a[_COUT], a[_PITCH], a[_CODE]
    low, high = np.float32(atomic.real(a, _LOW)), np.float32(atomic.real(a, _HIGH))
    tiles, across = a[_TY] * a[_TX], a[_TX]
    patch, other = _output_patch(), _output_patch()
    image, place = number // tiles, number % tiles
    top, left = place // across * m, place % across * m
    rows, columns = min(m, height - top), min(m, width - left)
    pixel = (image * height + top) * width + left
    for c in range(first, min(first + PANEL, cout), LANES):
        lanes = min(cout - c, LANES)
        to, t_row, t_pixel = offset(y, pixel * pitch + c), width * pitch, pitch
        added, r_row, r_pixel = offset(r, pixel * cout + c), width * cout, cout
        whole = rows == m and columns == m and lanes == LANES
        target = to if whole else patch
        if not whole:
            t_row, t_pixel = m * LANES, LANES
        if a[_R] == 0:
            added, r_row, r_pixel = zeros, 0, 0
        elif not whole:
            _fill_patch(other, added, r_row, r_pixel, m, m, top, left, height, width, lanes)
            added, r_row, r_pixel = other, m * LANES, LANES
        transform(
            offset(products, c - first), offset(bias, c - first), added, r_row, r_pixel, target, t_row, t_pixel, low, high
        )
        if code != 0:
            _activate(target, t_row, t_pixel, m, m, code)
        if not whole:
            for i in range(rows):
                for j in range(columns):
                    for k in range(lanes):
                        to[(i * width + j) * pitch + k] = patch[(i * m + j) * LANES + k]


@register_jitable
def _panel(a, transform, m, v, products, number, first, row, count, following):
    """Products and output transform of panel `number` for tiles first ... first + count, which begin with row `row` of V.
    following: positions from the last one to the weights that this thread reads afterwards, 0 if they are not known."""
    channels, cout, positions = a[_C], a[_COUT], (m + 2) * (m + 2)
    pitch, ldc = (channels + LANES - 1) // LANES * LANES, positions * PANEL + LANES
    start = number * PANEL
    width = PANEL if cout - start > LANES else LANES
    u, low, high = offset(atomic.f32(a, _U), start * positions * channels), np.float32(-np.inf), np.float32(np.inf)
    for k in range(positions):
        rows, weights = offset(v, k * a[_POSITION] + row * pitch), offset(u, k * channels * width)
        skip = 1 if k + 1 < positions else following
        strip(a[_STRIP2] if width == PANEL else a[_STRIP1], rows, weights, offset(products, k * PANEL), count, pitch, 1,
              channels, atomic.i64(a, _NOWHERE), 1, ldc, width, null(), null(), 0, 0, low, high,
              offset(weights, skip * channels * width))  # fmt: skip
    bias, b = _panel_of_floats(), atomic.f32(a, _B)
    for k in range(PANEL):
        bias[k] = b[start + k] if a[_B] != 0 and start + k < cout else np.float32(0)
    for i in range(count):
        _write(a, transform, m, offset(products, i * ldc), bias, first + i, start)


@register_jitable
def _run(a, part, read, write, m):
    phase, channels = a[_PHASE], a[_C]
    first, count, step, panels = a[_FIRST], a[_COUNT], a[_STEP], (a[_COUT] + PANEL - 1) // PANEL
    if phase == _RESET:
        atomic.store(a[_COUNTER], 0)
    elif phase == _READ:
        vectors = (channels + LANES - 1) // LANES
        units, parts = count * vectors, a[_PARTS]
        i, end = part * units // parts, (part + 1) * units // parts
        while i < end:
            row, vector = i // vectors, i % vectors
            last = min(vectors, vector + end - i)
            _read(a, read, m, atomic.f32(a, _V), first + row, row, vector * LANES, last * LANES)
            i += last - vector
    else:
        own = phase == _TILES  # V of each thread's own
        groups = (count + step - 1) // step
        ahead = 1 + (a[_PARTS] - 1) * (m + 2) * (m + 2) if groups == 1 else 0  # if the threads go on taking turns
        v, products = offset(atomic.f32(a, _V), part * a[_VSIZE] if own else 0), offset(atomic.f32(a, _M), part * a[_MSIZE])
        while True:
            unit = atomic.add(a[_COUNTER], 1)  # a block of tiles, or a panel and a block
            panel, block = unit // groups, unit % groups
            if panel >= (1 if own else panels):
                break
            row, size = block * step, min(step, count - block * step)
            if own:
                for i in range(size):
                    _read(a, read, m, v, first + row + i, i, 0, channels)
            for p in range(panel, panels if own else panel + 1):
                _panel(a, write, m, v, products, p, first + row, 0 if own else row, size, 1 if own else ahead)


@runtime.task
def winograd2(a, part):
    _run(a, part, transforms.input2, transforms.output2, 2)


@runtime.task
def winograd4(a, part):
    _run(a, part, transforms.input4, transforms.output4, 4)


@runtime.task
def winograd6(a, part):
    _run(a, part, transforms.input6, transforms.output6, 6)


_W_SOURCE, _W_PACKED, _W_C, _W_COUT, _W_KY, _W_KX, _W_IN, _W_OUT, _W_M, _W_PARTS = range(10)


@runtime.task
def winograd_weights(a, part):
    """U from weights with free strides; the pointer to the first tap may be the last one in memory."""
    source, u = atomic.f32(a, _W_SOURCE), atomic.f32(a, _W_PACKED)
    channels, cout, m, parts = a[_W_C], a[_W_COUT], a[_W_M], a[_W_PARTS]
    ky, kx, step_in, step_out = a[_W_KY], a[_W_KX], a[_W_IN], a[_W_OUT]
    taps, positions = _taps(), (m + 2) * (m + 2)
    for panel in range((cout + PANEL - 1) // PANEL):
        start = panel * PANEL
        width = PANEL if cout - start > LANES else LANES
        base = start * positions * channels
        for c in range(part * channels // parts, (part + 1) * channels // parts):
            for o in range(0, width, LANES):
                valid = min(max(cout - start - o, 0), LANES)
                for t in range(9):
                    at = c * step_in + (start + o) * step_out + t // 3 * ky + t % 3 * kx
                    for k in range(valid):
                        taps[t * LANES + k] = source[at + k * step_out]
                    for k in range(valid, LANES):
                        taps[t * LANES + k] = 0
                to = offset(u, base + c * width + o)
                if m == 2:
                    transforms.weights2(taps, to, channels * width)
                elif m == 4:
                    transforms.weights4(taps, to, channels * width)
                else:
                    transforms.weights6(taps, to, channels * width)


# -- planning --------------------------------------------------------------------------------------------------------

_TASKS = {2: winograd2, 4: winograd4, 6: winograd6}


class Shape(NamedTuple):
    """Of one convolution: output pixels, channels."""

    images: int
    height: int
    width: int
    channels: int
    cout: int

    def tiles(self, m: int) -> tuple[int, int]:
        return -(-self.height // m), -(-self.width // m)

    def count(self, m: int) -> int:
        return self.images * math.prod(self.tiles(m))


def supports(x: plans.Spec, w: plans.Spec, stride, padding, dilation, groups: int) -> bool:
    """Whether a convolution can be done here and is expected to be faster than implicit GEMM."""
    if not _possible(x, w, stride, padding, dilation, groups):
        return False
    return _choose(_shape(x, w, padding)) is not None


def plan(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None, m=None, order=None):
    """Plan of out = activation(x * w + b + r), or None where this method cannot be used.

    `m` (2, 4 or 6) and `order` ("tiles" or "panels") override the choice. The packed weights are those of the chosen m.
    """
    if not _possible(x, w, stride, padding, dilation, groups) or activation not in ACTIVATIONS or 0 in out.shape:
        return None
    m = m or _choose(_shape(x, w, padding)) or 4
    channels, cout = w.shape[2:]
    pack = _weights_pack(w, m, channels, cout, turned=False)
    return _plan(_shape(x, w, padding), x, pack, b, r, padding, activation, m, order)


def plan_input_grad(g, w, *, out, input_shape, stride, padding, dilation, groups, m=None, order=None):
    """Plan of the adjoint of the convolution in its input: a convolution of g with the weights turned around."""
    turned = plans.Spec((*w.shape[:2], w.shape[3], w.shape[2]), w.dtype)
    sides = tuple((2 - before, 2 - after) for before, after in padding)
    if not _possible(g, turned, stride, sides, dilation, groups) or 0 in out.shape:
        return None
    m = m or _choose(_shape(g, turned, sides)) or 4
    pack = _weights_pack(w, m, w.shape[3], w.shape[2], turned=True)
    return _plan(_shape(g, turned, sides), g, pack, None, None, sides, None, m, order)


def supports_input_grad(g, w, stride, padding, dilation, groups: int) -> bool:
    """The same question as `supports` for the input gradient; g has the output's shape."""
    turned = plans.Spec((*w.shape[:2], w.shape[3], w.shape[2]), w.dtype)
    return supports(g, turned, stride, tuple((2 - before, 2 - after) for before, after in padding), dilation, groups)


def _possible(x, w, stride, padding, dilation, groups) -> bool:
    plain = tuple(stride) == tuple(dilation) == (1, 1) and groups == 1 and w.shape[:2] == (3, 3)
    return plain and x.dtype == w.dtype == np.float32 and min(map(min, padding)) >= 0 and 0 not in (*x.shape, *w.shape)


def _shape(x, w, padding) -> Shape:
    n, h, width, c = x.shape
    return Shape(n, h + sum(padding[0]) - 2, width + sum(padding[1]) - 2, c, w.shape[3])


# Time is counted in multiply-adds of one vector of LANES values. The constants are fitted to measured layers of VGG-16,
# ResNet-50 and SqueezeNet: both transforms of one vector of channels of one position (of a tile's n * n) together, the register
# tile's losses, those of implicit GEMM, and the bytes of weights that arrive meanwhile from the last cache or from memory.
_TRANSFORMS = {4: 72, 6: 80}
_TILE_LOSS, _DIRECT_LOSS = 1.07, 1.15
_CACHED_BYTES, _MEMORY_BYTES = 14, 10
_SHARED_LOSS = 1.5  # of the transforms where V is shared by all threads instead of staying near one
_GAIN = 0.82  # of the direct time that Winograd may take to be chosen: the estimates are no better than that
_LARGE_WEIGHTS = 12 << 20  # bytes of U from which on they are read once rather than once a block


def _reading(nbytes: int) -> float:
    """Estimated time of reading weights."""
    return nbytes / (_MEMORY_BYTES if nbytes > _LARGE_WEIGHTS else _CACHED_BYTES)


def _cost(shape: Shape, m: int, threads: int) -> float:
    """Estimated time of F(m x m)."""
    n2, tiles, vectors = (m + 2) ** 2, shape.count(m), -(-shape.cout // LANES)
    products = _TILE_LOSS * tiles * n2 * shape.channels * vectors
    moved = _TRANSFORMS[m] / 2 * n2 * tiles * (-(-shape.channels // LANES) + vectors)
    weights = 4 * _packed_size(m, shape.channels, shape.cout)
    if weights > _LARGE_WEIGHTS:
        moved *= _SHARED_LOSS
    return (products + moved) / threads + _reading(weights)


def _direct_cost(shape: Shape, threads: int) -> float:
    """Estimated time of implicit GEMM."""
    taps, vectors = 9 * shape.channels, -(-shape.cout // LANES)
    products = _DIRECT_LOSS * shape.images * shape.height * shape.width * taps * vectors
    return products / threads + _reading(4 * taps * shape.cout)


def _choose(shape: Shape) -> int | None:
    """The tile size that is expected to be fastest, or None if implicit GEMM is. F(2x2) is never it: where it saves most over
    F(4x4), on the smallest images, it was measured to be no faster."""
    threads = runtime.num_threads()
    m = min(_TRANSFORMS, key=lambda m: _cost(shape, m, threads))
    return m if _cost(shape, m, threads) < _GAIN * _direct_cost(shape, threads) else None


def _packed_size(m: int, channels: int, cout: int) -> int:
    return (m + 2) ** 2 * channels * -(-cout // LANES) * LANES


def _weights_pack(w, m: int, channels: int, cout: int, turned: bool) -> plans.Pack:
    spec = plans.Spec((_packed_size(m, channels, cout),), np.dtype(np.float32))
    columns = w.shape[3]
    ky, kx, rows = 3 * w.shape[2] * columns, w.shape[2] * columns, columns
    parts = min(channels, 4 * runtime.num_threads())

    def bind(source, packed):
        first = source.reshape(-1)[2 * (ky + kx) :] if turned else source
        strides = (-ky, -kx, 1, rows) if turned else (ky, kx, rows, 1)
        return [runtime.row(winograd_weights, parts, first, packed, channels, cout, *strides, m, parts)]

    return plans.Pack(f"winograd{m}{'_turned' if turned else ''}", spec, bind)


_CACHE = 1 << 20  # bytes of second-level cache that a thread may count on
_SHARED_CACHE = 24 << 20  # bytes of V that all threads read again and again, once for each panel


def _blocks(shape: Shape, m: int, order: str | None) -> tuple[str, int, int]:
    """(order, tiles of V at once, tiles of the products at once)."""
    n2, total, threads = (m + 2) ** 2, shape.count(m), runtime.num_threads()
    pitch = -(-shape.channels // LANES) * LANES
    per_tile = 4 * n2 * (pitch + PANEL)
    fit = max(_CACHE // 2 // per_tile // ROWS, 1) * ROWS
    if order is None:
        small = 4 * _packed_size(m, shape.channels, shape.cout) <= _LARGE_WEIGHTS and total >= 8 * threads
        order = "tiles" if small else "panels"
    if order == "tiles":
        step = min(fit, max(-(-total // (2 * threads)), 4))
        step = -(-total // -(-total // step))
        return order, step, step
    block = min(total, max(_SHARED_CACHE // (4 * n2 * pitch), 56))
    block = -(-total // -(-total // block))
    panels = -(-shape.cout // PANEL)
    groups = max(-(-2 * threads // panels), -(-block * n2 * PANEL * 4 // (_CACHE // 2)))
    return order, block, -(-block // groups)


def _plan(shape: Shape, x, pack, b, r, padding, activation, m: int, order: str | None) -> plans.Plan:
    order, block, step = _blocks(shape, m, order)
    n2, threads = (m + 2) ** 2, runtime.num_threads()
    pitch = -(-shape.channels // LANES) * LANES
    position = block * pitch + LANES  # the odd vectors keep positions, and tiles' products, out of each other's cache sets
    v_size, m_size = n2 * position, step * (n2 * PANEL + LANES)
    v_bytes = 4 * v_size * (threads if order == "tiles" else 1)
    low, high = _RANGE.get(activation, (-math.inf, math.inf))
    inputs_at = {"b": 2 if b is not None else None, "r": None if r is None else 2 + (b is not None)}

    def bind(inputs, outputs, workspace):
        (y,) = outputs
        floats = workspace[64:].view(np.float32)
        v, products = floats[: v_bytes // 4], floats[v_bytes // 4 :]
        bias, residual = (inputs[i] if i is not None else None for i in inputs_at.values())

        def words(phase, first, count, step, parts):
            return (phase, workspace, inputs[0], inputs[1], bias, residual, y, v, products, _ZERO, *x.shape[1:3],
                    shape.channels, shape.height, shape.width, shape.cout, plans.pitch(y), padding[0][0], padding[1][0],
                    *shape.tiles(m), first, count, step, position, v_size, m_size, low, high, ACTIVATIONS[activation],
                    parts, STRIPS[0].address, STRIPS[1].address, NOWHERE)  # fmt: skip

        def rows(phase, parts, first, count, step):
            return runtime.row(_TASKS[m], parts, *words(phase, first, count, step, parts))

        total = shape.count(m)
        if order == "tiles":
            return [rows(_RESET, 1, 0, 0, 1), rows(_TILES, threads, 0, total, step)]
        result = []
        for first in range(0, total, block):
            count = min(block, total - first)
            result += [
                rows(_RESET, 1, 0, 0, 1),
                rows(_READ, 4 * threads, first, count, step),
                rows(_PANELS, threads, first, count, step),
            ]
        return result

    variant = f"winograd F({m}x{m}) {order}"
    in_place = () if r is None else (inputs_at["r"],)
    workspace = 64 + v_bytes + 4 * m_size * threads
    return plans.Plan(bind, workspace, {1: pack}, strided=True, in_place=in_place, variant=variant)
