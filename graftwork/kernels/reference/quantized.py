"""Products of 8-bit integers in plain NumPy: what every kernel of these ops computes, to the bit.

x (int8 or uint8) stands for x_scale * (x - x_zero_point), a weight (int8, symmetric) in output channel n for scale[n] * w.
The sum of (x - x_zero_point) * w, and the bias, whose unit is x_scale * scale[n], are exact in int32 (Jacob et al., 2018).
What follows is float32, each operation rounded to nearest even:

    value = float32(sum + bias[n]) * (scale[n] * factor)      factor = float32(x_scale / out_scale), x_scale for float output
    integer output: clamp(round_half_to_even(value) + out_zero_point)    the clamp saturates at the ends of the dtype
    float output:   clamp(value)

Padding stands for zero: its taps are left out of the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .conv import _group_channels, _taps


class Requantisation(NamedTuple):
    """The numbers after the sum: multiplies each channel's scale; zero point and clamp of the output, in its own units."""

    factor: float
    zero: int
    low: float
    high: float


def requantisation(x_scale: float, out_scale: float | None, out_zero_point: int, low: float | None, high: float | None,
                   dtype: str) -> Requantisation:  # fmt: skip
    """From an op's attributes. low, high: of the real values, None for no bound."""
    if out_scale is None:
        ends = (-np.inf if low is None else low, np.inf if high is None else high)
        return Requantisation(float(np.float32(x_scale)), 0, *map(float, np.float32(ends)))
    limits = np.iinfo(dtype)
    least = limits.min if low is None else max(limits.min, round(low / out_scale) + out_zero_point)
    most = limits.max if high is None else min(limits.max, round(high / out_scale) + out_zero_point)
    return Requantisation(float(np.float32(x_scale / out_scale)), out_zero_point, float(least), float(most))


def _finish(sums: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, out: np.ndarray, r: Requantisation,
            other: np.ndarray | None = None) -> None:  # fmt: skip
    if bias is not None:
        sums = sums + bias
    value = sums.astype(np.float32) * (scale * np.float32(r.factor))
    if other is not None:
        value = value + other
    if out.dtype.kind != "f":
        value = np.rint(value) + np.float32(r.zero)
    out[...] = np.clip(value, np.float32(r.low), np.float32(r.high))


def quantized_matmul(x, w, scale, bias=None, *, out, x_scale, x_zero_point, out_scale, out_zero_point, low, high,
                     dtype) -> None:  # fmt: skip
    """x (..., k), w (k, n), scale (n,) float32, bias (n,) int32; out (..., n) of `dtype`."""
    sums = (x.astype(np.int64) - x_zero_point) @ w.astype(np.int64)
    _finish(sums, scale, bias, out, requantisation(x_scale, out_scale, out_zero_point, low, high, dtype))


def quantized_conv2d(x, w, scale, bias=None, *, out, stride, padding, dilation, groups, x_scale, x_zero_point, out_scale,
                     out_zero_point, low, high, dtype) -> None:  # fmt: skip
    """x NHWC, w (kh, kw, C / groups, Cout), scale (Cout,) float32, bias (Cout,) int32; out NHWC of `dtype`."""
    sums = _conv_sums(x, w, out.shape, x_zero_point, stride, padding, dilation, groups)
    _finish(sums, scale, bias, out, requantisation(x_scale, out_scale, out_zero_point, low, high, dtype))


def quantized_conv2d_add(x, w, scale, bias, other, *, out, stride, padding, dilation, groups, x_scale, x_zero_point, out_scale,
                         out_zero_point, low, high, dtype, other_scale, other_zero_point) -> None:  # fmt: skip
    """The same, with float32(other - other_zero_point) * float32(other_scale / out_scale) added before the rounding
    (other_scale for float output). other: uint8 of out's shape."""
    sums = _conv_sums(x, w, out.shape, x_zero_point, stride, padding, dilation, groups)
    factor = np.float32(other_scale if out_scale is None else other_scale / out_scale)
    added = (other.astype(np.int32) - other_zero_point).astype(np.float32) * factor
    _finish(sums, scale, bias, out, requantisation(x_scale, out_scale, out_zero_point, low, high, dtype), added)


def _conv_sums(x, w, shape, x_zero_point: int, stride, padding, dilation, groups: int) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    padded = np.pad(x.astype(np.int64) - x_zero_point, ((0, 0), *padding, (0, 0)))
    for tap, window in _taps(w.shape, shape, stride, dilation):
        for cin, cout in _group_channels(w.shape, groups):
            sums[..., cout] += padded[window][..., cin] @ w[tap][:, cout].astype(np.int64)
    return sums
