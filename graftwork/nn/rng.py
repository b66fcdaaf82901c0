"""Randomness from one explicit place.

`manual_seed(n)` sets both generators: NumPy's, which draws initial weights and shuffles, and the counter-based state
(seed, counter) that random ops read and advance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from ..errors import ConfigError
from .autograd import mark_written, mode
from .tensor import Tensor, tensor

_generator = np.random.default_rng(0)
_state = Tensor(np.array([0, 0], np.uint64))
_on_devices: dict[str, Tensor] = {}  # copies on GPUs, made from the CPU's state when a device first draws, then on their own


def manual_seed(seed: int) -> np.random.Generator:
    """Start all randomness again from `seed` (0 to 2**64 - 1); returns NumPy's generator."""
    global _generator
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ConfigError(f"manual_seed: {seed!r}; expected an integer from 0 to 2**64 - 1")
    if mode.trace is not None:
        mode.trace.refuse("the seed is set inside a captured function; set it outside, between its calls")
    _generator = np.random.default_rng(int(seed))
    _state.data[:] = seed, 0
    mark_written(_state)
    _on_devices.clear()
    return _generator


def generator() -> np.random.Generator:
    """The NumPy generator that initialisers and data loaders draw from."""
    if mode.trace is not None:
        mode.trace.refuse("NumPy's generator draws inside a captured function, which would freeze what it drew; use random ops")
    return _generator


def default_state(device: str = "cpu") -> Tensor:
    """The state that random ops on a device use unless given another: uint64 (seed, counter)."""
    if device == "cpu":
        return _state
    if device not in _on_devices:
        _on_devices[device] = tensor(_state.data.copy(), device=device)
    return _on_devices[device]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All randomness from `seed` inside the block, and as it was before after it."""
    global _generator
    before, generator = get_state(), _generator
    manual_seed(seed)
    try:
        yield
    finally:
        _generator = generator
        set_state(before)


def get_state() -> dict:
    """Everything needed to go on exactly from here, as plain values."""
    state = {"numpy": _generator.bit_generator.state, "ops": [int(v) for v in _state.data]}
    if _on_devices:
        state["devices"] = {name: [int(v) for v in t.numpy()] for name, t in _on_devices.items()}
    return state


def set_state(state: dict) -> None:
    """Go on from what `get_state` returned."""
    _generator.bit_generator.state = state["numpy"]
    _state.data[:] = state["ops"]
    mark_written(_state)
    _on_devices.clear()
    for name, values in state.get("devices", {}).items():
        _on_devices[name] = tensor(np.array(values, np.uint64), device=name)
