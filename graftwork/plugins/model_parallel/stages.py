"""Cutting a network into stages: its graph is captured once and its nodes are dealt out, in order.

A stage runs its nodes op by op on the live parameters, so its backward pass is the tape's, and any network that can be captured
can be cut anywhere. What crosses a cut, a skip connection say, is found in the graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import CaptureError, ConfigError
from ...nn import Module, Tensor, tensor
from ...nn.autograd import no_grad
from ...nn.compile import trace
from ...nn.graph import Graph, Node, Value
from .mesh import Mesh


@dataclass
class Stage:
    """Nodes of the graph with what comes in and goes out. parameters: by path in the whole network."""

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]
    states: dict[Value, Tensor]
    parameters: dict[str, Tensor]
    cost: float
    activation_bytes: int = 0

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the nodes now, on the tape."""
        known: dict[Value, Tensor] = dict(self.states)
        known.update(zip(self.inputs, inputs, strict=True))
        for node in self.nodes:
            made = node.op(*(known[v] for v in node.inputs), **node.attrs)
            if made is not None:
                known.update(zip(node.outputs, made if node.op.multi else (made,), strict=True))
        return [known[v] for v in self.outputs]

    @property
    def parameter_bytes(self) -> int:
        return sum(p.data.nbytes for p in self.parameters.values())


def cut(model: Module, example: Tensor, stages: int, boundaries: Sequence[str] | None = None,
        cost: str | Callable[[Node], float] = "declared") -> list[Stage]:  # fmt: skip
    """All stages of `model`. The arguments are those of `split_pipeline`."""
    with no_grad():
        graph = trace(model, example)
    if len(graph.outputs) != 1 or len(graph.inputs) != 1:
        raise ConfigError(
            f"split_pipeline: the network has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; expected one of each"
        )
    if stages < 1 or stages > len(graph.nodes):
        raise ConfigError(f"split_pipeline: {stages} stages of a network of {len(graph.nodes)} ops; expected 1 to that many")
    names = {id(t): path for path, t in model.named_parameters()}
    costs = _costs(graph, example, cost)
    starts = _balanced(graph, costs, stages) if boundaries is None else _named(graph, model, boundaries, stages)
    found = _stages(graph, starts, costs, names)
    owners: dict[str, int] = {}
    for i, stage in enumerate(found):
        for path in stage.parameters:
            if owners.setdefault(path, i) != i:
                raise ConfigError(
                    f"split_pipeline: {path} is used in stage {owners[path]} and in stage {i}; a shared parameter has to lie "
                    "in one stage, move the boundary"
                )
    return found


def _stages(graph: Graph, starts: list[int], costs: list[float], names: dict[int, str]) -> list[Stage]:
    ends = [*starts[1:], len(graph.nodes)]
    constants = {v: tensor(a) for v, a in graph.constants.items()}
    states = graph.states | constants
    found = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        nodes = graph.nodes[start:end]
        inputs = list(graph.inputs) if i == 0 else crossing(graph, start)
        outputs = list(graph.outputs) if i == len(starts) - 1 else crossing(graph, end)
        own = {v: states[v] for node in nodes for v in node.inputs if v in states}
        parameters = {names[id(t)]: t for t in own.values() if id(t) in names}
        kept = sum(v.nbytes for node in nodes if node.op.view is None for v in node.outputs)
        found.append(Stage(nodes, inputs, outputs, own, parameters, sum(costs[start:end]), kept))
    return found


def crossing(graph: Graph, position: int) -> list[Value]:
    """What nodes from `position` on (or the caller) need of what was computed or given before."""
    before = set(graph.inputs) | {v for node in graph.nodes[:position] for v in node.outputs}
    needed = [v for node in graph.nodes[position:] for v in node.inputs] + graph.outputs
    return [v for v in dict.fromkeys(needed) if v in before]


def _costs(graph: Graph, example: Tensor, cost: str | Callable[[Node], float]) -> list[float]:
    """What each node costs: floating-point operations plus bytes moved, seconds, or what a function says."""
    if callable(cost):
        return [float(cost(node)) for node in graph.nodes]
    if cost == "declared":
        return [float(node.flops + node.bytes_moved) for node in graph.nodes]
    if cost == "measured":
        return _measured(graph, example)
    raise ConfigError(f"split_pipeline: cost={cost!r}; expected 'declared', 'measured' or a function of a graph's node")


def _measured(graph: Graph, example: Tensor) -> list[float]:
    """Seconds of each node, the second time that it runs. Nodes that only write their inputs get none: they must not run."""
    known: dict[Value, Tensor] = graph.states | {v: tensor(a) for v, a in graph.constants.items()} | {graph.inputs[0]: example}
    seconds = []
    with no_grad():
        for node in graph.nodes:
            if node.op.writes and not node.outputs:
                seconds.append(0.0)
                continue
            inputs = [known[v] for v in node.inputs]
            if node.op.writes:  # keep what it writes as it was
                inputs = [tensor(t.numpy().copy()) for t in inputs]
            made = node.op(*inputs, **node.attrs)
            begin = time.perf_counter()
            node.op(*inputs, **node.attrs)
            seconds.append(time.perf_counter() - begin)
            known.update(zip(node.outputs, made if node.op.multi else (made,), strict=True))
    return seconds


def _named(graph: Graph, model: Module, boundaries: Sequence[str], stages: int) -> list[int]:
    """Where stages start that the user named: each at the first op that uses a parameter of that layer."""
    if len(boundaries) != stages - 1:
        raise ConfigError(f"split_pipeline: {len(boundaries)} boundaries for {stages} stages; expected {stages - 1}: the "
                          "layers that the second stage and those after it begin with")  # fmt: skip
    modules = dict(model.named_modules())
    starts = [0]
    for path in boundaries:
        if path not in modules:
            raise ConfigError(f"split_pipeline: the model has no layer {path!r}; {_advice(model)}")
        own = {id(p) for p in modules[path].parameters()}
        users = [i for i, node in enumerate(graph.nodes) if any(id(graph.states.get(v)) in own for v in node.inputs)]
        if not users:
            raise ConfigError(f"split_pipeline: {path!r} has no parameters in use; {_advice(model)}")
        if users[0] <= starts[-1]:
            raise ConfigError(f"split_pipeline: the stage that begins with {path!r} would leave the one before it empty, or "
                              "stands before it; list boundaries in the order in which the network runs")  # fmt: skip
        starts.append(users[0])
    return starts


def _advice(model: Module) -> str:
    names = [path for path, module in model.named_modules() if path and module._parameters]
    return f"layers with parameters are {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"


def _balanced(graph: Graph, costs: list[float], stages: int) -> list[int]:
    """Starts that make the dearest stage as cheap as can be, and among those the ones where least crosses.

    Stages are filled up to a limit, which bisection lowers as far as it will go; then each cut moves back over ops that are
    nearly free to where the fewest bytes cross.
    """
    low, high = max(max(costs), sum(costs) / stages), sum(costs)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_filled(costs, middle)) <= stages else (middle, high)
    starts = _filled(costs, high)
    while len(starts) < stages:  # fewer do for this limit: divide the longest one
        ends = [*starts[1:], len(costs)]
        start, end = max(zip(starts, ends, strict=True), key=lambda pair: pair[1] - pair[0])
        starts = sorted([*starts, (start + end) // 2])
    slack = 0.02 * sum(costs) / stages
    for i in range(1, stages):
        choices, position, moved = [starts[i]], starts[i], 0.0
        while position - 1 > starts[i - 1] and moved + costs[position - 1] <= slack:
            position -= 1
            moved += costs[position]
            choices.append(position)
        starts[i] = min(choices, key=lambda p: sum(v.nbytes for v in crossing(graph, p)))
    return starts


def _filled(costs: list[float], limit: float) -> list[int]:
    starts, total = [0], 0.0
    for i, cost in enumerate(costs):
        if total + cost > limit * (1 + 1e-12) and i > starts[-1]:
            starts.append(i)
            total = 0.0
        total += cost
    return starts


def split_pipeline(model: Module, mesh: Mesh, example: Tensor, micro_batches: int, boundaries: Sequence[str] | None = None,
                   cost: str | Callable[[Node], float] = "declared", schedule: str = "1f1b"):  # fmt: skip
    """This rank's part of a pipeline over `mesh.pipeline`. Drop `model` afterwards: the other stages' weights go with it.

    example: an input of one micro-batch's shape (the stages are made for this shape). micro_batches: how many a step has.
    boundaries: the layers that the second stage and those after it begin with; None balances by `cost`: "declared" (floating-
    point operations and bytes of the ops' own rules), "measured" (each op is timed on this rank; rank 0's times count), or a
    function of a graph node. schedule: "1f1b" or "gpipe", see `Pipeline`. Returns a `Pipeline`.
    """
    from .pipeline import Pipeline

    if cost == "measured" and boundaries is None:
        cost = _agree(model, mesh, example)
    try:
        stages = cut(model, example, mesh.sizes["pipeline"], boundaries, cost)
    except CaptureError as error:
        raise ConfigError(f"split_pipeline: the network cannot be captured, so it cannot be cut: {error}") from error
    return Pipeline(stages, mesh, micro_batches, schedule)


def _agree(model: Module, mesh: Mesh, example: Tensor) -> Callable[[Node], float]:
    """The first stage's measurement, told to all: ranks that cut in different places would not fit together."""
    with no_grad():
        graph = trace(model, example)
    own = np.array(_measured(graph, example))
    everyone = np.empty((mesh.pipeline.size, own.size))
    mesh.pipeline.all_gather(own, everyone, "the measured costs")
    times = iter(everyone[0].tolist())
    return lambda node: next(times)
