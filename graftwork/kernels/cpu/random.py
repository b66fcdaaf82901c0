"""Dropout from a counter-based generator: the bits of the reference, computed in parallel.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): block number `counter` under key
`seed` gives four 32-bit words, and words 4i .. 4i+3 decide elements 4i .. 4i+3 in row-major order.
"""

from __future__ import annotations

import numpy as np

from ..plan import Plan, Spec
from . import atomic, runtime
from .copies import bytes_at, doubles, floats
from .jit import njit
from .planning import all_float32, carry_out, parts_for
from .simd import LANES
from .vector import load_bytes, load_some, store_some

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


@njit(nogil=True)
def _make_mask(mask, first, last, size, seed, counter, threshold):
    """Bytes 1 (keep) and 0 for the elements of the blocks first to last."""
    key0, key1, zero = seed & _LOW, seed >> _SHIFT, np.uint64(0)
    for block in range(first, min(last, size // 4)):
        number = counter + np.uint64(block)
        w0, w1, w2, w3 = philox4x32(number & _LOW, number >> _SHIFT, zero, zero, key0, key1)
        mask[4 * block] = np.uint8(w0 >= threshold)
        mask[4 * block + 1] = np.uint8(w1 >= threshold)
        mask[4 * block + 2] = np.uint8(w2 >= threshold)
        mask[4 * block + 3] = np.uint8(w3 >= threshold)
    if last > size // 4:
        number = counter + np.uint64(size // 4)
        words = philox4x32(number & _LOW, number >> _SHIFT, zero, zero, key0, key1)
        for j in range(size % 4):
            mask[size // 4 * 4 + j] = np.uint8(words[j] >= threshold)


@njit(nogil=True)
def _mask_floats(x, mask, y, first, last, scale):
    for i in range(first, last, LANES):
        keep = load_bytes(mask, i, last - i) * scale
        store_some(y, i, load_some(x, i, last - i) * keep, last - i)


@runtime.task
def drop(a, part):
    """Words: parts, size, x, state, y, mask, threshold, scale (real), bytes an element."""
    size, blocks = a[1], (a[1] + 3) // 4
    first, last = blocks * part // a[0], blocks * (part + 1) // a[0]
    state, mask = atomic.u64(a, 3), atomic.u8(a, 5)
    begin, end = 4 * first, min(4 * last, size)
    _make_mask(mask, first, last, size, state[0], state[1], np.uint64(a[6]))
    if a[8] == 4:
        _mask_floats(floats(a[2]), mask, floats(a[4]), begin, end, np.float32(atomic.real(a, 7)))
    else:
        x, y, scale = doubles(a[2]), doubles(a[4]), atomic.real(a, 7)
        for i in range(begin, end):
            y[i] = x[i] * (mask[i] * scale)


@runtime.task
def advance(a, part):
    """Move a generator past the blocks that were used. Words: state, blocks."""
    state = atomic.u64(a, 0)
    state[1] = state[1] + np.uint64(a[1])


@runtime.task
def apply_mask(a, part):
    """Words: parts, size, gradient, mask, out, scale (real)."""
    first, last = a[1] * part // a[0], a[1] * (part + 1) // a[0]
    _mask_floats(atomic.f32(a, 2), bytes_at(a[3]), atomic.f32(a, 4), first, last, np.float32(atomic.real(a, 5)))


def _scale(rate: float, dtype: np.dtype) -> np.generic:
    return dtype.type(1 / (1 - rate) if rate < 1 else 0)


def plan_dropout(x: Spec, state: Spec, *, out: list[Spec], rate: float) -> Plan | None:
    """Philox masks, also for float64."""
    if x.dtype.char not in "fd":
        return None
    parts = parts_for(-(-x.size // 4), 16 * x.size)
    threshold, scale = int(rate * 2**32), float(_scale(rate, x.dtype))

    def bind(inputs, outputs, workspace):
        if x.size == 0:
            return []
        words = (parts, x.size, *inputs, *outputs, threshold, scale, x.dtype.itemsize)
        return [runtime.row(drop, parts, *words), runtime.row(advance, 1, inputs[1], -(-x.size // 4))]

    return Plan(bind, in_place=(0,))


def plan_dropout_grad(g: Spec, mask: Spec, *, out: Spec, rate: float) -> Plan | None:
    if not all_float32(g) or mask.dtype != np.uint8:
        return None
    parts = parts_for(g.size, 2 * g.size)

    def bind(inputs, outputs, workspace):
        words = (parts, g.size, *inputs, outputs[0], float(_scale(rate, g.dtype)))
        return [runtime.row(apply_mask, parts, *words)] if g.size else []

    return Plan(bind, in_place=(0,))


def dropout(x: np.ndarray, state: np.ndarray, *, out: tuple, rate: float) -> None:
    """Zero each element with probability `rate`, scale the rest by 1 / (1 - rate) -> y, mask (uint8, one where kept).

    `state` is uint64 (seed, counter); the counter advances by the number of Philox blocks used, one per four elements.
    """
    local = np.ascontiguousarray(state)  # written by the task; itself where it is contiguous, as generators' states are
    carry_out(plan_dropout, (x, local), out, rate=rate)
    if local is not state:
        state[1:] = local[1:]


def dropout_grad(g: np.ndarray, mask: np.ndarray, *, out: np.ndarray, rate: float) -> None:
    """g * mask / (1 - rate)."""
    if g.size < PARALLEL_FROM or not carry_out(plan_dropout_grad, (g, mask), (out,), rate=rate):
        np.multiply(g, np.multiply(mask, _scale(rate, g.dtype)), out)
