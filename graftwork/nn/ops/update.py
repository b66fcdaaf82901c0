"""In-place updates: optimiser steps and moving averages. Each says which inputs it writes."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ShapeError
from ..op import Op, Sample
from .common import normal, require_floats, require_same_dtype, require_shape


def _infer(name, repeats=0):
    """repeats: as in Op. State has the parameter's shape or none; a whole number of repeats is given."""

    def infer(*arrays, **attrs):
        period = repeats or len(arrays)
        rest = len(arrays) % period
        if len(arrays) < 2 or (repeats and rest != 1):
            raise ShapeError(f"{name}: {len(arrays)} inputs; expected {period} for each parameter, and the learning rate")
        for start in range(0, len(arrays) - rest, period):
            param, grad, *state = arrays[start : start + period]
            require_floats(name, arrays[0], param, grad)
            require_shape(name, "the gradient", grad, param.shape)
            for s in state:
                if s.ndim:
                    require_shape(name, "the state", s, param.shape)

    return infer


def _sgd_samples(rng):
    for nesterov, decay in ((False, 0.0), (True, 0.1)):
        p, g, buf = (normal(rng, 3, 4) for _ in range(3))
        attrs = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": decay, "dampening": 0.0}
        yield Sample((p, g, buf, np.asarray(0.1)), attrs, False)
    several = [normal(rng, *shape) for shape in ((3, 4), (7,), (1, 2)) for _ in range(3)]
    yield Sample((*several, np.asarray(0.1)), attrs, False)


def _adam_samples(rng):
    for decoupled in (False, True):
        p, g, m = (normal(rng, 3, 4) for _ in range(3))
        attrs = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1, "decoupled": decoupled}
        yield Sample((p, g, m, m * m, np.asarray(3.0), np.asarray(0.1)), attrs, False)
    several = []
    for steps, shape in ((3.0, (3, 4)), (1.0, (7,))):
        p, g, m = (normal(rng, *shape) for _ in range(3))
        several += [p, g, m, m * m, np.asarray(steps)]
    yield Sample((*several, np.asarray(0.1)), attrs, False)


def _cost(*arrays, **attrs):
    return 6 * sum(math.prod(a.shape) for a in arrays) // max(len(arrays) - 1, 1)


def _increment_infer(*counters):
    for c in counters:
        require_same_dtype("increment", counters[0], c)


SGD_UPDATE = Op("sgd_update", infer=_infer("sgd_update", 3), writes=(0, 2), repeats=3, cost=_cost, samples=_sgd_samples,
                doc="SGD step: param, momentum buffer written. Inputs: param, grad, buffer, for one or more parameters; "
                    "learning rate (0-d).")  # fmt: skip
ADAM_UPDATE = Op("adam_update", infer=_infer("adam_update", 5), writes=(0, 2, 3), repeats=5, cost=_cost, samples=_adam_samples,
                 doc="Adam step (Kingma and Ba 2014; decoupled: Loshchilov and Hutter 2017): param, m, v written. Inputs: "
                     "param, grad, m, v, step (0-d, counted from 1), for one or more parameters; learning rate (0-d)."
                 )  # fmt: skip
INCREMENT = Op(
    "increment", infer=_increment_infer, writes=(0,), repeats=1, cost=lambda *counters: len(counters),
    samples=lambda rng: iter([Sample((np.asarray(3.0),), {}, False), Sample((np.asarray(3.0), np.asarray(5.0)), {}, False)]),
    doc="counter += 1, in place, for one or more counters.",
)  # fmt: skip
MOVING_AVERAGE = Op(
    "moving_average", infer=_infer("moving_average"), writes=(0,), cost=_cost,
    samples=lambda rng: iter([Sample((normal(rng, 5), normal(rng, 5)), {"momentum": 0.9}, False)]),
    doc="running = momentum * running + (1 - momentum) * value, in place.",
)  # fmt: skip
