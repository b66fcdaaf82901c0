"""Copies between layouts: contiguous, concat, pad, slice_scatter."""

from __future__ import annotations

import numpy as np

from ...errors import KernelError
from .elementwise import MOST_DIMENSIONS, broadcast_strides, collapse, describe_chain
from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256
TILE = 32  # of a transposition: rows and columns
_COPY = (("copy", (0,), ()),)


def describe_copy(b: Builder, source: View, target: View) -> None:
    """target = source, both of one shape and dtype, whatever their strides."""
    sizes, (to, of) = collapse(target.shape, [target.strides, source.strides])
    if target.dense and not _transposed(sizes, of, to):
        describe_chain(b, (source,), target, _COPY)
    elif _transposed(sizes, of, to):
        _transpose(b, source, target, sizes, of, to)
    else:
        _strided(b, source, target, sizes, of, to)


def _transposed(sizes, of, to) -> bool:
    """Whether the source runs along one dimension and the target along another, both long enough to be worth a tile."""
    if len(sizes) < 2 or to[-1] != 1 or of[-1] == 1 or 1 not in of or len(sizes) > 4:
        return False
    return sizes[-1] >= TILE // 2 and sizes[of.index(1)] >= TILE // 2


def _transpose(b: Builder, source: View, target: View, sizes, of, to) -> None:
    """Through shared memory: reads along the source's run, writes along the target's."""
    run = of.index(1)
    rest = [d for d in range(len(sizes)) if d not in (run, len(sizes) - 1)]
    batch = [sizes[d] for d in rest] + [1] * (2 - len(rest))
    source_batch, target_batch = ([s[d] for d in rest] + [0] * (2 - len(rest)) for s in (of, to))
    form = structure([
        ("rows", "u4", sizes[run]), ("columns", "u4", sizes[-1]), ("batch", "u4", np.array(batch, np.uint32)),
        ("source_pitch", "i8", of[-1]), ("target_pitch", "i8", to[run]),
        ("source_batch", "i8", np.array(source_batch, np.int64)), ("target_batch", "i8", np.array(target_batch, np.int64)),
    ])  # fmt: skip
    tiles = ceil_div(sizes[run], TILE) * ceil_div(sizes[-1], TILE)
    b.launch(
        "transpose.cu", "transpose", {"ELEMENT": _bits(source)}, tiles * batch[0] * batch[1], (TILE, 8), target, source, form
    )


def _bits(view: View) -> str:
    """A plain type of the same size: copies do not look at values."""
    return {1: "u8", 2: "u16", 4: "u32", 8: "u64"}[view.dtype.itemsize]


def _strided(b: Builder, source: View, target: View, sizes, of, to) -> None:
    if len(sizes) > MOST_DIMENSIONS:
        raise KernelError(f"copy: {len(sizes)} dimensions that cannot be merged, the kernel takes {MOST_DIMENSIONS}")
    lanes = 1
    if to[-1] == 1 and of[-1] == 1:
        lanes = vector_width(source, target, runs=[sizes[-1], *to[:-1], *of[:-1]])
    form = structure([
        ("count", "u8", source.size), ("sizes", "u4", _eight(sizes, np.uint32)), ("source", "i8", _eight(of, np.int64)),
        ("target", "i8", _eight(to, np.int64)),
    ])  # fmt: skip
    defines = {"ELEMENT": _bits(source), "LANES": lanes, "RANK": len(sizes)}
    b.launch("copies.cu", "strided", defines, ceil_div(source.size // lanes, BLOCK), BLOCK, target, source, form)


def _eight(values, dtype, filler: int = 0) -> np.ndarray:
    made = np.full(MOST_DIMENSIONS, filler, dtype)
    made[: len(values)] = values
    return made


@kernel
def contiguous(b: Builder, x: View, *, out: View) -> None:
    describe_copy(b, x, out)


@kernel
def concat(b: Builder, *inputs: View, out: View, axis: int) -> None:
    start = 0
    for x in inputs:
        if x.size:
            describe_copy(b, x, out.moved(start * out.strides[axis], x.shape, out.strides))
        start += x.shape[axis]


@kernel
def pad(b: Builder, x: View, *, out: View, widths, value: float, mode: str) -> None:
    place(b, x, out, [before for before, _ in widths], [1] * x.ndim, x.shape, x.strides, value)


@kernel
def slice_scatter(b: Builder, g: View, *, out: View, shape, index) -> None:
    starts, steps, counts, strides = [], [], [], []
    dimension = iter(range(g.ndim))
    for n, i in zip(shape, index, strict=True):
        if isinstance(i, slice):
            d, positions = next(dimension), range(*i.indices(n))
            backwards = positions.step < 0
            starts.append(min(positions[0], positions[-1]) if len(positions) else 0)
            steps.append(abs(positions.step))
            counts.append(len(positions))
            strides.append((-g.strides[d], (len(positions) - 1) * g.strides[d]) if backwards else (g.strides[d], 0))
        else:
            starts.append(i % n)
            steps.append(1)
            counts.append(1)
            strides.append((0, 0))
    first = sum(extra for _, extra in strides)
    place(b, g.moved(first, g.shape, g.strides) if g.size else g, out, starts, steps, counts, [s for s, _ in strides], 0.0)


def place(b: Builder, x: View, out: View, starts, steps, counts, strides, value: float) -> None:
    """out[start + k * step] = x[k] for k < count along every dimension of `out`, and `value` elsewhere."""
    if out.ndim > MOST_DIMENSIONS:
        raise KernelError(f"place: {out.ndim} dimensions, the kernel takes {MOST_DIMENSIONS}")
    form = structure([
        ("count", "u8", out.size), ("sizes", "u4", _eight(out.shape, np.uint32, 1)), ("starts", "i4", _eight(starts, np.int32)),
        ("steps", "i4", _eight(steps, np.int32, 1)), ("counts", "i4", _eight(counts, np.int32, 1)),
        ("strides", "i8", _eight(strides, np.int64)), ("value", "f8", value),
    ])  # fmt: skip
    defines = {"ELEMENT": c_type(out.dtype), "RANK": out.ndim}
    b.launch("place.cu", "place", defines, ceil_div(out.size, BLOCK), BLOCK, out, x, form)


__all__ = ["broadcast_strides", "concat", "contiguous", "describe_copy", "pad", "place", "slice_scatter"]
