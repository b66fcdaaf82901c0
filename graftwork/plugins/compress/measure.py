"""What a network costs: bytes on disk and in memory, milliseconds, right answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...nn import Module, Tensor, compile, no_grad
from ...nn.modules.module import listen
from ...nn.profiling import describe
from ..transfer.evaluation import wilson
from .rounding import relative_error

BATCHES = (1, 32)
SECONDS, MOST = 1.0, 20  # a latency is the median of so many calls at most, in about this time


def executable_of(run: Callable[[Tensor], Tensor], x: np.ndarray) -> Any:
    """The static graph that computes `run` for inputs like x, planned."""
    if hasattr(run, "_plan"):  # a quantised model has its own
        return run._plan(x.shape)[0]
    with no_grad():
        return compile(run).executable(Tensor(x))


def memory(executable: Any) -> int:
    """Bytes that a call needs: weights as they are kept, constants, what is computed ahead, the arena, inputs and outputs."""
    found = describe(executable)["memory"]
    constants = sum(a.nbytes for a in executable.graph.constants.values())
    return int(constants + sum(found[name] for name in ("state", "ahead", "arena", "inputs", "outputs")))


def latency(executable: Any, x: np.ndarray) -> float:
    """Milliseconds a call, the median."""
    executable.run([x])
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (len(times) < MOST and time.perf_counter() - start < SECONDS):
        before = time.perf_counter()
        executable.run([x])
        times.append(time.perf_counter() - before)
    return 1e3 * float(np.median(times))


def costs(run: Callable[[Tensor], Tensor], inputs: np.ndarray) -> dict[str, Any]:
    """Memory at batch 1, and latency at each of BATCHES, with copies of the first input."""
    found: dict[str, Any] = {"latency_ms": {}}
    for batch in BATCHES:
        x = np.ascontiguousarray(np.repeat(inputs[:1], batch, axis=0))
        executable = executable_of(run, x)
        found["latency_ms"][str(batch)] = latency(executable, x)
        if batch == 1:
            found["memory"] = memory(executable)
    return found


def answers(scores: np.ndarray, truth: np.ndarray, before: np.ndarray | None = None) -> dict[str, Any]:
    """Accuracy with its 95 % interval; beside scores `before`: points lost, answers that changed, the scores' error."""
    right = scores.argmax(axis=1) == truth
    found: dict[str, Any] = {"accuracy": float(right.mean()), "interval": list(wilson(int(right.sum()), len(right)))}
    if before is not None:
        known = before.argmax(axis=1) == truth
        found |= {
            "points_lost": 100 * float(known.mean() - right.mean()), "right_to_wrong": int((known & ~right).sum()),
            "wrong_to_right": int((~known & right).sum()),
            "changed": int((before.argmax(axis=1) != scores.argmax(axis=1)).sum()),
            "score_error": relative_error(scores, before),
        }  # fmt: skip
    return found


def layer_outputs(network: Module, run: Callable[[Tensor], Tensor], x: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer with weights returns for the inputs x, by its path."""
    layers = {
        path: module for path, module in network.named_modules() if any(p.ndim >= 2 for p in module._parameters.values())
    }  # fmt: skip
    with listen(list(layers.values())) as heard, no_grad():
        run(Tensor(x))
        return {path: heard(module).numpy().copy() for path, module in layers.items() if heard(module) is not None}
