"""Layers without parameters."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import ConfigError
from .. import functional as F
from ..tensor import Tensor
from .module import Module

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x, "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "elu": F.elu, "gelu": F.gelu,
    "silu": F.silu, "swish": F.silu, "hard_swish": F.hard_swish, "hard_silu": F.hard_swish, "sigmoid": F.sigmoid,
    "hard_sigmoid": F.hard_sigmoid, "tanh": F.tanh, "softplus": F.softplus, "softmax": F.softmax,
    "log_softmax": F.log_softmax, "exponential": F.exp,
}  # fmt: skip


class Activation(Module):
    """An activation by its name; `ACTIVATIONS` lists them."""

    def __init__(self, name: str):
        super().__init__()
        if name not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {name!r}; expected one of {', '.join(sorted(ACTIVATIONS))}")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name


class ReLU(Activation):
    """max(x, 0)"""

    def __init__(self):
        super().__init__("relu")


class ReLU6(Activation):
    """min(max(x, 0), 6)"""

    def __init__(self):
        super().__init__("relu6")


class Softmax(Activation):
    """Softmax over the last dimension."""

    def __init__(self):
        super().__init__("softmax")


class LeakyReLU(Module):
    """x where positive, else alpha * x."""

    def __init__(self, alpha: float = 0.01):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.alpha)


class ELU(Module):
    """x where positive, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)


class Dropout(Module):
    """Zeroes values with probability `rate` in training; see `functional.dropout`."""

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"Dropout: rate={rate}, expected at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, self.training)

    def extra_repr(self) -> str:
        return f"{self.rate}"


class MaxPool2d(Module):
    """Largest value in each window."""

    def __init__(self, window, stride=None, padding="valid"):
        super().__init__()
        self.window, self.stride, self.padding = window, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.window, self.stride, self.padding)

    def extra_repr(self) -> str:
        return f"{self.window}, stride={self.stride}, padding={self.padding!r}"


class AvgPool2d(Module):
    """Mean of each window."""

    def __init__(self, window, stride=None, padding="valid", count_padding: bool = False):
        super().__init__()
        self.window, self.stride, self.padding, self.count_padding = window, stride, padding, count_padding

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.window, self.stride, self.padding, self.count_padding)


class GlobalAvgPool2d(Module):
    """Mean over height and width."""

    def __init__(self, keepdims: bool = False):
        super().__init__()
        self.keepdims = keepdims

    def forward(self, x: Tensor) -> Tensor:
        return F.global_avg_pool2d(x, self.keepdims)


class GlobalMaxPool2d(Module):
    """Largest value over height and width."""

    def __init__(self, keepdims: bool = False):
        super().__init__()
        self.keepdims = keepdims

    def forward(self, x: Tensor) -> Tensor:
        return F.global_max_pool2d(x, self.keepdims)


class Flatten(Module):
    """All dimensions but the first as one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.flatten(x)


class ZeroPad2d(Module):
    """Zeros around images: an integer, (vertical, horizontal) or ((top, bottom), (left, right))."""

    def __init__(self, padding):
        super().__init__()
        sides = (padding, padding) if isinstance(padding, int) else tuple(padding)
        self.padding = tuple((s, s) if isinstance(s, int) else tuple(s) for s in sides)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, ((0, 0), *self.padding, (0, 0)))


class Upsample2d(Module):
    """Images enlarged by whole factors, "nearest" or "bilinear"."""

    def __init__(self, factor=2, method: str = "nearest"):
        super().__init__()
        self.factor = (factor, factor) if isinstance(factor, int) else tuple(factor)
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[1] * self.factor[0], x.shape[2] * self.factor[1])
        return F.resize(x, size, self.method)
