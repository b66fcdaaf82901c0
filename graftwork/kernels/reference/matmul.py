"""Matrix products in plain NumPy."""

from __future__ import annotations

import numpy as np

from ._epilogue import finish


def matmul(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """out[..., i, j] = sum_k a[..., i, k] * b[..., k, j], leading axes broadcast."""
    out[...] = np.matmul(a, b)


def linear(x: np.ndarray, w: np.ndarray, b=None, r=None, *, out: np.ndarray, activation=None) -> None:
    """out[..., o] = activation(sum_i x[..., i] * w[i, o] + b[o] + r[..., o])."""
    out[...] = np.matmul(x, w) if x.ndim > 1 else np.matmul(x[None], w)[0]
    finish(out, b, r, activation)
