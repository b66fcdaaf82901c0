"""Softmax, its logarithm, their gradients and the cross-entropy on the GPU."""

from __future__ import annotations

import math

from .launch import Builder, View, c_type, ceil_div, kernel, structure

BLOCK = 256
SHORT = 1024  # elements of a row that one warp works on


def _form(rows: int, length: int, inner: int, smoothing: float = 0.0):
    return structure([("rows", "u8", rows), ("length", "u8", length), ("inner", "u8", inner), ("smoothing", "f8", smoothing)])


def _describe(b: Builder, name: str, mode: int, out: View, inputs: list[View], axis: int) -> None:
    inputs = [b.dense(v) for v in inputs]
    shape = out.shape
    length, inner = shape[axis], math.prod(shape[axis + 1 :])
    rows = out.size // length if length else 0
    team = 32 if length <= SHORT else BLOCK
    defines = {"ELEMENT": c_type(out.dtype), "MODE": mode, "ROW": team, "LABEL": "i64"}
    if inner == 1:
        b.launch(
            "softmax.cu", f"{name}_rows", defines, ceil_div(rows * team, BLOCK), BLOCK, out, *inputs, _form(rows, length, 1)
        )
    else:
        b.launch(
            "softmax.cu", f"{name}_columns", defines, ceil_div(rows, BLOCK), BLOCK, out, *inputs, _form(rows, length, inner)
        )


@kernel
def softmax(b: Builder, x: View, *, out: View, axis: int) -> None:
    _describe(b, "softmax", 0, out, [x], axis)


@kernel
def log_softmax(b: Builder, x: View, *, out: View, axis: int) -> None:
    _describe(b, "softmax", 1, out, [x], axis)


@kernel
def softmax_grad(b: Builder, g: View, y: View, *, out: View, axis: int) -> None:
    _describe(b, "softmax_grad", 0, out, [g, y], axis)


@kernel
def log_softmax_grad(b: Builder, g: View, y: View, *, out: View, axis: int) -> None:
    _describe(b, "softmax_grad", 1, out, [g, y], axis)


@kernel
def cross_entropy(b: Builder, logits: View, labels: View, *, out: View, label_smoothing: float) -> None:
    """NaN for a label out of range: a kernel cannot raise an error."""
    logits, labels = b.dense(logits), b.dense(labels)
    rows, classes = logits.shape
    team = 32 if classes <= SHORT else BLOCK
    defines = {"ELEMENT": c_type(out.dtype), "MODE": 1, "ROW": team, "LABEL": c_type(labels.dtype)}
    form = _form(rows, classes, 1, label_smoothing)
    b.launch("softmax.cu", "cross_entropy", defines, ceil_div(rows * team, BLOCK), BLOCK, out, logits, labels, form)
