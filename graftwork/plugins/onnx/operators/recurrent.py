"""Recurrent layers, a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, fixed, operator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": F.tanh, "sigmoid": F.sigmoid, "relu": F.relu, "softplus": F.softplus,
    "softsign": lambda x: x / (F.abs(x) + 1.0), "hardsigmoid": lambda x: F.clip(x * 0.2 + 0.5, 0.0, 1.0),
}  # fmt: skip
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


@operator("RNN", "GRU", "LSTM", known=(4,))
def recurrent(c: Call) -> tuple[Tensor, ...]:
    """Y (steps, directions, batch, hidden), the last hidden state, and for LSTM the last cell state."""
    kind, hidden = c.node.kind, c.required("hidden_size")
    direction = c.choice("direction", "forward", ("forward", "reverse", "bidirectional"))
    count = 2 if direction == "bidirectional" else 1
    names = tuple(n.lower() for n in c.attr("activations", DEFAULTS[kind] * count))
    unknown = sorted(set(names) - set(ACTIVATIONS))
    if unknown or len(names) != len(DEFAULTS[kind]) * count:
        raise c.error(f"activations {names}; expected {len(DEFAULTS[kind]) * count} of {', '.join(ACTIVATIONS)}")
    if c.attr("clip") is not None:
        raise c.error("clip is not supported")
    x = c.x()
    batch_first = bool(c.attr("layout", 0))
    x = F.transpose(x, (1, 0, 2)) if batch_first else x
    outputs = []
    for d in range(count):
        functions = [ACTIVATIONS[n] for n in names[d * len(DEFAULTS[kind]) : (d + 1) * len(DEFAULTS[kind])]]
        outputs.append(_direction(c, kind, x, d, direction == "reverse" or d == 1, functions, hidden, batch_first))
    ys, *states = (F.stack(parts, 1 if i == 0 else 0) for i, parts in enumerate(zip(*outputs, strict=True)))
    if batch_first:
        return (F.transpose(ys, (2, 0, 1, 3)), *(F.transpose(s, (1, 0, 2)) for s in states))
    return (ys, *states)


def _direction(c: Call, kind: str, x: Tensor, d: int, backwards: bool, functions: list[Any], hidden: int,
               batch_first: bool) -> tuple[Tensor, ...]:  # fmt: skip
    steps, batch, _ = x.shape
    w, r = F.transpose(c.x(1)[d], (1, 0)), F.transpose(c.x(2)[d], (1, 0))
    zero = fixed(x, np.zeros((batch, hidden)))
    bias = c.x(3)[d] if c.has(3) else fixed(x, np.zeros(2 * GATES[kind] * hidden))
    wide = GATES[kind] * hidden
    lengths = c.known(4) if c.has(4) else None

    def first(i: int) -> Tensor:
        if not c.has(i):
            return zero
        return c.x(i)[:, d] if batch_first else c.x(i)[d]

    state = [first(5), first(6)] if kind == "LSTM" else [first(5)]
    given = F.linear(x, w, bias[:wide])
    cell = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[kind](c, d, r, bias[wide:], functions, hidden)
    results: list[Tensor | None] = [None] * steps
    for t in reversed(range(steps)) if backwards else range(steps):
        new = cell(given[t], *state)
        if lengths is not None and int(lengths.min()) <= t:  # sequences that have ended keep their state and give zeros
            on = fixed(x, (t < lengths)[:, None], bool)
            results[t] = F.where(on, new[0], zero)
            new = [F.where(on, a, b) for a, b in zip(new, state, strict=True)]
        else:
            results[t] = new[0]
        state = new
    return (F.stack([y for y in results if y is not None], 0), *state)


def _rnn(c: Call, d: int, r: Tensor, bias: Tensor, f: list[Any], hidden: int) -> Callable[..., list[Tensor]]:
    return lambda given, h: [f[0](given + F.linear(h, r, bias))]


def _gru(c: Call, d: int, r: Tensor, bias: Tensor, f: list[Any], hidden: int) -> Callable[..., list[Tensor]]:
    after = bool(c.attr("linear_before_reset", 0))
    gates = 2 * hidden

    def step(given: Tensor, h: Tensor) -> list[Tensor]:
        both = f[0](given[:, :gates] + F.linear(h, r[:, :gates], bias[:gates]))
        update, reset = both[:, :hidden], both[:, hidden:]
        if after:
            candidate = f[1](given[:, gates:] + reset * F.linear(h, r[:, gates:], bias[gates:]))
        else:
            candidate = f[1](given[:, gates:] + F.linear(reset * h, r[:, gates:], bias[gates:]))
        return [(1.0 - update) * candidate + update * h]

    return step


def _lstm(c: Call, d: int, r: Tensor, bias: Tensor, f: list[Any], hidden: int) -> Callable[..., list[Tensor]]:
    if c.attr("input_forget", 0):
        raise c.error("input_forget is not supported")
    peep = c.x(7)[d] if c.has(7) else None

    def step(given: Tensor, h: Tensor, cell: Tensor) -> list[Tensor]:
        i, o, g, n = F.split(given + F.linear(h, r, bias), 4, -1)
        if peep is not None:
            i, g = i + peep[:hidden] * cell, g + peep[2 * hidden :] * cell
        new = f[0](g) * cell + f[0](i) * f[1](n)
        o = o if peep is None else o + peep[hidden : 2 * hidden] * new
        return [f[0](o) * f[2](new), new]

    return step
