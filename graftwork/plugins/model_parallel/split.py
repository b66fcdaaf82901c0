"""Splitting the layers of a model over the ranks of a mesh's tensor axis, and putting the whole together again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import ConfigError
from ...nn import ELU, Activation, Conv2d, LeakyReLU, Linear, Module, Sequential, Tensor
from .layers import ColumnConv2d, ColumnLinear, RowConv2d, RowLinear, _Split, require_splittable
from .mesh import GROUPS, Mesh

KINDS = ("column", "column_open", "row", "row_open")
ELEMENTWISE = (Activation, LeakyReLU, ELU)


def split_tensor(model: Module, mesh: Mesh, rule: Mapping[str, str] | None = None) -> Module:
    """Replace layers of `model`, in place, by parts of them. Returns the model; make the optimiser afterwards.

    rule: path of a Linear or Conv2d -> "column" (its output is joined again, fits anywhere), "row" (its input is divided first,
    fits anywhere), or "column_open" (the output stays split) before elementwise layers and "row_open" (the input is split).
    Without a rule: column_open and row_open for pairs in a Sequential with only elementwise layers in between, and "column" for
    every other Linear and plain Conv2d whose output channels divide. The ranks must hold equal weights beforehand (same seed or
    same file). Raises ConfigError naming the layer for a path that is none, or a layer that cannot be split.
    """
    layers = dict(model.named_modules())
    if rule is None:
        rule = suggest(model, mesh.sizes["tensor"])
    for path, kind in rule.items():
        if path not in layers or not path:
            near = [p for p, m in layers.items() if type(m) in (Linear, Conv2d)]
            more = " ..." if len(near) > 12 else ""
            raise ConfigError(f"split_tensor: the model has no layer {path!r}; it has {', '.join(near[:12])}{more}")
        if kind not in KINDS:
            raise ConfigError(f"split_tensor: {path!r}: {kind!r}; expected one of {', '.join(KINDS)}")
        require_splittable(layers[path], path)
    parts = {path: _make(layers[path], kind, mesh, path) for path, kind in rule.items()}  # all or nothing
    for path, part in parts.items():
        parent, _, name = path.rpartition(".")
        layers[parent].add_module(name, part)
    return model


def _make(layer: Module, kind: str, mesh: Mesh, path: str) -> _Split:
    conv = isinstance(layer, Conv2d)
    if kind.startswith("column"):
        return (ColumnConv2d if conv else ColumnLinear)(layer, mesh, gather=kind == "column", name=path)
    return (RowConv2d if conv else RowLinear)(layer, mesh, split=kind == "row_open", name=path)


def suggest(model: Module, ranks: int) -> dict[str, str]:
    """The rule that `split_tensor` follows when it is given none."""
    rule: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, Sequential):
            rule |= _pairs(module, path, ranks)
    for path, module in model.named_modules():
        if path not in rule and path and _divides(module, -1, ranks):
            rule[path] = "column"
    return rule


def _pairs(block: Sequential, path: str, ranks: int) -> dict[str, str]:
    """Column and row layers of a Sequential that can do without joining in between."""
    rule: dict[str, str] = {}
    open_path = ""
    for name, module in block._modules.items():
        here = f"{path}.{name}" if path else name
        if open_path and _divides(module, -2, ranks):
            rule |= {open_path: "column_open", here: "row_open"}
            open_path = ""
        elif _divides(module, -1, ranks):
            open_path = here
        elif not isinstance(module, ELEMENTWISE) or getattr(module, "name", "").endswith("softmax"):
            open_path = ""
    return rule


def _divides(module: Module, axis: int, ranks: int) -> bool:
    plain = type(module) is Linear or (type(module) is Conv2d and module.groups == 1)
    return plain and module.weight.shape[axis] % ranks == 0


def full_state(model: Module, gradients: bool = False) -> dict[str, np.ndarray]:
    """`model.state_dict()` as if nothing had been split (or the gradients instead); every rank of the group calls it."""
    state: dict[str, np.ndarray] = {}
    for path, module in model.named_modules():
        for key, value in [*module._parameters.items(), *(() if gradients else module._buffers.items())]:
            taken: Tensor | None = value.grad if gradients else value
            if taken is None:
                continue
            axis = module.axes.get(key) if isinstance(module, _Split) else None
            array = taken.numpy()
            state[f"{path}.{key}" if path else key] = array.copy() if axis is None else _joined(array, axis, module.group)
    return state


def _joined(part: np.ndarray, axis: int, group: str) -> np.ndarray:
    ranks = GROUPS[group]
    parts = np.empty((ranks.size, *part.shape), part.dtype)
    ranks.all_gather(np.ascontiguousarray(part), parts, "the parts of a parameter")
    return np.concatenate(list(parts), axis)
