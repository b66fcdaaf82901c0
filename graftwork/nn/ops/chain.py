"""Several elementwise ops as one: what a pass makes of neighbours, so that a kernel runs through memory once."""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError
from ...kernels.plan import Spec
from ..op import OPS, Op, Sample
from .common import normal


def _infer(*arrays, program):
    """Each step's own rule, one after another."""
    values = [Spec(tuple(a.shape), a.dtype) for a in arrays]
    if not program:
        raise ConfigError("chain: the program has no steps, expected at least one")
    for i, (name, operands, attrs) in enumerate(program):
        if name not in OPS:
            raise ConfigError(f"chain: step {i} names the op {name!r}, which does not exist")
        if any(not 0 <= o < len(values) for o in operands):
            raise ConfigError(f"chain: step {i} ({name}) has operands {operands}; {len(values)} values exist at that point")
        values.append(Spec(*OPS[name].infer(*(values[o] for o in operands), **dict(attrs))))
    return values[-1].shape, values[-1].dtype


def _samples(rng):
    vector = normal(rng, 5)
    yield Sample((normal(rng, 3, 5), vector, normal(rng, 5)),
                 {"program": (("multiply", (0, 1), ()), ("add", (3, 2), ()), ("relu", (4,), ()))}, False)  # fmt: skip
    gate = (("sigmoid", (0,), ()), ("multiply", (0, 2), ()), ("clip", (3,), (("high", 2.0), ("low", -0.5))),
            ("add", (4, 1), ()))  # fmt: skip
    yield Sample((normal(rng, 2, 3, 4), normal(rng, 2, 1, 4)), {"program": gate}, False)
    choice = (("greater", (0, 1), ()), ("where", (2, 0, 1), ()), ("leaky_relu", (3,), (("alpha", 0.1),)))
    yield Sample((normal(rng, 4, 3), normal(rng, 4, 1)), {"program": choice}, False)
    yield Sample((normal(rng, 0, 3), np.asarray(0.5)), {"program": (("less", (0, 1), ()), ("logical_not", (2,), ()))}, False)


CHAIN = Op(
    "chain", infer=_infer, samples=_samples, cost=lambda x, *rest, program: len(program) * x.size,
    doc="Elementwise steps (op, operands, attributes as sorted pairs) one after another; operand i is input i, or from the "
        "number of inputs on the result of an earlier step. The output is the last step's. It has no gradient: fuse after "
        "differentiating.",
)  # fmt: skip
