"""Convolution and its gradients on the GPU in strict precision: implicit matrix products (`simt.cuh`), 3 x 3 ones
by Winograd's method where that pays, depthwise ones directly."""

from __future__ import annotations

import math
from typing import Any

from . import tensor_cores, winograd
from .arguments import activation_code
from .gemm import Call, Extent, describe_gemm, fast_divide, launch_product, rows_form
from .launch import Builder, View, c_type, ceil_div, dense_strides, kernel, structure, vector_width
from .mma import Conv, phases
from .reduce import accumulator, reduce_into

BLOCK = 256
MOST_TAPS = 25  # that one thread of the depthwise weight gradient keeps sums for


def _patches(height, width, pixel, points, elements, stride, base, step, grid, tap_width, channels):
    return structure([
        ("height", "i4", height), ("width", "i4", width), ("pixel", "i4", pixel), ("points", "i4", points),
        ("elements", "i4", elements),
        ("stride_y", "i4", stride[0]), ("stride_x", "i4", stride[1]), ("base_y", "i4", base[0]), ("base_x", "i4", base[1]),
        ("step_y", "i4", step[0]), ("step_x", "i4", step[1]), ("grid_height", "u4", fast_divide(grid[0])),
        ("grid_width", "u4", fast_divide(grid[1])), ("tap_width", "u4", fast_divide(max(tap_width, 1))),
        ("by_channels", "u4", fast_divide(max(channels, 1))),
    ])  # fmt: skip


def _filter(inputs=0, elements=0, row=0, first=0, step_y=0, step_x=0, tap_width=1, outputs=1):
    return structure([
        ("inputs", "i4", inputs), ("elements", "i4", elements), ("row", "i4", row), ("first", "i4", first),
        ("step_y", "i4", step_y),
        ("step_x", "i4", step_x), ("tap_width", "u4", fast_divide(max(tap_width, 1))),
        ("by_outputs", "u4", fast_divide(max(outputs, 1))),
    ])  # fmt: skip


def _forward_patches(x: View, kernel_shape, points: int, grid, stride, padding, dilation, groups: int):
    _, h, w, c = x.shape
    channels = c // groups
    base = (-padding[0][0], -padding[1][0])
    elements = math.prod(kernel_shape) * channels
    return _patches(h, w, c, points, elements, stride, base, dilation, grid, kernel_shape[1], channels)


def shapes_of(image, kernel_shape, output, stride, padding, dilation, groups: int) -> Conv:
    """The shapes of a convolution, as the tensor-core planners take them."""
    sides: Any = tuple(map(tuple, padding))
    return Conv(tuple(image), tuple(kernel_shape), tuple(output), tuple(stride), sides, tuple(dilation), groups)


def _lanes(view: View, *runs: int) -> int:
    return min(4, vector_width(view, runs=runs))


def _pointwise(kernel_shape, stride, padding) -> bool:
    return tuple(kernel_shape) == (1, 1) and tuple(stride) == (1, 1) and not any(sum(padding, ()))


def _depthwise(channels: int, groups: int) -> bool:
    return groups == channels and groups > 1


def _rows(view: View) -> View:
    """An image as a matrix: pixels by channels."""
    shape = (math.prod(view.shape[:3]), view.shape[3])
    return view._replace(shape=shape, strides=dense_strides(shape))


# -- forward -----------------------------------------------------------------------------------------------------------


@kernel
def conv2d(b: Builder, x: View, w: View, bias: View | None = None, residual: View | None = None, *, out: View, stride, padding,
           dilation, groups: int, activation=None) -> None:  # fmt: skip
    _conv2d(b, x, w, bias, residual, out, stride, padding, dilation, groups, activation, False)


@kernel
def conv2d_tf32(b: Builder, x: View, w: View, bias: View | None = None, residual: View | None = None, *, out: View, stride,
        padding,
                dilation, groups: int, activation=None) -> None:  # fmt: skip
    _conv2d(b, x, w, bias, residual, out, stride, padding, dilation, groups, activation, True)


def _conv2d(b: Builder, x, w, bias, residual, out, stride, padding, dilation, groups: int, activation, tf32: bool) -> None:
    x, w = b.dense(x), b.dense(w)
    bias, residual = (None if v is None else b.dense(v) for v in (bias, residual))
    if _pointwise(w.shape[:2], stride, padding) and groups == 1:
        matrix = w.reshape(w.shape[2], w.shape[3])
        describe_gemm(b, _rows(x), matrix, _rows(out), bias, None if residual is None else _rows(residual), activation, tf32)
    elif _depthwise(x.shape[3], groups):
        _depthwise_forward(b, x, w, bias, residual, out, stride, padding, dilation, activation)
    elif tensor_cores.takes(b, x.dtype.name, tf32):
        conv = shapes_of(x.shape, w.shape[:2], out.shape, stride, padding, dilation, groups)
        tensor_cores.add_conv(b, x, w, out, conv, bias, residual, activation)
    elif winograd.chosen(b, "conv2d", out, w, stride, dilation, groups):
        winograd.add_forward(b, x, w, out, padding, bias, residual, activation)
    else:
        _implicit_forward(b, x, w, bias, residual, out, stride, padding, dilation, groups, activation)


def _implicit_forward(b, x, w, bias, residual, out, stride, padding, dilation, groups, activation) -> None:
    points, outputs, channels = math.prod(out.shape[:3]), w.shape[3] // groups, w.shape[2]
    extras = [v for v in (bias, residual) if v is not None]
    patches = _forward_patches(x, w.shape[:2], points, out.shape[1:3], stride, padding, dilation, groups)
    call = Call(
        "conv_simt.cu", "conv_simt", {"PASS": 0}, Extent(points, outputs, math.prod(w.shape[:3]), (1, 1, groups)),
        (0, 0, channels),
        (0, 0, outputs), outputs, outputs, 0, w.shape[3], rows_form(w.shape[3]),
        (_lanes(x, channels), _lanes(w, outputs), min(4, vector_width(out, *extras, runs=[outputs]))), (x, w),
        (patches, _filter()),
    )  # fmt: skip
    launch_product(b, call, out, bias, residual, activation)


def _depthwise_form(image: View, multiplier: int, output_shape, stride, padding, dilation, count: int, parts: int = 1):
    return structure([
        ("height", "i4", image.shape[1]), ("width", "i4", image.shape[2]), ("channels", "i4", image.shape[3]),
        ("multiplier", "i4", multiplier), ("out_height", "i4", output_shape[1]), ("out_width", "i4", output_shape[2]),
        ("stride_y", "i4", stride[0]), ("stride_x", "i4", stride[1]), ("top", "i4", padding[0][0]),
        ("left", "i4", padding[1][0]),
        ("dilation_y", "i4", dilation[0]), ("dilation_x", "i4", dilation[1]), ("parts", "u4", parts), ("count", "u8", count),
    ])  # fmt: skip


def _depthwise_defines(view: View, kernel_shape, lanes: int, activation: str | None = None) -> dict:
    return {
        "ACTIVATION": activation_code(activation),
        "ELEMENT": c_type(view.dtype),
        "KERNEL_Y": kernel_shape[0],
        "KERNEL_X": kernel_shape[1],
        "LANES": lanes,
    }


def _depthwise_forward(b, x, w, bias, residual, out, stride, padding, dilation, activation) -> None:
    multiplier = w.shape[3] // x.shape[3]
    extras = [v for v in (bias, residual) if v is not None]
    lanes = min(4, vector_width(x, w, out, *extras, runs=[x.shape[3]])) if multiplier == 1 else 1
    form = _depthwise_form(x, multiplier, out.shape, stride, padding, dilation, out.size)
    b.launch("depthwise.cu", "depthwise", _depthwise_defines(x, w.shape[:2], lanes, activation),
        ceil_div(out.size // lanes, BLOCK),
             BLOCK, out, x, w, bias, residual, form)  # fmt: skip


# -- gradients ---------------------------------------------------------------------------------------------------------


@kernel
def conv2d_input_grad(b: Builder, g: View, w: View, *, out: View, input_shape, stride, padding, dilation, groups: int) -> None:
    _input_grad(b, g, w, out, input_shape, stride, padding, dilation, groups, False)


@kernel
def conv2d_input_grad_tf32(b: Builder, g: View, w: View, *, out: View, input_shape, stride, padding, dilation,
                          groups: int) -> None:  # fmt: skip
    _input_grad(b, g, w, out, input_shape, stride, padding, dilation, groups, True)


def _input_grad(
    b: Builder, g: View, w: View, out: View, input_shape, stride, padding, dilation, groups: int, tf32: bool
) -> None:
    g, w = b.dense(g), b.dense(w)
    if _pointwise(w.shape[:2], stride, padding) and groups == 1:
        matrix = w.reshape(w.shape[2], w.shape[3])
        describe_gemm(
            b, _rows(g), matrix._replace(shape=matrix.shape[::-1], strides=matrix.strides[::-1]), _rows(out), tf32=tf32
        )
    elif _depthwise(input_shape[3], groups):
        multiplier = w.shape[3] // input_shape[3]
        lanes = min(4, vector_width(g, w, out, runs=[out.shape[3]])) if multiplier == 1 else 1
        form = _depthwise_form(out, multiplier, g.shape, stride, padding, dilation, out.size)
        b.launch("depthwise.cu", "depthwise_input_grad", _depthwise_defines(g, w.shape[:2], lanes),
            ceil_div(out.size // lanes, BLOCK),
                 BLOCK, out, g, w, form)  # fmt: skip
    elif tensor_cores.takes(b, g.dtype.name, tf32):
        conv = shapes_of(input_shape, w.shape[:2], g.shape, stride, padding, dilation, groups)
        tensor_cores.add_conv_input_grad(b, g, w, out, conv)
    elif winograd.chosen(b, "conv2d_input_grad", out, w, stride, dilation, groups):
        winograd.add_input_grad(b, g, w, out, padding)
    else:
        _implicit_input_grad(b, g, w, out, stride, padding, dilation, groups)


def _implicit_input_grad(b, g, w, out, stride, padding, dilation, groups) -> None:
    """One launch for each phase of the stride: the input pixels that meet the same taps. Pixels that meet none get zeros."""
    batch, height, width, _ = out.shape
    inputs, outputs, all_outputs = w.shape[2], w.shape[3] // groups, w.shape[3]
    tap = inputs * all_outputs
    for py in phases(height, w.shape[0], stride[0], padding[0][0], dilation[0]):
        for px in phases(width, w.shape[1], stride[1], padding[1][0], dilation[1]):
            taps, points = py.taps * px.taps, batch * py.count * px.count
            patches = _patches(g.shape[1], g.shape[2], all_outputs, points, taps * outputs, (1, 1), (py.base, px.base),
                               (py.shift, px.shift), (py.count, px.count), px.taps, outputs)  # fmt: skip
            filter_form = _filter(inputs, taps * outputs, all_outputs, (py.tap * w.shape[1] + px.tap) * tap,
                                  py.tap_step * w.shape[1] * tap, px.tap_step * tap, px.taps, outputs)  # fmt: skip
            mapping = {"mapped": 1, "height": height, "width": width, "start_y": py.start, "start_x": px.start,
                "step_y": py.step,
                       "step_x": px.step, "grid_height": fast_divide(py.count),
                       "grid_width": fast_divide(px.count)}  # fmt: skip
            call = Call(
                "conv_simt.cu", "conv_simt", {"PASS": 1}, Extent(points, inputs, taps * outputs, (1, 1, groups)),
                (0, 0, outputs),
                (0, 0, outputs), inputs, 0, 0, 0, rows_form(out.shape[3], mapping),
                (_lanes(g, outputs), _lanes(w, outputs), _lanes(out, inputs)), (g, w), (patches, filter_form),
            )  # fmt: skip
            launch_product(b, call, out, None, None, None)


@kernel
def conv2d_weight_grad(
    b: Builder, x: View, g: View, *, out: View, kernel_shape, stride, padding, dilation, groups: int
) -> None:
    _weight_grad(b, x, g, out, kernel_shape, stride, padding, dilation, groups, False)


@kernel
def conv2d_weight_grad_tf32(b: Builder, x: View, g: View, *, out: View, kernel_shape, stride, padding, dilation,
                           groups: int) -> None:  # fmt: skip
    _weight_grad(b, x, g, out, kernel_shape, stride, padding, dilation, groups, True)


def _weight_grad(
    b: Builder, x: View, g: View, out: View, kernel_shape, stride, padding, dilation, groups: int, tf32: bool
) -> None:
    x, g = b.dense(x), b.dense(g)
    points = math.prod(g.shape[:3])
    if _pointwise(kernel_shape, stride, padding) and groups == 1:
        rows = _rows(x)
        matrix = rows._replace(shape=rows.shape[::-1], strides=rows.strides[::-1])
        describe_gemm(b, matrix, _rows(g), out.reshape(x.shape[3], g.shape[3]), tf32=tf32)
    elif _depthwise(x.shape[3], groups) and math.prod(kernel_shape) <= MOST_TAPS:
        _depthwise_weight_grad(b, x, g, out, kernel_shape, stride, padding, dilation)
    elif tensor_cores.takes(b, x.dtype.name, tf32):
        conv = shapes_of(x.shape, kernel_shape, g.shape, stride, padding, dilation, groups)
        tensor_cores.add_conv_weight_grad(b, x, g, out, conv)
    else:
        inputs, outputs = x.shape[3] // groups, g.shape[3] // groups
        patches = _forward_patches(x, kernel_shape, points, g.shape[1:3], stride, padding, dilation, groups)
        call = Call(
            "conv_simt.cu", "conv_simt", {"PASS": 2}, Extent(math.prod(kernel_shape) * inputs, outputs, points, (1, 1, groups)),
            (0, 0, inputs), (0, 0, outputs), outputs, 0, 0, g.shape[3], rows_form(g.shape[3]),
            (_lanes(x, inputs), _lanes(g, outputs), _lanes(out, outputs)), (x, g), (patches, _filter()),
        )  # fmt: skip
        launch_product(b, call, out, None, None, None)


def _depthwise_weight_grad(b, x, g, out, kernel_shape, stride, padding, dilation) -> None:
    outputs = g.shape[3]
    taps, points = math.prod(kernel_shape), math.prod(g.shape[:3])
    parts = max(1, min(ceil_div(b.processors * 4, ceil_div(outputs, 32)), points // 64, 65535))
    partial = b.empty((parts, taps, outputs), accumulator(x.dtype))
    form = _depthwise_form(x, outputs // x.shape[3], g.shape, stride, padding, dilation, points, parts)
    b.launch("depthwise.cu", "depthwise_weight_grad", _depthwise_defines(x, kernel_shape, 1), (ceil_div(outputs, 32), parts),
        (32, 8),
             partial, x, g, form)  # fmt: skip
    reduce_into(b, partial, out.reshape(taps, outputs), (0,), "Sum")


