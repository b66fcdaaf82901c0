"""8-bit numbers with scales: to and from, and products of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.ops.byte_images import QUANTIZE
from ....nn.tensor import FLOATS, Tensor
from .convolution import convolve, geometry
from .products import product
from .table import Call, Value, fixed, operator


def _aligned(c: Call, x: Tensor, vector: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point in a shape that broadcasts against x: one number, one an entry along the axis, or one a block."""
    if block:
        tall = F.gather(vector, fixed(vector, np.arange(x.shape[axis]) // block, np.int64), axis)
        if tall.shape != x.shape:
            raise c.error(f"a scale of shape {vector.shape} in blocks of {block} for an input of {x.shape}")
        return tall
    if vector.size == 1:
        return F.reshape(vector, ())
    if vector.ndim != 1 or vector.shape[0] != x.shape[axis]:
        raise c.error(f"a scale of shape {vector.shape} for axis {axis} of an input of {x.shape}")
    return F.reshape(vector, tuple(-1 if i == axis else 1 for i in range(x.ndim)))


def _axis(c: Call, x: Tensor, scale: Tensor, block: int) -> int:
    axis = c.attr("axis", 1)
    return axis % x.ndim if scale.size > 1 or block else 0


def _stored(x: Tensor, dtype: Any) -> Tensor:
    """Rounded values, limited to what the type holds."""
    limits = np.iinfo(dtype)
    return F.clip(x, float(limits.min), float(limits.max)).astype(dtype)


@operator("QuantizeLinear")
def quantize_linear(c: Call) -> Any:
    scale, zero = c.x(1), c.optional(2)
    dtype = zero.dtype if zero is not None else c.dtype("output_dtype", "uint8")
    for name in ("output_dtype", "saturate", "precision"):
        c.attr(name)
    block = c.attr("block_size", 0)
    known = c.value(1).known, c.value(2).known if c.has(2) else np.zeros((), dtype)
    if _one_byte_form(c, dtype, *known):  # one kernel, and bytes that kernels for bytes take
        form = {"scale": c.number(1), "zero_point": c.number(2, 0)}
        c.attr("axis")
        return c.elementwise(lambda x: QUANTIZE(x, **form), 0)
    x = c.x()
    axis = _axis(c, x, scale, block)
    y = F.round(x.astype("float32") / _aligned(c, x, scale.astype("float32"), axis, block))
    if zero is not None:
        y = y + _aligned(c, x, zero.astype("float32"), axis, block)
    return _stored(y, dtype)


def _one_byte_form(c: Call, dtype: Any, scale: Any, zero: Any) -> bool:
    return (dtype == np.uint8 and scale is not None and zero is not None and scale.size == 1
            and c.value().known is None and scale.dtype == np.float32 and float(scale.reshape(-1)[0]) > 0)  # fmt: skip


@operator("DequantizeLinear")
def dequantize_linear(c: Call) -> Any:
    scale, zero = c.x(1), c.optional(2)
    block, out = c.attr("block_size", 0), c.dtype("output_dtype") or scale.dtype
    if c.value().is_image and scale.size == 1:
        c.attr("axis")
        return Value(image=_real(c.image(), F.reshape(scale, ()), None if zero is None else F.reshape(zero, ()), out))
    x = c.x()
    axis = _axis(c, x, scale, block)
    shift = None if zero is None else _aligned(c, x, zero, axis, block)
    return _real(x, _aligned(c, x, scale, axis, block), shift, out)


def _real(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: Any) -> Tensor:
    if dtype not in FLOATS or dtype.itemsize == 2:
        y = x.astype("float32") if zero is None else x.astype("float32") - zero.astype("float32")
        return (y * scale.astype("float32")).astype(dtype)
    y = x.astype(dtype) if zero is None else x.astype(dtype) - zero.astype(dtype)
    return y * scale.astype(dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Call) -> tuple[Tensor, Tensor, Tensor]:
    x = c.x()
    zero = fixed(x, 0)
    low, high = F.minimum(F.min(x), zero), F.maximum(F.max(x), zero)
    scale = (high - low) / 255.0
    point = F.clip(F.round(zero - low / scale), 0.0, 255.0)
    return _stored(F.round(x / scale) + point, np.uint8), scale, point.astype("uint8")


def _centred(c: Call, i: int, zero: int, axis: int = 0) -> Tensor:
    """An 8-bit input less its zero point, as float64, in which sums of its products are exact."""
    x = c.x(i).astype("float64")
    if not c.has(zero):
        return x
    point = c.x(zero).astype("float64")
    if point.ndim == 1 and point.size == 1:
        point = F.reshape(point, ())
    elif point.ndim == 1:
        point = F.reshape(point, tuple(-1 if k == axis % x.ndim else 1 for k in range(x.ndim)))
    return x - point


@operator("MatMulInteger")
def matmul_integer(c: Call) -> Tensor:
    return product(_centred(c, 0, 2, -2), _centred(c, 1, 3, -1)).astype("int32")


@operator("QLinearMatMul")
def qlinear_matmul(c: Call) -> Tensor:
    a = _centred(c, 0, 2, -2) * c.x(1).astype("float64")
    b = _centred(c, 3, 5, -1) * c.x(4).astype("float64")
    return _requantised(c, product(a, b), 6)


def _requantised(c: Call, y: Tensor, scale: int) -> Tensor:
    zero = c.x(scale + 1)
    y = F.round(y / F.reshape(c.x(scale).astype("float64"), ())) + F.reshape(zero.astype("float64"), ())
    return _stored(y, zero.dtype)


def _integer_conv(c: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    image = F.transpose(x, (0, *range(2, x.ndim), 1))
    c.attr("kernel_shape")
    g = geometry(c, image.shape[1:-1], w.shape[2:])
    return convolve(image, w, bias, g, c.attr("group", 1))


@operator("ConvInteger")
def conv_integer(c: Call) -> Value:
    return Value(image=_integer_conv(c, _centred(c, 0, 2), _centred(c, 1, 3), None).astype("int32"))


@operator("QLinearConv")
def qlinear_conv(c: Call) -> Value:
    units = c.x(1).astype("float64") * c.x(4).astype("float64")  # of the sums: one number, or one a channel
    bias = c.x(8).astype("float64") if c.has(8) else None
    y = _integer_conv(c, _centred(c, 0, 2), _centred(c, 3, 5), bias)
    return Value(image=_requantised(c, y * (F.reshape(units, ()) if units.size == 1 else units), 6))
