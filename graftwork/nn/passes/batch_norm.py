"""Batch norm in inference is a scale and a shift for each channel; both go into the weights of a convolution before it."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node, Value
from ..op import OPS


def fold_batch_norm(graph: Graph) -> Graph:
    """conv2d or linear, then batch_norm: scaled weights and a bias, computed ahead. Other batch norms: x * scale + shift.

    Left alone where the graph itself changes the statistics or weights (training).
    """
    for node in [n for n in graph.nodes if n.op.name == "batch_norm"]:
        written = graph.written()
        if any(v in written or v.node is not None for v in node.inputs[1:]):
            continue
        producer = node.inputs[0].node
        into = producer is not None and _can_take(graph, producer, written)
        scale, shift, helpers = _scale_and_shift(graph, node)
        if into:
            assert producer is not None
            graph.rewrite(node, [*helpers, *_scaled(graph, producer, scale, shift, node)])
        else:
            product = graph.make(OPS["multiply"], [node.inputs[0], scale], {}, node.line)
            graph.rewrite(node, [*helpers, product, graph.make(OPS["add"], [product.output, shift], {}, node.line)])
    return graph


def _can_take(graph: Graph, producer: Node, written: set[Value]) -> bool:
    if producer.op.name not in ("conv2d", "linear") or producer.attrs.get("activation") or len(producer.inputs) > 3:
        return False
    readers = graph.consumers().get(producer.output, [])
    fixed = all(v not in written and v.node is None and v not in graph.inputs for v in producer.inputs[1:])
    return fixed and len(readers) == 1 and producer.output not in graph.outputs


def _scale_and_shift(graph: Graph, node: Node) -> tuple[Value, Value, list[Node]]:
    """gamma / sqrt(var + epsilon) and beta - mean * scale, as nodes on the statistics: they are computed ahead."""
    _, gamma, beta, mean, var = node.inputs
    made: list[Node] = []

    def step(name: str, *inputs: Value) -> Value:
        made.append(graph.make(OPS[name], inputs, {}, node.line))
        return made[-1].output

    epsilon = graph.add_constant(np.asarray(node.attrs["epsilon"], var.dtype), "epsilon")
    scale = step("multiply", gamma, step("rsqrt", step("add", var, epsilon)))
    shift = step("subtract", beta, step("multiply", mean, scale))
    return scale, shift, made


def _scaled(graph: Graph, producer: Node, scale: Value, shift: Value, node: Node) -> list[Node]:
    """The producer with its output channels scaled and shifted. (They are the weight's last axis, with groups too.)"""
    x, weight, *bias = producer.inputs
    scaled = graph.make(OPS["multiply"], [weight, scale], {}, node.line)
    made = [scaled]
    if bias:
        made.append(graph.make(OPS["multiply"], [bias[0], scale], {}, node.line))
        made.append(graph.make(OPS["add"], [made[-1].output, shift], {}, node.line))
        shift = made[-1].output
    graph.nodes.remove(producer)
    return [*made, graph.make(producer.op, [x, scaled.output, shift], producer.attrs, producer.line)]
