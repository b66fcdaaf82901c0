"""Weights with few different values: clustered around a codebook, or rounded to 8 bits. What packed files store in few bytes.

Both change the model in place and leave zeros zero, so that pruning comes before them.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...errors import ConfigError
from ...nn.modules.module import Module, Parameter, assign
from ..prune.magnitude import weights

ROUNDS = 60  # of Lloyd's algorithm; it has settled long before
SIZES = (2, 256)
SMALL = 1 / 64  # share of all weights below which a tensor has 256 values in any case


def kmeans(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(centroids in ascending order, each value's centroid number) of numbers, by Lloyd's algorithm (1982).

    Centroids start evenly between the extremes, which keeps the few large weights near one: they matter most (Han et al.
    2016). Each becomes the mean of the values nearest to it; those that get none are dropped. Sorted once, a round costs no
    more than looking up the borders.
    """
    flat = np.asarray(values, np.float64).ravel()
    ordered = np.sort(flat)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.unique(np.linspace(ordered[0], ordered[-1], size)) if len(ordered) else np.zeros(0)
    for _ in range(ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2), [len(ordered)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends])[counts > 0] / counts[counts > 0]
        if len(means) == len(centroids) and np.allclose(means, centroids, rtol=1e-7, atol=0):
            break
        centroids = np.unique(means)
    return centroids, np.searchsorted((centroids[1:] + centroids[:-1]) / 2, flat)


def cluster(model: Module, size: int = 32) -> dict[str, float]:
    """Replace each weight (of two dimensions and more) by the nearest of `size` values that its tensor's weights gather around.

    Zeros stay and are not counted. Tensors with less than a 64th of all weights get 256 values: that costs little, and the
    first layers, which are small, bear the least. Returns each tensor's relative error (Euclidean). Raises ConfigError for a
    size that a byte does not number, and for weights that are not finite.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(f"cluster: size={size}; expected {SIZES[0]} to {SIZES[1]} values, which a byte can number")
    found = weights(model)
    small = SMALL * sum(p.size for p in found.values())
    sizes = {name: SIZES[1] if p.size < small else size for name, p in found.items()}
    return {name: _replace(name, p, partial(_clustered, size=sizes[name])) for name, p in found.items()}


def _clustered(array: np.ndarray, size: int) -> np.ndarray:
    there = array != 0
    out = np.zeros_like(array)
    if there.any():
        centroids, codes = kmeans(array[there], size)
        out[there] = centroids.astype(np.float32)[codes]
    return out


def round_to_bytes(model: Module) -> dict[str, float]:
    """Round each weight to one of 255 levels, a scale an output channel (the last axis); the largest one is exact.

    Returns each tensor's relative error (Euclidean). Raises ConfigError for weights that are not finite.
    """
    return {name: _replace(name, p, _rounded) for name, p in weights(model).items()}


def _rounded(array: np.ndarray) -> np.ndarray:
    scale = np.abs(array).max(tuple(range(array.ndim - 1))) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    return np.clip(np.rint(array / scale), -127, 127).astype(np.float32) * scale


def _replace(name: str, parameter: Parameter, change) -> float:
    array = parameter.numpy().copy()
    if not np.isfinite(array).all():
        raise ConfigError(f"compress: {name} holds NaN or infinity; look for a training that has diverged")
    changed = change(array)
    assign(parameter, changed)
    return relative_error(changed, array)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Euclidean length of the difference over that of what is expected; 0 if both are zero."""
    difference = float(np.linalg.norm((found - expected).ravel()))
    return difference / float(np.linalg.norm(expected.ravel())) if difference else 0.0
