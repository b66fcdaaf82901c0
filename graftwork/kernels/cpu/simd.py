"""A register-tiled multiply-accumulate kernel, written as LLVM IR so that the vectors stay in registers.

`tile(rows, vectors)` makes a function that computes a block of `rows` x `LANES * vectors` float32 values,

    c[i, j] = clamp(init[i, j] + sum over (k2, k1) of a[i*ai + k1*ak1 + k2*ak2] * b[k1*bk1 + k2*bk2 + j])

The two nested sums and the free strides of `a` make it a matrix product, a convolution without im2col (k2 walks the window's
rows, k1 its columns and channels, which lie side by side in NHWC) and a weight gradient (k1 and k2 walk the pixels), on one
main loop. Everything is written in terms of LANES, the float32 lanes of the machine's vector registers. Tiling after Goto
and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
"""

from __future__ import annotations

from functools import cache

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

_AVX2, _AVX512 = "+avx2,+fma", "+avx2,+fma,+avx512f"
_FEATURES_OF = dict.fromkeys(("haswell", "broadwell", "skylake", "alderlake", "znver1", "znver2", "znver3"), _AVX2)
_FEATURES_OF |= dict.fromkeys(("skylake-avx512", "icelake-server", "sapphirerapids", "znver4", "znver5"), _AVX512)


def register_tile(machine: str, features: str) -> tuple[int, int]:
    """(lanes, rows) for a processor ("x86_64-unknown-linux-gnu", "+avx2,-avx512f,..."): the float32 lanes of its vector
    registers, and how many rows of two vectors of sums fill them, with one row of factors and one broadcast value beside.
    There are 32 registers with AVX-512 and on ARM, 16 with AVX2 and SSE."""
    present: set[str] = set()
    for feature in filter(None, features.split(",")):
        (present.add if feature[0] == "+" else present.discard)(feature[1:])
    if machine.startswith(("aarch64", "arm64")):
        return 4, 8
    if "avx512f" in present:
        return 16, 14
    return (8, 6) if {"avx2", "fma"} <= present else (4, 6)


def target_features() -> str:
    """Of the processor that Numba compiles for: this one, unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES says otherwise."""
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        return get_host_cpu_features()
    return f"{_FEATURES_OF.get(config.CPU_NAME, '')},{config.CPU_FEATURES or ''}"


LANES, ROWS = register_tile(binding.get_process_triple(), target_features())
PANEL = 2 * LANES  # output channels that a register tile computes side by side
binding.initialize_native_asmparser()  # for `opaque`, which is assembly without instructions
_F32 = types.CPointer(types.float32)
_INT = types.intp
_FLOAT, _I64 = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


@intrinsic
def address(typing_context, array, offset):
    """Pointer to element `offset` of a contiguous array."""

    def code(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, offset), code


@cache
def tile(rows: int, vectors: int):
    """The block kernel of a given size: (pa, pb, pc, pinit, k1, k2, ai, ak1, ak2, bk1, bk2, ldc, ldi, low, high).

    k1 and k2 are at least 1. `ldi` is the row stride of `pinit`: 0 repeats one row of biases, `pinit=pc, ldi=ldc` adds to c.
    """

    @intrinsic
    def block(typing_context, pa, pb, pc, pinit, k1, k2, ai, ak1, ak2, bk1, bk2, ldc, ldi, low, high):
        signature = types.void(_F32, _F32, _F32, _F32, *([_INT] * 9), types.float32, types.float32)
        return signature, lambda context, builder, _, arguments: _emit(context, builder, arguments, rows, vectors)

    return block


def _emit(context, builder, arguments, rows: int, vectors: int):
    pa, pb, pc, pinit, k1, k2, ai, ak1, ak2, bk1, bk2, ldc, ldi, low, high = arguments
    start = [_load(builder, pinit, builder.mul(ldi, _I64(i)), j) for i in range(rows) for j in range(vectors)]
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32")

    row_bytes = builder.mul(ai, _I64(4))
    multiples = row_multiples(builder, row_bytes, rows)

    def inner(builder, index, sums, a, b):
        first = opaque(builder, builder.bitcast(builder.gep(a, [builder.mul(index, ak1)]), BYTES))
        ninth = opaque(builder, builder.gep(first, [multiples[9]])) if rows > 9 else first
        b = builder.gep(b, [builder.mul(index, bk1)])
        columns = [_load(builder, b, _I64(0), j) for j in range(vectors)]
        results = []
        for i in range(rows):
            value = _broadcast(builder, builder.load(row_address(builder, i, first, ninth, multiples)))
            results += [builder.call(fma, [value, columns[j], sums[i * vectors + j]]) for j in range(vectors)]
        return results

    def outer(builder, index, sums):
        a = builder.gep(pa, [builder.mul(index, ak2)])
        b = builder.gep(pb, [builder.mul(index, bk2)])
        return _loop(builder, k1, sums, lambda builder, i, sums: inner(builder, i, sums, a, b))

    sums = _loop(builder, k2, start, outer)
    lowest, highest = _broadcast(builder, low), _broadcast(builder, high)
    for n, value in enumerate(sums):
        i, j = divmod(n, vectors)
        value = builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value)  # NaN stays NaN
        value = builder.select(builder.fcmp_ordered(">", value, highest), highest, value)
        store = builder.store(value, _vector_pointer(builder, pc, builder.mul(ldc, _I64(i)), j))
        store.align = 4
    return context.get_dummy_value()


# Which rows are a legal address from two pointers (to rows 0 and 9) and five multiples of the row's length: (pointer,
# multiple, scale). Left to itself, LLVM makes row i's address from row i - 1's, and that chain of additions takes longer
# than the products of a tile one vector wide.
BYTES = ir.IntType(8).as_pointer()
_ADDRESSES = {
    0: (0, 0, 1), 1: (0, 1, 1), 2: (0, 1, 2), 3: (0, 3, 1), 4: (0, 1, 4), 5: (0, 5, 1), 6: (0, 3, 2), 7: (0, 7, 1),
    8: (0, 1, 8), 9: (9, 0, 1), 10: (0, 5, 2), 11: (9, 1, 2), 12: (0, 3, 4), 13: (9, 1, 4),
}  # fmt: skip


def row_multiples(builder, row_bytes, rows: int) -> dict[int, ir.Value]:
    """Those multiples of a row's length that the addresses of `rows` rows are made of."""
    return {n: opaque(builder, builder.mul(row_bytes, _I64(n))) for n in (1, 3, 5, 7, 9) if n < rows}


def row_address(builder, row: int, first, ninth, multiples):
    """Pointer to a float in a row, from byte pointers to it in rows 0 and 9."""
    pointer, multiple, scale = _ADDRESSES[row]
    base = ninth if pointer else first
    if multiple:  # an index is scaled by the size of what it counts
        base = builder.gep(builder.bitcast(base, ir.IntType(8 * scale).as_pointer()), [multiples[multiple]])
    return builder.bitcast(base, _FLOAT.as_pointer())


def opaque(builder, value):
    """The value, of which the optimiser knows nothing any more: it leaves what is computed from it as it is."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


def _loop(builder, count, values, body):
    """`for index in range(count): values = body(builder, index, values)` with the values in registers; count >= 1."""
    entry = builder.block
    head, end = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(_I64)
    index.add_incoming(_I64(0), entry)
    carried = []
    for value in values:
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        carried.append(phi)
    results = body(builder, index, carried)
    following, latch = builder.add(index, _I64(1)), builder.block
    index.add_incoming(following, latch)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, latch)
    builder.cbranch(builder.icmp_signed("<", following, count), head, end)
    builder.position_at_end(end)
    return results


def _vector_pointer(builder, base, offset, vector: int):
    pointer = builder.gep(base, [builder.add(offset, _I64(vector * LANES))])
    return builder.bitcast(pointer, _VECTOR.as_pointer())


def _load(builder, base, offset, vector: int):
    load = builder.load(_vector_pointer(builder, base, offset, vector))
    load.align = 4
    return load


def _broadcast(builder, scalar):
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
