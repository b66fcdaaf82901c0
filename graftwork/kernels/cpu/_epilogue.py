"""Bias, residual and activation: their numbers in compiled code, and in place after kernels that cannot fuse them."""

from __future__ import annotations

import numpy as np

from . import scalars
from .jit import njit

ACTIVATIONS = {
    None: 0, "relu": 1, "relu6": 2, "silu": 3, "hard_swish": 4, "sigmoid": 5, "hard_sigmoid": 6, "tanh": 7, "gelu": 8,
}  # fmt: skip


def activation_code(activation: str | None) -> int:
    """The number that the compiled kernels know an activation by; ValueError where none can be fused."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} cannot be fused; expected one of {list(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def finish(y: np.ndarray, b: np.ndarray | None, r: np.ndarray | None, code: int) -> None:
    """y[..., C] = activation(y + b[C] + r) in place."""
    for more in (b, r):
        if more is not None:
            np.add(y, more, y)
    if code in (1, 2):
        np.clip(y, 0, 6 if code == 2 else None, y)  # keeps NaN
    elif code and y.size:
        flat = np.ascontiguousarray(y, np.float32 if y.dtype == np.float16 else y.dtype).reshape(-1)
        _activate(flat, code)
        y[...] = flat.reshape(y.shape)


@njit(nogil=True)
def _activate(y, code):
    for i in range(y.size):
        if code == 3:
            y[i] = scalars.silu(y[i])
        elif code == 4:
            y[i] = scalars.hard_swish(y[i])
        elif code == 5:
            y[i] = scalars.sigmoid(y[i])
        elif code == 6:
            y[i] = scalars.hard_sigmoid(y[i])
        elif code == 7:
            y[i] = scalars.tanh(y[i])
        else:
            y[i] = scalars.gelu(y[i])
