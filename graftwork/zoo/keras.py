"""Whole Keras models: a configuration read as data, its graph checked, its layers built, its weights matched.

Nothing in a file is ever run. Layers that hold somebody's code (Lambda, custom classes, operations on tensors) are named and
refused. See `keras_layers` for the layers themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError, ShapeError, WeightsError
from ..nn import Module, Tensor
from ..nn.modules.module import assign
from .hdf5 import parse_config, read_layers, read_model_config, read_origin
from .keras_layers import LARGEST, LAYERS, Built, LayerConfig, Shape, activation_problem, is_channels_first
from .matching import compare, listing, own_slots

CONFIG_CEILING = 64 << 20  # bytes of JSON
_KERAS_LAYERS = re.compile(r"(tf_keras|keras|tensorflow\.keras)\.(src\.)?layers(\.|$)")
Key = tuple[str, int]  # a layer and which of its calls


@dataclass(frozen=True)
class Layer:
    """A layer of a configuration, and for each of its calls the keys of what it is called on."""

    name: str
    kind: str
    config: dict[str, Any]
    calls: list[list[Key]]
    origin: str = ""  # where the class comes from, if not from Keras


@dataclass(frozen=True)
class Graph:
    """A configuration without its spelling: layers by name, input layers in order, outputs."""

    layers: dict[str, Layer]
    inputs: list[str]
    outputs: list[Key]


@dataclass(frozen=True)
class Step:
    """One call in `KerasModel.forward`; `release` are values that nothing after it needs."""

    key: Key
    module: str
    inputs: tuple[Key, ...]
    activation: Any
    release: tuple[Key, ...]


class KerasModel(Module):
    """A Keras model as a module.

    Sub-modules are attributes named after Keras's layers, with characters that no identifier has replaced by "_";
    `layer(name)` finds one under Keras's own name, which weight files use. Called with one tensor for each input, it returns
    one tensor, or a tuple if it has several outputs.
    """

    def __init__(self, graph: Graph, built: dict[Key, Built], order: list[Key]):
        super().__init__()
        self.layer_names: dict[str, str] = {}  # attribute -> Keras's name, as `load_weights` and `save_weights` want it
        self.input_names = tuple(graph.inputs)
        self.output_names = tuple(name for name, _ in graph.outputs)
        self.input_shapes = tuple(built[name, 0].output[1:] for name in graph.inputs)
        self.output_shapes = tuple(built[key].output[1:] for key in graph.outputs)
        self._outputs = tuple(graph.outputs)
        for layer in graph.layers.values():
            if layer.name not in graph.inputs:
                self._add(layer, built[layer.name, 0])
        attributes = {name: attribute for attribute, name in self.layer_names.items()}
        self._steps = _steps(graph, built, order, attributes)

    def _add(self, layer: Layer, built: Built) -> None:
        attribute = re.sub(r"\W", "_", layer.name)
        attribute = f"_{attribute}" if not attribute[:1].isalpha() else attribute
        while hasattr(self, attribute):  # taken by another layer, or by a method of ours
            attribute += "_"
        self.layer_names[attribute] = layer.name
        module = built.make()
        if layer.config.get("trainable") is False:
            module.freeze()
        self.add_module(attribute, module)

    @property
    def input_shape(self) -> Any:
        """Shape of the input without the batch, None where it is free; a tuple of shapes if there are several inputs."""
        return self.input_shapes[0] if len(self.input_shapes) == 1 else self.input_shapes

    @property
    def output_shape(self) -> Any:
        """Shape of the output without the batch; a tuple of shapes if there are several outputs."""
        return self.output_shapes[0] if len(self.output_shapes) == 1 else self.output_shapes

    def layer(self, name: str) -> Module:
        """The sub-module for a Keras layer's name. Raises ModelError if there is none."""
        for attribute, keras_name in self.layer_names.items():
            if keras_name == name:
                return self._modules[attribute]
        raise ModelError(f"this model has no layer {name!r}; it has {', '.join(self.layer_names.values())}")

    def forward(self, *inputs: Tensor) -> Any:
        self._check(inputs)
        values: dict[Key, Tensor] = {(name, 0): x for name, x in zip(self.input_names, inputs, strict=True)}
        for step in self._steps:
            y = self._modules[step.module](*[values[key] for key in step.inputs])
            values[step.key] = step.activation(y) if step.activation else y
            for key in step.release:
                del values[key]
        outputs = tuple(values[key] for key in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self.input_shapes):
            raise ShapeError(f"called with {len(inputs)} tensors; the model has the inputs {', '.join(self.input_names)}")
        for name, shape, x in zip(self.input_names, self.input_shapes, inputs, strict=True):
            sizes = zip(shape, x.shape[1:], strict=False)
            if x.ndim != len(shape) + 1 or any(want not in (None, have) for want, have in sizes):
                wanted = ", ".join("any" if n is None else str(n) for n in ("batch", *shape))
                raise ShapeError(f"input {name!r} has shape {x.shape}, expected ({wanted})")


def _steps(graph: Graph, built: dict[Key, Built], order: list[Key], attributes: dict[str, str]) -> list[Step]:
    """The calls that the outputs need, in order, each with the values whose last use it is."""
    calls = {key: tuple(graph.layers[key[0]].calls[key[1]]) for key in order if key[0] in attributes}
    needed, pending = set(graph.outputs), list(graph.outputs)
    while pending:
        fresh = [key for key in calls.get(pending.pop(), ()) if key not in needed]
        needed.update(fresh)
        pending += fresh
    steps, kept = [], set(graph.outputs)
    for key in reversed([key for key in order if key in calls and key in needed]):
        release = tuple(dict.fromkeys(k for k in calls[key] if k not in kept))
        kept.update(release)
        steps.append(Step(key, attributes[key[0]], calls[key], built[key].activation, release))
    return steps[::-1]


# -- reading configurations --------------------------------------------------------------------------------------------


def parse_graph(config: dict[str, Any]) -> Graph:
    """A Sequential or Functional configuration of Keras 1.2, 2 or 3 as a Graph; ModelError for anything malformed."""
    kind, inner = config.get("class_name"), config.get("config")
    if kind == "Sequential":
        entries = inner.get("layers") if isinstance(inner, dict) else inner
        shape = inner.get("build_input_shape") if isinstance(inner, dict) else None
        return _sequential(_entries(entries), shape)
    if kind in ("Model", "Functional") and isinstance(inner, dict):
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


def _layer(entry: dict[str, Any], calls: list[list[Key]]) -> Layer:
    config = entry["config"] if isinstance(entry["config"], dict) else {}
    module, registered = entry.get("module"), entry.get("registered_name")
    nodes = entry.get("inbound_nodes")
    keras3 = isinstance(nodes, list) and bool(nodes) and isinstance(nodes[0], dict)
    if keras3 and entry["class_name"] != "InputLayer" and "trainable" not in config:
        foreign = "an operation on tensors"  # in Keras 3 these share class names with layers, but not their defaults
    elif module is None:
        foreign = "" if registered in (None, entry["class_name"]) else str(registered)
    else:
        foreign = "" if _KERAS_LAYERS.match(str(module)) else str(module)
    return Layer(_name(entry), entry["class_name"], config, calls, foreign)


def _sequential(entries: list[dict[str, Any]], build_shape: Any) -> Graph:
    """Layers one after another; the first says the input's shape, or is an InputLayer."""
    check_layers([_layer(e, []) for e in entries])
    layers: dict[str, Layer] = {}
    if entries[0]["class_name"] != "InputLayer":
        first = entries[0]["config"] if isinstance(entries[0]["config"], dict) else {}
        shape = first.get("batch_input_shape") or first.get("batch_shape") or build_shape
        name = "input"
        while name in {_name(e) for e in entries}:
            name += "_"
        layers[name] = Layer(name, "InputLayer", {"batch_input_shape": shape}, [[]])
    previous: list[Key] = [(next(iter(layers)), 0)] if layers else []
    for entry in entries:
        layer = _layer(entry, [previous])
        if layer.name in layers:
            raise ModelError(f"two layers are named {layer.name!r}; save the model again")
        layers[layer.name] = layer
        previous = [(layer.name, 0)]
    return Graph(layers, [next(iter(layers))], previous)


def _functional(config: dict[str, Any]) -> Graph:
    layers: dict[str, Layer] = {}
    entries = _entries(config.get("layers"))
    check_layers([_layer(e, []) for e in entries])  # before the calls: unknown classes may be called in unknown ways
    for entry in entries:
        name = _name(entry)
        nodes = entry.get("inbound_nodes", [])
        if not isinstance(nodes, list):
            raise ModelError(f"layer {name!r}: inbound_nodes is not a list; save the model again")
        calls = [_call(name, node) for node in nodes] or ([[]] if entry["class_name"] == "InputLayer" else [])
        if name in layers:
            raise ModelError(f"two layers are named {name!r}; save the model again")
        layers[name] = _layer(entry, calls)
    inputs = [name for name, _ in _ends(config.get("input_layers"), "input_layers")]
    return Graph(layers, inputs, _ends(config.get("output_layers"), "output_layers"))


def _ends(value: Any, what: str) -> list[Key]:
    """Inputs or outputs: [[name, call, tensor], ...], one such triple, or a dict of them."""
    items = list(value.values()) if isinstance(value, dict) else value
    if isinstance(items, list) and items and isinstance(items[0], str):
        items = [items]
    if not isinstance(items, list) or not items:
        raise ModelError(f"the configuration has no {what}; save the model again")
    return [_key(item, what) for item in items]


def _key(item: Any, where: str) -> Key:
    """(layer, call) from [layer, call, tensor]; our layers all have a single output tensor."""
    if not isinstance(item, list) or len(item) < 3 or not isinstance(item[0], str) or type(item[1]) is not int or item[1] < 0:
        raise ModelError(f"{where}: {item!r:.80} is not a reference to a layer's output; save the model again")
    if item[2] != 0:
        raise ModelError(
            f"{where}: uses output {item[2]!r:.20} of layer {item[0]!r}; layers with several outputs are not supported"
        )
    return item[0], item[1]


def _call(layer: str, node: Any) -> list[Key]:
    """What one call of a layer takes: Keras 3's {"args", "kwargs"}, or a list of [layer, call, tensor, arguments]."""
    where = f"layer {layer!r}"
    if isinstance(node, dict):
        _check_arguments(where, node.get("kwargs"))
        return [_keras3_tensor(where, value) for value in _flat(node.get("args"), where)]
    items = [node] if isinstance(node, list) and node and isinstance(node[0], str) else node
    if not isinstance(items, list):
        raise ModelError(f"{where}: inbound node {node!r:.80} is not a list; save the model again")
    for item in items:
        if isinstance(item, list) and len(item) > 3:
            _check_arguments(where, item[3])
    return [_key(item, where) for item in items]


def _flat(args: Any, where: str) -> Iterator[Any]:
    if not isinstance(args, list):
        raise ModelError(f"{where}: a call without arguments; save the model again")
    for value in args:
        yield from value if isinstance(value, list) else [value]


def _keras3_tensor(where: str, value: Any) -> Key:
    inner = value.get("config") if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__" else None
    if not isinstance(inner, dict):
        raise ModelError(f"{where}: is called on {value!r:.80}, which is not another layer's output; not supported")
    return _key(inner.get("keras_history"), where)


def _check_arguments(where: str, arguments: Any) -> None:
    """Arguments that would change what a layer computes are not supported; absent masks and training=False are the default."""
    if not isinstance(arguments, (dict, type(None))):
        raise ModelError(f"{where}: call arguments {arguments!r:.80} are not an object; save the model again")
    given = {k: v for k, v in (arguments or {}).items() if not (k in ("mask", "training") and not v)}
    if given:
        raise ModelError(f"{where}: is called with the arguments {', '.join(map(repr, given))}, which are not supported")


# -- checking and ordering ---------------------------------------------------------------------------------------------


def check_layers(layers: list[Layer]) -> None:
    """ModelError that names every layer which cannot be built, all at once."""
    unknown, transposed = [], []
    for layer in layers:
        if layer.kind == "InputLayer":
            continue
        if layer.kind not in LAYERS or layer.origin:
            unknown.append(f"{layer.name!r} ({layer.kind}{', ' + layer.origin if layer.origin else ''})")
        elif problem := activation_problem(layer.config):
            unknown.append(f"{layer.name!r} ({problem})")
        if is_channels_first(layer.config):
            transposed.append(repr(layer.name))
    if unknown:
        raise ModelError(
            f"no such layers here: {'; '.join(unknown)}. Code in model files is never run: write the model as an nn.Module "
            "with these layers and use load_weights, or save it without them"
        )
    if transposed:
        raise ModelError(
            f"the model is channels-first (layers {', '.join(transposed)}) and Graftwork is channels-last; convert it in "
            "Keras first"
        )


def order_calls(graph: Graph) -> list[Key]:
    """All calls so that each comes after what it takes. ModelError for dangling references and cycles."""
    known = {(layer.name, i) for layer in graph.layers.values() for i in range(len(layer.calls))}
    for name in graph.inputs:
        if name not in graph.layers or graph.layers[name].kind != "InputLayer":
            raise ModelError(f"input {name!r} is not an InputLayer of the configuration")
    for layer in graph.layers.values():
        _check_layer_calls(graph, layer, known)
    for name, call in graph.outputs:
        if (name, call) not in known:
            raise ModelError(f"output {name!r} (call {call}) is not in the configuration")
    return _topological(graph)


def _check_layer_calls(graph: Graph, layer: Layer, known: set[Key]) -> None:
    is_input = layer.kind == "InputLayer"
    if is_input != (layer.name in graph.inputs):
        raise ModelError(f"layer {layer.name!r} ({layer.kind}) and the list of inputs contradict each other")
    if not layer.calls or any(bool(call) == is_input for call in layer.calls):
        raise ModelError(f"layer {layer.name!r} ({layer.kind}) is not connected; save the model again")
    for name, call in (key for keys in layer.calls for key in keys):
        if (name, call) not in known:
            raise ModelError(
                f"layer {layer.name!r} takes the output of {name!r} (call {call}), which is not in the configuration"
            )


def _topological(graph: Graph) -> list[Key]:
    """Kahn's algorithm, in the configuration's order where that is free."""
    waiting = {(layer.name, i): len(keys) for layer in graph.layers.values() for i, keys in enumerate(layer.calls)}
    users: dict[Key, list[Key]] = {key: [] for key in waiting}
    for layer in graph.layers.values():
        for i, keys in enumerate(layer.calls):
            for key in keys:
                users[key].append((layer.name, i))
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


def infer(graph: Graph, order: list[Key], keras: int) -> dict[Key, Built]:
    """A `Built` for every call, from the inputs' shapes on. ModelError naming the layer that does not fit."""
    built: dict[Key, Built] = {}
    for key in order:
        layer = graph.layers[key[0]]
        if layer.kind == "InputLayer":
            shape = _input_shape(layer)
            built[key] = Built(Module, shape)
            continue
        inputs = [built[k].output for k in layer.calls[key[1]]]
        built[key] = LAYERS[layer.kind](LayerConfig(layer.kind, layer.name, layer.config, keras), inputs)
        first = built.get((layer.name, 0), built[key])
        if first.weights != built[key].weights:
            raise ModelError(f"layer {layer.name!r} is shared by calls whose inputs need weights of different shapes")
    return built


def _input_shape(layer: Layer) -> Shape:
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    if isinstance(shape, dict):  # Keras 3.0 wraps tuples
        shape = shape.get("items") or shape.get("config")
    if not isinstance(shape, list) or not shape:
        raise ModelError("the configuration does not say the input's shape; build the model on an input and save it again")
    if any(n is not None and (type(n) is not int or not 1 <= n <= LARGEST) for n in shape):
        raise ModelError(f"input {layer.name!r} has the shape {shape!r:.80}, expected positive integers or null")
    return (None, *shape[1:])


# -- the whole thing ---------------------------------------------------------------------------------------------------


def build_keras(config: dict[str, Any], layers: dict[str, Any], source: str | Path, version: str | None = None) -> KerasModel:
    """A model from its configuration and the tensors of a file (`read_layers`). Everything is checked before it is built.

    version: the Keras that wrote it; "hard_sigmoid" changed its meaning in Keras 3.
    """
    graph = parse_graph(config)
    order = order_calls(graph)
    built = infer(graph, order, _major(version))
    expected = {name: built[name, 0].weights for name in graph.layers}
    result = compare(expected, layers)
    if result.rows:
        raise WeightsError(f"{source}: the weights do not fit the configuration:\n{listing(result.rows)}")
    model = KerasModel(graph, built, order)
    slots = {name: own_slots(model._modules[attribute]) for attribute, name in model.layer_names.items()}
    for layer, position, values in result.matched:
        target = slots[layer][position].tensor
        assign(target, values.reshape(target.shape))
    model.eval()
    return model


def _major(version: str | None) -> int:
    found = re.match(r"\d{1,3}", version or "")
    return int(found[0]) if found else 2


def load_keras(path: str | Path) -> KerasModel:
    """A whole Keras model: an .h5 or .hdf5 file, or a folder with model.json and weights.h5; ready for inference.

    Sequential and Functional models of Keras 1.2, 2 and 3. Raises ModelError for a configuration that is unsound or has
    layers that are not supported (each is named), WeightsError for files that are damaged or do not fit it.
    """
    path = Path(path)
    config, weights = _read_folder(path) if path.is_dir() else (read_model_config(path), path)
    if config is None:
        raise ModelError(
            f"{path} holds weights only, no model configuration; build the model (zoo.create) and use load_weights, or give "
            "a folder with model.json and weights.h5"
        )
    backend, version = read_origin(weights)
    backend, version = config.get("backend") or backend, config.get("keras_version") or version
    if backend == "theano":
        raise ModelError(f"{path} was saved under Theano, which flips kernels; load and save it under TensorFlow first")
    return build_keras(config, read_layers(weights), weights, version if isinstance(version, str) else None)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    text, weights = folder / "model.json", folder / "weights.h5"
    for file in (text, weights):
        if not file.is_file():
            raise ModelError(f"{folder} has no {file.name}; expected a folder with model.json and weights.h5")
    try:
        if text.stat().st_size > CONFIG_CEILING:
            raise ModelError(f"{text} is over {CONFIG_CEILING >> 20} MiB; that is no model configuration")
        content = text.read_bytes()
    except OSError as error:
        raise ModelError(f"{text} cannot be read: {error.strerror or error}") from error
    return parse_config(content, text), weights
