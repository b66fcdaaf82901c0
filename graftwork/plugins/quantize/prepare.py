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
    """What depends on weights only becomes a constant; so do the weights that are still read (copies: the quantised model keeps
    what the model holds now)."""
    first, graph.nodes = _split(graph, {*graph.constants, *graph.states})
    arrays = dict(graph.constants) | {v: t.data for v, t in graph.states.items()}
    for node in first:
        compute_now(node, arrays)
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.outputs)
    graph.constants = {}
    for value, array in arrays.items():
        if value in read:
            constant = graph.add_constant(np.array(array), value.name)
            graph.replace(value, constant)
    graph.states = {}


def observed(graph: Graph) -> list[Value]:
    """The float32 values whose ranges matter, in an order that does not depend on the batch size."""
    values = [*graph.inputs, *(v for n in graph.nodes if n.op.view is None for v in n.outputs)]
    return [v for v in values if v.dtype == np.float32]
