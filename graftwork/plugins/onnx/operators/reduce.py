"""Reductions, positions of extremes, running sums, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, Value, fixed, hot, operator


def _log_sum_exp(x: Tensor, axes: Any, keep: bool) -> Tensor:
    top = F.max(x, axes, keepdims=True)
    top = F.where(F.less(F.abs(top), fixed(top, np.inf)), top, fixed(top, 0))
    total = F.log(F.sum(F.exp(x - top), axes, keep))
    return total + (top if keep else F.reshape(top, total.shape))


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceSum": F.sum,
    "ReduceMean": F.mean,
    "ReduceMax": F.max,
    "ReduceMin": F.min,
    "ReduceProd": F.prod,
    "ReduceL1": lambda x, axes, keep: F.sum(F.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: F.sqrt(F.sum(F.square(x), axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: F.sum(F.square(x), axes, keep),
    "ReduceLogSum": lambda x, axes, keep: F.log(F.sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
}
BEFORE = {"ReduceL1": F.abs, "ReduceL2": F.abs, "ReduceSumSquare": F.square}  # of single values: reductions over no axes
EMPTY = {"ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceLogSumExp": -np.inf}


@operator(*REDUCTIONS, known=(1,))
def reduction(c: Call) -> Any:
    kind, keep = c.node.kind, bool(c.attr("keepdims", 1))
    axes, nothing = c.ints("axes", 1), bool(c.attr("noop_with_empty_axes", 0))
    rank = c.value().ndim
    if not axes and nothing:
        return c.elementwise(BEFORE[kind], 0) if kind in BEFORE else c.value()
    axes = sorted(a % rank for a in axes) if axes else list(range(rank))
    if c.value().is_image and (keep or not set(range(rank)) - set(axes) - {0, 1}):
        places = {0: 0, 1: rank - 1} | {a: a - 1 for a in range(2, rank)}
        y = _reduce(kind, c.image(), tuple(places[a] for a in axes), keep)
        return Value(image=y) if keep else y
    return _reduce(kind, c.x(), tuple(axes), keep)


def _worst(dtype: np.dtype, infinity: float) -> Any:
    """The least or the largest value of a dtype: what nothing at all reduces to."""
    if dtype.kind == "f":
        return infinity
    if dtype.kind == "b":
        return infinity > 0
    return np.iinfo(dtype).max if infinity > 0 else np.iinfo(dtype).min


def _reduce(kind: str, x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if not axes:
        return BEFORE[kind](x) if kind in BEFORE else x
    if kind in EMPTY and x.size == 0:
        shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
        return fixed(x, np.full(shape, _worst(x.dtype, EMPTY[kind])))
    if x.dtype == bool:
        return REDUCTIONS[kind](x.astype("uint8"), axes, keep).astype("bool")
    return REDUCTIONS[kind](x, axes, keep)


@operator("ArgMax", "ArgMin")
def arg_extreme(c: Call) -> Tensor:
    x = c.x()
    axis, keep = c.axis(x.ndim, 0), bool(c.attr("keepdims", 1))
    function = F.argmax if c.node.kind == "ArgMax" else F.argmin
    if not c.attr("select_last_index", 0):
        return function(x, axis, keep)
    backwards = x[tuple(slice(None, None, -1) if i == axis else slice(None) for i in range(x.ndim))]
    return fixed(x, x.shape[axis] - 1, np.int64) - function(backwards, axis, keep)


@operator("CumSum", known=(1,))
def cumsum(c: Call) -> Tensor:
    x = c.x()
    axis, exclusive, reverse = int(c.number(1)) % x.ndim, c.attr("exclusive", 0), c.attr("reverse", 0)
    flip = tuple(slice(None, None, -1) if i == axis else slice(None) for i in range(x.ndim))
    y = x[flip] if reverse else x
    total = F.cumsum(y, axis)
    total = total - y if exclusive else total
    return total[flip] if reverse else total


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(c: Call) -> Any:
    rank = c.value().ndim
    axis = c.axis(rank, -1 if c.opset >= 13 else 1)
    if c.opset < 13 and axis != rank - 1:  # over all dimensions from the axis on, as one
        x = c.x()
        rows = F.reshape(x, (int(np.prod(x.shape[:axis], dtype=int)), -1))
        return F.reshape(_softmax(c.node.kind, rows, 1), x.shape)
    if c.value().is_image and axis == 1:
        return Value(image=_softmax(c.node.kind, c.image(), rank - 1))
    return _softmax(c.node.kind, c.x(), axis)


def _softmax(kind: str, x: Tensor, axis: int) -> Tensor:
    if kind != "Hardmax":
        return F.softmax(x, axis) if kind == "Softmax" else F.log_softmax(x, axis)
    order = list(range(x.ndim - 1))
    order.insert(axis, x.ndim - 1)
    return F.transpose(hot(F.argmax(x, axis), x.shape[axis]).astype(x.dtype), order)


@operator("TopK", known=(1,))
def top_k(c: Call) -> tuple[Tensor, Tensor]:
    """The k extremes along an axis, in order: each by a search of its own, with those found before out of the race."""
    x = c.x()
    axis, count = c.axis(x.ndim, -1), int(c.number(1, c.attr("k")))
    largest = c.attr("largest", 1)
    c.attr("sorted", 1)
    if x.dtype.kind != "f":
        raise c.error(f"of {x.dtype} is not supported; of floating tensors it is")
    order = [i for i in range(x.ndim) if i != axis] + [axis]
    rows = F.transpose(x, order)
    left, values, places = rows if largest else -rows, [], []
    for _ in range(count):
        place = F.argmax(left, -1, keepdims=True)
        found = F.equal(fixed(x, np.arange(x.shape[axis]), np.int64), place)
        values.append(F.sum(F.where(found, rows, fixed(x, 0)), -1, keepdims=True))
        places.append(place)
        left = F.where(found, fixed(x, -np.inf), left)
    back = np.argsort(order).tolist()
    return F.transpose(F.concat(values, -1), back), F.transpose(F.concat(places, -1), back)
