"""Optimiser and moving-average updates, each in one pass over the data. They write to the inputs they name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..plan import Plan, Spec, spec_of
from . import atomic, runtime
from .planning import FLOAT32, all_float32, parts_for
from .simd import LANES
from .vector import load, load_some, sqrt, store, store_some

PARALLEL_FROM = 1 << 13  # elements; below, a few NumPy ufuncs cost less than preparing a task


def _flat(*arrays: np.ndarray) -> bool:
    """Whether a task may serve the arrays, and write to them where they lie."""
    return all(a.flags.c_contiguous and a.dtype == FLOAT32 for a in arrays)


@runtime.task
def sgd_step(a, part):
    """Words: parts, count, param, grad, buffer, rate, momentum, weight decay, nesterov, share of the gradient (reals)."""
    first, last = a[1] * part // a[0], a[1] * (part + 1) // a[0]
    param, grad, buf = atomic.f32(a, 2), atomic.f32(a, 3), atomic.f32(a, 4)
    rate, mu, decay = atomic.f32(a, 5)[0], np.float32(atomic.real(a, 6)), np.float32(atomic.real(a, 7))
    nesterov, share = a[8], np.float32(atomic.real(a, 9))
    for i in range(first, last, LANES):
        count = last - i
        if count >= LANES:
            p = load(param, i)
            step = load(grad, i) + p * decay
            if mu != np.float32(0):
                b = load(buf, i) * mu + step * share
                store(buf, i, b)
                step = step + b * mu if nesterov else b
            store(param, i, p - step * rate)
        else:
            p = load_some(param, i, count)
            step = load_some(grad, i, count) + p * decay
            if mu != np.float32(0):
                b = load_some(buf, i, count) * mu + step * share
                store_some(buf, i, b, count)
                step = step + b * mu if nesterov else b
            store_some(param, i, p - step * rate, count)


@runtime.task
def adam_step(a, part):
    """Words: parts, count, param, grad, m, v, step, rate; beta1, beta2, epsilon, weight decay (reals), decoupled."""
    first, last = a[1] * part // a[0], a[1] * (part + 1) // a[0]
    param, grad, m, v = atomic.f32(a, 2), atomic.f32(a, 3), atomic.f32(a, 4), atomic.f32(a, 5)
    t, rate = np.float64(atomic.f32(a, 6)[0]), np.float64(atomic.f32(a, 7)[0])
    beta1, beta2, weight_decay = atomic.real(a, 8), atomic.real(a, 9), atomic.real(a, 11)
    b1, b2, r1, r2 = np.float32(beta1), np.float32(beta2), np.float32(1 - beta1), np.float32(1 - beta2)
    pace, root = np.float32(rate / (1 - beta1**t)), np.float32(1 / np.sqrt(1 - beta2**t))
    epsilon = np.float32(atomic.real(a, 10))
    keep = np.float32(1 - rate * weight_decay) if a[12] else np.float32(1)
    decay = np.float32(0) if a[12] else np.float32(weight_decay)
    for i in range(first, last, LANES):
        count = last - i
        p = load_some(param, i, count) * keep
        g = load_some(grad, i, count) + p * decay
        mean = load_some(m, i, count) * b1 + g * r1
        square = load_some(v, i, count) * b2 + g * g * r2
        store_some(m, i, mean, count)
        store_some(v, i, square, count)
        store_some(param, i, p - mean * pace / (sqrt(square) * root + epsilon), count)


@runtime.task
def average_step(a, part):
    """Words: parts, count, running, value, momentum (real)."""
    first, last = a[1] * part // a[0], a[1] * (part + 1) // a[0]
    running, value = atomic.f32(a, 2), atomic.f32(a, 3)
    keep, share = np.float32(atomic.real(a, 4)), np.float32(1 - atomic.real(a, 4))
    for i in range(first, last, LANES):
        count = last - i
        store_some(running, i, load_some(running, i, count) * keep + load_some(value, i, count) * share, count)


# -- plans. They have no outputs: `out` is None, and the inputs that are written must be contiguous ---------------------


def plan_sgd_update(*specs: Spec, out: None = None, momentum: float, nesterov: bool, weight_decay: float,
                    dampening: float) -> Plan | None:  # fmt: skip
    numbers = (float(momentum), float(weight_decay), int(nesterov), 1.0 - dampening)
    return _plan_updates(sgd_step, specs, 3, 2, numbers)


def plan_adam_update(*specs: Spec, out: None = None, beta1: float, beta2: float, epsilon: float, weight_decay: float,
                     decoupled: bool) -> Plan | None:  # fmt: skip
    numbers = (float(beta1), float(beta2), float(epsilon), float(weight_decay), int(decoupled))
    return _plan_updates(adam_step, specs, 5, 6, numbers)


def _plan_updates(step, specs: Sequence[Spec], period: int, work: int, numbers: tuple) -> Plan | None:
    """A row for each parameter: `period` arrays of it, then the learning rate. work: operations an element, for the threads."""
    if not all_float32(*specs):
        return None

    def bind(inputs, outputs, workspace):
        rows = []
        for i in range(0, len(specs) - 1, period):
            if size := specs[i].size:
                parts = parts_for(size, work * size)
                rows.append(runtime.row(step, parts, parts, size, *inputs[i : i + period], inputs[-1], *numbers))
        return rows

    return Plan(bind)


def plan_moving_average(running: Spec, value: Spec, *, out: None = None, momentum: float) -> Plan | None:
    if not all_float32(running, value) or running.shape != value.shape:
        return None
    parts = parts_for(running.size, running.size)

    def bind(inputs, outputs, workspace):
        return [runtime.row(average_step, parts, parts, running.size, *inputs, float(momentum))] if running.size else []

    return Plan(bind)


# -- eager kernels -----------------------------------------------------------------------------------------------------


def _as_float32(number: np.ndarray) -> np.ndarray:
    return np.asarray(number, np.float32)


def sgd_update(*arrays: np.ndarray, out: None = None, **attrs) -> None:
    """One step of SGD as PyTorch defines it (Sutskever et al., 2013), for every (param, grad, buf) before the learning rate."""
    for i in range(0, len(arrays) - 1, 3):
        _sgd_one(*arrays[i : i + 3], arrays[-1], **attrs)


def _sgd_one(param: np.ndarray, grad: np.ndarray, buf: np.ndarray, lr: np.ndarray, *, momentum: float, nesterov: bool,
             weight_decay: float, dampening: float) -> None:  # fmt: skip
    if param.size >= PARALLEL_FROM and _flat(param, grad, buf):
        arrays = (param, grad, buf, _as_float32(lr))
        attrs = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "dampening": dampening}
        runtime.call(plan_sgd_update(*map(spec_of, arrays), **attrs), arrays, ())
        return
    step = grad + weight_decay * param if weight_decay else grad
    if momentum:
        np.multiply(buf, momentum, buf)
        np.add(buf, step if dampening == 0 else (1 - dampening) * step, buf)
        step = step + momentum * buf if nesterov else buf
    np.subtract(param, step * float(lr), param)


def adam_update(*arrays: np.ndarray, out: None = None, **attrs) -> None:
    """One step of Adam (Kingma and Ba, 2015), or AdamW where decoupled (Loshchilov and Hutter, 2019), for every
    (param, grad, m, v, step) before the learning rate.

    Writes param, m and v. `step` counts from one and has already been incremented.
    """
    for i in range(0, len(arrays) - 1, 5):
        _adam_one(*arrays[i : i + 5], arrays[-1], **attrs)


def _adam_one(param, grad, m, v, step, lr, *, beta1: float, beta2: float, epsilon: float, weight_decay: float,
              decoupled: bool) -> None:  # fmt: skip
    if param.size >= PARALLEL_FROM and _flat(param, grad, m, v):
        arrays = (param, grad, m, v, _as_float32(step), _as_float32(lr))
        attrs = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "weight_decay": weight_decay, "decoupled": decoupled}
        runtime.call(plan_adam_update(*map(spec_of, arrays), **attrs), arrays, ())
        return
    t, lr = float(step), float(lr)
    rate, root = lr / (1 - beta1**t), (1 - beta2**t) ** 0.5
    if decoupled:
        np.multiply(param, 1 - lr * weight_decay, param)
    elif weight_decay:
        grad = grad + weight_decay * param
    np.multiply(m, beta1, m)
    np.add(m, grad * (1 - beta1), m)
    np.multiply(v, beta2, v)
    np.add(v, np.square(grad) * (1 - beta2), v)
    denominator = np.sqrt(v) / root
    denominator += epsilon
    np.subtract(param, m * rate / denominator, param)


def moving_average(running: np.ndarray, value: np.ndarray, *, out: None = None, momentum: float) -> None:
    """running = momentum * running + (1 - momentum) * value, in place."""
    np.multiply(running, momentum, running)
    np.add(running, value * (1 - momentum), running)
