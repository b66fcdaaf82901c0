"""Softmax, its logarithm, and cross-entropy."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ConfigError, ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import normal, normal_axis, require_floats, require_integers, require_range, require_same_dtype, require_shape
from .elementwise import exp, multiply
from .index import one_hot
from .reduce import mean as reduce_mean
from .reduce import sum as reduce_sum
from .shape import expand_dims, reshape


def _infer(name):
    def infer(x, axis):
        require_floats(name, x)
        if x.shape[axis] == 0:
            raise ShapeError(f"{name}: no values along axis {axis} of shape {tuple(x.shape)}")
        return x.shape, x.dtype

    return infer


def _grad_infer(g, y, axis):
    require_same_dtype("softmax_grad", g, y)
    require_shape("softmax_grad", "the gradient", g, y.shape)
    return y.shape, y.dtype


def _samples(rng):
    for shape, axis in (((3, 5), 1), ((3, 5), 0), ((2, 3, 4), 1), ((0, 3), 1)):
        yield Sample((normal(rng, *shape),), {"axis": axis})


def _grad_samples(rng):
    for s in _samples(rng):
        yield Sample((normal(rng, *s.arrays[0].shape), normal(rng, *s.arrays[0].shape)), s.attrs)


def _cost(x, *rest, axis):
    return 5 * math.prod(x.shape)


def _softmax_grad_vjp(gg, out, g, y, axis):
    """y * (g - sum(g y)), differentiated in both."""
    total = reduce_sum(g * y, axis, keepdims=True)
    cross = reduce_sum(gg * y, axis, keepdims=True)
    return lambda: SOFTMAX_GRAD(gg, y, axis=axis), lambda: gg * (g - total) - cross * g


def _log_softmax_grad_vjp(gg, out, g, y, axis):
    """g - exp(y) * sum(g), differentiated in both."""
    p = exp(y)
    cross = reduce_sum(gg * p, axis, keepdims=True)
    return lambda: gg - cross, lambda: multiply(gg * p, -reduce_sum(g, axis, keepdims=True))


SOFTMAX = Op("softmax", infer=_infer("softmax"), keeps_inputs=False, keeps_output=True, cost=_cost, samples=_samples,
             vjp=lambda g, y, x, axis: (SOFTMAX_GRAD(g, y, axis=axis),))  # fmt: skip
SOFTMAX_GRAD = Op("softmax_grad", infer=_grad_infer, vjp=_softmax_grad_vjp, cost=_cost, samples=_grad_samples)
LOG_SOFTMAX = Op("log_softmax", infer=_infer("log_softmax"), keeps_inputs=False, keeps_output=True, cost=_cost,
                 samples=_samples, vjp=lambda g, y, x, axis: (LOG_SOFTMAX_GRAD(g, y, axis=axis),))  # fmt: skip
LOG_SOFTMAX_GRAD = Op("log_softmax_grad", infer=_grad_infer, vjp=_log_softmax_grad_vjp, cost=_cost,
                      samples=_grad_samples)  # fmt: skip


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) over its sum along `axis`, without overflow."""
    return SOFTMAX(x, axis=normal_axis("softmax", axis, x.ndim))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Logarithm of softmax along `axis`, without overflow."""
    return LOG_SOFTMAX(x, axis=normal_axis("log_softmax", axis, x.ndim))


def _cross_entropy_infer(logits, labels, label_smoothing):
    require_floats("cross_entropy", logits)
    require_integers("cross_entropy", "the labels", labels)
    if logits.ndim != 2 or tuple(labels.shape) != (logits.shape[0],):
        raise ShapeError(
            f"cross_entropy: logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (batch, classes) and "
            "(batch,) of class numbers"
        )
    return labels.shape, logits.dtype


def _cross_entropy_vjp(g, out, logits, labels, label_smoothing):
    classes = logits.shape[1]
    target = one_hot(labels, classes, logits.dtype)
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
    return expand_dims(g, 1) * (softmax(logits) - target), None


def _cross_entropy_samples(rng):
    for smoothing in (0.0, 0.1):
        yield Sample((normal(rng, 4, 5), rng.integers(0, 5, 4)), {"label_smoothing": smoothing})


CROSS_ENTROPY = Op("cross_entropy", infer=_cross_entropy_infer, vjp=_cross_entropy_vjp, samples=_cross_entropy_samples,
                   cost=lambda x, labels, **a: 5 * math.prod(x.shape))  # fmt: skip


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Mean, sum, or the losses as they are."""
    if reduction == "mean":
        return reduce_mean(losses)
    if reduction == "sum":
        return reduce_sum(losses)
    if reduction == "none":
        return losses
    raise ConfigError(f"reduction={reduction!r}; expected 'mean', 'sum' or 'none'")


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """Cross-entropy of softmax(logits) with class numbers.

    logits: (batch, classes) before softmax. labels: (batch,) integers from 0 to classes - 1 (RangeError otherwise; on a
    GPU, where nobody looks before the kernel runs, that row's loss is NaN).
    label_smoothing: this share of the target is spread evenly over all classes (Szegedy et al. 2016).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(f"cross_entropy: label_smoothing={label_smoothing}, expected at least 0 and below 1")
    if labels.dtype.kind in "iu":
        require_range(labels, 0, logits.shape[-1], "cross_entropy: labels", f"the logits have {logits.shape[-1]} classes")
    return reduced(CROSS_ENTROPY(logits, labels, label_smoothing=float(label_smoothing)), reduction)


def mse_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared difference; shapes must be equal (broadcasting here is nearly always a mistake)."""
    require_shape("mse_loss", "the target", target, prediction.shape)
    return reduced((prediction - target) ** 2, reduction)


def l1_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute difference; shapes must be equal."""
    require_shape("l1_loss", "the target", target, prediction.shape)
    return reduced(abs(prediction - target), reduction)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is at the label."""
    return float(np.mean(logits.numpy().argmax(axis=-1) == reshape(labels, (-1,)).numpy())) if labels.size else 0.0


__all__ = ["accuracy", "cross_entropy", "l1_loss", "log_softmax", "mse_loss", "softmax"]
