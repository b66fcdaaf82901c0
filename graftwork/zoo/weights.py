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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, WeightsError
from ..nn import Module
from ..nn.modules.module import fill
from .grey import for_one_channel
from .hdf5 import LazyLayers, StoredArray, read_layers, read_lazy
from .layer_order import inner_specs, kind, layer_specs
from .matching import Slot, compare, listing, own_slots, recounted, renamed
from .weights_h5 import LayerSpec
from .writing import Form, write_layers, write_packed, write_weights_h5

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


def layer_modules(model: Module) -> dict[str, Module]:
    """Every layer that has tensors of its own, under its name in files, in the model's order."""
    names: Mapping[str, str] = getattr(model, "layer_names", {})
    layers: dict[str, Module] = {}
    for path, module in model.named_modules():
        if not module._parameters and not module._buffers:
            continue
        name = names.get(path, path.replace(".", "/")) or ROOT
        if name in layers:
            raise WeightsError(f"two layers of {type(model).__name__} would be named {name!r} in a file; rename one")
        layers[name] = module
    return layers


def layer_slots(model: Module) -> dict[str, list[Slot]]:
    """The tensors of every layer that has some of its own, under its name in files, in the model's order."""
    if hasattr(model, "file_slots"):  # a Keras model: its layers may have layers within
        return model.file_slots()
    return {name: own_slots(module) for name, module in layer_modules(model).items()}


def _read(model: Module, path: str | Path) -> LazyLayers:
    """A file's tensors by the names of the model's layers, values still in the file."""
    from .keras.files import archive_weights  # it builds models, and so needs this file

    source = archive_weights(Path(path)) or path
    if hasattr(model, "file_specs"):
        return model.file_order(read_lazy(source, model.file_specs()))
    modules = layer_modules(model)
    specs = [LayerSpec(name, kind(module), inner_specs(module)) for name, module in modules.items()]
    return read_lazy(source, specs, lambda: layer_specs(model, modules))


def load_weights(model: Module, path: str | Path, strict: bool = True, skip: Sequence[str] = ()) -> LoadReport:
    """Load an HDF5 weights or whole-model file, or a .keras archive, into `model`, by layer names.

    strict: every tensor of model and file must pair, or WeightsError lists what does not and nothing is changed.
    strict=False loads what fits. skip: layers (and all below them) to leave alone on both sides, for a new head on a
    trained trunk: `load_weights(model, path, skip=("classifier",))`. Values are converted to the model's dtypes.
    """
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    layers = layer_slots(model)
    slots = _without(layers, skip)
    expected = {name: [(s.name, s.shape) for s in own] for name, own in slots.items()}
    found = for_one_channel(model, _today(model, layers, _read(model, path)))
    result = compare(expected, _without(found, skip))
    if strict and result.rows:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}; nothing was loaded:\n{listing(result.rows)}\n"
            'To load what fits, say so: strict=False, or skip=("layer", ...) for layers to leave out. '
            "A new classifier on a trained trunk: zoo.create(..., new_head=True)."
        )
    packed = {id(values): values.read() for _, _, values in result.matched if values.packed}  # damage shows before any change
    for layer, position, values in result.matched:
        slot = slots[layer][position]
        fill(slot.tensor, slot.shape, partial(_value, values, packed.get(id(values))))
    loaded = tuple(f"{layer} {slots[layer][position].name}" for layer, position, _ in result.matched)
    return LoadReport(loaded, *(tuple(result.names(kind)) for kind in ("missing", "unexpected", "mismatched")))


def _today(model: Module, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file's layers under the names that `model` expects."""
    found = renamed(found, getattr(model, "former_names", ()))
    for counted in getattr(model, "counted_names", ()):
        found = recounted(found, expected, counted)
    return found


def _without(layers: Mapping[str, Any], skip: Sequence[str]) -> dict[str, Any]:
    """The layers that are neither named in `skip` nor below one that is; dots and slashes both separate."""
    heads = {form.strip("/") for name in skip for form in (name, name.replace(".", "/"))}
    return {
        name: value for name, value in layers.items() if not any(name == head or name.startswith(head + "/") for head in heads)
    }


def _value(stored: StoredArray, unpacked: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
    if unpacked is None:
        return stored.read(out)
    if out is None:
        return unpacked
    out[...] = unpacked
    return out


def read_weights(path: str | Path, lazy: bool = False) -> dict[str, list[tuple[str, Any]]]:
    """All tensors of an HDF5 file by layer: {layer name: [(weight name, array), ...]}.

    lazy: arrays are read when they are asked for (`StoredArray`: `shape` and `dtype` are known, `read()` or `numpy.asarray`
    gives the values). Raises WeightsError for a file that is damaged, or whose layout does not keep the layers' names.
    """
    return read_lazy(path) if lazy else read_layers(path)


def save_weights(model: Module, path: str | Path, attributes: Mapping[str, Any] | None = None, *, layout: str | None = None,
                 dtype: str = "float32", compression: str | None = None) -> None:  # fmt: skip
    """Write the model's weights as an HDF5 file that `load_weights` and Keras read; whole or not at all.

    attributes: more root attributes to keep with the weights.
    layout: "legacy" or "weights.h5" (Keras 3); by default as the path's name says, which Keras goes by as well. "packed" is
    for weights that were pruned, clustered or rounded to 8 bits: exact and small (`nn/packing.py`), and unknown to Keras.
    dtype: of floating-point tensors in the file: "float32" (tensors of other types stay as they are), "float16" or "bfloat16"
    (Keras 3's layout only). Halves the file and rounds the values; loading widens them again.
    compression: "gzip" or None. Trained weights are nearly random bits: expect some 10 % less, and slower reading.
    Raises WeightsError for values that the type cannot hold, ConfigError for unknown options.
    """
    if layout is None:
        layout = "weights.h5" if str(path).endswith(".weights.h5") else "legacy"
    form = Form(dtype, compression)
    if layout == "legacy":
        layers = {
            layer: [(f"{layer}/{slot.name}:0", _stored(slot)) for slot in slots] for layer, slots in layer_slots(model).items()
        }
        write_layers(path, layers, attributes, form)
    elif layout == "packed":
        if dtype != "float32":
            raise ConfigError(f'dtype={dtype!r}: packed files are exact; round the weights first, or use layout="legacy"')
        layers = {layer: [(slot.name, _stored(slot)) for slot in slots] for layer, slots in layer_slots(model).items()}
        write_packed(path, layers, attributes)
    elif layout == "weights.h5" and hasattr(model, "file_entries"):
        write_weights_h5(path, model.file_entries(), attributes, form)
    elif layout == "weights.h5":
        modules = layer_modules(model)
        specs = layer_specs(model, modules)
        write_weights_h5(path, [(spec, _places(modules[spec.name])) for spec in specs], attributes, form)
    else:
        raise ConfigError(f'layout={layout!r}; expected "legacy", "weights.h5" or "packed"')


def _stored(slot: Slot) -> np.ndarray:
    return slot.tensor.numpy().reshape(slot.shape)


def _places(module: Module) -> list[tuple[str, np.ndarray]]:
    """A layer's tensors under their places in Keras's layout: "0", "1", ..., those of layers within as "name/0"."""
    slots = own_slots(module)
    places = [f"{inner[0]}/{i}" for inner in getattr(module, "keras_inner", ()) for i in range(inner[2])]
    names = places or [str(i) for i in range(len(slots))]
    return [(name, _stored(slot)) for name, slot in zip(names, slots, strict=True)]
