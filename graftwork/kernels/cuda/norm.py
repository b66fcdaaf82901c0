"""Batch and layer normalisation on the GPU; channels are the last dimension. Statistics are kept in float32 at least."""

from __future__ import annotations

from typing import Any

from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width
from .reduce import accumulator, column_sums

BLOCK = 256
SHORT = 1024  # channels of a row that one warp normalises
LEAST_ROWS = 64  # of a part of a batch


def _form(rows: int, channels: int, parts: int = 1, epsilon: float = 0.0):
    return structure([("rows", "u8", rows), ("channels", "u4", channels), ("parts", "u4", parts), ("epsilon", "f8", epsilon)])


def _defines(x: View, lanes: int = 1, team: int = 32) -> dict[str, Any]:
    return {"ELEMENT": c_type(x.dtype), "LANES": lanes, "TEAM": team}


def _parts(b: Builder, rows: int, channels: int) -> int:
    """Into how many parts the rows are divided, so that all multiprocessors have something to do."""
    wanted = ceil_div(b.processors * 4, ceil_div(channels, 32))
    return max(1, min(wanted, rows // LEAST_ROWS, 65535))


@kernel
def batch_norm(b: Builder, x: View, gamma: View, beta: View, mean: View, var: View, *, out: View, epsilon: float) -> None:
    _normalise(b, b.dense(x), [b.dense(v) for v in (gamma, beta, mean, var)], out, epsilon)


def _normalise(b: Builder, x: View, vectors: list[View], out: View, epsilon: float) -> None:
    channels = x.shape[-1]
    lanes = vector_width(x, out, *vectors, runs=[channels])
    form = _form(x.size // channels, channels, 1, epsilon)
    b.launch("norm.cu", "batch_norm", _defines(x, lanes), ceil_div(x.size // lanes, BLOCK), BLOCK, out, x, *vectors, form)


@kernel
def batch_norm_train(b: Builder, x: View, gamma: View, beta: View, *, out: tuple[View, View, View], epsilon: float) -> None:
    y, mean, var = out
    x, gamma, beta = b.dense(x), b.dense(gamma), b.dense(beta)
    channels = x.shape[-1]
    rows = x.size // channels
    parts = _parts(b, rows, channels)
    partial = b.empty((parts, 3, channels), accumulator(x.dtype))
    form = _form(rows, channels, parts, epsilon)
    b.launch("norm.cu", "batch_moments", _defines(x), (ceil_div(channels, 32), parts), (32, 8), partial, x, form)
    b.launch("norm.cu", "join_moments", _defines(x), ceil_div(channels, BLOCK), BLOCK, mean, var, partial, form)
    _normalise(b, x, [gamma, beta, mean, var], y, epsilon)


@kernel
def batch_norm_grad(b: Builder, g: View, x: View, gamma: View, mean: View, var: View, *, out, epsilon: float) -> None:
    dx, dgamma, dbeta = out
    g, x, gamma, mean, var = (b.dense(v) for v in (g, x, gamma, mean, var))
    channels = x.shape[-1]
    rows = x.size // channels
    parts = _parts(b, rows, channels)
    kind = accumulator(x.dtype)
    partial, sums = b.empty((parts, 2, channels), kind), b.empty((2, channels), kind)
    form = _form(rows, channels, parts, epsilon)
    b.launch(
        "norm.cu", "batch_grad_sums", _defines(x), (ceil_div(channels, 32), parts), (32, 8), partial, g, x, mean, var, form
    )
    b.launch("norm.cu", "join_grad_sums", _defines(x), ceil_div(channels, BLOCK), BLOCK, dgamma, dbeta, sums, partial, form)
    lanes = vector_width(g, x, dx, runs=[channels])
    b.launch("norm.cu", "batch_grad", _defines(x, lanes), ceil_div(x.size // lanes, BLOCK), BLOCK, dx, g, x, gamma, mean, var,
        sums,
             form)  # fmt: skip


@kernel
def layer_norm(b: Builder, x: View, gamma: View, beta: View, *, out, epsilon: float) -> None:
    y, mean, rstd = out
    x, gamma, beta = b.dense(x), b.dense(gamma), b.dense(beta)
    rows, channels, team = _rows(x)
    form = _form(rows, channels, 1, epsilon)
    b.launch(
        "norm.cu", "layer_norm", _defines(x, 1, team), ceil_div(rows * team, BLOCK), BLOCK, y, mean, rstd, x, gamma, beta, form
    )


@kernel
def layer_norm_grad(b: Builder, g: View, x: View, gamma: View, mean: View, rstd: View, *, out) -> None:
    dx, dgamma, dbeta = out
    g, x, gamma, mean, rstd = (b.dense(v) for v in (g, x, gamma, mean, rstd))
    rows, channels, team = _rows(x)
    weighted = b.empty(x.shape, accumulator(x.dtype))
    b.launch("norm.cu", "layer_grad", _defines(x, 1, team), ceil_div(rows * team, BLOCK), BLOCK, dx, weighted, g, x, gamma,
        mean, rstd,
             _form(rows, channels))  # fmt: skip
    column_sums(b, weighted, dgamma, channels)
    column_sums(b, g, dbeta, channels)


def _rows(x: View) -> tuple[int, int, int]:
    """Rows, channels, and how many threads share a row."""
    channels = x.shape[-1]
    return x.size // channels, channels, 32 if channels <= SHORT else BLOCK
