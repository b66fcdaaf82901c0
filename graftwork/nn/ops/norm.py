"""Normalisation over batches and over channels; channels are the last dimension."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ShapeError
from ..autograd import differentiate, no_grad
from ..op import Op, Sample
from ..tensor import Tensor
from .common import normal, require_floats, require_shape
from .elementwise import rsqrt
from .reduce import sum as reduce_sum
from .shape import expand_dims


def _check(name, x, *vectors):
    require_floats(name, x, *vectors)
    if x.ndim < 2:
        raise ShapeError(f"{name}: input has shape {tuple(x.shape)}, expected (batch, ..., channels)")
    for what, v in zip(("gamma", "beta", "the mean", "the variance"), vectors, strict=False):
        require_shape(name, what, v, x.shape[-1:])


def _leading(x) -> tuple[int, ...]:
    return tuple(range(len(x.shape) - 1))


def _count(x) -> int:
    return math.prod(x.shape[:-1])


# -- batch norm ------------------------------------------------------------------------------------------------------


def _inference_infer(x, gamma, beta, mean, var, epsilon):
    _check("batch_norm", x, gamma, beta, mean, var)
    return x.shape, x.dtype


def _inference_vjp(g, out, x, gamma, beta, mean, var, epsilon):
    scale = rsqrt(var + epsilon)

    def d_mean():
        return -reduce_sum(g, _leading(x)) * gamma * scale

    def d_var():
        return reduce_sum(g * (x - mean), _leading(x)) * gamma * scale * scale * scale * -0.5

    return (
        lambda: g * (gamma * scale),
        lambda: reduce_sum(g * ((x - mean) * scale), _leading(x)),
        lambda: reduce_sum(g, _leading(x)),
        d_mean,
        d_var,
    )


def _train_infer(x, gamma, beta, epsilon):
    _check("batch_norm", x, gamma, beta)
    if _count(x) == 0:
        raise ShapeError(f"batch_norm: training needs at least one value a channel, the input has shape {tuple(x.shape)}")
    return [(x.shape, x.dtype), (x.shape[-1:], x.dtype), (x.shape[-1:], x.dtype)]


def _train_vjp(g, out, x, gamma, beta, epsilon):
    """The statistics are outputs too; in training nothing differentiates them, so their part costs nothing then."""
    gy, g_mean, g_var = g
    _, mean, var = out
    if gy is None:
        gy = x * 0.0
    dx, dgamma, dbeta = BATCH_NORM_GRAD(gy, x, gamma, mean, var, epsilon=epsilon)
    for extra in (g_mean, None if g_var is None else (x - mean) * g_var * 2.0):
        if extra is not None:
            dx = dx + extra * (1.0 / _count(x))
    return dx, dgamma, dbeta


def _grad_infer(g, x, gamma, mean, var, epsilon):
    _check("batch_norm_grad", x, gamma, gamma, mean, var)
    require_shape("batch_norm_grad", "the gradient", g, x.shape)
    return [(x.shape, x.dtype), (gamma.shape, x.dtype), (gamma.shape, x.dtype)]


def _grad_composite(g, x, gamma, mean, var, epsilon):
    """What the fused kernel computes, in ops; `mean` and `var` are inputs of their own here."""
    scale = rsqrt(var + epsilon)
    normal_x = (x - mean) * scale
    dbeta, dgamma = reduce_sum(g, _leading(x)), reduce_sum(g * normal_x, _leading(x))
    dx = gamma * scale * (g - (dbeta + normal_x * dgamma) * (1.0 / _count(x)))
    return dx, dgamma, dbeta


SHAPES = ((6, 3), (2, 4, 3, 5), (1, 3, 3, 2))


def _vectors(rng, channels):
    return normal(rng, channels), normal(rng, channels), normal(rng, channels), rng.random(channels) + 0.5


def _inference_samples(rng):
    for shape in (*SHAPES, (0, 3)):
        yield Sample((normal(rng, *shape), *_vectors(rng, shape[-1])), {"epsilon": 1e-3})


def _train_samples(rng):
    for shape in SHAPES:
        yield Sample((normal(rng, *shape), *_vectors(rng, shape[-1])[:2]), {"epsilon": 1e-3})


def _grad_samples(rng):
    for shape in SHAPES:
        x, gamma = normal(rng, *shape), normal(rng, shape[-1])
        axes = tuple(range(len(shape) - 1))
        yield Sample((normal(rng, *shape), x, gamma, x.mean(axes), x.var(axes)), {"epsilon": 1e-3})


def _cost(x, *rest, **attrs):
    return 4 * math.prod(x.shape)


BATCH_NORM = Op("batch_norm", infer=_inference_infer, vjp=_inference_vjp, cost=_cost, samples=_inference_samples)
BATCH_NORM_TRAIN = Op("batch_norm_train", infer=_train_infer, vjp=_train_vjp, keeps_output=True, multi=True,
                      cost=_cost, samples=_train_samples)  # fmt: skip
BATCH_NORM_GRAD = Op("batch_norm_grad", infer=_grad_infer, multi=True, cost=_cost, samples=_grad_samples,
                     vjp=differentiate(_grad_composite))  # fmt: skip


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, training: bool = False,
               momentum: float = 0.99, epsilon: float = 1e-3) -> Tensor:  # fmt: skip
    """Batch normalisation over all but the last dimension (Ioffe and Szegedy 2015).

    gamma, beta, mean, var: (channels,). In training the batch's own statistics are used, and `mean` and `var` are
    updated in place: new = momentum * old + (1 - momentum) * batch (Keras's rule; population variance).
    """
    if not training:
        return BATCH_NORM(x, gamma, beta, mean, var, epsilon=float(epsilon))
    from .update import MOVING_AVERAGE

    y, batch_mean, batch_var = BATCH_NORM_TRAIN(x, gamma, beta, epsilon=float(epsilon))
    with no_grad():
        MOVING_AVERAGE(mean, batch_mean, momentum=float(momentum))
        MOVING_AVERAGE(var, batch_var, momentum=float(momentum))
    return y


# -- layer norm ------------------------------------------------------------------------------------------------------


def _layer_infer(x, gamma, beta, epsilon):
    _check("layer_norm", x, gamma, beta)
    return [(x.shape, x.dtype), (x.shape[:-1], x.dtype), (x.shape[:-1], x.dtype)]


def _layer_vjp(g, out, x, gamma, beta, epsilon):
    gy, g_mean, g_rstd = g
    _, mean, rstd = out
    if gy is None:
        gy = x * 0.0
    dx, dgamma, dbeta = LAYER_NORM_GRAD(gy, x, gamma, mean, rstd)
    if g_mean is not None:
        dx = dx + expand_dims(g_mean, mean.ndim) * (1.0 / x.shape[-1])
    if g_rstd is not None:
        slope = expand_dims(g_rstd * rstd * rstd * rstd, mean.ndim) * (x - expand_dims(mean, mean.ndim))
        dx = dx - slope * (1.0 / x.shape[-1])
    return dx, dgamma, dbeta


def _layer_grad_infer(g, x, gamma, mean, rstd):
    require_floats("layer_norm_grad", g, x, gamma, mean, rstd)
    require_shape("layer_norm_grad", "the gradient", g, x.shape)
    return [(x.shape, x.dtype), (gamma.shape, x.dtype), (gamma.shape, x.dtype)]


def _layer_grad_composite(g, x, gamma, mean, rstd):
    scale, last = expand_dims(rstd, mean.ndim), len(x.shape) - 1
    normal_x = (x - expand_dims(mean, mean.ndim)) * scale
    weighted = g * gamma
    first = reduce_sum(weighted, last, keepdims=True)
    second = reduce_sum(weighted * normal_x, last, keepdims=True)
    dx = scale * (weighted - (first + normal_x * second) * (1.0 / x.shape[-1]))
    return dx, reduce_sum(g * normal_x, _leading(x)), reduce_sum(g, _leading(x))


def _layer_samples(rng):
    for shape in ((4, 5), (2, 3, 6)):
        yield Sample((normal(rng, *shape), *_vectors(rng, shape[-1])[:2]), {"epsilon": 1e-3})


def _layer_grad_samples(rng):
    for s in _layer_samples(rng):
        x, gamma = s.arrays[:2]
        rstd = 1 / np.sqrt(x.var(-1) + 1e-3)
        yield Sample((normal(rng, *x.shape), x, gamma, x.mean(-1), rstd))


LAYER_NORM = Op("layer_norm", infer=_layer_infer, vjp=_layer_vjp, keeps_output=True, multi=True, cost=_cost,
                samples=_layer_samples)  # fmt: skip
LAYER_NORM_GRAD = Op("layer_norm_grad", infer=_layer_grad_infer, multi=True, cost=_cost, samples=_layer_grad_samples,
                     vjp=differentiate(_layer_grad_composite))  # fmt: skip


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Normalise each position over its channels (Ba, Kiros and Hinton 2016); gamma, beta: (channels,)."""
    return LAYER_NORM(x, gamma, beta, epsilon=float(epsilon))[0]


__all__ = ["batch_norm", "layer_norm"]
