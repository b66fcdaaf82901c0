"""3 x 3 convolutions with stride 1 in strict float32 by Winograd's F(4x4, 3x3): `winograd.cu` and 36 matrix products."""

from __future__ import annotations

import math

from . import selection
from .arguments import activation_code
from .gemm import describe_gemm
from .launch import Builder, View, ceil_div, dense_strides, structure

BLOCK = 256
TILE, PRODUCTS = 4, 36  # pixels of the output along an axis; elements of a transformed tile
SCRATCH = 256 << 20  # bytes of transformed tiles at a time: more images than that are done in turns


def fits(w: View, stride, dilation, groups: int) -> bool:
    """Whether the method is defined for a convolution."""
    return w.dtype.name == "float32" and (*w.shape[:2], *stride, *dilation, groups) == (3, 3, 1, 1, 1, 1, 1)


def chosen(b: Builder, op: str, out: View, w: View, stride, dilation, groups: int) -> bool:
    """Whether it is used for a convolution or an input gradient with this result."""
    images, height, width, _ = out.shape
    return fits(w, stride, dilation, groups) and selection.winograd(b, op, images, height, width, w.shape[2], w.shape[3])


def add_forward(b: Builder, x: View, w: View, out: View, padding, bias: View | None, residual: View | None, activation) -> None:
    """out = activation(convolution + bias + residual); all dense."""
    base = (-padding[0][0], -padding[1][0])
    _add(b, x, w, tuple(w.strides), 0, w.shape[2:], out, base, bias, residual, activation)


def add_input_grad(b: Builder, g: View, w: View, out: View, padding) -> None:
    """The gradient in the input: a convolution of g with the filter turned round and its channels exchanged."""
    tap_y, tap_x, inputs, outputs = w.strides
    base = (padding[0][0] - 2, padding[1][0] - 2)
    _add(b, g, w, (-tap_y, -tap_x, outputs, inputs), 2 * (tap_y + tap_x), w.shape[:1:-1], out, base, None, None, None)


def _add(b: Builder, x: View, w: View, strides, first: int, channels, out: View, base, bias, residual, activation) -> None:
    """strides, first: of the filter as (3, 3, channels[0], channels[1])."""
    inputs, outputs = channels
    n, height, width, _ = out.shape
    if out.size == 0:
        return
    form = structure([*zip(("tap_y", "tap_x", "input", "output"), ["i8"] * 4, strides, strict=True),
                      ("inputs", "i4", inputs), ("outputs", "i4", outputs)])  # fmt: skip
    defines = {"ACTIVATION": activation_code(activation)}
    with b.made_of(w):
        u = b.empty((PRODUCTS, inputs, outputs), "float32")
        b.launch("winograd.cu", "winograd_filter", defines, ceil_div(inputs * outputs, BLOCK), BLOCK, u,
                 w._replace(offset=w.offset + first), form)  # fmt: skip
    grid = (ceil_div(height, TILE), ceil_div(width, TILE))
    tiles = math.prod(grid)
    images = max(1, min(n, SCRATCH // (PRODUCTS * tiles * (inputs + outputs) * 4)))
    v = b.empty((PRODUCTS, images * tiles, inputs), "float32")
    m = b.empty((PRODUCTS, images * tiles, outputs), "float32")
    for start in range(0, n, images):
        count = min(images, n - start)
        some = [None if a is None else _images(a, start, count) for a in (x, out, residual)]
        _slice(b, some, u, _first(v, count * tiles), _first(m, count * tiles), grid, base, bias, defines)


def _images(a: View, start: int, count: int) -> View:
    return a.moved(start * math.prod(a.shape[1:]), (count, *a.shape[1:]), a.strides)


def _first(scratch: View, tiles: int) -> View:
    """Room for fewer tiles in the same scratch memory."""
    shape = (PRODUCTS, tiles, scratch.shape[2])
    return scratch._replace(shape=shape, strides=dense_strides(shape))


def _slice(b: Builder, arrays, u: View, v: View, m: View, grid, base, bias, defines) -> None:
    x, out, residual = arrays
    form = structure([
        ("height", "i4", x.shape[1]), ("width", "i4", x.shape[2]), ("channels", "i4", x.shape[3]), ("tiles_y", "i4", grid[0]),
        ("tiles_x", "i4", grid[1]), ("base_y", "i4", base[0]), ("base_x", "i4", base[1]),
        ("count", "u8", v.shape[1] * v.shape[2]),
    ])  # fmt: skip
    b.launch("winograd.cu", "winograd_input", defines, ceil_div(v.shape[1] * v.shape[2], BLOCK), BLOCK, v, x, form)
    describe_gemm(b, v, u, m)
    form = structure([
        ("height", "i4", out.shape[1]), ("width", "i4", out.shape[2]), ("outputs", "i4", out.shape[3]),
        ("tiles_y", "i4", grid[0]), ("tiles_x", "i4", grid[1]), ("count", "u8", m.shape[1] * m.shape[2]),
    ])  # fmt: skip
    b.launch("winograd.cu", "winograd_output", defines, ceil_div(m.shape[1] * m.shape[2], BLOCK), BLOCK, out, m, bias, residual,
             form)  # fmt: skip

