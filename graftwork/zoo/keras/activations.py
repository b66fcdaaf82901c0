"""Activations: by name, as layers, and as settings of other layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ... import nn
from ...nn import Module, Parameter, Tensor
from ...nn import functional as F
from .config import Built, Function, LayerConfig, Shape, known, one, one_input, same_mask, variables
from .table import build, layer


def _selu(x: Tensor) -> Tensor:
    """Klambauer et al. 2017."""
    return F.elu(x, 1.6732632423543772) * 1.0507009873554805


def _old_hard_sigmoid(x: Tensor) -> Tensor:
    """Keras 1 and 2: clip(0.2 x + 0.5, 0, 1). Keras 3 took PyTorch's relu6(x + 3) / 6."""
    return F.clip(x * 0.2 + 0.5, 0.0, 1.0)


def _zero(x: Tensor) -> Tensor:
    return x * 0.0


def _squareplus(x: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4)) / 2 (Barron 2021)."""
    return (x + F.sqrt(x * x + 4.0)) * 0.5


def _sparse_plus(x: Tensor) -> Tensor:
    """0 up to -1, x from 1 on, (x + 1)^2 / 4 between."""
    middle = F.square(F.clip(x, -1.0, 1.0) + 1.0) * 0.25
    return middle + F.relu(x - 1.0)


def _soft_shrink(x: Tensor) -> Tensor:
    return F.relu(x - 0.5) - F.relu(-x - 0.5)


def _hard_shrink(x: Tensor) -> Tensor:
    return F.where(F.abs(x) > 0.5, x, _zero(x))


def _glu(x: Tensor) -> Tensor:
    """The first half of the channels, gated by the second (Dauphin et al. 2017)."""
    first, gate = F.split(x, 2, axis=-1)
    return first * F.sigmoid(gate)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "leaky_relu": partial(F.leaky_relu, alpha=0.2), "elu": F.elu, "selu": _selu,
    "gelu": F.gelu, "silu": F.silu, "swish": F.silu, "hard_swish": F.hard_swish, "hard_silu": F.hard_swish,
    "sigmoid": F.sigmoid, "hard_sigmoid": F.hard_sigmoid, "tanh": F.tanh, "softplus": F.softplus, "softmax": F.softmax,
    "log_softmax": F.log_softmax, "exponential": F.exp, "softsign": lambda x: x / (F.abs(x) + 1.0),
    "mish": lambda x: x * F.tanh(F.softplus(x)), "celu": F.elu, "squareplus": _squareplus, "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: F.clip(x * 0.5 + 0.5, 0.0, 1.0), "hard_tanh": lambda x: F.clip(x, -1.0, 1.0),
    "tanh_shrink": lambda x: x - F.tanh(x), "soft_shrink": _soft_shrink, "hard_shrink": _hard_shrink,
    "log_sigmoid": lambda x: -F.softplus(-x), "glu": _glu,
}  # fmt: skip
_AS_SETTING = ("ReLU", "LeakyReLU", "ELU", "Softmax")  # layers that may stand where an activation is asked for
_SETTINGS = ("activation", "recurrent_activation", "inner_activation")


def _function_name(value: Any) -> Any:
    """The name of a Keras function, in any of the forms that configurations have used."""
    if isinstance(value, dict) and value.get("class_name") == "function":
        return value.get("config")
    return value


def activation_problem(values: dict[str, Any]) -> str | None:
    """The name of an activation that is somebody's own code or otherwise unknown here, or None."""
    for key in _SETTINGS:
        value = values.get(key)
        name = _function_name(value)
        if value is None or name == "linear" or (isinstance(name, str) and name in ACTIVATIONS):
            continue
        if isinstance(name, dict):
            if name.get("class_name") in _AS_SETTING and isinstance(name.get("config"), dict):
                continue
            name = name.get("registered_name") or name.get("class_name")
        return f"{key} {name!r:.60}"
    return None


def activation_of(c: LayerConfig, ndim: int = 4, key: str = "activation", default: str = "linear") -> Any:
    """A layer's activation by name, as a function, or as a layer of its own; None for the identity."""
    value = _function_name(c.get(key, default))
    if isinstance(value, dict):
        inner = c.inner(value, key)
        if inner.kind not in _AS_SETTING:
            raise c.error(f"{key}={value!r:.60}, expected an activation")
        return build(inner, [(None,) * ndim]).make().forward
    if value == "linear":
        return None
    if value == "hard_sigmoid" and c.keras < 3:
        return _old_hard_sigmoid
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise c.error(f"{key}={value!r:.60}, expected the name of an activation")
    return ACTIVATIONS[value]


def pointwise(function: Callable[..., Tensor], note: str, shape: Shape) -> Built:
    """A layer without weights that keeps its input's shape and mask."""
    return one(lambda: Function(function, note), shape, masks=same_mask)


@layer("Activation")
def activation(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    value = _function_name(c.get("activation", "linear"))
    function = activation_of(c, len(shape))
    if value == "glu":
        width = known(c, shape[-1], "number of channels")
        if width % 2:
            raise c.error(f"glu halves {width} channels, which is odd")
        return one(lambda: Function(_glu, "glu"), (*shape[:-1], width // 2))
    return pointwise(function or F.identity, value if isinstance(value, str) else str(value.get("class_name")), shape)


@layer("ReLU")
def rectifier(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Keras's ReLU layer: x from `threshold` on, negative_slope * (x - threshold) below, at most max_value."""
    slope, threshold = c.number("negative_slope", 0.0), c.number("threshold", 0.0)
    largest = None if c.get("max_value", None) is None else c.number("max_value")

    def forward(x: Tensor) -> Tensor:
        if threshold == 0.0:
            y = F.leaky_relu(x, slope) if slope else F.relu(x)
        else:
            y = F.where(x >= threshold, x, (x - threshold) * slope)
        return y if largest is None else F.clip(y, None, largest)

    simple = slope == threshold == 0.0
    function = F.relu6 if simple and largest == 6.0 else forward
    return pointwise(function, f"relu, slope={slope}, threshold={threshold}, max={largest}", one_input(c, shapes))


@layer("ThresholdedReLU")
def thresholded_rectifier(c: LayerConfig, shapes: list[Shape]) -> Built:
    """x where it is above theta, 0 elsewhere (Keras 1 and 2)."""
    theta = c.number("theta", 1.0)
    return pointwise(lambda x: F.where(x > theta, x, _zero(x)), f"x > {theta}", one_input(c, shapes))


@layer("LeakyReLU")
def leaky_rectifier(c: LayerConfig, shapes: list[Shape]) -> Built:
    alpha = c.number("negative_slope" if "negative_slope" in c.values else "alpha", 0.3)
    return one(lambda: nn.LeakyReLU(alpha), one_input(c, shapes), masks=same_mask)


@layer("ELU")
def elu(c: LayerConfig, shapes: list[Shape]) -> Built:
    alpha = c.number("alpha", 1.0)
    return one(lambda: nn.ELU(alpha), one_input(c, shapes), masks=same_mask)


class PReLU(Module):
    """x where positive, else alpha * x with learned alphas; shared along the axes of size 1 (He et al. 2015)."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.alpha = Parameter(np.zeros(shape, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) - self.alpha * F.relu(-x)


@layer("PReLU")
def prelu(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    shared = [] if not c.get("shared_axes", None) else c.axes("shared_axes", None, len(shape))
    sizes = [1 if i in shared else known(c, n, "shape of its input") for i, n in enumerate(shape[1:], 1)]
    return one(lambda: PReLU(tuple(sizes)), shape, variables(("alpha", tuple(sizes))), masks=same_mask)


@layer("Softmax")
def softmax(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    if any(c.masked):
        raise c.error("a softmax under a mask is not supported; put Softmax before the mask or use attention layers")
    axes = c.axes("axis", -1, len(shape))
    if len(axes) == 1:
        return pointwise(partial(F.softmax, axis=axes[0]), f"softmax, axis={axes[0]}", shape)

    def over_several(x: Tensor) -> Tensor:
        e = F.exp(x - F.max(x, axis=axes, keepdims=True))
        return e / F.sum(e, axis=axes, keepdims=True)

    return pointwise(over_several, f"softmax, axes={axes}", shape)


