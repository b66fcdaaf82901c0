"""Pooling of (N, H, W, C) images: a thread a value of the result. Gradients gather from the windows that cover a pixel."""

from __future__ import annotations

import math

from numba import cuda, float32

from .runtime import BLOCK, dense, launch, over


@cuda.jit(device=True)
def place(i, shape):
    """Position of flat element i in an array of four dimensions."""
    c = i % shape[3]
    i //= shape[3]
    x = i % shape[2]
    i //= shape[2]
    return i // shape[1], i % shape[1], x, c


@cuda.jit(device=True)
def same(x, y):
    return x == y or (x != x and y != y)


def max_forward(out, x, window, stride, before):
    i = cuda.grid(1)
    if i < out.size:
        n, oy, ox, c = place(i, out.shape)
        best = float32(-math.inf)
        for a in range(window[0]):
            for b in range(window[1]):
                y, column = oy * stride[0] - before[0] + a, ox * stride[1] - before[1] + b
                if 0 <= y < x.shape[1] and 0 <= column < x.shape[2]:
                    v = x[n, y, column, c]
                    best = v if v > best or v != v else best
        out[n, oy, ox, c] = best


def max_backward(dx, g, x, y, window, stride, before):
    """g of every window whose first maximum, in row-major order, is this pixel."""
    i = cuda.grid(1)
    if i < dx.size:
        n, iy, ix, c = place(i, dx.shape)
        own, total = x[n, iy, ix, c], float32(0)
        for a in range(window[0]):
            for b in range(window[1]):  # the pixel is at (a, b) of the window
                top, left = iy + before[0] - a, ix + before[1] - b
                oy, ox = top // stride[0], left // stride[1]
                if oy * stride[0] == top and ox * stride[1] == left and 0 <= oy < y.shape[1] and 0 <= ox < y.shape[2]:
                    first = same(own, y[n, oy, ox, c])
                    for earlier in range(a * window[1] + b):
                        ty, tx = (
                            oy * stride[0] - before[0] + earlier // window[1],
                            ox * stride[1] - before[1] + earlier % window[1],
                        )
                        if first and 0 <= ty < x.shape[1] and 0 <= tx < x.shape[2]:
                            first = not same(x[n, ty, tx, c], own)
                    if first:
                        total += g[n, oy, ox, c]
        dx[n, iy, ix, c] = total


@cuda.jit(device=True)
def places(start, window, size, before, after, count_padding):
    """How many places a mean divides by, along one dimension."""
    if count_padding:
        return min(start + window, size + after) - max(start, -before)
    return min(start + window, size) - max(start, 0)


def avg_forward(out, x, window, stride, before, after, count_padding):
    i = cuda.grid(1)
    if i < out.size:
        n, oy, ox, c = place(i, out.shape)
        top, left, total = oy * stride[0] - before[0], ox * stride[1] - before[1], float32(0)
        for y in range(max(top, 0), min(top + window[0], x.shape[1])):
            for column in range(max(left, 0), min(left + window[1], x.shape[2])):
                total += x[n, y, column, c]
        rows = places(top, window[0], x.shape[1], before[0], after[0], count_padding)
        columns = places(left, window[1], x.shape[2], before[1], after[1], count_padding)
        out[n, oy, ox, c] = total / float32(rows * columns)


def avg_backward(dx, g, window, stride, before, after, count_padding):
    i = cuda.grid(1)
    if i < dx.size:
        n, iy, ix, c = place(i, dx.shape)
        total = float32(0)
        for a in range(window[0]):
            for b in range(window[1]):
                top, left = iy + before[0] - a, ix + before[1] - b
                oy, ox = top // stride[0], left // stride[1]
                if oy * stride[0] == top and ox * stride[1] == left and 0 <= oy < g.shape[1] and 0 <= ox < g.shape[2]:
                    rows = places(top - before[0], window[0], dx.shape[1], before[0], after[0], count_padding)
                    columns = places(left - before[1], window[1], dx.shape[2], before[1], after[1], count_padding)
                    total += g[n, oy, ox, c] / float32(rows * columns)
        dx[n, iy, ix, c] = total


def _sides(padding):
    return (padding[0][0], padding[1][0]), (padding[0][1], padding[1][1])


def max_pool2d(x, *, out, window, stride, padding) -> None:
    launch(max_forward, over(out.size), BLOCK, out, dense(x), window, stride, _sides(padding)[0])


def max_pool2d_grad(g, x, y, *, out, window, stride, padding) -> None:
    launch(max_backward, over(out.size), BLOCK, out, dense(g), dense(x), dense(y), window, stride, _sides(padding)[0])


def avg_pool2d(x, *, out, window, stride, padding, count_padding) -> None:
    launch(avg_forward, over(out.size), BLOCK, out, dense(x), window, stride, *_sides(padding), count_padding)


def avg_pool2d_grad(g, *, out, input_shape, window, stride, padding, count_padding) -> None:
    launch(avg_backward, over(out.size), BLOCK, out, dense(g), window, stride, *_sides(padding), count_padding)
