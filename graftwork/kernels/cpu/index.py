"""Gather, scatter, one-hot, concatenation, padding and copies of strided views.

Memory moves of small arrays are left to NumPy, whose loops are right for them; large ones are shared by the threads.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from ..plan import Plan, Spec
from ..reference.index import check_range
from . import runtime
from .copies import bits_of, copy_row, fill_row, gather_rows, one_hot_rows, pad_geometry, pad_memory, scatter_rows  # fmt: skip
from .planning import FLOAT32, carry_out, parts_for

PARALLEL_FROM = 1 << 16  # elements from which kernels go through a plan
COLUMNS = 64  # fewest columns of `scatter_add` worth a part of their own
_INDEX_ITEMS = {"int64": 8, "uint64": 8, "int32": 4, "uint8": 1, "bool": 1}


def _check_range(idx: np.ndarray, low: int, high: int) -> None:
    if idx.size and (idx.min() < low or idx.max() >= high):
        value = idx[(idx < low) | (idx >= high)].flat[0]
        raise IndexError(f"index {value} is out of range for an axis of size {high}")


# -- gather and its adjoint ------------------------------------------------------------------------------------------


def plan_gather(x: Spec, idx: Spec, *, out: Spec, axis: int) -> Plan | None:
    """Rows taken by index. An index out of range gives NaN (all bits set): a plan cannot raise."""
    item = _INDEX_ITEMS.get(idx.dtype.name)
    if item is None:
        return None
    outer, size, row = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]) * x.dtype.itemsize
    parts = parts_for(outer * idx.size, out.size)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        return [runtime.row(gather_rows, parts, parts, outer, idx.size, size, row, item, *inputs, outputs[0])]

    return Plan(bind)


def gather(x: np.ndarray, idx: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """x taken at `idx` along the axis: shape x.shape[:axis] + idx.shape + x.shape[axis + 1:]. Negatives wrap.

    IndexError for an index outside [-size, size).
    """
    _check_range(idx, -x.shape[axis], x.shape[axis])
    if out.size >= PARALLEL_FROM and carry_out(plan_gather, (x, idx), (out,), axis=axis):
        return
    if out.size:
        np.take(x, idx, axis, out, "wrap")  # "raise" would go through a second buffer


def plan_scatter_add(g: Spec, idx: Spec, *, out: Spec, axis: int, size: int) -> Plan | None:
    """Float32 rows added by index, in the order of the indices; those out of range are left out."""
    item = _INDEX_ITEMS.get(idx.dtype.name)
    if item is None or g.dtype != FLOAT32:
        return None
    outer, columns = math.prod(out.shape[:axis]), math.prod(out.shape[axis + 1 :])
    tiles = 1 if outer > 8 else max(1, min(8, columns // COLUMNS))
    parts = parts_for(outer * tiles, g.size + out.size)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        geometry = (parts, tiles, outer, idx.size, size, columns, item)
        return [runtime.row(scatter_rows, parts, *geometry, *inputs, outputs[0])]

    return Plan(bind)


def scatter_add(g: np.ndarray, idx: np.ndarray, *, out: np.ndarray, axis: int, size: int) -> None:
    """Adjoint of `gather`: zeros with `size` places along the axis, to which g is added at `idx`."""
    _check_range(idx, -size, size)
    if g.size >= PARALLEL_FROM >> 5 and carry_out(plan_scatter_add, (g, idx), (out,), axis=axis, size=size):
        return
    out.fill(0)
    np.add.at(out, (slice(None),) * axis + (idx,), g)


def plan_one_hot(idx: Spec, *, out: Spec, depth: int, dtype: str) -> Plan | None:
    """Ones at the indices; an index out of range gives zeros."""
    item = _INDEX_ITEMS.get(idx.dtype.name)
    if item is None:
        return None
    parts = parts_for(idx.size, out.size)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        one = bits_of(1, out.dtype)
        return [runtime.row(one_hot_rows, parts, parts, idx.size, depth, item, out.dtype.itemsize, one, *inputs, outputs[0])]

    return Plan(bind)


def one_hot(idx: np.ndarray, *, out: np.ndarray, depth: int, dtype: str) -> None:
    """Ones at `idx` along a new last axis of `depth` places; an index outside [0, depth) gives zeros."""
    if out.size >= PARALLEL_FROM and carry_out(plan_one_hot, (idx,), (out,), depth=depth, dtype=dtype):
        return
    out.fill(0)
    flat = idx.reshape(-1)
    rows = np.flatnonzero((flat >= 0) & (flat < depth))
    out.reshape(idx.size, depth)[rows, flat[rows]] = 1


# -- joining, padding, copying -----------------------------------------------------------------------------------------


def _copies(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[runtime.Row] | None:
    """Rows that copy each first array to the second; None if one has too many axes."""
    rows = [copy_row(source, target) for source, target in pairs if target.size]
    return None if None in rows else rows


def plan_concat(*xs: Spec, out: Spec, axis: int) -> Plan | None:
    """Each input into its slice of the output. Inputs and output may be slices of wider arrays."""
    ends = np.cumsum([0, *(x.shape[axis] for x in xs)]).tolist()

    def bind(inputs, outputs, workspace):
        lead = (slice(None),) * axis
        slices = itertools.pairwise(ends)
        return _copies([(x, outputs[0][(*lead, slice(a, b))]) for x, (a, b) in zip(inputs, slices, strict=True)])

    return Plan(bind, strided=True, strided_inputs=tuple(range(len(xs)))) if out.ndim <= 6 else None


def concat(*xs: np.ndarray, out: np.ndarray, axis: int) -> None:
    """The arrays one after another along the axis."""
    if out.size >= PARALLEL_FROM and all(x.flags.c_contiguous for x in xs) and carry_out(plan_concat, xs, (out,), axis=axis):
        return
    np.concatenate(xs, axis, out)


def plan_pad(x: Spec, *, out: Spec, widths: tuple, value: float, mode: str) -> Plan | None:
    geometry = pad_geometry(x.shape, widths)
    if geometry is None:
        return None
    sizes, before, after = geometry
    parts = parts_for(math.prod(n + b + e for n, b, e in list(zip(*geometry, strict=True))[:3]), out.size)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        bits = bits_of(value, out.dtype)
        words = (parts, out.dtype.itemsize, bits, inputs[0], outputs[0], *sizes, *before, *after)
        return [runtime.row(pad_memory, parts, *words)]

    return Plan(bind)


def pad(x: np.ndarray, *, out: np.ndarray, widths: tuple, value: float, mode: str) -> None:
    """x with `value` added around it: (before, after) places for every axis. Only mode "constant" exists."""
    if out.size >= PARALLEL_FROM and carry_out(plan_pad, (x,), (out,), widths=widths, value=value, mode=mode):
        return
    inside = out
    for axis, (before, after) in enumerate(widths):
        lead = (slice(None),) * axis
        end = inside.shape[axis] - after
        if before:
            inside[*lead, slice(0, before)] = value
        if after:
            inside[*lead, slice(end, None)] = value
        inside = inside[(*lead, slice(before, end))]
    inside[...] = x


def plan_slice_scatter(g: Spec, *, out: Spec, shape: tuple, index: tuple) -> Plan | None:
    """Zeros, then the input copied to its places."""
    if out.ndim > 6:
        return None
    places = tuple(i if isinstance(i, slice) else slice(i, i + 1 or None) for i in index)  # a view, whatever is indexed

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        target = outputs[0][places]
        return [fill_row(outputs[0]), *_copies([(inputs[0].reshape(target.shape), target)])]

    return Plan(bind)


def slice_scatter(g: np.ndarray, *, out: np.ndarray, shape: tuple, index: tuple) -> None:
    """Adjoint of basic indexing: zeros of `shape` that hold g at `index`."""
    if out.size >= PARALLEL_FROM and out.flags.c_contiguous:
        plan = plan_slice_scatter(Spec(g.shape, g.dtype), out=Spec(out.shape, out.dtype), shape=shape, index=index)
        if plan is not None:
            runtime.call(plan, (g,), (out,))
            return
    out.fill(0)
    out[index] = g


def plan_contiguous(x: Spec, *, out: Spec) -> Plan | None:
    """A copy in row-major order; the input may be any view, whose strides `bind` reads."""
    if out.ndim > 6:
        return None
    return Plan(lambda inputs, outputs, workspace: _copies([(inputs[0], outputs[0])]), strided=True, strided_inputs=(0,))


def contiguous(x: np.ndarray, *, out: np.ndarray) -> None:
    """x in row-major order, whatever its layout."""
    rows = _copies([(x, out)]) if out.size >= PARALLEL_FROM else None
    if rows is None:
        np.copyto(out, x)
    else:
        runtime.run(rows)


def in_range(idx: np.ndarray, *, out: np.ndarray, low: int, high: int, what: str, limit: str) -> None:
    """A copy of `idx`, or RangeError where one is below `low` or not below `high`."""
    check_range(idx, low, high, what, limit)
    np.copyto(out, idx)
