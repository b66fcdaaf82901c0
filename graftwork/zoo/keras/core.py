"""Dense layers, embeddings, masking, dropout, and layers that only change shapes."""

from __future__ import annotations

import math
import re
import string
from functools import partial
from typing import Any

import numpy as np

from ... import nn
from ...nn import Module, Parameter, Tensor, init
from ...nn import functional as F
from .activations import activation_of, pointwise
from .config import LARGEST, Built, Function, LayerConfig, Shape, bias, known, one, one_input, product, same_mask, variables
from .table import layer


@layer("Dense", "TimeDistributedDense")
def dense(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    if len(shape) < 2:
        raise c.error(f"its input has shape {shape}, expected (batch, ..., features)")
    features = known(c, shape[-1], "number of input features")
    units = c.integer("units" if "units" in c.values else "output_dim")
    own = bias(c, units)
    weights = variables(("kernel", (features, units)), *own)
    make = partial(nn.Linear, features, units, bool(own))
    return one(make, (*shape[:-1], units), weights, activation=activation_of(c, len(shape)), masks=same_mask)


# -- einsum ------------------------------------------------------------------------------------------------------------


def contract(equation: str, x: Tensor, w: Tensor) -> Tensor:
    """einsum of two tensors, no label twice in one operand, as a matrix product: "abc,cd->abd"."""
    inputs, result = equation.split("->")
    left, right = inputs.split(",")
    shared = [a for a in left if a in right]
    batch, summed = [a for a in shared if a in result], [a for a in shared if a not in result]
    rows, columns = [a for a in left if a not in right], [a for a in right if a not in left]
    size = {**dict(zip(left, x.shape, strict=True)), **dict(zip(right, w.shape, strict=True))}

    def matrix(t: Tensor, labels: str, first: list[str], second: list[str]) -> Tensor:
        t = t.transpose(tuple(labels.index(a) for a in [*batch, *first, *second]))
        return t.reshape((*(size[a] for a in batch), math.prod(size[a] for a in first), math.prod(size[a] for a in second)))

    y = F.matmul(matrix(x, left, rows, summed), matrix(w, right, summed, columns))
    order = [*batch, *rows, *columns]
    return y.reshape(tuple(size[a] for a in order)).transpose(tuple(order.index(a) for a in result))


class EinsumDense(Module):
    """einsum(equation, x, kernel) + bias."""

    def __init__(self, equation: str, kernel: tuple[int, ...], bias_shape: tuple[int, ...] | None):
        super().__init__()
        self.equation = equation
        self.kernel = Parameter(init.uniform(kernel))
        if bias_shape is not None:
            self.bias = Parameter(np.zeros(bias_shape, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        y = contract(self.equation, x, self.kernel)
        return y + self.bias if "bias" in self._parameters else y


@layer("EinsumDense")
def einsum_dense(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape, equation = one_input(c, shapes), c.get("equation")
    found = isinstance(equation, str) and re.fullmatch(
        r"((?:\.\.\.)?[a-zA-Z]+(?:\.\.\.)?),([a-zA-Z]+)->((?:\.\.\.)?[a-zA-Z]+(?:\.\.\.)?)", equation.replace(" ", "")
    )
    if not found:
        raise c.error(f"equation={equation!r:.80}, expected one like 'abc,cd->abd'")
    left, kernel, result = found.groups()
    free = [a for a in string.ascii_letters if a not in left + kernel + result]
    count = len(shape) - len(left.replace("...", ""))
    if count < 0 or ("..." in left) != ("..." in result) or (count and "..." not in left) or count > len(free):
        raise c.error(f"equation {equation!r:.80} does not fit an input of shape {shape}")
    dots = "".join(free[:count])
    left_full, result_full = left.replace("...", dots), result.replace("...", dots)
    for labels in (left_full, kernel, result_full):
        if len(set(labels)) != len(labels):
            raise c.error(f"equation {equation!r:.80} has a label twice, which is not supported")
    target = c.get("output_shape")
    target = target if isinstance(target, list) else [target]
    named = result.replace("...", "") if result.startswith("...") else result.replace("...", "")[1:]
    if len(named) != len(target) or any(n is not None and (type(n) is not int or not 1 <= n <= LARGEST) for n in target):
        raise c.error(f"output_shape={target!r:.60} does not fit equation {equation!r:.80}")
    size: dict[str, int | None] = {a: n for a, n in zip(named, target, strict=True) if n is not None}
    size |= dict(zip(left_full, shape, strict=True))
    if any(a not in size for a in kernel + result_full) or any(a not in kernel + result_full for a in left_full) or any(
        a not in left_full + result_full for a in kernel
    ):
        raise c.error(f"equation {equation!r:.80}: every label must stand in two of its three parts")
    sizes = tuple(known(c, size[a], f"size of {a!r}") for a in kernel)
    bias_axes, bias_shape = c.get("bias_axes", ""), None
    if not isinstance(bias_axes, str) or any(a not in result for a in bias_axes):
        raise c.error(f"bias_axes={bias_axes!r:.60}, expected labels of the result in {equation!r:.80}")
    if bias_axes:
        start = min(result_full.index(a) for a in bias_axes)
        bias_shape = tuple(known(c, size[a], f"size of {a!r}") if a in bias_axes else 1 for a in result_full[start:])
    weights = variables(("kernel", sizes), *([] if bias_shape is None else [("bias", bias_shape)]))
    make = partial(EinsumDense, f"{left_full},{kernel}->{result_full}", sizes, bias_shape)
    output = tuple(size[a] for a in result_full)
    return one(make, output, weights, activation=activation_of(c, len(output)))


# -- embeddings and masks ----------------------------------------------------------------------------------------------


class Embedding(nn.Embedding):
    """Keras's: whole numbers may come as floats."""

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index if index.dtype.kind in "iu" else index.astype("int64"))


def _not_zero(inputs: Any, masks: Any) -> Tensor:
    return inputs[0] != 0


@layer("Embedding")
def embedding(c: LayerConfig, shapes: list[Shape]) -> Built:
    entries, width = c.integer("input_dim"), c.integer("output_dim")
    weights = variables(("embeddings", (entries, width)))
    masked = c.flag("mask_zero", False)
    output = (*one_input(c, shapes), width)
    make = partial(Embedding, entries, width)
    return one(make, output, weights, masks=_not_zero if masked else None, makes_mask=masked)


@layer("Masking")
def masking(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Steps whose channels all have mask_value are masked, and zero."""
    shape, value = one_input(c, shapes), c.number("mask_value", 0.0)
    if len(shape) < 3:
        raise c.error(f"its input has shape {shape}, expected (batch, steps, ...)")

    def present(x: Tensor) -> Tensor:
        return F.max((x != value).astype("float32"), axis=-1, keepdims=True)

    def forward(x: Tensor) -> Tensor:
        return x * present(x).astype(x.dtype)

    def masks(inputs: Any, _: Any) -> Tensor:
        return F.squeeze(present(inputs[0]), -1) > 0.5

    return one(lambda: Function(forward, f"masking {value}"), shape, masks=masks, makes_mask=True)


# -- identity in inference ---------------------------------------------------------------------------------------------


@layer("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout")
def dropout(c: LayerConfig, shapes: list[Shape]) -> Built:
    """All of Keras's dropouts are plain dropout here: the same in inference, another noise in training."""
    rate = c.number("rate")
    if not 0.0 <= rate < 1.0:
        raise c.error(f"rate={rate}, expected at least 0 and below 1")
    return one(partial(nn.Dropout, rate), one_input(c, shapes), masks=same_mask)


@layer("Identity", "GaussianNoise", "ActivityRegularization")
def identity(c: LayerConfig, shapes: list[Shape]) -> Built:
    """Noise and penalties are for training only."""
    return pointwise(F.identity, "identity", one_input(c, shapes))


# -- shapes ------------------------------------------------------------------------------------------------------------


@layer("Flatten")
def flatten(c: LayerConfig, shapes: list[Shape]) -> Built:
    batch, *rest = one_input(c, shapes)
    return one(nn.Flatten if rest else lambda: Function(lambda x: x.reshape((-1, 1)), "flatten"), (batch, product(rest)))


@layer("Reshape")
def reshape(c: LayerConfig, shapes: list[Shape]) -> Built:
    batch, *rest = one_input(c, shapes)
    target = c.get("target_shape")
    if isinstance(target, dict):  # Keras 3.0 wraps tuples
        target = target.get("items") or target.get("config")
    sound = isinstance(target, list) and all(type(n) is int and -1 <= n <= LARGEST for n in target)
    if not sound or target.count(-1) > 1:
        raise c.error(f"target_shape={target!r:.60}, expected integers with at most one -1")
    fixed = math.prod(n for n in target if n != -1)
    size = product(rest)
    if size is not None:
        if (-1 not in target and fixed != size) or (-1 in target and (fixed == 0 or size % fixed)):
            raise c.error(f"{tuple(rest)} cannot take the shape {tuple(target)}")
        target = [size // fixed if n == -1 else n for n in target]
    output = tuple(None if n == -1 else n for n in target)
    return one(lambda: Function(lambda x: x.reshape((x.shape[0], *target)), f"reshape to {output}"), (batch, *output))


@layer("Permute")
def permute(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape, order = one_input(c, shapes), c.get("dims")
    if not isinstance(order, list) or any(type(n) is not int for n in order) or sorted(order) != list(range(1, len(shape))):
        raise c.error(f"dims={order!r:.60}, expected each of 1 to {len(shape) - 1} once")
    axes = (0, *order)
    return one(lambda: Function(lambda x: x.transpose(axes), f"permute {order}"), tuple(shape[a] for a in axes))


@layer("RepeatVector")
def repeat_vector(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape, count = one_input(c, shapes), c.integer("n")
    if len(shape) != 2:
        raise c.error(f"its input has shape {shape}, expected (batch, features)")

    def forward(x: Tensor) -> Tensor:
        return F.broadcast_to(F.expand_dims(x, 1), (x.shape[0], count, x.shape[1]))

    return one(lambda: Function(forward, f"repeat {count}"), (shape[0], count, shape[1]))
