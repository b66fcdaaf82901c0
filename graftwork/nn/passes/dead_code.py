"""Dead code: nodes whose results nobody reads and that write nothing."""

from __future__ import annotations

from ..graph import Graph


def remove_dead_code(graph: Graph) -> Graph:
    """Keep what the outputs and the in-place writes depend on."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.op.writes or any(v in needed for v in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    graph.nodes = kept[::-1]
    graph.states = {v: t for v, t in graph.states.items() if v in needed}
    graph.constants = {v: a for v, a in graph.constants.items() if v in needed}
    return graph
