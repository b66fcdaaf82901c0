"""Batch and layer normalisation over arrays whose last axis is the channel.

Threads take blocks of rows and keep float64 partial sums of their own, which are then added in order: results depend
neither on the number of threads nor on their timing.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import njit

SMALL = 1 << 13  # elements, below which inference stays with NumPy
BLOCK = 1 << 13  # fewest elements worth a block of their own
MOST_BLOCKS = 32


def _rows(*arrays: np.ndarray) -> list[np.ndarray]:
    """Contiguous (rows, channels) views or copies."""
    channels = arrays[0].shape[-1]
    rows = arrays[0].size // max(channels, 1)
    return [np.ascontiguousarray(a).reshape(rows, channels) for a in arrays]


def _blocks(x: np.ndarray) -> int:
    return max(1, min(MOST_BLOCKS, x.size // BLOCK))


@njit(parallel=True, nogil=True)
def _normalise(x, mean, scale, beta, out):
    """out = (x - mean) * scale + beta for rows x (rows, C)."""
    for i in prange(x.shape[0]):
        row, target = x[i], out[i]
        for c in range(row.size):
            target[c] = (row[c] - mean[c]) * scale[c] + beta[c]


@njit(parallel=True, nogil=True)
def _moments(x, blocks):
    """Sums and sums of squares of x - x[0] by block -> float64 (blocks, 2, C).

    Shifting by a sample keeps the squares from cancelling (Chan, Golub and LeVeque, 1983).
    """
    rows, channels = x.shape
    partial = np.zeros((blocks, 2, channels))
    for b in prange(blocks):
        total, squares, shift = partial[b, 0], partial[b, 1], x[0]
        for r in range(b * rows // blocks, (b + 1) * rows // blocks):
            row = x[r]
            for c in range(channels):
                d = np.float64(row[c]) - shift[c]
                total[c] += d
                squares[c] += d * d
    return partial


@njit(parallel=True, nogil=True)
def _batch_grad_sums(g, x, mean, blocks):
    """Sums of g and of g * (x - mean) by block -> float64 (blocks, 2, C)."""
    rows, channels = x.shape
    partial = np.zeros((blocks, 2, channels))
    for b in prange(blocks):
        total, along = partial[b, 0], partial[b, 1]
        for r in range(b * rows // blocks, (b + 1) * rows // blocks):
            up, row = g[r], x[r]
            for c in range(channels):
                total[c] += up[c]
                along[c] += up[c] * (row[c] - mean[c])
    return partial


@njit(parallel=True, nogil=True)
def _batch_grad_rows(g, x, mean, scale, offset, slope, out):
    """out = scale * (g - offset - (x - mean) * slope) for rows (rows, C)."""
    for i in prange(x.shape[0]):
        up, row, target = g[i], x[i], out[i]
        for c in range(row.size):
            target[c] = scale[c] * (up[c] - offset[c] - (row[c] - mean[c]) * slope[c])


def batch_norm(x, gamma, beta, mean, var, *, out: np.ndarray, epsilon: float) -> None:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta with given statistics; x (..., C), the others (C,)."""
    scale = gamma / np.sqrt(var + x.dtype.type(epsilon))
    if x.size < SMALL:
        np.subtract(x, mean, out)
        np.multiply(out, scale, out)
        np.add(out, beta, out)
    else:
        vectors = (np.ascontiguousarray(v) for v in (mean, scale, beta))
        _normalise(*_rows(x), *vectors, out.reshape(-1, x.shape[-1]))


def batch_norm_train(x, gamma, beta, *, out: tuple, epsilon: float) -> None:
    """Normalise by the batch's own statistics -> y (..., C), mean (C,), biased variance (C,)."""
    y, mean, var = out
    (rows,) = _rows(x)
    total, squares = _moments(rows, _blocks(rows)).sum(axis=0) / rows.shape[0]
    np.add(total, rows[0], out=mean, casting="same_kind")
    np.subtract(squares, total * total, out=var, casting="same_kind")
    np.maximum(var, 0, out=var)  # a constant channel may round to just below zero
    batch_norm(x, gamma, beta, mean, var, out=y, epsilon=epsilon)


def batch_norm_grad(g, x, gamma, mean, var, *, out: tuple, epsilon: float) -> None:
    """Gradients (dx, dgamma, dbeta) of `batch_norm_train`, from its batch statistics (Ioffe and Szegedy, 2015)."""
    dx, dgamma, dbeta = out
    up, rows = _rows(g, x)
    count = max(rows.shape[0], 1)
    total, along = _batch_grad_sums(up, rows, np.ascontiguousarray(mean), _blocks(rows)).sum(axis=0)
    rstd = 1 / np.sqrt(var.astype(np.float64) + epsilon)
    np.multiply(along, rstd, out=dgamma, casting="same_kind")
    np.copyto(dbeta, total, casting="same_kind")
    factors = (mean, gamma * rstd, total / count, along * rstd * rstd / count)
    vectors = (np.ascontiguousarray(v, x.dtype) for v in factors)
    _batch_grad_rows(up, rows, *vectors, dx.reshape(rows.shape))


@njit(parallel=True, nogil=True, fastmath={"reassoc"})  # sums in SIMD lanes; NaN and infinity are kept
def _layer_norm_rows(x, gamma, beta, epsilon, y, mean, rstd):
    for i in prange(x.shape[0]):
        row, target = x[i], y[i]
        total = 0.0
        for v in row:
            total += v
        centre = total / row.size
        squares = 0.0
        for v in row:
            squares += (v - centre) * (v - centre)
        mean[i] = centre
        rstd[i] = 1.0 / np.sqrt(squares / row.size + epsilon)
        shift, scale = mean[i], rstd[i]
        for c in range(row.size):
            target[c] = (row[c] - shift) * scale * gamma[c] + beta[c]


@njit(parallel=True, nogil=True, fastmath={"reassoc"})
def _layer_norm_grad_rows(g, x, gamma, mean, rstd, blocks, dx):
    """dx, and the sums of g * normalised x and of g by block -> float64 (blocks, 2, C)."""
    rows, channels = x.shape
    partial = np.zeros((blocks, 2, channels))
    for b in prange(blocks):
        dgamma, dbeta = partial[b, 0], partial[b, 1]
        for r in range(b * rows // blocks, (b + 1) * rows // blocks):
            up, row, target, shift, scale = g[r], x[r], dx[r], mean[r], rstd[r]
            total, along = 0.0, 0.0
            for c in range(channels):
                normal = (row[c] - shift) * scale
                weighted = up[c] * gamma[c]
                total += weighted
                along += weighted * normal
                dgamma[c] += up[c] * normal
                dbeta[c] += up[c]
            total, along = total / channels, along / channels
            for c in range(channels):
                target[c] = scale * (up[c] * gamma[c] - total - (row[c] - shift) * scale * along)
    return partial


def layer_norm(x, gamma, beta, *, out: tuple, epsilon: float) -> None:
    """Normalise each row of the last axis -> y (..., C), mean (...), 1 / standard deviation (...)."""
    y, mean, rstd = out
    (rows,) = _rows(x)
    vectors = (np.ascontiguousarray(v) for v in (gamma, beta))
    _layer_norm_rows(rows, *vectors, float(epsilon), y.reshape(rows.shape), mean.reshape(-1), rstd.reshape(-1))


def layer_norm_grad(g, x, gamma, mean, rstd, *, out: tuple) -> None:
    """Gradients (dx, dgamma, dbeta) of `layer_norm` (Ba et al., 2016)."""
    dx, dgamma, dbeta = out
    up, rows = _rows(g, x)
    vectors = [np.ascontiguousarray(v).reshape(-1) for v in (gamma, mean, rstd)]
    partial = _layer_norm_grad_rows(up, rows, *vectors, _blocks(rows), dx.reshape(rows.shape)).sum(axis=0)
    np.copyto(dgamma, partial[0], casting="same_kind")
    np.copyto(dbeta, partial[1], casting="same_kind")
