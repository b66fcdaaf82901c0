"""Normalisation layers: batch, layer, group, RMS, unit."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ... import nn
from ...nn import Module, Parameter, Tensor
from ...nn import functional as F
from ..convnext import LayerScale
from .activations import pointwise
from .config import Built, LayerConfig, Shape, known, one, one_input, same_mask, variables
from .table import layer


def _last_axis(c: LayerConfig, shape: Shape) -> int:
    """Number of channels, once it is sure that the layer normalises over the last axis."""
    axes = c.axes("axis", -1, len(shape))
    if axes != [len(shape) - 1]:
        raise c.error(f"axis {axes} of shape {shape} is not the last; channels-first models must be converted first")
    return known(c, shape[-1], "number of channels")


def _learned(c: LayerConfig) -> list[str]:
    return [*(["gamma"] if c.flag("scale", True) else []), *(["beta"] if c.flag("center", True) else [])]


@layer("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization")
def batch_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    channels = _last_axis(c, shape)
    if c.get("mode", 0) != 0 or c.get("renorm", False):
        raise c.error("only plain batch normalisation is supported (Keras 1's mode 0, no renorm)")
    running = ("moving_mean", "moving_variance")
    names = [*_learned(c), *running]
    make = partial(
        nn.BatchNorm, channels, c.number("momentum", 0.99), c.number("epsilon", 1e-3), "gamma" in names, "beta" in names
    )
    return one(make, shape, variables(*[(n, (channels,)) for n in names], frozen=running), masks=same_mask)


class Normalised(Module):
    """(x - mean) / sqrt(variance + epsilon) over `axes`, then gamma and beta, which broadcast as `shape` against x.

    split: (axis, groups) divides that axis into groups first. rms: neither centred nor shifted, x / sqrt(mean(x^2) + epsilon).
    """

    def __init__(self, axes: tuple[int, ...], epsilon: float, sizes: tuple[int, ...], shape: tuple[int, ...],
                 learned: tuple[str, ...], split: tuple[int, int] | None = None, rms: bool = False):  # fmt: skip
        super().__init__()
        self.axes, self.epsilon, self.shape, self.split, self.rms = axes, epsilon, shape, split, rms
        for name in learned:
            setattr(self, name, Parameter((np.zeros if name == "beta" else np.ones)(sizes, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        whole = x.shape
        if self.split is not None:
            axis, groups = self.split
            x = x.reshape((*whole[:axis], groups, whole[axis] // groups, *whole[axis + 1 :]))
        if not self.rms:
            x = x - F.mean(x, self.axes, keepdims=True)
        y = (x * F.rsqrt(F.mean(x * x, self.axes, keepdims=True) + self.epsilon)).reshape(whole)
        for name in ("gamma", "scale"):
            if name in self._parameters:
                y = y * self._parameters[name].reshape(self.shape)
        return y + self.beta.reshape(self.shape) if "beta" in self._parameters else y


@layer("LayerNormalization")
def layer_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    if c.get("rms_scaling", False):
        raise c.error("rms_scaling is not supported; Keras replaced it by RMSNormalization")
    axes, epsilon, names = tuple(c.axes("axis", -1, len(shape))), c.number("epsilon", 1e-3), _learned(c)
    sizes = tuple(known(c, shape[a], "sizes that are normalised") for a in axes)
    weights = variables(*[(n, sizes) for n in names])
    if axes == (len(shape) - 1,) and len(names) == 2:
        return one(partial(nn.LayerNorm, sizes[0], epsilon), shape, weights, masks=same_mask)
    return one(_normalised(axes, epsilon, sizes, shape, names), shape, weights, masks=same_mask)


def _normalised(axes: tuple[int, ...], epsilon: float, sizes: tuple[int, ...], shape: Shape, names: list[str],
                **more: Any) -> Any:  # fmt: skip
    broadcast = tuple(sizes[axes.index(i)] if i in axes else 1 for i in range(len(shape)))
    return partial(Normalised, axes, epsilon, sizes, broadcast, tuple(names), **more)


@layer("RMSNormalization")
def rms_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    axes = tuple(c.axes("axis", -1, len(shape)))
    sizes = tuple(known(c, shape[a], "sizes that are normalised") for a in axes)
    make = _normalised(axes, c.number("epsilon", 1e-6), sizes, shape, ["scale"], rms=True)
    return one(make, shape, variables(("scale", sizes)))


@layer("GroupNormalization", "GroupNorm")
def group_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    axis = c.axes("axis", -1, len(shape))[0]
    channels = known(c, shape[axis], "number of channels")
    groups = c.get("groups", 32)
    groups = channels if groups == -1 else c.integer("groups", 32)
    if axis == 0 or channels % groups:
        raise c.error(f"groups={groups} do not divide the {channels} entries of axis {axis}")
    names, sizes = _learned(c), (channels,)
    split = tuple(i for i in range(1, len(shape) + 1) if i != axis)  # all but the batch and the groups
    broadcast = tuple(channels if i == axis else 1 for i in range(len(shape)))
    make = partial(Normalised, split, c.number("epsilon", 1e-3), sizes, broadcast, tuple(names), split=(axis, groups))
    return one(make, shape, variables(*[(n, sizes) for n in names]), masks=same_mask)


@layer("UnitNormalization")
def unit_normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    """x / its length along `axis`; a length of zero counts as 1e-12."""
    shape = one_input(c, shapes)
    axes = tuple(c.axes("axis", -1, len(shape)))

    def forward(x: Tensor) -> Tensor:
        return x * F.rsqrt(F.maximum(F.sum(x * x, axes, keepdims=True), nn.tensor(np.asarray(1e-24, x.dtype), device=x.device)))

    return pointwise(forward, f"unit length over {axes}", shape)


@layer("LayerScale")
def layer_scale(c: LayerConfig, shapes: list[Shape]) -> Built:
    """A factor for each channel, as in the ConvNeXt of keras.applications."""
    shape = one_input(c, shapes)
    channels = c.integer("projection_dim")
    if shape[-1] not in (None, channels):
        raise c.error(f"projection_dim={channels}, but the input has {shape[-1]} channels")
    return one(lambda: LayerScale(channels), shape, variables(("variable", (channels,))), masks=same_mask)


@layer("StochasticDepth")
def stochastic_depth(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Drops whole branches in training; the identity in inference, which is what is built."""
    return pointwise(lambda x: x, "identity", one_input(c, shapes))
