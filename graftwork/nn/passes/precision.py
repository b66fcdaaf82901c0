"""Mixed precision: products and convolutions compute in 16 bits, weights, reductions, norms and updates stay in float32.

The rules are those of automatic mixed precision (Micikevicius et al., "Mixed Precision Training", 2018): the weights that an
optimiser updates are the float32 ones, and their 16-bit copies are casts in the graph (computed ahead where nothing
changes the weights). What only picks, moves or clips values follows its input, so that a value that is 16 bits wide already is
not widened in between.
"""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node, Value
from ..op import OPS

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
COMPUTES = frozenset({"conv2d", "conv2d_input_grad", "conv2d_weight_grad", "linear", "matmul"})
FOLLOWS = frozenset({"add", "relu", "relu6", "relu_grad", "relu6_grad", "max_pool2d", "max_pool2d_grad", "concat", "pad"})
_FLOAT32 = np.dtype(np.float32)


def lower_precision(graph: Graph) -> Graph:
    """Rewrite a graph that asks for it (`graph.precision`). Inputs, outputs and states keep their dtypes."""
    if graph.precision is None:
        return graph
    nodes, graph.nodes = graph.nodes, []
    casts = _Casts(graph, DTYPES[graph.precision])
    for node in nodes:
        node.inputs = [casts.wide.get(v, v) for v in node.inputs]
        if _goes(node, casts):
            lowered = graph.append(node.op, [casts.narrow(v) for v in node.inputs], node.attrs, node.line)
            for old, new in zip(node.outputs, lowered.outputs, strict=True):
                casts.widen(old, new)
        else:
            graph.nodes.append(node)
            for value in node.writes:
                casts.forget(value)
    graph.outputs = [casts.wide.get(v, v) for v in graph.outputs]
    return graph


def _goes(node: Node, casts: _Casts) -> bool:
    """Whether a node computes in 16 bits."""
    floats = [v for v in node.inputs if v.dtype.kind not in "iub"]
    if not floats or any(v.dtype != _FLOAT32 for v in floats):
        return False
    if node.op.name in COMPUTES:
        return True
    moves = node.op.view is not None or node.op.name in FOLLOWS
    return moves and all(v in casts.exact or _is_bias(node, v) for v in floats) and any(v in casts.exact for v in floats)


def _is_bias(node: Node, value: Value) -> bool:
    return node.op.name == "add" and value.ndim == 1 and value.node is None


class _Casts:
    """Which values exist in 16 bits, and under which name their float32 form goes on."""

    def __init__(self, graph: Graph, dtype: str):
        self.graph, self.dtype = graph, dtype
        self.known: dict[Value, Value] = {}  # float32 -> 16 bits
        self.exact: set[Value] = set()  # float32 values that were computed in 16 bits: those lose nothing
        self.wide: dict[Value, Value] = {}  # what a lowered node computed before -> the float32 form of what it computes now

    def narrow(self, value: Value) -> Value:
        """The 16-bit form of a float32 value, made at first need; of a view, the view of that of its source."""
        if value.dtype != _FLOAT32:
            return value
        if value not in self.known:
            node = value.node
            if node is not None and node.op.view is not None:
                made = self.graph.append(node.op, [self.narrow(node.inputs[0])], node.attrs, node.line)
            else:
                made = self.graph.append(OPS["cast"], [value], {"dtype": self.dtype}, None if node is None else node.line)
            self.known[value] = made.output
        return self.known[value]

    def widen(self, old: Value, new: Value) -> None:
        """`new` stands for `old` from here on. (The cast goes away if nothing reads it.)"""
        if new.dtype == old.dtype:
            self.wide[old] = new
            return
        cast = self.graph.append(OPS["cast"], [new], {"dtype": "float32"}, old.node.line if old.node else None)
        self.wide[old], self.known[cast.output] = cast.output, new
        self.exact.add(cast.output)

    def forget(self, written: Value) -> None:
        """A state has been changed in place: its 16-bit form, and those of its views, are out of date."""
        for value in [v for v in self.known if Graph.viewed(v) is Graph.viewed(written)]:
            del self.known[value]


__all__ = ["COMPUTES", "DTYPES", "FOLLOWS", "lower_precision"]
