"""Resizing images in plain NumPy, as a matrix product along each axis. Images are (N, H, W, C).

Pixel centres lie at half-integers, as in PyTorch (align_corners=False) and TensorFlow 2; there is no antialiasing.
"""

from __future__ import annotations

import numpy as np


def resize(x, *, out, size: tuple[int, int], method: str) -> None:
    """out = x resized to `size` by "nearest" or "bilinear" interpolation."""
    rows, columns = _matrix(x.shape[1], size[0], method), _matrix(x.shape[2], size[1], method)
    out[...] = np.einsum("ih,nhwc,jw->nijc", rows.astype(x.dtype), x, columns.astype(x.dtype), optimize=True)


def resize_grad(g, *, out, input_size: tuple[int, int], method: str) -> None:
    """The adjoint of `resize`: g is (N, oh, ow, C), out (N, *input_size, C)."""
    rows, columns = _matrix(input_size[0], g.shape[1], method), _matrix(input_size[1], g.shape[2], method)
    out[...] = np.einsum("ih,nijc,jw->nhwc", rows.astype(g.dtype), g, columns.astype(g.dtype), optimize=True)


def _matrix(before: int, after: int, method: str) -> np.ndarray:
    """The (after, before) matrix that resizes one axis."""
    matrix = np.zeros((after, before))
    for i in range(after):
        centre = (i + 0.5) * before / after
        if method == "nearest":
            matrix[i, min(int(centre), before - 1)] = 1
            continue
        position = min(max(centre - 0.5, 0), before - 1)
        low = int(position)
        matrix[i, low] += 1 - (position - low)
        matrix[i, min(low + 1, before - 1)] += position - low
    return matrix
