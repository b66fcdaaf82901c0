"""Reductions and softmax: a block a row, a tree in shared memory."""

from __future__ import annotations

import math

from numba import cuda, float32

from .runtime import TREE, dense, launch, library, rows

NOTHING = float32(-math.inf)


def _reduction(start, combine):
    """The kernel that reduces each row of x (rows, length) into out (rows,), times `scale`."""
    f = cuda.jit(combine, device=True)

    def kernel(out, x, scale):
        partial = cuda.shared.array(TREE, float32)
        row, t = cuda.blockIdx.x, cuda.threadIdx.x
        value = float32(start)
        for i in range(t, x.shape[1], TREE):
            value = f(value, x[row, i])
        partial[t] = value
        half = TREE // 2
        while half > 0:
            cuda.syncthreads()
            if t < half:
                partial[t] = f(partial[t], partial[t + half])
            half //= 2
        if t == 0:
            out[row] = partial[0] * scale

    return kernel


KERNELS = {
    "sum": _reduction(0.0, lambda x, y: x + y),
    "prod": _reduction(1.0, lambda x, y: x * y),
    "max": _reduction(-math.inf, lambda x, y: x if x > y or x != x else y),  # a NaN wins
    "min": _reduction(math.inf, lambda x, y: x if x < y or x != x else y),
}


def _call(name: str, x, out, axis, scale: float = 1.0) -> None:
    kept = [d for d in range(x.ndim) if d not in axis]
    length = math.prod(x.shape[d] for d in axis)
    flat = dense(x.transpose([*kept, *axis])).reshape(out.size, length)
    launch(KERNELS[name], out.size, TREE, out.reshape(-1), flat, float32(scale))


def sum(x, *, out, axis, keepdims) -> None:
    _call("sum", x, out, axis)


def mean(x, *, out, axis, keepdims) -> None:
    count = math.prod(x.shape[d] for d in axis)
    _call("sum", x, out, axis, 1 / count if count else math.nan)


def prod(x, *, out, axis, keepdims) -> None:
    _call("prod", x, out, axis)


def max(x, *, out, axis, keepdims) -> None:
    _call("max", x, out, axis)


def min(x, *, out, axis, keepdims) -> None:
    _call("min", x, out, axis)


def softmax_rows(out, x, logarithm):
    """out = softmax of each row, or its logarithm. Three looks at the row: largest, sum, result."""
    partial = cuda.shared.array(TREE, float32)
    row, t, length = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    largest = NOTHING
    for i in range(t, length, TREE):
        v = x[row, i]
        largest = v if v > largest or v != v else largest
    partial[t] = largest
    half = TREE // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            other = partial[t + half]
            partial[t] = other if other > partial[t] or other != other else partial[t]
        half //= 2
    cuda.syncthreads()
    largest = partial[0]
    cuda.syncthreads()
    total = float32(0)
    for i in range(t, length, TREE):
        total += math.exp(x[row, i] - largest)
    partial[t] = total
    half = TREE // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            partial[t] += partial[t + half]
        half //= 2
    cuda.syncthreads()
    total = partial[0]
    for i in range(t, length, TREE):
        shifted = x[row, i] - largest
        out[row, i] = shifted - math.log(total) if logarithm else math.exp(shifted) / total


def _softmax(x, out, axis: int, logarithm: bool) -> None:
    flat = rows(x, axis)
    result = library(x).empty_like(flat)
    launch(softmax_rows, flat.shape[0], TREE, result, flat, logarithm)
    moved = library(x).moveaxis(out, axis, -1)
    moved[...] = result.reshape(moved.shape)


def softmax(x, *, out, axis) -> None:
    _softmax(x, out, axis, False)


def log_softmax(x, *, out, axis) -> None:
    _softmax(x, out, axis, True)
