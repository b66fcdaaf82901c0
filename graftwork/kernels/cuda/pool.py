"""Pooling on the GPU: images (N, H, W, C)."""

from __future__ import annotations

import numpy as np

from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256


def windows_of(image: View, output: View, window, stride, padding, count: int, count_padding: bool = False) -> np.void:
    """The structure of `windows.cuh`. `image` is what the windows slide over, `output` has a place a window; count: elements of
    what the kernel computes."""
    (top, bottom), (left, right) = padding
    return structure([
        ("height", "u4", image.shape[1]), ("width", "u4", image.shape[2]), ("channels", "u4", image.shape[3]),
        ("out_height", "u4", output.shape[1]), ("out_width", "u4", output.shape[2]), ("window_y", "i4", window[0]),
        ("window_x", "i4", window[1]), ("stride_y", "i4", stride[0]), ("stride_x", "i4", stride[1]), ("top", "i4", top),
        ("left", "i4", left), ("bottom", "i4", bottom), ("right", "i4", right), ("count", "u8", count),
        ("count_padding", "i4", int(count_padding)),
    ])  # fmt: skip


def _launch(b: Builder, name: str, result: View, arrays: list[View], image: View, output: View, window, stride, padding,
            count_padding: bool = False, vectors: bool = True) -> None:  # fmt: skip
    """A kernel of `pool.cu`. image, output: as for `windows_of`."""
    arrays = [b.dense(a) for a in arrays]
    lanes = vector_width(result, *arrays, runs=[image.shape[3]]) if vectors else 1
    form = windows_of(image, output, window, stride, padding, result.size, count_padding)
    defines = {"ELEMENT": c_type(result.dtype), "LANES": lanes}
    b.launch("pool.cu", name, defines, ceil_div(result.size // lanes, BLOCK), BLOCK, result, *arrays, form)


@kernel
def max_pool2d(b: Builder, x: View, *, out: View, window, stride, padding) -> None:
    _launch(b, "max_pool", out, [x], x, out, window, stride, padding)


@kernel
def max_pool2d_grad(b: Builder, g: View, x: View, y: View, *, out: View, window, stride, padding) -> None:
    _launch(b, "max_pool_grad", out, [g, x, y], x, y, window, stride, padding, vectors=False)


@kernel
def max_pool2d_take(b: Builder, gg: View, x: View, y: View, *, out: View, window, stride, padding) -> None:
    _launch(b, "max_pool_take", out, [gg, x, y], x, y, window, stride, padding, vectors=False)


@kernel
def avg_pool2d(b: Builder, x: View, *, out: View, window, stride, padding, count_padding: bool) -> None:
    _launch(b, "avg_pool", out, [x], x, out, window, stride, padding, count_padding)


@kernel
def avg_pool2d_grad(b: Builder, g: View, *, out: View, input_shape, window, stride, padding, count_padding: bool) -> None:
    _launch(b, "avg_pool_grad", out, [g], out, g, window, stride, padding, count_padding)
