"""Dropout from a counter-based generator, in plain NumPy: the same bits as every other backend.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): block number `counter` under key
`seed` gives four 32-bit words, and words 4i .. 4i+3 decide elements 4i .. 4i+3 in row-major order.
"""

from __future__ import annotations

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ten rounds on counters (blocks, 4) with key (2,), each a 32-bit word held in uint64 -> words (blocks, 4)."""
    c0, c1, c2, c3 = (counter[:, i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=1)


def _words(state: np.ndarray, size: int) -> np.ndarray:
    """The next `size` 32-bit words; moves the counter past the blocks they took."""
    blocks = -(-size // 4)
    number = np.arange(blocks, dtype=np.uint64) + state[1]
    zero = np.zeros_like(number)
    counter = np.stack([number & _LOW, number >> _SHIFT, zero, zero], axis=1)
    key = np.array([state[0] & _LOW, state[0] >> _SHIFT])
    state[1:] += np.uint64(blocks)
    return philox4x32(counter, key).reshape(-1)[:size]


def _scale(rate: float, dtype: np.dtype) -> np.generic:
    return dtype.type(1 / (1 - rate) if rate < 1 else 0)


def dropout(x: np.ndarray, state: np.ndarray, *, out: tuple, rate: float) -> None:
    """Zero each element with probability `rate`, scale the rest by 1 / (1 - rate) -> y, mask (uint8, one where kept).

    `state` is uint64 (seed, counter); the counter advances by the number of Philox blocks used, one per four elements.
    """
    y, mask = out
    mask[...] = (_words(state, x.size) >= np.uint64(int(rate * 2**32))).reshape(x.shape)
    y[...] = x * (mask * _scale(rate, x.dtype))


def dropout_grad(g: np.ndarray, mask: np.ndarray, *, out: np.ndarray, rate: float) -> None:
    """g * mask / (1 - rate)."""
    out[...] = g * (mask * _scale(rate, g.dtype))
