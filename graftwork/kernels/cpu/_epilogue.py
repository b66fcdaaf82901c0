"""Bias and activation in place, which the products and convolutions run on what BLAS left in the cache."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import njit

ACTIVATIONS = {
    None: 0, "relu": 1, "relu6": 2, "silu": 3, "hard_swish": 4, "sigmoid": 5, "hard_sigmoid": 6, "tanh": 7, "gelu": 8,
}  # fmt: skip
_SERIAL_BELOW = 16384  # elements; one thread finishes these before a second one has woken up


def activation_code(activation: str | None) -> int:
    """The number that the compiled kernels know an activation by; ValueError where none can be fused."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} cannot be fused; expected one of {list(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def bias_or_zeros(b: np.ndarray | None, channels: int, dtype) -> np.ndarray:
    """A contiguous bias vector, of zeros where there is none."""
    return np.zeros(channels, dtype) if b is None else np.ascontiguousarray(b)


def add_bias_and_activate(y: np.ndarray, b: np.ndarray | None, code: int) -> None:
    """y[rows, C] = activation(y + b[C]) in place; y is C-contiguous."""
    if (b is None and code == 0) or y.size == 0:
        return
    bias = bias_or_zeros(b, y.shape[1], y.dtype)
    if y.dtype.char not in "fd":  # float16, which Numba does not compile
        np.add(y, bias, y)
        np.clip(y, 0 if code else -np.inf, 6 if code == 2 else np.inf, y)
    elif y.size < _SERIAL_BELOW:
        _finish_rows(y, bias, code, 0, y.shape[0])
    else:
        _finish_parallel(y, bias, code)


@njit(nogil=True)
def _finish_rows(y, bias, code, first, last):
    zero, six = y.dtype.type(0), y.dtype.type(6)
    for i in range(first, last):
        row = y[i]
        if code == 0:
            for c in range(row.size):
                row[c] += bias[c]
        else:  # comparisons that are false for NaN, so that NaN stays
            ceiling = six if code == 2 else y.dtype.type(np.inf)
            for c in range(row.size):
                v = row[c] + bias[c]
                v = zero if v < zero else v
                row[c] = ceiling if v > ceiling else v


@njit(parallel=True, nogil=True)
def _finish_parallel(y, bias, code):
    rows = y.shape[0]
    blocks = min(rows, 16)
    for k in prange(blocks):
        _finish_rows(y, bias, code, k * rows // blocks, (k + 1) * rows // blocks)
