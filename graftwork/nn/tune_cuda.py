"""Measuring the choices of CUDA kernels for a model's products and convolutions: `graftwork tune --device cuda`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import registry
from .graph import Graph, Node
from .tune import Choice

TUNED = ("conv2d", "linear", "matmul")
ROUNDS, REPEATS = 5, 20


def tune(graph: Graph, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Choice]:
    """Time the options of every choice that a graph's products leave, on the current GPU. Nothing is kept:
    `kernels.cuda.tuning.keep` does that."""
    nodes = [n for n in graph.nodes if n.op.name in TUNED and n.output.size]
    found: dict[str, Choice] = {}
    for i, node in enumerate(nodes):
        progress(i, len(nodes))
        for key, (usual, times) in _tune_node(node).items():
            found.setdefault(key, Choice(key, {option: t * 1e6 for option, t in times.items()}, usual, usual))
    progress(len(nodes), len(nodes))
    return list(found.values())


def _tune_node(node: Node) -> dict[str, tuple[str, dict[str, float]]]:
    from ..kernels.cuda import launch, tuning

    fn = registry.get(node.op.name, device="cuda", dtype=node.output.dtype)
    arrays = [_random(v.shape, v.dtype) for v in node.inputs]
    out = launch.empty(node.output.shape, node.output.dtype)
    everything = (*arrays, out)
    machine = launch.machine_of(everything)

    def made():
        return tuning.describe(fn, arrays, out, node.attrs)

    return tuning.tune(made, lambda description: seconds(lambda: launch.run(description, everything, machine)))


def _random(shape, dtype) -> Any:
    import cupy

    return cupy.asarray(np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype))


def seconds(run: Callable[[], None]) -> float:
    """Median time of a call on the GPU, by its own clock. The first call compiles."""
    import cupy

    run()
    times = []
    for _ in range(ROUNDS):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(REPEATS):
            run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3 / REPEATS)
    return float(np.median(times))
