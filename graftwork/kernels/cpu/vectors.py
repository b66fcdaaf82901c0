"""Vector instructions for kernels that are written out by a Python loop: values of `LANES` float32 that live in registers.

`Emitter` wraps the LLVM builder of a Numba intrinsic; what it returns are LLVM values. `address_of`, `offset` and `stack` give
compiled code the pointers that such intrinsics work on.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import LANES

PANEL = 2 * LANES  # output channels that a register tile computes at once
F32 = types.CPointer(types.float32)
INT = types.intp
_FLOAT, _DOUBLE, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


class Emitter:
    """Emits operations on vectors of `lanes` floats (or doubles, in memory always floats)."""

    def __init__(self, context, builder, lanes: int = LANES, double: bool = False):
        self.context, self.builder, self.lanes = context, builder, lanes
        self.element = _DOUBLE if double else _FLOAT
        self.vector, self.stored = ir.VectorType(self.element, lanes), ir.VectorType(_FLOAT, lanes)
        name = f"llvm.fma.v{lanes}f{64 if double else 32}"
        self._fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(self.vector, [self.vector] * 3), name)

    def constant(self, value: float):
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def index(self, value):
        """An element offset: an LLVM integer, or a Python one."""
        return _I64(value) if isinstance(value, int) else value

    def times(self, index, factor: int):
        return self.builder.mul(index, _I64(factor))

    def plus(self, *indices):
        """The sum of offsets (LLVM or Python integers)."""
        total = self.index(indices[0])
        for index in indices[1:]:
            total = self.builder.add(total, self.index(index))
        return total

    def select_index(self, condition, index):
        """`index` if `condition`, else 0."""
        return self.builder.select(condition, index, _I64(0))

    def less(self, a, b):
        return self.builder.icmp_signed("<", self.index(a), self.index(b))

    def both(self, a, b):
        return self.builder.and_(a, b)

    def pointer(self, words, i: int):
        """The pointer to floats whose address is word `i`."""
        return self.builder.inttoptr(self.builder.load(self.at(words, i)), _FLOAT.as_pointer())

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [self.index(offset)])

    def load(self, pointer, offset=0):
        """The vector at element `offset`."""
        load = self.builder.load(self.builder.bitcast(self.at(pointer, offset), self.stored.as_pointer()))
        load.align = 4
        return load if self.element is _FLOAT else self.builder.fpext(load, self.vector)

    def store(self, value, pointer, offset=0) -> None:
        if self.element is _DOUBLE:
            value = self.builder.fptrunc(value, self.stored)
        store = self.builder.store(value, self.builder.bitcast(self.at(pointer, offset), self.stored.as_pointer()))
        store.align = 4

    def splat(self, scalar):
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _I32(0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes))

    def fma(self, a, b, c):
        """a * b + c in one rounding."""
        return self.builder.call(self._fma, [a, b, c])

    def add(self, a, b):
        return self.builder.fadd(a, b)

    def subtract(self, a, b):
        return self.builder.fsub(a, b)

    def multiply(self, a, b):
        return self.builder.fmul(a, b)

    def clamp(self, value, low, high):
        """`value` within vectors `low` and `high`; NaN stays NaN."""
        value = self.builder.select(self.builder.fcmp_ordered("<", value, low), low, value)
        return self.builder.select(self.builder.fcmp_ordered(">", value, high), high, value)

    def keep(self, value, mask):
        """`value` where `mask`, an integer vector of ones, is set; else 0 (also for a NaN)."""
        bits = self.builder.and_(self.builder.bitcast(value, mask.type), mask)
        return self.builder.bitcast(bits, value.type)

    def mask(self, condition):
        """An i1 as a mask for `keep`."""
        return self.splat(self.builder.sext(condition, _I32))

    def loop(self, count, values, body) -> list:
        """`for i in range(count): values = body(i, values)` with the values in registers; `count` may be 0."""
        builder, entry = self.builder, self.builder.block
        head, inside, end = (builder.append_basic_block(name) for name in ("loop", "inside", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_I64)
        index.add_incoming(_I64(0), entry)
        carried = []
        for value in values:
            carried.append(builder.phi(value.type))
            carried[-1].add_incoming(value, entry)
        builder.cbranch(builder.icmp_signed("<", index, count), inside, end)
        builder.position_at_end(inside)
        results = body(index, carried)
        index.add_incoming(builder.add(index, _I64(1)), builder.block)
        for phi, value in zip(carried, results, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(end)
        return carried

    def weighted_sum(self, weights, values):
        """Sum of weights[k] * values[k], Python numbers times vectors; at least one weight is not 0."""
        terms = sorted(((float(w), v) for w, v in zip(weights, values, strict=True) if w), key=lambda t: t[0] != 1)
        weight, value = terms[0]
        total = value if weight == 1 else self.multiply(self.constant(weight), value)
        for weight, value in terms[1:]:
            if weight == 1:
                total = self.add(total, value)
            elif weight == -1:
                total = self.subtract(total, value)
            else:
                total = self.fma(self.constant(weight), value, total)
        return total

    def product(self, matrix, values) -> list:
        """A matrix of Python numbers times a column of vectors. Two rows that differ in some signs share their work (their
        common and their opposite terms are summed once, then added and subtracted), and so do two such columns."""
        matrix, values = self._paired_columns(matrix, list(values))
        results: list = [None] * len(matrix)
        for i, row in enumerate(matrix):
            if results[i] is not None:
                continue
            for j in range(i + 1, len(matrix)):
                same = [w if w == v else 0 for w, v in zip(row, matrix[j], strict=True)]
                opposite = [w if w == -v else 0 for w, v in zip(row, matrix[j], strict=True)]
                if any(same) and any(opposite) and all(abs(w) == abs(v) for w, v in zip(row, matrix[j], strict=True)):
                    common, other = self.weighted_sum(same, values), self.weighted_sum(opposite, values)
                    results[i], results[j] = self.add(common, other), self.subtract(common, other)
                    break
            else:
                results[i] = self.weighted_sum(row, values)
        return results

    def _paired_columns(self, matrix, values):
        """The same product with values a, b whose weights are equal or opposite in every row replaced by a + b and a - b."""
        columns = [list(column) for column in zip(*matrix, strict=True)]
        for j, first in enumerate(columns):
            for k in range(j + 1, len(columns)):
                second = columns[k]
                signs = {w == v for w, v in zip(first, second, strict=True) if w or v}
                if signs == {True, False} and all(abs(w) == abs(v) for w, v in zip(first, second, strict=True)):
                    a, b = values[j], values[k]
                    values[j], values[k] = self.add(a, b), self.subtract(a, b)
                    pairs = list(zip(first, second, strict=True))
                    columns[j], columns[k] = [w if w == v else 0 for w, v in pairs], [w if w != v else 0 for w, v in pairs]
                    break
        return [list(row) for row in zip(*columns, strict=True)], values

    def both_sides(self, matrix, grid) -> list[list]:
        """matrix @ grid @ matrix.T for a grid (list of rows) of vectors."""
        columns = [self.product(matrix, column) for column in zip(*grid, strict=True)]
        return [self.product(matrix, row) for row in zip(*columns, strict=True)]


@intrinsic
def address_of(typing_context, pointer):
    """The address of a pointer to float32, as an integer."""

    def code(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], _I64)

    return types.int64(F32), code


@intrinsic
def pointer_to(typing_context, address):
    """The pointer to float32 with this address."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], _FLOAT.as_pointer())

    return F32(types.int64), code


@intrinsic
def offset(typing_context, pointer, elements):
    """`pointer` moved by a number of elements."""

    def code(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, INT), code


@intrinsic
def copy_vector(typing_context, target, source):
    """LANES floats from `source` to `target`."""

    def code(context, builder, signature, arguments):
        e = Emitter(context, builder)
        e.store(e.load(arguments[1]), arguments[0])
        return context.get_dummy_value()

    return types.void(F32, F32), code


@intrinsic
def zero_vector(typing_context, target):
    """LANES zeros to `target`."""

    def code(context, builder, signature, arguments):
        e = Emitter(context, builder)
        e.store(e.constant(0), arguments[0])
        return context.get_dummy_value()

    return types.void(F32), code


@cache
def stack(elements: int, kind=types.float32):
    """A function () -> pointer to room for so many float32 (or int64, int32) on the stack of the calling function, aligned to
    64 bytes."""
    element = {types.float32: _FLOAT, types.int64: _I64, types.int32: _I32}[kind]

    @intrinsic
    def room(typing_context):
        def code(context, builder, signature, arguments):
            array = cgutils.alloca_once(builder, ir.ArrayType(element, elements))
            array.align = 64
            return builder.bitcast(array, element.as_pointer())

        return types.CPointer(kind)(), code

    return room
