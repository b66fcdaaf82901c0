"""Optimiser and moving-average updates in plain NumPy. They write to the inputs they name; `out` is None."""

from __future__ import annotations

import numpy as np


def sgd_update(
    param: np.ndarray,
    grad: np.ndarray,
    buf: np.ndarray,
    lr: np.ndarray,
    *,
    out: None = None,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    dampening: float,
) -> None:
    """One step of SGD as PyTorch defines it (Sutskever et al., 2013). Writes param, and buf with momentum."""
    step = grad + weight_decay * param
    if momentum:
        buf[...] = momentum * buf + (1 - dampening) * step
        step = step + momentum * buf if nesterov else buf
    param -= lr.astype(param.dtype) * step


def adam_update(
    param: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    step: np.ndarray,
    lr: np.ndarray,
    *,
    out: None = None,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One step of Adam (Kingma and Ba, 2015), or AdamW where decoupled (Loshchilov and Hutter, 2019).

    Writes param, m and v. `step` counts from one and has already been incremented.
    """
    t, rate = float(step), float(lr)
    if decoupled:
        param *= 1 - rate * weight_decay
    else:
        grad = grad + weight_decay * param
    m[...] = beta1 * m + (1 - beta1) * grad
    v[...] = beta2 * v + (1 - beta2) * np.square(grad)
    denominator = np.sqrt(v) / np.sqrt(1 - beta2**t) + epsilon
    param -= (rate / (1 - beta1**t)) * (m / denominator).astype(param.dtype)


def moving_average(running: np.ndarray, value: np.ndarray, *, out: None = None, momentum: float) -> None:
    """running = momentum * running + (1 - momentum) * value, in place."""
    running[...] = momentum * running + (1 - momentum) * value
