"""What the layers' files share: a layer's settings with their types checked, and what a layer is built from.

Configurations of Keras 1, 2 and 3 are read; Keras 1's names are translated first. Shapes start with the batch, and None stands
for a size that the configuration leaves open. Regularisers, initialisers and constraints only matter when training from
scratch and are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ModelError
from ...nn import Module, Tensor
from ..weights_h5 import LayerSpec

Shape = tuple[int | None, ...]
Mask = Tensor | None
LARGEST = 2**31 - 1
DEEPEST = 24  # layers within layers (nested models, wrappers)
_REQUIRED = object()


@dataclass(frozen=True)
class Weight:
    """One tensor of a layer: its name and shape in files, its place in .weights.h5 ("0", "cell/1"), whether it trains."""

    name: str
    shape: tuple[int, ...]
    place: str
    trainable: bool = True


@dataclass(frozen=True)
class Built:
    """A layer ready to be made.

    make: called once the file is known to hold tensors of just these shapes; nothing is allocated before. outputs: shapes of
    the output tensors. weights: in the order of the module's own slots, sub-modules after them. activation: what follows the
    module. masks: from inputs and their masks to the output's mask; without it a mask ends here. takes_mask: the module wants
    `masks=` (one entry an input, None where there is none). inner: the layers of a model within, or the one that is wrapped.
    """

    make: Callable[[], Module]
    outputs: tuple[Shape, ...]
    weights: tuple[Weight, ...] = ()
    activation: Callable[[Tensor], Tensor] | None = None
    masks: Callable[[Sequence[Tensor], Sequence[Mask]], Mask] | None = None
    makes_mask: bool = False
    takes_mask: bool = False
    inner: tuple[LayerSpec, ...] = ()

    @property
    def output(self) -> Shape:
        return self.outputs[0]

    def apply(self, module: Module, inputs: Sequence[Tensor], masks: Sequence[Mask] = ()) -> Any:
        """What the layer computes: one tensor, or a tuple of several."""
        masked = self.takes_mask and any(m is not None for m in masks)
        y = module(*inputs, masks=masks) if masked else module(*inputs)
        return y if self.activation is None else self.activation(y)


def one(make: Callable[[], Module], shape: Shape, weights: Sequence[Weight] = (), **more: Any) -> Built:
    """A layer with one output."""
    return Built(make, (shape,), tuple(weights), **more)


def same_mask(inputs: Sequence[Tensor], masks: Sequence[Mask]) -> Mask:
    """The rule of layers that work at each position alone: the mask goes on."""
    return masks[0]


def variables(*named: tuple[str, tuple[int, ...]], frozen: Sequence[str] = ()) -> tuple[Weight, ...]:
    """A layer's own tensors; `frozen` names those that no training changes."""
    return tuple(Weight(n, tuple(shape), str(i), n not in frozen) for i, (n, shape) in enumerate(named))


def below(prefix: str, weights: Sequence[Weight], name: str = "") -> tuple[Weight, ...]:
    """A sub-layer's tensors as part of the layer around it."""
    return tuple(Weight(f"{name or prefix}/{w.name}", w.shape, f"{prefix}/{w.place}", w.trainable) for w in weights)


class Function(Module):
    """A layer without weights: a function of one or more tensors, with a name for the listing."""

    def __init__(self, function: Callable[..., Any], note: str):
        super().__init__()
        self.function, self.note = function, note

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        return self.function(*inputs, **options)

    def extra_repr(self) -> str:
        return self.note


@dataclass(frozen=True)
class Slot:
    """In a call's arguments: the call's input tensor of this number."""

    index: int


@dataclass(frozen=True)
class Call:
    """How a layer is called beside its input tensors: arguments with `Slot` where a tensor stands."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self, name: str, position: int) -> list[int] | None:
        """Numbers of the input tensors given as argument `name` (or by position); None if it is absent."""
        value = self.kwargs.get(name, self.args[position] if position < len(self.args) else None)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        found = [v.index for v in values if isinstance(v, Slot)]
        return found or None


# -- reading a configuration -------------------------------------------------------------------------------------------

_KERAS1 = {
    "nb_filter": "filters", "border_mode": "padding", "subsample": "strides", "bias": "use_bias", "p": "rate",
    "dim_ordering": "data_format", "atrous_rate": "dilation_rate", "inner_activation": "recurrent_activation",
    "filter_length": "kernel_size", "subsample_length": "strides", "pool_length": "pool_size", "stride": "strides",
}  # fmt: skip


class LayerConfig:
    """A layer's settings with their types checked; every complaint is a ModelError that names the layer.

    keras: major version of the Keras that wrote it. call: how it is called. masked: which inputs come with a mask. depth: how
    many layers it is within. entry: the configuration's whole entry, for layers that hold other layers.
    """

    def __init__(self, kind: str, name: str, values: dict[str, Any], keras: int, call: Call | None = None,
                 masked: Sequence[bool] = (), depth: int = 0):  # fmt: skip
        self.kind, self.name, self.keras, self.depth = kind, name, keras, depth
        self.call, self.masked = call or Call(), tuple(masked)
        self.values = {new: values[old] for old, new in _KERAS1.items() if old in values} | values

    def error(self, text: str) -> ModelError:
        return ModelError(f"layer {self.name!r:.200} ({self.kind:.60}): {text}")

    def inner(self, entry: Any, what: str, call: Call | None = None, masked: Sequence[bool] = ()) -> LayerConfig:
        """The settings of a layer within this one, from its own entry {"class_name", "config"}."""
        sound = isinstance(entry, dict) and isinstance(entry.get("class_name"), str)
        if not sound or not isinstance(entry.get("config"), (dict, list)):
            raise self.error(f"{what} is {entry!r:.60}, expected a layer's configuration")
        if self.depth >= DEEPEST:
            raise self.error(f"layers are nested more than {DEEPEST} deep")
        config = entry["config"] if isinstance(entry["config"], dict) else {"layers": entry["config"]}
        name = f"{self.name}/{config.get('name') or what}"
        return LayerConfig(entry["class_name"], name, config, self.keras, call, masked, self.depth + 1)

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(f"the configuration has no {key!r}; save the model again")
            return default
        return value

    def integer(self, key: str, default: Any = _REQUIRED, least: int = 1) -> int:
        value = self.get(key, default)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return self._integer(key, value, least)

    def _integer(self, key: str, value: Any, least: int) -> int:
        if type(value) is not int or not least <= value <= LARGEST:
            raise self.error(f"{key}={value!r:.60}, expected an integer from {least} to {LARGEST}")
        return value

    def integers(self, key: str, count: int, default: Any = _REQUIRED, least: int = 1) -> tuple[int, ...]:
        """`count` integers from as many, or from one for all."""
        value = self.get(key, default)
        values = value if isinstance(value, (list, tuple)) else [value] * count
        if len(values) != count:
            raise self.error(f"{key}={value!r:.60}, expected one integer or {count}")
        return tuple(self._integer(key, v, least) for v in values)

    def pair(self, key: str, default: Any = _REQUIRED, least: int = 1) -> tuple[int, int]:
        """(vertical, horizontal) from one integer or two."""
        first, second = self.integers(key, 2, default, least)
        return first, second

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number; old files wrap NumPy values as {"type": "ndarray", "value": 0.3}."""
        value = self.get(key, default)
        if isinstance(value, dict):
            value = value.get("value")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            raise self.error(f"{key}={value!r:.60}, expected a number")
        try:
            return float(value)
        except OverflowError:
            raise self.error(f"{key} is beyond what a float holds") from None

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key}={value!r:.60}, expected true or false")
        return value

    def choice(self, key: str, default: str, options: Sequence[str]) -> str:
        value = self.get(key, default)
        if value not in options:
            raise self.error(f"{key}={value!r:.60}; expected {' or '.join(options)}")
        return value

    def axes(self, key: str, default: Any, ndim: int) -> list[int]:
        """One axis or several, counted from the front, sorted."""
        value = self.get(key, default)
        if isinstance(value, dict):  # Keras 2 kept a list wrapper of TensorFlow's
            value = value.get("items") or value.get("config")
        axes = value if isinstance(value, list) else [value]
        if not axes or any(type(a) is not int or not -ndim <= a < ndim for a in axes):
            raise self.error(f"{key}={value!r:.60} for an input of {ndim} dimensions")
        normal = sorted(a % ndim for a in axes)
        if len(set(normal)) != len(normal):
            raise self.error(f"{key}={value!r:.60} names a dimension twice")
        return normal

    def sides(self, key: str, rank: int = 2) -> tuple[tuple[int, int], ...]:
        """((before, after), ...) for each spatial dimension, in any of the forms that Keras has used."""
        value = self.get(key, 1)
        if isinstance(value, dict):
            order = ("top", "bottom", "left", "right") if rank == 2 else ("left", "right")
            value = [value.get(f"{side}_{key[:3]}", 0) for side in order]
        if rank == 1 and isinstance(value, list) and len(value) == 2:
            value = [value]
        if isinstance(value, list) and len(value) == 2 * rank and rank > 1:
            value = [value[i : i + 2] for i in range(0, 2 * rank, 2)]
        parts = value if isinstance(value, list) else [value] * rank
        pairs = [part if isinstance(part, list) else [part, part] for part in parts]
        if len(pairs) != rank or any(len(p) != 2 for p in pairs):
            raise self.error(f"{key}={value!r:.60}, expected integers: one, {rank}, or a pair for each dimension")
        return tuple((self._integer(key, a, 0), self._integer(key, b, 0)) for a, b in pairs)


def is_channels_first(values: dict[str, Any]) -> bool:
    return values.get("data_format") == "channels_first" or values.get("dim_ordering") == "th"


# -- shapes ------------------------------------------------------------------------------------------------------------


def one_input(c: LayerConfig, shapes: list[Shape]) -> Shape:
    if len(shapes) != 1:
        raise c.error(f"has {len(shapes)} inputs, expected one")
    return shapes[0]


def spatial(c: LayerConfig, shapes: list[Shape], rank: int) -> tuple[tuple[int | None, ...], int]:
    """Sizes of the `rank` spatial dimensions and the number of channels of the only input."""
    shape = one_input(c, shapes)
    if len(shape) != rank + 2:
        raise c.error(f"its input has shape {shape}, expected {rank + 2} dimensions: batch, {rank} of space or time, channels")
    return shape[1:-1], known(c, shape[-1], "number of input channels")


def known(c: LayerConfig, size: int | None, what: str) -> int:
    if size is None:
        raise c.error(f"the configuration leaves the {what} open; save the model with a fixed input shape")
    return size


def slide(c: LayerConfig, size: int | None, window: int, stride: int, padding: str, dilation: int = 1) -> int | None:
    """Positions of a sliding window along one dimension."""
    if size is None:
        return None
    span = (window - 1) * dilation + 1
    count = (size - span) // stride + 1 if padding == "valid" else -(-size // stride)
    if count < 1:
        raise c.error(f"a window of {span} does not fit an input of size {size}")
    return count


def padding(c: LayerConfig) -> str:
    return c.choice("padding", "valid", ("valid", "same"))


def bias(c: LayerConfig, count: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("bias", (count,))] if c.flag("use_bias", True) else []


def product(sizes: Sequence[int | None]) -> int | None:
    """The number of elements, None if a size is open."""
    fixed = [n for n in sizes if n is not None]
    return math.prod(fixed) if len(fixed) == len(sizes) else None
