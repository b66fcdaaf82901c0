"""The graph: what a captured call computes, as a list of op records in an order that runs.

Three classes. A `Value` is an array without its contents; it comes from outside (an input, a state tensor, a constant) or
from a node. A `Node` is one op call. A `Graph` holds them, checks itself, and prints as Python-like text with the user's line
for every node. Passes (`nn/passes/`) rewrite graphs; `nn/lower.py` runs them.
"""

from __future__ import annotations

import linecache
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import GraftworkError, GraphError
from .op import Op, bytes_moved
from .tensor import Tensor


class Outgrown(GraphError):
    """A state tensor has got another shape or dtype than its graph was made for."""


class Value:
    """One array of the graph: name, shape, dtype. `node`: what computes it, None for inputs, states and constants."""

    __slots__ = ("dtype", "name", "node", "shape")

    def __init__(self, name: str, shape: Sequence[int], dtype, node: Node | None = None):
        self.name, self.shape, self.dtype, self.node = name, tuple(shape), np.dtype(dtype), node

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def spec(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return self.name


class Node:
    """One op call. `line`: (file, number) of the user's code that made it."""

    __slots__ = ("attrs", "inputs", "line", "op", "outputs")

    def __init__(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any], line: tuple[str, int] | None = None):
        self.op, self.inputs, self.attrs, self.line = op, list(inputs), dict(attrs), line
        self.outputs: list[Value] = []

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def writes(self) -> list[Value]:
        """The inputs that this node changes in place."""
        return [self.inputs[i] for i in self.op.written(len(self.inputs))] if self.op.writes else []

    @property
    def flops(self) -> int:
        return 0 if self.op.cost is None else int(self.op.cost(*self.inputs, **self.attrs))

    @property
    def bytes_moved(self) -> int:
        specs = [(v.shape, v.dtype) for v in self.outputs]
        return bytes_moved(self.op, self.inputs, specs if self.op.multi else specs[0] if specs else None)

    def source(self) -> str:
        """The user's line as "file:number  text"."""
        if self.line is None:
            return ""
        file, number = self.line
        return f"{os.path.basename(file)}:{number}  {linecache.getline(file, number).strip()}"

    def __repr__(self) -> str:
        attrs = [f"{k}={_short(repr(v))}" for k, v in self.attrs.items() if v is not None]
        call = f"{self.op.name}({', '.join([v.name for v in self.inputs] + attrs)})"
        return f"{', '.join(v.name for v in self.outputs)} = {call}" if self.outputs else call


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


class Graph:
    """inputs: given at each call. states: live tensors that are read (and perhaps written). constants: arrays that nobody
    else can reach (on the host). nodes: in an order that runs. outputs: what a call returns. device: where it runs.
    precision: None, or the dtype that products compute in (`passes/precision.py`)."""

    def __init__(self, name: str = "graph", device: str = "cpu", precision: str | None = None):
        self.name, self.device, self.precision = name, device, precision
        self.inputs: list[Value] = []
        self.states: dict[Value, Tensor] = {}
        self.constants: dict[Value, np.ndarray] = {}
        self.nodes: list[Node] = []
        self.outputs: list[Value] = []
        self.notes: list[str] = []  # what passes did, for the reader
        self._names: dict[str, int] = {}

    # -- building ----------------------------------------------------------------------------------------------------
    def fresh(self, stem: str) -> str:
        """A name that no value has yet."""
        name, count = stem, self._names.get(stem, 0)
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names[stem] = max(count, 1)
        self._names.setdefault(name, 1)
        return name

    def add_input(self, name: str, shape, dtype) -> Value:
        self.inputs.append(value := Value(self.fresh(name), shape, dtype))
        return value

    def add_state(self, name: str, tensor: Tensor) -> Value:
        value = Value(self.fresh(name), tensor.shape, tensor.dtype)
        self.states[value] = tensor
        return value

    def add_constant(self, array: np.ndarray, name: str = "constant") -> Value:
        value = Value(self.fresh(name), array.shape, array.dtype)
        self.constants[value] = array
        return value

    def make(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any], line=None) -> Node:
        """A node that is not in the list yet; its outputs follow from the op's shape rule."""
        node = Node(op, inputs, attrs, line)
        specs = op.infer(*inputs, **attrs)
        for shape, dtype in [] if specs is None else specs if op.multi else [specs]:
            node.outputs.append(Value(self.fresh(op.name), shape, dtype, node))
        return node

    def append(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any], line=None) -> Node:
        self.nodes.append(node := self.make(op, inputs, attrs, line))
        return node

    def renumber(self) -> None:
        """Name what nodes compute after their ops, in order."""
        self._names = {v.name: 1 for v in (*self.inputs, *self.states, *self.constants)}
        for node in self.nodes:
            for value in node.outputs:
                value.name = self.fresh(node.op.name)

    # -- looking -----------------------------------------------------------------------------------------------------
    def consumers(self) -> dict[Value, list[Node]]:
        """Which nodes read each value; one that reads it twice appears twice."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                found.setdefault(value, []).append(node)
        return found

    def written(self) -> set[Value]:
        """States that some node changes in place."""
        return {value for node in self.nodes for value in node.writes}

    @staticmethod
    def viewed(value: Value) -> Value:
        """The value whose memory `value` is a view of; itself if it is no view."""
        while value.node is not None and value.node.op.view is not None:
            value = value.node.inputs[0]
        return value

    def replace(self, old: Value, new: Value) -> None:
        """Read `new` wherever `old` was read."""
        for node in self.nodes:
            node.inputs = [new if v is old else v for v in node.inputs]
        self.outputs = [new if v is old else v for v in self.outputs]

    def rewrite(self, old: Node, new: Sequence[Node]) -> None:
        """Put `new` nodes in the place of `old`; what read its output reads the last one's. (One output each.)"""
        at = self.nodes.index(old)
        self.nodes[at : at + 1] = new
        self.replace(old.output, new[-1].output)

    # -- checking ----------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Raise GraphError unless every value is defined once, before it is read, with the shape that its op gives it."""
        defined = {*self.inputs, *self.states, *self.constants}
        for node in self.nodes:
            for value in node.inputs:
                if value not in defined:
                    raise GraphError(f"{value.name} is read before it is computed, in\n    {node}")
            try:
                specs = node.op.infer(*node.inputs, **node.attrs)
            except (GraftworkError, TypeError, ValueError) as error:
                raise GraphError(f"a node does not fit its inputs: {error}, in\n    {node}") from error
            expected = [] if specs is None else specs if node.op.multi else [specs]
            if [(v.shape, v.dtype) for v in node.outputs] != [(tuple(s), np.dtype(d)) for s, d in expected]:
                raise GraphError(f"shapes {[v.spec for v in node.outputs]}, but its op gives {expected}, in\n    {node}")
            for value in node.outputs:
                if value in defined or value.node is not node:
                    raise GraphError(f"{value.name} is computed twice, or not by its own node, in\n    {node}")
                defined.add(value)
        missing = [v.name for v in self.outputs if v not in defined]
        if missing:
            raise GraphError(f"outputs that nothing computes: {', '.join(missing)}")

    # -- for people --------------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        """Python-like text (`graph_text`): a line for each state, constant and node, with shapes and the user's line."""
        from .graph_text import text

        return text(self)

    def html(self, path: str | os.PathLike | None = None, times: Mapping[Node, float] | None = None) -> str:
        """The graph as one self-contained page (`graph_page.page`); written to `path` if given. times: nanoseconds a node."""
        from .graph_page import page

        return page(self, path, times)

    def save(self, path: str | os.PathLike, packed: bool = False) -> None:
        """Write structure, states and constants to an HDF5 file that `graftwork.load_graph` runs without model code. packed: in
        few bytes, for a quantised, pruned or clustered network."""
        from .graph_file import save

        save(self, path, packed)
