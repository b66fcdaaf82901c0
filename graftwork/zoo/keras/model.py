"""A graph with shapes, tensors and an order to run in becomes a module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GraftworkError, ModelError, ShapeError, WeightsError
from ...nn import Module, Tensor
from ...nn.modules.module import assign
from .. import registry
from ..matching import Slot, compare, listing
from ..weights_h5 import LayerSpec
from . import attention, convolution, core, merging, normalization, pooling, preprocessing, recurrent  # noqa: F401 - they fill the table
from .config import LARGEST, Built, Function, LayerConfig, Mask, Shape, Weight, below
from .graph import MODELS, Graph, Key, Layer, Node, Ref, check_layers, order_calls, parse_graph
from .operations import OPERATIONS
from .table import all_slots, build, layer


@dataclass(frozen=True)
class Plan:
    """A model whose shapes fit: nothing is allocated yet. masked: which calls' outputs come with a mask."""

    graph: Graph
    order: list[Key]
    built: dict[Key, Built]
    masked: dict[Key, bool]

    def weights(self) -> dict[str, tuple[Weight, ...]]:
        """The tensors of each layer with any, in the order of the modules' own slots."""
        return {name: self.built[name, 0].weights for name, x in self.graph.layers.items() if x.kind != "InputLayer"}

    def outputs(self) -> tuple[Shape, ...]:
        return tuple(self.built[name, call].outputs[i] for name, call, i in self.graph.outputs)

    def specs(self) -> tuple[LayerSpec, ...]:
        """The layers as .weights.h5 files count them: all but operations, which are no layers."""
        layers = [x for x in self.graph.layers.values() if x.kind not in (*OPERATIONS, "InputLayer")]
        return tuple(LayerSpec(x.name, x.kind.rpartition(">")[2], self.built[x.name, 0].inner) for x in layers)

    def file_order(self, layers: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tensors that are named by their place in .weights.h5 as legacy files name and list them; others as they are."""
        weights, result = self.weights(), {}
        for name, entries in layers.items():
            own, found = weights.get(name, ()), dict(entries)
            if not found or not all(key.rpartition("/")[2].isdecimal() for key in found):
                result[name] = entries
                continue
            known = [(own[i].name, found.pop(own[i].place)) for i in legacy(own) if own[i].place in found]
            result[name] = known + list(found.items())
        return result


@dataclass(frozen=True)
class Step:
    """One call in `KerasModel.forward`; `release` are values that nothing after it needs."""

    key: Key
    module: str
    inputs: tuple[Ref, ...]
    masks: tuple[Ref | None, ...]
    built: Built
    masked: bool
    release: tuple[Key, ...]


class KerasModel(Module):
    """A Keras model as a module.

    Sub-modules are attributes named after Keras's layers, with characters that no identifier has replaced by "_";
    `layer(name)` finds one under Keras's own name, which weight files use. Called with one tensor for each input, it returns
    one tensor, or a tuple if it has several outputs.
    """

    config: dict[str, Any] | None = None  # what it was built from, and by which Keras: `save_keras` writes it back
    version: str | None = None

    def __init__(self, plan: Plan):
        super().__init__()
        graph, built = plan.graph, plan.built
        self.layer_names: dict[str, str] = {}  # attribute -> Keras's name, as `load_weights` and `save_weights` want it
        self.plan = plan
        self.input_names = tuple(graph.inputs)
        self.output_names = tuple(name for name, _, _ in graph.outputs)
        self.input_shapes = tuple(built[name, 0].output[1:] for name in graph.inputs)
        self.output_shapes = tuple(shape[1:] for shape in plan.outputs())
        self._outputs = tuple(graph.outputs)
        for x in graph.layers.values():
            if x.name not in graph.inputs:
                self._add(x, built[x.name, 0])
        attributes = {name: attribute for attribute, name in self.layer_names.items()}
        self._steps = _steps(plan, attributes)

    def _add(self, x: Layer, built: Built) -> None:
        attribute = re.sub(r"\W", "_", x.name)
        attribute = f"_{attribute}" if not attribute[:1].isalpha() else attribute
        while hasattr(self, attribute):  # taken by another layer, or by a method of ours
            attribute += "_"
        self.layer_names[attribute] = x.name
        module = built.make()
        if x.config.get("trainable") is False:
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

    # What `load_weights` and `save_weights` ask of a model whose layers have layers within.
    def file_slots(self) -> dict[str, list[Slot]]:
        """The tensors of each layer with any, as legacy weight files list them: those that train first."""
        plans = self.plan.weights()
        result = {}
        for attribute, name in self.layer_names.items():
            slots = all_slots(self._modules[attribute])
            if slots:
                result[name] = [Slot(plans[name][i].name, plans[name][i].shape, slots[i].tensor) for i in legacy(plans[name])]
        return result

    def file_specs(self) -> tuple[LayerSpec, ...]:
        """The layers as .weights.h5 files count them."""
        return self.plan.specs()

    def file_order(self, layers: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """A file's tensors as legacy files list them; those of .weights.h5 come under their places."""
        return self.plan.file_order(layers)

    def file_entries(self) -> list[tuple[LayerSpec, list[tuple[str, np.ndarray]]]]:
        """All layers with their tensors under their places, as `write_weights_h5` takes them."""
        slots, plans = self.file_slots(), self.plan.weights()
        return [
            (spec, [(plans[spec.name][i].place, s.tensor.numpy().reshape(s.shape))
                    for i, s in zip(legacy(plans[spec.name]), slots.get(spec.name, ()), strict=True)])
            for spec in self.file_specs()
        ]  # fmt: skip

    def forward(self, *inputs: Tensor) -> Any:
        self._check(inputs)
        values: dict[Key, Sequence[Tensor]] = {(name, 0): (x,) for name, x in zip(self.input_names, inputs, strict=True)}
        masks: dict[Key, Mask] = {}
        for step in self._steps:
            given = [values[name, call][i] for name, call, i in step.inputs]
            own: list[Mask] = [_mask(ref, given, values, masks) for given, ref in zip(step.inputs, step.masks, strict=True)]
            y = step.built.apply(self._modules[step.module], given, own)
            values[step.key] = y if isinstance(y, tuple) else (y,)
            if step.masked and step.built.masks is not None:
                masks[step.key] = step.built.masks(given, own)
            for key in step.release:
                del values[key]
                masks.pop(key, None)
        outputs = tuple(values[name, call][i] for name, call, i in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self.input_shapes):
            raise ShapeError(f"called with {len(inputs)} tensors; the model has the inputs {', '.join(self.input_names)}")
        for name, shape, x in zip(self.input_names, self.input_shapes, inputs, strict=True):
            sizes = zip(shape, x.shape[1:], strict=False)
            if x.ndim != len(shape) + 1 or any(want not in (None, have) for want, have in sizes):
                wanted = ", ".join("any" if n is None else str(n) for n in ("batch", *shape))
                raise ShapeError(f"input {name!r} has shape {x.shape}, expected ({wanted})")


def _mask(explicit: Ref | None, given: Ref, values: Any, masks: Any) -> Mask:
    """The mask of an input: one that the configuration passes as a tensor, or the one that came with the input."""
    if explicit is not None:
        return values[explicit[0], explicit[1]][explicit[2]]
    return masks.get((given[0], given[1])) if given[2] == 0 else None


def _steps(plan: Plan, attributes: dict[str, str]) -> list[Step]:
    """The calls that the outputs need, in order, each with the values whose last use it is."""
    graph = plan.graph
    nodes = {key: graph.layers[key[0]].calls[key[1]] for key in plan.order if key[0] in attributes}
    final = {(name, call) for name, call, _ in graph.outputs}
    needed, pending = set(final), list(final)
    while pending:
        node = nodes.get(pending.pop())
        fresh = [key for key in node.sources if key not in needed] if node else []
        needed.update(fresh)
        pending += fresh
    steps, kept = [], set(final)
    for key in reversed([key for key in plan.order if key in nodes and key in needed]):
        node, built = nodes[key], plan.built[key]
        release = tuple(sorted(node.sources - kept))
        kept.update(release)
        masks = explicit_masks(node)
        steps.append(Step(key, attributes[key[0]], node.inputs, masks, built, plan.masked[key], release))
    return steps[::-1]


def explicit_masks(node: Node) -> tuple[Ref | None, ...]:
    """For each input of a call the tensor that is given as its mask, or None."""
    found: list[Ref | None] = [None] * len(node.inputs)
    for name, refs in node.masks.items():
        if name == "mask":
            places = list(range(len(refs)))
        else:  # query_mask, value_mask, key_mask of multi-head attention
            role = name.removesuffix("_mask")
            places = node.call.tensors(role, ("query", "value", "key").index(role)) or []
        for place, ref in zip(places, refs, strict=False):
            if place < len(found):
                found[place] = ref
    return tuple(found)


# -- shapes ------------------------------------------------------------------------------------------------------------


def plan_graph(graph: Graph, keras: int, shapes: Sequence[Shape] = (), outer: LayerConfig | None = None) -> Plan:
    """A `Built` for every call, from the inputs' shapes on. ModelError naming the layer that does not fit.

    shapes: of the inputs, where another model calls this one as its layer `outer`.
    """
    order = order_calls(graph)
    built: dict[Key, Built] = {}
    masked: dict[Key, bool] = {}
    depth, prefix = (outer.depth, f"{outer.name}/") if outer else (0, "")
    for key in order:
        x, node = graph.layers[key[0]], graph.layers[key[0]].calls[key[1]]
        if x.kind == "InputLayer":
            given = shapes[graph.inputs.index(x.name)] if shapes else None
            built[key], masked[key] = Built(partial(Function, lambda t: t, "input"), (_input_shape(x, given),)), False
            continue
        inputs = [_output(built, x, ref) for ref in node.inputs]
        own = [
            ref is not None or (given[2] == 0 and masked[given[0], given[1]])
            for given, ref in zip(node.inputs, explicit_masks(node), strict=True)
        ]
        c = LayerConfig(x.kind, prefix + x.name, x.config, keras, node.call, own, depth)
        built[key] = _frozen(build(c, inputs), x)
        masked[key] = built[key].masks is not None and (built[key].makes_mask or any(own))
        first = built.get((x.name, 0), built[key])
        if first.weights != built[key].weights:
            raise ModelError(f"layer {x.name!r} is shared by calls whose inputs need weights of different shapes")
    for ref in graph.outputs:
        _output(built, graph.layers[ref[0]], ref)
    return Plan(graph, order, built, masked)


def _output(built: dict[Key, Built], user: Layer, ref: Ref) -> Shape:
    name, call, index = ref
    outputs = built[name, call].outputs
    if index >= len(outputs):
        raise ModelError(f"layer {user.name!r:.200}: output {index} of {name!r:.200} is asked for, which has {len(outputs)}")
    return outputs[index]


def _frozen(built: Built, x: Layer) -> Built:
    """A layer that does not train has no trainable tensors, which changes their order in files."""
    if x.config.get("trainable") is not False:
        return built
    weights = tuple(replace(w, trainable=False) for w in built.weights)
    return replace(built, weights=weights)


def _input_shape(x: Layer, given: Shape | None) -> Shape:
    shape = x.config.get("batch_input_shape") or x.config.get("batch_shape")
    if isinstance(shape, dict):  # Keras 3.0 wraps tuples
        shape = shape.get("items") or shape.get("config")
    if not isinstance(shape, (list, tuple)) or not shape:
        raise ModelError("the configuration does not say the input's shape; build the model on an input and save it again")
    if any(n is not None and (type(n) is not int or not 1 <= n <= LARGEST) for n in shape):
        raise ModelError(f"input {x.name!r:.200} has the shape {shape!r:.80}, expected positive integers or null")
    own: Shape = (None, *shape[1:])
    if given is None:
        return own
    if len(given) != len(own) or any(None not in (a, b) and a != b for a, b in zip(given[1:], own[1:], strict=True)):
        raise ModelError(f"input {x.name!r:.200} of a model within the model has shape {own}, and gets {given}")
    return (None, *(b if a is None else a for a, b in zip(given[1:], own[1:], strict=True)))


@layer(*MODELS)
def nested(c: LayerConfig, shapes: list[Shape]) -> Built:
    """A model as a layer of another."""
    if any(c.masked):
        raise c.error("a mask reaches a model within the model, which is not supported")
    try:
        graph = parse_graph({"class_name": c.kind, "config": c.values}, shapes)
        if len(graph.inputs) != len(shapes):
            raise c.error(f"is called on {len(shapes)} tensors and has {len(graph.inputs)} inputs")
        plan = plan_graph(graph, c.keras, shapes, LayerConfig(c.kind, c.name, {}, c.keras, depth=_deeper(c)))
    except ModelError as error:
        raise error if "layer " in str(error)[:6] else c.error(str(error)) from error
    if any(plan.masked[name, call] for name, call, i in graph.outputs if i == 0):
        raise c.error("its output comes with a mask, which is not supported for a model within the model")
    weights = [w for name, own in plan.weights().items() for w in below(name, own)]
    return Built(lambda: KerasModel(plan), plan.outputs(), tuple(weights), inner=plan.specs())


def _deeper(c: LayerConfig) -> int:
    return c.inner({"class_name": c.kind, "config": {}}, "model").depth


# -- the whole thing ---------------------------------------------------------------------------------------------------


def plan_keras(config: dict[str, Any], version: str | None = None) -> Plan:
    """A configuration checked and with all its shapes; see `build_keras`."""
    try:
        graph = parse_graph(config)
        if not _all_known(config):
            registry._load_plugins()  # one of them may bring the layer
        check_layers(config)
        return plan_graph(graph, _major(version))
    except RecursionError:
        raise ModelError("the configuration is nested too deeply; save the model again") from None


def _all_known(config: dict[str, Any]) -> bool:
    try:
        check_layers(config)
    except ModelError:
        return False
    return True


def build_keras(config: dict[str, Any], layers: dict[str, Any], source: str | Path,
                version: str | None = None) -> KerasModel:  # fmt: skip
    """A model from its configuration and the tensors of a file (`read_layers`). Everything is checked before it is built.

    version: the Keras that wrote it; "hard_sigmoid" changed its meaning in Keras 3.
    """
    return fill(plan_keras(config, version), layers, source, config, version)


def fill(plan: Plan, layers: dict[str, Any], source: str | Path, config: dict[str, Any], version: str | None) -> KerasModel:
    """The model of a plan with a file's tensors, in the order of legacy files. WeightsError if they do not fit."""
    weights = plan.weights()
    expected = {name: [(own[i].name, own[i].shape) for i in legacy(own)] for name, own in weights.items()}
    result = compare(expected, layers)
    if result.rows:
        raise WeightsError(f"{source}: the weights do not fit the configuration:\n{listing(result.rows)}")
    tensors: dict[str, list[Any]] = {name: [None] * len(own) for name, own in weights.items()}
    for name, position, values in result.matched:
        tensors[name][legacy(weights[name])[position]] = values
    model = KerasModel(plan)
    _assign(model, tensors)
    model.config, model.version = config, version
    model.eval()
    return model


def legacy(weights: Sequence[Weight]) -> list[int]:
    """The order in which Keras's legacy files list a layer's tensors: those that train, then the others."""
    return sorted(range(len(weights)), key=lambda i: not weights[i].trainable)


def _assign(model: KerasModel, tensors: dict[str, list[np.ndarray]]) -> None:
    """Values that are known to fit, into the model's tensors."""
    for attribute, name in model.layer_names.items():
        slots = all_slots(model._modules[attribute])
        if len(slots) != len(tensors[name]):
            raise ModelError(f"layer {name!r:.200} has {len(slots)} tensors and its class promised {len(tensors[name])}")
        for slot, values in zip(slots, tensors[name], strict=True):
            try:
                assign(slot.tensor, np.asarray(values).reshape(slot.tensor.shape))
            except GraftworkError:
                raise
            except (TypeError, ValueError) as error:
                raise WeightsError(f"layer {name!r:.200}: {slot.name} cannot take the file's values ({error})") from error


def _major(version: str | None) -> int:
    found = re.match(r"\d{1,3}", version or "")
    return int(found[0]) if found else 2
