"""Reductions on the GPU: sums and extremes over any dimensions, positions of extremes, running sums."""

from __future__ import annotations

import math

import numpy as np

from .launch import Builder, View, c_type, ceil_div, dense_strides, kernel, structure, vector_width

SHORT = 512  # elements of a row that one warp reduces
LEAST_SHARE = 2048  # elements of a share, so that a second pass is worth its launch
_OPERATIONS = {"sum": "Sum", "mean": "Sum", "prod": "Product", "max": "Maximum", "min": "Minimum"}


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype that partial results are kept in: float32 for 16-bit floating point."""
    return np.dtype(np.float32) if dtype.name in ("float16", "bfloat16") else dtype


def arranged(b: Builder, x: View, axis: tuple[int, ...]) -> tuple[View, int, int, int]:
    """x as a dense (outer, length, inner), reduced over the middle: a copy where the axes do not lie together."""
    axes = sorted(a for a in axis if x.shape[a] != 1)
    if not axes:
        x = b.dense(x)
        return x, x.size, 1, 1
    between = [d for d in range(axes[0], axes[-1] + 1) if x.shape[d] != 1]
    if between != axes:  # other dimensions in between: bring the axes to the end
        order = [d for d in range(x.ndim) if d not in axes] + axes
        x = x._replace(shape=tuple(x.shape[d] for d in order), strides=tuple(x.strides[d] for d in order))
        axes = list(range(x.ndim - len(axes), x.ndim))
    x = b.dense(x)
    outer, inner = math.prod(x.shape[: axes[0]]), math.prod(x.shape[axes[-1] + 1 :])
    return x, outer, math.prod(x.shape[d] for d in axes), inner


def _reduction(name: str):
    def describe(b: Builder, x: View, *, out: View, axis, keepdims: bool) -> None:
        count = math.prod(x.shape[a] for a in axis)
        scale = (1 / count if count else math.nan) if name == "mean" else 1.0
        reduce_into(b, x, out, tuple(axis), _OPERATIONS[name], scale)

    describe.__name__ = describe.__qualname__ = name
    return kernel(describe)


sum, mean, prod, max, min = (_reduction(name) for name in ("sum", "mean", "prod", "max", "min"))


def reduce_into(b: Builder, x: View, out: View, axis: tuple[int, ...], operation: str, scale: float = 1.0) -> None:
    """Add the launches that reduce x over `axis` into the dense array `out`."""
    if out.size == 0:
        return
    x, outer, length, inner = arranged(b, x, axis)
    kind = accumulator(x.dtype)
    parts = shares(b, outer * (inner if inner == 1 else ceil_div(inner, 32)), length, inner)
    if parts == 1:
        _launch(b, x, out, kind, operation, (outer, length, inner), 1, scale)
        return
    partial = b.empty((outer, parts, inner), kind)
    _launch(b, x, partial, kind, operation, (outer, length, inner), parts, 1.0)
    _launch(b, partial, out, kind, operation, (outer, parts, inner), 1, scale)


def shares(b: Builder, blocks: int, length: int, inner: int) -> int:
    """Into how many shares the length is divided, so that all multiprocessors have something to do."""
    wanted = ceil_div(b.processors * 4, blocks)
    most = length // (LEAST_SHARE if inner == 1 else LEAST_SHARE // 32)
    return 1 if wanted < 2 or most < 2 else wanted if wanted < most else most


def _launch(b: Builder, x: View, out: View, kind, operation: str, extent, parts: int, scale: float) -> None:
    outer, length, inner = extent
    lanes = vector_width(x, runs=[length]) if inner == 1 and length > SHORT else 1
    form = structure([("outer", "u8", outer), ("length", "u8", length), ("inner", "u8", inner), ("parts", "u4", parts),
                      ("scale", "f8", scale)])  # fmt: skip
    defines = {"ELEMENT": c_type(x.dtype), "RESULT": c_type(out.dtype), "PARTIAL": c_type(kind), "OPERATION": operation,
        "LANES": lanes,
               "SCALED": int(scale != 1.0)}  # fmt: skip
    grid: tuple[int, ...]
    block: tuple[int, ...]
    if inner > 1:
        grid, block, name = (ceil_div(inner, 32), parts, _at_most(outer)), (32, 8), "reduce_columns"
    elif length <= SHORT and parts == 1:
        grid, block, name = (ceil_div(outer, 8),), (256,), "reduce_short_rows"
    else:
        grid, block, name = (outer * parts,), (256,), "reduce_rows"
    b.launch("reduce.cu", name, defines, grid, block, out, x, form)


def _at_most(outer: int) -> int:
    return outer if outer < 65535 else 65535


def column_sums(b: Builder, x: View, out: View, channels: int) -> None:
    """out[channels] = sums of x taken as rows of `channels`."""
    rows = x.size // channels if channels else 0
    reduce_into(b, x._replace(shape=(rows, channels), strides=dense_strides((rows, channels))), out, (0,), "Sum")


def _arg(name: str, beats: str):
    def describe(b: Builder, x: View, *, out: View, axis, keepdims: bool) -> None:
        x = b.dense(x)
        outer, length, inner = (1, x.size, 1) if axis is None else _around(x, axis)
        form = structure([("outer", "u8", outer), ("length", "u8", length), ("inner", "u8", inner)])
        defines = {"ELEMENT": c_type(x.dtype), "BEATS(x, y)": beats}
        b.launch("arg_reduce.cu", "arg_reduce", defines, outer * inner, 128, out, x, form)

    describe.__name__ = describe.__qualname__ = name
    return kernel(describe)


argmax, argmin = _arg("argmax", "(x > y)"), _arg("argmin", "(x < y)")


def _around(x: View, axis: int) -> tuple[int, int, int]:
    return math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])


@kernel
def cumsum(b: Builder, x: View, *, out: View, axis: int) -> None:
    x = b.dense(x)
    outer, length, inner = _around(x, axis)
    if x.size == 0:
        return
    form = structure([("outer", "u8", outer), ("length", "u8", length), ("inner", "u8", inner)])
    defines = {"ELEMENT": c_type(x.dtype), "PARTIAL": c_type(accumulator(x.dtype))}
    if inner == 1:
        b.launch("scan.cu", "scan_rows", defines, outer, 256, out, x, form)
    else:
        b.launch("scan.cu", "scan_columns", defines, ceil_div(outer * inner, 256), 256, out, x, form)
