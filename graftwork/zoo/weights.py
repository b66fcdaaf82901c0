"""Loading and saving a model's weights.

A layer's name in files is its path in the model with slashes: `model.fire2.squeeze1x1` is "fire2/squeeze1x1". Models whose
attributes cannot carry the names of their files hold a table `layer_names` (path -> name in files).

Published files are older than the names that Keras gives today. Two attributes of a model say how to read them:
`former_names`, (pattern, replacement) pairs that turn former names into today's, and `counted_names`, the classes whose layers
Keras names and counts by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..nn import Module
from ..nn.modules.module import assign
from .hdf5 import read_layers, write_layers
from .matching import Slot, compare, listing, own_slots, recounted, renamed

ROOT = "top_level_model_weights"  # Keras's name for tensors that belong to the model itself and to no layer


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, as names "layer tensor". All but `loaded` are empty after a strict load."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        counts = (("missing", self.missing), ("unexpected", self.unexpected), ("mismatched", self.mismatched))
        return f"{len(self.loaded)} tensors loaded" + "".join(f", {len(n)} {word}" for word, n in counts if n)


def layer_slots(model: Module) -> dict[str, list[Slot]]:
    """Every layer that has tensors of its own, under its name in files, in the model's order."""
    names: Mapping[str, str] = getattr(model, "layer_names", {})
    layers: dict[str, list[Slot]] = {}
    for path, module in model.named_modules():
        slots = own_slots(module)
        if not slots:
            continue
        name = names.get(path, path.replace(".", "/")) or ROOT
        if name in layers:
            raise WeightsError(f"two layers of {type(model).__name__} would be named {name!r} in a file; rename one")
        layers[name] = slots
    return layers


def load_weights(model: Module, path: str | Path, strict: bool = True, skip: Sequence[str] = ()) -> LoadReport:
    """Load an HDF5 weights or whole-model file into `model`, by layer names.

    strict: every tensor of model and file must pair, or WeightsError lists what does not and nothing is changed.
    strict=False loads what fits. skip: layers (and all below them) to leave alone on both sides, for a new head on a
    trained trunk: `load_weights(model, path, skip=("classifier",))`. Values are converted to the model's dtypes.
    """
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    layers = layer_slots(model)
    slots = _without(layers, skip)
    expected = {name: [(s.name, s.shape) for s in own] for name, own in slots.items()}
    found = _today(model, layers, read_layers(path))
    result = compare(expected, _without(found, skip))
    if strict and result.rows:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}; nothing was loaded:\n{listing(result.rows)}\n"
            'To load what fits, say so: strict=False, or skip=("layer", ...) for layers to leave out.'
        )
    for layer, position, values in result.matched:
        target = slots[layer][position].tensor
        assign(target, values.reshape(target.shape))
    loaded = tuple(f"{layer} {slots[layer][position].name}" for layer, position, _ in result.matched)
    return LoadReport(loaded, *(tuple(result.names(kind)) for kind in ("missing", "unexpected", "mismatched")))


def _today(model: Module, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file's layers under the names that `model` expects."""
    found = renamed(found, getattr(model, "former_names", ()))
    for kind in getattr(model, "counted_names", ()):
        found = recounted(found, expected, kind)
    return found


def _without(layers: Mapping[str, Any], skip: Sequence[str]) -> dict[str, Any]:
    """The layers that are neither named in `skip` nor below one that is; dots and slashes both separate."""
    heads = {form.strip("/") for name in skip for form in (name, name.replace(".", "/"))}
    return {
        name: value for name, value in layers.items() if not any(name == head or name.startswith(head + "/") for head in heads)
    }


def save_weights(model: Module, path: str | Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Write the model's weights as an HDF5 file that `load_weights` and Keras read; whole or not at all.

    attributes: more root attributes to keep with the weights.
    """
    layers = {
        layer: [(f"{layer}/{slot.name}:0", slot.tensor.numpy().reshape(slot.shape)) for slot in slots]
        for layer, slots in layer_slots(model).items()
    }
    write_layers(path, layers, attributes)
