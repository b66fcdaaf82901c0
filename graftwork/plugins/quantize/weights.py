"""Weights of 8 bits in a network whose values between the layers stay float32.

"weight_only": they are widened before the graph runs. "dynamic": what a product reads becomes bytes as well, by the range that
it has in that call, example by example, so that no result depends on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...nn.graph import Graph, Node, Value
from ...nn.op import OPS
from .rewrite import PRODUCTS, corrected, drop_unread, quantise_weight

_NOT_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hard_sigmoid", "softmax", "softplus", "exp", "square", "abs"})
_KEEPS_SIGN = frozenset({"max_pool2d", "avg_pool2d", "mean", "concat", "pad"})
_TINY = 1e-30  # the least range of an example, for one that is all zeros


class WeightRewriter:
    """Rewrites one graph. The arguments and attributes are those of `Rewriter`."""

    def __init__(self, graph: Graph, mode: str, skip: frozenset[str] = frozenset(),
                 means: Mapping[str, np.ndarray] | None = None):  # fmt: skip
        self.graph, self.mode, self.skip, self.means = graph, mode, skip, means or {}
        self.in_bytes: list[str] = []
        self.in_float: list[str] = []
        self.line: tuple[str, int] | None = None

    def run(self) -> Graph:
        nodes, self.graph.nodes = self.graph.nodes, []
        lower = self._dynamic if self.mode == "dynamic" else self._widened
        for node in nodes:
            self.line = node.line
            if node.output.name in self.skip or not self._takes_bytes(node):
                self.graph.nodes.append(node)
                if node.op.view is None:
                    self.in_float.append(node.output.name)
            else:
                self.in_bytes.append(node.output.name)
                lower(node)
        drop_unread(self.graph)
        return self.graph

    def _takes_bytes(self, node: Node) -> bool:
        """A float32 product by constant weights."""
        if node.op.name not in PRODUCTS or node.inputs[0].dtype != np.float32:
            return False
        return all(v in self.graph.constants for v in node.inputs[1:3])

    def _emit(self, name: str, *inputs: Value, **attrs) -> Value:
        return self.graph.append(OPS[name], list(inputs), attrs, self.line).output

    def _weight(self, node: Node) -> tuple[Value, Value, Value | None]:
        """(int8 weight, scale a channel, float32 bias or None) as constants."""
        weight, *rest = node.inputs[1:3]
        array, bias = self.graph.constants[weight], self.graph.constants[rest[0]] if rest else None
        bias = corrected(array, bias, node.attrs.get("groups", 1), self.means.get(node.inputs[0].name))
        quantised, scale, _ = quantise_weight(array, None, 1.0)
        made = self.graph.add_constant(quantised, f"{weight.name}_int8"), self.graph.add_constant(scale, f"{weight.name}_scale")
        return *made, None if bias is None else self.graph.add_constant(bias, f"{weight.name}_bias")

    def _widened(self, node: Node) -> None:
        weight, scale, bias = self._weight(node)
        wide = self._emit("multiply", self._emit("cast", weight, dtype="float32"), scale)
        node.inputs = [node.inputs[0], wide, *([] if bias is None else [bias]), *node.inputs[3:]]
        self.graph.nodes.append(node)

    def _dynamic(self, node: Node) -> None:
        """y = range(x) * (bytes of x / range(x)) @ weight + bias, then what the product had at its end."""
        weight, scale, bias = self._weight(node)
        x, residual = node.inputs[0], node.inputs[3:]
        stored, unit, zero = self._narrow(x)
        attrs = {"x_scale": 1.0, "x_zero_point": zero, "low": None, "high": None, "out_scale": None, "out_zero_point": 0,
                 "dtype": "float32"}  # fmt: skip
        if node.op.name == "conv2d":
            attrs |= {k: node.attrs[k] for k in ("stride", "padding", "dilation", "groups")}
        y = self._emit("quantized_conv2d" if node.op.name == "conv2d" else "quantized_matmul", stored, weight, scale, **attrs)
        y = self._emit("multiply", y, unit)
        for added in ([] if bias is None else [bias]) + residual:
            y = self._emit("add", y, added)
        if node.attrs.get("activation"):
            y = self._emit(node.attrs["activation"], y)
        last = self.graph.nodes[-1]
        last.outputs, node.output.node = [node.output], last  # what read the product's result reads this one

    def _narrow(self, x: Value) -> tuple[Value, Value, int]:
        """(bytes of x, what one step of them is worth in each example, zero point)."""
        axes = tuple(range(1, x.ndim))
        positive = not_negative(x)
        size = x if positive else self._emit("abs", x)
        most = self._emit("max", size, axis=axes, keepdims=True)
        unit = self._emit("multiply", most, self._number(1 / (255 if positive else 127)))
        unit = self._emit("maximum", unit, self._number(_TINY))
        zero = 0 if positive else 128
        return self._emit("quantize", self._emit("divide", x, unit), scale=1.0, zero_point=zero), unit, zero

    def _number(self, value: float) -> Value:
        return self.graph.add_constant(np.asarray(value, np.float32), "number")


def not_negative(value: Value) -> bool:
    """Whether a value cannot be below zero, by what computes it: its bytes need no sign then."""
    node = value.node
    if node is None:
        return False
    if node.op.name in _NOT_NEGATIVE or node.attrs.get("activation") in _NOT_NEGATIVE:
        return True
    if node.op.view is not None or node.op.name in _KEEPS_SIGN:
        return node.attrs.get("value", 0) >= 0 and all(not_negative(v) for v in node.inputs)
    return False
