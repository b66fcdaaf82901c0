"""Operations on tensors in Functional models: Keras 3's own (`x + y`, `keras.ops.exp(x)`) and Keras 2's TFOpLambda.

Plain arithmetic only. An operation is a name and plain arguments; nothing is looked up or run but the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...nn import Tensor, tensor
from ...nn import functional as F
from .config import Built, Function, LayerConfig, Shape, Slot, one
from .table import ANY, layer

OPERATIONS = ("TFOpLambda", "KerasOperation")  # Keras 2's class; ours for all those of Keras 3, which are named in "function"
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b, "divide": lambda a, b: a / b,
    "power": lambda a, b: a**b, "maximum": F.maximum, "minimum": F.minimum, "matmul": F.matmul, "equal": F.equal,
    "notequal": F.not_equal, "greater": F.greater, "greaterequal": F.greater_equal, "less": F.less,
    "lessequal": F.less_equal, "logicaland": F.logical_and, "logicalor": F.logical_or,
}  # fmt: skip
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": F.negative, "absolute": F.abs, "abs": F.abs, "exp": F.exp, "log": F.log, "sqrt": F.sqrt, "rsqrt": F.rsqrt,
    "square": F.square, "relu": F.relu, "sigmoid": F.sigmoid, "tanh": F.tanh, "sin": F.sin, "cos": F.cos, "floor": F.floor,
    "ceil": F.ceil, "round": F.round, "sign": F.sign, "softplus": F.softplus, "silu": F.silu, "swish": F.silu,
    "log1p": F.log1p, "expm1": F.expm1, "erf": F.erf, "reciprocal": F.reciprocal,
}  # fmt: skip
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "mean": F.mean, "sum": F.sum, "max": F.max, "min": F.min,
    "any": lambda x, axis, keep: F.max(x.astype("float32"), axis, keep) > 0.5,
    "all": lambda x, axis, keep: F.min(x.astype("float32"), axis, keep) > 0.5,
}  # fmt: skip
_SPELLINGS = {  # Keras 2's names of TensorFlow functions
    "__operators__.add": "add", "__operators__.sub": "subtract", "__operators__.mul": "multiply", "sub": "subtract",
    "__operators__.truediv": "divide", "truediv": "divide", "mul": "multiply", "pow": "power", "neg": "negative",
    "reduce_mean": "mean", "reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "__operators__.pow": "power",
    "realdiv": "divide", "amax": "max", "amin": "min", "true_divide": "divide", "truedivide": "divide",
}  # fmt: skip


def operation_name(config: dict[str, Any]) -> str | None:
    """Our name of an operation, or None if it is not one of those here."""
    function = config.get("function")
    name = function.lower() if isinstance(function, str) else ""
    for prefix in ("math.", "nn.", "linalg."):
        name = name.removeprefix(prefix)
    name = _SPELLINGS.get(name, name)
    return name if name in BINARY or name in UNARY or name in REDUCTIONS else None


@layer(*OPERATIONS, arguments=ANY)
def operation(c: LayerConfig, shapes: list[Shape]) -> Built:
    """One operation; its operands are tensors and numbers, by position or as x and y."""
    name = operation_name(c.values)
    if name is None:
        raise c.error("no such operation here")
    given = {k: v for k, v in c.call.kwargs.items() if v is not None and k not in ("name", "dtype", "out")}
    if name in REDUCTIONS:
        return _reduction(c, name, given, shapes)
    count = 2 if name in BINARY else 1
    names = (("x", "x1", "a", "features", "input"), ("y", "x2", "b"))[:count]
    operands = list(c.call.args)
    for options in names[len(operands) :]:
        operands += [given.pop(n) for n in options if n in given][:1]
    if len(operands) != count or given:
        raise c.error(f"{name} of {len(operands)} operands with {sorted(given)} is not supported")
    return _pointwise(c, name, [_operand(c, v) for v in operands], shapes)


def _operand(c: LayerConfig, value: Any) -> Any:
    if isinstance(value, Slot):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise c.error(f"has the operand {value!r:.60}, expected a tensor or a number")
    return float(value)


def _pointwise(c: LayerConfig, name: str, operands: list[Any], shapes: list[Shape]) -> Built:
    sizes = [shapes[v.index] for v in operands if isinstance(v, Slot)]
    if not sizes:
        raise c.error("has no tensor among its operands")
    if name == "matmul":
        if len(sizes) != 2 or min(map(len, sizes)) < 2 or sizes[0][-1] != sizes[1][-2] or len(sizes[0]) != len(sizes[1]):
            raise c.error(f"matmul of shapes {sizes} is not supported")
        output = (*sizes[0][:-1], sizes[1][-1])
    else:
        output = _broadcast(c, sizes)
    function: Any = BINARY.get(name) or UNARY[name]

    def forward(*xs: Tensor) -> Tensor:
        def value(v: Any) -> Tensor:
            return xs[v.index] if isinstance(v, Slot) else tensor(np.asarray(v, xs[0].dtype), device=xs[0].device)

        return function(*map(value, operands))

    return one(lambda: Function(forward, name), output)


def _broadcast(c: LayerConfig, sizes: list[Shape]) -> Shape:
    ndim = max(map(len, sizes))
    output: list[int | None] = []
    for column in zip(*[(1,) * (ndim - len(s)) + s for s in sizes], strict=True):
        fixed = {n for n in column if n not in (None, 1)}
        if len(fixed) > 1:
            raise c.error(f"shapes {sizes} do not broadcast")
        output.append(fixed.pop() if fixed else None if None in column else 1)
    return tuple(output)


def _reduction(c: LayerConfig, name: str, given: dict[str, Any], shapes: list[Shape]) -> Built:
    """Keras 3 keeps axis and keepdims in the configuration, Keras 2 among the arguments."""
    settings = {k: v for k, v in c.values.items() if k in ("axis", "keepdims")} | given
    for alias in ("x", "a", "input_tensor", "input"):
        settings.pop(alias, None)
    axis, keep = settings.pop("axis", None), settings.pop("keepdims", False)
    if settings or len(shapes) != 1 or not isinstance(keep, bool):
        raise c.error(f"{name} with {sorted(settings)} is not supported")
    shape = shapes[0]
    if axis is None:
        raise c.error(f"{name} over the batch is not supported")
    axes = LayerConfig(c.kind, c.name, {"axis": axis}, c.keras).axes("axis", None, len(shape))
    if 0 in axes:
        raise c.error(f"{name} over the batch is not supported")
    output = tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)
    return one(lambda: Function(lambda x: REDUCTIONS[name](x, tuple(axes), keep), f"{name} over {axes}"), output)


