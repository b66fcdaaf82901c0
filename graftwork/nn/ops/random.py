"""Random ops. The generator's state is a tensor that the op reads and advances, so that a captured graph stays random."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ConfigError, ShapeError
from ..op import Op, Sample
from ..rng import default_state
from ..tensor import Tensor
from .common import normal, require_floats

STATE_DTYPE = np.dtype(np.uint64)


def _infer(x, state, rate):
    require_floats("dropout", x)
    if state.dtype != STATE_DTYPE or tuple(state.shape) != (2,):
        raise ShapeError(f"dropout: state is {state.dtype}{tuple(state.shape)}, expected uint64 (seed, counter)")
    return [(x.shape, x.dtype), (x.shape, np.dtype(np.uint8))]


def _samples(rng):
    for shape in ((3, 5), (2, 3, 7), (0, 2)):
        yield Sample((normal(rng, *shape), np.array([7, 3], np.uint64)), {"rate": 0.4}, False)


def _grad_samples(rng):
    yield Sample((normal(rng, 3, 5), (rng.random((3, 5)) > 0.4).astype(np.uint8)), {"rate": 0.4})


def _cost(x, *rest, **attrs):
    return math.prod(x.shape)


DROPOUT = Op(
    "dropout", infer=_infer, multi=True, keeps_inputs=False, keeps_output=True, writes=(1,), cost=_cost, samples=_samples,
    vjp=lambda g, out, x, state, rate: (DROPOUT_GRAD(g[0], out[1], rate=rate), None),
)  # fmt: skip
DROPOUT_GRAD = Op(
    "dropout_grad", infer=lambda g, mask, rate: (g.shape, g.dtype), cost=_cost, samples=_grad_samples,
    vjp=lambda gg, out, g, mask, rate: (DROPOUT_GRAD(gg, mask, rate=rate), None),
)  # fmt: skip


def dropout(x: Tensor, rate: float, training: bool = True, state: Tensor | None = None) -> Tensor:
    """Zero each value with probability `rate` and scale the rest by 1 / (1 - rate); x itself when not training.

    state: a generator's state (`graftwork.nn.rng`), the default one of `manual_seed` unless given.
    """
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"dropout: rate={rate}, expected at least 0 and below 1")
    if not training or rate == 0.0:
        return x
    return DROPOUT(x, default_state(x.device) if state is None else state, rate=float(rate))[0]
