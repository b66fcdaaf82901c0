"""Tasks that move and fill memory: strided copies, padding, gathering and scattering of rows, conversions of type."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

from . import atomic, runtime
from .jit import njit
from .planning import parts_for
from .simd import LANES
from .vector import FLOAT, load, load_some, store, store_some, vector_of

_MOST_AXES = 6


def _address_as(element: types.Type, code: ir.Type):
    @intrinsic
    def pointer(typing_context, address):
        result = types.CPointer(element)
        return result(types.int64), lambda context, builder, sig, args: builder.inttoptr(args[0], code.as_pointer())

    return pointer


floats = _address_as(types.float32, FLOAT)
doubles = _address_as(types.float64, ir.DoubleType())
bytes_at = _address_as(types.uint8, ir.IntType(8))
_shorts = _address_as(types.uint16, ir.IntType(16))
_words = _address_as(types.uint32, ir.IntType(32))
_longs = _address_as(types.uint64, ir.IntType(64))


@intrinsic
def copy_bytes(typing_context, target, source, count):
    """memcpy between addresses."""

    def code(context, builder, sig, args):
        byte = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(v, byte) for v in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], ir.Constant(ir.IntType(64), 1))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@njit(nogil=True)
def copy_short(target, source, count):
    """The same, quicker for a few hundred bytes in whole floats."""
    if count > 2048 or count % 4 != 0:
        copy_bytes(target, source, count)
        return
    t, s, n = floats(target), floats(source), count // 4
    for i in range(0, n, LANES):
        store_some(t, i, load_some(s, i, n - i), n - i)


@intrinsic
def _turn_square(typing_context, target, source, target_stride, source_stride):
    """LANES by LANES items of 4 bytes: target[i][j] = source[j][i]; rows lie strides (bytes) apart.

    Exchanging the off-diagonal quarters of ever smaller squares (Eklundh, 1972), a shuffle for each row and size.
    """

    def code(context, builder, sig, args):
        target, source, target_stride, source_stride = args
        kind = vector_of(FLOAT)
        rows = []
        for i in range(LANES):
            address = builder.add(source, builder.mul(source_stride, ir.Constant(ir.IntType(64), i)))
            loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
            loaded.align = 4
            rows.append(loaded)
        bit = 1
        while bit < LANES:
            turned = list(rows)
            for i in range(LANES):
                if not i & bit:
                    j = i | bit
                    upper = [lane if not lane & bit else LANES + (lane ^ bit) for lane in range(LANES)]
                    lower = [lane | bit if not lane & bit else LANES + lane for lane in range(LANES)]
                    for k, lanes in ((i, upper), (j, lower)):
                        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
                        turned[k] = builder.shuffle_vector(rows[i], rows[j], mask)
            rows = turned
            bit *= 2
        for i in range(LANES):
            address = builder.add(target, builder.mul(target_stride, ir.Constant(ir.IntType(64), i)))
            stored = builder.store(rows[i], builder.inttoptr(address, kind.as_pointer()))
            stored.align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


@njit(nogil=True)
def fill_items(target, count, item, bits):
    """`count` items of `item` bytes, each the low bytes of `bits`."""
    if item == 4:
        p4, value = _words(target), np.uint32(bits & 0xFFFFFFFF)
        for i in range(count):
            p4[i] = value
    elif item == 8:
        p8 = _longs(target)
        for i in range(count):
            p8[i] = np.uint64(bits)
    elif item == 2:
        p2 = _shorts(target)
        for i in range(count):
            p2[i] = np.uint16(bits & 0xFFFF)
    else:
        p1 = bytes_at(target)
        for i in range(count):
            p1[i] = np.uint8(bits & 0xFF)


@njit(nogil=True)
def _copy_items(target, source, count, target_stride, source_stride, item):
    """One row of items with strides in bytes."""
    if item == 4:
        for i in range(count):
            _words(target + i * target_stride)[0] = _words(source + i * source_stride)[0]
    elif item == 8:
        for i in range(count):
            _longs(target + i * target_stride)[0] = _longs(source + i * source_stride)[0]
    elif item == 2:
        for i in range(count):
            _shorts(target + i * target_stride)[0] = _shorts(source + i * source_stride)[0]
    else:
        for i in range(count):
            bytes_at(target + i * target_stride)[0] = bytes_at(source + i * source_stride)[0]


@runtime.task
def strided_copy(a, part):
    """Words: parts, bytes an item, source, target, six sizes, six source strides, six target strides (bytes).

    The last two axes are copied row by row, or, where the source runs along the last but one, in squares of LANES.
    """
    parts, item, source, target = a[0], a[1], a[2], a[3]
    d0, d1, d2, d3, height, width = a[4], a[5], a[6], a[7], a[8], a[9]
    bands = (height + LANES - 1) // LANES
    count = d0 * d1 * d2 * d3 * bands
    plain = a[15] == item and a[21] == item
    crossed = not plain and a[21] == item and a[14] == item
    for k in range(count * part // parts, count * (part + 1) // parts):
        band, rest = k % bands, k // bands
        i3, rest = rest % d3, rest // d3
        i2, rest = rest % d2, rest // d2
        i1, i0 = rest % d1, rest // d1
        s = source + i0 * a[10] + i1 * a[11] + i2 * a[12] + i3 * a[13]
        t = target + i0 * a[16] + i1 * a[17] + i2 * a[18] + i3 * a[19]
        first, last = band * LANES, min((band + 1) * LANES, height)
        if crossed:
            for column in range(0, width, LANES):
                n = min(LANES, width - column)
                if item == 4 and n == LANES and last - first == LANES:
                    _turn_square(t + first * a[20] + column * 4, s + first * 4 + column * a[15], a[20], a[15])
                    continue
                for row in range(first, last):
                    _copy_items(t + row * a[20] + column * item, s + row * a[14] + column * a[15], n, item, a[15], item)
            continue
        for row in range(first, last):
            if plain:
                copy_short(t + row * a[20], s + row * a[14], width * item)
            else:
                _copy_items(t + row * a[20], s + row * a[14], width, a[21], a[15], item)


def copy_row(source: np.ndarray, target: np.ndarray) -> runtime.Row | None:
    """A row that copies `source`, in any layout, to `target` of the same shape, in any layout; None for too many axes."""
    axes = [(n, s, t) for n, s, t in zip(target.shape, source.strides, target.strides, strict=True) if n != 1]
    merged: list[tuple[int, int, int]] = []
    for n, s, t in axes:
        if merged and merged[-1][1] == n * s and merged[-1][2] == n * t:
            merged[-1] = (merged[-1][0] * n, s, t)
        else:
            merged.append((n, s, t))
    item = target.itemsize
    if not merged or (len(merged) == 1 and merged[0][1:] == (item, item)):
        parts = parts_for(target.size, target.size)
        return runtime.row(copy_run, parts, parts, target.nbytes, source, target)
    merged = [(1, 0, 0)] * (2 - len(merged)) + merged
    if merged[-1][2] == item and merged[-1][1] != item:  # a transposition: bring the source's fast axis next to the target's
        fast = next((i for i, (_, s, _) in enumerate(merged) if s == item), None)
        if fast is not None:
            axis = merged.pop(fast)
            merged.insert(len(merged) - 1, axis)
    if len(merged) > _MOST_AXES:
        return None
    merged = [(1, 0, 0)] * (_MOST_AXES - len(merged)) + merged
    sizes, sources, targets = zip(*merged, strict=True)
    pieces = math.prod(sizes[:4]) * -(-sizes[4] // LANES)
    parts = parts_for(pieces, target.size)
    return runtime.row(strided_copy, parts, parts, item, source, target, *sizes, *sources, *targets)


@runtime.task
def copy_run(a, part):
    """Words: parts, bytes, source, target."""
    first, last = a[1] * part // a[0], a[1] * (part + 1) // a[0]
    copy_bytes(a[3] + first, a[2] + first, last - first)


@runtime.task
def fill_memory(a, part):
    """Words: parts, bytes an item, bits of the value, count, target."""
    first, last = a[3] * part // a[0], a[3] * (part + 1) // a[0]
    fill_items(a[4] + first * a[1], last - first, a[1], a[2])


def fill_row(target: np.ndarray, value: float = 0) -> runtime.Row:
    """A row that sets a contiguous array to one value."""
    parts = parts_for(target.size, target.size)
    return runtime.row(fill_memory, parts, parts, target.itemsize, bits_of(value, target.dtype), target.size, target)


def bits_of(value: float, dtype: np.dtype) -> int:
    """The bits of a value of a dtype, as an integer."""
    return int(np.array(value, dtype).view(f"u{dtype.itemsize}").astype(np.uint64).view(np.int64))


@runtime.task
def pad_memory(a, part):
    """Words: parts, bytes an item, bits of the value, source, target, four source sizes, four counts before, four after.

    Sizes are in items; the last axis is contiguous in both.
    """
    parts, item, bits, source, target = a[0], a[1], a[2], a[3], a[4]
    n0, n1, n2, width = a[5], a[6], a[7], a[8]
    m0, m1, m2 = n0 + a[9] + a[13], n1 + a[10] + a[14], n2 + a[11] + a[15]
    before, after = a[12], a[16]
    long = width + before + after
    count = m0 * m1 * m2
    for k in range(count * part // parts, count * (part + 1) // parts):
        i2, rest = k % m2 - a[11], k // m2
        i1, i0 = rest % m1 - a[10], rest // m1 - a[9]
        t = target + k * long * item
        if i0 < 0 or i0 >= n0 or i1 < 0 or i1 >= n1 or i2 < 0 or i2 >= n2:
            fill_items(t, long, item, bits)
        else:
            fill_items(t, before, item, bits)
            copy_bytes(t + before * item, source + ((i0 * n1 + i1) * n2 + i2) * width * item, width * item)
            fill_items(t + (before + width) * item, after, item, bits)


def pad_geometry(shape: tuple[int, ...], widths: tuple) -> tuple[list[int], list[int], list[int]] | None:
    """Sizes, counts before and after over four axes, unpadded ones merged with the one before; None if four do not do."""
    sizes, before, after = [], [], []
    for n, (b, e) in zip(shape, widths, strict=True):
        if sizes and b == e == 0:
            sizes[-1], before[-1], after[-1] = sizes[-1] * n, before[-1] * n, after[-1] * n
        else:
            sizes.append(n)
            before.append(b)
            after.append(e)
    if len(sizes) > 4:
        return None
    lead = 4 - len(sizes)
    return [1] * lead + sizes, [0] * lead + before, [0] * lead + after


@njit(nogil=True)
def index_at(address, i, item):
    """An index of 8, 4 or (unsigned) 1 byte."""
    if item == 8:
        return np.int64(_longs(address)[i])
    if item == 4:
        return np.int64(np.int32(_words(address)[i]))
    return np.int64(bytes_at(address)[i])


@runtime.task
def gather_rows(a, part):
    """Words: parts, outer, indices, size, bytes a row, bytes an index, source, indices' address, target.

    An index out of range gives a row of set bits, which are NaN in floating arrays.
    """
    parts, outer, count, size, row, item = a[0], a[1], a[2], a[3], a[4], a[5]
    for k in range(outer * count * part // parts, outer * count * (part + 1) // parts):
        o, i = k // count, k % count
        at = index_at(a[7], i, item)
        at = at + size if at < 0 else at
        if at < 0 or at >= size:
            fill_items(a[8] + k * row, row, 1, 0xFF)
        else:
            copy_bytes(a[8] + k * row, a[6] + (o * size + at) * row, row)


@runtime.task
def scatter_rows(a, part):
    """Words: parts, tiles, outer, indices, size, columns, bytes an index, float32 source, indices' address, target.

    A part owns a tile of the columns of an outer entry, so none races and the order of addition is that of the indices.
    """
    parts, tiles, outer, count, size, columns, item = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
    source, target = atomic.f32(a, 7), atomic.f32(a, 9)
    for k in range(outer * tiles * part // parts, outer * tiles * (part + 1) // parts):
        o, tile = k // tiles, k % tiles
        first, last = columns * tile // tiles, columns * (tile + 1) // tiles
        width = last - first
        for i in range(size):
            fill_items(a[9] + 4 * ((o * size + i) * columns + first), width, 4, 0)
        for i in range(count):
            at = index_at(a[8], i, item)
            at = at + size if at < 0 else at
            if at >= 0 and at < size:
                _add_row(source, (o * count + i) * columns + first, target, (o * size + at) * columns + first, width)


@njit(nogil=True)
def _add_row(source, s, target, t, width):
    for j in range(0, width - LANES + 1, LANES):
        store(target, t + j, load(target, t + j) + load(source, s + j))
    left = width % LANES
    if left:
        j = width - left
        store_some(target, t + j, load_some(target, t + j, left) + load_some(source, s + j, left), left)


@runtime.task
def one_hot_rows(a, part):
    """Words: parts, count, depth, bytes an index, bytes an item, bits of one, indices' address, target."""
    parts, count, depth, item = a[0], a[1], a[2], a[4]
    for i in range(count * part // parts, count * (part + 1) // parts):
        fill_items(a[7] + i * depth * item, depth, item, 0)
        at = index_at(a[6], i, a[3])
        if at >= 0 and at < depth:
            fill_items(a[7] + (i * depth + at) * item, 1, item, a[5])


_KINDS = {"float32": 0, "float64": 1, "int32": 2, "int64": 3, "uint8": 4, "bool": 5}


@runtime.task
def convert(a, part):
    """Words: parts, count, source kind, target kind, source, target; one of the kinds is float32 (0)."""
    first, last = a[1] * part // a[0], a[1] * (part + 1) // a[0]
    given, wanted = a[2], a[3]
    if given == 0:
        x = atomic.f32(a, 4)
        if wanted == 1:
            y1 = atomic.f64(a, 5)
            for i in range(first, last):
                y1[i] = np.float64(x[i])
        elif wanted == 2:
            y2 = atomic.i32(a, 5)
            for i in range(first, last):
                y2[i] = np.int32(x[i])
        elif wanted == 3:
            y3 = atomic.i64(a, 5)
            for i in range(first, last):
                y3[i] = np.int64(x[i])
        elif wanted == 4:
            y4 = atomic.u8(a, 5)
            for i in range(first, last):
                y4[i] = np.uint8(np.int32(x[i]))
        return
    y = atomic.f32(a, 5)
    if given == 1:
        x1 = atomic.f64(a, 4)
        for i in range(first, last):
            y[i] = np.float32(x1[i])
    elif given == 2:
        x2 = atomic.i32(a, 4)
        for i in range(first, last):
            y[i] = np.float32(x2[i])
    elif given == 3:
        x3 = atomic.i64(a, 4)
        for i in range(first, last):
            y[i] = np.float32(x3[i])
    else:
        x4 = atomic.u8(a, 4)
        for i in range(first, last):
            y[i] = np.float32(x4[i])


def convert_kinds(given: np.dtype, wanted: np.dtype) -> tuple[int, int] | None:
    """Numbers of two dtypes for `convert`, or None where it has no loop for them."""
    kinds = _KINDS.get(given.name, -1), _KINDS.get(wanted.name, -1)
    return kinds if -1 not in kinds and 0 in kinds and kinds != (0, 5) else None
