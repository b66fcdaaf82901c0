"""Measuring which kernel is the fastest for each convolution of a model, on this machine: `graftwork tune`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..kernels.plan import Plan, Spec, aligned_empty
from .graph import Graph, Node

ROUNDS, LEAST_SECONDS = 7, 2e-3
BETTER = 0.97  # a candidate replaces the heuristic's choice only if it takes less than this share of its time


class Choice(NamedTuple):
    """One convolution: its key in the table, microseconds by candidate ("heuristic" among them), and which candidate the
    heuristic chose."""

    key: str
    times: dict[str, float]
    chosen: str
    heuristic: str = "heuristic"

    @property
    def best(self) -> str:
        return min(self.times, key=self.times.__getitem__)

    @property
    def changed(self) -> bool:
        new = self.best not in (self.heuristic, self.chosen)
        return new and self.times[self.best] < BETTER * self.times[self.heuristic]


def tune(graph: Graph, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Choice]:
    """Time all candidates for each distinct convolution of a graph, by turns. Nothing is kept: `tuning.keep` does that."""
    from ..kernels.cpu import conv_select, depthwise, tuning

    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op.name == "conv2d" and node.output.dtype == np.float32 and node.output.size:
            x, w = _specs(node)[:2]
            if not depthwise.supports(x, w, node.attrs["groups"]):
                geometry = {k: v for k, v in node.attrs.items() if k != "activation"}
                nodes.setdefault(tuning.key(x, w, **geometry), node)
    found = []
    for i, (key, node) in enumerate(nodes.items()):
        progress(i, len(nodes))
        found.append(_choose(key, node, conv_select))
    progress(len(nodes), len(nodes))
    return found


def _specs(node: Node) -> list[Spec]:
    return [Spec(v.shape, v.dtype) for v in node.inputs]


def _choose(key: str, node: Node, conv_select) -> Choice:
    from ..kernels.cpu import tuning

    specs, out = _specs(node), Spec(node.output.shape, node.output.dtype)
    b, r = (*specs[2:], None, None)[:2]
    plans = {name: conv_select.plan_as(name, *specs[:2], b, r, out=out, **node.attrs) for name in conv_select.CANDIDATES}
    plans = {name: plan for name, plan in plans.items() if plan is not None}
    known = tuning.table().pop(key, None)  # to see what the heuristic alone would do
    own = conv_select.plan_conv2d(*specs, out=out, **node.attrs)
    if known is not None:
        tuning.table()[key] = known
    chosen = next((name for name, plan in plans.items() if plan.variant == own.variant), "")
    return Choice(key, _times({**plans, "heuristic": own}, specs, out), chosen)


def _times(plans: dict[str, Plan], specs: list[Spec], out: Spec) -> dict[str, float]:
    """Median microseconds by name. The candidates take turns, each on its own packed weights."""
    programs = {name: _program(plan, specs, out) for name, plan in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    repeats = {name: max(1, int(LEAST_SECONDS / max(_seconds(p.run, 2), 1e-7))) for name, (p, _) in programs.items()}
    for _ in range(ROUNDS):
        for name, (program, _) in programs.items():
            times[name].append(_seconds(program.run, repeats[name]))
    return {name: float(np.median(t)) * 1e6 for name, t in times.items()}


def _seconds(run: Callable[[], None], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat


def _program(plan: Plan, specs: list[Spec], out: Spec):
    """The plan bound to random arrays, its packing done; and what must stay alive with it."""
    from ..kernels.cpu import runtime

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s.shape, np.float32) for s in specs]
    for i, pack in plan.packs.items():
        packed = aligned_empty(pack.spec.nbytes).view(pack.spec.dtype).reshape(pack.spec.shape)
        runtime.run(pack.bind(inputs[i], packed))
        inputs[i] = packed
    output = np.empty(out.shape, out.dtype)
    workspace = aligned_empty(plan.workspace) if plan.workspace else None
    return runtime.Program(plan.bind(inputs, [output], workspace)), (inputs, output, workspace)


def winners(choices: list[Choice]) -> dict[str, str | None]:
    """For every convolution the candidate that clearly beats the heuristic, or None."""
    return {c.key: c.best if c.changed else None for c in choices}
