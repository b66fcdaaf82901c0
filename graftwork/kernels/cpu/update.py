"""Optimiser and moving-average updates, each in one pass over the data. They write to the inputs they name."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import njit
from .scalars import constant

PARALLEL_FROM = 1 << 13  # elements; below, a few NumPy ufuncs cost less than starting threads


def _flat(*arrays: np.ndarray) -> bool:
    """Whether one flat compiled loop may serve the arrays."""
    kind = arrays[0].dtype
    return kind.char in "fd" and all(a.flags.c_contiguous and a.dtype is kind for a in arrays)


@njit(parallel=True, nogil=True)
def _sgd(param, grad, buf, lr, momentum, nesterov, weight_decay, kept):
    rate, decay = constant(lr, param), constant(weight_decay, param)
    mu, share = constant(momentum, param), constant(kept, param)
    for i in prange(param.size):
        step = grad[i] + decay * param[i]
        if momentum != 0.0:
            buf[i] = mu * buf[i] + share * step
            step = step + mu * buf[i] if nesterov else buf[i]
        param[i] -= rate * step


@njit(parallel=True, nogil=True)
def _adam(param, grad, m, v, rate, beta1, beta2, root, epsilon, shrink, weight_decay):
    b1, b2, pace, eps = constant(beta1, param), constant(beta2, param), constant(rate, param), constant(epsilon, param)
    r1, r2 = constant(1.0 - beta1, param), constant(1.0 - beta2, param)
    inverse_root, keep, decay = constant(1.0 / root, param), constant(shrink, param), constant(weight_decay, param)
    for i in prange(param.size):
        p = param[i] * keep
        g = grad[i] + decay * p
        m[i] = b1 * m[i] + r1 * g
        v[i] = b2 * v[i] + r2 * g * g
        param[i] = p - pace * m[i] / (np.sqrt(v[i]) * inverse_root + eps)


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
    if param.size >= PARALLEL_FROM and _flat(param, grad, buf):
        flat = (a.reshape(-1) for a in (param, grad, buf))
        _sgd(*flat, float(lr), float(momentum), bool(nesterov), float(weight_decay), 1.0 - dampening)
        return
    step = grad + weight_decay * param if weight_decay else grad
    if momentum:
        np.multiply(buf, momentum, buf)
        np.add(buf, step if dampening == 0 else (1 - dampening) * step, buf)
        step = step + momentum * buf if nesterov else buf
    np.subtract(param, step * float(lr), param)


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
    t, lr = float(step), float(lr)
    rate, root = lr / (1 - beta1**t), (1 - beta2**t) ** 0.5
    shrink = 1 - lr * weight_decay if decoupled else 1.0
    decay = 0.0 if decoupled else float(weight_decay)
    if param.size >= PARALLEL_FROM and _flat(param, grad, m, v):
        flat = (a.reshape(-1) for a in (param, grad, m, v))
        _adam(*flat, rate, float(beta1), float(beta2), root, float(epsilon), float(shrink), decay)
        return
    if shrink != 1:
        np.multiply(param, shrink, param)
    if decay:
        grad = grad + decay * param
    np.multiply(m, beta1, m)
    np.add(m, grad * (1 - beta1), m)
    np.multiply(v, beta2, v)
    np.add(v, np.square(grad) * (1 - beta2), v)
    denominator = np.sqrt(v) / root
    denominator += epsilon
    np.subtract(param, m * rate / denominator, param)


def moving_average(running: np.ndarray, value: np.ndarray, *, out: None = None, momentum: float) -> None:
    """running = momentum * running + (1 - momentum) * value, in place."""
    np.multiply(running, momentum, running)
    np.add(running, value * (1 - momentum), running)
