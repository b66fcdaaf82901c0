"""Convolutions of one, two and three dimensions, plain and transposed."""

from __future__ import annotations

from typing import NamedTuple

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, Value, operator

AUTO = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


class Geometry(NamedTuple):
    """A sliding window: sizes for each spatial dimension, padding as (before, after)."""

    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def span(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.window, self.dilation, strict=True))


def geometry(c: Call, sizes: tuple[int, ...], window: tuple[int, ...]) -> Geometry:
    """What the attributes strides, dilations, pads and auto_pad say for a window over `sizes`."""
    rank = len(sizes)
    stride = tuple(c.attr("strides", (1,) * rank))
    dilation = tuple(c.attr("dilations", (1,) * rank))
    pads, auto = tuple(c.attr("pads", (0,) * 2 * rank)), c.choice("auto_pad", "NOTSET", AUTO)
    if not len(stride) == len(dilation) == len(window) == len(pads) // 2 == rank:
        raise c.error(f"window {window}, strides {stride}, dilations {dilation}, pads {pads} for {rank} spatial dimensions")
    found = Geometry(tuple(window), stride, dilation, tuple(zip(pads[:rank], pads[rank:], strict=True)))
    if auto in ("NOTSET", "VALID"):
        return found if auto == "NOTSET" else found._replace(padding=((0, 0),) * rank)
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(sizes, stride, found.span, strict=True)]
    return found._replace(padding=tuple(_sides(t, auto) for t in total))


def _sides(total: int, auto: str) -> tuple[int, int]:
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


@operator("Conv")
def conv(c: Call) -> Value:
    x, w = c.image(), c.x(1)
    if x.ndim < 3 or x.ndim > 5 or w.ndim != x.ndim:
        raise c.error(f"an input of {x.ndim} dimensions and a weight of {w.ndim}; expected 3 to 5, equal for both")
    c.attr("kernel_shape")  # the weight has it too
    g = geometry(c, x.shape[1:-1], w.shape[2:])
    return Value(image=convolve(x, w, c.optional(2), g, c.attr("group", 1)))


def convolve(x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry, groups: int) -> Tensor:
    """x with channels last, w as ONNX has it (out, in / groups, ...)."""
    w = F.transpose(w, (*range(2, w.ndim), 1, 0))
    if len(g.window) == 1:
        y = F.conv2d(F.expand_dims(x, 1), F.expand_dims(w, 0), bias, (1, *g.stride), ((0, 0), *g.padding), (1, *g.dilation),
                     groups)  # fmt: skip
        return F.squeeze(y, 1)
    if len(g.window) == 2:
        return F.conv2d(x, w, bias, g.stride, g.padding, g.dilation, groups)
    x = F.pad(x, ((0, 0), g.padding[0], (0, 0), (0, 0), (0, 0))) if any(g.padding[0]) else x
    count = (x.shape[1] - g.span[0]) // g.stride[0] + 1
    total = None
    for tap in range(g.window[0]):  # a convolution of images for each slice of the window
        first = tap * g.dilation[0]
        part = x[:, first : first + (count - 1) * g.stride[0] + 1 : g.stride[0]]
        images = F.reshape(part, (x.shape[0] * count, *x.shape[2:]))
        y = F.conv2d(images, w[tap], None, g.stride[1:], g.padding[1:], g.dilation[1:], groups)
        total = y if total is None else total + y
    assert total is not None
    total = total if bias is None else total + bias
    return F.reshape(total, (x.shape[0], count, *total.shape[1:]))


@operator("ConvTranspose")
def conv_transpose(c: Call) -> Value:
    x, w = c.image(), c.x(1)
    rank = x.ndim - 2
    if rank not in (1, 2):
        raise c.error(f"{rank} spatial dimensions; 1 and 2 are supported")
    c.attr("kernel_shape")
    sizes = x.shape[1:-1]
    stride, dilation = tuple(c.attr("strides", (1,) * rank)), tuple(c.attr("dilations", (1,) * rank))
    extra = tuple(c.attr("output_padding", (0,) * rank))
    span = tuple((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True))
    whole = tuple((n - 1) * s + k for n, s, k in zip(sizes, stride, span, strict=True))
    auto, wanted = c.choice("auto_pad", "NOTSET", AUTO), c.attr("output_shape")
    pads = c.attr("pads", (0,) * 2 * rank)
    padding = list(zip(pads[:rank], pads[rank:], strict=True))
    if auto.startswith("SAME") and wanted is None:
        wanted = tuple(n * s for n, s in zip(sizes, stride, strict=True))
    if wanted is not None:
        total = [n + e - m for n, e, m in zip(whole, extra, wanted[-rank:], strict=True)]
        extra = tuple(e if t >= 0 else e - t for e, t in zip(extra, total, strict=True))
        padding = [_sides(max(t, 0), "SAME_UPPER" if auto == "SAME_UPPER" else "SAME_LOWER") for t in total]
    weight = F.transpose(w, (*range(2, w.ndim), 1, 0))
    groups = c.attr("group", 1)
    if rank == 1:
        y = F.conv2d_transpose(F.expand_dims(x, 1), F.expand_dims(weight, 0), c.optional(2), (1, *stride), ((0, 0), *padding),
                               (1, *dilation), groups, (0, *extra))  # fmt: skip
        return Value(image=F.squeeze(y, 1))
    return Value(image=F.conv2d_transpose(x, weight, c.optional(2), stride, tuple(padding), dilation, groups, extra))
