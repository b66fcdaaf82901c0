"""Matrix products: our own where they are large enough for packing to pay, else BLAS. Both write into the destination."""

from __future__ import annotations

import math

import numpy as np

from ..plan import spec_of
from . import gemm, runtime
from ._epilogue import activation_code, finish

GEMM_FROM = 1 << 21  # multiplications; below, BLAS is done before a plan is bound
GEMM_ROWS = 16  # fewer rows of the left matrix do not pay for packing the right one
GEMM_COLUMNS = 8


def gemm_pays(m: int, n: int, k: int, entries: int, dtype) -> bool:
    """Whether a product of (m, k) and (k, n) matrices is our own kernel's."""
    return dtype == np.float32 and m >= GEMM_ROWS and n >= GEMM_COLUMNS and m * n * k * entries >= GEMM_FROM


def matmul(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """out[..., i, j] = sum_k a[..., i, k] * b[..., k, j], leading axes broadcast."""
    m, n = out.shape[-2:]
    pays = gemm_pays(m, n, a.shape[-1], math.prod(out.shape[:-2]), out.dtype)
    (matmul_gemm if pays else matmul_blas)(a, b, out=out)


def matmul_gemm(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """For float32: `gemm.py`."""
    if 0 in out.shape:
        return
    if out.flags.c_contiguous:
        gemm.multiply_arrays(a, b, out)
    else:
        plain = np.empty(out.shape, out.dtype)
        gemm.multiply_arrays(a, b, plain)
        out[...] = plain


def matmul_blas(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
    """NumPy's, which is BLAS for float32 and float64."""
    np.matmul(blas_ready(a), blas_ready(b), out=out)


def linear(x: np.ndarray, w: np.ndarray, b=None, r=None, *, out: np.ndarray, activation=None) -> None:
    """out[..., o] = activation(sum_i x[..., i] * w[i, o] + b[o] + r[..., o]) for x[..., I], w[I, O], b[O], r like out.

    Raises ValueError for an activation that cannot be fused.
    """
    pays = gemm_pays(math.prod(x.shape[:-1]), w.shape[1], w.shape[0], 1, x.dtype)
    (linear_gemm if pays else linear_blas)(x, w, b, r, out=out, activation=activation)


def linear_gemm(x: np.ndarray, w: np.ndarray, b=None, r=None, *, out: np.ndarray, activation=None) -> None:
    """For float32: `gemm.py`, with everything fused."""
    arrays = [a for a in (x, w, b, r) if a is not None]
    if b is None and r is not None:
        arrays.insert(2, np.zeros(w.shape[1], w.dtype))
    plan = gemm.plan_linear(*map(spec_of, arrays), out=spec_of(out), activation=activation)
    if plan is not None:
        runtime.call(plan, arrays, (out,))


def linear_blas(x: np.ndarray, w: np.ndarray, b=None, r=None, *, out: np.ndarray, activation=None) -> None:
    """NumPy's product, then bias, residual and activation."""
    code = activation_code(activation)
    rows = math.prod(x.shape[:-1])
    flat = out.reshape(rows, w.shape[1])
    np.matmul(blas_ready(x.reshape(rows, w.shape[0])), blas_ready(w), out=flat)
    finish(out, b, r, code)


def blas_ready(a: np.ndarray) -> np.ndarray:
    """The array itself if BLAS can read its last two axes as a matrix or as a transposed one, else a copy.

    NumPy multiplies other layouts with its own scalar loops, which are slower by orders of magnitude.
    """
    (rows, columns), (down, along), item = a.shape[-2:], a.strides[-2:], a.itemsize
    plain = along == item and down % item == 0 and down >= columns * item
    transposed = down == item and along % item == 0 and along >= rows * item
    return a if plain or transposed else np.ascontiguousarray(a)
