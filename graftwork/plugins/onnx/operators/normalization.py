"""Normalisation over batches, channels, groups and positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, Value, fixed, operator


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mean = F.mean(x, axes, True)
    return mean, F.mean(F.square(x - mean), axes, True)


@operator("BatchNormalization")
def batch_normalization(c: Call) -> Any:
    epsilon, training = c.attr("epsilon", 1e-5), c.attr("training_mode", 0)
    momentum = c.attr("momentum", 0.9)
    c.attr("spatial", 1)
    x = c.image()
    gamma, beta, mean, var = (c.x(i).astype(x.dtype) for i in range(1, 5))
    if not training:
        return Value(image=F.batch_norm(x, gamma, beta, mean, var, epsilon=epsilon))
    axes = tuple(range(x.ndim - 1))
    own = F.mean(x, axes)
    own_var = F.mean(F.square(x - own), axes)
    y = F.batch_norm(x, gamma, beta, own, own_var, epsilon=epsilon)
    moved = [old * momentum + new * (1 - momentum) for old, new in ((mean, own), (var, own_var))]
    return (Value(image=y), *moved)


@operator("InstanceNormalization")
def instance_normalization(c: Call) -> Value:
    x = c.image()
    mean, var = _moments(x, tuple(range(1, x.ndim - 1)))
    return Value(image=(x - mean) * F.rsqrt(var + c.attr("epsilon", 1e-5)) * c.x(1) + c.x(2))


@operator("GroupNormalization")
def group_normalization(c: Call) -> Value:
    x = c.image()
    groups, channels = c.required("num_groups"), x.shape[-1]
    c.attr("stash_type", 1)
    y = F.reshape(x, (x.shape[0], -1, groups, channels // groups))
    mean, var = _moments(y, (1, 3))
    y = F.reshape((y - mean) * F.rsqrt(var + c.attr("epsilon", 1e-5)), x.shape)
    scale, shift = (c.x(i) for i in (1, 2))
    if c.opset < 21:  # a number a group
        each = (groups, channels // groups)
        scale, shift = (F.reshape(F.broadcast_to(F.expand_dims(v, 1), each), (-1,)) for v in (scale, shift))
    return Value(image=y * scale + shift)


@operator("LayerNormalization")
def layer_normalization(c: Call) -> tuple:
    x, scale, bias = c.x(), c.x(1), c.optional(2)
    axis, epsilon = c.axis(x.ndim, -1), c.attr("epsilon", 1e-5)
    _require_float_stash(c)
    if axis == x.ndim - 1 and bias is not None and len(c.node.outputs) == 1 and scale.shape == bias.shape == x.shape[-1:]:
        return (F.layer_norm(x, scale, bias, epsilon),)
    mean, var = _moments(x, tuple(range(axis, x.ndim)))
    deviation = F.rsqrt(var + epsilon)
    y = (x - mean) * deviation * scale
    return y if bias is None else y + bias, mean, deviation


@operator("RMSNormalization")
def rms_normalization(c: Call) -> Tensor:
    x = c.x()
    axes = tuple(range(c.axis(x.ndim, -1), x.ndim))
    _require_float_stash(c)
    return x * F.rsqrt(F.mean(F.square(x), axes, True) + c.attr("epsilon", 1e-5)) * c.x(1)


def _require_float_stash(c: Call) -> None:
    if c.attr("stash_type", 1) not in (1, 11):
        raise c.error("stash_type must be float32 or float64")


@operator("MeanVarianceNormalization")
def mean_variance_normalization(c: Call) -> Tensor:
    x = c.x()
    axes = tuple(a % x.ndim for a in c.attr("axes", (0, 2, 3)))
    mean = F.mean(x, axes, True)
    return (x - mean) / (F.sqrt(F.mean(F.square(x), axes, True) - F.square(mean)) + 1e-9)


@operator("LpNormalization")
def lp_normalization(c: Call) -> Tensor:
    x = c.x()
    axis, p = c.axis(x.ndim, -1), c.attr("p", 2)
    total = F.sum(F.abs(x), axis, True) if p == 1 else F.sqrt(F.sum(F.square(x), axis, True))
    return F.where(F.equal(total, fixed(x, 0)), fixed(x, 0), x / F.where(F.equal(total, fixed(x, 0)), fixed(x, 1), total))


@operator("LRN")
def lrn(c: Call) -> Value:
    """Local response normalisation across channels: a running window, as a product with a banded matrix."""
    x = c.image()
    size, alpha, beta = c.required("size"), c.attr("alpha", 1e-4), c.attr("beta", 0.75)
    at = np.arange(x.shape[-1])
    apart = at[:, None] - at
    band = (apart >= -math.floor((size - 1) / 2)) & (apart <= math.ceil((size - 1) / 2))
    total = F.matmul(F.reshape(F.square(x), (-1, x.shape[-1])), fixed(x, band))
    scale = F.reshape(total, x.shape) * (alpha / size) + c.attr("bias", 1.0)
    return Value(image=x * F.power(scale, fixed(x, -beta)))
