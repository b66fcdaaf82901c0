"""Pooling, padding, cropping and upsampling in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ... import nn
from ...nn import Module, Tensor
from ...nn import functional as F
from .config import Built, Function, LayerConfig, Shape, one, padding, slide, spatial
from .table import layer


def _windows(c: LayerConfig, shapes: list[Shape], rank: int) -> tuple[Any, Any, str, Shape]:
    """(window, stride, padding, output shape) of a pooling layer."""
    sizes, channels = spatial(c, shapes, rank)
    window, kind = c.integers("pool_size", rank, 2), padding(c)
    stride = c.integers("strides", rank, list(window))
    size = [slide(c, n, k, s, kind) for n, k, s in zip(sizes, window, stride, strict=True)]
    return window, stride, kind, (shapes[0][0], *size, channels)


def _pool2d(kind: Callable[..., Module], c: LayerConfig, shapes: list[Shape]) -> Built:
    window, stride, how, output = _windows(c, shapes, 2)
    return one(partial(kind, window, stride, how), output)


def _pool1d(function: Callable[..., Tensor], c: LayerConfig, shapes: list[Shape]) -> Built:
    (window,), (stride,), how, output = _windows(c, shapes, 1)

    def forward(x: Tensor) -> Tensor:
        return F.squeeze(function(F.expand_dims(x, 1), (1, window), (1, stride), how), 1)

    return one(lambda: Function(forward, f"{window}, stride={stride}, padding={how!r}"), output)


def _pool3d(largest: bool, c: LayerConfig, shapes: list[Shape]) -> Built:
    """Over height and width first, then over depth; both are exact for "valid", and for maxima also for "same"."""
    window, stride, how, output = _windows(c, shapes, 3)
    sizes = zip(shapes[0][1:4], window, stride, strict=True)
    if how == "same" and not largest and any(n is None or n % s or k > s for n, k, s in sizes):
        raise c.error('a three-dimensional average with padding "same" that really pads is not supported')

    def forward(x: Tensor) -> Tensor:
        batch, depth, height, width, channels = x.shape
        pool = F.max_pool2d if largest else F.avg_pool2d
        y = pool(x.reshape((batch * depth, height, width, channels)), window[1:], stride[1:], how)
        rows, columns = y.shape[1:3]
        y = pool(y.reshape((batch, depth, rows * columns, channels)), (window[0], 1), (stride[0], 1), how)
        return y.reshape((batch, y.shape[1], rows, columns, channels))

    return one(lambda: Function(forward, f"{window}, stride={stride}, padding={how!r}"), output)


for _names, _builder in (
    (("MaxPooling2D", "MaxPool2D"), partial(_pool2d, nn.MaxPool2d)),
    (("AveragePooling2D", "AvgPool2D"), partial(_pool2d, nn.AvgPool2d)),
    (("MaxPooling1D", "MaxPool1D"), partial(_pool1d, F.max_pool2d)),
    (("AveragePooling1D", "AvgPool1D"), partial(_pool1d, F.avg_pool2d)),
    (("MaxPooling3D", "MaxPool3D"), partial(_pool3d, True)),
    (("AveragePooling3D", "AvgPool3D"), partial(_pool3d, False)),
):
    layer(*_names)(_builder)


def _global(function: Callable[..., Tensor], rank: int, c: LayerConfig, shapes: list[Shape]) -> Built:
    _, channels = spatial(c, shapes, rank)
    keep, axes = c.flag("keepdims", False), tuple(range(1, rank + 1))
    output = (shapes[0][0], *((1,) * rank if keep else ()), channels)
    if rank == 2:
        kind = nn.GlobalMaxPool2d if function is F.max else nn.GlobalAvgPool2d
        return one(partial(kind, keep), output)

    def forward(x: Tensor, masks: Any = None) -> Tensor:
        if masks is None:
            return function(x, axes, keep)
        present = F.expand_dims(masks[0].astype(x.dtype), -1)
        return F.sum(x * present, 1, keep) / F.sum(present, 1, keep)

    averages = rank == 1 and function is F.mean
    return one(lambda: Function(forward, f"over axes {axes}"), output, takes_mask=averages)


for _rank in (1, 2, 3):
    for _name, _function in (("Max", F.max), ("Average", F.mean)):
        _short = {"Max": "GlobalMaxPool", "Average": "GlobalAvgPool"}[_name]
        layer(f"Global{_name}Pooling{_rank}D", f"{_short}{_rank}D")(partial(_global, _function, _rank))


# -- padding, cropping, upsampling -------------------------------------------------------------------------------------


def _zero_padding(rank: int, c: LayerConfig, shapes: list[Shape]) -> Built:
    sizes, channels = spatial(c, shapes, rank)
    sides = c.sides("padding", rank)
    size = [None if n is None else n + a + b for n, (a, b) in zip(sizes, sides, strict=True)]
    output = (shapes[0][0], *size, channels)
    if rank == 2:
        return one(partial(nn.ZeroPad2d, sides), output)
    return one(lambda: Function(lambda x: F.pad(x, ((0, 0), *sides, (0, 0))), f"pad {sides}"), output)


def _cropping(rank: int, c: LayerConfig, shapes: list[Shape]) -> Built:
    sizes, channels = spatial(c, shapes, rank)
    sides = c.sides("cropping", rank)
    size = [None if n is None else n - a - b for n, (a, b) in zip(sizes, sides, strict=True)]
    if any(n is not None and n < 1 for n in size):
        raise c.error(f"cropping {sides} leaves nothing of {shapes[0]}")

    def crop(x: Tensor) -> Tensor:
        return x[(slice(None), *(slice(a, n - b) for (a, b), n in zip(sides, x.shape[1:-1], strict=True)))]

    return one(lambda: Function(crop, f"crop {sides}"), (shapes[0][0], *size, channels))


def _upsampling(rank: int, c: LayerConfig, shapes: list[Shape]) -> Built:
    sizes, channels = spatial(c, shapes, rank)
    factor = c.integers("size" if "size" in c.values or rank > 1 else "length", rank, 2)
    size = [None if n is None else n * f for n, f in zip(sizes, factor, strict=True)]
    output = (shapes[0][0], *size, channels)
    if rank == 2:
        method = c.choice("interpolation", "nearest", ("nearest", "bilinear"))
        return one(partial(nn.Upsample2d, factor, method), output)

    def repeat(x: Tensor) -> Tensor:
        for axis, n in enumerate(factor, 1):
            wide = F.broadcast_to(F.expand_dims(x, axis + 1), (*x.shape[: axis + 1], n, *x.shape[axis + 1 :]))
            x = wide.reshape((*x.shape[:axis], x.shape[axis] * n, *x.shape[axis + 1 :]))
        return x

    return one(lambda: Function(repeat, f"repeat {factor}"), output)


for _rank in (1, 2, 3):
    layer(f"ZeroPadding{_rank}D")(partial(_zero_padding, _rank))
    layer(f"Cropping{_rank}D")(partial(_cropping, _rank))
    layer(f"UpSampling{_rank}D")(partial(_upsampling, _rank))
