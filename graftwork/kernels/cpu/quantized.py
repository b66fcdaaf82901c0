"""Products of 8-bit integers: through the plans of `byte_conv.py`, or as plain loops where there are none (int8 inputs).

`kernels/reference/quantized.py` defines the roundings."""

from __future__ import annotations

import math

import numpy as np

from ..reference.quantized import Requantisation, requantisation
from .byte_conv import plan_quantized_conv2d, plan_quantized_conv2d_add, plan_quantized_matmul
from .jit import njit
from .planning import carry_out


@njit(nogil=True)
def _finish(total, multiplier, zero, low, high, whole):
    value = np.float32(total) * multiplier
    if whole:
        value = np.float32(np.rint(value)) + zero
    return min(max(value, low), high)


@njit(nogil=True)
def _conv(out, x, w, multiplier, bias, x_zero, stride, before, dilation, groups, zero, low, high, whole):
    """Everything contiguous; int32 sums of a pixel's channels are kept in a row."""
    channels, outputs = w.shape[2], w.shape[3] // groups
    sums = np.empty(w.shape[3], np.int32)
    for n in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                sums[:] = bias
                for a in range(w.shape[0]):
                    y = i * stride[0] - before[0] + a * dilation[0]
                    for b in range(w.shape[1]):
                        column = j * stride[1] - before[1] + b * dilation[1]
                        if y < 0 or y >= x.shape[1] or column < 0 or column >= x.shape[2]:
                            continue
                        for c in range(x.shape[3]):
                            value = np.int32(x[n, y, column, c]) - x_zero
                            first = c // channels * outputs
                            row = w[a, b, c % channels]
                            for o in range(first, first + outputs):
                                sums[o] += value * np.int32(row[o])
                for o in range(w.shape[3]):
                    out[n, i, j, o] = _finish(sums[o], multiplier[o], zero, low, high, whole)


def _run(x, w, scale, bias, out, geometry, x_zero_point: int, r: Requantisation) -> None:
    given = np.zeros(w.shape[3], np.int32) if bias is None else np.ascontiguousarray(bias)
    numbers = (np.float32(r.zero), np.float32(r.low), np.float32(r.high), out.dtype.kind != "f")
    target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    _conv(target, np.ascontiguousarray(x), np.ascontiguousarray(w), scale * np.float32(r.factor), given,
          np.int32(x_zero_point), *geometry, *numbers)  # fmt: skip
    if target is not out:
        out[...] = target


def quantized_matmul(x, w, scale, bias=None, *, out, x_scale, x_zero_point, out_scale, out_zero_point, low, high,
                     dtype) -> None:  # fmt: skip
    form = {"x_scale": x_scale, "x_zero_point": x_zero_point, "out_scale": out_scale, "out_zero_point": out_zero_point,
            "low": low, "high": high, "dtype": dtype}  # fmt: skip
    if carry_out(plan_quantized_matmul, _given(x, w, scale, bias), (out,), **form):
        return
    rows = math.prod(x.shape[:-1])
    target = np.empty((1, rows, 1, w.shape[1]), out.dtype)
    r = requantisation(x_scale, out_scale, out_zero_point, low, high, dtype)
    _run(x.reshape(1, rows, 1, w.shape[0]), w[None, None], scale, bias, target, ((1, 1), (0, 0), (1, 1), 1), x_zero_point, r)
    out[...] = target.reshape(out.shape)


def quantized_conv2d(x, w, scale, bias=None, *, out, stride, padding, dilation, groups, x_scale, x_zero_point, out_scale,
                     out_zero_point, low, high, dtype) -> None:  # fmt: skip
    form = {"x_scale": x_scale, "x_zero_point": x_zero_point, "out_scale": out_scale, "out_zero_point": out_zero_point,
            "low": low, "high": high, "dtype": dtype}  # fmt: skip
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if carry_out(plan_quantized_conv2d, _given(x, w, scale, bias), (out,), **geometry, **form):
        return
    r = requantisation(x_scale, out_scale, out_zero_point, low, high, dtype)
    _run(x, w, scale, bias, out, (stride, (padding[0][0], padding[1][0]), dilation, groups), x_zero_point, r)


def quantized_conv2d_add(x, w, scale, bias, other, *, out, **attrs) -> None:
    carry_out(plan_quantized_conv2d_add, (x, w, scale, bias, other), (out,), **attrs)


def _given(*arrays):
    return [a for a in arrays if a is not None]
