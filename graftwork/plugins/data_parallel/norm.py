"""Synchronised batch norm: statistics of the whole batch, forward and backward, over all ranks."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np

from ...errors import ShapeError
from ...kernels import registry
from ...nn import BatchNorm, Module, Tensor
from ...nn.autograd import mark_set, no_grad
from ...nn.op import Op
from ...nn.ops.elementwise import rsqrt
from ...nn.ops.norm import BATCH_NORM, BATCH_NORM_GRAD, BATCH_NORM_TRAIN
from ...nn.ops.update import MOVING_AVERAGE
from . import group as groups


class SyncBatchNorm(BatchNorm):
    """Batch norm over the batches of all ranks. With rank r holding the share w of the samples, and its mean m and variance v,

        mean = sum w m,    variance = sum w (v + m^2) - mean^2        (in float64)

    are what one process would compute on the whole batch. In inference, or alone, it is the layer it was made from.
    """

    def forward(self, x: Tensor) -> Tensor:
        group = groups.current()
        if not self.training or group is None or group.comm.size == 1:
            return super().forward(x)
        one, zero = self._constants
        gamma = self.gamma if self.scale else one.astype(x.dtype)
        beta = self.beta if self.center else zero.astype(x.dtype)
        with no_grad():
            _, own_mean, own_var = BATCH_NORM_TRAIN(x, gamma, beta, epsilon=float(self.epsilon))
            mean, var = SYNC_STATISTICS(own_mean, own_var, group.share(x.device))
            MOVING_AVERAGE(self.moving_mean, mean, momentum=float(self.momentum))
            MOVING_AVERAGE(self.moving_variance, var, momentum=float(self.momentum))
        return _NORMALISE(x, gamma, beta, mean, var, epsilon=float(self.epsilon))


def synchronise_batch_norm(model: Module) -> Module:
    """Turn every batch norm of a model into a SyncBatchNorm, in place; parameters and buffers stay the same objects."""
    for module in model.modules():
        if type(module) is BatchNorm:
            module.__class__ = SyncBatchNorm
    mark_set()
    return model


def _normalise_vjp(g, out, x, gamma, beta, mean, var, epsilon):
    """The rank's gradient, such that sums over ranks weighted by their shares are those of one process.

    With s1 = sum g and s2 = sum g normal(x) over this rank's values, their weighted sums S1 and S2 over ranks, and n values a
    channel here:  dx = gamma / sd (g - (S1 + normal(x) S2) / n). The kernel computes that with s1 and s2; the rest is a scale
    and a shift of x.
    """
    dx, s2, s1 = BATCH_NORM_GRAD(g, x, gamma, mean, var, epsilon=epsilon)
    group = groups.current()
    all_s1, all_s2 = SYNC_SUMS(s1, s2, group.share(x.device))
    scale = rsqrt(var + epsilon)
    factor = gamma * scale * (-1.0 / (x.size // x.shape[-1]))
    slope = factor * (all_s2 - s2) * scale
    shift = factor * (all_s1 - s1) - slope * mean
    return dx + (x * slope + shift), s2, s1, None, None


# The same op (name, kernels, fusions) with another gradient; the table of ops keeps the original.
_NORMALISE = copy.copy(BATCH_NORM)
_NORMALISE.vjp, _NORMALISE.table = _normalise_vjp, {}


def _infer(a, b, share):
    if a.shape != b.shape:
        raise ShapeError(f"synchronised batch norm: shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (channels,) twice")
    return [(a.shape, a.dtype), (b.shape, b.dtype)]


def _sum(parts: Any, what: str) -> Any:
    group = groups.current()
    assert group is not None  # a synchronised batch norm runs within one
    received, start = np.empty_like(parts), time.perf_counter()
    group.comm.wait(group.comm.start_sum(parts, received), what)
    group.timeline.add(what, "statistics", start, time.perf_counter())
    return received


def _host(*arrays: Any) -> list[np.ndarray]:
    return [np.asarray(a.get() if hasattr(a, "get") else a, np.float64) for a in arrays]


def _put(out: Any, value: np.ndarray) -> None:
    if isinstance(out, np.ndarray):
        out[...] = value
    else:
        out.set(value.astype(out.dtype))


def _statistics_kernel(mean, var, share, *, out):
    m, v, w = _host(mean, var, share)
    first, second = _sum(w * np.stack([m, v + m * m]), "batch statistics")
    _put(out[0], first)
    _put(out[1], np.maximum(second - first * first, 0.0))


def _sums_kernel(s1, s2, share, *, out):
    a, b, w = _host(s1, s2, share)
    for target, value in zip(out, _sum(w * np.stack([a, b]), "gradients of batch statistics"), strict=True):
        _put(target, value)


SYNC_STATISTICS = Op("sync_statistics", infer=_infer, multi=True)
SYNC_SUMS = Op("sync_sums", infer=_infer, multi=True)
for _device in ("cpu", "cuda"):
    registry.register("sync_statistics", _device, "collective", _statistics_kernel)
    registry.register("sync_sums", _device, "collective", _sums_kernel)
