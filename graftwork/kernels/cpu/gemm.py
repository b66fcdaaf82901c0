"""Matrix products on the strips of `strips.py`: packing, cache blocking, and the work shared out between threads.

c = activation(a @ b + bias + residual), any strides of a and b, batched. After Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication" (2008): a block of a stays in the second-level cache, a panel of b in the first, and
a register tile in between. Here every thread packs the block and the panel that it is about to use; a `b` that stays the
same (weights) is packed once, beforehand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..plan import Pack, Plan, Spec, pitch
from . import atomic, caches, runtime
from ._epilogue import activation_code
from .jit import njit
from .runtime import Row
from .simd import LANES, PANEL, ROWS
from .strips import ABREAST, FINISH, ONE_ROW, STRIPS, advance, copy, finish, is_null, move, null, one_row, strip, turn

FLOAT32 = np.dtype(np.float32)
_LOW, _HIGH = np.float32(-np.inf), np.float32(np.inf)
NOWHERE = np.zeros(1, np.int64)  # the offsets of a strip with one segment


def clamps(code: int) -> tuple[float, float]:
    """What the strip clamps to for an activation; those beyond relu6 are a pass of their own."""
    return (0.0 if code in (1, 2) else -math.inf), (6.0 if code == 2 else math.inf)


# -- sharing out work ----------------------------------------------------------------------------------------------------


def counter() -> np.ndarray:
    """The words that the parts of a row claim units of work from. They must be zero between runs, and are again after one."""
    return np.zeros(32, np.int64)


@njit(nogil=True)
def claim(address):
    """The number of the next unit that nobody has taken; the caller stops when there are no more units."""
    return atomic.add(address, 1)


@njit(nogil=True)
def leave(address, parts):
    """To be called once by every part at its end; the last one clears the counter for the next run."""
    if atomic.add(address + 128, 1) == parts - 1:
        atomic.store(address + 128, 0)
        atomic.store(address, 0)


# -- packing ---------------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def pack_panel(target, source, k_step, n_step, count, columns, width):
    """target[k, :width] = source[k, :columns] and zeros, for k < count; source has strides (k_step, n_step)."""
    if n_step == 1:
        for k in range(count):
            row, to = advance(source, k * k_step), advance(target, k * width)
            for j in range(0, width, LANES):
                move(advance(to, j), advance(row, j), columns - j)
    elif k_step == 1:
        for j in range(0, width, LANES):
            for k in range(0, count, LANES):
                turn(advance(target, k * width + j), width, advance(source, j * n_step + k), n_step, columns - j,
                     min(count - k, LANES))  # fmt: skip
    else:
        for k in range(count):
            for j in range(width):
                target[k * width + j] = source[k * k_step + j * n_step] if j < columns else np.float32(0)


@runtime.task
def pack_panels(a, part):
    """Weights as panels. Words: source, target, taps, channels, columns, groups, tap offsets, tap group step, channel
    step, column step, panels. A part is a panel of a group.

    Element (tap, channel, column) of group g is source[offsets[tap] + g * group_step + channel * channel_step + column *
    column_step]; in the panel, k counts channels within taps.
    """
    source, target, offsets = atomic.f32(a, 0), atomic.f32(a, 1), atomic.i64(a, 6)
    taps, channels, columns, group_step, channel_step, column_step, panels = a[2], a[3], a[4], a[7], a[8], a[9], a[10]
    group, panel = part // panels, part % panels
    first = panel * PANEL
    width = PANEL if columns - first > LANES else LANES
    wide = (columns + LANES - 1) // LANES * LANES
    to = advance(target, taps * channels * (group * wide + first))
    for tap in range(taps):
        start = offsets[tap] + group * group_step + first * column_step
        pack_panel(advance(to, tap * channels * width), advance(source, start), channel_step, column_step, channels,
                   min(columns - first, PANEL), width)  # fmt: skip


def pack_weights(name: str, offsets: np.ndarray, channels: int, columns: int, groups: int, steps: tuple[int, int, int]) -> Pack:
    """The pack of a weight array as panels; steps: of the group, the channel and the column, in elements."""
    wide = -(-columns // LANES) * LANES
    taps = len(offsets)

    def bind(source: np.ndarray, packed: np.ndarray) -> list[Row]:
        panels = -(-columns // PANEL)
        if not packed.size:
            return []
        words = (source, packed, taps, channels, columns, groups, offsets, *steps, panels)
        return [runtime.row(pack_panels, panels * groups, *words)]

    return Pack(name, Spec((groups * taps * channels * wide,), FLOAT32), bind)


def pack_matrix(k: int, n: int) -> Pack:
    """The pack of a row-major (k, n) matrix, or of the weights of a convolution with k = kh * kw * channels."""
    return pack_weights(f"panels{LANES}", NOWHERE, k, n, 1, (0, n, 1))


# -- the product -----------------------------------------------------------------------------------------------------------


@runtime.task
def multiply(a, part):
    """One share of a batched product. Units are (batch entry, block of rows, group of panels), claimed one by one.

    Words: 0 a, 1 b, 2 c, 3 bias, 4 residual, 5 m, 6 n, 7 k, 8 a_row, 9 a_step, 10 b_step, 11 b_column (both 0: b is packed),
    12 c_row, 13 residual_row, 14 batch offsets (entries, 3), 15 entries, 16 rows a block, 17 panels a group, 18 k a block,
    19 whether to pack a, 20 counter, 21 scratch, 22 its floats a part, 23 parts, 24 and 25 strips, 26 finish, 27 activation,
    28 low, 29 high, 30 one zero, 31 one row.
    """
    m, n, k, block, group, k_block = a[5], a[6], a[7], a[16], a[17], a[18]
    blocks, panels = (m + block - 1) // block, (n + PANEL - 1) // PANEL
    groups = (panels + group - 1) // group
    while True:
        unit = claim(a[20])
        if unit >= a[15] * blocks * groups:
            break
        entry, rest = unit // (blocks * groups), unit % (blocks * groups)
        first, at = rest % blocks * block, rest // blocks * group
        rows, last = min(block, m - first), min(at + group, panels)
        for start in range(0, max(k, 1), k_block):
            _block(a, part, entry, first, rows, at, last, start, min(k_block, k - start))
    leave(a[20], a[23])


@njit(nogil=True)
def _block(a, part, entry, first, rows, at, last, start, count):
    """Rows [first, first + rows) by panels [at, last), over steps [start, start + count)."""
    n, k, c_row, code, low, high = a[6], a[7], a[12], a[27], _LOW, _HIGH
    offsets, zero = atomic.i64(a, 14), atomic.i64(a, 30)
    left, a_row, a_step = advance(atomic.f32(a, 0), offsets[3 * entry] + first * a[8] + start * a[9]), a[8], a[9]
    scratch = advance(atomic.f32(a, 21), part * a[22])
    panel = scratch
    if a[19] != 0:
        if a_row == 1 and a_step != 1:
            width = rows + LANES
            for i in range(count):
                copy(advance(scratch, i * width), advance(left, i * a_step), rows)
            left, a_step = scratch, width
            panel = advance(scratch, a[18] * (a[16] + LANES))
        else:
            width = a[18] + LANES
            for i in range(rows):
                if a_step == 1:
                    copy(advance(scratch, i * width), advance(left, i * a_row), count)
                else:
                    for j in range(count):
                        scratch[i * width + j] = left[i * a_row + j * a_step]
            left, a_row, a_step = scratch, width, 1
            panel = advance(scratch, a[16] * width)
    final = start + count >= k
    if final:
        low, high = np.float32(atomic.real(a, 28)), np.float32(atomic.real(a, 29))
    if rows == 1 and a[10] == 0 and a[11] == 0:
        at = _row_by_panels(a, left, a_step, entry, first, at, last, start, count, low, high)
    for j in range(at, last):
        columns = min(n - j * PANEL, PANEL)
        width = PANEL if columns > LANES else LANES
        right = atomic.f32(a, 1)
        if a[10] == 0 and a[11] == 0:
            weights = advance(right, offsets[3 * entry + 1])
            right = advance(weights, j * PANEL * k + start * width)
            ahead = advance(weights, _following(a, j, at, last, start, count) * PANEL)
        else:
            right = advance(right, offsets[3 * entry + 1] + j * PANEL * a[11] + start * a[10])
            pack_panel(panel, right, a[10], a[11], count, columns, width)
            right, ahead = panel, panel
        c = advance(atomic.f32(a, 2), offsets[3 * entry + 2] + first * c_row + j * PANEL)
        bias, residual = atomic.f32(a, 3), atomic.f32(a, 4)
        if start == 0 and not is_null(bias):
            bias = advance(bias, j * PANEL)
        else:
            bias = null()
        if final and not is_null(residual):
            residual = advance(residual, first * a[13] + j * PANEL)
        else:
            residual = null()
        strip(a[25] if width == PANEL else a[24], left, right, c, rows, a_row, a_step, count, zero, 1, c_row, columns,
              bias, residual, a[13], 1 if start > 0 else 0, low, high, ahead)  # fmt: skip
        if final and code > 2:
            finish(a[26], c, rows, columns, c_row, code)


@njit(nogil=True)
def _row_by_panels(a, left, a_step, entry, first, at, last, start, count, low, high):
    """One row by packed panels of [at, last), ABREAST at a time; returns the first panel that is left."""
    n, k, code, offsets = a[6], a[7], a[27], atomic.i64(a, 14)
    while at + ABREAST <= last and (at + ABREAST) * PANEL <= n:
        column = at * PANEL
        weights = advance(atomic.f32(a, 1), offsets[3 * entry + 1] + column * k + start * PANEL)
        c = advance(atomic.f32(a, 2), offsets[3 * entry + 2] + first * a[12] + column)
        bias, residual = atomic.f32(a, 3), atomic.f32(a, 4)
        final = start + count >= k
        bias = advance(bias, column) if start == 0 and not is_null(bias) else null()
        residual = advance(residual, first * a[13] + column) if final and not is_null(residual) else null()
        one_row(a[31], left, a_step, weights, k * PANEL, c, count, bias, residual, 1 if start > 0 else 0, low, high)
        if final and code > 2:
            finish(a[26], c, 1, ABREAST * PANEL, a[12], code)
        at += ABREAST
    return at


@njit(nogil=True)
def _following(a, j, at, last, start, count):
    """Where this thread is likely to read the weights after panel j of [at, last), steps [start, start + count), in units of
    PANEL: the next panel, the next steps, or where its next unit begins if the threads go on taking turns. Where that has been
    read before, j itself."""
    k = a[7]
    if j + 1 < last:
        return (j + 1) * k + start
    if start + count < k:
        return at * k + start + count
    following = at + a[23] * a[17]
    return following * k if a[5] <= a[16] and following * PANEL < a[6] else j * k + start


def blocking(m: int, n: int, k: int, entries: int, threads: int, packed: bool, pack_a: bool) -> tuple[int, int, int]:
    """(rows a block, panels a group, k a block)."""
    k_blocks = max(-(-k // K_BLOCK), 1)
    k_block = max(-(-k // k_blocks), 1)
    panels = max(-(-n // PANEL), 1)
    most = max(caches.sizes().second // 2 // (4 * k_block) // ROWS, 4) * ROWS
    wanted = 1 if threads == 1 or m * n * k * entries < SERIAL_BELOW else 6 * threads
    least = (4 if packed else 16) * ROWS
    blocks = max(-(-m // most), min(-(-wanted // entries), m // least, 64), 1)
    block = -(-m // blocks)
    if blocks > 1:
        block = -(-block // ROWS) * ROWS
    blocks = max(-(-m // block), 1)
    groups = min(max(-(-wanted // (entries * blocks)), 1), panels)
    if m == 1 and packed and wanted > 1:
        groups = -(-panels // ABREAST)
    return block, -(-panels // groups), k_block


K_BLOCK = 512
SERIAL_BELOW = 1 << 17  # multiplications that one thread is done with before sharing out has paid


def product_rows(
    a, b, c, bias, residual, shape, a_strides, b_strides, c_row, residual_row, offsets, code, workspace, layout
) -> list[Row]:
    """The row that computes a product. layout: what `layout_of` chose for the shape; b_strides (0, 0): b is packed."""
    m, n, k = shape
    (block, group, k_block), pack_a, floats, threads = layout
    entries = len(offsets)
    panels = -(-n // PANEL)
    units = entries * -(-m // block) * -(-panels // group)
    parts = min(threads, units)
    low, high = clamps(code)
    return [
        runtime.row(
            multiply, parts, a, b, c, bias, residual, m, n, k, *a_strides, *b_strides, c_row, residual_row, offsets, entries,
            block, group, k_block, pack_a, counter(), workspace, floats, parts, STRIPS[0].address, STRIPS[1].address,
            FINISH.address if code > 2 else 0, code, low, high, NOWHERE, ONE_ROW.address,
        )
    ]  # fmt: skip


def layout_of(m, n, k, entries, a_strides, packed: bool):
    """(blocking, whether to pack a, floats of scratch a part, threads) for a product."""
    threads = runtime.num_threads()
    a_row, a_step = a_strides
    conflicts = max(a_row, a_step) * 4 % 1024 == 0 or (a_row != 1 and a_step != 1)
    pack_a = int(conflicts and n > 2 * PANEL and m > ROWS)
    sizes = blocking(m, n, k, entries, threads, packed, bool(pack_a))
    block, _, k_block = sizes
    floats = 0
    if pack_a:
        floats += max(block * (k_block + LANES), k_block * (block + LANES))
    if not packed:
        floats += PANEL * (k_block + LANES)
    floats = -(-floats // 16) * 16
    return sizes, pack_a, floats, threads


# -- planners ----------------------------------------------------------------------------------------------------------------


def plan_linear(x: Spec, w: Spec, b: Spec | None = None, r: Spec | None = None, *, out: Spec, activation=None) -> Plan | None:
    """out[..., o] = activation(sum_i x[..., i] * w[i, o] + b[o] + r[..., o]), float32."""
    if x.dtype != FLOAT32 or 0 in out.shape:
        return None
    k, n = w.shape
    m = math.prod(x.shape[:-1])
    return plan_product(m, n, k, activation_code(activation), strided=len(out.shape) > 1)


def plan_product(m: int, n: int, k: int, code: int, strided: bool, pack: Pack | None = None) -> Plan:
    """Rows of k values by a packed weight matrix (k, n), with bias and residual where they are given."""
    layout = layout_of(m, n, k, 1, (k, 1), True)
    offsets = np.zeros((1, 3), np.int64)

    def bind(inputs, outputs, workspace):
        x, w, b, r = (*inputs, None, None)[:4]
        out = outputs[0]
        return product_rows(
            x, w, out, b, r, (m, n, k), (pitch(x) if m > 1 else k, 1), (0, 0), pitch(out), 0 if r is None else pitch(r),
            offsets, code, workspace, layout,
        )  # fmt: skip

    return Plan(
        bind, workspace=layout[2] * 4 * layout[3], packs={1: pack or pack_matrix(k, n)}, strided=strided,
        strided_inputs=(0, 3) if strided else (), in_place=(), variant="gemm",
    )  # fmt: skip


def plan_matmul(a: Spec, b: Spec, *, out: Spec) -> Plan | None:
    """out[..., i, j] = sum_k a[..., i, k] * b[..., k, j], leading axes broadcast, float32."""
    if a.dtype != FLOAT32 or 0 in out.shape:
        return None
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    return _plan_strided(m, n, k, (k, 1), (n, 1), _batch_offsets(a.shape, b.shape, out.shape))


def _batch_offsets(a_shape, b_shape, out_shape) -> np.ndarray:
    """(entries, 3): where every batch entry's matrices start in contiguous arrays."""
    batch = out_shape[:-2]
    entries = math.prod(batch)
    table = np.empty((entries, 3), np.int64)
    for column, shape in enumerate((a_shape, b_shape, out_shape)):
        starts = np.arange(math.prod(shape[:-2])).reshape(shape[:-2]) * (shape[-2] * shape[-1])
        table[:, column] = np.broadcast_to(starts, batch).reshape(-1)
    return table


def _plan_strided(m, n, k, a_strides, b_strides, offsets) -> Plan:
    layout = layout_of(m, n, k, len(offsets), a_strides, False)

    def bind(inputs: Any, outputs: Any, workspace: Any) -> list[Row]:
        a, b = inputs
        return product_rows(a, b, outputs[0], None, None, (m, n, k), a_strides, b_strides, n, 0, offsets, 0, workspace, layout)

    return Plan(bind, workspace=layout[2] * 4 * layout[3], variant="gemm")


def multiply_arrays(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a @ b at once, for float32 arrays of any strides and a contiguous out."""
    if 0 in b.strides[-2:]:  # repeated values: strides of 0 would say that b is packed
        b = np.ascontiguousarray(b)
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = out.shape[:-2]
    item = a.itemsize
    offsets = np.zeros((math.prod(batch), 3), np.int64)
    for column, x in enumerate((a, b, out)):
        starts = np.zeros(batch, np.int64)
        for axis, (size, stride) in enumerate(zip(x.shape[:-2], x.strides[:-2], strict=True)):
            shape = [1] * len(batch)
            shape[len(batch) - (x.ndim - 2) + axis] = size
            starts = starts + np.arange(size).reshape(shape) * (stride // item)
        offsets[:, column] = starts.reshape(-1)
    a_strides, b_strides = (tuple(s // item for s in x.strides[-2:]) for x in (a, b))
    plan = _plan_strided(m, n, k, a_strides, b_strides, offsets)
    workspace = runtime.aligned_empty(plan.workspace) if plan.workspace else None
    runtime.run(plan.bind((a, b), (out,), workspace))
