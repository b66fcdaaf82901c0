"""Common sub-expressions: the same op on the same inputs is computed once."""

from __future__ import annotations

from ..graph import Graph, Value


def merge_common_subexpressions(graph: Graph) -> Graph:
    """Keep the first of equal nodes. A value that is written in between counts as another one."""
    first: dict[tuple, list[Value]] = {}
    writes: dict[Value, int] = {}
    twins: dict[Value, Value] = {}
    kept = []
    for node in graph.nodes:
        node.inputs = [twins.get(v, v) for v in node.inputs]
        if node.op.writes:
            for value in node.writes:
                writes[value] = writes.get(value, 0) + 1
            kept.append(node)
            continue
        inputs = tuple((id(v), writes.get(graph.viewed(v), 0)) for v in node.inputs)
        key = node.op.name, inputs, repr(sorted(node.attrs.items()))
        if key in first:
            twins.update(zip(node.outputs, first[key], strict=True))
        else:
            first[key] = node.outputs
            kept.append(node)
    graph.nodes = kept
    graph.outputs = [twins.get(v, v) for v in graph.outputs]
    return graph
