"""Resizing images, with half-pixel centres."""

from __future__ import annotations

import math

from ...errors import ConfigError, ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import normal, pair, require_floats, require_nhwc

METHODS = ("nearest", "bilinear")


def _infer(x, *, size, method):
    require_nhwc("resize", x)
    require_floats("resize", x)
    if method not in METHODS:
        raise ConfigError(f"resize: method={method!r}; expected one of {', '.join(METHODS)}")
    if 0 in x.shape[1:3]:
        raise ShapeError(f"resize: input {tuple(x.shape)} has no pixels")
    return (x.shape[0], *size, x.shape[3]), x.dtype


def _grad_infer(g, *, input_size, method):
    require_nhwc("resize_grad", g)
    require_floats("resize_grad", g)
    return (g.shape[0], *input_size, g.shape[3]), g.dtype


def _samples(rng):
    for method in METHODS:
        for size in ((7, 3), (2, 8), (5, 4)):
            yield Sample((normal(rng, 2, 5, 4, 3),), {"size": size, "method": method})


def _grad_samples(rng):
    for s in _samples(rng):
        yield Sample((normal(rng, 2, *s.attrs["size"], 3),), {"input_size": (5, 4), "method": s.attrs["method"]})


RESIZE = Op("resize", infer=_infer, keeps_inputs=False, samples=_samples, cost=lambda x, size, **a: 8 * math.prod(size),
            vjp=lambda g, out, x, size, method: (RESIZE_GRAD(g, input_size=tuple(x.shape[1:3]), method=method),))  # fmt: skip
RESIZE_GRAD = Op("resize_grad", infer=_grad_infer, keeps_inputs=False, samples=_grad_samples,
                 cost=lambda g, **a: 8 * math.prod(g.shape),
                 vjp=lambda gg, out, g, input_size, method: (RESIZE(gg, size=tuple(g.shape[1:3]), method=method),))  # fmt: skip


def resize(x: Tensor, size, method: str = "bilinear") -> Tensor:
    """Images at another size (height, width): "nearest" or "bilinear", half-pixel centres, no antialiasing."""
    return RESIZE(x, size=pair("resize", "size", size), method=method)
