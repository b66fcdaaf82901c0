"""Graphs within graphs: a branch, a loop, a scan. What decides them must be known when a network is captured."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, Program, Value, operator


def _inside(c: Call, program: Program, inputs: list[Value]) -> list[Value]:
    """An inner graph's outputs; it sees what is in scope around it."""
    from ..model import run

    scope = dict(c.scope) | {name: Value(known=a) for name, a in program.constants.items()}
    scope |= dict(zip(program.inputs, inputs, strict=True))
    run(program, scope, c.opset, c.device)
    return [scope[name] for name in program.outputs]


@operator("If", known=(0,))
def branch(c: Call) -> list[Value]:
    chosen, other = ("then_branch", "else_branch") if c.number(0) else ("else_branch", "then_branch")
    c.attr(other)
    return _inside(c, c.required(chosen), [])


def _stacked(c: Call, parts: list[Value], axis: int) -> Value:
    if all(p.known is not None for p in parts):
        return Value(known=np.stack([p.known for p in parts], axis))  # type: ignore[misc]
    return Value(F.stack([p.plain(c.device) for p in parts], axis))


@operator("Loop", known=(0, 1))
def loop(c: Call) -> list[Value]:
    body: Program = c.required("body")
    limit, going = c.number(0), bool(c.number(1, True))
    carried = [c.value(i) for i in range(2, len(c.inputs))]
    collected: list[list[Value]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    t = 0
    while going and (limit is None or t < limit):
        results = _inside(c, body, [Value(known=np.array(t, np.int64)), Value(known=np.array(going)), *carried])
        going = bool(_decision(c, results[0]))
        carried = results[1 : 1 + len(carried)]
        for parts, result in zip(collected, results[1 + len(carried) :], strict=True):
            parts.append(result)
        t += 1
    if any(not parts for parts in collected):
        raise c.error("a loop that collects results did not run once; the shape of nothing is not supported")
    return [*carried, *(_stacked(c, parts, 0) for parts in collected)]


def _decision(c: Call, value: Value) -> Any:
    return value.known.reshape(-1)[0] if value.known is not None else value.plain(c.device).item()


@operator("Scan")
def scan(c: Call) -> list[Value]:
    body: Program = c.required("body")
    count = c.required("num_scan_inputs")
    if c.opset < 9:
        raise c.error("the form of opset 8 is not supported; use 9 or newer")
    states = [c.value(i) for i in range(len(c.inputs) - count)]
    axes = c.attr("scan_input_axes", (0,) * count)
    backwards = c.attr("scan_input_directions", (0,) * count)
    slices = [_slices(c, len(states) + i, axes[i], bool(backwards[i])) for i in range(count)]
    results_count = len(body.outputs) - len(states)
    collected: list[list[Value]] = [[] for _ in range(results_count)]
    for step in zip(*slices, strict=True):
        results = _inside(c, body, [*states, *(Value(s) for s in step)])
        states = results[: len(states)]
        for parts, result in zip(collected, results[len(states) :], strict=True):
            parts.append(result)
    out_axes = c.attr("scan_output_axes", (0,) * results_count)
    out_backwards = c.attr("scan_output_directions", (0,) * results_count)
    ordered = [parts[::-1] if back else parts for parts, back in zip(collected, out_backwards, strict=True)]
    return [*states, *(_stacked(c, parts, axis) for parts, axis in zip(ordered, out_axes, strict=True))]


def _slices(c: Call, i: int, axis: int, backwards: bool) -> list[Tensor]:
    x = c.x(i)
    found = [x[tuple(t if k == axis % x.ndim else slice(None) for k in range(x.ndim))] for t in range(x.shape[axis])]
    return found[::-1] if backwards else found
