"""Dropout from a counter-based generator: the bits of the reference, computed in parallel.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): block number `counter` under key
`seed` gives four 32-bit words, and words 4i .. 4i+3 decide elements 4i .. 4i+3 in row-major order.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import njit

PARALLEL_FROM = 1 << 15  # elements of `dropout_grad`
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIER0, _MULTIPLIER1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL0, _WEYL1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@njit(nogil=True)
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on one counter of four words under a key of two, 32 bits each in a uint64 -> four words."""
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER0, c2 * _MULTIPLIER1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    return c0, c1, c2, c3


@njit(parallel=True, nogil=True)
def _dropout(x, seed, counter, threshold, scale, y, mask):
    key0, key1, zero = seed & _LOW, seed >> _SHIFT, np.uint64(0)
    for block in prange(x.size // 4):
        number = counter + np.uint64(block)
        words = philox4x32(number & _LOW, number >> _SHIFT, zero, zero, key0, key1)
        for j in range(4):
            keep = np.uint8(words[j] >= threshold)
            mask[4 * block + j] = keep
            y[4 * block + j] = x[4 * block + j] * (keep * scale)
    whole = x.size // 4 * 4
    if whole < x.size:
        number = counter + np.uint64(x.size // 4)
        words = philox4x32(number & _LOW, number >> _SHIFT, zero, zero, key0, key1)
        for j in range(x.size - whole):
            keep = np.uint8(words[j] >= threshold)
            mask[whole + j] = keep
            y[whole + j] = x[whole + j] * (keep * scale)


@njit(parallel=True, nogil=True)
def _masked(g, mask, scale, out):
    for i in prange(g.size):
        out[i] = g[i] * (mask[i] * scale)


def _scale(rate: float, dtype: np.dtype) -> np.generic:
    return dtype.type(1 / (1 - rate) if rate < 1 else 0)


def dropout(x: np.ndarray, state: np.ndarray, *, out: tuple, rate: float) -> None:
    """Zero each element with probability `rate`, scale the rest by 1 / (1 - rate) -> y, mask (uint8, one where kept).

    `state` is uint64 (seed, counter); the counter advances by the number of Philox blocks used, one per four elements.
    """
    y, mask = out
    flat = np.ascontiguousarray(x).reshape(-1)
    threshold = np.uint64(int(rate * 2**32))
    _dropout(flat, state[0], state[1], threshold, _scale(rate, x.dtype), y.reshape(-1), mask.reshape(-1))
    state[1:] += np.uint64(-(-x.size // 4))


def dropout_grad(g: np.ndarray, mask: np.ndarray, *, out: np.ndarray, rate: float) -> None:
    """g * mask / (1 - rate)."""
    scale = _scale(rate, g.dtype)
    if g.size < PARALLEL_FROM:
        np.multiply(g, np.multiply(mask, scale), out)
    else:
        flat = (np.ascontiguousarray(a).reshape(-1) for a in (g, mask))
        _masked(*flat, scale, out.reshape(-1))
