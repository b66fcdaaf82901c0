"""Shapes, movement, selection, constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.ops.index import SCATTER_ADD
from ....nn.tensor import Tensor, tensor
from .table import Call, Value, fixed, hot, operator

LARGEST = 1 << 28  # values that are made from one, or repeated


@operator("Constant")
def constant(c: Call) -> np.ndarray:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        found = c.attr(name)
        if found is not None:
            dtype = None if name == "value" else np.float32 if "float" in name else np.int64
            return np.array(found, dtype)
    raise c.error("only numbers are supported")


@operator("Shape", "Size")
def shape(c: Call) -> np.ndarray:
    value = c.value()
    sizes = value.known.shape if value.known is not None else c.x().shape
    if c.node.kind == "Size":
        return np.array(math.prod(sizes), np.int64)
    return np.array(sizes[c.attr("start", 0) : c.attr("end")], np.int64)


@operator("Reshape", known=(1,))
def reshape(c: Call) -> Tensor:
    x, wanted = c.x(), c.ints("shape", 1)
    if not c.attr("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return F.reshape(x, tuple(wanted))


@operator("Flatten")
def flatten(c: Call) -> Tensor:
    x = c.x()
    axis = c.attr("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return F.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator("Squeeze", known=(1,))
def squeeze(c: Call) -> Tensor:
    x = c.x()
    axes = c.ints("axes", 1)
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else [a % x.ndim for a in axes]
    if any(x.shape[a] != 1 for a in axes):
        raise c.error(f"axes {axes} of shape {x.shape} do not all have size 1")
    return F.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


@operator("Unsqueeze", known=(1,))
def unsqueeze(c: Call) -> Tensor:
    x, axes = c.x(), c.ints("axes", 1)
    rank = x.ndim + len(axes)
    axes = [a % rank for a in axes]
    if len(set(axes)) != len(axes):
        raise c.error(f"axes {axes} name a dimension twice")
    rest = iter(x.shape)
    return F.reshape(x, tuple(1 if i in axes else next(rest) for i in range(rank)))


@operator("Transpose")
def transpose(c: Call) -> Any:
    rank = c.value().ndim
    perm = tuple(c.attr("perm", tuple(reversed(range(rank)))))
    if perm == (0, *range(2, rank), 1):
        return c.image()
    if perm == (0, rank - 1, *range(1, rank - 1)) and rank > 2 and not c.value().is_image:
        return Value(image=c.x())
    return F.transpose(c.x(), perm)


@operator("Concat")
def concat(c: Call) -> Value:
    rank = c.value().ndim
    axis = c.axis(rank, name="axis")
    if any(c.value(i).is_image for i in range(len(c.inputs))):
        places = {0: 0, 1: rank - 1}
        return Value(image=F.concat([c.image(i) for i in range(len(c.inputs))], places.get(axis, axis - 1)))
    return Value(F.concat([c.x(i) for i in range(len(c.inputs))], axis))


@operator("Split", known=(1,))
def split(c: Call) -> tuple[Tensor, ...]:
    x = c.x()
    axis, sizes = c.axis(x.ndim, 0), c.ints("split", 1)
    if sizes is None:
        count = c.attr("num_outputs", len(c.node.outputs))
        each = -(-x.shape[axis] // count)
        sizes = [min(each, max(x.shape[axis] - i * each, 0)) for i in range(count)]
    return tuple(F.split(x, sizes, axis))


@operator("Slice", known=(1, 2, 3, 4))
def slice_(c: Call) -> Value:
    rank, image = c.value().ndim, c.value().is_image
    x = c.image() if image else c.x()
    starts, ends = c.ints("starts", 1), c.ints("ends", 2)
    axes = c.ints("axes", 3, list(range(len(starts))))
    steps = c.ints("steps", 4, [1] * len(starts)) if len(c.inputs) > 4 else [1] * len(starts)
    index = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis % rank
        place = {0: 0, 1: rank - 1}.get(place, place - 1) if image else place
        index[place] = _range_of(start, end, step, x.shape[place])
    y = x[tuple(index)]
    return Value(image=y) if image else Value(y)


def _range_of(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's bounds as Python's: counted from the end once, then clamped; a backwards end before the start is None."""
    start, end = (n + size if n < 0 else n for n in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    end = min(max(end, -1), size - 1)
    return slice(min(max(start, 0), size - 1), None if end < 0 else end, step)


@operator("Gather")
def gather(c: Call) -> Any:
    x = c.value()
    axis = c.axis(x.ndim, 0)
    return F.gather(c.x(), c.x(1), axis)


def _from_start(index: Tensor, size: int) -> Tensor:
    """Positions with negative ones counted from the end."""
    return F.where(index < 0, index + size, index)


def _flat_positions(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Where each entry of `index`, along one axis, stands in the flattened x; other axes go with its own."""
    strides = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
    grid = np.zeros(index.shape, np.int64)
    for i, n in enumerate(index.shape):
        if i != axis:
            grid += (np.arange(n) * strides[i]).reshape([-1 if j == i else 1 for j in range(x.ndim)])
    return _from_start(index.astype("int64"), x.shape[axis]) * strides[axis] + fixed(x, grid, np.int64)


@operator("GatherElements")
def gather_elements(c: Call) -> Tensor:
    x, index = c.x(), c.x(1)
    return F.gather(F.reshape(x, (-1,)), _flat_positions(x, index, c.axis(x.ndim, 0)))


def _tuple_positions(x: Tensor, index: Tensor, batch: int) -> Tensor:
    """Where the slices that tuples of positions name stand among those of x[..., flattened]."""
    depth = index.shape[-1]
    total = fixed(x, np.zeros(index.shape[:-1]), np.int64)
    for k in range(depth):
        n = x.shape[batch + k]
        total = total * n + _from_start(index[..., k].astype("int64"), n)
    if batch:
        each = math.prod(x.shape[batch : batch + depth])
        count = math.prod(x.shape[:batch])
        total = total + fixed(x, np.arange(count).reshape((*x.shape[:batch], *[1] * (total.ndim - batch))) * each, np.int64)
    return total


@operator("GatherND")
def gather_nd(c: Call) -> Tensor:
    x, index = c.x(), c.x(1)
    batch, depth = c.attr("batch_dims", 0), index.shape[-1]
    rest = x.shape[batch + depth :]
    rows = F.reshape(x, (math.prod(x.shape[: batch + depth]), *rest))
    return F.gather(rows, _tuple_positions(x, index, batch))


def _scatter(c: Call, rows: Tensor, positions: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """`rows` with `updates` written to, or added at, positions along the first axis."""
    if reduction not in ("none", "add"):
        raise c.error(f"reduction={reduction!r} is not supported; 'none' and 'add' are")
    if rows.dtype.kind != "f":
        raise c.error(f"of {rows.dtype} is not supported; of floating tensors it is")
    positions = F.reshape(positions, (-1,))
    updates = F.reshape(updates, (positions.shape[0], *rows.shape[1:]))
    total = SCATTER_ADD(updates, positions, axis=0, size=rows.shape[0])
    if reduction == "add":
        return rows + total
    ones = fixed(rows, np.ones((positions.shape[0],)))
    hits = SCATTER_ADD(ones, positions, axis=0, size=rows.shape[0])
    return F.where(F.reshape(hits, (-1, *[1] * (rows.ndim - 1))) > 0.0, total, rows)


@operator("ScatterElements", "Scatter")
def scatter_elements(c: Call) -> Tensor:
    x, index, updates = c.x(), c.x(1), c.x(2)
    positions = _flat_positions(x, index, c.axis(x.ndim, 0))
    return F.reshape(_scatter(c, F.reshape(x, (-1,)), positions, updates, c.attr("reduction", "none")), x.shape)


@operator("ScatterND")
def scatter_nd(c: Call) -> Tensor:
    x, index, updates = c.x(), c.x(1), c.x(2)
    depth = index.shape[-1]
    rows = F.reshape(x, (math.prod(x.shape[:depth]), *x.shape[depth:]))
    return F.reshape(_scatter(c, rows, _tuple_positions(x, index, 0), updates, c.attr("reduction", "none")), x.shape)


@operator("Expand", known=(1,))
def expand(c: Call) -> Tensor:
    x = c.x()
    return F.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(n) for n in c.known(1))))


@operator("Tile", known=(1,))
def tile(c: Call) -> Tensor:
    x = c.x()
    repeats = [int(n) for n in c.known(1)]
    _allowed(c, *(n * m for n, m in zip(x.shape, repeats, strict=True)))
    for axis, n in enumerate(repeats):
        index = fixed(x, np.tile(np.arange(x.shape[axis]), n), np.int64)
        x = x if n == 1 else F.gather(x, index, axis)
    return x


@operator("Pad", known=(1, 2, 3))
def pad(c: Call) -> Any:
    value = c.value()
    rank = value.ndim
    mode = c.choice("mode", "constant", ("constant", "reflect", "edge", "wrap"))
    pads = c.ints("pads", 1)
    fill = c.number(2, c.attr("value", 0.0))
    axes = [int(a) % rank for a in c.known(3)] if c.has(3) else list(range(rank))
    widths = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        widths[axis] = pads[i], pads[i + len(axes)]
    if mode != "constant" or any(n < 0 for pair in widths for n in pair):
        return _gathered(c.x(), widths, mode, fill)
    if value.is_image:
        return Value(image=F.pad(c.image(), [widths[i] for i in (0, *range(2, rank), 1)], fill))
    return _pad(c.x(), widths, fill)


def _pad(x: Tensor, widths: list[tuple[int, int]], fill: float) -> Tensor:
    if x.dtype == bool:
        return F.pad(x.astype("uint8"), widths, int(fill)).astype("bool")
    return F.pad(x, widths, fill)


def _gathered(x: Tensor, widths: list[tuple[int, int]], mode: str, fill: float) -> Tensor:
    """Padding that repeats values, and padding that takes some away."""
    for axis, (before, after) in enumerate(widths):
        kept = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] - max(-after, 0)]
        grown = max(before, 0), max(after, 0)
        if mode != "constant":
            kept = np.pad(kept, grown, mode=mode)  # type: ignore[call-overload]
        if len(kept) != x.shape[axis] or mode != "constant":
            x = F.gather(x, fixed(x, kept, np.int64), axis)
        if mode == "constant" and any(grown):
            x = _pad(x, [grown if i == axis else (0, 0) for i in range(x.ndim)], fill)
    return x


@operator("ConstantOfShape", known=(0,))
def constant_of_shape(c: Call) -> np.ndarray:
    value = c.attr("value", np.zeros(1, np.float32))
    return np.full(_allowed(c, *(int(n) for n in c.known(0))), value.reshape(-1)[0], value.dtype)


def _allowed(c: Call, *sizes: int) -> tuple[int, ...]:
    """The sizes, unless a few bytes of the file would fill the memory."""
    if math.prod(sizes) > LARGEST:
        raise c.error(f"asks for {math.prod(sizes)} values made from one; refused")
    return sizes


@operator("Range", known=(0, 1, 2))
def range_(c: Call) -> np.ndarray:
    start, limit, step = (c.known(i).reshape(()) for i in range(3))
    count = max(math.ceil((float(limit) - float(start)) / float(step)), 0)
    _allowed(c, count)
    return (start + np.arange(count).astype(start.dtype) * step).astype(start.dtype)


@operator("OneHot", known=(1,))
def one_hot(c: Call) -> Tensor:
    index, depth, values = c.x(0).astype("int64"), int(c.number(1)), c.x(2)
    axis = c.attr("axis", -1)
    axis = axis + index.ndim + 1 if axis < 0 else axis
    order = list(range(index.ndim))
    order.insert(axis, index.ndim)
    return F.where(F.transpose(hot(_from_start(index, depth), depth), order), values[1], values[0])


@operator("EyeLike")
def eye_like(c: Call) -> np.ndarray:
    x = c.x()
    dtype = c.dtype("dtype") or x.dtype
    rows, columns = x.shape
    return np.eye(rows, columns, c.attr("k", 0), dtype)


@operator("Trilu", known=(1,))
def trilu(c: Call) -> Tensor:
    x, k = c.x(), int(c.number(1, 0))
    ones = np.ones(x.shape[-2:], bool)
    mask = np.triu(ones, k) if c.attr("upper", 1) else np.tril(ones, k)
    if x.dtype == bool:
        return F.logical_and(x, fixed(x, mask))
    return F.where(tensor(mask, device=x.device), x, fixed(x, 0))


@operator("DepthToSpace")
def depth_to_space(c: Call) -> Tensor:
    x, b = c.x(), c.required("blocksize")
    n, depth, h, w = x.shape
    if c.choice("mode", "DCR", ("DCR", "CRD")) == "DCR":
        y = F.transpose(F.reshape(x, (n, b, b, depth // (b * b), h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = F.transpose(F.reshape(x, (n, depth // (b * b), b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return F.reshape(y, (n, depth // (b * b), h * b, w * b))


@operator("SpaceToDepth")
def space_to_depth(c: Call) -> Tensor:
    x, b = c.x(), c.required("blocksize")
    n, depth, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4)
    if c.choice("mode", "DCR", ("DCR", "CRD")) == "CRD":
        order = (0, 1, 3, 5, 2, 4)
    y = F.transpose(F.reshape(x, (n, depth, h // b, b, w // b, b)), order)
    return F.reshape(y, (n, depth * b * b, h // b, w // b))


@operator("NonZero", known=(0,))
def non_zero(c: Call) -> np.ndarray:
    return np.stack(np.nonzero(c.known(0))).astype(np.int64)


@operator("Compress", known=(1,))
def compress(c: Call) -> Tensor:
    x = c.x()
    kept = np.flatnonzero(c.known(1))
    axis = c.attr("axis")
    if axis is None:
        x, axis = F.reshape(x, (-1,)), 0
    return F.gather(x, fixed(x, kept, np.int64), axis % x.ndim)


@operator("ReverseSequence", known=(1,))
def reverse_sequence(c: Call) -> Tensor:
    x, lengths = c.x(), c.known(1)
    batch, time = c.attr("batch_axis", 1), c.attr("time_axis", 0)
    y = F.transpose(x, (batch, time, *(i for i in range(x.ndim) if i not in (batch, time))))
    order = np.tile(np.arange(y.shape[1]), (y.shape[0], 1))
    for row, n in zip(order, lengths, strict=True):
        row[:n] = row[:n][::-1]
    flat = F.reshape(y, (y.shape[0] * y.shape[1], *y.shape[2:]))
    places = order + np.arange(y.shape[0])[:, None] * y.shape[1]
    picked = F.gather(flat, fixed(x, places, np.int64))
    back = np.argsort((batch, time, *(i for i in range(x.ndim) if i not in (batch, time))))
    return F.transpose(picked, back.tolist())


@operator("CenterCropPad", known=(1,))
def center_crop_pad(c: Call) -> Tensor:
    x, sizes = c.x(), [int(n) for n in c.known(1)]
    axes = c.attr("axes")
    axes = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for axis, n in zip(axes, sizes, strict=True):
        more = n - x.shape[axis]
        first = more // 2 if more >= 0 else -((-more) // 2)
        widths[axis] = first, more - first
    return _gathered(x, widths, "constant", 0)
