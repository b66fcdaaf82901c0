"""Bias, residual and activation, which the products and convolutions share."""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])
_ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "silu": lambda y: y * _sigmoid(y),
    "hard_swish": lambda y: y * np.clip(y + 3, 0, 6) / 6,
    "sigmoid": lambda y: _sigmoid(y),
    "hard_sigmoid": lambda y: np.clip(y + 3, 0, 6) / 6,
    "tanh": np.tanh,
    "gelu": lambda y: y * (1 + _erf(y / math.sqrt(2))) / 2,
}


def _sigmoid(y):
    return np.exp(-np.logaddexp(0, -y))


def finish(y: np.ndarray, b: np.ndarray | None, r: np.ndarray | None, activation: str | None) -> None:
    """y = activation(y + b + r) in place; b[C] goes along the last axis. ValueError for an activation it does not know."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} cannot be fused; expected one of {list(_ACTIVATIONS)}")
    for more in (b, r):
        if more is not None:
            y += more
    if y.size:
        y[...] = _ACTIVATIONS[activation](y)
