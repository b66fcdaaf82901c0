"""Pooling over windows and over whole images."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import normal, normal_padding, pair, require_floats, require_nhwc, require_shape, window_output
from .reduce import max as reduce_max
from .reduce import mean as reduce_mean


def _out_shape(name, x_shape, window, stride, padding):
    for (before, after), k in zip(padding, window, strict=True):
        if before >= k or after >= k:
            raise ShapeError(f"{name}: padding {padding} reaches a whole window {window}; it must be smaller")
    return (x_shape[0], *window_output(name, x_shape[1:3], window, stride, padding), x_shape[3])


def _max_infer(x, *, window, stride, padding):
    require_nhwc("max_pool2d", x)
    require_floats("max_pool2d", x)
    return _out_shape("max_pool2d", x.shape, window, stride, padding), x.dtype


def _max_grad_infer(g, x, y, *, window, stride, padding):
    require_floats("max_pool2d_grad", g, x, y)
    require_shape("max_pool2d_grad", "the gradient", g, y.shape)
    return x.shape, x.dtype


def _max_take_infer(gg, x, y, *, window, stride, padding):
    require_floats("max_pool2d_take", gg, x, y)
    require_shape("max_pool2d_take", "the gradient", gg, x.shape)
    return y.shape, y.dtype


def _avg_infer(x, *, window, stride, padding, count_padding):
    require_nhwc("avg_pool2d", x)
    require_floats("avg_pool2d", x)
    return _out_shape("avg_pool2d", x.shape, window, stride, padding), x.dtype


def _avg_grad_infer(g, *, input_shape, window, stride, padding, count_padding):
    require_floats("avg_pool2d_grad", g)
    shape = _out_shape("avg_pool2d_grad", input_shape, window, stride, padding)
    require_shape("avg_pool2d_grad", "the gradient", g, shape)
    return input_shape, g.dtype


GEOMETRIES = (  # input, window, stride, padding
    ((2, 6, 6, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((2, 7, 5, 2), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((1, 6, 7, 2), (3, 2), (1, 2), ((0, 1), (1, 0))),
    ((0, 4, 4, 2), (2, 2), (2, 2), ((0, 0), (0, 0))),
)


def _distinct(rng, *shape):
    """Values that differ by more than a finite-difference step, so that no maximum changes hands."""
    return rng.permutation(math.prod(shape)).reshape(shape) * 0.1 - 1.0


def _samples(rng):
    for shape, window, stride, padding in GEOMETRIES:
        yield Sample((_distinct(rng, *shape),), {"window": window, "stride": stride, "padding": padding})


def _windowed_max(x, window, stride, padding):
    """The forward pass in NumPy, to make samples for the gradients' ops."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
    view = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1]].max(axis=(-2, -1))


def _max_grad_samples(of_output):
    def samples(rng):
        for s in _samples(rng):
            if s.arrays[0].size:
                x = s.arrays[0]
                y = _windowed_max(x, **s.attrs)
                yield Sample((normal(rng, *(y if of_output else x).shape), x, y), s.attrs, False)

    return samples


def _avg_samples(rng):
    for s in _samples(rng):
        for count in (False, True):
            yield Sample(s.arrays, {**s.attrs, "count_padding": count})


def _avg_grad_samples(rng):
    for s in _avg_samples(rng):
        shape = _avg_infer(s.arrays[0], **s.attrs)[0]
        yield Sample((normal(rng, *shape),), {"input_shape": s.arrays[0].shape, **s.attrs})


def _cost(x, *rest, window, **attrs):
    return math.prod(x.shape) * math.prod(window)


MAX_POOL2D = Op("max_pool2d", infer=_max_infer, vjp=lambda g, y, x, **a: (MAX_POOL2D_GRAD(g, x, y, **a),),
                keeps_output=True, cost=_cost, samples=_samples)  # fmt: skip
MAX_POOL2D_GRAD = Op("max_pool2d_grad", infer=_max_grad_infer, cost=_cost, samples=_max_grad_samples(True),
                     vjp=lambda gg, out, g, x, y, **a: (MAX_POOL2D_TAKE(gg, x, y, **a), None, None))  # fmt: skip
MAX_POOL2D_TAKE = Op("max_pool2d_take", infer=_max_take_infer, cost=_cost, samples=_max_grad_samples(False),
                     vjp=lambda gg, out, g, x, y, **a: (MAX_POOL2D_GRAD(gg, x, y, **a), None, None))  # fmt: skip
AVG_POOL2D = Op("avg_pool2d", infer=_avg_infer, keeps_inputs=False, cost=_cost, samples=_avg_samples,
                vjp=lambda g, out, x, **a: (AVG_POOL2D_GRAD(g, input_shape=tuple(x.shape), **a),))  # fmt: skip
AVG_POOL2D_GRAD = Op("avg_pool2d_grad", infer=_avg_grad_infer, keeps_inputs=False, cost=_cost,
                     samples=_avg_grad_samples, vjp=lambda gg, out, g, input_shape, **a: (AVG_POOL2D(gg, **a),))  # fmt: skip


def _geometry(name, x, window, stride, padding):
    require_nhwc(name, x)
    window = pair(name, "window", window)
    stride = window if stride is None else pair(name, "stride", stride)
    return {
        "window": window,
        "stride": stride,
        "padding": normal_padding(name, padding, x.shape[1:3], window, stride),
    }


def max_pool2d(x: Tensor, window, stride=None, padding="valid") -> Tensor:
    """Largest value in each window, per channel. stride: the window by default. Padding never wins."""
    return MAX_POOL2D(x, **_geometry("max_pool2d", x, window, stride, padding))


def avg_pool2d(x: Tensor, window, stride=None, padding="valid", count_padding: bool = False) -> Tensor:
    """Mean of each window, per channel. count_padding: whether padded positions count as zeros or not at all."""
    return AVG_POOL2D(x, count_padding=bool(count_padding), **_geometry("avg_pool2d", x, window, stride, padding))


def global_avg_pool2d(x: Tensor, keepdims: bool = False) -> Tensor:
    """Mean over height and width: (batch, channels)."""
    require_nhwc("global_avg_pool2d", x)
    return reduce_mean(x, (1, 2), keepdims)


def global_max_pool2d(x: Tensor, keepdims: bool = False) -> Tensor:
    """Largest value over height and width: (batch, channels)."""
    require_nhwc("global_max_pool2d", x)
    return reduce_max(x, (1, 2), keepdims)
