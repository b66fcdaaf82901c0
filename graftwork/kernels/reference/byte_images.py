"""Images of uint8 that stand for scale * (x - zero_point), in plain NumPy: what every kernel of these ops computes, to the bit.

All arithmetic after the integers is float32, each operation rounded to nearest even; `_stored` is the last step of them all.
"""

from __future__ import annotations

import numpy as np

from .pool import _counts, _pad, _taps


def bounds(out_scale: float, out_zero_point: int, low: float | None, high: float | None) -> tuple[float, float]:
    """Real bounds as whole steps beside the zero point, within what a uint8 holds: `quantized.requantisation`'s rule."""
    least = 0 if low is None else max(0, round(low / out_scale) + out_zero_point)
    most = 255 if high is None else min(255, round(high / out_scale) + out_zero_point)
    return float(least - out_zero_point), float(most - out_zero_point)


def _stored(value: np.ndarray, zero: int, low: float, high: float) -> np.ndarray:
    """Clamped, rounded half to even, moved to the zero point; NaN counts as the lowest value."""
    value = np.where(value > np.float32(low), value, np.float32(low))
    return (np.rint(np.minimum(value, np.float32(high))).astype(np.int32) + zero).astype(np.uint8)


def _real(x, zero_point: int, factor: float) -> np.ndarray:
    return (x.astype(np.int32) - zero_point).astype(np.float32) * np.float32(factor)


def quantize(x, *, out, scale: float, zero_point: int) -> None:
    """out = round(x * float32(1 / scale)) + zero_point, saturated."""
    out[...] = _stored(x.astype(np.float32) * np.float32(1 / scale), zero_point, *bounds(scale, zero_point, None, None))


def dequantize(x, *, out, scale: float, zero_point: int) -> None:
    """out = (x - zero_point) * scale, float32."""
    out[...] = _real(x, zero_point, scale)


def quantized_add(x, y, *, out, x_scale, x_zero_point, y_scale, y_zero_point, out_scale, out_zero_point, low, high) -> None:
    """The sum of two images with scales of their own."""
    value = _real(x, x_zero_point, x_scale / out_scale) + _real(y, y_zero_point, y_scale / out_scale)
    out[...] = _stored(value, out_zero_point, *bounds(out_scale, out_zero_point, low, high))


def byte_table(x, table, *, out) -> None:
    """out = table[x]: any function of one image."""
    out[...] = table[x]


def quantized_max_pool2d(x, *, out, window, stride, padding) -> None:
    """The largest byte of each window; padding never wins. The scale stays."""
    padded = _pad(x, padding, 0)
    out[...] = 0
    for rows, columns in _taps(window, out.shape, stride):
        np.maximum(out, padded[:, rows, columns], out=out)


def quantized_avg_pool2d(x, *, out, window, stride, padding, count_padding, x_scale, x_zero_point, out_scale,
                         out_zero_point) -> None:  # fmt: skip
    """float32(sum of x - x_zero_point) * (float32(x_scale / out_scale) / float32(count)), stored with out's scale."""
    padded = _pad(x.astype(np.int32) - x_zero_point, padding, 0)
    sums = np.zeros(out.shape, np.int32)
    for rows, columns in _taps(window, out.shape, stride):
        sums += padded[:, rows, columns]
    counts = _counts(x.shape, out.shape, window, stride, padding, count_padding).astype(np.float32)
    value = sums.astype(np.float32) * (np.float32(x_scale / out_scale) / counts)
    out[...] = _stored(value, out_zero_point, *bounds(out_scale, out_zero_point, None, None))
