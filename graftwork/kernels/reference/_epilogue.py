"""Bias and activation, which the products and convolutions share."""

from __future__ import annotations

import numpy as np

_ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.minimum(np.maximum(y, 0), 6),
}


def add_bias_and_activate(y: np.ndarray, b: np.ndarray | None, activation: str | None) -> None:
    """y = activation(y + b) in place; b[C] goes along the last axis. ValueError for an activation it does not know."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} cannot be fused; expected one of {list(_ACTIVATIONS)}")
    y[...] = _ACTIVATIONS[activation](y if b is None else y + b)
