"""What a network consists of: every call of an op with its shapes, and what the calls cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import graftwork as gw
from graftwork import zoo
from graftwork.nn.op import OPS, Spec, intercept

NETWORKS = ("squeezenet1_1", "mobilenet_v2", "resnet50", "vgg16")
SIZE = (224, 224, 3)
HEAVY = ("conv2d", "linear", "matmul", "max_pool2d", "avg_pool2d")  # the rest can ride along with these


class Call(NamedTuple):
    """One call of an op: shapes of its arrays and its attributes, hashable so that equal layers can be found."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    attrs: tuple[tuple[str, Any], ...]
    output: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition counted as two; direct convolution."""
        cost = OPS[self.op].cost
        arrays = [Spec(shape, np.dtype(np.float32)) for shape in self.shapes]
        return cost(*arrays, **dict(self.attrs)) if cost else 0

    @property
    def bytes(self) -> int:
        """Least bytes to read and write: every input and the output once, in float32."""
        return 4 * sum(math.prod(shape) for shape in (*self.shapes, self.output))

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, shape)) for shape in self.shapes[:2])
        attrs = dict(self.attrs)
        stride = f" stride {attrs['stride'][0]}" if attrs.get("stride", (1, 1)) != (1, 1) else ""
        groups = f" groups {attrs['groups']}" if attrs.get("groups", 1) > 1 else ""
        return f"{self.op} {shapes}{stride}{groups}"


def calls_of(function: Callable, *inputs: gw.Tensor) -> list[Call]:
    """Every call of an op that has one output, in order. Runs `function` once, without a tape."""
    found: list[Call] = []
    inside = False  # ops may be made of ops; the outermost is what counts

    def note(op, arguments, attrs, eager):
        nonlocal inside
        if inside:
            return eager(op, *arguments, **attrs)
        inside = True
        try:
            out = eager(op, *arguments, **attrs)
        finally:
            inside = False
        if isinstance(out, gw.Tensor):
            shapes = tuple(tuple(a.shape) for a in arguments)
            found.append(Call(op.name, shapes, tuple(sorted(attrs.items())), tuple(out.shape)))
        return out

    with gw.no_grad(), intercept(note):
        function(*inputs)
    return found


def build(name: str, seed: int = 0, include_top: bool = True) -> zoo.base.ImageModel:
    """A network of the zoo for 224x224 pictures, with random weights and batch norms that do something."""
    rng = np.random.default_rng(seed)
    gw.manual_seed(seed)
    model = zoo.create(name, input_shape=SIZE, include_top=include_top)
    for module in model.modules():
        if isinstance(module, gw.nn.BatchNorm):
            channels = module.moving_mean.shape
            module.gamma.data[...] = rng.uniform(0.7, 0.9, channels)
            module.beta.data[...] = rng.uniform(-0.1, 0.1, channels)
            module.moving_mean.data[...] = rng.uniform(-0.1, 0.1, channels)
            module.moving_variance.data[...] = rng.uniform(0.5, 1.5, channels)
    return model


def picture(batch: int, seed: int = 0) -> np.ndarray:
    """Random "pictures" (batch, 224, 224, 3), float32, normal."""
    return np.random.default_rng(seed).standard_normal((batch, *SIZE), np.float32)
