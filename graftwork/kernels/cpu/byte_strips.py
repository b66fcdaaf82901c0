"""The inner loops of products of bytes: tiles of int32 sums, then requantisation, compiled once and called by address.

A **byte strip** computes `rows` rows of the result by one panel of columns (two vectors of `simd.LANES`, or one):

    sums[i, j] = sum over segments s, steps k, bytes t of a[i * a_row + offsets[s] + 4 * k + t] * b[s, k, j, t]

a is uint8, b int8. A panel of b begins with the sums of its columns (int32), which take the input's zero point out of the
result, and goes on with four steps of k side by side for every column, zeros beyond the last. One instruction multiplies and
adds four bytes (`simd.BYTE_DOT`); where there is none, pairs are widened to 16 bits first. All ways are exact, so they give the
same bits. What follows the sums is float32 as in `kernels/reference/quantized.py`; instead of rounding and then clamping, a
value is clamped between whole numbers, which commutes with rounding, and rounded by adding 1.5 * 2**23.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import simd
from .simd import BYTE_DOT, BYTE_ROWS, LANES
from .strips import Leaf, _caller, _loop, _prefetch, advance, is_null
from .vectors import stack

U8, I32P, F32 = types.CPointer(types.uint8), types.CPointer(types.int32), types.CPointer(types.float32)
_I64P = types.CPointer(types.int64)
AHEAD = 2048  # bytes that few rows ask for in advance
STREAMED = 4  # with so few rows the weights are read once, at the speed of memory
PIXELS = 8  # that a depthwise tile computes side by side
_BYTE, _WORD, _INT, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES = ir.VectorType(_BYTE, LANES)
_WORDS, _FLOATS = ir.VectorType(_WORD, LANES), ir.VectorType(_FLOAT, LANES)
_SHORTS, _WIDE = ir.VectorType(ir.IntType(16), 2 * LANES), ir.VectorType(_BYTE, 4 * LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_ROUND = 12582912.0  # 1.5 * 2**23: a float32 beside it has no fraction, and its low byte is that of the whole number

# The form of a result, int32 words: the bits of factor, low, high and the residual's factor (float32); zero points of the
# output, the input and the residual; 1 for float32 results. low and high of byte results are less the zero point.
FACTOR, LOW, HIGH, OTHER_FACTOR, ZERO, X_ZERO, OTHER_ZERO, IS_FLOAT, FORM_WORDS = range(9)

# a, b, c, rows, a_row, steps, offsets, segments, c_row, columns, scale, bias, residual, residual_row, form, ahead
_STRIP = types.void(
    U8, U8, U8, types.int64, types.int64, types.int64, _I64P, types.int64, types.int64, types.int64, F32, I32P, U8, types.int64,
    I32P, U8,
)  # fmt: skip
# a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form
_DEPTHWISE = types.void(
    U8, types.int64, types.int64, U8, U8, types.int64, types.int64, types.int64, F32, I32P, I32P,
)  # fmt: skip


@intrinsic
def byte_strip(typing_context, address, a, b, c, rows, a_row, steps, offsets, segments, c_row, columns, scale, bias, residual,
               residual_row, form, ahead):  # fmt: skip
    """Call the byte strip at `address`. a_row, offsets, residual_row: bytes; c_row: bytes, whatever is stored. columns: how
    many of the panel's are stored. bias, residual: null for none. ahead: the panel read next, which is fetched meanwhile."""
    return _caller(_STRIP)


@intrinsic
def byte_window(typing_context, address, a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form):
    """Call the depthwise tile at `address`: `pixels` outputs of a line, at most PIXELS, for LANES channels."""
    return _caller(_DEPTHWISE)


# -- one multiplication --------------------------------------------------------------------------------------------------


def _splat(builder, scalar, kind):
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _WORD(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_WORD, LANES), [0] * LANES))


def _all(kind, value: int):
    return ir.Constant(kind, [value] * kind.count)


def _weights(builder, words):
    """Four weights a lane, as `_dot` wants them; to be computed once for all rows."""
    if BYTE_DOT == "vnni":
        return [builder.bitcast(words, _WIDE)]
    if BYTE_DOT == "madd":
        pairs, eight = builder.bitcast(words, _SHORTS), _all(_SHORTS, 8)
        return [builder.ashr(builder.shl(pairs, eight), eight), builder.ashr(pairs, eight)]
    top = _all(_WORDS, 24)
    return [builder.ashr(builder.shl(words, _all(_WORDS, 24 - 8 * t)), top) for t in range(4)]


def _factors(builder, words):
    """Four unsigned bytes a lane, as `_dot` wants them."""
    if BYTE_DOT == "vnni":
        return [builder.bitcast(words, _WIDE)]
    if BYTE_DOT == "madd":
        pairs = builder.bitcast(words, _SHORTS)
        return [builder.and_(pairs, _all(_SHORTS, 255)), builder.lshr(pairs, _all(_SHORTS, 8))]
    return [builder.and_(builder.lshr(words, _all(_WORDS, 8 * t)), _all(_WORDS, 255)) for t in range(4)]


def _dot(builder, total, factors, weights):
    """total + the sum of four products in each lane."""
    if BYTE_DOT == "vnni":
        name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
        kind = ir.FunctionType(_WORDS, [_WORDS, _WIDE, _WIDE])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [total, factors[0], weights[0]])
    if BYTE_DOT == "madd":
        name = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORDS, [_SHORTS, _SHORTS]), name)
        for a, b in zip(factors, weights, strict=True):
            total = builder.add(total, builder.call(function, [a, b]))
        return total
    for a, b in zip(factors, weights, strict=True):
        total = builder.add(total, builder.mul(a, b))
    return total


def _load(builder, pointer, kind, align: int = 1):
    load = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    load.align = align
    return load


def _store(builder, value, pointer, align: int = 1) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


# -- the tile --------------------------------------------------------------------------------------------------------------


def _tiles(vectors: int):
    """An intrinsic that computes the sums of one tile of `size` rows, 1 <= size <= BYTE_ROWS, into sums[row][column]."""

    @intrinsic
    def tile_of(typing_context, size, a, b, sums, a_row, steps, offsets, segments, ahead):
        signature = types.void(types.int64, U8, U8, I32P, types.int64, types.int64, _I64P, types.int64, U8)

        def code(context, builder, _, arguments):
            end = builder.append_basic_block("tiled")
            switch = builder.switch(arguments[0], end)
            kinds = [a.type for a in arguments[1:]]
            for rows in range(1, BYTE_ROWS + 1):
                case = builder.append_basic_block(f"rows{rows}")
                switch.add_case(_INT(rows), case)
                builder.position_at_end(case)
                builder.call(_tile_function(builder.module, kinds, rows, vectors), arguments[1:])
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, code

    return tile_of


def _tile_function(module, kinds, rows: int, vectors: int):
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), f"graftwork.byte_tile.{rows}x{vectors}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _emit_tile(builder, function.args, rows, vectors)
    builder.ret_void()
    return function


def _emit_tile(builder, arguments, rows: int, vectors: int) -> None:
    a, b, sums, a_row, steps, offsets, segments, ahead = arguments
    width = 4 * LANES * vectors  # bytes of a step of the panel, and of its header
    multiples = simd.row_multiples(builder, a_row, rows)
    soon = builder.gep(b, [_INT(AHEAD)]) if rows <= STREAMED else ahead
    lines = vectors if rows <= 8 else 1

    def segment(index, carried):
        b_here, soon, *totals = carried
        first = builder.gep(a, [builder.load(builder.gep(offsets, [index]))])
        ninth = builder.gep(first, [multiples[9]]) if rows > 9 else first

        def step(_, carried):
            first, ninth, b_here, soon, *totals = carried
            first = simd.opaque(builder, first)
            ninth = simd.opaque(builder, ninth) if rows > 9 else first
            for j in range(lines):
                line = builder.gep(soon, [_INT(4 * LANES * j)])
                _prefetch(builder, builder.bitcast(line, _FLOAT.as_pointer()), 1 if rows <= STREAMED else 2)
            columns = [
                _weights(builder, _load(builder, builder.gep(b_here, [_INT(4 * LANES * j)]), _WORDS, 4)) for j in range(vectors)
            ]
            results = []
            for i in range(rows):
                word = _load(builder, simd.row_address(builder, i, first, ninth, multiples), _WORD)
                factors = _factors(builder, _splat(builder, word, _WORDS))
                results += [_dot(builder, totals[i * vectors + j], factors, columns[j]) for j in range(vectors)]
            moved = [builder.gep(p, [_INT(4)]) for p in (first, ninth)]
            b_here, soon = (builder.gep(p, [_INT(n)]) for p, n in ((b_here, width), (soon, 4 * LANES * lines)))
            return [*moved, b_here, soon, *results]

        return _loop(builder, steps, [first, ninth, b_here, soon, *totals], step)[2:]

    start = [ir.Constant(_WORDS, None)] * (rows * vectors)
    totals = _loop(builder, segments, [builder.gep(b, [_INT(width)]), soon, *start], segment)[2:]
    for n, value in enumerate(totals):
        _store(builder, value, builder.gep(sums, [_INT(n * LANES)]), 4)


_tile2, _tile1 = _tiles(2), _tiles(1)


# -- after the sums ----------------------------------------------------------------------------------------------------------


def _finishes(vectors: int):
    """An intrinsic that turns rows of sums into results."""

    @intrinsic
    def finish(typing_context, sums, rows, c, c_row, columns, header, scale, bias, residual, residual_row, form):
        signature = types.void(I32P, types.int64, U8, types.int64, types.int64, U8, F32, I32P, U8, types.int64, I32P)

        def code(context, builder, _, arguments):
            _emit_finish(builder, arguments, vectors)
            return context.get_dummy_value()

        return signature, code

    return finish


def _emit_finish(builder, arguments, vectors: int) -> None:
    sums, rows, c, c_row, columns, header, scale, bias, residual, residual_row, form = arguments
    masks = [_mask(builder, columns, j) for j in range(vectors)]
    word = [builder.load(builder.gep(form, [_INT(i)])) for i in range(FORM_WORDS)]
    factor, low, high, other_factor = (_splat(builder, builder.bitcast(word[i], _FLOAT), _FLOATS) for i in range(4))
    zero, x_zero, other_zero = (_splat(builder, word[i], _WORDS) for i in (ZERO, X_ZERO, OTHER_ZERO))
    scales, starts = [], []
    given = builder.icmp_unsigned("!=", builder.ptrtoint(bias, _INT), _INT(0))
    for j in range(vectors):
        value = _masked_load(builder, builder.gep(scale, [_INT(j * LANES)]), _FLOATS, masks[j], 4)
        scales.append(builder.fmul(value, factor))
        columns_sum = _load(builder, builder.gep(header, [_INT(4 * j * LANES)]), _WORDS, 4)
        kept = builder.select(given, masks[j], ir.Constant(_MASK, None))
        biases = _masked_load(builder, builder.gep(bias, [_INT(j * LANES)]), _WORDS, kept, 4)
        starts.append(builder.sub(biases, builder.mul(columns_sum, x_zero)))

    def row(is_float: bool, has_other: bool, whole: bool):
        def body(_, carried):
            sums_at, to, other = carried
            for j in range(vectors):
                total = builder.add(_load(builder, builder.gep(sums_at, [_INT(j * LANES)]), _WORDS, 4), starts[j])
                value = builder.fmul(builder.sitofp(total, _FLOATS), scales[j])
                if has_other:
                    at = builder.gep(other, [_INT(j * LANES)])
                    bytes_ = _load(builder, at, _BYTES) if whole else _masked_load(builder, at, _BYTES, masks[j], 1)
                    difference = builder.sub(builder.zext(bytes_, _WORDS), other_zero)
                    value = builder.fadd(value, builder.fmul(builder.sitofp(difference, _FLOATS), other_factor))
                value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
                value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
                at = builder.gep(to, [_INT(j * LANES * (4 if is_float else 1))])
                if not is_float:
                    value = builder.bitcast(builder.fadd(value, _all(_FLOATS, _ROUND)), _WORDS)
                    value = builder.trunc(builder.add(value, zero), _BYTES)
                if whole:
                    _store(builder, value, at, 4 if is_float else 1)
                else:
                    _masked_store(builder, value, at, masks[j], 4 if is_float else 1)
            return [builder.gep(sums_at, [_INT(vectors * LANES)]), builder.gep(to, [c_row]), builder.gep(other, [residual_row])]

        _loop(builder, rows, [sums, c, residual], body)

    float_result = builder.icmp_signed("!=", word[IS_FLOAT], _WORD(0))
    with_other = builder.icmp_unsigned("!=", builder.ptrtoint(residual, _INT), _INT(0))
    full = builder.icmp_signed("==", columns, _INT(vectors * LANES))
    for is_float in (False, True):
        for has_other in (False, True):
            for whole in (True, False):
                chosen = builder.and_(_is(builder, float_result, is_float), _is(builder, with_other, has_other))
                with builder.if_then(builder.and_(chosen, _is(builder, full, whole))):
                    row(is_float, has_other, whole)


def _is(builder, condition, wanted: bool):
    return condition if wanted else builder.not_(condition)


def _mask(builder, columns, vector: int):
    lanes = ir.Constant(_WORDS, [vector * LANES + i for i in range(LANES)])
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(columns, _WORD), _WORDS))


def _name(kind) -> str:
    return f"v{LANES}" + {_FLOATS: "f32", _WORDS: "i32", _BYTES: "i8"}[kind]


def _masked_load(builder, pointer, kind, mask, align: int):
    pointer = builder.bitcast(pointer, kind.as_pointer())
    function = ir.FunctionType(kind, [pointer.type, _WORD, _MASK, kind])
    function = cgutils.get_or_insert_function(builder.module, function, f"llvm.masked.load.{_name(kind)}.p0")
    return builder.call(function, [pointer, _WORD(align), mask, ir.Constant(kind, None)])


def _masked_store(builder, value, pointer, mask, align: int) -> None:
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    function = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, _WORD, _MASK])
    function = cgutils.get_or_insert_function(builder.module, function, f"llvm.masked.store.{_name(value.type)}.p0")
    builder.call(function, [value, pointer, _WORD(align), mask])


_finish2, _finish1 = _finishes(2), _finishes(1)
_sums = stack(2 * LANES * max(BYTE_ROWS, PIXELS), types.int32)


def _strip2(a, b, c, rows, a_row, steps, offsets, segments, c_row, columns, scale, bias, residual, residual_row, form, ahead):
    tiles = (rows + BYTE_ROWS - 1) // BYTE_ROWS
    done, sums = 0, _sums()
    for t in range(tiles):
        size = (rows - done) // (tiles - t)
        other = residual if is_null(residual) else advance(residual, done * residual_row)
        soon = advance(ahead, t * steps * segments * 4 * LANES) if t < 2 and (t == 0 or size > 8) else b
        _tile2(size, advance(a, done * a_row), b, sums, a_row, steps, offsets, segments, soon)
        _finish2(sums, size, advance(c, done * c_row), c_row, columns, b, scale, bias, other, residual_row, form)
        done += size


def _strip1(a, b, c, rows, a_row, steps, offsets, segments, c_row, columns, scale, bias, residual, residual_row, form, ahead):
    tiles = (rows + BYTE_ROWS - 1) // BYTE_ROWS
    done, sums = 0, _sums()
    for t in range(tiles):
        size = (rows - done) // (tiles - t)
        other = residual if is_null(residual) else advance(residual, done * residual_row)
        soon = ahead if t == 0 else b
        _tile1(size, advance(a, done * a_row), b, sums, a_row, steps, offsets, segments, soon)
        _finish1(sums, size, advance(c, done * c_row), c_row, columns, b, scale, bias, other, residual_row, form)
        done += size


BYTE_STRIPS = Leaf(_strip1, _STRIP), Leaf(_strip2, _STRIP)  # by vectors - 1


# -- depthwise ---------------------------------------------------------------------------------------------------------------


def _windows(kernel: int, stride: int):
    """An intrinsic with the sums of PIXELS neighbouring outputs, LANES channels each, of a square window.

    Four neighbouring columns of the input go into one word a channel, so that a row of a 3x3 window is one multiplication.
    """
    groups = -(-kernel // 4)
    columns = (PIXELS - 1) * stride + 4 * groups  # what is read; the weights beyond the window are 0

    @intrinsic
    def window(typing_context, a, a_line, a_pixel, b, sums):
        signature = types.void(U8, types.int64, types.int64, U8, I32P)

        def code(context, builder, _, arguments):
            a, a_line, a_pixel, b, sums = arguments

            def line(_, carried):
                here, weights, *totals = carried
                read = [
                    builder.zext(_load(builder, builder.gep(here, [builder.mul(a_pixel, _INT(q))]), _BYTES), _WORDS)
                    for q in range(columns)
                ]
                used = sorted({p * stride + 4 * g for p in range(PIXELS) for g in range(groups)})
                pairs = {
                    q: builder.or_(read[q], builder.shl(read[q + 1], _all(_WORDS, 8)))
                    for q in sorted({*used, *(u + 2 for u in used)})
                }
                words = {q: builder.or_(pairs[q], builder.shl(pairs[q + 2], _all(_WORDS, 16))) for q in used}
                for g in range(groups):
                    factors = _weights(builder, _load(builder, builder.gep(weights, [_INT(4 * LANES * g)]), _WORDS, 4))
                    for p in range(PIXELS):
                        totals[p] = _dot(builder, totals[p], _factors(builder, words[p * stride + 4 * g]), factors)
                return [builder.gep(here, [a_line]), builder.gep(weights, [_INT(4 * LANES * groups)]), *totals]

            start = [a, builder.gep(b, [_INT(4 * LANES)]), *[ir.Constant(_WORDS, None)] * PIXELS]
            for p, value in enumerate(_loop(builder, _INT(kernel), start, line)[2:]):
                _store(builder, value, builder.gep(sums, [_INT(p * LANES)]), 4)
            return context.get_dummy_value()

        return signature, code

    return window


@intrinsic
def nothing(typing_context):
    """A pointer to no bytes."""

    def code(context, builder, _, arguments):
        return ir.Constant(_BYTE.as_pointer(), None)

    return U8(), code


_window3, _window3s2, _window5, _window5s2 = _windows(3, 1), _windows(3, 2), _windows(5, 1), _windows(5, 2)
_window1 = _windows(1, 1)


def _depthwise1(a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form):
    sums = _sums()
    _window1(a, a_line, a_pixel, b, sums)
    _finish1(sums, pixels, c, c_row, columns, b, scale, bias, nothing(), 0, form)


def _depthwise3(a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form):
    sums = _sums()
    _window3(a, a_line, a_pixel, b, sums)
    _finish1(sums, pixels, c, c_row, columns, b, scale, bias, nothing(), 0, form)


def _depthwise3s2(a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form):
    sums = _sums()
    _window3s2(a, a_line, a_pixel, b, sums)
    _finish1(sums, pixels, c, c_row, columns, b, scale, bias, nothing(), 0, form)


def _depthwise5(a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form):
    sums = _sums()
    _window5(a, a_line, a_pixel, b, sums)
    _finish1(sums, pixels, c, c_row, columns, b, scale, bias, nothing(), 0, form)


def _depthwise5s2(a, a_line, a_pixel, b, c, c_row, pixels, columns, scale, bias, form):
    sums = _sums()
    _window5s2(a, a_line, a_pixel, b, sums)
    _finish1(sums, pixels, c, c_row, columns, b, scale, bias, nothing(), 0, form)


BYTE_WINDOWS = {  # by side of the window and stride
    (1, 1): Leaf(_depthwise1, _DEPTHWISE),
    (3, 1): Leaf(_depthwise3, _DEPTHWISE), (3, 2): Leaf(_depthwise3s2, _DEPTHWISE),
    (5, 1): Leaf(_depthwise5, _DEPTHWISE), (5, 2): Leaf(_depthwise5s2, _DEPTHWISE),
}  # fmt: skip
