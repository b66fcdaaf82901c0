"""The inner loops of matrix products and convolutions: strips of register tiles, compiled once and called by address.

A **strip** computes `rows` neighbouring rows of the result by one panel of columns (two vectors of `simd.LANES`, or one):

    c[i, j] = epilogue(sum over segments s, steps k of a[i * a_row + offsets[s] + k * a_step] * b[s * run + k, j])

The offsets make it a matrix product (one segment), a convolution without im2col (a segment for each row of the window, whose
columns and channels lie side by side in NHWC) and a weight gradient (segments are image rows, k walks pixels). `b` is a
packed panel: for every k, the panel's columns side by side, zeros beyond the last. Rows are cut into tiles of nearly equal
height, so that no tile is much smaller than the registers allow; there is one tile for each height.

The tasks call strips through their address, which comes in as one of the task's words: the tiles are compiled once for all
tasks, and a task that changes compiles in a moment.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic

from . import scalars, simd
from .jit import STAMP
from .runtime import Task
from .simd import LANES, ROWS

_F32, _I64 = types.CPointer(types.float32), types.CPointer(types.int64)
STREAMED = 4  # with so few rows, b is read once at the speed of memory: its next lines are asked for
AHEAD = 1024  # floats
ABREAST = 4  # panels that one row is multiplied by side by side
EAGER = 8  # tiles of at most so many rows fetch all of the next panel, higher ones half of it, so the first two do together
_FLOAT, _INT, _BOOL = ir.FloatType(), ir.IntType(64), ir.IntType(1)
_VECTOR, _MASK = ir.VectorType(_FLOAT, LANES), ir.VectorType(_BOOL, LANES)
_OPTIONS = {"boundscheck": False, "error_model": "numpy"}

# a, b, c, rows, a_row, a_step, run, offsets, segments, c_row, columns, bias, residual, residual_row, adds, low, high, ahead
_STRIP = types.void(
    _F32, _F32, _F32, types.int64, types.int64, types.int64, types.int64, _I64, types.int64, types.int64, types.int64,
    _F32, _F32, types.int64, types.int64, types.float32, types.float32, _F32,
)  # fmt: skip
# a, a_step, b, panel_step, c, run, bias, residual, adds, low, high
_ROW = types.void(
    _F32, types.int64, _F32, types.int64, _F32, types.int64, _F32, _F32, types.int64, types.float32, types.float32,
)  # fmt: skip
_FINISH = types.void(_F32, types.int64, types.int64, types.int64, types.int64)  # c, rows, columns, c_row, code


class Leaf(Task):
    """A compiled function of any signature that tasks call by its address."""

    __slots__ = ("options", "signature")

    def __init__(self, function: Callable, signature, **options):
        super().__init__(function)
        self.signature, self.options = normalize_signature(signature), _OPTIONS | options

    def _compile(self) -> CFunc:
        compiled = CFunc(self.function, self.signature, {}, dict(self.options))
        compiled.enable_caching()
        files = compiled._cache._cache_file
        files._source_stamp = (files._source_stamp, STAMP, LANES, ROWS)
        compiled.compile()
        return compiled


def _caller(signature):
    """An intrinsic (address, *arguments) that calls a Leaf of this signature."""

    def code(context, builder, _, arguments):
        kinds = [context.get_value_type(t) for t in signature.args]
        kind = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *signature.args), code


@intrinsic
def strip(typing_context, address, a, b, c, rows, a_row, a_step, run, offsets, segments, c_row, columns, bias, residual,
          residual_row, adds, low, high, ahead):  # fmt: skip
    """Call the strip at `address`. columns: how many of the panel's are stored. bias, residual: null for none. adds: 1 if c
    holds a part of the sum already. low, high: what the result is clamped to; NaN stays NaN. segments or run may be 0. ahead:
    the panel that this thread reads next, which is fetched into the second-level cache meanwhile; b if there is none."""
    return _caller(_STRIP)


@intrinsic
def one_row(typing_context, address, a, a_step, b, panel_step, c, run, bias, residual, adds, low, high):
    """Call the function at `address` that computes one row of the result by ABREAST whole panels, `panel_step` floats apart."""
    return _caller(_ROW)


@intrinsic
def finish(typing_context, address, c, rows, columns, c_row, code):
    """Call the activation pass at `address`: c[i, j] = activation(c[i, j]) over rows `c_row` elements apart."""
    return _caller(_FINISH)


@intrinsic
def advance(typing_context, pointer, count):
    """The pointer moved by `count` elements."""

    def code(context, builder, _, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), code


@intrinsic
def is_null(typing_context, pointer):
    def code(context, builder, _, arguments):
        return builder.icmp_unsigned("==", builder.ptrtoint(arguments[0], _INT), _INT(0))

    return types.boolean(pointer), code


@intrinsic
def null(typing_context):
    """A pointer to nothing."""

    def code(context, builder, _, arguments):
        return ir.Constant(_FLOAT.as_pointer(), None)

    return _F32(), code


@intrinsic
def move(typing_context, target, source, count):
    """target[:LANES] = source[:count], then zeros."""

    def code(context, builder, _, arguments):
        value = _masked_load(builder, arguments[1], _INT(0), 0, _mask(builder, arguments[2], 0))
        builder.store(value, simd._vector_pointer(builder, arguments[0], _INT(0), 0)).align = 4
        return context.get_dummy_value()

    return types.void(_F32, _F32, types.int64), code


@intrinsic
def copy(typing_context, target, source, count):
    """target[:count] = source[:count], which do not overlap."""

    def code(context, builder, _, arguments):
        target, source, count = arguments
        cgutils.raw_memcpy(builder, target, source, count, 4, align=4)
        return context.get_dummy_value()

    return types.void(_F32, _F32, types.int64), code


@intrinsic
def clear(typing_context, target, count):
    """target[:count] = 0."""

    def code(context, builder, _, arguments):
        cgutils.memset(builder, arguments[0], builder.mul(arguments[1], _INT(4)), 0)
        return context.get_dummy_value()

    return types.void(_F32, types.int64), code


@intrinsic
def turn(typing_context, target, target_row, source, source_row, rows, columns):
    """target[j, i] = source[i, j] for i < rows, j < columns, and 0 for rows <= i < LANES; columns at most LANES."""

    def code(context, builder, _, arguments):
        target, target_row, source, source_row, rows, columns = arguments
        mask, none = _mask(builder, columns, 0), ir.Constant(_MASK, None)
        block = []
        for i in range(LANES):
            valid = builder.select(builder.icmp_signed("<", _INT(i), rows), mask, none)
            block.append(_masked_load(builder, source, builder.mul(source_row, _INT(i)), 0, valid))
        for _ in range(LANES.bit_length() - 1):  # a perfect shuffle of the rows, log2(LANES) times, is the transposition
            half = LANES // 2
            block = [_interleave(builder, block[i], block[i + half], high) for i in range(half) for high in (0, 1)]
        end = builder.append_basic_block("turned")
        for j, value in enumerate(block):
            store = builder.append_basic_block(f"column{j}")
            builder.cbranch(builder.icmp_signed("<", _INT(j), columns), store, end)
            builder.position_at_end(store)
            builder.store(value, simd._vector_pointer(builder, target, builder.mul(target_row, _INT(j)), 0)).align = 4
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(_F32, types.int64, _F32, types.int64, types.int64, types.int64), code


def _interleave(builder, a, b, high: int):
    first = LANES // 2 * high
    order = [x for i in range(first, first + LANES // 2) for x in (i, LANES + i)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))


# -- register tiles ------------------------------------------------------------------------------------------------------


def _tiles(vectors: int):
    """An intrinsic that computes one tile of `size` rows, 1 <= size <= ROWS."""

    @intrinsic
    def tile_of(typing_context, size, a, b, c, a_row, a_step, run, offsets, segments, c_row, columns, bias, residual,
                residual_row, adds, low, high, ahead):  # fmt: skip
        signature = types.void(types.int64, *_STRIP.args[:3], *_STRIP.args[4:])

        def code(context, builder, _, arguments):
            end = builder.append_basic_block("tiled")
            switch = builder.switch(arguments[0], end)
            kinds = [a.type for a in arguments[1:]]
            for rows in range(1, ROWS + 1):
                case = builder.append_basic_block(f"rows{rows}")
                switch.add_case(_INT(rows), case)
                builder.position_at_end(case)
                builder.call(_tile_function(context, builder.module, kinds, rows, vectors), arguments[1:])
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, code

    return tile_of


def _tile_function(context, module, kinds, rows: int, vectors: int):
    """A function of its own for each height: small functions keep LLVM's register allocation good and fast."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), f"graftwork.tile.{rows}x{vectors}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _emit_tile(builder, function.args, rows, vectors)
    builder.ret_void()
    return function


def _emit_tile(builder, arguments, rows: int, vectors: int) -> None:
    (a, b, c, a_row, a_step, run, offsets, segments, c_row, columns, bias, residual, residual_row, adds, low, high,
     ahead) = arguments  # fmt: skip
    masks = [_mask(builder, columns, j) for j in range(vectors)]
    zero = ir.Constant(_VECTOR, None)
    starts = [zero] * vectors
    has_bias = builder.icmp_unsigned("!=", builder.ptrtoint(bias, _INT), _INT(0))

    def biases():
        return [_masked_load(builder, bias, _INT(0), j, masks[j]) for j in range(vectors)]

    has_residual = builder.icmp_unsigned("!=", builder.ptrtoint(residual, _INT), _INT(0))
    steps = [builder.mul(c_row, _INT(i)) for i in range(rows)]
    residual_steps = [builder.mul(residual_row, _INT(i)) for i in range(rows)]
    with_bias = _if(builder, has_bias, biases, starts)
    start = [value for _ in range(rows) for value in with_bias]
    sums = _sums(builder, rows, vectors, a, b, a_row, a_step, run, offsets, segments, start, ahead)

    def added(base, steps):
        def add():
            return [
                builder.fadd(sums[i * vectors + j], _masked_load(builder, base, steps[i], j, masks[j]))
                for i in range(rows) for j in range(vectors)
            ]  # fmt: skip

        return add

    sums = _if(builder, builder.icmp_signed("!=", adds, _INT(0)), added(c, steps), sums)
    sums = _if(builder, has_residual, added(residual, residual_steps), sums)
    clamped = _clamped(builder, sums, low, high)
    whole = builder.icmp_signed("==", columns, _INT(vectors * LANES))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            for n, value in enumerate(clamped):
                store = builder.store(value, simd._vector_pointer(builder, c, steps[n // vectors], n % vectors))
                store.align = 4
        with otherwise:
            for n, value in enumerate(clamped):
                _masked_store(builder, value, c, steps[n // vectors], n % vectors, masks[n % vectors])


def _sums(builder, rows, vectors, a, b, a_row, a_step, run, offsets, segments, start, ahead):
    """The sums over all segments and steps, in registers."""
    lines, cache = lines_ahead(rows, vectors), 1 if rows <= STREAMED else 2
    fma = _multiply_add(builder)
    row_bytes = builder.mul(a_row, _INT(4))
    step_bytes = builder.mul(a_step, _INT(4))
    multiples = simd.row_multiples(builder, row_bytes, rows)

    def step(first, ninth, b_here, soon, values):
        for j in range(lines):
            _prefetch(builder, builder.gep(soon, [_INT(j * LANES)]), cache)
        columns = [simd._load(builder, b_here, _INT(0), j) for j in range(vectors)]
        results = []
        for i in range(rows):
            value = simd._broadcast(builder, builder.load(simd.row_address(builder, i, first, ninth, multiples)))
            results += [builder.call(fma, [value, columns[j], values[i * vectors + j]]) for j in range(vectors)]
        return results

    def segment(index, carried):
        b_here, soon, *values = carried
        offset = builder.load(builder.gep(offsets, [index]))
        first = builder.bitcast(builder.gep(a, [offset]), simd.BYTES)
        ninth = builder.gep(first, [multiples[9]]) if rows > 9 else first

        def inner(_, carried):
            first, ninth, b_here, soon, *values = carried
            first = simd.opaque(builder, first)
            ninth = simd.opaque(builder, ninth) if rows > 9 else first
            results = step(first, ninth, b_here, soon, values)
            moved = [builder.gep(p, [step_bytes]) for p in (first, ninth)]
            soon = builder.gep(soon, [_INT(lines * LANES)])
            return [*moved, builder.gep(b_here, [_INT(vectors * LANES)]), soon, *results]

        return _loop(builder, run, [first, ninth, b_here, soon, *values], inner)[2:]

    soon = builder.gep(b, [_INT(AHEAD)]) if rows <= STREAMED else ahead
    return _loop(builder, segments, [b, soon, *start], segment)[2:]


def lines_ahead(rows: int, vectors: int) -> int:
    """Cache lines that a tile asks for at each step: as many as it reads, or half of it where it has time for two tiles."""
    return vectors if rows <= EAGER else 1


@intrinsic
def _row_of_panels(typing_context, a, a_step, b, panel_step, c, run, bias, residual, adds, low, high):
    """One row by ABREAST panels: as many streams from memory, which the processor fetches ahead better than a single one, and
    sums enough to hide how long a multiply-add takes."""

    def code(context, builder, _, arguments):
        a, a_step, b, panel_step, c, run, bias, residual, adds, low, high = arguments
        count, zero = 2 * ABREAST, ir.Constant(_VECTOR, None)
        fma = _multiply_add(builder)
        step_bytes = builder.mul(a_step, _INT(4))

        def step(_, carried):
            here, b_here, *sums = carried
            value = simd._broadcast(builder, builder.load(builder.bitcast(here, _FLOAT.as_pointer())))
            sums = [
                builder.call(fma, [value, simd._load(builder, b_here, builder.mul(panel_step, _INT(j // 2)), j % 2), sums[j]])
                for j in range(count)
            ]
            return [builder.gep(here, [step_bytes]), builder.gep(b_here, [_INT(2 * LANES)]), *sums]

        start = [builder.bitcast(a, simd.BYTES), b, *[zero] * count]
        sums = _loop(builder, run, start, step)[2:]
        partial = builder.select(builder.icmp_signed("!=", adds, _INT(0)), c, ir.Constant(_FLOAT.as_pointer(), None))
        for base in (bias, residual, partial):
            given = builder.icmp_unsigned("!=", builder.ptrtoint(base, _INT), _INT(0))

            def added(base=base, sums=sums):
                return [builder.fadd(value, simd._load(builder, base, _INT(0), j)) for j, value in enumerate(sums)]

            sums = _if(builder, given, added, sums)
        for j, value in enumerate(_clamped(builder, sums, low, high)):
            builder.store(value, simd._vector_pointer(builder, c, _INT(0), j)).align = 4
        return context.get_dummy_value()

    return _ROW, code


def _multiply_add(builder):
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")


def _clamped(builder, sums, low, high):
    """The values between low and high, where these are finite; NaN stays NaN."""
    lowest, highest = simd._broadcast(builder, low), simd._broadcast(builder, high)

    def clamp():  # comparisons that are false for NaN
        above = [builder.select(builder.fcmp_ordered(">", lowest, value), lowest, value) for value in sums]
        return [builder.select(builder.fcmp_ordered("<", highest, value), highest, value) for value in above]

    infinity = ir.Constant(_FLOAT, float("inf"))
    bounded = builder.or_(builder.fcmp_ordered("<", high, infinity), builder.fcmp_ordered("<", builder.fneg(infinity), low))
    return _if(builder, bounded, clamp, sums)


def _prefetch(builder, pointer, cache: int) -> None:
    """Ask for the cache line of a float that will be read soon, into the first or second cache; past the end of the array it
    does nothing."""
    kind = ir.FunctionType(ir.VoidType(), [_FLOAT.as_pointer(), *[ir.IntType(32)] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.IntType(32)(n) for n in (0, 4 - cache, 1))])


def _loop(builder, count, values, body):
    """`for index in range(count): values = body(index, values)` with the values in registers; count may be 0."""
    entry = builder.block
    head, end = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", count, _INT(0)), head, end)
    builder.position_at_end(head)
    index = builder.phi(_INT)
    index.add_incoming(_INT(0), entry)
    carried = []
    for value in values:
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        carried.append(phi)
    results = body(index, carried)
    following, latch = builder.add(index, _INT(1)), builder.block
    index.add_incoming(following, latch)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, latch)
    builder.cbranch(builder.icmp_signed("<", following, count), head, end)
    builder.position_at_end(end)
    merged = []
    for value, result in zip(values, results, strict=True):
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        phi.add_incoming(result, latch)
        merged.append(phi)
    return merged


def _if(builder, condition, values, otherwise):
    """`values()` where the condition holds, else `otherwise`."""
    entry = builder.block
    then, end = builder.append_basic_block("then"), builder.append_basic_block("joined")
    builder.cbranch(condition, then, end)
    builder.position_at_end(then)
    results = values()
    latch = builder.block
    builder.branch(end)
    builder.position_at_end(end)
    merged = []
    for value, result in zip(otherwise, results, strict=True):
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        phi.add_incoming(result, latch)
        merged.append(phi)
    return merged


def _mask(builder, columns, vector: int):
    """Which lanes of a vector are among the valid columns."""
    lanes = ir.Constant(ir.VectorType(_INT, LANES), [vector * LANES + i for i in range(LANES)])
    undefined = ir.Constant(ir.VectorType(_INT, LANES), ir.Undefined)
    one = builder.insert_element(undefined, columns, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.icmp_signed("<", lanes, builder.shuffle_vector(one, undefined, zeros))


def _masked_load(builder, base, offset, vector: int, mask):
    name = f"llvm.masked.load.v{LANES}f32.p0"
    pointer = simd._vector_pointer(builder, base, offset, vector)
    kind = ir.FunctionType(_VECTOR, [pointer.type, ir.IntType(32), _MASK, _VECTOR])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [pointer, ir.IntType(32)(4), mask, ir.Constant(_VECTOR, None)])


def _masked_store(builder, value, base, offset, vector: int, mask) -> None:
    name = f"llvm.masked.store.v{LANES}f32.p0"
    pointer = simd._vector_pointer(builder, base, offset, vector)
    kind = ir.FunctionType(ir.VoidType(), [_VECTOR, pointer.type, ir.IntType(32), _MASK])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(function, [value, pointer, ir.IntType(32)(4), mask])


_tile2, _tile1 = _tiles(2), _tiles(1)


def _strip2(a, b, c, rows, a_row, a_step, run, offsets, segments, c_row, columns, bias, residual, residual_row, adds, low,
            high, ahead):  # fmt: skip
    tiles = (rows + ROWS - 1) // ROWS
    done = 0
    for t in range(tiles):
        size = (rows - done) // (tiles - t)
        extra = residual if is_null(residual) else advance(residual, done * residual_row)
        soon = advance(ahead, t * run * segments * LANES) if t < 2 and (t == 0 or size > EAGER) else b
        _tile2(size, advance(a, done * a_row), b, advance(c, done * c_row), a_row, a_step, run, offsets, segments, c_row,
               columns, bias, extra, residual_row, adds, low, high, soon)  # fmt: skip
        done += size


def _strip1(a, b, c, rows, a_row, a_step, run, offsets, segments, c_row, columns, bias, residual, residual_row, adds, low,
            high, ahead):  # fmt: skip
    tiles = (rows + ROWS - 1) // ROWS
    done = 0
    for t in range(tiles):
        size = (rows - done) // (tiles - t)
        extra = residual if is_null(residual) else advance(residual, done * residual_row)
        soon = advance(ahead, t * run * segments * LANES) if t < 1 and (t == 0 or size > EAGER) else b
        _tile1(size, advance(a, done * a_row), b, advance(c, done * c_row), a_row, a_step, run, offsets, segments, c_row,
               columns, bias, extra, residual_row, adds, low, high, soon)  # fmt: skip
        done += size


def _one_row(a, a_step, b, panel_step, c, run, bias, residual, adds, low, high):
    _row_of_panels(a, a_step, b, panel_step, c, run, bias, residual, adds, low, high)


ONE_ROW = Leaf(_one_row, _ROW)
STRIPS = Leaf(_strip1, _STRIP), Leaf(_strip2, _STRIP)  # by vectors - 1


# -- activations -----------------------------------------------------------------------------------------------------------


def _finish(c, rows, columns, c_row, code):
    for i in range(rows):
        row = advance(c, i * c_row)
        if code == 3:
            for j in range(columns):
                row[j] = scalars.silu(row[j])
        elif code == 4:
            for j in range(columns):
                row[j] = scalars.hard_swish(row[j])
        elif code == 5:
            for j in range(columns):
                row[j] = scalars.sigmoid(row[j])
        elif code == 6:
            for j in range(columns):
                row[j] = scalars.hard_sigmoid(row[j])
        elif code == 7:
            for j in range(columns):
                row[j] = scalars.tanh(row[j])
        else:
            for j in range(columns):
                row[j] = scalars.gelu(row[j])


FINISH = Leaf(_finish, _FINISH, fastmath={"contract"})
