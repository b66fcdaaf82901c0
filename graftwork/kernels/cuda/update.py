"""Optimiser and moving-average updates on the GPU. They write to the inputs they name; `out` is None."""

from __future__ import annotations

from ...errors import KernelError
from .launch import Builder, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256


def _written(name: str, *views: View) -> None:
    for v in views:
        if not v.dense:
            raise KernelError(
                f"{name}: an array of shape {v.shape} with strides {v.strides} is written in place; it must be contiguous"
            )


def _lanes(*views: View) -> int:
    return vector_width(*views, runs=[views[0].size])


@kernel
def sgd_update(b: Builder, param: View, grad: View, buf: View, lr: View, *, out: None = None, momentum: float, nesterov: bool,
               weight_decay: float, dampening: float) -> None:  # fmt: skip
    _written("sgd_update", param, buf)
    grad = b.dense(grad)
    lanes = _lanes(param, grad, buf)
    form = structure([("count", "u8", param.size), ("momentum", "f8", momentum), ("weight_decay", "f8", weight_decay),
                      ("dampening", "f8", dampening), ("nesterov", "i4", int(nesterov))])  # fmt: skip
    defines = {"ELEMENT": c_type(param.dtype), "RATE": c_type(lr.dtype), "LANES": lanes}
    b.launch("update.cu", "sgd", defines, ceil_div(param.size // lanes, BLOCK), BLOCK, param, grad, buf, lr, form)


@kernel
def adam_update(b: Builder, param: View, grad: View, m: View, v: View, step: View, lr: View, *, out: None = None, beta1: float,
                beta2: float, epsilon: float, weight_decay: float, decoupled: bool) -> None:  # fmt: skip
    _written("adam_update", param, m, v)
    if step.dtype != lr.dtype:
        raise KernelError(f"adam_update: step has dtype {step.dtype}, the learning rate {lr.dtype}; expected one dtype")
    grad = b.dense(grad)
    lanes = _lanes(param, grad, m, v)
    form = structure([("count", "u8", param.size), ("beta1", "f8", beta1), ("beta2", "f8", beta2), ("epsilon", "f8", epsilon),
                      ("weight_decay", "f8", weight_decay), ("decoupled", "i4", int(decoupled))])  # fmt: skip
    defines = {"ELEMENT": c_type(param.dtype), "RATE": c_type(lr.dtype), "LANES": lanes}
    b.launch("update.cu", "adam", defines, ceil_div(param.size // lanes, BLOCK), BLOCK, param, grad, m, v, step, lr, form)


@kernel
def moving_average(b: Builder, running: View, value: View, *, out: None = None, momentum: float) -> None:
    _written("moving_average", running)
    value = b.dense(value)
    defines = {"ELEMENT": c_type(running.dtype), "RATE": c_type(running.dtype), "LANES": 1}
    form = structure([("count", "u8", running.size), ("momentum", "f8", momentum)])
    b.launch("update.cu", "average", defines, ceil_div(running.size, BLOCK), BLOCK, running, value, form)


@kernel
def increment(b: Builder, counter: View, *, out: None = None) -> None:
    defines = {"ELEMENT": c_type(counter.dtype), "RATE": "float", "LANES": 1}
    b.launch("update.cu", "count_up", defines, 1, 32, counter)
