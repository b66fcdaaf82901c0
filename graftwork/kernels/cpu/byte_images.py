"""Sums, tables, pooling and changes of form of uint8 images. `kernels/reference/byte_images.py` defines every rounding.

The loops are plain, since LLVM makes vectors of them; rounding is by adding and taking away 1.5 * 2**23, which works for any
float32 that has been clamped to a byte's range before.
"""

from __future__ import annotations

import math

import numpy as np

from ..plan import Plan, Spec, pitch
from ..reference.byte_images import bounds
from . import atomic, runtime
from .jit import njit
from .planning import carry_out, parts_for
from .strips import advance

_ROUND = np.float32(12582912.0)
UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


@njit(nogil=True)
def _stored(value, zero, low, high):
    value = value if value > low else low
    value = high if value > high else value
    return np.uint8((value + _ROUND) - _ROUND + zero)


# Words of the elementwise tasks: 0 out, 1 x, 2 y or table, 3 rows, 4 values a row, 5 to 7 elements from row to row of out, x
# and y, 8 parts, 9 to 11 zero points of x, y and out, 12 and 13 factors of x and y, 14 low, 15 high.


@runtime.task
def quantize_rows(a, part):
    factor, zero = np.float32(atomic.real(a, 12)), np.float32(a[11])
    low, high = np.float32(atomic.real(a, 14)), np.float32(atomic.real(a, 15))
    for i in range(part * a[3] // a[8], (part + 1) * a[3] // a[8]):
        out, x = advance(atomic.u8(a, 0), i * a[5]), advance(atomic.f32(a, 1), i * a[6])
        for j in range(a[4]):
            out[j] = _stored(x[j] * factor, zero, low, high)


@runtime.task
def dequantize_rows(a, part):
    factor, zero = np.float32(atomic.real(a, 12)), np.int32(a[9])
    for i in range(part * a[3] // a[8], (part + 1) * a[3] // a[8]):
        out, x = advance(atomic.f32(a, 0), i * a[5]), advance(atomic.u8(a, 1), i * a[6])
        for j in range(a[4]):
            out[j] = np.float32(np.int32(x[j]) - zero) * factor


@runtime.task
def add_rows(a, part):
    first, second, zero = np.float32(atomic.real(a, 12)), np.float32(atomic.real(a, 13)), np.float32(a[11])
    low, high = np.float32(atomic.real(a, 14)), np.float32(atomic.real(a, 15))
    x_zero, y_zero = np.int32(a[9]), np.int32(a[10])
    for i in range(part * a[3] // a[8], (part + 1) * a[3] // a[8]):
        out = advance(atomic.u8(a, 0), i * a[5])
        x, y = advance(atomic.u8(a, 1), i * a[6]), advance(atomic.u8(a, 2), i * a[7])
        for j in range(a[4]):
            value = np.float32(np.int32(x[j]) - x_zero) * first + np.float32(np.int32(y[j]) - y_zero) * second
            out[j] = _stored(value, zero, low, high)


@runtime.task
def look_up_rows(a, part):
    table = atomic.u8(a, 2)
    for i in range(part * a[3] // a[8], (part + 1) * a[3] // a[8]):
        out, x = advance(atomic.u8(a, 0), i * a[5]), advance(atomic.u8(a, 1), i * a[6])
        for j in range(a[4]):
            out[j] = table[x[j]]


# Words of the pooling tasks: 0 out, 1 x, 2 images, 3 and 4 lines and columns of out, 5 and 6 of x, 7 channels, 8 and 9 elements
# from pixel to pixel of out and x, 10 and 11 window, 12 and 13 stride, 14 and 15 padding above and left, 16 parts, 17 sums, 18
# whether padding counts, 19 and 20 zero points of x and out, 21 factor, 22 low, 23 high.


@runtime.task
def max_lines(a, part):
    for line in range(part * a[2] * a[3] // a[16], (part + 1) * a[2] * a[3] // a[16]):
        image, top = line // a[3], line % a[3] * a[12] - a[14]
        for column in range(a[4]):
            left = column * a[13] - a[15]
            out = advance(atomic.u8(a, 0), (line * a[4] + column) * a[8])
            first = True
            for y in range(max(top, 0), min(top + a[10], a[5])):
                for x in range(max(left, 0), min(left + a[11], a[6])):
                    source = advance(atomic.u8(a, 1), ((image * a[5] + y) * a[6] + x) * a[9])
                    if first:
                        for c in range(a[7]):
                            out[c] = source[c]
                        first = False
                    else:
                        for c in range(a[7]):
                            out[c] = max(out[c], source[c])


@runtime.task
def average_lines(a, part):
    sums = advance(atomic.i32(a, 17), part * a[7])
    low, high, zero = np.float32(atomic.real(a, 22)), np.float32(atomic.real(a, 23)), np.float32(a[20])
    for line in range(part * a[2] * a[3] // a[16], (part + 1) * a[2] * a[3] // a[16]):
        image, top = line // a[3], line % a[3] * a[12] - a[14]
        first, last = max(top, 0), min(top + a[10], a[5])
        for column in range(a[4]):
            left = column * a[13] - a[15]
            start, stop = max(left, 0), min(left + a[11], a[6])
            inside = (last - first) * (stop - start)
            for c in range(a[7]):
                sums[c] = np.int32(-inside * a[19])
            for y in range(first, last):
                for x in range(start, stop):
                    source = advance(atomic.u8(a, 1), ((image * a[5] + y) * a[6] + x) * a[9])
                    for c in range(a[7]):
                        sums[c] += np.int32(source[c])
            count = a[10] * a[11] if a[18] != 0 else inside
            factor = np.float32(atomic.real(a, 21)) / np.float32(count)
            out = advance(atomic.u8(a, 0), (line * a[4] + column) * a[8])
            for c in range(a[7]):
                out[c] = _stored(np.float32(sums[c]) * factor, zero, low, high)


# -- planning ----------------------------------------------------------------------------------------------------------------


def _plan_rows(task, inputs: tuple[Spec, ...], out: Spec, numbers: tuple, table: bool = False) -> Plan | None:
    """numbers: zero points of x, y and out; factors of x and y; low and high."""
    if out.size == 0 or any(s.dtype not in (UINT8, FLOAT32) for s in inputs):
        return None
    channels = out.shape[-1] if out.shape else 1
    rows = out.size // channels
    parts = parts_for(rows, out.size)
    readers = inputs[:1] if table else inputs

    def bind(arrays, outputs, workspace):
        steps = [pitch(a) for a in (outputs[0], *arrays[: len(readers)])]
        count, wide = rows, channels
        if all(step == channels for step in steps):  # no gaps: each part is one long row
            count, wide = (parts, out.size // parts) if out.size % parts == 0 else (rows, channels)
            steps = [wide] * len(steps)
        steps += [0] * (3 - len(steps))
        words = (outputs[0], arrays[0], arrays[1] if len(arrays) > 1 else None, count, wide, *steps, parts, *numbers)
        return [runtime.row(task, parts, *words)]

    slices = len(out.shape) > 1
    return Plan(bind, strided=slices, strided_inputs=tuple(range(len(readers))) if slices else (), variant="loops")


def plan_quantize(x: Spec, *, out: Spec, scale: float, zero_point: int) -> Plan | None:
    if x.dtype != FLOAT32:
        return None
    low, high = bounds(scale, zero_point, None, None)
    return _plan_rows(quantize_rows, (x,), out, (0, 0, zero_point, float(np.float32(1 / scale)), 0.0, low, high))


def plan_dequantize(x: Spec, *, out: Spec, scale: float, zero_point: int) -> Plan | None:
    return _plan_rows(dequantize_rows, (x,), out, (zero_point, 0, 0, float(np.float32(scale)), 0.0, 0.0, 0.0))


def plan_quantized_add(x: Spec, y: Spec, *, out: Spec, x_scale, x_zero_point, y_scale, y_zero_point, out_scale,
                       out_zero_point, low, high) -> Plan | None:  # fmt: skip
    factors = (float(np.float32(s / out_scale)) for s in (x_scale, y_scale))
    ends = bounds(out_scale, out_zero_point, low, high)
    return _plan_rows(add_rows, (x, y), out, (x_zero_point, y_zero_point, out_zero_point, *factors, *ends))


def plan_byte_table(x: Spec, table: Spec, *, out: Spec) -> Plan | None:
    return _plan_rows(look_up_rows, (x, table), out, (0, 0, 0, 0.0, 0.0, 0.0, 0.0), table=True)


def _plan_pool(task, x: Spec, out: Spec, window, stride, padding, numbers=(0, 0, 0, 0.0, 0.0, 0.0)) -> Plan | None:
    if 0 in out.shape or 0 in x.shape:
        return None
    images, lines, columns, channels = out.shape
    parts = parts_for(images * lines, out.size * math.prod(window) // 8)
    sums = 0 if task is max_lines else -(-channels * 4 // 64) * 64

    def bind(arrays, outputs, workspace):
        words = (
            outputs[0], arrays[0], images, lines, columns, *x.shape[1:3], channels, pitch(outputs[0]), pitch(arrays[0]),
            *window, *stride, padding[0][0], padding[1][0], parts, workspace, *numbers,
        )  # fmt: skip
        return [runtime.row(task, parts, *words)]

    return Plan(bind, workspace=sums * parts, strided=True, strided_inputs=(0,), variant="loops")


def plan_quantized_max_pool2d(x: Spec, *, out: Spec, window, stride, padding) -> Plan | None:
    return _plan_pool(max_lines, x, out, window, stride, padding)


def plan_quantized_avg_pool2d(x: Spec, *, out: Spec, window, stride, padding, count_padding, x_scale, x_zero_point, out_scale,
                              out_zero_point) -> Plan | None:  # fmt: skip
    factor, ends = float(np.float32(x_scale / out_scale)), bounds(out_scale, out_zero_point, None, None)
    numbers = (int(count_padding), x_zero_point, out_zero_point, factor, *ends)
    return _plan_pool(average_lines, x, out, window, stride, padding, numbers)


# -- eager -------------------------------------------------------------------------------------------------------------------


def quantize(x, *, out, **attrs) -> None:
    carry_out(plan_quantize, (x,), (out,), **attrs)


def dequantize(x, *, out, **attrs) -> None:
    carry_out(plan_dequantize, (x,), (out,), **attrs)


def quantized_add(x, y, *, out, **attrs) -> None:
    carry_out(plan_quantized_add, (x, y), (out,), **attrs)


def byte_table(x, table, *, out) -> None:
    carry_out(plan_byte_table, (x, table), (out,))


def quantized_max_pool2d(x, *, out, **attrs) -> None:
    carry_out(plan_quantized_max_pool2d, (x,), (out,), **attrs)


def quantized_avg_pool2d(x, *, out, **attrs) -> None:
    carry_out(plan_quantized_avg_pool2d, (x,), (out,), **attrs)
