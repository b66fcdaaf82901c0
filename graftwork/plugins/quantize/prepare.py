"""The float32 graph that quantisation starts from: weights folded and computed, epilogues where bytes can follow them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ConfigError
from ...nn.autograd import mode
from ...nn.compile import trace
from ...nn.graph import Graph, Node, Value
from ...nn.lower import _split, compute_now
from ...nn.op import OPS
from ...nn.ops.quantized import CLAMPS
from ...nn.passes import PASSES
from ...nn.passes.epilogue import fuse_epilogues
from ...nn.tensor import tensor

_SETTINGS = {"gelu": {"approximate": False}}  # of an activation that was an epilogue
_FIRST = ("dead_code", "constants", "common_subexpressions", "padding", "batch_norm")


def prepare(model: Any, shape: tuple[int, ...]) -> Graph:
    """Capture `model` for inputs of `shape`; weights become constants, numbered nodes are the same for every batch size."""
    if getattr(model, "training", False):
        raise ConfigError("quantize: the model is in training mode, where results depend on the batch; call model.eval() first")
    before, mode.grad = mode.grad, False
    try:
        graph = trace(model, tensor(np.zeros(shape, np.float32)))
    finally:
        mode.grad = before
    if graph.written():
        raise ConfigError("quantize: the model changes a state while it computes; only inference can be quantised")
    for name in _FIRST:
        graph = PASSES[name](graph)
    _scalings_as_convolutions(graph)
    graph = PASSES["dead_code"](fuse_epilogues(graph))
    _split_epilogues(graph)
    _compute_weights(graph)
    graph.renumber()
    graph.check()
    return graph


def _scalings_as_convolutions(graph: Graph) -> None:
    """x * scale + shift with a number a channel (a batch norm that nothing takes in) is a depthwise 1x1 convolution: its
    weight, alone in its channel, loses nothing in 8 bits."""
    known = {*graph.constants, *graph.states}
    for node in _ahead(graph):
        known.update(node.outputs)
    for node in [n for n in graph.nodes if n.op.name == "multiply"]:
        readers = graph.consumers().get(node.output, [])
        if len(readers) != 1 or readers[0].op.name != "add" or node.output in graph.outputs:
            continue
        x, scale = node.inputs
        shift = next((v for v in readers[0].inputs if v is not node.output), None)
        if x in known or x.ndim != 4 or x.dtype != np.float32 or scale not in known or shift not in known:
            continue
        if scale.shape != x.shape[-1:] or shift is None or shift.shape != x.shape[-1:]:
            continue
        weight = graph.make(OPS["reshape"], [scale], {"shape": (1, 1, 1, x.shape[-1])}, node.line)
        geometry = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": x.shape[-1]}
        conv = graph.make(OPS["conv2d"], [x, weight.output, shift], {**geometry, "activation": None}, node.line)
        graph.rewrite(readers[0], [weight, conv])
        graph.nodes.remove(node)


def _split_epilogues(graph: Graph) -> None:
    """Activations beyond clamps follow the bytes as tables; a dense layer has no fused residual."""
    for node in list(graph.nodes):
        if node.op.name not in ("conv2d", "linear"):
            continue
        activation = node.attrs.get("activation")
        later = [activation] if activation is not None and activation not in CLAMPS else []
        residual = node.inputs[3] if node.op.name == "linear" and len(node.inputs) == 4 else None
        if residual is not None and activation is not None:
            later = [activation]
        if not later and residual is None:
            continue
        inputs = node.inputs[:3] if residual is not None else node.inputs
        made = [graph.make(node.op, inputs, {**node.attrs, "activation": None}, node.line)]
        if residual is not None:
            made.append(graph.make(OPS["add"], [made[-1].output, residual], {}, node.line))
        made += [graph.make(OPS[n], [made[-1].output], _SETTINGS.get(n, {}), node.line) for n in later]
        graph.rewrite(node, made)


def _ahead(graph: Graph) -> list[Node]:
    return _split(graph, {*graph.constants, *graph.states})[0]


def _compute_weights(graph: Graph) -> None:
    """What depends on weights only becomes a constant, named after the largest of them; so do the weights that are still read
    (copies: the quantised model keeps what the model holds now)."""
    first, graph.nodes = _split(graph, {*graph.constants, *graph.states})
    arrays = dict(graph.constants) | {v: t.data for v, t in graph.states.items()}
    origin = {v: v for v in graph.states}
    for node in first:
        compute_now(node, arrays)
        known = [origin[v] for v in node.inputs if v in origin]
        if known:
            origin.update(dict.fromkeys(node.outputs, max(known, key=lambda v: v.size)))
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.outputs)
    graph.constants, graph.states, graph._names = {}, {}, {v.name: 1 for v in graph.inputs}
    for value, array in arrays.items():
        if value in read:
            graph.replace(value, graph.add_constant(np.array(array), (origin.get(value) or value).name))


class Source:
    """A model as prepared graphs, one for each input shape, all with the weights of the moment when it was made.

    constants: those weights by name, folded; shared by all graphs, so that what changes one here (equalisation, training)
    changes it for every shape. names: of the float32 values that are observed.
    """

    def __init__(self, model: Any, shape: tuple[int, ...]):
        self.model, self.shape = model, shape
        graph = prepare(model, shape)
        self.constants = {v.name: a for v, a in graph.constants.items()}
        self.names = [v.name for v in observed(graph)]
        self._graphs = {shape: graph}

    def graph(self, shape: tuple[int, ...]) -> Graph:
        """A graph of the caller's own for inputs of `shape`. Raises ConfigError if the model has become another one."""
        if shape not in self._graphs:
            graph = prepare(self.model, shape)
            if [v.name for v in observed(graph)] != self.names:
                raise ConfigError("quantised model: the model has been changed since its calibration; quantise it again")
            self._share(graph)
            self._graphs[shape] = graph
        graph = copied(self._graphs[shape])
        self._share(graph)
        return graph

    def _share(self, graph: Graph) -> None:
        for value, array in graph.constants.items():
            known = self.constants.get(value.name)
            if known is not None and known.shape == array.shape:  # other constants follow the batch's size
                graph.constants[value] = known

    def copy(self) -> Source:
        """Another source, whose constants can be changed without changing this one's."""
        other = object.__new__(Source)
        other.__dict__.update(self.__dict__, constants=dict(self.constants))
        return other


def copied(graph: Graph) -> Graph:
    """The same graph in values and nodes of its own; constants share their arrays."""
    new = Graph(graph.name, graph.device, graph.precision)
    twin: dict[Value, Value] = {}
    for value in (*graph.inputs, *graph.constants):
        twin[value] = Value(value.name, value.shape, value.dtype)
    for node in graph.nodes:
        made = Node(node.op, [twin[v] for v in node.inputs], node.attrs, node.line)
        made.outputs = [Value(v.name, v.shape, v.dtype, made) for v in node.outputs]
        twin.update(zip(node.outputs, made.outputs, strict=True))
        new.nodes.append(made)
    new.inputs, new.outputs = [twin[v] for v in graph.inputs], [twin[v] for v in graph.outputs]
    new.constants = {twin[v]: a for v, a in graph.constants.items()}
    new._names = dict(graph._names)
    return new


def observed(graph: Graph) -> list[Value]:
    """The float32 values whose ranges matter, in an order that does not depend on the batch size."""
    values = [*graph.inputs, *(v for n in graph.nodes if n.op.view is None for v in n.outputs)]
    return [v for v in values if v.dtype == np.float32]
