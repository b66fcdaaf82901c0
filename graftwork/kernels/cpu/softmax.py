"""Softmax, its logarithm, their gradients and the cross-entropy: one pass over cache-resident rows.

The axis is moved last; small arrays stay with NumPy. Sums accumulate in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange

from .jit import njit
from .scalars import constant, exp, row_max, row_sum

PARALLEL_FROM = 1 << 13  # elements; an exponential costs more than an addition, so threads pay off early


@njit(parallel=True, nogil=True)
def _softmax_rows(x, out):
    for i in prange(x.shape[0]):
        row, target = x[i], out[i]
        largest = row_max(row)
        for j in range(row.size):
            target[j] = exp(row[j] - largest)
        scale = constant(1.0 / row_sum(target), largest)
        for j in range(row.size):
            target[j] *= scale


@njit(parallel=True, nogil=True)
def _log_softmax_rows(x, out):
    for i in prange(x.shape[0]):
        row, target = x[i], out[i]
        largest = row_max(row)
        for j in range(row.size):
            target[j] = exp(row[j] - largest)
        log_total = constant(np.log(row_sum(target)), largest)
        for j in range(row.size):
            target[j] = row[j] - largest - log_total


@njit(parallel=True, nogil=True)
def _softmax_grad_rows(g, y, out):
    for i in prange(g.shape[0]):
        up, p, target = g[i], y[i], out[i]
        for j in range(up.size):
            target[j] = up[j] * p[j]
        inner = constant(row_sum(target), up[0])
        for j in range(up.size):
            target[j] = p[j] * (up[j] - inner)


@njit(parallel=True, nogil=True)
def _log_softmax_grad_rows(g, y, out):
    for i in prange(g.shape[0]):
        up, log_p, target = g[i], y[i], out[i]
        total = constant(row_sum(up), up[0])
        for j in range(up.size):
            target[j] = up[j] - exp(log_p[j]) * total


@njit(parallel=True, nogil=True)
def _cross_entropy_rows(logits, labels, smoothing, out):
    for i in prange(logits.shape[0]):
        row = logits[i]
        largest = row_max(row)
        total = 0.0
        for v in row:
            total += exp(v - largest)
        loss = np.log(total) - (1.0 - smoothing) * (row[labels[i]] - largest)
        if smoothing != 0.0:
            loss -= smoothing * (row_sum(row) / row.size - largest)
        out[i] = loss


def _along_last(rows: Callable, axis: int, out: np.ndarray, *arrays: np.ndarray) -> None:
    """Run a kernel of contiguous rows along any axis."""
    width = out.shape[axis]
    if axis == out.ndim - 1:
        rows(*(np.ascontiguousarray(a).reshape(-1, width) for a in arrays), out.reshape(-1, width))
        return
    moved = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in arrays]
    result = np.empty(moved[0].shape, out.dtype)
    rows(*(a.reshape(-1, width) for a in moved), result.reshape(-1, width))
    np.copyto(out, np.moveaxis(result, -1, axis))


def _serves(x: np.ndarray) -> bool:
    return x.size >= PARALLEL_FROM and x.dtype.char in "fd"


def softmax(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """e^x normalised to sum to one along the axis."""
    if _serves(x):
        _along_last(_softmax_rows, axis, out, x)
    elif x.size:
        np.subtract(x, np.maximum.reduce(x, axis, keepdims=True), out)
        np.exp(out, out)
        np.divide(out, np.add.reduce(out, axis, keepdims=True), out)


def log_softmax(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Logarithm of the softmax along the axis."""
    if _serves(x):
        _along_last(_log_softmax_rows, axis, out, x)
    elif x.size:
        np.subtract(x, np.maximum.reduce(x, axis, keepdims=True), out)
        np.subtract(out, np.log(np.add.reduce(np.exp(out), axis, keepdims=True)), out)


def softmax_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Gradient of softmax from its output y: y * (g - sum(g * y))."""
    if _serves(g):
        _along_last(_softmax_grad_rows, axis, out, g, y)
    else:
        np.multiply(g, y, out)
        np.multiply(y, g - np.add.reduce(out, axis, keepdims=True), out)


def log_softmax_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Gradient of log_softmax from its output y: g - e^y * sum(g)."""
    if _serves(g):
        _along_last(_log_softmax_grad_rows, axis, out, g, y)
    else:
        np.multiply(np.exp(y), np.add.reduce(g, axis, keepdims=True), out)
        np.subtract(g, out, out)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, *, out: np.ndarray, label_smoothing: float) -> None:
    """Loss of each row: logits (N, C), integer labels (N,) -> (N,). IndexError for a label outside [0, C)."""
    if not labels.size:
        return
    classes = logits.shape[1]
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise IndexError(f"label {labels[wrong][0]} is out of range for {classes} classes")
    labels = np.ascontiguousarray(labels, np.int64)
    if _serves(logits):
        _cross_entropy_rows(np.ascontiguousarray(logits), labels, float(label_smoothing), out)
        return
    shifted = logits - np.maximum.reduce(logits, 1, keepdims=True)
    np.log(np.add.reduce(np.exp(shifted), 1), out)
    chosen = shifted[np.arange(labels.size), labels]
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * shifted.mean(axis=1)
    np.subtract(out, chosen, out)
