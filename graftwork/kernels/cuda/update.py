"""Optimiser and moving-average updates on the GPU. They write to the inputs they name; `out` is None."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import KernelError
from .launch import Builder, Pointers, View, c_type, ceil_div, kernel, structure, vector_width

BLOCK = 256
TENSORS = 64  # of one launch: the table is passed by value, and a kernel takes 4 KiB of arguments
CHUNK = 4  # accesses of a thread


def _written(name: str, *views: View) -> None:
    for v in views:
        if not v.dense:
            raise KernelError(
                f"{name}: an array of shape {v.shape} with strides {v.strides} is written in place; it must be contiguous"
            )


def _launch_all(b: Builder, name: str, arrays: Sequence[View], period: int, rate: View, numbers: list) -> None:
    """One launch for every TENSORS groups of `period` arrays, the first of which is the parameter."""
    groups = [arrays[i : i + period] for i in range(0, len(arrays), period)]
    groups = [group for group in groups if group[0].size]
    for start in range(0, len(groups), TENSORS):
        some = groups[start : start + TENSORS]
        room = 1 if len(some) == 1 else TENSORS
        lanes = vector_width(*(v for group in some for v in group[:4]))
        blocks = [ceil_div(group[0].size, BLOCK * lanes * CHUNK) for group in some]
        form = structure([
            ("count", "u8", _padded([group[0].size for group in some], room, np.uint64)),
            ("first", "u4", _padded(np.cumsum([0, *blocks[:-1]]), room, np.uint32)), ("tensors", "u4", len(some)), *numbers,
        ])  # fmt: skip
        table = Pointers(tuple(v for group in some for v in group), room * period)
        b.launch("update.cu", name, _defines(some[0][0], rate, lanes, room), sum(blocks), BLOCK, table, rate, form)


def _padded(values, length: int, dtype) -> np.ndarray:
    made = np.zeros(length, dtype)
    made[: len(values)] = values
    return made


def _defines(x: View, rate: View, lanes: int = 1, tensors: int = 1) -> dict:
    return {"ELEMENT": c_type(x.dtype), "RATE": c_type(rate.dtype), "LANES": lanes, "TENSORS": tensors}


@kernel
def sgd_update(b: Builder, *arrays: View, out: None = None, momentum: float, nesterov: bool, weight_decay: float,
               dampening: float) -> None:  # fmt: skip
    *given, rate = arrays
    for i in range(0, len(given), 3):
        _written("sgd_update", given[i], given[i + 2])
        given[i + 1] = b.dense(given[i + 1])
    numbers = [("momentum", "f8", momentum), ("weight_decay", "f8", weight_decay), ("dampening", "f8", dampening),
               ("nesterov", "i4", int(nesterov))]  # fmt: skip
    _launch_all(b, "sgd", given, 3, rate, numbers)


@kernel
def adam_update(b: Builder, *arrays: View, out: None = None, beta1: float, beta2: float, epsilon: float, weight_decay: float,
                decoupled: bool) -> None:  # fmt: skip
    *given, rate = arrays
    for i in range(0, len(given), 5):
        param, grad, mean, square, step = given[i : i + 5]
        _written("adam_update", param, mean, square)
        if step.dtype != rate.dtype:
            raise KernelError(f"adam_update: step has dtype {step.dtype}, the learning rate {rate.dtype}; expected one dtype")
        given[i + 1] = b.dense(grad)
    numbers = [("beta1", "f8", beta1), ("beta2", "f8", beta2), ("epsilon", "f8", epsilon),
               ("weight_decay", "f8", weight_decay), ("decoupled", "i4", int(decoupled))]  # fmt: skip
    _launch_all(b, "adam", given, 5, rate, numbers)


@kernel
def moving_average(b: Builder, running: View, value: View, *, out: None = None, momentum: float) -> None:
    _written("moving_average", running)
    value = b.dense(value)
    form = structure([("count", "u8", running.size), ("momentum", "f8", momentum)])
    b.launch("update.cu", "average", _defines(running, running), ceil_div(running.size, BLOCK), BLOCK, running, value, form)


@kernel
def increment(b: Builder, *counters: View, out: None = None) -> None:
    for start in range(0, len(counters), TENSORS):
        some = counters[start : start + TENSORS]
        defines = _defines(some[0], some[0], 1, 1 if len(some) == 1 else TENSORS)
        b.launch("update.cu", "count_up", defines, 1, TENSORS, Pointers(tuple(some), defines["TENSORS"]), np.uint32(len(some)))
