"""Configurations of models as graphs: layers by name, the calls between them, an order to run them in.

Sequential and Functional models of Keras 1, 2 and 3 become the same `Graph`. Everything malformed is a ModelError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import ModelError
from .activations import activation_problem
from .config import LARGEST, Call, Shape, Slot, is_channels_first
from .operations import OPERATIONS, operation_name
from .table import LAYERS, knows

Key = tuple[str, int]  # a layer and which of its calls
Ref = tuple[str, int, int]  # and which output of it
MODELS = ("Functional", "Model", "Sequential")
MASKS = ("mask", "query_mask", "value_mask", "key_mask")
_KERAS = re.compile(r"(tf_keras|keras|tensorflow\.keras|tensorflow\.python\.keras)(\.|$)")
_WITHIN = ("layer", "backward_layer", "cell", "cells", "layers")  # settings that hold other layers
REASONS = {  # layers that we know and cannot build
    "Lambda": "it holds code, which is never run", "SpectralNormalization": "it changes another layer's weights",
    "ConvLSTM1D": "recurrent convolutions", "ConvLSTM2D": "recurrent convolutions", "ConvLSTM3D": "recurrent convolutions",
    "Conv3DTranspose": "no transposed convolution in three dimensions", "StringLookup": "strings",
    "TextVectorization": "strings", "Hashing": "strings", "HashedCrossing": "strings",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One call of a layer: the tensors it takes, its arguments, and masks that it is given as tensors."""

    inputs: tuple[Ref, ...] = ()
    call: Call = field(default_factory=Call)
    masks: dict[str, tuple[Ref | None, ...]] = field(default_factory=dict)

    @property
    def sources(self) -> set[Key]:
        given = [ref for refs in self.masks.values() for ref in refs if ref is not None]
        return {(name, call) for name, call, _ in (*self.inputs, *given)}


@dataclass
class Layer:
    """A layer of a configuration and its calls."""

    name: str
    kind: str
    config: dict[str, Any]
    calls: list[Node]
    origin: str = ""  # where the class comes from, if not from Keras


@dataclass(frozen=True)
class Graph:
    """A configuration without its spelling: layers by name, input layers in order, outputs."""

    layers: dict[str, Layer]
    inputs: list[str]
    outputs: list[Ref]


def parse_graph(config: Any, shapes: list[Shape] | None = None) -> Graph:
    """A Sequential or Functional configuration of Keras 1, 2 or 3 as a Graph.

    shapes: of the inputs, for a Sequential model within another that does not say its own. Layers are not checked yet.
    """
    kind, inner = (config.get("class_name"), config.get("config")) if isinstance(config, dict) else (None, None)
    if kind == "Sequential":
        entries = inner.get("layers") if isinstance(inner, dict) else inner
        shape = inner.get("build_input_shape") if isinstance(inner, dict) else None
        if shape is None and shapes and len(shapes) == 1:
            shape = list(shapes[0])
        return _sequential(_entries(entries), shape)
    if kind in ("Functional", "Model") and isinstance(inner, dict):
        return _functional(inner)
    raise ModelError(
        f"the configuration is of a {kind!r:.60}, expected a Sequential or Functional model; models that are classes of their "
        "own keep their structure in code: build it in Graftwork and use load_weights"
    )


def _entries(value: Any) -> list[dict[str, Any]]:
    sound = isinstance(value, list) and all(
        isinstance(e, dict) and isinstance(e.get("class_name"), str) and isinstance(e.get("config"), (dict, list))
        for e in value
    )
    if not sound or not value:
        raise ModelError("the configuration has no sound list of layers; save the model again")
    return value


def _name(entry: dict[str, Any]) -> str:
    config = entry["config"] if isinstance(entry["config"], dict) else {}
    name = entry.get("name") or config.get("name")
    if not isinstance(name, str) or not name:
        raise ModelError(f"a layer of class {entry['class_name']!r:.60} has no name; save the model again")
    return name


def _layer(entry: dict[str, Any], calls: list[Node]) -> Layer:
    kind = entry["class_name"]
    config = entry["config"] if isinstance(entry["config"], dict) else {"layers": entry["config"]}
    nodes = entry.get("inbound_nodes")
    keras3 = isinstance(nodes, list) and bool(nodes) and isinstance(nodes[0], dict)
    origin = _origin(entry)
    if keras3 and kind not in ("InputLayer", *MODELS) and "trainable" not in config and not origin:
        # an operation on tensors: in Keras 3 these share class names with layers, but not their defaults
        kind, config = "KerasOperation", {**config, "function": kind}
    return Layer(_name(entry), kind, config, calls, origin)


def _origin(entry: dict[str, Any]) -> str:
    """Where a layer's class comes from, if neither Keras nor our own registry knows it."""
    module, registered = entry.get("module"), entry.get("registered_name")
    if knows(entry["class_name"], registered):
        return ""
    if module is None:
        return "" if registered in (None, entry["class_name"]) else f"{registered!s:.60}"
    return "" if _KERAS.match(f"{module!s:.200}") else f"{module!s:.60}"


def _sequential(entries: list[dict[str, Any]], build_shape: Any) -> Graph:
    """Layers one after another; the first says the input's shape, or is an InputLayer."""
    layers: dict[str, Layer] = {}
    if entries[0]["class_name"] != "InputLayer":
        first = entries[0]["config"] if isinstance(entries[0]["config"], dict) else {}
        shape = first.get("batch_input_shape") or first.get("batch_shape") or build_shape or _of_nested(entries[0])
        name = "input"
        while name in {_name(e) for e in entries}:
            name += "_"
        layers[name] = Layer(name, "InputLayer", {"batch_input_shape": shape}, [Node()])
    previous: list[Ref] = [(next(iter(layers)), 0, 0)] if layers else []
    for entry in entries:
        layer = _layer(entry, [Node(tuple(previous), Call(tuple(Slot(i) for i in range(len(previous)))))])
        if layer.name in layers:
            raise ModelError(f"two layers are named {layer.name!r:.200}; save the model again")
        layers[layer.name] = layer
        previous = [(layer.name, 0, 0)]
    return Graph(layers, [next(iter(layers))], previous)


def _of_nested(entry: dict[str, Any]) -> Any:
    """The input's shape of a model that is the first layer of a Sequential one."""
    config = entry["config"]
    while isinstance(config, (dict, list)):
        entries = config.get("layers") if isinstance(config, dict) else config
        if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
            return None
        config = entries[0].get("config")
        if isinstance(config, dict) and (config.get("batch_input_shape") or config.get("batch_shape")):
            return config.get("batch_input_shape") or config.get("batch_shape")
    return None


def _functional(config: dict[str, Any]) -> Graph:
    layers: dict[str, Layer] = {}
    for entry in _entries(config.get("layers")):
        name = _name(entry)
        nodes = entry.get("inbound_nodes", [])
        if not isinstance(nodes, list):
            raise ModelError(f"layer {name!r:.200}: inbound_nodes is not a list; save the model again")
        calls = [_call(name, node) for node in nodes] or ([Node()] if entry["class_name"] == "InputLayer" else [])
        if name in layers:
            raise ModelError(f"two layers are named {name!r:.200}; save the model again")
        layers[name] = _layer(entry, calls)
    inputs = [name for name, _, _ in _ends(config.get("input_layers"), "input_layers")]
    outputs = _ends(config.get("output_layers"), "output_layers")
    return Graph(layers, inputs, _renumber(layers, outputs))


def _renumber(layers: dict[str, Layer], outputs: list[Ref]) -> list[Ref]:
    """Count the calls of models within the model from 0, in place; returns the outputs.

    Such a model has a call of its own before those in the configuration. Keras 1 and 2 count it everywhere, Keras 3 in the
    list of outputs only.
    """
    inner = {name for name, layer in layers.items() if layer.kind in MODELS}
    used: dict[str, set[int]] = {name: set() for name in inner}
    for layer in layers.values():
        for node in layer.calls:
            for name, call, _ in node.inputs:
                if name in inner:
                    used[name].add(call)
    early = {n for n, calls in used.items() if calls and min(calls) > 0 and max(calls) >= len(layers[n].calls)}
    for layer in layers.values():
        layer.calls = [
            Node(tuple((n, k - (n in early), t) for n, k, t in node.inputs), node.call, node.masks) for node in layer.calls
        ]
    final = {n for n in inner if any(n == name and call >= len(layers[n].calls) for name, call, _ in outputs)}
    final |= {n for n in inner if layers[n].kind != "Sequential" and all(k > 0 for name, k, _ in outputs if name == n)}
    return [(n, k - 1 if n in final and k > 0 else k, t) for n, k, t in outputs]


def _ends(value: Any, what: str) -> list[Ref]:
    """Inputs or outputs: [[name, call, tensor], ...], one such triple, or dicts and lists of them."""
    found: list[Ref] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += reversed(list(item.values()))
        elif isinstance(item, list) and item and not isinstance(item[0], str):
            pending += reversed(item)
        else:
            found.append(_ref(item, what))
    if not found:
        raise ModelError(f"the configuration has no {what}; save the model again")
    return found


def _is_ref(item: Any) -> bool:
    return (
        isinstance(item, (list, tuple)) and len(item) >= 3 and isinstance(item[0], str)
        and all(type(n) is int and 0 <= n <= LARGEST for n in item[1:3])
    )  # fmt: skip


def _ref(item: Any, where: str) -> Ref:
    """(layer, call, output) from [layer, call, output]."""
    if not _is_ref(item):
        raise ModelError(f"{where}: {item!r:.80} is not a reference to a layer's output; save the model again")
    return item[0], item[1], item[2]


# -- calls -------------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one call: collects the tensors among its arguments and puts a `Slot` where each stood."""

    def __init__(self, where: str):
        self.where = where
        self.inputs: list[Ref] = []

    def slot(self, ref: Ref) -> Slot:
        self.inputs.append(ref)
        return Slot(len(self.inputs) - 1)

    def value(self, value: Any) -> Any:
        """An argument of any form: tensors of Keras 2 (a triple) and 3 (an object), tuples, plain values."""
        if _is_ref(value):
            return self.slot(_ref(value, self.where))
        if isinstance(value, list):
            return tuple(self.value(v) for v in value)
        if not isinstance(value, dict):
            return value
        kind, inner = value.get("class_name"), value.get("config")
        if kind == "__keras_tensor__":
            return self.slot(_ref(inner.get("keras_history") if isinstance(inner, dict) else None, self.where))
        if kind == "__tuple__" and isinstance(value.get("items"), list):
            return tuple(self.value(v) for v in value["items"])
        raise ModelError(f"{self.where}: is called with {value!r:.80}, which is no tensor and no plain value; not supported")

    def masks(self, kwargs: dict[str, Any]) -> dict[str, tuple[Ref | None, ...]]:
        """Masks given as tensors; they are no inputs."""
        found = {}
        for name in MASKS:
            if kwargs.get(name) is None:
                continue
            own = _Reader(self.where)
            value = own.value(kwargs[name])
            slots = value if isinstance(value, tuple) else (value,)
            if any(not isinstance(s, (Slot, type(None))) for s in slots):
                raise ModelError(f"{self.where}: {name}={kwargs[name]!r:.60} is no tensor; not supported")
            if own.inputs:
                found[name] = tuple(None if s is None else own.inputs[s.index] for s in slots)
        return found


def _call(layer: str, node: Any) -> Node:
    """What one call of a layer takes: Keras 3's {"args", "kwargs"}, or a list of [layer, call, tensor, arguments]."""
    reader = _Reader(f"layer {layer!r:.200}")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if isinstance(node, dict):
        given = node.get("args")
        if not isinstance(given, list):
            raise ModelError(f"{reader.where}: a call without arguments; save the model again")
        args = [reader.value(v) for v in given]
        kwargs = node.get("kwargs") or {}
    else:
        items = [node] if isinstance(node, list) and node and isinstance(node[0], str) else node
        if not isinstance(items, list):
            raise ModelError(f"{reader.where}: inbound node {node!r:.80} is not a list; save the model again")
        for item in items:
            constant = isinstance(item, list) and len(item) >= 3 and item[0] == "_CONSTANT_VALUE"
            args.append(item[2] if constant else reader.slot(_ref(item, reader.where)))
            more = item[3] if len(item) > 3 else None
            if more is not None and not isinstance(more, dict):
                raise ModelError(f"{reader.where}: call arguments {more!r:.80} are not an object; save the model again")
            kwargs = kwargs or more or {}
    if not isinstance(kwargs, dict):
        raise ModelError(f"{reader.where}: call arguments {kwargs!r:.80} are not an object; save the model again")
    masks = reader.masks(kwargs)
    plain = {k: reader.value(v) for k, v in kwargs.items() if k not in MASKS}
    return Node(tuple(reader.inputs), Call(tuple(args), plain), masks)


# -- checking and ordering ---------------------------------------------------------------------------------------------


def check_layers(config: dict[str, Any]) -> None:
    """ModelError that names every layer which cannot be built, in models within models too, all at once."""
    unknown: list[str] = []
    transposed: list[str] = []
    for path, entry in _all_entries(config):
        layer = _layer({**entry, "name": entry.get("name") or path}, [])
        if layer.kind == "InputLayer" or layer.kind in MODELS:
            continue
        if is_channels_first(layer.config):
            transposed.append(repr(path))
        if problem := _problem(layer):
            unknown.append(f"{path!r:.200} ({problem})")
    if unknown:
        raise ModelError(
            f"no such layers here: {'; '.join(unknown)}. Code in model files is never run: register your own classes with "
            "zoo.register_keras_layer, or write the model as an nn.Module and use load_weights"
        )
    if transposed:
        raise ModelError(
            f"the model is channels-first (layers {', '.join(transposed)}) and Graftwork is channels-last; convert it in "
            "Keras first"
        )


def _problem(layer: Layer) -> str | None:
    """Why a layer cannot be built, or None."""
    if knows(layer.kind):
        return None
    if layer.kind in OPERATIONS:
        return None if operation_name(layer.config) else f"an operation on tensors, {layer.config.get('function')!r:.60}"
    if layer.origin:
        return f"{layer.kind:.60}, {layer.origin}"
    if layer.kind not in LAYERS and not layer.kind.endswith("Cell") and layer.kind != "StackedRNNCells":
        return f"{layer.kind:.60}: {REASONS[layer.kind]}" if layer.kind in REASONS else f"{layer.kind:.60}"
    return activation_problem(layer.config)


def _all_entries(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, entry) of all layers of a model's configuration, those within other layers included."""
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        prefix, entry = pending.pop()
        inner = entry.get("config")
        held = [inner] if isinstance(inner, list) else [inner.get(k) for k in _WITHIN] if isinstance(inner, dict) else []
        children = [e for value in held for e in (value if isinstance(value, list) else [value])]
        found = []
        for child in children:
            if not isinstance(child, dict) or not isinstance(child.get("class_name"), str):
                continue
            settings = child.get("config")
            if not isinstance(settings, (dict, list)):
                continue
            name = child.get("name") or (settings.get("name") if isinstance(settings, dict) else None)
            path = f"{prefix}{name if isinstance(name, str) and name else child['class_name']}"
            found.append((f"{path}/", child))
            yield path, child
        pending += reversed(found)


def order_calls(graph: Graph) -> list[Key]:
    """All calls so that each comes after what it takes. ModelError for dangling references and cycles."""
    known = {(layer.name, i) for layer in graph.layers.values() for i in range(len(layer.calls))}
    if len(set(graph.inputs)) != len(graph.inputs):
        raise ModelError(f"the inputs {graph.inputs!r:.200} name a layer twice")
    for name in graph.inputs:
        if name not in graph.layers or graph.layers[name].kind != "InputLayer":
            raise ModelError(f"input {name!r:.200} is not an InputLayer of the configuration")
    for layer in graph.layers.values():
        _check_layer_calls(graph, layer, known)
    for name, call, _ in graph.outputs:
        if (name, call) not in known:
            raise ModelError(f"output {name!r:.200} (call {call}) is not in the configuration")
    return _topological(graph)


def _check_layer_calls(graph: Graph, layer: Layer, known: set[Key]) -> None:
    is_input = layer.kind == "InputLayer"
    if is_input != (layer.name in graph.inputs):
        raise ModelError(f"layer {layer.name!r:.200} ({layer.kind:.60}) and the list of inputs contradict each other")
    if not layer.calls or any(bool(node.inputs) == is_input for node in layer.calls):
        raise ModelError(f"layer {layer.name!r:.200} ({layer.kind:.60}) is not connected; save the model again")
    for name, call in (key for node in layer.calls for key in node.sources):
        if (name, call) not in known:
            raise ModelError(
                f"layer {layer.name!r:.200} takes the output of {name!r:.200} (call {call}), which is not in the configuration"
            )


def _topological(graph: Graph) -> list[Key]:
    """Kahn's algorithm, in the configuration's order where that is free."""
    sources = {(layer.name, i): node.sources for layer in graph.layers.values() for i, node in enumerate(layer.calls)}
    waiting = {key: len(found) for key, found in sources.items()}
    users: dict[Key, list[Key]] = {key: [] for key in waiting}
    for key, found in sources.items():
        for source in found:
            users[source].append(key)
    order = [key for key, count in waiting.items() if count == 0]
    for key in order:  # grows while it is walked
        for user in users[key]:
            waiting[user] -= 1
            if waiting[user] == 0:
                order.append(user)
    if len(order) < len(waiting):
        stuck = sorted({name for (name, _), count in waiting.items() if count})[:10]
        raise ModelError(f"the configuration has a cycle through {', '.join(map(repr, stuck))}; a network must have none")
    return order
