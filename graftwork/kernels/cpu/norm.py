"""Batch and layer normalisation over arrays whose last axis is the channel.

Statistics accumulate in float64, in blocks of rows whose number depends on the shape alone and whose sums are then added in
order: results depend neither on the number of threads nor on their timing.
"""

from __future__ import annotations

import math

import numpy as np

from ..plan import Plan, Spec, pitch
from . import atomic, runtime
from .jit import njit
from .planning import all_float32, carry_out, parts_for
from .simd import LANES
from .vector import double, fill64, load, load_some, multiply_add, single, sqrt, store, store_some, total, where

SMALL = 1 << 13  # elements, below which inference stays with NumPy
BLOCK = 1 << 13  # fewest elements worth a block of their own
MOST_BLOCKS = 32


def _rows(*arrays: np.ndarray) -> list[np.ndarray]:
    """Contiguous (rows, channels) views or copies."""
    channels = arrays[0].shape[-1]
    rows = arrays[0].size // max(channels, 1)
    return [np.ascontiguousarray(a).reshape(rows, channels) for a in arrays]


def _blocks(rows: int, channels: int) -> int:
    return max(1, min(MOST_BLOCKS, rows * channels // BLOCK, rows // 32))


# -- passes over rows --------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _scale_rows(x, x_step, out, out_step, first, last, channels, scale, shift):
    """out = x * scale + shift for rows first to last; the factors are vectors of channels."""
    for c in range(0, channels, LANES):
        count = channels - c
        factor, offset = load_some(scale, c, count), load_some(shift, c, count)
        if count >= LANES:
            for r in range(first, last):
                store(out, r * out_step + c, multiply_add(load(x, r * x_step + c), factor, offset))
        else:
            for r in range(first, last):
                value = load_some(x, r * x_step + c, count)
                store_some(out, r * out_step + c, multiply_add(value, factor, offset), count)


_BAND = 4096  # elements that are walked through for one vector of channels after the other: they stay in the first cache


@runtime.task
def scale_shift(a, part):
    """Words: parts, rows, channels, x, its pitch, out, its pitch, scale, shift."""
    rows, channels = a[1], a[2]
    first, last = rows * part // a[0], rows * (part + 1) // a[0]
    step = max(_BAND // max(channels, 1), 1)
    for start in range(first, last, step):
        end = min(start + step, last)
        _scale_rows(
            atomic.f32(a, 3), a[4], atomic.f32(a, 5), a[6], start, end, channels, atomic.f32(a, 7), atomic.f32(a, 8)
        )


@runtime.task
def inference_factors(a, part):
    """Words: channels, gamma, beta, mean, var, scale, shift, epsilon: y = x * scale + shift."""
    gamma, beta, mean, var = atomic.f32(a, 1), atomic.f32(a, 2), atomic.f32(a, 3), atomic.f32(a, 4)
    scale, shift, epsilon = atomic.f32(a, 5), atomic.f32(a, 6), atomic.real(a, 7)
    for c in range(a[0]):
        factor = gamma[c] / np.sqrt(var[c] + epsilon)
        scale[c] = np.float32(factor)
        shift[c] = np.float32(beta[c] - mean[c] * factor)


@njit(nogil=True)
def _clear(partial, base, count):
    for c in range(0, count, LANES):
        store_some(partial, base + c, fill64(0.0), count - c)


@njit(nogil=True)
def _band_rows(channels):
    """Rows that are gone through for one vector of channels after the other: they stay in the first cache, and are enough to
    make up for the sums that are loaded and stored between them."""
    return max(_BAND // max(channels, 1), 16)


@runtime.task
def moments(a, part):
    """Sums and sums of squares of x - x[0] by block -> float64 (blocks, 2, C).

    Words: parts, rows, channels, blocks, x, partial. Shifting by a sample keeps the squares from cancelling (Chan, Golub and
    LeVeque, 1983).
    """
    rows, channels, blocks = a[1], a[2], a[3]
    x, partial = atomic.f32(a, 4), atomic.f64(a, 5)
    step = _band_rows(channels)
    for block in range(blocks * part // a[0], blocks * (part + 1) // a[0]):
        base, end = 2 * block * channels, (block + 1) * rows // blocks
        _clear(partial, base, 2 * channels)
        for first in range(block * rows // blocks, end, step):
            last = min(first + step, end)
            for c in range(0, channels, LANES):
                count = channels - c
                shift = double(load_some(x, c, count))
                s0, q0 = load_some(partial, base + c, count), load_some(partial, base + channels + c, count)
                s1, q1 = fill64(0.0), fill64(0.0)
                if count >= LANES:
                    r = first
                    while r + 2 <= last:
                        d0, d1 = double(load(x, r * channels + c)) - shift, double(load(x, (r + 1) * channels + c)) - shift
                        s0, s1 = s0 + d0, s1 + d1
                        q0, q1 = q0 + d0 * d0, q1 + d1 * d1
                        r += 2
                    if r < last:
                        d0 = double(load(x, r * channels + c)) - shift
                        s0, q0 = s0 + d0, q0 + d0 * d0
                else:
                    for r in range(first, last):
                        d0 = double(load_some(x, r * channels + c, count)) - shift
                        s0, q0 = s0 + d0, q0 + d0 * d0
                store_some(partial, base + c, s0 + s1, count)
                store_some(partial, base + channels + c, q0 + q1, count)


@njit(nogil=True)
def _total_of(partial, blocks, channels, which, c):
    """Sums over the blocks for the vector of channels that starts at c."""
    value, at = fill64(0.0), which * channels + c
    for _ in range(blocks):
        value += load_some(partial, at, channels - c)
        at += 2 * channels
    return value


@runtime.task
def training_factors(a, part):
    """Words: rows, channels, blocks, x, partial, gamma, beta, mean, var, scale, shift, epsilon."""
    channels, blocks, share = a[1], a[2], 1.0 / a[0]
    x, partial, gamma, beta = atomic.f32(a, 3), atomic.f64(a, 4), atomic.f32(a, 5), atomic.f32(a, 6)
    mean, var, scale, shift = atomic.f32(a, 7), atomic.f32(a, 8), atomic.f32(a, 9), atomic.f32(a, 10)
    epsilon = atomic.real(a, 11)
    for c in range(0, channels, LANES):
        count = channels - c
        offset, squares = _total_of(partial, blocks, channels, 0, c) * share, _total_of(partial, blocks, channels, 1, c) * share
        variance = squares - offset * offset
        variance = where(variance < 0.0, fill64(0.0), variance)  # a constant channel may round to just below zero
        store_some(mean, c, single(double(load_some(x, c, count)) + offset), count)
        store_some(var, c, single(variance), count)
        store_some(scale, c, single(double(load_some(gamma, c, count)) / sqrt(variance + epsilon)), count)
        store_some(shift, c, load_some(beta, c, count), count)


@njit(nogil=True)
def _centre_rows(x, out, first, last, channels, mean, scale, shift):
    """out = (x - mean) * scale + shift."""
    for c in range(0, channels, LANES):
        count = channels - c
        centre, factor, offset = load_some(mean, c, count), load_some(scale, c, count), load_some(shift, c, count)
        if count >= LANES:
            for r in range(first, last):
                store(out, r * channels + c, multiply_add(load(x, r * channels + c) - centre, factor, offset))
        else:
            for r in range(first, last):
                value = load_some(x, r * channels + c, count) - centre
                store_some(out, r * channels + c, multiply_add(value, factor, offset), count)


@runtime.task
def normalise(a, part):
    """Words: parts, rows, channels, x, out, mean, scale, shift."""
    rows, channels = a[1], a[2]
    first, last = rows * part // a[0], rows * (part + 1) // a[0]
    step = max(_BAND // max(channels, 1), 1)
    for start in range(first, last, step):
        end = min(start + step, last)
        _centre_rows(
            atomic.f32(a, 3), atomic.f32(a, 4), start, end, channels, atomic.f32(a, 5), atomic.f32(a, 6), atomic.f32(a, 7)
        )


@runtime.task
def batch_grad_sums(a, part):
    """Sums of g and of g * (x - mean) by block -> float64 (blocks, 2, C).
    Words: parts, rows, channels, blocks, g, x, mean, partial."""
    rows, channels, blocks = a[1], a[2], a[3]
    g, x, mean, partial = atomic.f32(a, 4), atomic.f32(a, 5), atomic.f32(a, 6), atomic.f64(a, 7)
    step = _band_rows(channels)
    for block in range(blocks * part // a[0], blocks * (part + 1) // a[0]):
        base, end = 2 * block * channels, (block + 1) * rows // blocks
        _clear(partial, base, 2 * channels)
        for first in range(block * rows // blocks, end, step):
            last = min(first + step, end)
            for c in range(0, channels, LANES):
                count = channels - c
                centre = double(load_some(mean, c, count))
                s0, q0 = load_some(partial, base + c, count), load_some(partial, base + channels + c, count)
                s1, q1 = fill64(0.0), fill64(0.0)
                if count >= LANES:
                    r = first
                    while r + 2 <= last:
                        i, j = r * channels + c, (r + 1) * channels + c
                        u0, u1 = double(load(g, i)), double(load(g, j))
                        s0, s1 = s0 + u0, s1 + u1
                        q0, q1 = q0 + u0 * (double(load(x, i)) - centre), q1 + u1 * (double(load(x, j)) - centre)
                        r += 2
                    if r < last:
                        u0 = double(load(g, r * channels + c))
                        s0, q0 = s0 + u0, q0 + u0 * (double(load(x, r * channels + c)) - centre)
                else:
                    for r in range(first, last):
                        u0 = double(load_some(g, r * channels + c, count))
                        s0, q0 = s0 + u0, q0 + u0 * (double(load_some(x, r * channels + c, count)) - centre)
                store_some(partial, base + c, s0 + s1, count)
                store_some(partial, base + channels + c, q0 + q1, count)


@runtime.task
def batch_grad_factors(a, part):
    """Words: rows, channels, blocks, partial, gamma, var, dgamma, dbeta, factors (3, C), epsilon.

    dx = factors[0] * (g - factors[2] - factors[1] * (x - mean)).
    """
    rows, channels, blocks = a[0], a[1], a[2]
    partial, gamma, var = atomic.f64(a, 3), atomic.f32(a, 4), atomic.f32(a, 5)
    dgamma, dbeta, factors, epsilon = atomic.f32(a, 6), atomic.f32(a, 7), atomic.f32(a, 8), atomic.real(a, 9)
    share = 1.0 / max(rows, 1)
    for c in range(0, channels, LANES):
        count = channels - c
        sum_g, along = _total_of(partial, blocks, channels, 0, c), _total_of(partial, blocks, channels, 1, c)
        rstd = 1.0 / sqrt(double(load_some(var, c, count)) + epsilon)
        store_some(dgamma, c, single(along * rstd), count)
        store_some(dbeta, c, single(sum_g), count)
        scale = double(load_some(gamma, c, count)) * rstd
        store_some(factors, c, single(scale), count)
        store_some(factors, channels + c, single(along * rstd * rstd * share), count)
        store_some(factors, 2 * channels + c, single(sum_g * share), count)


@runtime.task
def batch_grad_rows(a, part):
    """Words: parts, rows, channels, g, x, out, mean, factors."""
    rows, channels = a[1], a[2]
    g, x, out, mean, factors = atomic.f32(a, 3), atomic.f32(a, 4), atomic.f32(a, 5), atomic.f32(a, 6), atomic.f32(a, 7)
    first, last = rows * part // a[0], rows * (part + 1) // a[0]
    step = max(_BAND // max(channels, 1), 1)
    for start in range(first, last, step):
        end = min(start + step, last)
        for c in range(0, channels, LANES):
            count = channels - c
            centre, scale = load_some(mean, c, count), load_some(factors, c, count)
            slope, offset = load_some(factors, channels + c, count), load_some(factors, 2 * channels + c, count)
            if count >= LANES:
                for r in range(start, end):
                    i = r * channels + c
                    store(out, i, (load(g, i) - offset - (load(x, i) - centre) * slope) * scale)
            else:
                for r in range(start, end):
                    i = r * channels + c
                    value = load_some(g, i, count) - offset - (load_some(x, i, count) - centre) * slope
                    store_some(out, i, value * scale, count)


# -- batch norm: plans -------------------------------------------------------------------------------------------------


def _extent(x: Spec) -> tuple[int, int]:
    return math.prod(x.shape[:-1]), x.shape[-1]


def plan_batch_norm(x: Spec, gamma: Spec, beta: Spec, mean: Spec, var: Spec, *, out: Spec, epsilon: float) -> Plan | None:
    """One pass, x * scale + shift; the factors are made first, from the vectors as they are at that time."""
    if not all_float32(x, gamma, beta, mean, var):
        return None
    rows, channels = _extent(x)
    parts = parts_for(rows, 2 * x.size)

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        factors = workspace.view(np.float32)
        scale, shift = factors[:channels], factors[channels : 2 * channels]
        given, wanted = inputs[0], outputs[0]
        words = (rows, channels, given, pitch(given), wanted, pitch(wanted), scale, shift)
        return [
            runtime.row(inference_factors, 1, channels, *inputs[1:], scale, shift, float(epsilon)),
            runtime.row(scale_shift, parts, parts, *words),
        ]

    return Plan(bind, workspace=8 * channels, strided=True, strided_inputs=(0,), in_place=(0,))


def plan_batch_norm_train(x: Spec, gamma: Spec, beta: Spec, *, out: list[Spec], epsilon: float) -> Plan | None:
    """Statistics in one pass, then (x - mean) * scale + beta in another."""
    if not all_float32(x, gamma, beta) or x.size == 0:
        return None
    rows, channels = _extent(x)
    blocks = _blocks(rows, channels)
    parts, counting = parts_for(rows, 2 * x.size), parts_for(blocks, 4 * x.size)
    sums = 16 * blocks * channels

    def bind(inputs, outputs, workspace):
        given, weight, bias = inputs
        y, mean, var = outputs
        partial, factors = workspace[:sums].view(np.float64), workspace[sums:].view(np.float32)
        scale, shift = factors[:channels], factors[channels : 2 * channels]
        vectors = (weight, bias, mean, var, scale, shift)
        return [
            runtime.row(moments, counting, counting, rows, channels, blocks, given, partial),
            runtime.row(training_factors, 1, rows, channels, blocks, given, partial, *vectors, float(epsilon)),
            runtime.row(normalise, parts, parts, rows, channels, given, y, mean, scale, shift),
        ]

    return Plan(bind, workspace=sums + 8 * channels)


def plan_batch_norm_grad(
    g: Spec, x: Spec, gamma: Spec, mean: Spec, var: Spec, *, out: list[Spec], epsilon: float
) -> Plan | None:
    """Two sums in one pass, then the input's gradient in another."""
    if not all_float32(g, x, gamma, mean, var):
        return None
    rows, channels = _extent(x)
    blocks = _blocks(rows, channels)
    parts, counting = parts_for(rows, 3 * x.size), parts_for(blocks, 5 * x.size)
    sums = 16 * blocks * channels

    def bind(inputs, outputs, workspace):
        if channels == 0:
            return []
        up, given, weight, centre, variance = inputs
        dx, dgamma, dbeta = outputs
        partial, factors = workspace[:sums].view(np.float64), workspace[sums:].view(np.float32)
        results = (partial, weight, variance, dgamma, dbeta, factors)
        return [
            runtime.row(batch_grad_sums, counting, counting, rows, channels, blocks, up, given, centre, partial),
            runtime.row(batch_grad_factors, 1, rows, channels, blocks, *results, float(epsilon)),
            runtime.row(batch_grad_rows, parts, parts, rows, channels, up, given, dx, centre, factors),
        ]

    return Plan(bind, workspace=sums + 12 * channels, in_place=(0,))


# -- batch norm: eager kernels -----------------------------------------------------------------------------------------


def batch_norm(x, gamma, beta, mean, var, *, out: np.ndarray, epsilon: float) -> None:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta with given statistics; x (..., C), the others (C,)."""
    if x.size >= SMALL and carry_out(plan_batch_norm, (x, gamma, beta, mean, var), (out,), epsilon=epsilon):
        return
    scale = gamma / np.sqrt(var + x.dtype.type(epsilon))
    np.subtract(x, mean, out)
    np.multiply(out, scale, out)
    np.add(out, beta, out)


def batch_norm_train(x, gamma, beta, *, out: tuple, epsilon: float) -> None:
    """Normalise by the batch's own statistics -> y (..., C), mean (C,), biased variance (C,)."""
    if carry_out(plan_batch_norm_train, (x, gamma, beta), out, epsilon=epsilon):
        return
    y, mean, var = out
    (rows,) = _rows(x)
    shifted = rows.astype(np.float64) - rows[0]
    average = shifted.mean(axis=0)
    np.add(average, rows[0], out=mean, casting="same_kind")
    np.copyto(var, np.square(shifted - average).mean(axis=0), casting="same_kind")
    batch_norm(x, gamma, beta, mean, var, out=y, epsilon=epsilon)


def batch_norm_grad(g, x, gamma, mean, var, *, out: tuple, epsilon: float) -> None:
    """Gradients (dx, dgamma, dbeta) of `batch_norm_train`, from its batch statistics (Ioffe and Szegedy, 2015)."""
    if carry_out(plan_batch_norm_grad, (g, x, gamma, mean, var), out, epsilon=epsilon):
        return
    dx, dgamma, dbeta = out
    up, rows = _rows(g, x)
    count = max(rows.shape[0], 1)
    centred = rows.astype(np.float64) - mean
    rstd = 1 / np.sqrt(var.astype(np.float64) + epsilon)
    total, along = up.sum(axis=0, dtype=np.float64), (up * centred).sum(axis=0)
    np.multiply(along, rstd, out=dgamma, casting="same_kind")
    np.copyto(dbeta, total, casting="same_kind")
    result = gamma * rstd * (up - total / count - centred * (along * rstd * rstd / count))
    np.copyto(dx, result.reshape(dx.shape), casting="same_kind")


# -- layer norm --------------------------------------------------------------------------------------------------------


@runtime.task
def layer_norm_rows(a, part):
    """Words: parts, rows, channels, x, gamma, beta, y, mean, rstd, epsilon."""
    rows, channels = a[1], a[2]
    x, gamma, beta, y = atomic.f32(a, 3), atomic.f32(a, 4), atomic.f32(a, 5), atomic.f32(a, 6)
    mean, rstd, epsilon = atomic.f32(a, 7), atomic.f32(a, 8), atomic.real(a, 9)
    zero = fill64(0.0)
    for r in range(rows * part // a[0], rows * (part + 1) // a[0]):
        at = r * channels
        s = zero
        for c in range(0, channels, LANES):
            s += double(load_some(x, at + c, channels - c))
        centre = total(s) / channels
        s = zero
        middle, whole = fill64(centre), channels // LANES * LANES
        for c in range(0, whole, LANES):
            d = double(load(x, at + c)) - middle
            s += d * d
        squares = total(s)
        for c in range(whole, channels):
            d1 = x[at + c] - centre
            squares += d1 * d1
        mean[r], rstd[r] = np.float32(centre), np.float32(1.0 / np.sqrt(squares / channels + epsilon))
        shift, scale = mean[r], rstd[r]
        for c in range(0, channels, LANES):
            count = channels - c
            value = (load_some(x, at + c, count) - shift) * scale
            value = multiply_add(value, load_some(gamma, c, count), load_some(beta, c, count))
            store_some(y, at + c, value, count)


@runtime.task
def layer_norm_grad_rows(a, part):
    """dx, and the sums of g * normalised x and of g by block -> float64 (blocks, 2, C).
    Words: parts, rows, channels, blocks, g, x, gamma, mean, rstd, dx, partial."""
    rows, channels, blocks = a[1], a[2], a[3]
    g, x, gamma, mean, rstd = atomic.f32(a, 4), atomic.f32(a, 5), atomic.f32(a, 6), atomic.f32(a, 7), atomic.f32(a, 8)
    dx, partial = atomic.f32(a, 9), atomic.f64(a, 10)
    for block in range(blocks * part // a[0], blocks * (part + 1) // a[0]):
        base = 2 * block * channels
        for c in range(0, 2 * channels, LANES):
            store_some(partial, base + c, fill64(0.0), 2 * channels - c)
        for r in range(block * rows // blocks, (block + 1) * rows // blocks):
            at, shift, scale = r * channels, mean[r], rstd[r]
            s, t = fill64(0.0), fill64(0.0)
            for c in range(0, channels, LANES):
                count = channels - c
                up = load_some(g, at + c, count)
                normal = (load_some(x, at + c, count) - shift) * scale
                weighted = up * load_some(gamma, c, count)
                s += double(weighted)
                t += double(weighted * normal)
                along = load_some(partial, base + c, count) + double(up) * double(normal)
                store_some(partial, base + c, along, count)
                store_some(partial, base + channels + c, load_some(partial, base + channels + c, count) + double(up), count)
            first, second = np.float32(total(s) / channels), np.float32(total(t) / channels)
            for c in range(0, channels, LANES):
                count = channels - c
                normal = (load_some(x, at + c, count) - shift) * scale
                weighted = load_some(g, at + c, count) * load_some(gamma, c, count)
                store_some(dx, at + c, (weighted - first - normal * second) * scale, count)


@runtime.task
def layer_grad_totals(a, part):
    """Words: channels, blocks, partial, dgamma, dbeta."""
    partial, dgamma, dbeta = atomic.f64(a, 2), atomic.f32(a, 3), atomic.f32(a, 4)
    for c in range(0, a[0], LANES):
        store_some(dgamma, c, single(_total_of(partial, a[1], a[0], 0, c)), a[0] - c)
        store_some(dbeta, c, single(_total_of(partial, a[1], a[0], 1, c)), a[0] - c)


def plan_layer_norm(x: Spec, gamma: Spec, beta: Spec, *, out: list[Spec], epsilon: float) -> Plan | None:
    if not all_float32(x, gamma, beta):
        return None
    rows, channels = _extent(x)
    parts = parts_for(rows, 4 * x.size)

    def bind(inputs, outputs, workspace):
        if x.size == 0:
            return []
        return [runtime.row(layer_norm_rows, parts, parts, rows, channels, *inputs, *outputs, float(epsilon))]

    return Plan(bind, in_place=(0,))


def plan_layer_norm_grad(g: Spec, x: Spec, gamma: Spec, mean: Spec, rstd: Spec, *, out: list[Spec]) -> Plan | None:
    if not all_float32(g, x, gamma, mean, rstd):
        return None
    rows, channels = _extent(x)
    blocks = _blocks(rows, channels)
    parts = parts_for(blocks, 6 * x.size)

    def bind(inputs, outputs, workspace):
        if channels == 0:
            return []
        partial = workspace.view(np.float64)
        words = (rows, channels, blocks, *inputs, outputs[0], partial)
        return [
            runtime.row(layer_norm_grad_rows, parts, parts, *words),
            runtime.row(layer_grad_totals, 1, channels, blocks, partial, *outputs[1:]),
        ]

    return Plan(bind, workspace=16 * blocks * channels)


def layer_norm(x, gamma, beta, *, out: tuple, epsilon: float) -> None:
    """Normalise each row of the last axis -> y (..., C), mean (...), 1 / standard deviation (...)."""
    if carry_out(plan_layer_norm, (x, gamma, beta), out, epsilon=epsilon):
        return
    y, mean, rstd = out
    wide = x.astype(np.float64)
    if x.shape[-1]:
        np.mean(wide, axis=-1, out=mean)
        np.divide(1, np.sqrt(wide.var(axis=-1) + epsilon), out=rstd)
    np.copyto(y, (wide - mean[..., None]) * rstd[..., None] * gamma + beta, casting="same_kind")


def layer_norm_grad(g, x, gamma, mean, rstd, *, out: tuple) -> None:
    """Gradients (dx, dgamma, dbeta) of `layer_norm` (Ba et al., 2016)."""
    if carry_out(plan_layer_norm_grad, (g, x, gamma, mean, rstd), out):
        return
    dx, dgamma, dbeta = out
    normal = (x - mean[..., None]) * rstd[..., None]
    axes = tuple(range(x.ndim - 1))
    np.sum(g * normal, axis=axes, out=dgamma)
    np.sum(g, axis=axes, out=dbeta)
    weighted = g * gamma
    share = weighted.mean(axis=-1, keepdims=True) + normal * (weighted * normal).mean(axis=-1, keepdims=True)
    np.multiply(rstd[..., None], weighted - share, out=dx)
