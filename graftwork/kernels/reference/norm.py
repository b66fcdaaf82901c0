"""Batch and layer normalisation over arrays whose last axis is the channel, in plain NumPy (statistics in float64)."""

from __future__ import annotations

import numpy as np


def batch_norm(x, gamma, beta, mean, var, *, out: np.ndarray, epsilon: float) -> None:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta with given statistics; x (..., C), the others (C,)."""
    out[...] = (x - mean) / np.sqrt(var + epsilon) * gamma + beta


def batch_norm_train(x, gamma, beta, *, out: tuple, epsilon: float) -> None:
    """Normalise by the batch's own statistics -> y (..., C), mean (C,), biased variance (C,)."""
    y, mean, var = out
    axes = tuple(range(x.ndim - 1))
    mean[...] = np.mean(x, axis=axes, dtype=np.float64)
    var[...] = np.var(x, axis=axes, dtype=np.float64)
    batch_norm(x, gamma, beta, mean, var, out=y, epsilon=epsilon)


def batch_norm_grad(g, x, gamma, mean, var, *, out: tuple, epsilon: float) -> None:
    """Gradients (dx, dgamma, dbeta) of `batch_norm_train`, from its batch statistics (Ioffe and Szegedy, 2015)."""
    dx, dgamma, dbeta = out
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    rstd = 1 / np.sqrt(var + epsilon)
    normal = (x - mean) * rstd
    dgamma[...] = np.sum(g * normal, axis=axes, dtype=np.float64)
    dbeta[...] = np.sum(g, axis=axes, dtype=np.float64)
    dx[...] = gamma * rstd * (g - dbeta / count - normal * dgamma / count)


def layer_norm(x, gamma, beta, *, out: tuple, epsilon: float) -> None:
    """Normalise each row of the last axis -> y (..., C), mean (...), 1 / standard deviation (...)."""
    y, mean, rstd = out
    mean[...] = np.mean(x, axis=-1, dtype=np.float64)
    rstd[...] = 1 / np.sqrt(np.var(x, axis=-1, dtype=np.float64) + epsilon)
    y[...] = (x - mean[..., None]) * rstd[..., None] * gamma + beta


def layer_norm_grad(g, x, gamma, mean, rstd, *, out: tuple) -> None:
    """Gradients (dx, dgamma, dbeta) of `layer_norm` (Ba et al., 2016)."""
    dx, dgamma, dbeta = out
    axes = tuple(range(x.ndim - 1))
    normal = (x - mean[..., None]) * rstd[..., None]
    dgamma[...] = np.sum(g * normal, axis=axes, dtype=np.float64)
    dbeta[...] = np.sum(g, axis=axes, dtype=np.float64)
    scaled = g * gamma
    along = np.mean(scaled * normal, axis=-1, keepdims=True)
    dx[...] = rstd[..., None] * (scaled - np.mean(scaled, axis=-1, keepdims=True) - normal * along)
