"""Pairing the tensors a model expects with those a file holds, and saying clearly what does not pair.

Layers pair by name. Within a layer tensors pair by the last part of their names ("kernel", "gamma", ...), which Keras's
versions spell in several ways, or by position where a file's names say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import WeightsError
from ..nn import Conv2d, ConvTranspose2d, DepthwiseConv2d, Embedding, Linear, Module, SeparableConv2d, Tensor
from ..nn.listing import Row, Shape, listing

__all__ = ["Comparison", "Row", "Slot", "compare", "listing", "own_slots", "plain_name", "recounted", "renamed"]

# Keras's names for our attributes; the first class that fits counts.
_FILE_NAMES: dict[type[Module] | tuple[type[Module], ...], dict[str, str]] = {
    DepthwiseConv2d: {"weight": "depthwise_kernel"},
    SeparableConv2d: {"depthwise_weight": "depthwise_kernel", "weight": "pointwise_kernel"},
    Embedding: {"weight": "embeddings"},
    (Conv2d, ConvTranspose2d, Linear): {"weight": "kernel"},
}

_KNOWN = re.compile(
    r"(?:^|_)(depthwise_kernel|pointwise_kernel|kernel|bias|gamma|beta|moving_mean|moving_variance|running_mean|running_std|"
    r"embeddings|W|b)(?:_\d+)?$"
)
_SYNONYMS = {  # Keras 1 says W, b and running_std (which is a variance); a depthwise kernel is "kernel" in Keras 3
    "W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance", "embeddings": "kernel",
    "depthwise_kernel": "kernel",
}  # fmt: skip


# -- a module's own tensors as files name and shape them ---------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One tensor of a module: its name and shape in files, and the tensor itself."""

    name: str
    shape: Shape
    tensor: Tensor


def own_slots(module: Module) -> list[Slot]:
    """A module's own tensors in Keras's order (parameters, then buffers), with Keras's names and shapes.

    All layouts agree but one: Keras keeps a depthwise kernel as (height, width, channels, multiplier), we as
    (height, width, 1, channels * multiplier). The values stand in the same order, so a reshape converts them; transposed
    convolutions are (height, width, out, in) in both.
    """
    names = next((n for kind, n in _FILE_NAMES.items() if isinstance(module, kind)), {})
    slots = []
    for own, value in [*module._parameters.items(), *module._buffers.items()]:
        name = names.get(own, own)
        slots.append(Slot(name, _file_shape(module, name, value.shape), value))
    return slots


def _file_shape(module: Module, name: str, shape: Shape) -> Shape:
    if name != "depthwise_kernel":
        return tuple(shape)
    if isinstance(module, DepthwiseConv2d):
        channels = module.groups
    elif isinstance(module, SeparableConv2d):
        channels = module.channels
    else:
        return tuple(shape)
    return (*shape[:2], channels, shape[3] // channels)


# -- names of layers that changed -----------------------------------------------------------------------------------------


def renamed(found: Mapping[str, Any], patterns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A file's layers under the names that regular expressions make of theirs, one substitution after another."""
    result: dict[str, Any] = {}
    for old, value in found.items():
        new = old
        for pattern, replacement in patterns:
            new = re.sub(pattern, replacement, new)
        if new in result:
            raise WeightsError(f"two layers of the file would be named {new!r}, one of them is {old!r}; the file does not fit")
        result[new] = value
    return result


def recounted(found: Mapping[str, Any], expected: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A file's layers with those that Keras named itself ("conv2d_17") under the numbers expected here.

    Keras counts the layers of a class through a whole session: a network that was built second, or by a version that began
    with 1, has other numbers in the same order. So the lowest number is paired with the lowest, and so on.
    """
    counted = re.compile(rf"{kind}(?:_(\d+))?")

    def in_order(names: Mapping[str, Any]) -> list[str]:
        matches = [m for m in map(counted.fullmatch, names) if m]
        return [m[0] for m in sorted(matches, key=lambda m: int(m[1] or 0))]

    theirs, ours = in_order(found), in_order(expected)
    if len(theirs) != len(ours):
        return dict(found)  # the comparison will list what is missing or too many
    numbers = dict(zip(theirs, ours, strict=True))
    return {numbers.get(name, name): value for name, value in found.items()}


# -- comparing ---------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """matched: (layer, position among the layer's expected tensors, values as they were given). rows: all that does not
    pair."""

    matched: list[tuple[str, int, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def names(self, kind: str) -> list[str]:
        return [row.name for row in self.rows if row.kind == kind]


def plain_name(name: str) -> str:
    """What a weight's name in a file says it is: "conv1_3/kernel:0", "conv1_W_1:0" and "kernel" are all "kernel"."""
    tail = re.sub(r":\d+$", "", name).rsplit("/", 1)[-1]
    known = _KNOWN.search(tail)
    return _SYNONYMS.get(known[1], known[1]) if known else tail


def _pair(expected: Sequence[str], found: Sequence[str]) -> list[int | None]:
    """For each expected tensor of a layer the position in the file's list, or None."""
    want, have = [plain_name(n) for n in expected], [plain_name(n) for n in found]
    distinct = len(set(want)) == len(want) and len(set(have)) == len(have)
    if distinct and (set(want) <= set(have) or set(have) <= set(want)):
        return [have.index(n) if n in have else None for n in want]
    if len(want) == len(have):
        return list(range(len(want)))
    return [None] * len(want)  # neither names nor numbers agree: guessing could swap a scale and a shift


def compare(expected: Mapping[str, Sequence[tuple[str, Shape]]],
            found: Mapping[str, Sequence[tuple[str, Any]]]) -> Comparison:  # fmt: skip
    """Pair expected tensors with found ones, of which only `shape` is read; what is missing, unexpected or of another shape
    is listed, not raised."""
    result = Comparison()
    for layer, wanted in expected.items():
        entries = found.get(layer, ())
        places = _pair([n for n, _ in wanted], [n for n, _ in entries])
        for position, ((name, shape), place) in enumerate(zip(wanted, places, strict=True)):
            label = f"{layer} {name}"
            if place is None:
                result.rows.append(Row("missing", label, tuple(shape)))
            elif entries[place][1].shape != tuple(shape):
                result.rows.append(Row("mismatched", label, tuple(shape), entries[place][1].shape))
            else:
                result.matched.append((layer, position, entries[place][1]))
        result.rows += _unexpected(layer, entries, set(places))
    for layer, entries in found.items():
        if layer not in expected:
            result.rows += _unexpected(layer, entries, set())
    return result


def _unexpected(layer: str, entries: Sequence[tuple[str, Any]], used: set[int | None]) -> list[Row]:
    return [Row("unexpected", f"{layer} {n}", None, a.shape) for i, (n, a) in enumerate(entries) if i not in used]
