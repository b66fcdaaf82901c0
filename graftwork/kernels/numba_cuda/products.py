"""Matrix product by tiles in shared memory, and direct convolution with its gradients."""

from __future__ import annotations

import math

from numba import cuda, float32

from ..cuda.arguments import activation_code
from .pool import place
from .runtime import BLOCK, SIMULATED, dense, launch, library, over, spread

TILE = 4 if SIMULATED else 16


@cuda.jit(device=True)
def activated(x, code):
    """The fused activations, by their codes: relu, relu6, silu, hard_swish, sigmoid, hard_sigmoid, tanh, gelu."""
    gate = min(max(x + float32(3), float32(0)), float32(6)) / float32(6)
    if code == 1:
        return float32(0) if x < float32(0) else x
    if code == 2:
        return float32(0) if x < float32(0) else float32(6) if x > float32(6) else x
    if code == 3:
        return x / (float32(1) + math.exp(-x))
    if code == 4:
        return x * gate
    if code == 5:
        return float32(1) / (float32(1) + math.exp(-x))
    if code == 6:
        return gate
    if code == 7:
        return math.tanh(x)
    if code == 8:
        return float32(0.5) * x * (float32(1) + math.erf(x * float32(0.70710678)))
    return x


def tiled_product(out, a, b, bias, residual, code):
    """out[i, m, n] = activation(sum over k of a[i, m, k] * b[i, k, n] + bias[n] + residual[i, m, n]); a block computes a
    tile of it.

    Both operands pass through shared memory a tile at a time, so that each value is read from device memory once a tile,
    not once
    a product. An empty bias or residual stands for none.
    """
    left = cuda.shared.array((TILE, TILE), float32)
    right = cuda.shared.array((TILE, TILE), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    i, m, n = cuda.blockIdx.z, cuda.blockIdx.y * TILE + y, cuda.blockIdx.x * TILE + x
    depth = a.shape[2]
    total = float32(0)
    for start in range(0, depth, TILE):
        left[y, x] = a[i, m, start + x] if m < a.shape[1] and start + x < depth else float32(0)
        right[y, x] = b[i, start + y, n] if start + y < depth and n < b.shape[2] else float32(0)
        cuda.syncthreads()
        for k in range(TILE):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()  # before the next tile overwrites this one
    if m < out.shape[1] and n < out.shape[2]:
        if bias.size:
            total += bias[n]
        if residual.size:
            total += residual[i, m, n]
        out[i, m, n] = activated(total, code)


def direct_convolution(out, x, w, bias, residual, stride, before, dilation, groups, code):
    """A thread a value: out[n, oy, ox, o] = activation(sum over taps and channels of the group of o)."""
    i = cuda.grid(1)
    if i < out.size:
        o = i % out.shape[3]
        rest = i // out.shape[3]
        ox = rest % out.shape[2]
        rest //= out.shape[2]
        oy, n = rest % out.shape[1], rest // out.shape[1]
        first = o // (w.shape[3] // groups) * w.shape[2]
        total = float32(0)
        for a in range(w.shape[0]):
            y = oy * stride[0] - before[0] + a * dilation[0]
            for b in range(w.shape[1]):
                column = ox * stride[1] - before[1] + b * dilation[1]
                if 0 <= y < x.shape[1] and 0 <= column < x.shape[2]:
                    for c in range(w.shape[2]):
                        total += x[n, y, column, first + c] * w[a, b, c, o]
        if bias.size:
            total += bias[o]
        if residual.size:
            total += residual[n, oy, ox, o]
        out[n, oy, ox, o] = activated(total, code)


def input_gradient(dx, g, w, stride, before, dilation, groups):
    """A thread an input value: the sum over the taps, and the outputs of its group, that it took part in."""
    i = cuda.grid(1)
    if i < dx.size:
        n, iy, ix, c = place(i, dx.shape)
        outputs = w.shape[3] // groups
        first = c // w.shape[2] * outputs
        total = float32(0)
        for a in range(w.shape[0]):
            top = iy + before[0] - a * dilation[0]
            oy = top // stride[0]
            for b in range(w.shape[1]):
                left = ix + before[1] - b * dilation[1]
                ox = left // stride[1]
                if oy * stride[0] == top and ox * stride[1] == left and 0 <= oy < g.shape[1] and 0 <= ox < g.shape[2]:
                    for o in range(first, first + outputs):
                        total += g[n, oy, ox, o] * w[a, b, c % w.shape[2], o]
        dx[n, iy, ix, c] = total


def weight_gradient(dw, x, g, stride, before, dilation, groups):
    """A thread a weight: the sum over all pixels of the output, each with the input pixel at the weight's tap."""
    i = cuda.grid(1)
    if i < dw.size:
        a, b, c, o = place(i, dw.shape)
        channel = o // (dw.shape[3] // groups) * dw.shape[2] + c
        total = float32(0)
        for n in range(g.shape[0]):
            for oy in range(g.shape[1]):
                y = oy * stride[0] - before[0] + a * dilation[0]
                for ox in range(g.shape[2]):
                    column = ox * stride[1] - before[1] + b * dilation[1]
                    if 0 <= y < x.shape[1] and 0 <= column < x.shape[2]:
                        total += x[n, y, column, channel] * g[n, oy, ox, o]
        dw[a, b, c, o] = total


def _or_empty(array, like, ndim: int):
    return library(like).empty((0,) * ndim, like.dtype) if array is None else dense(array)


def _product(a, b, bias, residual, out, activation) -> None:
    """Stacks of matrices (count, m, k) and (count, k, n)."""
    count, m, n = out.shape
    grid = (math.ceil(n / TILE), math.ceil(m / TILE), count)
    extra = _or_empty(residual, out, 3)
    launch(tiled_product, grid, (TILE, TILE), out, a, b, _or_empty(bias, out, 1), extra, activation_code(activation))


def matmul(a, b, *, out) -> None:
    batch = out.shape[:-2]
    left, right = (spread(v, (*batch, *v.shape[-2:])) for v in (a, b))
    count = math.prod(batch)
    stacks = [v.reshape(count, *v.shape[-2:]) for v in (left, right, out)]
    _product(*stacks[:2], None, None, stacks[2], None)


def linear(x, w, b=None, r=None, *, out, activation=None) -> None:
    rows = (1, math.prod(x.shape[:-1]))
    result = out.reshape(*rows, out.shape[-1])
    extra = None if r is None else dense(r).reshape(result.shape)
    _product(dense(x).reshape(*rows, x.shape[-1]), dense(w)[None], b, extra, result, activation)


def conv2d(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None) -> None:
    launch(direct_convolution, over(out.size), BLOCK, out, dense(x), dense(w), _or_empty(b, out, 1), _or_empty(r, out, 4),
        stride,
           _before(padding), dilation, groups, activation_code(activation))  # fmt: skip


def conv2d_input_grad(g, w, *, out, input_shape, stride, padding, dilation, groups) -> None:
    launch(input_gradient, over(out.size), BLOCK, out, dense(g), dense(w), stride, _before(padding), dilation, groups)


def conv2d_weight_grad(x, g, *, out, kernel_shape, stride, padding, dilation, groups) -> None:
    launch(weight_gradient, over(out.size), BLOCK, out, dense(x), dense(g), stride, _before(padding), dilation, groups)


def _before(padding):
    return padding[0][0], padding[1][0]
