"""Matrix products: BLAS writes straight into the destination."""

from __future__ import annotations

import math

import numpy as np

from ._epilogue import activation_code, add_bias_and_activate


def matmul(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """out[..., i, j] = sum_k a[..., i, k] * b[..., k, j], leading axes broadcast."""
    np.matmul(blas_ready(a), blas_ready(b), out=out)


def linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, out: np.ndarray, activation=None) -> None:
    """out[..., o] = activation(sum_i x[..., i] * w[i, o] + b[o]) for x[..., I], w[I, O], b[O].

    Raises ValueError for an activation other than None, "relu" and "relu6".
    """
    code = activation_code(activation)
    rows = math.prod(x.shape[:-1])
    flat = out.reshape(rows, w.shape[1])
    np.matmul(blas_ready(x.reshape(rows, w.shape[0])), blas_ready(w), out=flat)
    add_bias_and_activate(flat, b, code)


def blas_ready(a: np.ndarray) -> np.ndarray:
    """The array itself if BLAS can read its last two axes as a matrix or as a transposed one, else a copy.

    NumPy multiplies other layouts with its own scalar loops, which are slower by orders of magnitude.
    """
    (rows, columns), (down, along), item = a.shape[-2:], a.strides[-2:], a.itemsize
    plain = along == item and down % item == 0 and down >= columns * item
    transposed = down == item and along % item == 0 and along >= rows * item
    return a if plain or transposed else np.ascontiguousarray(a)
