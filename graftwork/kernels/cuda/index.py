"""Gather, scatter and one-hot on the GPU."""

from __future__ import annotations

import math

from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256


def _form(outer: int, positions: int, size: int, inner: int):
    return structure([("outer", "u8", outer), ("positions", "u8", positions), ("size", "u8", size), ("inner", "u8", inner)])


def _defines(x: View, index: View, lanes: int = 1) -> dict:
    return {"ELEMENT": c_type(x.dtype), "INDEX": c_type(index.dtype), "LANES": lanes}


@kernel
def gather(b: Builder, x: View, idx: View, *, out: View, axis: int) -> None:
    x, idx = b.dense(x), b.dense(idx)
    outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    lanes = vector_width(x, out, runs=[inner])
    b.launch("index.cu", "gather", _defines(x, idx, lanes), ceil_div(out.size // lanes, BLOCK), BLOCK, out, x, idx,
             _form(outer, idx.size, x.shape[axis], inner))  # fmt: skip


@kernel
def scatter_add(b: Builder, g: View, idx: View, *, out: View, axis: int, size: int) -> None:
    g, idx = b.dense(g), b.dense(idx)
    outer, inner = math.prod(out.shape[:axis]), math.prod(out.shape[axis + 1 :])
    b.launch("index.cu", "scatter_add", _defines(g, idx), (outer * size, ceil_div(inner, BLOCK)), BLOCK, out, g, idx,
             _form(outer, idx.size, size, inner))  # fmt: skip


@kernel
def one_hot(b: Builder, idx: View, *, out: View, depth: int, dtype: str) -> None:
    idx = b.dense(idx)
    b.launch(
        "index.cu", "one_hot", _defines(out, idx), ceil_div(out.size, BLOCK), BLOCK, out, idx, _form(1, idx.size, depth, 1)
    )
