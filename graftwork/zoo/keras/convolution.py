"""Convolutions of one, two and three dimensions: plain, grouped, dilated, depthwise, separable, transposed.

One-dimensional ones are rows of height 1 for the two-dimensional kernels; three-dimensional ones are sums of two-dimensional
ones over the depth of the window.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ... import nn
from ...nn import Module, Parameter, Tensor, init
from ...nn import functional as F
from .activations import activation_of
from .config import Built, LayerConfig, Shape, bias, one, padding, slide, spatial, variables
from .table import layer


class Row(Module):
    """A two-dimensional layer over (batch, steps, channels), as images of height 1.

    Its tensors keep Keras's shapes, without the height; `image(x, *tensors)` gets them with it.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], image: Any):
        super().__init__()
        self.names = tuple(shapes)
        self.image = image
        for name, shape in shapes.items():
            value = init.he_normal((1, *shape))[0] if len(shape) > 1 else np.zeros(shape, np.float32)
            setattr(self, name, Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        tensors = {n: self._parameters[n] for n in self.names}
        y = self.image(F.expand_dims(x, 1), {n: F.expand_dims(t, 0) if t.ndim > 1 else t for n, t in tensors.items()})
        return F.squeeze(y, 1)


def _window(c: LayerConfig, rank: int) -> tuple[int, ...]:
    if rank == 2 and "nb_row" in c.values:
        return c.integer("nb_row"), c.integer("nb_col")
    return c.integers("kernel_size", rank)


def _convolution(c: LayerConfig, shapes: list[Shape], rank: int = 2) -> tuple[int, tuple[int, ...], dict[str, Any], Shape]:
    """What the convolutions have in common: input channels, window, the rest of the geometry, output without channels."""
    sizes, channels = spatial(c, shapes, rank)
    window, stride, dilation = _window(c, rank), c.integers("strides", rank, 1), c.integers("dilation_rate", rank, 1)
    kind = c.choice("padding", "valid", ("valid", "same", "causal")) if rank == 1 else padding(c)
    size = tuple(slide(c, n, k, s, kind, d) for n, k, s, d in zip(sizes, window, stride, dilation, strict=True))
    return channels, window, {"stride": stride, "padding": kind, "dilation": dilation}, (shapes[0][0], *size)


def _flat(geometry: dict[str, Any], window: tuple[int, ...]) -> dict[str, Any]:
    """The geometry of rows as one of images; "causal" pads at the start only."""
    span = (window[0] - 1) * geometry["dilation"][0]
    kind = geometry["padding"]
    sides: Any = ((0, 0), (span, 0)) if kind == "causal" else kind
    return {"stride": (1, *geometry["stride"]), "padding": sides, "dilation": (1, *geometry["dilation"])}


def _check_groups(c: LayerConfig, channels: int, filters: int) -> int:
    groups = c.integer("groups", 1)
    if channels % groups or filters % groups:
        raise c.error(f"groups={groups} do not divide {channels} input and {filters} output channels")
    return groups


@layer("Conv2D", "Convolution2D", "AtrousConvolution2D")
def conv2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes)
    filters = c.integer("filters")
    groups, own = _check_groups(c, channels, filters), bias(c, filters)
    weights = variables(("kernel", (*window, channels // groups, filters)), *own)
    make = partial(nn.Conv2d, channels, filters, window, groups=groups, bias=bool(own), **geometry)
    return one(make, (*size, filters), weights, activation=activation_of(c))


@layer("Conv1D", "Convolution1D", "AtrousConvolution1D")
def conv1d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes, 1)
    filters = c.integer("filters")
    groups, own = _check_groups(c, channels, filters), bias(c, filters)
    tensors: dict[str, Any] = {"kernel": (*window, channels // groups, filters), **dict(own)}
    flat = _flat(geometry, window)

    def image(x: Tensor, w: dict[str, Tensor]) -> Tensor:
        return F.conv2d(x, w["kernel"], w.get("bias"), groups=groups, **flat)

    return one(lambda: Row(tensors, image), (*size, filters), _row_weights(c, tensors), activation=activation_of(c, 3))


def _row_weights(c: LayerConfig, tensors: dict[str, tuple[int, ...]]) -> Any:
    """Keras 1 kept a height of 1 in one-dimensional kernels, as (steps, 1, in, out)."""
    old = c.keras < 2 and c.kind in ("Convolution1D", "AtrousConvolution1D")
    shapes = {n: (s[0], 1, *s[1:]) if old and len(s) == 3 else s for n, s in tensors.items()}
    return variables(*shapes.items())


@layer("DepthwiseConv2D")
def depthwise_conv2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes)
    multiplier = c.integer("depth_multiplier", 1)
    own = bias(c, channels * multiplier)
    weights = variables(("depthwise_kernel", (*window, channels, multiplier)), *own)
    make = partial(nn.DepthwiseConv2d, channels, window, multiplier=multiplier, bias=bool(own), **geometry)
    return one(make, (*size, channels * multiplier), weights, activation=activation_of(c))


@layer("DepthwiseConv1D")
def depthwise_conv1d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes, 1)
    multiplier = c.integer("depth_multiplier", 1)
    tensors: dict[str, Any] = {"depthwise_kernel": (*window, channels, multiplier), **dict(bias(c, channels * multiplier))}
    flat = _flat(geometry, window)

    def image(x: Tensor, w: dict[str, Tensor]) -> Tensor:
        kernel = w["depthwise_kernel"].reshape((1, *window, 1, channels * multiplier))
        return F.conv2d(x, kernel, w.get("bias"), groups=channels, **flat)

    weights = variables(*tensors.items())
    return one(lambda: Row(tensors, image), (*size, channels * multiplier), weights, activation=activation_of(c, 3))


@layer("SeparableConv2D", "SeparableConvolution2D")
def separable_conv2d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes)
    filters, multiplier = c.integer("filters"), c.integer("depth_multiplier", 1)
    own = bias(c, filters)
    weights = variables(
        ("depthwise_kernel", (*window, channels, multiplier)), ("pointwise_kernel", (1, 1, channels * multiplier, filters)),
        *own,
    )  # fmt: skip
    make = partial(nn.SeparableConv2d, channels, filters, window, multiplier=multiplier, bias=bool(own), **geometry)
    return one(make, (*size, filters), weights, activation=activation_of(c))


@layer("SeparableConv1D", "SeparableConvolution1D")
def separable_conv1d(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _convolution(c, shapes, 1)
    filters, multiplier = c.integer("filters"), c.integer("depth_multiplier", 1)
    wide = channels * multiplier
    tensors: dict[str, Any] = {
        "depthwise_kernel": (*window, channels, multiplier), "pointwise_kernel": (1, wide, filters), **dict(bias(c, filters))
    }  # fmt: skip
    flat = _flat(geometry, window)

    def image(x: Tensor, w: dict[str, Tensor]) -> Tensor:
        kernel = w["depthwise_kernel"].reshape((1, *window, 1, wide))
        return F.conv2d(F.conv2d(x, kernel, groups=channels, **flat), w["pointwise_kernel"], w.get("bias"))

    return one(lambda: Row(tensors, image), (*size, filters), variables(*tensors.items()), activation=activation_of(c, 3))


# -- transposed --------------------------------------------------------------------------------------------------------


def _transposition(c: LayerConfig, shapes: list[Shape], rank: int) -> tuple[int, tuple[int, ...], dict[str, Any], Shape]:
    """Keras's output sizes: "same" n * stride, "valid" at least (n - 1) * stride + window, or as output_padding says."""
    sizes, channels = spatial(c, shapes, rank)
    window, stride = c.integers("kernel_size", rank), c.integers("strides", rank, 1)
    dilation = c.integers("dilation_rate", rank, 1)
    extra = (None,) * rank if c.get("output_padding", None) is None else c.integers("output_padding", rank, least=0)
    kind = padding(c)
    sides, added, size = [], [], []
    for n, k, s, d, e in zip(sizes, window, stride, dilation, extra, strict=True):
        if e is not None and e >= s:
            raise c.error(f"output_padding={e} must be smaller than the stride {s}")
        before, after, more = _transposed(k + (k - 1) * (d - 1), s, kind, e)
        sides.append((before, after))
        added.append(more)
        size.append(None if n is None else (n - 1) * s + (k - 1) * d + 1 - before - after + more)
        if size[-1] is not None and size[-1] < 1:
            raise c.error(f"padding leaves nothing of an input of size {n}")
    geometry = {"stride": stride, "padding": tuple(sides), "dilation": dilation, "output_padding": tuple(added)}
    return channels, window, geometry, (shapes[0][0], *size)


def _transposed(span: int, stride: int, kind: str, extra: int | None) -> tuple[int, int, int]:
    """(taken off before, taken off after, added at the end) along one dimension of a transposed convolution."""
    if extra is None:
        surplus = span - stride if kind == "same" else min(span - stride, 0)
    else:
        surplus = (span // 2 * 2 if kind == "same" else 0) - extra
    taken = max(surplus, 0)
    return taken // 2, taken - taken // 2, max(-surplus, 0)


@layer("Conv2DTranspose", "Deconvolution2D")
def conv2d_transpose(c: LayerConfig, shapes: list[Shape]) -> Built:
    if c.kind == "Deconvolution2D":
        raise c.error("Keras 1's Deconvolution2D is not supported; load and save the model in Keras 2 first")
    channels, window, geometry, size = _transposition(c, shapes, 2)
    filters = c.integer("filters")
    own = bias(c, filters)
    weights = variables(("kernel", (*window, filters, channels)), *own)
    make = partial(nn.ConvTranspose2d, channels, filters, window, bias=bool(own), **geometry)
    return one(make, (*size, filters), weights, activation=activation_of(c))


@layer("Conv1DTranspose")
def conv1d_transpose(c: LayerConfig, shapes: list[Shape]) -> Built:
    channels, window, geometry, size = _transposition(c, shapes, 1)
    filters = c.integer("filters")
    tensors: dict[str, Any] = {"kernel": (*window, filters, channels), **dict(bias(c, filters))}
    flat: dict[str, Any] = {
        "stride": (1, *geometry["stride"]), "padding": ((0, 0), *geometry["padding"]), "dilation": (1, *geometry["dilation"]),
        "output_padding": (0, *geometry["output_padding"]),
    }  # fmt: skip

    def image(x: Tensor, w: dict[str, Tensor]) -> Tensor:
        return F.conv2d_transpose(x, w["kernel"], w.get("bias"), **flat)

    return one(lambda: Row(tensors, image), (*size, filters), variables(*tensors.items()), activation=activation_of(c, 3))


# -- three dimensions --------------------------------------------------------------------------------------------------


class Conv3d(Module):
    """A convolution over (batch, depth, height, width, channels): one of two dimensions for each slice of the window."""

    def __init__(self, kernel: tuple[int, ...], use_bias: bool, geometry: dict[str, Any], groups: int):
        super().__init__()
        self.geometry, self.groups = geometry, groups
        self.kernel = Parameter(init.he_normal(kernel))
        if use_bias:
            self.bias = Parameter(np.zeros(kernel[-1:], np.float32))

    def forward(self, x: Tensor) -> Tensor:
        batch, depth, height, width, channels = x.shape
        taps, stride, dilation = self.kernel.shape[0], self.geometry["stride"], self.geometry["dilation"]
        span = (taps - 1) * dilation[0] + 1
        count = (depth - span) // stride[0] + 1
        if self.geometry["padding"] == "same":
            count = -(-depth // stride[0])
            short = max((count - 1) * stride[0] + span - depth, 0)
            x = F.pad(x, ((0, 0), (short // 2, short - short // 2), (0, 0), (0, 0), (0, 0)))
        flat = {"stride": stride[1:], "padding": self.geometry["padding"], "dilation": dilation[1:], "groups": self.groups}
        total = None
        for tap in range(taps):
            first = tap * dilation[0]
            part = x[:, first : first + (count - 1) * stride[0] + 1 : stride[0]]
            y = F.conv2d(part.reshape((batch * count, height, width, channels)), self.kernel[tap], **flat)
            total = y if total is None else total + y
        assert total is not None  # a window has at least one slice
        total = total + self.bias if "bias" in self._parameters else total
        return total.reshape((batch, count, *total.shape[1:]))


@layer("Conv3D", "Convolution3D")
def conv3d(c: LayerConfig, shapes: list[Shape]) -> Built:
    if "kernel_dim1" in c.values:
        raise c.error("Keras 1's three-dimensional convolution is not supported; load and save the model in Keras 2 first")
    channels, window, geometry, size = _convolution(c, shapes, 3)
    filters = c.integer("filters")
    groups, own = _check_groups(c, channels, filters), bias(c, filters)
    kernel = (*window, channels // groups, filters)
    weights = variables(("kernel", kernel), *own)
    make = partial(Conv3d, kernel, bool(own), geometry, groups)
    return one(make, (*size, filters), weights, activation=activation_of(c, 5))


