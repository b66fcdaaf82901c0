"""In-place updates: optimiser steps and moving averages. Each says which inputs it writes."""

from __future__ import annotations

import math

import numpy as np

from ..op import Op, Sample
from .common import normal, require_floats, require_shape


def _infer(name):
    def infer(param, grad, *state, **attrs):
        require_floats(name, param, grad)
        require_shape(name, "the gradient", grad, param.shape)

    return infer


def _sgd_samples(rng):
    for nesterov, decay in ((False, 0.0), (True, 0.1)):
        p, g, buf = (normal(rng, 3, 4) for _ in range(3))
        attrs = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": decay, "dampening": 0.0}
        yield Sample((p, g, buf, np.asarray(0.1)), attrs, False)


def _adam_samples(rng):
    for decoupled in (False, True):
        p, g, m = (normal(rng, 3, 4) for _ in range(3))
        attrs = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1, "decoupled": decoupled}
        yield Sample((p, g, m, m * m, np.asarray(3.0), np.asarray(0.1)), attrs, False)


def _cost(param, *rest, **attrs):
    return 6 * math.prod(param.shape)


SGD_UPDATE = Op("sgd_update", infer=_infer("sgd_update"), writes=(0, 2), cost=_cost, samples=_sgd_samples,
                doc="SGD step: param, momentum buffer written. Inputs: param, grad, buffer, learning rate (0-d).")  # fmt: skip
ADAM_UPDATE = Op("adam_update", infer=_infer("adam_update"), writes=(0, 2, 3), cost=_cost, samples=_adam_samples,
                 doc="Adam step (Kingma and Ba 2014; decoupled: Loshchilov and Hutter 2017): param, m, v written. "
                     "Inputs: param, grad, m, v, step (0-d, counted from 1), learning rate (0-d).")  # fmt: skip
INCREMENT = Op(
    "increment", infer=lambda counter: None, writes=(0,), cost=lambda counter: 1,
    samples=lambda rng: iter([Sample((np.asarray(3.0),), {}, False)]), doc="counter += 1, in place.",
)  # fmt: skip
MOVING_AVERAGE = Op(
    "moving_average", infer=_infer("moving_average"), writes=(0,), cost=_cost,
    samples=lambda rng: iter([Sample((normal(rng, 5), normal(rng, 5)), {"momentum": 0.9}, False)]),
    doc="running = momentum * running + (1 - momentum) * value, in place.",
)  # fmt: skip
