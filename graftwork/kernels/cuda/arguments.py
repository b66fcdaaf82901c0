"""The structures that tensor-core kernels take by value, and a few derived numbers. They mirror epilogue.cuh and mma.cuh."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

# Codes of the activations that an epilogue can apply, as in kernels/cpu/_epilogue.py.
ACTIVATIONS = {
    None: 0,
    "relu": 1,
    "relu6": 2,
    "silu": 3,
    "hard_swish": 4,
    "sigmoid": 5,
    "hard_sigmoid": 6,
    "tanh": 7,
    "gelu": 8,
}

# The names in types.cuh, and sizes.
TYPES = {"float32": "float", "float16": "half_t", "bfloat16": "bf16_t", "int8": "i8", "uint8": "u8", "int32": "i32"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "int32": 4}

_I, _L, _F = ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Launch(NamedTuple):
    """One kernel launch, complete but for the stream."""

    file: str
    kernel: str
    defines: tuple[tuple[str, str], ...]
    grid: tuple[int, int, int]
    block: int
    shared: int  # bytes of dynamic shared memory
    arguments: tuple[Any, ...]  # arrays (or None) for pointers, then a structure as bytes
    cluster: int = 1


class FastDivide(ctypes.Structure):
    """Division by a constant for numerators below 2**31 (Granlund and Montgomery, 1994)."""

    _fields_ = [("divisor", ctypes.c_uint32), ("multiplier", ctypes.c_uint32), ("shift", ctypes.c_uint32)]

    @classmethod
    def by(cls, divisor: int) -> FastDivide:
        shift = (divisor - 1).bit_length()
        return cls(divisor, ((1 << 32) * ((1 << shift) - divisor)) // divisor + 1, shift)


class RowMap(ctypes.Structure):
    _fields_ = [
        ("ld", _L),
        ("plain", _I),
        ("image_height", _I),
        ("image_width", _I),
        ("start_y", _I),
        ("start_x", _I),
        ("step_y", _I),
        ("step_x", _I),
        ("height", FastDivide),
        ("width", FastDivide),
    ]


class Requantise(ctypes.Structure):
    """What int8 products are finished with: a factor for each column's scale, the output's zero point and clamp; factor and
    zero point of a uint8 residual."""

    _fields_ = [(name, _F) for name in ("factor", "zero", "low", "high", "residual_factor", "residual_zero")]


def plain_scale() -> Requantise:
    """Nothing but each column's own scale."""
    return Requantise(1.0, 0.0, -math.inf, math.inf)


class OutputForm(ctypes.Structure):
    _fields_ = [("rows", RowMap), ("wide", _I), ("requantise", Requantise)]


class GemmArguments(ctypes.Structure):
    _fields_ = [
        ("lda", _L),
        ("ldb", _L),
        ("batch_a", _L),
        ("batch_b", _L),
        ("batch_out", _L),
        ("m", _I),
        ("n", _I),
        ("k", _I),
        ("blocks", _I),
        ("form", OutputForm),
    ]


class Patches(ctypes.Structure):
    _fields_ = [
        ("height", _I),
        ("width", _I),
        ("channels", _I),
        ("pixel", _I),
        ("points", _I),
        ("taps", _I),
        ("stride_y", _I),
        ("stride_x", _I),
        ("base_y", _I),
        ("base_x", _I),
        ("step_y", _I),
        ("step_x", _I),
        ("grid_height", FastDivide),
        ("grid_width", FastDivide),
        ("tap_width", FastDivide),
        ("by_channels", FastDivide),
    ]


class Filter(ctypes.Structure):
    _fields_ = [
        ("inputs", _I),
        ("outputs", _I),
        ("row", _I),
        ("taps", _I),
        ("first", _I),
        ("step_y", _I),
        ("step_x", _I),
        ("tap_width", FastDivide),
        ("by_outputs", FastDivide),
    ]


class ConvArguments(ctypes.Structure):
    _fields_ = [
        ("group_image", _L),
        ("group_other", _L),
        ("group_out", _L),
        ("ld_other", _L),
        ("m", _I),
        ("n", _I),
        ("k", _I),
        ("blocks", _I),
        ("patches", Patches),
        ("filter", Filter),
        ("form", OutputForm),
    ]


class SplitArguments(ctypes.Structure):
    _fields_ = [("batch_out", _L), ("rows", _I), ("columns", _I), ("splits", _I), ("by_column", _I), ("form", OutputForm)]


def alignment(array: Any) -> int:
    """A power of two, at most 16, that divides the address of an array: of NumPy, or a View of launch.py. 16 for None."""
    if array is None:
        return 16
    if hasattr(array, "alignment"):
        return array.alignment
    return math.gcd(array.ctypes.data, 16)


def activation_code(activation: str | None) -> int:
    """The number an epilogue knows an activation by; ValueError where none can be fused."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} cannot be fused; expected one of {list(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def widest(itemsize: int, *multiples: int) -> int:
    """The widest copy, in bytes, that divides all of `multiples` (bytes: addresses, strides, extents)."""
    return next((w for w in (16, 8, 4) if w >= itemsize and all(m % w == 0 for m in multiples)), itemsize)
