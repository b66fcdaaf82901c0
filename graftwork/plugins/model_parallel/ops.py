"""Communication as ops: each has a gradient, so the backward pass talks as well.

Two conjugate pairs (Shoeybi et al., "Megatron-LM", 2019): `spread` hands on its input and adds up gradients, `add_up` sums its
input and hands on gradients; `gather_parts` joins the ranks' channels, `own_part` takes this rank's. `group` is a name of
`mesh.GROUPS`. All ranks of a group call them in the same order; forward and backward do, as they run the same graph.
"""

from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from ...nn.op import Op, Sample
from ...nn.tensor import Tensor
from .mesh import GROUPS


def _same(x, group):
    return x.shape, x.dtype


def _gather_infer(x, group):
    return (*x.shape[:-1], x.shape[-1] * GROUPS[group].size), x.dtype


def _own_infer(x, group):
    size = GROUPS[group].size
    if x.ndim == 0 or x.shape[-1] % size:
        raise ShapeError(f"own_part: the last dimension of shape {tuple(x.shape)} does not divide among {size} ranks")
    return (*x.shape[:-1], x.shape[-1] // size), x.dtype


def _samples(rng):
    for shape in ((3, 4), (2, 3, 2)):
        yield Sample((rng.standard_normal(shape),), {"group": "alone"})


def _cost(x, group):
    return 0


def _declare(name, infer, vjp, doc):
    return Op(name, infer=infer, vjp=vjp, keeps_inputs=False, cost=_cost, samples=_samples, doc=doc)


SPREAD = _declare("spread", _same, lambda g, out, x, group: (ADD_UP(g, group=group),),
                  "The same values; gradients are added up over the ranks.")  # fmt: skip
ADD_UP = _declare("add_up", _same, lambda g, out, x, group: (SPREAD(g, group=group),),
                  "The sum over the ranks; gradients are handed on.")  # fmt: skip
GATHER_PARTS = _declare("gather_parts", _gather_infer, lambda g, out, x, group: (OWN_PART(g, group=group),),
                        "All ranks' channels, by rank.")  # fmt: skip
OWN_PART = _declare("own_part", _own_infer, lambda g, out, x, group: (GATHER_PARTS(g, group=group),),
                    "This rank's share of the channels.")  # fmt: skip
LARGEST = Op("largest_of_ranks", infer=_same, cost=_cost,
             samples=lambda rng: (Sample(s.arrays, s.attrs, False) for s in _samples(rng)),
             doc="The largest value of all ranks at each place; no gradient.")  # fmt: skip
ALL = (SPREAD, ADD_UP, GATHER_PARTS, OWN_PART, LARGEST)


def _spread(x, *, out, group):
    out[...] = x


def _add_up(x, *, out, group):
    GROUPS[group].all_reduce(np.ascontiguousarray(x), out, "a sum over a layer's parts")


def _largest(x, *, out, group):
    GROUPS[group].all_reduce(np.ascontiguousarray(x), out, "the largest of a layer's parts", largest=True)


def _gather(x, *, out, group):
    ranks = GROUPS[group]
    parts = np.empty((ranks.size, *x.shape), x.dtype)
    ranks.all_gather(np.ascontiguousarray(x), parts, "a layer's parts")
    out[...] = np.moveaxis(parts, 0, -2).reshape(out.shape)  # channels come last, and by rank


def _own(x, *, out, group):
    width = out.shape[-1]
    start = GROUPS[group].rank * width
    out[...] = x[..., start : start + width]


KERNELS = {"spread": _spread, "add_up": _add_up, "gather_parts": _gather, "own_part": _own, "largest_of_ranks": _largest}


def spread(x: Tensor, group: str) -> Tensor:
    """x, used by all ranks of the group; its gradient is the sum of theirs."""
    return SPREAD(x, group=group)


def add_up(x: Tensor, group: str) -> Tensor:
    """The sum of all ranks' x, on every rank."""
    return ADD_UP(x, group=group)


def gather_parts(x: Tensor, group: str) -> Tensor:
    """(..., channels) on each rank -> (..., channels * ranks) on all."""
    return GATHER_PARTS(x, group=group)


def own_part(x: Tensor, group: str) -> Tensor:
    """(..., channels) equal on all ranks -> (..., channels / ranks), this rank's."""
    return OWN_PART(x, group=group)
