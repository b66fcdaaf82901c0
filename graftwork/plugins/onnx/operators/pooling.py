"""Pooling over windows of any number of dimensions, and over everything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .convolution import Geometry, geometry
from .table import Call, Value, fixed, operator


def _opened(g: Geometry, sizes: tuple[int, ...], ceil: bool) -> tuple[Geometry, tuple[int, ...]]:
    """The geometry with its ends padded until the last window fits, and the output sizes. A window that would begin in the
    padding at the end is left out."""
    padding, out = [], []
    for n, k, s, (before, after) in zip(sizes, g.span, g.stride, g.padding, strict=True):
        count = (n + before + after - k) // s + 1
        if ceil:
            count = -(-(n + before + after - k) // s) + 1
            count -= (count - 1) * s >= n + before
        padding.append((before, max((count - 1) * s + k - n - before, after)))
        out.append(count)
    return g._replace(padding=tuple(padding)), tuple(out)


def taps(x: Tensor, g: Geometry, out: tuple[int, ...], fill: float) -> Iterator[Tensor]:
    """The padded input as each position of the window sees it: (batch, *out, channels), once a position."""
    if any(n for pair in g.padding for n in pair):
        x = F.pad(x, ((0, 0), *g.padding, (0, 0)), fill)
    for place in product(*(range(k) for k in g.window)):
        index = [slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(place, g.dilation, out, g.stride, strict=True)]
        yield x[(slice(None), *index)]


def _window(c: Call, x: Tensor) -> tuple[Geometry, Geometry, tuple[int, ...]]:
    """(the geometry as declared, with its ends opened, output sizes)."""
    sizes = x.shape[1:-1]
    g = geometry(c, sizes, tuple(c.required("kernel_shape")))
    return (g, *_opened(g, sizes, bool(c.attr("ceil_mode", 0))))


def _plain(g: Geometry, x: Tensor) -> bool:
    """Whether the kernels for images take it."""
    inside = all(n < k for k, pair in zip(g.window, g.padding, strict=True) for n in pair)
    return len(g.window) == 2 and set(g.dilation) == {1} and inside and x.dtype in (np.float32, np.float64)


@operator("MaxPool")
def max_pool(c: Call) -> Any:
    x = c.image()
    _, g, out = _window(c, x)
    order = c.attr("storage_order", 0)
    if len(c.node.outputs) > 1:
        y, places = _with_places(x, g, out, order)
        return Value(image=y), Value(image=places)
    if _plain(g, x):
        return Value(image=F.max_pool2d(x, g.window, g.stride, g.padding))
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    best = None
    for part in taps(x, g, out, lowest):
        best = part if best is None else F.maximum(best, part)
    return Value(image=best)


def _with_places(x: Tensor, g: Geometry, out: tuple[int, ...], order: int) -> tuple[Tensor, Tensor]:
    """The largest values, and where they stand in the flattened (batch, channels, ...)."""
    batch, *sizes, channels = x.shape
    flat = np.arange(batch * channels * int(np.prod(sizes))).reshape(batch, channels, *sizes)
    if order:  # columns first within an image
        flat = np.arange(flat.size).reshape(batch, channels, *sizes[::-1]).transpose(0, 1, *range(flat.ndim - 1, 1, -1))
    numbers = fixed(x, flat.transpose(0, *range(2, flat.ndim), 1), np.int64)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    best, place = None, None
    for part, number in zip(taps(x, g, out, lowest), taps(numbers, g, out, 0), strict=True):
        if best is None or place is None:
            best, place = part, number
            continue
        place = F.where(part > best, number, place)
        best = F.maximum(best, part)
    assert best is not None and place is not None
    return best, place


def _counts(declared: Geometry, g: Geometry, sizes: tuple[int, ...], out: tuple[int, ...], padding: bool) -> np.ndarray:
    """How many positions count in each window: those of the input, or of the input and the padding that was declared."""
    total = np.ones(())
    for i, n in enumerate(sizes):
        before, after = declared.padding[i] if padding else (0, 0)
        starts = np.arange(out[i]) * g.stride[i] - g.padding[i][0]
        at = starts[:, None] + np.arange(g.window[i]) * g.dilation[i]
        total = np.multiply.outer(total, ((at >= -before) & (at < n + after)).sum(1))
    return total[..., None]


@operator("AveragePool")
def average_pool(c: Call) -> Value:
    x = c.image()
    declared, g, out = _window(c, x)
    padding = bool(c.attr("count_include_pad", 0))
    if _plain(g, x) and (declared == g or not padding):
        return Value(image=F.avg_pool2d(x, g.window, g.stride, g.padding, padding))
    counts = _counts(declared, g, x.shape[1:-1], out, padding)
    return Value(image=_sum(taps(x, g, out, 0.0)) * fixed(x, 1 / counts))


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total + part
    return total


@operator("LpPool")
def lp_pool(c: Call) -> Value:
    x = c.image()
    _, g, out = _window(c, x)
    p = c.attr("p", 2)
    powers = F.square(x) if p == 2 else F.power(F.abs(x), fixed(x, p))
    total = _sum(taps(powers, g, out, 0.0))
    return Value(image=F.sqrt(total) if p == 2 else F.power(total, fixed(x, 1 / p)))


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(c: Call) -> Value:
    x = c.image()
    axes = tuple(range(1, x.ndim - 1))
    if c.node.kind == "GlobalLpPool":
        p = fixed(x, c.attr("p", 2))
        return Value(image=F.power(F.sum(F.power(F.abs(x), p), axes, True), 1.0 / p))
    return Value(image=(F.mean if c.node.kind == "GlobalAveragePool" else F.max)(x, axes, True))
