"""Images of uint8 on the GPU: changes of form, sums, tables, pooling. `reference/byte_images.py` defines every rounding.

What is elementwise is a chain of one step; tables and pooling are `byte_images.cu`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference.byte_images import bounds
from .elementwise import describe_chain
from .launch import Builder, View, ceil_div, elementwise, kernel, structure, vector_width
from .pool import BLOCK, windows_of


def _step(b: Builder, name: str, inputs: tuple[View, ...], out: View, **parameters: float) -> None:
    """A chain of one step; the parameters are those that `elementwise` lists under its name."""
    describe_chain(b, inputs, out, ((name, tuple(range(len(inputs))), tuple(sorted(parameters.items()))),))


@elementwise
def quantize(b: Builder, x: View, *, out: View, scale: float, zero_point: int) -> None:
    low, high = bounds(scale, zero_point, None, None)
    _step(b, "quantize", (x,), out, factor=1 / scale, zero=zero_point, low=low, high=high)


@elementwise
def dequantize(b: Builder, x: View, *, out: View, scale: float, zero_point: int) -> None:
    _step(b, "dequantize", (x,), out, factor=scale, zero=zero_point)


@elementwise
def quantized_add(b: Builder, x: View, y: View, *, out: View, x_scale: float, x_zero_point: int, y_scale: float,
                  y_zero_point: int, out_scale: float, out_zero_point: int, low, high) -> None:  # fmt: skip
    low, high = bounds(out_scale, out_zero_point, low, high)
    _step(b, "quantized_add", (x, y), out, x_factor=x_scale / out_scale, x_zero=x_zero_point, y_factor=y_scale / out_scale,
          y_zero=y_zero_point, zero=out_zero_point, low=low, high=high)  # fmt: skip


@kernel
def byte_table(b: Builder, x: View, table: View, *, out: View) -> None:
    x, table = b.dense(x), b.dense(table)
    lanes = vector_width(x, out)
    blocks = ceil_div(ceil_div(out.size, lanes), BLOCK)
    b.launch("byte_images.cu", "byte_table", {"LANES": lanes}, blocks, BLOCK, out, x, table, np.uint64(out.size))


def _pool(b: Builder, name: str, x: View, out: View, window, stride, padding, count_padding: bool, *more: Any) -> None:
    x = b.dense(x)
    lanes = vector_width(x, out, runs=[x.shape[3]])
    form = windows_of(x, out, window, stride, padding, out.size, count_padding)
    b.launch("byte_images.cu", name, {"LANES": lanes}, ceil_div(out.size // lanes, BLOCK), BLOCK, out, x, form, *more)


@kernel
def quantized_max_pool2d(b: Builder, x: View, *, out: View, window, stride, padding) -> None:
    _pool(b, "byte_max_pool", x, out, window, stride, padding, False)


@kernel
def quantized_avg_pool2d(b: Builder, x: View, *, out: View, window, stride, padding, count_padding: bool, x_scale: float,
                         x_zero_point: int, out_scale: float, out_zero_point: int) -> None:  # fmt: skip
    low, high = bounds(out_scale, out_zero_point, None, None)
    mean = structure([
        ("factor", "f4", x_scale / out_scale), ("x_zero", "i4", x_zero_point), ("zero", "f4", out_zero_point),
        ("low", "f4", low), ("high", "f4", high),
    ])  # fmt: skip
    _pool(b, "byte_avg_pool", x, out, window, stride, padding, count_padding, mean)
