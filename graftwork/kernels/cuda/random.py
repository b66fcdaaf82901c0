"""Dropout on the GPU, with the bits of the CPU's."""

from __future__ import annotations

import numpy as np

from ...errors import KernelError
from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256


def _form(x: View, rate: float):
    scale = 1 / (1 - rate) if rate < 1 else 0
    return structure([("count", "u8", x.size), ("threshold", "u8", int(rate * 2**32)), ("scale", "f8", scale)])


@kernel
def dropout(b: Builder, x: View, state: View, *, out: tuple[View, View], rate: float) -> None:
    y, mask = out
    x = b.dense(x)
    if not state.dense:
        raise KernelError("dropout: the generator's state must be contiguous, for it is written")
    wide = 4 if x.dtype.itemsize <= 4 and vector_width(x, y) >= 4 and mask.alignment >= 4 else 1
    defines = {"ELEMENT": c_type(x.dtype), "LANES": wide}
    b.launch("random.cu", "dropout", defines, ceil_div(x.size, 4 * BLOCK), BLOCK, y, mask, x, state, _form(x, rate))
    b.launch("random.cu", "move_counter", defines, min(x.size, 1), 32, state, _form(x, rate))


@kernel
def dropout_grad(b: Builder, g: View, mask: View, *, out: View, rate: float) -> None:
    g, mask = b.dense(g), b.dense(mask)
    if mask.dtype != np.uint8:
        raise KernelError(f"dropout_grad: the mask has dtype {mask.dtype}, expected uint8")
    lanes = vector_width(g, out)
    lanes = min(lanes, mask.alignment)
    defines = {"ELEMENT": c_type(g.dtype), "LANES": lanes}
    b.launch(
        "random.cu", "dropout_grad", defines, ceil_div(ceil_div(g.size, lanes), BLOCK), BLOCK, out, g, mask, _form(g, rate)
    )
