"""Reductions over some or all dimensions."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import INT64, normal, normal_axes, normal_axis, require_floats
from .elementwise import divide, equal, multiply, sqrt, square
from .shape import TRANSPOSE, broadcast_to, getitem, reshape


def reduced_shape(shape, axis, keepdims) -> tuple[int, ...]:
    if keepdims:
        return tuple(1 if i in axis else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axis)


def _infer(name, floats=False, nonempty=False):
    def infer(x, axis, keepdims):
        if floats:
            require_floats(name, x)
        if nonempty and any(x.shape[a] == 0 for a in axis):
            raise ShapeError(f"{name}: no values along axis {axis} of shape {tuple(x.shape)}; it needs at least one")
        return reduced_shape(x.shape, axis, keepdims), x.dtype

    return infer


def _cost(x, **attrs):
    return math.prod(x.shape)


def _samples(rng):
    for axis in ((0,), (1, 2), (0, 1, 2), (2,)):
        for keepdims in (False, True):
            yield Sample((normal(rng, 3, 4, 5),), {"axis": axis, "keepdims": keepdims})
    yield Sample((normal(rng, 2, 5, 5, 3),), {"axis": (0, 1, 2), "keepdims": False})


def spread(g: Tensor, x, axis, keepdims) -> Tensor:
    """A reduction's gradient back over the reduced dimensions."""
    return broadcast_to(g if keepdims else reshape(g, reduced_shape(x.shape, axis, True)), x.shape)


def _mean_vjp(g, out, x, axis, keepdims):
    count = math.prod(x.shape[a] for a in axis)
    return (spread(g * (1.0 / count if count else 0.0), x, axis, keepdims),)


def _extreme_vjp(g, y, x, axis, keepdims):
    """Ties share the gradient equally."""
    at = equal(x, spread(y, x, axis, keepdims)).astype(g.dtype)
    share = divide(at, SUM(at, axis=axis, keepdims=True))
    return (multiply(spread(g, x, axis, keepdims), share),)


def _prod_vjp(g, y, x, axis, keepdims):
    """prod of the others = prod / x, except where x is zero: there, by exclusion over a flattened axis."""
    moved = tuple(i for i in range(x.ndim) if i not in axis) + axis
    flat = reshape(TRANSPOSE(x, axes=moved), (-1, math.prod(x.shape[a] for a in axis)))
    count = flat.shape[1]
    from .index import concat

    others = concat(
        [PROD(concat([flat[:, :i], flat[:, i + 1 :]], axis=1), axis=(1,), keepdims=True) for i in range(count)], axis=1
    )
    back = TRANSPOSE(reshape(others, tuple(x.shape[a] for a in moved)), axes=tuple(int(i) for i in np.argsort(moved)))
    return (multiply(spread(g, x, axis, keepdims), back),)


SUM = Op("sum", infer=_infer("sum"), vjp=lambda g, out, x, axis, keepdims: (spread(g, x, axis, keepdims),),
         keeps_inputs=False, cost=_cost, samples=_samples)  # fmt: skip
MEAN = Op("mean", infer=_infer("mean", floats=True), vjp=_mean_vjp, keeps_inputs=False, cost=_cost, samples=_samples)
MAX = Op("max", infer=_infer("max", nonempty=True), vjp=_extreme_vjp, keeps_output=True, cost=_cost, samples=_samples)
MIN = Op("min", infer=_infer("min", nonempty=True), vjp=_extreme_vjp, keeps_output=True, cost=_cost, samples=_samples)
PROD = Op("prod", infer=_infer("prod"), vjp=_prod_vjp, keeps_output=False, cost=_cost,
          samples=lambda rng: (Sample((normal(rng, 2, 3),), {"axis": a, "keepdims": False}) for a in ((0,), (1,))))  # fmt: skip


def _arg_infer(name):
    def infer(x, axis, keepdims):
        sizes = x.shape if axis is None else (x.shape[axis],)
        if math.prod(sizes) == 0:
            raise ShapeError(f"{name}: no values along axis {axis} of shape {tuple(x.shape)}; it needs at least one")
        every = tuple(range(x.ndim)) if axis is None else (axis,)
        return reduced_shape(x.shape, every, keepdims), INT64

    return infer


def _arg_samples(rng):
    for axis in (0, 1, 2, None):
        yield Sample((np.round(normal(rng, 3, 4, 5)),), {"axis": axis, "keepdims": False}, False)


ARGMAX = Op("argmax", infer=_arg_infer("argmax"), cost=_cost, samples=_arg_samples)
ARGMIN = Op("argmin", infer=_arg_infer("argmin"), cost=_cost, samples=_arg_samples)


def _cumsum_vjp(g, out, x, axis):
    backwards = tuple(slice(None, None, -1) if i == axis else slice(None) for i in range(len(x.shape)))
    return (getitem(CUMSUM(getitem(g, backwards), axis=axis), backwards),)


CUMSUM = Op("cumsum", infer=lambda x, axis: (x.shape, x.dtype), vjp=_cumsum_vjp, keeps_inputs=False, cost=_cost,
            samples=lambda rng: (Sample((normal(rng, 3, 4),), {"axis": a}) for a in (0, 1)))  # fmt: skip


def _call(op: Op, x: Tensor, axis, keepdims) -> Tensor:
    return op(x, axis=normal_axes(op.name, axis, x.ndim), keepdims=bool(keepdims))


def sum(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (an int, several, or None for all)."""
    return _call(SUM, x, axis, keepdims)


def mean(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Mean over `axis`; floating dtypes only. NaN where there are no values."""
    return _call(MEAN, x, axis, keepdims)


def max(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Largest value over `axis`; equal ones share the gradient. Raises ShapeError where there are no values."""
    return _call(MAX, x, axis, keepdims)


def min(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Smallest value over `axis`; equal ones share the gradient. Raises ShapeError where there are no values."""
    return _call(MIN, x, axis, keepdims)


def prod(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Product over `axis`; its gradient is exact where factors are zero, at a cost that grows with their number squared."""
    return _call(PROD, x, axis, keepdims)


def argmax(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index (int64) of the first largest value along `axis`, or in row-major order for None."""
    return ARGMAX(x, axis=axis if axis is None else normal_axis("argmax", axis, x.ndim), keepdims=bool(keepdims))


def argmin(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index (int64) of the first smallest value along `axis`, or in row-major order for None."""
    return ARGMIN(x, axis=axis if axis is None else normal_axis("argmin", axis, x.ndim), keepdims=bool(keepdims))


def cumsum(x: Tensor, axis: int = -1) -> Tensor:
    """Running sum along `axis`."""
    return CUMSUM(x, axis=normal_axis("cumsum", axis, x.ndim))


def var(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Population variance over `axis` (divides by the count)."""
    return mean(square(x - mean(x, axis, keepdims=True)), axis, keepdims)


def std(x: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """Population standard deviation over `axis`."""
    return sqrt(var(x, axis, keepdims))


__all__ = ["argmax", "argmin", "cumsum", "max", "mean", "min", "prod", "std", "sum", "var"]
