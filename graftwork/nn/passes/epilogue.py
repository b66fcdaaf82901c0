"""Epilogues: what follows a convolution or product value by value is done while its result is still in registers."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node, Value
from ..ops.matmul import ACTIVATIONS


def fuse_epilogues(graph: Graph) -> Graph:
    """conv2d or linear, then an added vector (bias), an added tensor (residual), an activation: one node."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if node in graph.nodes and (_fuse_sum(graph, node) or _fuse_activation(graph, node)):
                changed = True
    return graph


def _open(graph: Graph, value: Value, until: Node) -> Node | None:
    """The producer of `value` if an epilogue may be added to it at the place of `until`."""
    node = value.node
    if node is None or node.op.name not in ("conv2d", "linear") or node.attrs.get("activation"):
        return None
    if value in graph.outputs or len(graph.consumers().get(value, [])) != 1:
        return None
    return node if unwritten_between(graph, node, until) else None


def unwritten_between(graph: Graph, node: Node, until: Node) -> bool:
    """Whether `node` may be computed at the place of `until`: nothing in between changes what it reads."""
    start, stop = graph.nodes.index(node), graph.nodes.index(until)
    read = {graph.viewed(v) for v in node.inputs}
    return not any(v in read for n in graph.nodes[start + 1 : stop] for v in n.writes)


def _fuse_sum(graph: Graph, node: Node) -> bool:
    if node.op.name != "add":
        return False
    for value, other in (node.inputs, node.inputs[::-1]):
        producer = _open(graph, value, node)
        if producer is None or len(producer.inputs) > 3 or value is other or other.dtype != value.dtype:
            continue
        x, weight, *bias = producer.inputs
        if other.shape == (weight.shape[-1],) and not bias and value.ndim > 1:
            inputs = [x, weight, other]
        elif other.shape == value.shape and _rounds_alike(graph, value) and not _takes_in(graph, other, value, node):
            bias = bias or [graph.add_constant(np.zeros(weight.shape[-1], weight.dtype), "no_bias")]
            inputs = [x, weight, bias[0], other]
        else:
            continue
        _merge(graph, producer, node, inputs, producer.attrs)
        return True
    return False


def _rounds_alike(graph: Graph, value: Value) -> bool:
    """Whether what follows may see the sum before it is rounded to `value`'s dtype: not noticeable in float32; a gain where 16
    bits are asked for."""
    return value.dtype == np.float32 or graph.precision is not None


def _takes_in(graph: Graph, other: Value, value: Value, node: Node) -> bool:
    """Whether the other summand's producer is the one to be extended: where two meet, the later one takes the earlier in."""
    rival = _open(graph, other, node)
    return rival is not None and value.node is not None and graph.nodes.index(rival) > graph.nodes.index(value.node)


def _fuse_activation(graph: Graph, node: Node) -> bool:
    if node.op.name not in ACTIVATIONS or len(node.inputs) != 1 or any(v for v in node.attrs.values()):
        return False
    producer = _open(graph, node.inputs[0], node)
    if producer is None or (not _rounds_alike(graph, node.output) and node.op.name not in ("relu", "relu6")):
        return False
    _merge(graph, producer, node, producer.inputs, {**producer.attrs, "activation": node.op.name})
    return True


def _merge(graph: Graph, producer: Node, last: Node, inputs: list[Value], attrs: dict) -> None:
    """One node, at the place of `last`, instead of both."""
    graph.nodes.remove(producer)
    graph.rewrite(last, [graph.make(producer.op, inputs, attrs, producer.line)])
