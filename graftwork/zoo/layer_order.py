"""The order in which Keras lists the layers of a zoo network, which decides their numbers in `.weights.h5` files.

Keras does not keep the order of creation: it sorts a graph's layers by their distance from the output, farthest first, and
those of equal distance by when a walk from the output, depth first, meets them. The network is captured (nothing is
computed) and its ops stand for Keras's layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..nn import (
    Conv2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    SeparableConv2d,
    no_grad,
    tensor,
)
from ..nn.compile import trace
from ..nn.graph import Graph, Node
from ..nn.modules.layers import BatchNorm
from .matching import Slot, own_slots
from .weights_h5 import LayerSpec

KINDS: dict[type[Module], str] = {
    DepthwiseConv2d: "DepthwiseConv2D", SeparableConv2d: "SeparableConv2D", ConvTranspose2d: "Conv2DTranspose",
    Conv2d: "Conv2D", Linear: "Dense", BatchNorm: "BatchNormalization", LayerNorm: "LayerNormalization", Embedding: "Embedding",
}  # fmt: skip


def layer_specs(model: Module, modules: Mapping[str, Module]) -> list[LayerSpec]:
    """The model's layers with weights, in Keras's order. `modules` by the layers' names in files.

    Models that do not say what their input is keep their own order.
    """
    order: Sequence[str] = list(modules)
    if _is_shape(getattr(model, "input_shape", None)):
        order = keras_order(model, {name: own_slots(module) for name, module in modules.items()})
    return [LayerSpec(name, kind(modules[name]), inner_specs(modules[name])) for name in order]


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)


def kind(module: Module) -> str:
    """The class of Keras's layer that a module stands for; its attribute `keras_class` has the last word."""
    named = getattr(module, "keras_class", None)
    return named or next((name for own, name in KINDS.items() if isinstance(module, own)), type(module).__name__)


def inner_specs(module: Module) -> tuple[LayerSpec, ...]:
    """Keras's layers within a module that stands for a nested model.

    The module's attribute `keras_inner` lists them: (name, class, how many of the module's tensors are its own), ....
    """
    return tuple(LayerSpec(name, kind) for name, kind, _ in getattr(module, "keras_inner", ()))


def keras_order(model: Module, slots: Mapping[str, Sequence[Slot]]) -> list[str]:
    """Names of layers with weights in the order of `keras.Model.layers`; what the graph does not reach comes last."""
    with no_grad():
        graph = trace(model, tensor(np.zeros((1, *model.input_shape), np.float32)))
    owners = {id(slot.tensor): name for name, own in slots.items() for slot in own}
    layer_of = {id(node): _owner(node, graph, owners) for node in graph.nodes}
    depths = _depths(graph, layer_of)
    places: dict[str, tuple[int, int]] = {}
    for position, node in enumerate(_walk(graph)):
        layer = layer_of[id(node)]
        if layer is not None:
            depth, first = places.get(layer, (depths[id(node)], position))
            places[layer] = max(depth, depths[id(node)]), first
    met = sorted(places, key=lambda name: (-places[name][0], places[name][1]))
    return met + [name for name in slots if name not in places]


def _owner(node: Node, graph: Graph, owners: Mapping[int, str]) -> str | None:
    found = (owners.get(id(graph.states[value])) for value in node.inputs if value in graph.states)
    return next(filter(None, found), None)


def _depths(graph: Graph, layer_of: Mapping[int, str | None]) -> dict[int, int]:
    """Layers between each node and the output, on the longest way; ops of one layer count once."""
    depths: dict[int, int] = {}
    for node in reversed(graph.nodes):
        depth = depths.setdefault(id(node), 0)
        for value in node.inputs:
            if value.node is not None:
                same = layer_of[id(node)] is not None and layer_of[id(node)] == layer_of[id(value.node)]
                depths[id(value.node)] = max(depths.get(id(value.node), 0), depth + (not same))
    return depths


def _walk(graph: Graph) -> list[Node]:
    """Nodes as a walk from the outputs meets them, depth first, along the inputs in their order."""
    met: dict[int, Node] = {}
    waiting = [value.node for value in reversed(graph.outputs)]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in met:
            met[id(node)] = node
            waiting += [value.node for value in reversed(node.inputs)]
    return list(met.values())
