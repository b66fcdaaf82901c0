"""Images read at positions that are themselves values (Jaderberg et al. 2015)."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, Value, fixed, operator

CUBIC = -0.75  # the coefficient that ONNX prescribes


@operator("GridSample")
def grid_sample(c: Call) -> Value:
    """x: (batch, channels, ...). Input 1: (batch, ..., dimensions), positions from -1 to 1, the last dimension's first."""
    x, grid = c.image(), c.x(1)
    sizes = x.shape[1:-1]
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(c.attr("mode", "linear"), c.attr("mode", "linear"))
    padding, corners = c.choice("padding_mode", "zeros", ("zeros", "border", "reflection")), bool(c.attr("align_corners", 0))
    if mode not in ("linear", "nearest", "cubic") or grid.shape[-1] != len(sizes):
        raise c.error(f"mode={mode!r} with positions of {grid.shape[-1]} numbers for {len(sizes)} spatial dimensions")
    columns = []
    for i, size in enumerate(sizes):
        at = (grid[..., len(sizes) - 1 - i] + 1.0) * 0.5
        columns.append(_neighbours(at * (size - 1.0) if corners else at * float(size) - 0.5, mode))
    total = None
    for choice in product(*columns):
        part, weight = _pick(x, [place for place, _ in choice], padding, corners), None
        for _, share in choice:
            weight = share if weight is None or share is None else weight * share
        part = part if weight is None else part * F.expand_dims(weight, weight.ndim)
        total = part if total is None else total + part
    assert total is not None
    return Value(image=total)


def _neighbours(at: Tensor, mode: str) -> list[tuple[Tensor, Tensor | None]]:
    """Whole positions beside `at` along one dimension, and their shares."""
    if mode == "nearest":
        return [(F.round(at), None)]
    first = F.floor(at)
    t = at - first
    if mode == "linear":
        return [(first, 1.0 - t), (first + 1.0, t)]
    a = CUBIC
    found: list[tuple[Tensor, Tensor | None]] = []
    for step in (-1.0, 0.0, 1.0, 2.0):
        d = F.abs(t - step)
        if step in (0.0, 1.0):
            share = ((a + 2) * d - (a + 3)) * F.square(d) + 1.0
        else:
            share = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        found.append((first + step, share))
    return found


def _pick(x: Tensor, places: list[Tensor], padding: str, corners: bool) -> Tensor:
    """The pixels at whole positions, (batch, ..., channels); outside, what the padding says."""
    sizes = x.shape[1:-1]
    rows = F.reshape(x, (-1, x.shape[-1]))
    batch = np.arange(x.shape[0]).reshape(-1, *[1] * (places[0].ndim - 1))
    index, inside = fixed(x, np.broadcast_to(batch, places[0].shape), np.int64), None
    for place, size in zip(places, sizes, strict=True):
        if padding == "reflection":
            place = _reflected(place, *((0.0, size - 1.0) if corners else (-0.5, size - 0.5)))
        if padding == "zeros":
            here = F.logical_and(place >= 0.0, place <= size - 1.0)
            inside = here if inside is None else F.logical_and(inside, here)
        index = index * size + F.clip(place, 0.0, size - 1.0).astype("int64")
    found = F.gather(rows, index)
    return found if inside is None else F.where(F.expand_dims(inside, inside.ndim), found, fixed(x, 0))


def _reflected(place: Tensor, low: float, high: float) -> Tensor:
    span = high - low
    if span <= 0:
        return place * 0.0
    away = F.abs(place - low)
    turns = F.floor(away * (1 / span))
    rest = away - turns * span
    odd = turns - F.floor(turns * 0.5) * 2.0
    return F.where(odd > 0.5, high - rest, rest + low)


@operator("AffineGrid", known=(1,))
def affine_grid(c: Call) -> Tensor:
    """Positions for `GridSample` from matrices (batch, dimensions, dimensions + 1)."""
    theta, sizes = c.x(), [int(n) for n in c.known(1)][2:]
    corners = bool(c.attr("align_corners", 0))
    lines = [np.linspace(-1, 1, n) if corners else (2 * np.arange(n) + 1) / n - 1 for n in sizes]
    places = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(sizes)], -1)
    flat = fixed(theta, places.reshape(math.prod(sizes), len(sizes) + 1))
    y = F.matmul(F.reshape(flat, (1, *flat.shape)), F.swap_last(theta))
    return F.reshape(y, (theta.shape[0], *sizes, len(sizes)))
