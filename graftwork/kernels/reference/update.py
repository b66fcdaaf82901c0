"""Optimiser and moving-average updates in plain NumPy. They write to the inputs they name; `out` is None."""

from __future__ import annotations

import numpy as np


def sgd_update(*arrays: np.ndarray, out: None = None, momentum: float, nesterov: bool, weight_decay: float,
               dampening: float) -> None:  # fmt: skip
    """One step of SGD as PyTorch defines it (Sutskever et al., 2013), for every (param, grad, buf) before the learning rate.

    Writes param, and buf with momentum.
    """
    *given, lr = arrays
    for param, grad, buf in zip(given[0::3], given[1::3], given[2::3], strict=True):
        step = grad + weight_decay * param
        if momentum:
            buf[...] = momentum * buf + (1 - dampening) * step
            step = step + momentum * buf if nesterov else buf
        param -= lr.astype(param.dtype) * step


def adam_update(*arrays: np.ndarray, out: None = None, **attrs) -> None:
    """One step of Adam (Kingma and Ba, 2015), or AdamW where decoupled (Loshchilov and Hutter, 2019), for every
    (param, grad, m, v, step) before the learning rate.

    Writes param, m and v. `step` counts from one and has already been incremented.
    """
    *given, lr = arrays
    for group in zip(*(given[i::5] for i in range(5)), strict=True):
        _adam_one(*group, lr, **attrs)


def _adam_one(param, grad, m, v, step, lr, beta1: float, beta2: float, epsilon: float, weight_decay: float,
              decoupled: bool) -> None:  # fmt: skip
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
