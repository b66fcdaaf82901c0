"""Layers with parameters. Weights are NHWC/HWIO, as Keras stores them; own tensors stand in Keras's order."""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError
from .. import functional as F
from .. import init
from ..ops.common import pair
from ..tensor import Tensor
from .module import Module, Parameter


def _zeros(n: int) -> Parameter:
    return Parameter(np.zeros(n, np.float32))


def _ones(n: int) -> Parameter:
    return Parameter(np.ones(n, np.float32))


class Conv2d(Module):
    """Two-dimensional convolution; see `functional.conv2d`. weight: (height, width, in / groups, out)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=1, padding="valid", dilation=1,
                 groups: int = 1, bias: bool = True):  # fmt: skip
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ConfigError(f"Conv2d: groups={groups} must divide {in_channels} input and {out_channels} output channels")
        window = pair("Conv2d", "kernel_size", kernel_size)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = Parameter(init.he_normal((*window, in_channels // groups, out_channels)))
        self.bias = _zeros(out_channels) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        kh, kw, cin, cout = self.weight.shape
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{cin * self.groups} -> {cout}, {kh}x{kw}, stride={self.stride}, padding={self.padding!r}{groups}"


class DepthwiseConv2d(Conv2d):
    """One convolution a channel; `multiplier` outputs each. weight: (height, width, 1, channels * multiplier)."""

    def __init__(self, channels: int, kernel_size, stride=1, padding="valid", dilation=1, multiplier: int = 1,
                 bias: bool = True):  # fmt: skip
        super().__init__(channels, channels * multiplier, kernel_size, stride, padding, dilation, channels, bias)
        self.multiplier = multiplier


class SeparableConv2d(Module):
    """A depthwise convolution, then a 1x1 one (with the bias). Own tensors in Keras's order."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=1, padding="valid", dilation=1,
                 multiplier: int = 1, bias: bool = True):  # fmt: skip
        super().__init__()
        window = pair("SeparableConv2d", "kernel_size", kernel_size)
        self.stride, self.padding, self.dilation, self.channels = stride, padding, dilation, in_channels
        self.depthwise_weight = Parameter(init.he_normal((*window, 1, in_channels * multiplier)))
        self.weight = Parameter(init.he_normal((1, 1, in_channels * multiplier, out_channels)))
        self.bias = _zeros(out_channels) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.depthwise_weight, None, self.stride, self.padding, self.dilation, self.channels)
        return F.conv2d(x, self.weight, self.bias)


class ConvTranspose2d(Module):
    """Transposed convolution; see `functional.conv2d_transpose`. weight: (height, width, out / groups, in)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=1, padding="valid", dilation=1,
                 groups: int = 1, bias: bool = True, output_padding=0):  # fmt: skip
        super().__init__()
        window = pair("ConvTranspose2d", "kernel_size", kernel_size)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.output_padding = output_padding
        self.weight = Parameter(init.he_normal((*window, out_channels // groups, in_channels)))
        self.bias = _zeros(out_channels) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d_transpose(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.output_padding
        )


class Linear(Module):
    """x @ weight + bias. weight: (in, out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = Parameter(init.glorot_uniform((in_features, out_features)))
        self.bias = _zeros(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} -> {self.weight.shape[1]}"


class Embedding(Module):
    """A row of `weight` (entries, width) for each integer."""

    def __init__(self, entries: int, width: int):
        super().__init__()
        self.weight = Parameter(init.uniform((entries, width), 0.05))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(self.weight, index)


class BatchNorm(Module):
    """Batch normalisation over all but the last dimension; Keras's defaults and its meaning of momentum.

    gamma, beta: parameters, absent with scale=False or center=False. moving_mean, moving_variance: buffers.
    """

    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(self, channels: int, momentum: float = 0.99, epsilon: float = 1e-3, scale: bool = True,
                 center: bool = True):  # fmt: skip
        super().__init__()
        self.momentum, self.epsilon, self.scale, self.center = momentum, epsilon, scale, center
        if scale:
            self.gamma = _ones(channels)
        if center:
            self.beta = _zeros(channels)
        self._constants = Tensor(np.ones(channels, np.float32)), Tensor(np.zeros(channels, np.float32))
        self.register_buffer("moving_mean", Tensor(np.zeros(channels, np.float32)))
        self.register_buffer("moving_variance", Tensor(np.ones(channels, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        one, zero = self._constants
        gamma = self.gamma if self.scale else one.astype(x.dtype)
        beta = self.beta if self.center else zero.astype(x.dtype)
        mean, var = self.moving_mean, self.moving_variance
        return F.batch_norm(x, gamma, beta, mean, var, self.training, self.momentum, self.epsilon)

    def extra_repr(self) -> str:
        return f"{self.moving_mean.shape[0]}, momentum={self.momentum}, epsilon={self.epsilon}"


class LayerNorm(Module):
    """Normalise each position over its channels. gamma, beta: (channels,)."""

    def __init__(self, channels: int, epsilon: float = 1e-3):
        super().__init__()
        self.epsilon = epsilon
        self.gamma, self.beta = _ones(channels), _zeros(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gamma, self.beta, self.epsilon)
