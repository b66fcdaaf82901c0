"""Keras 3's layout of weights, `.weights.h5`, which `.keras` archives hold too.

A layer is a group named after its class and counted in the model's order (`layers/conv2d`, `layers/conv2d_1`, ...); its
tensors are `vars/0`, `vars/1`, .... Sub-layers are groups named after attributes (`forward_layer`, `query_dense`), nested
models have `layers` again. Newer files keep the layer's own name in the attribute `name` of `vars`; some of Keras 2.13 say
`_layer_checkpoint_dependencies` for `layers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import WeightsError
from .hdf5_format import DEPTH_CEILING, Damaged, Dataset, Group

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
STATE = {"optimizer", "seed_generator", "generator", "loss", "metrics"}  # groups that hold no weights
# Attributes whose order matters: that in which Keras's legacy files list their tensors. Others follow by name.
ATTRIBUTES = (
    "cell", "forward_layer", "backward_layer", "query_dense", "key_dense", "value_dense", "output_dense", "layer",
)  # fmt: skip
Entries = list[tuple[str, Dataset]]


@dataclass(frozen=True)
class LayerSpec:
    """A layer of a model, as far as its place in a file needs: Keras's name and class ("conv1", "Conv2D").

    inner: the layers of a nested model in its order; for a wrapper (TimeDistributed) the one layer that it wraps.
    """

    name: str
    kind: str
    inner: tuple[LayerSpec, ...] = ()


@dataclass
class Node:
    """A group of a file: its own tensors in order, the layer's name if the file keeps it, the groups below."""

    name: str | None = None
    entries: Entries = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, Node]:
        """Groups of the layers of a model."""
        return next((self.children[key].children for key in CONTAINERS if key in self.children), {})

    def holds_tensors(self) -> bool:
        return bool(self.entries) or any(child.holds_tensors() for child in self.children.values())


def snake_case(kind: str) -> str:
    """A class's name as Keras's files spell it: "Conv2D" is "conv2d", "BatchNormalization" "batch_normalization"."""
    spaced = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", spaced).lower()


def counted(kinds: Sequence[str]) -> list[str]:
    """Group names for layers of these classes: "conv2d", "dense", "conv2d_1", ..."""
    counts: dict[str, int] = {}
    names = []
    for kind in map(snake_case, kinds):
        n = counts[kind] = counts.get(kind, -1) + 1
        names.append(f"{kind}_{n}" if n else kind)
    return names


def read_tree(group: Group, depth: int = 0, seen: set[int] | None = None) -> Node:
    """A group of a file with all that stands below it."""
    seen = set() if seen is None else seen
    if depth > DEPTH_CEILING or id(group) in seen:
        raise Damaged("its groups contain each other")
    seen.add(id(group))
    node = Node()
    for key in group.links:
        if depth <= 1 and key in STATE:
            continue
        child = group.child(key)
        if key == "vars" and isinstance(child, Group):
            node.name, node.entries = _variables(child)
        elif isinstance(child, Group) and key not in STATE:
            node.children[key] = read_tree(child, depth + 1, seen)
    return node


def _variables(group: Group) -> tuple[str | None, Entries]:
    name = group.attribute("name") if "name" in group.attrs else None
    entries = [(key, child) for key in sorted(group.links, key=_natural) if isinstance(child := group.child(key), Dataset)]
    return (name.decode("utf-8", "replace") if isinstance(name, bytes) else None), entries


def _natural(key: str) -> tuple:
    """Sorts "dense" before "dense_2" before "dense_10", and known attributes in their order."""
    stem, _, number = key.rpartition("_")
    place = ATTRIBUTES.index(key) if key in ATTRIBUTES else len(ATTRIBUTES)
    if key.isdecimal():
        return place, "", int(key[:18])
    return (place, stem, int(number[:18])) if number.isdecimal() else (place, key, -1)


def _flat(node: Node, spec: LayerSpec | None = None) -> Entries:
    """All tensors of a layer, in the order of Keras's legacy files, with the path to each as its name ("cell/0")."""
    found = list(node.entries)
    inner = spec.inner if spec else ()
    if inner and node.layers:
        arranged = arrange(node, inner)
        return found + [(f"{layer}/{key}", data) for layer, entries in arranged.items() for key, data in entries]
    for i, key in enumerate(sorted(node.children, key=_natural)):
        below = _flat(node.children[key], inner[i] if i < len(inner) else None)
        found += [(f"{key}/{name}", data) for name, data in below]
    return found


def arrange(tree: Node, layers: Sequence[LayerSpec],
            order: Callable[[], Sequence[LayerSpec]] | None = None) -> dict[str, Entries]:  # fmt: skip
    """The tensors of each layer of a model, given the model's layers in Keras's order.

    Layers pair by name if the file keeps all names and knows no other ones, otherwise by class and number (in the order
    that `order` gives, if it is given). Groups with tensors that belong to no layer come last, under their own names, so
    that whoever compares sees them.
    """
    groups = tree.layers or {key: child for key, child in tree.children.items() if key not in CONTAINERS}
    names = _names(groups)
    if names is not None and set(names) <= {layer.name for layer in layers}:
        keys = [names.get(layer.name, "") for layer in layers]
    else:
        layers = layers if order is None else order()
        keys = counted([layer.kind for layer in layers])
    found = {
        layer.name: _flat(groups[key], layer) if key in groups else []
        for layer, key in zip(layers, keys, strict=True)
    }  # fmt: skip
    if tree.entries:
        found["top_level_model_weights"] = list(tree.entries)
    for key, node in groups.items():
        if key not in keys and node.holds_tensors():
            found[f"layers/{key}"] = _flat(node)
    return found


def _names(groups: Mapping[str, Node]) -> dict[str, str] | None:
    """Layer name -> group, or None if the file does not name every layer that has tensors, or not uniquely."""
    holding = {key: node for key, node in groups.items() if node.holds_tensors()}
    names = {node.name: key for key, node in holding.items() if node.name}
    return names if names and len(names) == len(holding) else None  # type: ignore[return-value]


def by_name(tree: Node, file: str) -> dict[str, Entries]:
    """The tensors of each layer under the names that the file keeps; WeightsError if it keeps none."""
    groups = tree.layers
    names = _names(groups)
    if names is None:
        raise WeightsError(
            f"{file} has the layout of .weights.h5 and does not keep the layers' names; say which layers the model has, in "
            "order (LayerSpec), or load it into a model"
        )
    return {name: _flat(groups[key]) for name, key in names.items()}


def every(tree: Node) -> Entries:
    """All tensors at and below a group."""
    return tree.entries + [entry for child in tree.children.values() for entry in every(child)]


def place(layer: LayerSpec, name: str) -> str:
    """Where below its layer's group a tensor stands: "0" is vars/0, "cell/1" cell/vars/1, and with the layers of a nested model
    "dense_3/0" is layers/dense/vars/0. What `arrange` takes apart."""
    head, _, rest = name.partition("/")
    if not rest:
        return f"vars/{head}"
    keys = dict(zip([inner.name for inner in layer.inner], counted([inner.kind for inner in layer.inner]), strict=True))
    if head in keys:
        return f"layers/{keys[head]}/{place(next(x for x in layer.inner if x.name == head), rest)}"
    below = layer.inner[0] if len(layer.inner) == 1 else LayerSpec(head, "")
    return f"{head}/{place(below, rest)}"
