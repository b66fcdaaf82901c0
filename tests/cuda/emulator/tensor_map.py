"""A tensor map in the emulator's own encoding (struct Map in ptx_emulated.h), which the PTX interpreter reads too."""

from __future__ import annotations

import struct


def encode(spec, address: int, item: int) -> bytes:
    """128 bytes for a graftwork.kernels.cuda.tensor_map.TensorMap over memory at `address` with elements of `item` bytes."""
    rank = len(spec.sizes)

    def fill(values, count, value=0):
        return (*values, *(value,) * (count - len(values)))

    packed = struct.pack(
        "<Q4B4II3q4H4B4b",
        address,
        rank,
        item,
        int(spec.im2col),
        1,
        *fill(spec.sizes, 4),
        0,
        *fill(spec.strides, 3),
        *fill(spec.box, 4),
        *fill(spec.steps, 4, 1),
        *(spec.lower or (0, 0)),
        *spec.upper,
    )
    return packed.ljust(128, b"\0")
