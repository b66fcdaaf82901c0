"""Keras's layers as Graftwork's: one function a layer class, from its configuration and input shapes to a `Built`.

Configurations of Keras 1.2, 2 and 3 are read; Keras 1's names are translated first. Nothing is allocated here but by
`Built.make`, which is called once the file is known to hold tensors of just these shapes. Shapes start with the batch, and
None stands for a size that the configuration leaves open. Regularisers, initialisers and constraints only matter when
training from scratch and are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .. import nn
from ..errors import ModelError
from ..nn import Module, Tensor
from ..nn import functional as F

Shape = tuple[int | None, ...]
LARGEST = 2**31 - 1
_REQUIRED = object()


@dataclass(frozen=True)
class Built:
    """A layer ready to be made: tensors in Keras's order and layout, the maker, the output shape, a fused activation."""

    make: Callable[[], Module]
    output: Shape
    weights: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    activation: Callable[[Tensor], Tensor] | None = None


class Function(Module):
    """A layer without weights: a function of one or more tensors, with a name for the listing."""

    def __init__(self, function: Callable[..., Tensor], note: str):
        super().__init__()
        self.function, self.note = function, note

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def extra_repr(self) -> str:
        return self.note


# -- reading a configuration -------------------------------------------------------------------------------------------

_KERAS1 = {
    "nb_filter": "filters", "border_mode": "padding", "subsample": "strides", "bias": "use_bias", "p": "rate",
    "dim_ordering": "data_format", "atrous_rate": "dilation_rate",
}  # fmt: skip


class LayerConfig:
    """A layer's settings with their types checked; every complaint is a ModelError that names the layer."""

    def __init__(self, kind: str, name: str, values: dict[str, Any], keras: int):
        self.kind, self.name, self.keras = kind, name, keras
        self.values = {new: values[old] for old, new in _KERAS1.items() if old in values} | values

    def error(self, text: str) -> ModelError:
        return ModelError(f"layer {self.name!r} ({self.kind}): {text}")

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(f"the configuration has no {key!r}; save the model again")
            return default
        return value

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        return self._integer(key, self.get(key, default), 1)

    def _integer(self, key: str, value: Any, least: int) -> int:
        if type(value) is not int or not least <= value <= LARGEST:
            raise self.error(f"{key}={value!r:.60}, expected an integer of at least {least}")
        return value

    def pair(self, key: str, default: Any = _REQUIRED, least: int = 1) -> tuple[int, int]:
        """(vertical, horizontal) from one integer or two."""
        value = self.get(key, default)
        values = value if isinstance(value, (list, tuple)) else [value, value]
        if len(values) != 2:
            raise self.error(f"{key}={value!r:.60}, expected one integer or two")
        return self._integer(key, values[0], least), self._integer(key, values[1], least)

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

    def axes(self, key: str, default: int, ndim: int) -> list[int]:
        """One axis or several, counted from the front."""
        value = self.get(key, default)
        axes = value if isinstance(value, list) else [value]
        if not axes or any(type(a) is not int or not -ndim <= a < ndim for a in axes):
            raise self.error(f"{key}={value!r:.60} for an input of {ndim} dimensions")
        return [a % ndim for a in axes]

    def sides(self, key: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """((top, bottom), (left, right)) in any of the forms that Keras has used."""
        value = self.get(key, 1)
        if isinstance(value, dict):
            value = [value.get(f"{side}_{key[:3]}", 0) for side in ("top", "bottom", "left", "right")]
        if isinstance(value, list) and len(value) == 4:
            value = [value[:2], value[2:]]
        parts = value if isinstance(value, list) else [value, value]
        pairs = [part if isinstance(part, list) else [part, part] for part in parts]
        if len(pairs) != 2 or any(len(p) != 2 for p in pairs):
            raise self.error(f"{key}={value!r:.60}, expected one, two or four integers")
        (top, bottom), (left, right) = [[self._integer(key, v, 0) for v in p] for p in pairs]
        return (top, bottom), (left, right)


def is_channels_first(values: dict[str, Any]) -> bool:
    return values.get("data_format") == "channels_first" or values.get("dim_ordering") == "th"


# -- activations -------------------------------------------------------------------------------------------------------


def _selu(x: Tensor) -> Tensor:
    return F.elu(x, 1.6732632423543772) * 1.0507009873554805


def _old_hard_sigmoid(x: Tensor) -> Tensor:
    """Keras 1 and 2: clip(0.2 x + 0.5, 0, 1). Keras 3 took PyTorch's relu6(x + 3) / 6."""
    return F.clip(x * 0.2 + 0.5, 0.0, 1.0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "leaky_relu": partial(F.leaky_relu, alpha=0.2), "elu": F.elu, "selu": _selu,
    "gelu": F.gelu, "silu": F.silu, "swish": F.silu, "hard_swish": F.hard_swish, "hard_silu": F.hard_swish,
    "sigmoid": F.sigmoid, "hard_sigmoid": F.hard_sigmoid, "tanh": F.tanh, "softplus": F.softplus, "softmax": F.softmax,
    "log_softmax": F.log_softmax, "exponential": F.exp, "softsign": lambda x: x / (F.abs(x) + 1.0),
    "mish": lambda x: x * F.tanh(F.softplus(x)),
}  # fmt: skip


def activation_problem(values: dict[str, Any]) -> str | None:
    """The name of an activation that is somebody's own code or otherwise unknown here, or None."""
    value = values.get("activation")
    if value is None or value == "linear" or (isinstance(value, str) and value in ACTIVATIONS):
        return None
    if isinstance(value, dict):
        name, inner = value.get("class_name"), value.get("config")
        if name == "function" and (inner == "linear" or (isinstance(inner, str) and inner in ACTIVATIONS)):
            return None
        if name in ("ReLU", "LeakyReLU", "ELU", "Softmax") and isinstance(inner, dict):
            return None
        value = inner if name == "function" else name
    return f"activation {value!r:.60}"


def _activation(c: LayerConfig, ndim: int = 4) -> Callable[[Tensor], Tensor] | None:
    """A layer's activation by name, as a function, or as a layer of its own; None for the identity."""
    value = c.get("activation", "linear")
    if isinstance(value, dict):
        if value.get("class_name") != "function":
            layer = LayerConfig(value["class_name"], c.name, value["config"], c.keras)
            return LAYERS[layer.kind](layer, [(None,) * ndim]).make().forward
        value = value.get("config")
    if value == "linear":
        return None
    return _old_hard_sigmoid if value == "hard_sigmoid" and c.keras < 3 else ACTIVATIONS[value]


def activation(c: LayerConfig, shapes: list[Shape]) -> Built:
    function, value = _activation(c, len(_one(c, shapes))), c.get("activation", "linear")
    note = value if isinstance(value, str) else str(value.get("config"))
    return Built(lambda: Function(function or F.identity, note), _one(c, shapes))


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
    return Built(lambda: Function(function, f"relu, slope={slope}, threshold={threshold}, max={largest}"), _one(c, shapes))


def leaky_rectifier(c: LayerConfig, shapes: list[Shape]) -> Built:
    alpha = c.number("negative_slope" if "negative_slope" in c.values else "alpha", 0.3)
    return Built(lambda: nn.LeakyReLU(alpha), _one(c, shapes))


def elu(c: LayerConfig, shapes: list[Shape]) -> Built:
    alpha = c.number("alpha", 1.0)
    return Built(lambda: nn.ELU(alpha), _one(c, shapes))


def softmax(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = _one(c, shapes)
    axes = c.axes("axis", -1, len(shape))
    if len(axes) != 1:
        raise c.error(f"softmax over axes {axes}; expected one")
    return Built(lambda: Function(partial(F.softmax, axis=axes[0]), f"softmax, axis={axes[0]}"), shape)


# -- shapes ------------------------------------------------------------------------------------------------------------


def _one(c: LayerConfig, shapes: list[Shape]) -> Shape:
    if len(shapes) != 1:
        raise c.error(f"has {len(shapes)} inputs, expected one")
    return shapes[0]


def _image(c: LayerConfig, shapes: list[Shape]) -> tuple[int | None, int | None, int]:
    """(height, width, channels) of the only input."""
    shape = _one(c, shapes)
    if len(shape) != 4:
        raise c.error(f"its input has shape {shape}, expected (batch, height, width, channels)")
    return shape[1], shape[2], _known(c, shape[3], "number of input channels")


def _known(c: LayerConfig, size: int | None, what: str) -> int:
    if size is None:
        raise c.error(f"the configuration leaves the {what} open; save the model with a fixed input shape")
    return size


def _slide(c: LayerConfig, size: int | None, window: int, stride: int, padding: str, dilation: int = 1) -> int | None:
    """Positions of a sliding window along one dimension."""
    if size is None:
        return None
    span = (window - 1) * dilation + 1
    count = -(-size // stride) if padding == "same" else (size - span) // stride + 1
    if count < 1:
        raise c.error(f"a window of {span} does not fit an input of size {size}")
    return count


def _padding(c: LayerConfig) -> str:
    return c.choice("padding", "valid", ("valid", "same"))


def _bias(c: LayerConfig, count: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("bias", (count,))] if c.flag("use_bias", True) else []


# -- layers with weights -----------------------------------------------------------------------------------------------


def _kernel_size(c: LayerConfig) -> tuple[int, int]:
    if "nb_row" in c.values:
        return c.integer("nb_row"), c.integer("nb_col")
    return c.pair("kernel_size")


def _convolution(c: LayerConfig, shapes: list[Shape]) -> tuple[int, tuple[int, int], dict[str, Any], Shape]:
    """What the convolutions have in common: input channels, window, the rest of the geometry, output without channels."""
    height, width, channels = _image(c, shapes)
    window, stride, dilation = _kernel_size(c), c.pair("strides", 1), c.pair("dilation_rate", 1)
    padding = _padding(c)
    size = tuple(_slide(c, n, k, s, padding, d) for n, k, s, d in zip((height, width), window, stride, dilation, strict=True))
    return channels, window, {"stride": stride, "padding": padding, "dilation": dilation}, (shapes[0][0], *size)


def conv2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes)
    filters, groups = c.integer("filters"), c.integer("groups", 1)
    if channels % groups or filters % groups:
        raise c.error(f"groups={groups} do not divide {channels} input and {filters} output channels")
    bias = _bias(c, filters)
    weights = [("kernel", (*window, channels // groups, filters)), *bias]
    make = partial(nn.Conv2d, channels, filters, window, groups=groups, bias=bool(bias), **geometry)
    return Built(make, (*size, filters), weights, _activation(c))


def depthwise_conv2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes)
    multiplier = c.integer("depth_multiplier", 1)
    bias = _bias(c, channels * multiplier)
    weights = [("depthwise_kernel", (*window, channels, multiplier)), *bias]
    make = partial(nn.DepthwiseConv2d, channels, window, multiplier=multiplier, bias=bool(bias), **geometry)
    return Built(make, (*size, channels * multiplier), weights, _activation(c))


def separable_conv2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes)
    filters, multiplier = c.integer("filters"), c.integer("depth_multiplier", 1)
    bias = _bias(c, filters)
    weights = [
        ("depthwise_kernel", (*window, channels, multiplier)),
        ("pointwise_kernel", (1, 1, channels * multiplier, filters)),
        *bias,
    ]
    make = partial(nn.SeparableConv2d, channels, filters, window, multiplier=multiplier, bias=bool(bias), **geometry)
    return Built(make, (*size, filters), weights, _activation(c))


def conv2d_transpose(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Keras's output sizes: "same" n * stride, "valid" at least (n - 1) * stride + window, or as output_padding says."""
    height, width, channels = _image(c, shapes)
    filters, window = c.integer("filters"), c.pair("kernel_size")
    stride, dilation = c.pair("strides", 1), c.pair("dilation_rate", 1)
    extra = (None, None) if c.get("output_padding", None) is None else c.pair("output_padding", least=0)
    padding = _padding(c)
    sides, added, size = [], [], []
    for n, k, s, d, e in zip((height, width), window, stride, dilation, extra, strict=True):
        if e is not None and e >= s:
            raise c.error(f"output_padding={e} must be smaller than the stride {s}")
        before, after, more = _transposed(k + (k - 1) * (d - 1), s, padding, e)
        sides.append((before, after))
        added.append(more)
        size.append(None if n is None else (n - 1) * s + (k - 1) * d + 1 - before - after + more)
        if size[-1] is not None and size[-1] < 1:
            raise c.error(f"padding leaves nothing of an input of size {n}")
    bias = _bias(c, filters)
    make = partial(nn.ConvTranspose2d, channels, filters, window, stride, tuple(sides), dilation, 1, bool(bias), tuple(added))
    return Built(make, (shapes[0][0], *size, filters), [("kernel", (*window, filters, channels)), *bias], _activation(c))


def _transposed(span: int, stride: int, padding: str, extra: int | None) -> tuple[int, int, int]:
    """(taken off before, taken off after, added at the end) along one dimension of a transposed convolution."""
    if extra is None:
        surplus = span - stride if padding == "same" else min(span - stride, 0)
    else:
        surplus = (span // 2 * 2 if padding == "same" else 0) - extra
    taken = max(surplus, 0)
    return taken // 2, taken - taken // 2, max(-surplus, 0)


def dense(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = _one(c, shapes)
    if len(shape) < 2:
        raise c.error(f"its input has shape {shape}, expected (batch, ..., features)")
    features = _known(c, shape[-1], "number of input features")
    units = c.integer("units" if "units" in c.values else "output_dim")
    bias = _bias(c, units)
    weights = [("kernel", (features, units)), *bias]
    return Built(partial(nn.Linear, features, units, bool(bias)), (*shape[:-1], units), weights, _activation(c, len(shape)))


def _last_axis(c: LayerConfig, shape: Shape) -> int:
    """Number of channels, once it is sure that the layer normalises over the last axis."""
    axes = c.axes("axis", -1, len(shape))
    if axes != [len(shape) - 1]:
        raise c.error(f"axis {axes} of shape {shape} is not the last; channels-first models must be converted first")
    return _known(c, shape[-1], "number of channels")


def batch_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = _one(c, shapes)
    channels = _last_axis(c, shape)
    if c.get("mode", 0) != 0 or c.get("renorm", False):
        raise c.error("only plain batch normalisation is supported (Keras 1's mode 0, no renorm)")
    scale, center = c.flag("scale", True), c.flag("center", True)
    names = [*(["gamma"] if scale else []), *(["beta"] if center else []), "moving_mean", "moving_variance"]
    make = partial(nn.BatchNorm, channels, c.number("momentum", 0.99), c.number("epsilon", 1e-3), scale, center)
    return Built(make, shape, [(name, (channels,)) for name in names])


def layer_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = _one(c, shapes)
    channels = _last_axis(c, shape)
    if c.get("rms_scaling", False):
        raise c.error("rms_scaling is not supported")
    scale, center, epsilon = c.flag("scale", True), c.flag("center", True), c.number("epsilon", 1e-3)

    def make() -> Module:
        layer = nn.LayerNorm(channels, epsilon)
        for name, learned in (("gamma", scale), ("beta", center)):
            if not learned:  # the neutral values stay, as a constant
                constant = getattr(layer, name).detach()
                delattr(layer, name)
                setattr(layer, name, constant)
        return layer

    names = [*(["gamma"] if scale else []), *(["beta"] if center else [])]
    return Built(make, shape, [(name, (channels,)) for name in names])


class _Embedding(nn.Embedding):
    """Keras's: whole numbers may come as floats."""

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index if index.dtype.kind in "iu" else index.astype("int64"))


def embedding(c: LayerConfig, shapes: list[Shape]) -> Built:
    entries, width = c.integer("input_dim"), c.integer("output_dim")
    make = partial(_Embedding, entries, width)
    return Built(make, (*_one(c, shapes), width), [("embeddings", (entries, width))])


# -- layers without weights --------------------------------------------------------------------------------------------


def _pool(kind: Callable[..., Module], c: LayerConfig, shapes: list[Shape]) -> Built:
    height, width, channels = _image(c, shapes)
    window, padding = c.pair("pool_size", 2), _padding(c)
    stride = c.pair("strides", list(window))
    size = [_slide(c, n, k, s, padding) for n, k, s in zip((height, width), window, stride, strict=True)]
    return Built(partial(kind, window, stride, padding), (shapes[0][0], *size, channels))


def _global_pool(kind: Callable[..., Module], c: LayerConfig, shapes: list[Shape]) -> Built:
    _, _, channels = _image(c, shapes)
    keep = c.flag("keepdims", False)
    return Built(partial(kind, keep), (shapes[0][0], *((1, 1) if keep else ()), channels))


def flatten(c: LayerConfig, shapes: list[Shape]) -> Built:
    batch, *rest = _one(c, shapes)
    sizes = [n for n in rest if n is not None]
    return Built(nn.Flatten, (batch, math.prod(sizes) if len(sizes) == len(rest) else None))


def dropout(c: LayerConfig, shapes: list[Shape]) -> Built:
    """All of Keras's dropouts are plain dropout here: the same in inference, another noise in training."""
    rate = c.number("rate")
    if not 0.0 <= rate < 1.0:
        raise c.error(f"rate={rate}, expected at least 0 and below 1")
    return Built(partial(nn.Dropout, rate), _one(c, shapes))


def zero_padding2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    height, width, channels = _image(c, shapes)
    sides = c.sides("padding")
    size = [None if n is None else n + a + b for n, (a, b) in zip((height, width), sides, strict=True)]
    return Built(partial(nn.ZeroPad2d, sides), (shapes[0][0], *size, channels))


def cropping2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    height, width, channels = _image(c, shapes)
    (top, bottom), (left, right) = sides = c.sides("cropping")
    size = [None if n is None else n - a - b for n, (a, b) in zip((height, width), sides, strict=True)]
    if any(n is not None and n < 1 for n in size):
        raise c.error(f"cropping {sides} leaves nothing of {shapes[0]}")

    def crop(x: Tensor) -> Tensor:
        return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]

    return Built(lambda: Function(crop, f"crop {sides}"), (shapes[0][0], *size, channels))


def upsampling2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    height, width, channels = _image(c, shapes)
    factor, method = c.pair("size", 2), c.choice("interpolation", "nearest", ("nearest", "bilinear"))
    size = [None if n is None else n * f for n, f in zip((height, width), factor, strict=True)]
    return Built(partial(nn.Upsample2d, factor, method), (shapes[0][0], *size, channels))


def reshape(c: LayerConfig, shapes: list[Shape]) -> Built:
    batch, *rest = _one(c, shapes)
    target = c.get("target_shape")
    sound = isinstance(target, list) and all(type(n) is int and -1 <= n <= LARGEST for n in target)
    if not sound or target.count(-1) > 1:
        raise c.error(f"target_shape={target!r:.60}, expected integers with at most one -1")
    known = math.prod(n for n in target if n != -1)
    sizes = [n for n in rest if n is not None]
    if len(sizes) == len(rest):
        size = math.prod(sizes)
        if (-1 not in target and known != size) or (-1 in target and (known == 0 or size % known)):
            raise c.error(f"{tuple(rest)} cannot take the shape {tuple(target)}")
        target = [size // known if n == -1 else n for n in target]
    output = tuple(None if n == -1 else n for n in target)
    return Built(lambda: Function(lambda x: x.reshape((x.shape[0], *target)), f"reshape to {output}"), (batch, *output))


def permute(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape, order = _one(c, shapes), c.get("dims")
    if not isinstance(order, list) or any(type(n) is not int for n in order) or sorted(order) != list(range(1, len(shape))):
        raise c.error(f"dims={order!r:.60}, expected each of 1 to {len(shape) - 1} once")
    axes = (0, *order)
    return Built(lambda: Function(lambda x: x.transpose(axes), f"permute {order}"), tuple(shape[a] for a in axes))


def rescaling(c: LayerConfig, shapes: list[Shape]) -> Built:
    """scale * x + offset; both are a number or one for each channel."""
    shape = _one(c, shapes)
    scale, offset = _per_channel(c, "scale", shape), _per_channel(c, "offset", shape, 0.0)

    def rescale(x: Tensor) -> Tensor:
        x = x if x.dtype.kind == "f" else x.astype("float32")
        return x * nn.tensor(scale.astype(x.dtype), device=x.device) + nn.tensor(offset.astype(x.dtype), device=x.device)

    return Built(lambda: Function(rescale, f"* {scale} + {offset}"), shape)


def _per_channel(c: LayerConfig, key: str, shape: Shape, default: Any = _REQUIRED) -> np.ndarray:
    value = c.get(key, default)
    if not isinstance(value, list) or len(value) == 1:
        return np.asarray(c.number(key, default))
    if len(value) != shape[-1]:
        raise c.error(f"{key} has {len(value)} values for {shape[-1]} channels")
    return np.array([LayerConfig(c.kind, c.name, {key: v}, c.keras).number(key) for v in value])


# -- layers with several inputs ----------------------------------------------------------------------------------------


def _total(xs: Sequence[Tensor]) -> Tensor:
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


def _fold(function: Callable[[Tensor, Tensor], Tensor], xs: Sequence[Tensor]) -> Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = function(result, x)
    return result


MERGES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "add": _total, "subtract": lambda xs: xs[0] - xs[1], "multiply": partial(_fold, F.multiply),
    "average": lambda xs: _total(xs) * (1.0 / len(xs)), "maximum": partial(_fold, F.maximum),
    "minimum": partial(_fold, F.minimum),
}  # fmt: skip


def _merge(mode: str, c: LayerConfig, shapes: list[Shape]) -> Built:
    if len(shapes) < 2 or (mode == "subtract" and len(shapes) != 2):
        raise c.error(f"has {len(shapes)} inputs, expected {'exactly' if mode == 'subtract' else 'at least'} two")
    ndim = max(len(s) for s in shapes)
    full = [(s[0], *(1,) * (ndim - len(s)), *s[1:]) for s in shapes]  # Keras adds missing dimensions after the batch
    output = tuple(_broadcast(c, sizes) for sizes in zip(*full, strict=True))
    combine = MERGES[mode]

    def merge(*xs: Tensor) -> Tensor:
        return combine([x if x.ndim == ndim else x.reshape((x.shape[0], *(1,) * (ndim - x.ndim), *x.shape[1:])) for x in xs])

    return Built(lambda: Function(merge, mode), output)


def _broadcast(c: LayerConfig, sizes: Sequence[int | None]) -> int | None:
    fixed = {n for n in sizes if n is not None and n != 1}
    if len(fixed) > 1:
        raise c.error(f"input sizes {' and '.join(map(str, sorted(fixed)))} do not go together")
    return fixed.pop() if fixed else (None if None in sizes else 1)


def concatenate(c: LayerConfig, shapes: list[Shape], axis_key: str = "axis") -> Built:
    first = shapes[0]
    axis = c.axes(axis_key, -1, len(first))[0]
    for shape in shapes[1:]:
        others = zip(first, shape, strict=False)
        if len(shape) != len(first) or any(i != axis and None not in (a, b) and a != b for i, (a, b) in enumerate(others)):
            raise c.error(f"shapes {first} and {shape} differ in more than axis {axis}")
    sizes = [s[axis] for s in shapes]
    total = None if None in sizes else sum(n for n in sizes if n is not None)
    output = (*first[:axis], total, *first[axis + 1 :])
    return Built(lambda: Function(lambda *xs: F.concat(xs, axis), f"concatenate, axis={axis}"), output)


def keras1_merge(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Keras 1's one layer for all merges."""
    names = {"sum": "add", "mul": "multiply", "ave": "average", "max": "maximum"}
    mode = c.choice("mode", "sum", (*names, "concat"))
    return concatenate(c, shapes, "concat_axis") if mode == "concat" else _merge(names[mode], c, shapes)


LAYERS: dict[str, Callable[[LayerConfig, list[Shape]], Built]] = {
    "Conv2D": conv2d, "Convolution2D": conv2d, "AtrousConvolution2D": conv2d, "DepthwiseConv2D": depthwise_conv2d,
    "SeparableConv2D": separable_conv2d, "SeparableConvolution2D": separable_conv2d, "Conv2DTranspose": conv2d_transpose,
    "Dense": dense, "Embedding": embedding,
    "BatchNormalization": batch_normalization, "LayerNormalization": layer_normalization,
    "Activation": activation, "ReLU": rectifier, "LeakyReLU": leaky_rectifier, "ELU": elu, "Softmax": softmax,
    "MaxPooling2D": partial(_pool, nn.MaxPool2d), "AveragePooling2D": partial(_pool, nn.AvgPool2d),
    "GlobalAveragePooling2D": partial(_global_pool, nn.GlobalAvgPool2d),
    "GlobalMaxPooling2D": partial(_global_pool, nn.GlobalMaxPool2d),
    "Flatten": flatten, "Reshape": reshape, "Permute": permute, "Rescaling": rescaling,
    "Dropout": dropout, "SpatialDropout1D": dropout, "SpatialDropout2D": dropout, "AlphaDropout": dropout,
    "GaussianDropout": dropout,
    "ZeroPadding2D": zero_padding2d, "Cropping2D": cropping2d, "UpSampling2D": upsampling2d,
    **{mode.capitalize(): partial(_merge, mode) for mode in MERGES}, "Concatenate": concatenate, "Merge": keras1_merge,
}  # fmt: skip
