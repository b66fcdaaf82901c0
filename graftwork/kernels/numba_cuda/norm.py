"""Batch and layer normalisation: a block a channel, or a row."""

from __future__ import annotations

import math

from numba import cuda, float32

from .runtime import BLOCK, TREE, dense, launch, over


@cuda.jit(device=True)
def block_sum(value, partial):
    """The sum over the block, for every thread; `partial` is shared memory of TREE values."""
    t = cuda.threadIdx.x
    partial[t] = value
    half = TREE // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            partial[t] += partial[t + half]
        half //= 2
    cuda.syncthreads()
    total = partial[0]
    cuda.syncthreads()
    return total


def normalise(y, x, gamma, beta, mean, var, epsilon):
    """y = (x - mean) / sqrt(var + epsilon) * gamma + beta; x, y: (rows, channels)."""
    i = cuda.grid(1)
    if i < x.size:
        row, c = i // x.shape[1], i % x.shape[1]
        y[row, c] = (x[row, c] - mean[c]) / math.sqrt(var[c] + epsilon) * gamma[c] + beta[c]


def moments(mean, var, x):
    """Mean and variance of every channel of x (rows, channels): a block a channel, two looks at it."""
    partial = cuda.shared.array(TREE, float32)
    c, t, count = cuda.blockIdx.x, cuda.threadIdx.x, float32(x.shape[0])
    total = float32(0)
    for row in range(t, x.shape[0], TREE):
        total += x[row, c]
    centre = block_sum(total, partial) / count
    total = float32(0)
    for row in range(t, x.shape[0], TREE):
        total += (x[row, c] - centre) * (x[row, c] - centre)
    spread = block_sum(total, partial) / count
    if t == 0:
        mean[c] = centre
        var[c] = spread


def layer(y, mean, rstd, x, gamma, beta, epsilon):
    """Layer norm of x (rows, channels): a block a row, two looks at it."""
    partial = cuda.shared.array(TREE, float32)
    row, t, count = cuda.blockIdx.x, cuda.threadIdx.x, float32(x.shape[1])
    total = float32(0)
    for c in range(t, x.shape[1], TREE):
        total += x[row, c]
    centre = block_sum(total, partial) / count
    total = float32(0)
    for c in range(t, x.shape[1], TREE):
        total += (x[row, c] - centre) * (x[row, c] - centre)
    scale = float32(1) / math.sqrt(block_sum(total, partial) / count + epsilon)
    for c in range(t, x.shape[1], TREE):
        y[row, c] = (x[row, c] - centre) * scale * gamma[c] + beta[c]
    if t == 0:
        mean[row] = centre
        rstd[row] = scale


def _matrix(x):
    return dense(x).reshape(-1, x.shape[-1])


def batch_norm(x, gamma, beta, mean, var, *, out, epsilon) -> None:
    launch(
        normalise,
        over(x.size),
        BLOCK,
        out.reshape(-1, x.shape[-1]),
        _matrix(x),
        *map(dense, (gamma, beta, mean, var)),
        float32(epsilon),
    )


def batch_norm_train(x, gamma, beta, *, out, epsilon) -> None:
    y, mean, var = out
    matrix = _matrix(x)
    launch(moments, x.shape[-1], TREE, mean, var, matrix)
    launch(
        normalise, over(x.size), BLOCK, y.reshape(matrix.shape), matrix, dense(gamma), dense(beta), mean, var, float32(epsilon)
    )


def layer_norm(x, gamma, beta, *, out, epsilon) -> None:
    y, mean, rstd = out
    matrix = _matrix(x)
    launch(layer, matrix.shape[0], TREE, y.reshape(matrix.shape), mean.reshape(-1), rstd.reshape(-1), matrix, dense(gamma),
        dense(beta),
           float32(epsilon))  # fmt: skip
