"""Layers of which every rank holds a part, and the loss that goes with a split last layer.

A column layer holds some of the output channels, a row layer some of the input channels. A column layer whose output stays
split, elementwise layers, and a row layer that takes it split need one sum forward and one backward (Shoeybi et al. 2019).
"""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError
from ...nn import Conv2d, Linear, Module, Parameter, Tensor, tensor
from ...nn import functional as F
from ...nn.autograd import no_grad
from . import ops
from .mesh import Mesh


def _part(name: str, array: np.ndarray, axis: int, mesh: Mesh) -> np.ndarray:
    """This rank's share of an array along an axis."""
    count = mesh.sizes["tensor"]
    if array.shape[axis] % count:
        side = "output" if axis == array.ndim - 1 else "input"
        raise ConfigError(
            f"{name}: {array.shape[axis]} {side} channels cannot be split evenly over tensor={count} ranks; leave this layer "
            "out of the rule, or choose a number of ranks that divides them"
        )
    return np.split(array, count, axis)[mesh.part].copy()


class _Split(Module):
    """What column and row layers share. axes: parameter -> axis of the whole along which it is split, None if it is not."""

    axes: dict[str, int | None]

    def __init__(self, layer: Module, mesh: Mesh, name: str):
        super().__init__()
        require_splittable(layer, name)
        self.group, self.sizes = mesh.tensor_name, tuple(layer.weight.shape)
        self.geometry = (layer.stride, layer.padding, layer.dilation) if isinstance(layer, Conv2d) else None
        for key, axis in self.axes.items():
            whole = getattr(layer, key)
            if whole is None:
                object.__setattr__(self, key, None)
                continue
            part = Parameter(whole.numpy() if axis is None else _part(name, whole.numpy(), axis % whole.ndim, mesh))
            part.requires_grad = whole.requires_grad
            setattr(self, key, part)

    def _apply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.geometry is None:
            return F.linear(x, self.weight, bias)
        return F.conv2d(x, self.weight, bias, *self.geometry)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.weight.shape))} of {'x'.join(map(str, self.sizes))}"


class ColumnLinear(_Split):
    """Some of the output channels of a Linear or Conv2d. gather: join the outputs of all ranks; else (..., out / ranks)."""

    axes = {"weight": -1, "bias": -1}

    def __init__(self, layer: Module, mesh: Mesh, gather: bool = True, name: str = "ColumnLinear"):
        super().__init__(layer, mesh, name)
        self.gather = gather

    def forward(self, x: Tensor) -> Tensor:
        y = self._apply(ops.spread(x, self.group), self.bias)
        return ops.gather_parts(y, self.group) if self.gather else y


class RowLinear(_Split):
    """Some of the input channels of a Linear or Conv2d; outputs are added up. split: the input comes as (..., in / ranks)."""

    axes = {"weight": -2, "bias": None}

    def __init__(self, layer: Module, mesh: Mesh, split: bool = False, name: str = "RowLinear"):
        super().__init__(layer, mesh, name)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        y = ops.add_up(self._apply(x if self.split else ops.own_part(x, self.group), None), self.group)
        return y if self.bias is None else y + self.bias


class ColumnConv2d(ColumnLinear):
    """The same of a Conv2d: filters are split."""


class RowConv2d(RowLinear):
    """The same of a Conv2d: the channels that each filter sees are split."""


def require_splittable(layer: Module, name: str) -> None:
    """ConfigError for a layer that has no split form."""
    if type(layer) not in (Linear, Conv2d):
        raise ConfigError(
            f"{name}: a {type(layer).__name__} cannot be split over ranks; expected a Linear or a Conv2d. Leave it out of the "
            "rule: every rank then holds all of it"
        )
    if isinstance(layer, Conv2d) and layer.groups > 1:
        raise ConfigError(f"{name}: a Conv2d with groups={layer.groups} cannot be split over ranks; leave it out of the rule")


def split_cross_entropy(logits: Tensor, labels: Tensor, mesh: Mesh, label_smoothing: float = 0.0,
                        reduction: str = "mean") -> Tensor:  # fmt: skip
    """`functional.cross_entropy` of logits that are split by class: the whole row is never in one place.

    logits: (batch, classes / ranks) before softmax, this rank's classes. labels: (batch,) integers among all classes, equal on
    all ranks. Three numbers a row cross the network: the largest logit, the sum of exponentials, the label's logit.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(f"split_cross_entropy: label_smoothing={label_smoothing}, expected at least 0 and below 1")
    group, own = mesh.tensor_name, logits.shape[-1]
    with no_grad():
        top = ops.LARGEST(F.max(logits.detach(), axis=-1, keepdims=True), group=group)
    shifted = logits - top
    log_total = F.log(ops.add_up(F.sum(F.exp(shifted), axis=-1), group))
    classes = tensor(np.arange(own, dtype=labels.dtype) + np.asarray(mesh.part * own, labels.dtype))
    mine = (F.expand_dims(labels, 1) == classes).astype(logits.dtype)  # zeros where the label is another rank's
    target = ops.add_up(F.sum(shifted * mine, axis=-1), group)
    losses = log_total - target
    if label_smoothing:
        average = ops.add_up(F.sum(shifted, axis=-1), group) / (own * mesh.sizes["tensor"])
        losses = losses * (1.0 - label_smoothing) + (log_total - average) * label_smoothing
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f"split_cross_entropy: reduction={reduction!r}; expected 'mean', 'sum' or 'none'")
    return losses if reduction == "none" else F.mean(losses) if reduction == "mean" else F.sum(losses)
