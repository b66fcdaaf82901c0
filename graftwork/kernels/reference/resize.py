"""Resizing images in plain NumPy, one axis after the other. Images are (N, H, W, C).

Pixel centres lie at half-integers, as in PyTorch (align_corners=False) and TensorFlow 2; there is no antialiasing.
"""

from __future__ import annotations

import numpy as np


def resize(x, *, out, size: tuple[int, int], method: str) -> None:
    """out = x resized to `size` by "nearest" or "bilinear" interpolation."""
    rows = _interpolate(x, 1, size[0], method)
    out[...] = _interpolate(rows, 2, size[1], method)


def resize_grad(g, *, out, input_size: tuple[int, int], method: str) -> None:
    """The adjoint of `resize`: g is (N, oh, ow, C), out (N, *input_size, C)."""
    rows = _spread(g, 1, input_size[0], method)
    out[...] = _spread(rows, 2, input_size[1], method)


def _interpolate(x, axis: int, after: int, method: str) -> np.ndarray:
    """x with `after` pixels along `axis`."""
    before = x.shape[axis]
    lines = [sum(np.take(x, k, axis) * x.dtype.type(w) for k, w in _sources(i, before, after, method)) for i in range(after)]
    return np.stack(lines, axis)


def _spread(g, axis: int, before: int, method: str) -> np.ndarray:
    """The adjoint of `_interpolate`."""
    lines = [np.zeros_like(np.take(g, 0, axis)) for _ in range(before)]
    for i in range(g.shape[axis]):
        for k, weight in _sources(i, before, g.shape[axis], method):
            lines[k] += np.take(g, i, axis) * g.dtype.type(weight)
    return np.stack(lines, axis)


def _sources(i: int, before: int, after: int, method: str) -> list[tuple[int, float]]:
    """The input pixels, with their weights, that make output pixel i of an axis."""
    centre = (i + 0.5) * before / after
    if method == "nearest":
        return [(min(int(centre), before - 1), 1.0)]
    position = min(max(centre - 0.5, 0), before - 1)
    low = int(position)
    high = min(low + 1, before - 1)
    return [(low, 1 - (position - low)), (high, position - low)]
