"""Products of 8-bit integers on the GPU: int8 tensor cores with fused requantisation, few channels a group directly.

The tensor-core kernels multiply stored int8 values. Here uint8 becomes int8, a zero point is padded with and taken out of the
sum through the bias, and weights are stored with the sum's direction contiguous.
"""

from __future__ import annotations

import math
from typing import Any

from ..reference.quantized import requantisation
from . import tensor_cores
from .arguments import Requantise
from .conv import shapes_of
from .launch import Builder, View, c_type, ceil_div, dense_strides, kernel, structure, vector_width
from .mma import Finish

BLOCK = 256
FEW = 4  # channels of a group up to which a product of tiles would be mostly empty


class _Scales:
    """The attributes that all these ops share, and those of an image that is added."""

    def __init__(self, x_scale, x_zero_point, out_scale, out_zero_point, low, high, dtype, other_scale=0.0, other_zero_point=0):
        found = requantisation(x_scale, out_scale, out_zero_point, low, high, dtype)
        factor = other_scale if out_scale is None else other_scale / out_scale
        self.requantise = Requantise(found.factor, found.zero, found.low, found.high, factor, other_zero_point)
        self.zero = x_zero_point


def _signed(b: Builder, x: View, zero: int, padding=((0, 0), (0, 0))) -> View:
    """A dense image (batch, height, width, channels) as int8, with its zero point around it where there is padding."""
    (top, bottom), (left, right) = padding
    if x.dtype.name == "int8" and (zero == 0 or not any((top, bottom, left, right))):
        return x
    n, h, w, c = x.shape
    made = b.empty((n, h + top + bottom, w + left + right, c), "int8")
    lanes = vector_width(x, made, runs=[c])
    form = structure([
        ("height", "i4", h), ("width", "i4", w), ("channels", "i4", c), ("out_height", "i4", made.shape[1]),
        ("out_width", "i4", made.shape[2]), ("top", "i4", top), ("left", "i4", left), ("zero", "i4", zero),
        ("count", "u8", made.size),
    ])  # fmt: skip
    blocks = ceil_div(made.size // lanes, BLOCK)
    b.launch("quantized.cu", "signed_image", _defines(x, "i8", lanes), blocks, BLOCK, made, x, form)
    return made


def _defines(x: View, out_type: str, lanes: int = 1) -> dict:
    return {"ELEMENT": c_type(x.dtype), "OUT_TYPE": out_type, "LANES": lanes}


def _bias(b: Builder, w: View, bias: View | None, zero: int) -> View | None:
    """The bias with `zero` (of the values that are multiplied) taken out; w: (..., out), dense."""
    if zero == 0:
        return bias
    columns = w.shape[-1]
    form = structure([("rows", "i4", w.size // columns if columns else 0), ("columns", "i4", columns), ("zero", "i4", zero)])
    with b.made_of(w, bias):
        made = b.empty((columns,), "int32")
        b.launch("quantized.cu", "zero_point_bias", _defines(w, "i8"), ceil_div(columns, 32), (32, 8), made, w, bias, form)
    return made


def _dense_weights(b: Builder, *views: View | None) -> list[Any]:
    """Weights, scales and biases without gaps; None stays."""
    found: list[Any] = []
    for v in views:
        with b.made_of(v):
            found.append(None if v is None else b.dense(v))
    return found


def _stored_zero(x: View, zero: int) -> int:
    """The zero point after `_signed`."""
    return zero - 128 if x.dtype.name == "uint8" else zero


@kernel
def quantized_matmul(b: Builder, x: View, w: View, scale: View, bias: View | None = None, *, out: View, **scales) -> None:
    given = _Scales(**scales)
    x, (w, scale, bias) = b.dense(x), _dense_weights(b, w, scale, bias)
    rows, (k, n) = math.prod(x.shape[:-1]), w.shape
    if rows * n == 0:
        return
    image = x._replace(shape=(1, rows, 1, k), strides=dense_strides((1, rows, 1, k)))
    bias = _bias(b, w, bias, _stored_zero(x, given.zero))
    left = _signed(b, image, given.zero)
    with b.made_of(w):
        right = b.dense(w._replace(shape=(n, k), strides=(1, n)))
    finish = Finish(bias, None, scale, None, given.requantise)
    tensor_cores.add_gemm_int8(b, left, right, out, (rows, n, k), finish)


@kernel
def quantized_conv2d(b: Builder, x: View, w: View, scale: View, bias: View | None = None, *, out: View, stride, padding,
                     dilation, groups: int, **scales) -> None:  # fmt: skip
    _conv2d(b, x, w, scale, bias, None, out, stride, padding, dilation, groups, _Scales(**scales))


@kernel
def quantized_conv2d_add(b: Builder, x: View, w: View, scale: View, bias: View, other: View, *, out: View, stride, padding,
                         dilation, groups: int, **scales) -> None:  # fmt: skip
    _conv2d(b, x, w, scale, bias, b.dense(other), out, stride, padding, dilation, groups, _Scales(**scales))


def _conv2d(b: Builder, x, w, scale, bias, other, out, stride, padding, dilation, groups: int, given: _Scales) -> None:
    x, (w, scale, bias) = b.dense(x), _dense_weights(b, w, scale, bias)
    if out.size == 0:
        return
    if w.shape[2] <= FEW and groups > 1:
        _direct(b, x, w, scale, bias, other, out, stride, padding, dilation, groups, given)
        return
    zero = _stored_zero(x, given.zero)
    image = _signed(b, x, given.zero, padding)
    if image.shape[1:3] != x.shape[1:3]:
        padding = ((0, 0), (0, 0))
    bias = _bias(b, w, bias, zero)
    conv = shapes_of(image.shape, w.shape[:2], out.shape, stride, padding, dilation, groups)
    tensor_cores.add_conv_int8(b, image, w, out, conv, Finish(bias, other, scale, None, given.requantise))


def _direct(b, x, w, scale, bias, other, out, stride, padding, dilation, groups: int, given: _Scales) -> None:
    r = given.requantise
    form = structure([
        ("height", "i4", x.shape[1]), ("width", "i4", x.shape[2]), ("channels", "i4", x.shape[3]),
        ("group_inputs", "i4", w.shape[2]), ("group_outputs", "i4", w.shape[3] // groups), ("out_height", "i4", out.shape[1]),
        ("out_width", "i4", out.shape[2]), ("outputs", "i4", out.shape[3]), ("kernel_y", "i4", w.shape[0]),
        ("kernel_x", "i4", w.shape[1]), ("stride_y", "i4", stride[0]), ("stride_x", "i4", stride[1]),
        ("top", "i4", padding[0][0]), ("left", "i4", padding[1][0]), ("dilation_y", "i4", dilation[0]),
        ("dilation_x", "i4", dilation[1]), ("zero", "i4", given.zero), ("count", "u8", out.size),
        ("factor", "f4", r.factor), ("out_zero", "f4", r.zero), ("low", "f4", r.low), ("high", "f4", r.high),
        ("residual_factor", "f4", r.residual_factor), ("residual_zero", "f4", r.residual_zero),
    ])  # fmt: skip
    defines = _defines(x, c_type(out.dtype))
    b.launch("quantized.cu", "quantized_direct", defines, ceil_div(out.size, BLOCK), BLOCK, out, x, w, bias, scale, other, form)
