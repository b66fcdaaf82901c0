"""Initial values for weights, drawn from the generator of `manual_seed`. All return float32 arrays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import numpy as np

from .rng import generator

BLOCK = 1 << 20  # numbers drawn at once
_values_follow: ContextVar[bool] = ContextVar("values_follow", default=False)


@contextlib.contextmanager
def values_follow() -> Iterator[None]:
    """Inside, `normal` and `uniform` (and what is made of them) draw nothing and return memory that holds garbage: for modules
    all of whose values are about to be loaded."""
    token = _values_follow.set(True)
    try:
        yield
    finally:
        _values_follow.reset(token)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(inputs, outputs) that one weight connects: (..., in, out) times the window's area."""
    if len(shape) < 2:
        return (shape[0] if shape else 1,) * 2
    area = math.prod(shape[:-2])
    return shape[-2] * area, shape[-1] * area


def he_normal(shape: tuple[int, ...]) -> np.ndarray:
    """Normal with variance 2 / fan_in, for layers before a rectifier (He et al. 2015)."""
    return normal(shape, math.sqrt(2.0 / max(fans(shape)[0], 1)))


def glorot_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return uniform(shape, math.sqrt(6.0 / max(sum(fans(shape)), 1)))


def normal(shape: tuple[int, ...], deviation: float = 0.05) -> np.ndarray:
    """Normal around 0."""
    return _in_blocks(shape, lambda count: generator().standard_normal(count) * deviation)


def uniform(shape: tuple[int, ...], limit: float = 0.05) -> np.ndarray:
    """Uniform between -limit and limit."""
    return _in_blocks(shape, lambda count: generator().uniform(-limit, limit, count))


def _in_blocks(shape: tuple[int, ...], draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """What `draw` gives in float64, as float32. Block by block: VGG's first dense layer would take 800 MB at once."""
    out = np.empty(math.prod(shape), np.float32)
    for start in range(0, 0 if _values_follow.get() else out.size, BLOCK):
        block = out[start : start + BLOCK]
        block[...] = draw(block.size)
    return out.reshape(shape)


def orthogonal(shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """Orthogonal columns (or rows) over the last dimension (Saxe et al. 2014)."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    q, r = np.linalg.qr(generator().standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).reshape(shape).astype(np.float32)
