"""Softmax, its logarithm, their gradients and the cross-entropy, in plain NumPy."""

from __future__ import annotations

import numpy as np


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        shifted = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
        return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def softmax(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """e^x normalised to sum to one along the axis."""
    with np.errstate(all="ignore"):
        powers = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
        out[...] = powers / np.sum(powers, axis=axis, keepdims=True)


def log_softmax(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Logarithm of the softmax along the axis."""
    out[...] = _log_softmax(x, axis)


def softmax_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Gradient of softmax from its output y: y * (g - sum(g * y))."""
    out[...] = y * (g - np.sum(g * y, axis=axis, keepdims=True))


def log_softmax_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Gradient of log_softmax from its output y: g - e^y * sum(g)."""
    out[...] = g - np.exp(y) * np.sum(g, axis=axis, keepdims=True)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, *, out: np.ndarray, label_smoothing: float) -> None:
    """Loss of each row: logits (N, C), integer labels (N,) -> (N,).

    Smoothing mixes the one-hot target with the uniform one (Szegedy et al., 2016). IndexError for a label outside
    [0, C).
    """
    rows, classes = logits.shape
    for label in labels:
        if not 0 <= label < classes:
            raise IndexError(f"label {label} is out of range for {classes} classes")
    log_p = _log_softmax(logits, axis=1)
    chosen = log_p[np.arange(rows), labels]
    out[...] = -(1 - label_smoothing) * chosen
    if label_smoothing:
        out[...] -= label_smoothing * np.mean(log_p, axis=1)
