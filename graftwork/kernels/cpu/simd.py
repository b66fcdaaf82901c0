"""The machine's vectors and register tiles, and the pieces of LLVM IR that `strips.py` makes its inner loops of.

Everything is written in terms of LANES, the float32 lanes of the machine's vector registers. Tiling after Goto and van de
Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
"""

from __future__ import annotations

from llvmlite import binding, ir
from numba.core import config
from numba.core.codegen import get_host_cpu_features

_AVX2, _AVX512 = "+avx2,+fma", "+avx2,+fma,+avx512f"
_FEATURES_OF = dict.fromkeys(("haswell", "broadwell", "skylake", "alderlake", "znver1", "znver2", "znver3"), _AVX2)
_FEATURES_OF["skylake-avx512"] = f"{_AVX512},+avx512bw"
_FEATURES_OF["alderlake"] += ",+avxvnni"
_FEATURES_OF |= dict.fromkeys(("icelake-server", "sapphirerapids", "znver4", "znver5"), f"{_AVX512},+avx512bw,+avx512vnni")


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


def byte_tile(machine: str, features: str) -> tuple[str, int]:
    """(instruction, rows) of the tiles that multiply bytes. "vnni": one instruction multiplies four bytes and adds them up.
    "madd": two multiply-adds of pairs of 16 bits, which need registers for the widened factors. "plain": neither."""
    lanes, rows = register_tile(machine, features)
    present: set[str] = set()
    for feature in filter(None, features.split(",")):
        (present.add if feature[0] == "+" else present.discard)(feature[1:])
    if ("avx512vnni" in present and lanes == 16) or ("avxvnni" in present and lanes == 8):
        return "vnni", rows
    if lanes == 16:
        return ("madd", 12) if "avx512bw" in present else ("plain", 8)
    return ("madd", 4) if lanes == 8 else ("plain", 4)


def target_features() -> str:
    """Of the processor that Numba compiles for: this one, unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES says otherwise."""
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        return get_host_cpu_features()
    return f"{_FEATURES_OF.get(config.CPU_NAME, '')},{config.CPU_FEATURES or ''}"


LANES, ROWS = register_tile(binding.get_process_triple(), target_features())
BYTE_DOT, BYTE_ROWS = byte_tile(binding.get_process_triple(), target_features())
PANEL = 2 * LANES  # output channels that a register tile computes side by side
binding.initialize_native_asmparser()  # for `opaque`, which is assembly without instructions
_FLOAT, _I64 = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


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
