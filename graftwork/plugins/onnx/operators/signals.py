"""Fourier transforms as products with their matrix, and the windows that go with them."""

from __future__ import annotations

import math

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, dtype_of, fixed, operator

LARGEST = 1 << 13  # samples of one transform: its matrix has the square of that


@operator("DFT", known=(1, 2))
def dft(c: Call) -> Tensor:
    """x: (..., samples, ..., 1 or 2), real or real and imaginary parts last."""
    x = c.x()
    axis = (int(c.number(2, -2)) if c.opset >= 20 else c.attr("axis", 1)) % x.ndim
    inverse, half = bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0))
    default = 2 * (x.shape[axis] - 1) if inverse and half else x.shape[axis]
    return transform(c, x, axis, int(c.number(1, default)), inverse, half)


def transform(c: Call, x: Tensor, axis: int, length: int, inverse: bool, half: bool) -> Tensor:
    count, parts = x.shape[axis], x.shape[-1]
    if max(count, length) > LARGEST or parts not in (1, 2) or axis == x.ndim - 1:
        raise c.error(f"{count} samples of {parts} numbers along axis {axis}; at most {LARGEST}, real or complex")
    matrix = _matrix(count, parts, length, inverse, half)
    order = [i for i in range(x.ndim - 1) if i != axis] + [axis, x.ndim - 1]
    rows = F.transpose(x, order)
    flat = F.reshape(rows, (-1, count * parts)).astype("float64")  # sums of many terms that cancel
    y = F.matmul(flat, fixed(flat, matrix.reshape(count * parts, -1))).astype(x.dtype)
    y = F.reshape(y, (*rows.shape[:-2], *matrix.shape[2:]))
    return F.transpose(y, np.argsort(order).tolist())


def _matrix(count: int, parts: int, length: int, inverse: bool, half: bool) -> np.ndarray:
    """(count, parts, places, parts of the result): what each number of the input adds to each of the output."""
    basis = np.eye(count * parts).reshape(count, parts, count, parts)
    signal = basis[..., 0] if parts == 1 else basis[..., 0] + 1j * basis[..., 1]
    if inverse and half:
        return np.fft.irfft(signal, length, -1)[..., None]
    result = (np.fft.ifft if inverse else np.fft.fft)(signal, length, -1)
    result = result[..., : length // 2 + 1] if half else result
    return np.stack([result.real, result.imag], -1)


@operator("STFT", known=(1, 3))
def stft(c: Call) -> Tensor:
    """signal: (batch, samples, 1 or 2). (batch, frames, places, 2)."""
    x, step = c.x(), int(c.number(1))
    window = c.optional(2)
    length = int(c.number(3, window.shape[0] if window is not None else 0))
    if not 0 < length <= x.shape[1] or step < 1:
        raise c.error(f"frames of {length} samples every {step} of {x.shape[1]}")
    starts = np.arange(0, x.shape[1] - length + 1, step)
    frames = F.gather(x, fixed(x, starts[:, None] + np.arange(length), np.int64), 1)
    frames = frames if window is None else frames * F.reshape(window, (length, 1))
    return transform(c, frames, 2, length, False, bool(c.attr("onesided", 1)))


@operator("HannWindow", "HammingWindow", "BlackmanWindow", known=(0,))
def window(c: Call) -> np.ndarray:
    size, dtype = int(c.number(0)), dtype_of(c.attr("output_datatype", 1), c.node)
    if size > LARGEST * LARGEST:
        raise c.error(f"a window of {size} values; refused")
    turn = 2 * math.pi * np.arange(size) / (size if c.attr("periodic", 1) else max(size - 1, 1))
    shares = {"HannWindow": (0.5, 0.5, 0.0), "HammingWindow": (25 / 46, 21 / 46, 0.0), "BlackmanWindow": (0.42, 0.5, 0.08)}
    a, b, d = shares[c.node.kind]
    return (a - b * np.cos(turn) + d * np.cos(2 * turn)).astype(dtype)
