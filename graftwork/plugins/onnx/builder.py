"""The ONNX graph under construction: names, constants, layouts, open batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import GraphError
from ...nn.graph import Graph, Node, Value

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


class Builder:
    """One export. `twin`: the same call captured with a longer batch, or None if the batch is fixed."""

    def __init__(self, graph: Graph, twin: Graph | None, dtype: str):
        self.graph, self.dtype = graph, np.dtype(dtype)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.normalise: Callable[[str], str] = lambda name: name
        self.plain: dict[Value, str] = {}  # names of values in their own layout
        self.channels_first: dict[Value, str] = {}  # names of those that are there as NCHW
        self.twins = {} if twin is None else _pair(graph, twin)
        self._constants: dict[tuple, str] = {}

    # -- making ------------------------------------------------------------------------------------------------------
    def node(self, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        """Add a node with one output; returns the output's name."""
        from onnx import helper

        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attrs))
        return name

    def constant(self, array: np.ndarray) -> str:
        """An initialiser; float32 values in the file's dtype. Small ones that are equal are kept once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(array, self.kept(array.dtype)) if array.ndim else np.asarray(array, self.kept(array.dtype))
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 4096 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        if key is not None:
            self._constants[key] = name
        return name

    def kept(self, dtype) -> np.dtype:
        """The element type that the file has for one of the graph's."""
        return self.dtype if np.dtype(dtype) == np.float32 else np.dtype(dtype)

    def scalar(self, number: float, dtype) -> str:
        return self.constant(np.asarray(number, dtype))

    # -- layouts -----------------------------------------------------------------------------------------------------
    def name(self, value: Value) -> str:
        """The value in its own layout (NHWC for images); a transpose if it is there as NCHW only."""
        if value not in self.plain:
            if value in self.graph.constants:
                self.plain[value] = self.constant(self.graph.constants[value])
            else:
                self.plain[value] = self.node("Transpose", [self.channels_first[value]], perm=TO_NHWC)
        return self.plain[value]

    def nchw(self, value: Value) -> str:
        """An image value as NCHW. What broadcasts against images, with fewer dimensions, gets the shape that fits there."""
        if value not in self.channels_first:
            if value in self.graph.constants:
                array = self.graph.constants[value]
                array = array.reshape((1,) * (4 - array.ndim) + array.shape) if array.ndim else array
                self.channels_first[value] = self.constant(array.transpose(TO_NCHW) if array.ndim else array)
            elif value.ndim == 0:
                return self.name(value)
            else:
                name = self.name(value)
                if value.ndim < 4:
                    name = self.node("Unsqueeze", [name, self.constant(np.arange(4 - value.ndim, dtype=np.int64))])
                self.channels_first[value] = self.node("Transpose", [name], perm=TO_NCHW)
        return self.channels_first[value]

    def is_nchw(self, node: Node) -> bool:
        """Whether the node's image operands are there as NCHW, so that it had better stay so."""
        return len(node.output.shape) == 4 and any(v in self.channels_first and v not in self.plain for v in node.inputs)

    # -- open sizes --------------------------------------------------------------------------------------------------
    def sizes(self, value: Value) -> list[int | None]:
        """The value's shape, None where it follows the batch."""
        other = self.twins.get(value)
        return [n if other is None or other.shape[i] == n else None for i, n in enumerate(value.shape)]

    def shape_constant(self, value: Value, node: Node) -> str:
        """A Reshape target for `value`: at most one size may follow the batch."""
        sizes = self.sizes(value)
        if sizes.count(None) > 1:
            raise GraphError(f"export: two sizes follow the batch in\n    {node}\nexport it with dynamic_batch=False")
        return self.constant(np.array([-1 if n is None else n for n in sizes], np.int64))

    # -- all of it ---------------------------------------------------------------------------------------------------
    def build(self) -> Any:
        """The onnx.GraphProto."""
        from onnx import TensorProto, helper

        from . import rules_quantized  # noqa: F401 - fills the table
        from .rules import RULES, Emit

        inputs, outputs = [], []
        for value in self.graph.inputs:
            inputs.append(self._info(value, value.name))
            name = self.normalise_input(value)
            self.plain[value] = name
        for node in self.graph.nodes:
            if node.op.name not in RULES:
                raise GraphError(f"export: the op {node.op.name!r} has no form in ONNX, in\n    {node}\n    {node.source()}")
            self._check_attributes(node)
            RULES[node.op.name](Emit(self, node))
        for i, value in enumerate(self.graph.outputs):
            name = f"output_{i}" if len(self.graph.outputs) > 1 else "output"
            outputs.append(self._info(value, name))
            if value.dtype == np.float32 and self.dtype != np.float32:
                self.nodes.append(helper.make_node("Cast", [self.name(value)], [name], to=TensorProto.FLOAT))
            else:
                self.nodes.append(helper.make_node("Identity", [self.name(value)], [name]))
        return helper.make_graph(self.nodes, self.graph.name, inputs, outputs, self.initializers)

    def normalise_input(self, value: Value) -> str:
        from onnx import TensorProto

        name = value.name
        if value.dtype == np.float32 and self.dtype != np.float32:
            name = self.node("Cast", [name], to=TensorProto.FLOAT16)
        return self.normalise(name) if value is self.graph.inputs[0] else name

    def _info(self, value: Value, name: str) -> Any:
        from onnx import helper

        shape = [n if n is not None else "batch" if i == 0 else f"{name}_{i}" for i, n in enumerate(self.sizes(value))]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)

    def _check_attributes(self, node: Node) -> None:
        """Refuse attributes that follow the batch where the rule does not take them from the output's shape."""
        if not self.twins or not node.outputs or node.op.name in ("reshape", "broadcast_to", "conv2d_input_grad"):
            return
        other = self.twins[node.output].node
        assert other is not None
        if other.attrs != node.attrs:
            raise GraphError(f"export: attributes follow the batch in\n    {node}\nexport it with dynamic_batch=False")


def _pair(graph: Graph, twin: Graph) -> dict[Value, Value]:
    """Each value of a graph with the one of its twin. Raises GraphError if what is computed depends on the batch."""
    same = [n.op for n in graph.nodes] == [n.op for n in twin.nodes]
    if not same or len(graph.inputs) != len(twin.inputs):
        raise GraphError("export: what is computed depends on the batch's size; export it with dynamic_batch=False")
    pairs = dict(zip(graph.inputs, twin.inputs, strict=True))
    for a, b in zip(graph.nodes, twin.nodes, strict=True):
        pairs.update(zip(a.outputs, b.outputs, strict=True))
        for u, v in zip(a.inputs, b.inputs, strict=True):
            if u in graph.constants and not (v in twin.constants and np.array_equal(graph.constants[u], twin.constants[v])):
                raise GraphError(f"export: a constant follows the batch in\n    {a}\nexport it with dynamic_batch=False")
    return pairs
