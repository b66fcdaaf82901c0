"""Layers with several inputs: sums, products, extremes, concatenation, dot products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...nn import Tensor
from ...nn import functional as F
from .config import Built, Function, LayerConfig, Mask, Shape, one
from .core import contract
from .table import layer


def _fold(function: Callable[[Tensor, Tensor], Tensor], xs: Sequence[Tensor]) -> Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = function(result, x)
    return result


MERGES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "add": partial(_fold, F.add), "subtract": lambda xs: xs[0] - xs[1], "multiply": partial(_fold, F.multiply),
    "average": lambda xs: _fold(F.add, xs) * (1.0 / len(xs)), "maximum": partial(_fold, F.maximum),
    "minimum": partial(_fold, F.minimum),
}  # fmt: skip


def both_masks(inputs: Sequence[Tensor], masks: Sequence[Mask]) -> Mask:
    """What all masks let through."""
    return _fold(F.logical_and, [m for m in masks if m is not None])


def _check_masks(c: LayerConfig) -> Any:
    """The rule for the output's mask; Keras's versions differ where only some of the inputs have one."""
    if any(c.masked) and not all(c.masked):
        raise c.error("some of its inputs come with a mask and some without, which is not supported")
    return both_masks


def _merge(mode: str, c: LayerConfig, shapes: list[Shape]) -> Built:
    if len(shapes) < 2 or (mode == "subtract" and len(shapes) != 2):
        raise c.error(f"has {len(shapes)} inputs, expected {'exactly' if mode == 'subtract' else 'at least'} two")
    ndim = max(len(s) for s in shapes)
    full = [(s[0], *(1,) * (ndim - len(s)), *s[1:]) for s in shapes]  # Keras adds missing dimensions after the batch
    output = tuple(_broadcast(c, sizes) for sizes in zip(*full, strict=True))
    combine = MERGES[mode]

    def merge(*xs: Tensor) -> Tensor:
        return combine([x if x.ndim == ndim else x.reshape((x.shape[0], *(1,) * (ndim - x.ndim), *x.shape[1:])) for x in xs])

    return one(lambda: Function(merge, mode), output, masks=_check_masks(c))


def _broadcast(c: LayerConfig, sizes: Sequence[int | None]) -> int | None:
    fixed = {n for n in sizes if n is not None and n != 1}
    if len(fixed) > 1:
        raise c.error(f"input sizes {' and '.join(map(str, sorted(fixed)))} do not go together")
    return fixed.pop() if fixed else (None if None in sizes else 1)


for _mode in MERGES:
    layer(_mode.capitalize())(partial(_merge, _mode))


@layer("Concatenate")
def concatenate(c: LayerConfig, shapes: list[Shape], axis_key: str = "axis") -> Built:
    if not shapes:
        raise c.error("has no inputs")
    first = shapes[0]
    axis = c.axes(axis_key, -1, len(first))[0]
    for shape in shapes[1:]:
        others = zip(first, shape, strict=False)
        if len(shape) != len(first) or any(i != axis and None not in (a, b) and a != b for i, (a, b) in enumerate(others)):
            raise c.error(f"shapes {first} and {shape} differ in more than axis {axis}")
    sizes = [s[axis] for s in shapes]
    total = None if None in sizes else sum(n for n in sizes if n is not None)
    output = (*first[:axis], total, *first[axis + 1 :])
    rule = _check_masks(c) if axis == len(first) - 1 and len(first) > 2 else None
    if rule is None and any(c.masked):
        raise c.error("concatenates masked inputs along other axes than the channels, which is not supported")
    return one(lambda: Function(lambda *xs: F.concat(xs, axis), f"concatenate, axis={axis}"), output, masks=rule)


@layer("Dot")
def dot(c: LayerConfig, shapes: list[Shape], axes_key: str = "axes") -> Built:
    """Sums of products over one axis of each input, for each element of the batch; `normalize` makes it the cosine."""
    if len(shapes) != 2 or any(not 2 <= len(s) <= 12 for s in shapes):
        raise c.error(f"has inputs of shapes {shapes}, expected two of at least two dimensions")
    value = c.get(axes_key, -1)
    values = value if isinstance(value, list) else [value, value]
    if len(values) != 2 or any(type(a) is not int or not -len(s) <= a < len(s) for a, s in zip(values, shapes, strict=True)):
        raise c.error(f"axes={value!r:.60}, expected one axis or one for each input")
    left, right = (a % len(s) for a, s in zip(values, shapes, strict=True))
    sizes = shapes[0][left], shapes[1][right]
    if 0 in (left, right) or (None not in sizes and sizes[0] != sizes[1]):
        raise c.error(f"cannot sum over axes {left} of {shapes[0]} and {right} of {shapes[1]}")
    normalise = c.flag("normalize", False)
    a = ["z", *(chr(ord("a") + i) for i in range(1, len(shapes[0])))]
    b = ["z", *(chr(ord("A") + i) for i in range(1, len(shapes[1])))]
    b[right] = a[left]
    result = [*(n for i, n in enumerate(a) if i != left), *(n for i, n in enumerate(b) if i not in (0, right))]
    kept = [*(n for i, n in enumerate(shapes[0]) if i != left), *(n for i, n in enumerate(shapes[1]) if i not in (0, right))]
    equation = f"{''.join(a)},{''.join(b)}->{''.join(result)}"

    def forward(x: Tensor, y: Tensor) -> Tensor:
        if normalise:
            x, y = _unit(x, left), _unit(y, right)
        found = contract(equation, x, y)
        return F.expand_dims(found, 1) if found.ndim == 1 else found

    return one(lambda: Function(forward, f"dot, axes=({left}, {right})"), tuple(kept) if len(kept) > 1 else (kept[0], 1))


def _unit(x: Tensor, axis: int) -> Tensor:
    return x * F.rsqrt(F.sum(x * x, axis, keepdims=True) + 1e-24)


@layer("Merge")
def keras1_merge(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Keras 1's one layer for all merges."""
    names = {"sum": "add", "mul": "multiply", "ave": "average", "max": "maximum"}
    mode = c.choice("mode", "sum", (*names, "concat", "dot"))
    if mode == "dot":
        return dot(c, shapes, "dot_axes")
    return concatenate(c, shapes, "concat_axis") if mode == "concat" else _merge(names[mode], c, shapes)


