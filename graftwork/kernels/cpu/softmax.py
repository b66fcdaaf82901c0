"""Softmax, its logarithm, their gradients and the cross-entropy: a row of the axis at a time, which stays in the cache.

Where the axis is not the last one, a vector holds neighbouring rows of it instead. Small arrays stay with NumPy. Sums
accumulate in float64.
"""

from __future__ import annotations

import math

import numpy as np

from ..plan import Plan, Spec
from . import atomic, functions, runtime
from .copies import index_at
from .jit import njit
from .planning import all_float32, carry_out, parts_for
from .simd import LANES
from .vector import (
    compiled,
    double,
    fill,
    fill64,
    lanes_below,
    largest,
    load,
    load_some,
    maximum,
    single,
    store,
    store_some,
    total,
    where,
)  # fmt: skip

PARALLEL_FROM = 1 << 13  # elements; an exponential costs more than an addition, so threads pay off early

_exp, _exp_negative = compiled(functions.exp), compiled(functions.exp_negative)
_log = compiled(functions.log)
_LOW = np.float32(-np.inf)


# -- rows of the last axis ---------------------------------------------------------------------------------------------


@njit(nogil=True)
def _row_max(x, at, n):
    """Largest element of a row; NaN may be missed (the sum of exponentials does not miss it)."""
    a = b = fill(_LOW)
    i = 0
    while i + 2 * LANES <= n:
        a, b = maximum(a, load(x, at + i)), maximum(b, load(x, at + i + LANES))
        i += 2 * LANES
    while i < n:
        a = maximum(where(lanes_below(n - i), load_some(x, at + i, n - i), fill(_LOW)), a)
        i += LANES
    return largest(maximum(a, b))


@njit(nogil=True)
def _exp_row(x, at, n, shift, out, target):
    """out = exp(x - shift); returns the sum."""
    s, t, zero = fill64(0.0), fill64(0.0), fill(np.float32(0))
    i = 0
    while i + 2 * LANES <= n:
        e, f = _exp_negative(load(x, at + i) - shift), _exp_negative(load(x, at + i + LANES) - shift)
        s, t = s + double(e), t + double(f)
        store(out, target + i, e)
        store(out, target + i + LANES, f)
        i += 2 * LANES
    while i < n:
        e = where(lanes_below(n - i), _exp_negative(load_some(x, at + i, n - i) - shift), zero)
        s += double(e)
        store_some(out, target + i, e, n - i)
        i += LANES
    return total(s + t)


@njit(nogil=True)
def _exp_sum(x, at, n, shift):
    s, t, zero = fill64(0.0), fill64(0.0), fill(np.float32(0))
    i = 0
    while i + 2 * LANES <= n:
        s += double(_exp_negative(load(x, at + i) - shift))
        t += double(_exp_negative(load(x, at + i + LANES) - shift))
        i += 2 * LANES
    while i < n:
        s += double(where(lanes_below(n - i), _exp_negative(load_some(x, at + i, n - i) - shift), zero))
        i += LANES
    return total(s + t)


@runtime.task
def softmax_rows(a, part):
    """Words: parts, rows, n, whether the logarithm is wanted, x, out."""
    n, x, out = a[2], atomic.f32(a, 4), atomic.f32(a, 5)
    for r in range(a[1] * part // a[0], a[1] * (part + 1) // a[0]):
        at = r * n
        shift = _row_max(x, at, n)
        if a[3]:
            rest = np.float32(np.log(_exp_sum(x, at, n, shift)))
            for i in range(0, n, LANES):
                store_some(out, at + i, load_some(x, at + i, n - i) - shift - rest, n - i)
        else:
            scale = np.float32(1.0 / _exp_row(x, at, n, shift, out, at))
            for i in range(0, n, LANES):
                store_some(out, at + i, load_some(out, at + i, n - i) * scale, n - i)


@runtime.task
def softmax_grad_rows(a, part):
    """Words: parts, rows, n, whether y is a logarithm, g, y, out."""
    n, g, y, out = a[2], atomic.f32(a, 4), atomic.f32(a, 5), atomic.f32(a, 6)
    for r in range(a[1] * part // a[0], a[1] * (part + 1) // a[0]):
        at = r * n
        s = fill64(0.0)
        if a[3]:
            for i in range(0, n, LANES):
                s += double(load_some(g, at + i, n - i))
            along = np.float32(total(s))
            for i in range(0, n, LANES):
                up = load_some(g, at + i, n - i)
                store_some(out, at + i, up - _exp(load_some(y, at + i, n - i)) * along, n - i)
        else:
            other, i = fill64(0.0), 0
            while i + 2 * LANES <= n:
                j = at + i + LANES
                s += double(load(g, at + i)) * double(load(y, at + i))
                other += double(load(g, j)) * double(load(y, j))
                i += 2 * LANES
            while i < n:
                s += double(load_some(g, at + i, n - i)) * double(load_some(y, at + i, n - i))
                i += LANES
            along = np.float32(total(s + other))
            for i in range(0, n, LANES):
                up = load_some(g, at + i, n - i)
                store_some(out, at + i, load_some(y, at + i, n - i) * (up - along), n - i)


@runtime.task
def cross_entropy_rows(a, part):
    """Words: parts, rows, classes, bytes a label, logits, labels' address, out, smoothing. A label out of range gives NaN."""
    n, x, out, smoothing = a[2], atomic.f32(a, 4), atomic.f32(a, 6), atomic.real(a, 7)
    for r in range(a[1] * part // a[0], a[1] * (part + 1) // a[0]):
        at, label = r * n, index_at(a[5], r, a[3])
        if label < 0 or label >= n:
            out[r] = np.float32(np.nan)
            continue
        shift = _row_max(x, at, n)
        loss = np.log(_exp_sum(x, at, n, shift)) - (1.0 - smoothing) * (np.float64(x[at + label]) - shift)
        if smoothing != 0.0:
            s = fill64(0.0)
            for i in range(0, n, LANES):
                s += double(load_some(x, at + i, n - i))
            loss -= smoothing * (total(s) / n - shift)
        out[r] = np.float32(loss)


# -- other axes: (outer, n, inner), vectors over inner ------------------------------------------------------------------


@runtime.task
def softmax_columns(a, part):
    """Words: parts, outer, n, whether the logarithm is wanted, x, out, inner."""
    n, inner, x, out = a[2], a[6], atomic.f32(a, 4), atomic.f32(a, 5)
    tiles = (inner + LANES - 1) // LANES
    for k in range(a[1] * tiles * part // a[0], a[1] * tiles * (part + 1) // a[0]):
        column = k % tiles * LANES
        first, count = k // tiles * n * inner + column, inner - column
        last = first + n * inner
        shift = fill(_LOW)
        for p in range(first, last, inner):
            shift = maximum(load_some(x, p, count), shift)
        s = fill64(0.0)
        for p in range(first, last, inner):
            e = _exp_negative(load_some(x, p, count) - shift)
            s += double(e)
            if not a[3]:
                store_some(out, p, e, count)
        if a[3]:
            rest = _log(single(s))
            for p in range(first, last, inner):
                store_some(out, p, load_some(x, p, count) - shift - rest, count)
        else:
            scale = single(1.0 / s)
            for p in range(first, last, inner):
                store_some(out, p, load_some(out, p, count) * scale, count)


@runtime.task
def softmax_grad_columns(a, part):
    """Words: parts, outer, n, whether y is a logarithm, g, y, out, inner."""
    n, inner, g, y, out = a[2], a[7], atomic.f32(a, 4), atomic.f32(a, 5), atomic.f32(a, 6)
    tiles = (inner + LANES - 1) // LANES
    for k in range(a[1] * tiles * part // a[0], a[1] * tiles * (part + 1) // a[0]):
        column = k % tiles * LANES
        first, count = k // tiles * n * inner + column, inner - column
        last = first + n * inner
        s = fill64(0.0)
        for p in range(first, last, inner):
            up = double(load_some(g, p, count))
            s += up if a[3] else up * double(load_some(y, p, count))
        along = single(s)
        for p in range(first, last, inner):
            up, value = load_some(g, p, count), load_some(y, p, count)
            store_some(out, p, up - _exp(value) * along if a[3] else value * (up - along), count)


# -- plans -------------------------------------------------------------------------------------------------------------


def _plan(rows, columns, logarithm: int, inputs: tuple[Spec, ...], out: Spec, axis: int) -> Plan | None:
    if not all_float32(*inputs):
        return None
    outer, n, inner = math.prod(out.shape[:axis]), out.shape[axis], math.prod(out.shape[axis + 1 :])
    pieces = outer if inner == 1 else outer * -(-inner // LANES)
    parts = parts_for(pieces, 8 * out.size)

    def bind(arrays, outputs, workspace):
        if out.size == 0:
            return []
        task, extra = (rows, ()) if inner == 1 else (columns, (inner,))
        return [runtime.row(task, parts, parts, outer, n, logarithm, *arrays, outputs[0], *extra)]

    return Plan(bind, in_place=tuple(range(len(inputs))))


def plan_softmax(x: Spec, *, out: Spec, axis: int) -> Plan | None:
    return _plan(softmax_rows, softmax_columns, 0, (x,), out, axis)


def plan_log_softmax(x: Spec, *, out: Spec, axis: int) -> Plan | None:
    return _plan(softmax_rows, softmax_columns, 1, (x,), out, axis)


def plan_softmax_grad(g: Spec, y: Spec, *, out: Spec, axis: int) -> Plan | None:
    return _plan(softmax_grad_rows, softmax_grad_columns, 0, (g, y), out, axis)


def plan_log_softmax_grad(g: Spec, y: Spec, *, out: Spec, axis: int) -> Plan | None:
    return _plan(softmax_grad_rows, softmax_grad_columns, 1, (g, y), out, axis)


_LABEL_ITEMS = {"int64": 8, "uint64": 8, "int32": 4, "uint8": 1}


def plan_cross_entropy(logits: Spec, labels: Spec, *, out: Spec, label_smoothing: float) -> Plan | None:
    """Loss of each row; a label out of range gives NaN: a plan cannot raise."""
    item = _LABEL_ITEMS.get(labels.dtype.name)
    if not all_float32(logits) or item is None:
        return None
    rows, classes = logits.shape
    parts = parts_for(rows, 8 * logits.size)

    def bind(arrays, outputs, workspace):
        if out.size == 0:
            return []
        words = (parts, rows, classes, item, *arrays, outputs[0], float(label_smoothing))
        return [runtime.row(cross_entropy_rows, parts, *words)]

    return Plan(bind)


# -- eager kernels -----------------------------------------------------------------------------------------------------


def _planned(planner, arrays: tuple[np.ndarray, ...], out: np.ndarray, axis: int) -> bool:
    return out.size >= PARALLEL_FROM and carry_out(planner, arrays, (out,), axis=axis)


def softmax(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """e^x normalised to sum to one along the axis."""
    if x.size and not _planned(plan_softmax, (x,), out, axis):
        np.subtract(x, np.maximum.reduce(x, axis, keepdims=True), out)
        np.exp(out, out)
        np.divide(out, np.add.reduce(out, axis, keepdims=True), out)


def log_softmax(x: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Logarithm of the softmax along the axis."""
    if x.size and not _planned(plan_log_softmax, (x,), out, axis):
        np.subtract(x, np.maximum.reduce(x, axis, keepdims=True), out)
        np.subtract(out, np.log(np.add.reduce(np.exp(out), axis, keepdims=True)), out)


def softmax_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Gradient of softmax from its output y: y * (g - sum(g * y))."""
    if not _planned(plan_softmax_grad, (g, y), out, axis):
        np.multiply(g, y, out)
        np.multiply(y, g - np.add.reduce(out, axis, keepdims=True), out)


def log_softmax_grad(g: np.ndarray, y: np.ndarray, *, out: np.ndarray, axis: int) -> None:
    """Gradient of log_softmax from its output y: g - e^y * sum(g)."""
    if not _planned(plan_log_softmax_grad, (g, y), out, axis):
        np.multiply(np.exp(y), np.add.reduce(g, axis, keepdims=True), out)
        np.subtract(g, out, out)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, *, out: np.ndarray, label_smoothing: float) -> None:
    """Loss of each row: logits (N, C), integer labels (N,) -> (N,). IndexError for a label outside [0, C)."""
    if not labels.size:
        return
    classes = logits.shape[1]
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise IndexError(f"label {labels[wrong][0]} is out of range for {classes} classes")
    if logits.size >= PARALLEL_FROM:
        labels = np.ascontiguousarray(labels, np.int64)
        if carry_out(plan_cross_entropy, (logits, labels), (out,), label_smoothing=label_smoothing):
            return
    shifted = logits - np.maximum.reduce(logits, 1, keepdims=True)
    np.log(np.add.reduce(np.exp(shifted), 1), out)
    chosen = shifted[np.arange(labels.size), labels]
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * shifted.mean(axis=1)
    np.subtract(out, chosen, out)
