"""TMA tensor maps: what a map describes, and its encoding by the driver."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from ...errors import DeviceError
from .arguments import BYTES

# CUtensorMapDataType; int8 as bytes
_DRIVER_TYPES = {"float32": 7, "float16": 6, "bfloat16": 9, "int8": 0, "uint8": 0, "int32": 4}
_SWIZZLE_128B, _L2_256B = 3, 3


class TensorMap(NamedTuple):
    """A tensor in global memory as TMA reads or writes it: boxes of it, in shared memory with the 128-byte swizzle.

    sizes, box, steps: elements, innermost first; strides: bytes of dimensions 1 and up, multiples of 16. With `lower`
    and `upper` the map is for the im2col mode of an NHWC tensor (sizes: c, x, y, n): box is (channels, pixels), lower and upper
    the corners (x, y) of the bounding box, relative to the first and the last pixel.
    """

    array: Any
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...] = ()
    lower: tuple[int, int] | None = None
    upper: tuple[int, int] = (0, 0)

    @property
    def im2col(self) -> bool:
        return self.lower is not None

    def problem(self) -> str | None:
        """Why TMA cannot serve this map, or None."""
        if any(s % 16 or s >= 1 << 40 for s in self.strides):
            return f"strides of {self.strides} bytes are not all multiples of 16"
        if self.box[0] * BYTES[self.dtype] != 128:
            return f"a box row of {self.box[0]} {self.dtype} has not 128 bytes"
        if self.lower is not None and not all(-128 <= v <= 127 for v in (*self.lower, *self.upper)):
            return f"corners {self.lower} and {self.upper} lie outside of -128 to 127"
        return None


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(f"tensor maps are encoded by the NVIDIA driver, which is not here: {error}") from error


@functools.cache
def _driver_version() -> int:
    version = ctypes.c_int()
    _check(_driver().cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion", None)
    return version.value


def _check(status: int, function: str, spec: TensorMap | None) -> None:
    if status:
        raise DeviceError(f"{function} returned error {status}" + (f" for {spec}" if spec else ""))


@functools.lru_cache(4096)
def _encode(address: int, spec: TensorMap) -> np.ndarray:
    """128 bytes at an address that is a multiple of 64. `spec.array` is None here: kept maps must not keep arrays alive."""
    memory = np.zeros(192, np.uint8)
    start = -memory.ctypes.data % 64
    buffer = memory[start : start + 128]
    rank = len(spec.sizes)
    sizes = (ctypes.c_uint64 * rank)(*spec.sizes)
    strides = (ctypes.c_uint64 * max(rank - 1, 1))(*spec.strides)
    steps = (ctypes.c_uint32 * rank)(*(spec.steps or (1,) * rank))
    target, kind, base = ctypes.c_void_p(buffer.ctypes.data), _DRIVER_TYPES[spec.dtype], ctypes.c_void_p(address)
    if spec.lower is None:
        box = (ctypes.c_uint32 * rank)(*spec.box)
        status = _driver().cuTensorMapEncodeTiled(
            target, kind, rank, base, sizes, strides, box, steps, 0, _SWIZZLE_128B, _L2_256B, 0
        )
        _check(status, "cuTensorMapEncodeTiled", spec)
        return buffer
    lower, upper = (ctypes.c_int * 2)(*spec.lower), (ctypes.c_int * 2)(*spec.upper)
    status = _driver().cuTensorMapEncodeIm2col(
        target,
        kind,
        rank,
        base,
        sizes,
        strides,
        lower,
        upper,
        ctypes.c_uint32(spec.box[0]),
        ctypes.c_uint32(spec.box[1]),
        steps,
        0,
        _SWIZZLE_128B,
        _L2_256B,
        0,
    )
    _check(status, "cuTensorMapEncodeIm2col", spec)
    if _driver_version() <= 13010 and spec.sizes[-1] * spec.strides[-1] < 128 << 10:
        buffer.view(np.uint64)[1] &= ~np.uint64(1 << 21)  # set in error by these drivers for small im2col tensors
    return buffer


def encode(spec: TensorMap, address: int) -> np.ndarray:
    """The map of `spec` for a tensor at `address`, as 128 bytes aligned to 64; kept by address and form."""
    return _encode(address, spec._replace(array=None))
