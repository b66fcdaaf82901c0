"""Elementwise chains: neighbouring value-by-value ops become one `chain` node, which goes through memory once."""

from __future__ import annotations

from ..graph import Graph, Node, Value
from ..op import OPS
from .epilogue import unwritten_between

MOST_STEPS, MOST_INPUTS = 24, 8  # more would not fit into the kernel's blocks in the first-level cache


def fuse_elementwise(graph: Graph) -> Graph:
    """Grow a chain backwards from each elementwise node over producers that nothing else reads and of the same shape."""
    for node in reversed(list(graph.nodes)):
        if node in graph.nodes and _is_step(graph, node):
            _grow(graph, node)
    return graph


def _is_step(graph: Graph, node: Node) -> bool:
    """Whether a chain may hold a node. On the CPU its values are float32; on a GPU they may have 16 bits in memory, and casts
    between those are steps like others."""
    from ...kernels.cpu.chain import elementwise_step  # Numba loads with the first graph

    here = graph.device == "cpu"
    names = ("float32", "bool") if here else ("float32", "float16", "bfloat16", "bool")
    if node.op.name == "chain" or not all(v.dtype.name in names for v in (*node.inputs, *node.outputs)):
        return False
    return not here if node.op.name == "cast" else elementwise_step(node.op.name, node.attrs)


def _grow(graph: Graph, last: Node) -> None:
    members = [last]
    waiting = list(last.inputs)
    while waiting:
        producer = waiting.pop(0).node
        if producer is None or producer in members or len(members) >= MOST_STEPS:
            continue
        if _joins(graph, producer, members, last) and len(_inputs([*members, producer])) <= MOST_INPUTS:
            members.append(producer)
            waiting += producer.inputs
    if len(members) > 1:
        order = [n for n in graph.nodes if n in members]
        fused = _fused(graph, order)
        for node in order[:-1]:
            graph.nodes.remove(node)
        graph.rewrite(last, [fused])


def _joins(graph: Graph, producer: Node, members: list[Node], last: Node) -> bool:
    """Whether only the chain reads the producer's result, it fills the chain's whole shape, and it may be computed there."""
    if producer not in graph.nodes or not _is_step(graph, producer) or producer.output.shape != last.output.shape:
        return False
    if producer.output in graph.outputs or any(reader not in members for reader in graph.consumers()[producer.output]):
        return False
    return unwritten_between(graph, producer, last)


def _inputs(members: list[Node]) -> list[Value]:
    """What the nodes read from outside, each once."""
    made = {n.output for n in members}
    return list(dict.fromkeys(v for n in members for v in n.inputs if v not in made))


def _fused(graph: Graph, order: list[Node]) -> Node:
    """One node for elementwise nodes in an order that runs. Step i's result is operand (number of inputs) + i."""
    inputs = _inputs(order)
    number = {v: i for i, v in enumerate([*inputs, *(n.output for n in order)])}
    program = tuple(
        (n.op.name, tuple(number[v] for v in n.inputs), tuple(sorted(n.attrs.items()))) for n in order
    )
    return graph.make(OPS["chain"], inputs, {"program": program}, order[-1].line)
