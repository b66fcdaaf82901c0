"""How each op is written in ONNX: one function an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import GraphError
from ...nn.graph import Node, Value
from .builder import Builder

RULES: dict[str, Callable[[Emit], None]] = {}
NCHW_AXIS = (0, 2, 3, 1)  # where an NHWC axis is in NCHW
_INT_MAX = 2**31 - 1


class Emit:
    """One op record on its way into the builder."""

    def __init__(self, builder: Builder, node: Node):
        self.builder, self.record, self.attrs = builder, node, node.attrs
        self.inputs: list[Value] = node.inputs
        self.out = node.output
        self.dtype = builder.kept(self.inputs[0].dtype)

    def __call__(self, kind: str, *inputs: str, **attrs: Any) -> str:
        return self.builder.node(kind, inputs, **attrs)

    def name(self, i: int = 0) -> str:
        return self.builder.name(self.inputs[i])

    def nchw(self, i: int = 0) -> str:
        return self.builder.nchw(self.inputs[i])

    def scalar(self, number: float) -> str:
        return self.builder.scalar(number, self.dtype)

    def ints(self, *numbers: int) -> str:
        return self.builder.constant(np.array(numbers, np.int64))

    def done(self, name: str, nchw: bool = False) -> None:
        (self.builder.channels_first if nchw else self.builder.plain)[self.out] = name

    def operands(self) -> tuple[list[str], bool]:
        """All inputs in one layout, and whether that is NCHW."""
        nchw = self.builder.is_nchw(self.record)
        pick = self.builder.nchw if nchw else self.builder.name
        return [pick(v) for v in self.inputs], nchw


def rule(*names: str):
    def keep(function):
        RULES.update(dict.fromkeys(names, function))
        return function

    return keep


# -- elementwise -----------------------------------------------------------------------------------------------------

DIRECT = {
    "negative": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sin": "Sin",
    "cos": "Cos", "erf": "Erf", "tanh": "Tanh", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "round": "Round",
    "sigmoid": "Sigmoid", "softplus": "Softplus", "relu": "Relu", "hard_swish": "HardSwish", "identity": "Identity",
    "contiguous": "Identity", "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "power": "Pow",
    "maximum": "Max", "minimum": "Min", "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "logical_not": "Not", "logical_and": "And", "logical_or": "Or", "where": "Where",
}  # fmt: skip


def activate(e: Emit, kind: str, x: str, attrs: dict) -> str:
    """One elementwise op on a named input."""
    if kind in DIRECT:
        return e(DIRECT[kind], x)
    if kind == "relu6":
        return e("Clip", x, e.scalar(0.0), e.scalar(6.0))
    if kind == "silu":
        return e("Mul", x, e("Sigmoid", x))
    if kind == "hard_sigmoid":
        return e("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    if kind in ("leaky_relu", "elu"):
        return e("LeakyRelu" if kind == "leaky_relu" else "Elu", x, alpha=attrs["alpha"])
    if kind == "square":
        return e("Mul", x, x)
    if kind == "rsqrt":
        return e("Reciprocal", e("Sqrt", x))
    if kind == "log1p":
        return e("Log", e("Add", x, e.scalar(1.0)))
    if kind == "expm1":
        return e("Sub", e("Exp", x), e.scalar(1.0))
    if kind == "clip":
        return e("Clip", x, *("" if b is None else e.scalar(b) for b in (attrs["low"], attrs["high"])))
    if kind == "gelu":
        return _gelu(e, x, attrs.get("approximate", False))
    raise GraphError(f"export: the activation {kind!r} has no form in ONNX")


def _gelu(e: Emit, x: str, approximate: bool) -> str:
    if approximate:
        cubic = e("Mul", e("Mul", x, x), e("Mul", x, e.scalar(0.044715)))
        inner = e("Tanh", e("Mul", e("Add", x, cubic), e.scalar(np.sqrt(2 / np.pi))))
    else:
        inner = e("Erf", e("Mul", x, e.scalar(np.sqrt(0.5))))
    return e("Mul", e("Mul", x, e.scalar(0.5)), e("Add", inner, e.scalar(1.0)))


@rule("relu6", "silu", "hard_sigmoid", "leaky_relu", "elu", "square", "rsqrt", "log1p", "expm1", "clip", "gelu")
def _activation(e: Emit) -> None:
    (x,), nchw = e.operands()
    e.done(activate(e, e.record.op.name, x, e.attrs), nchw)


@rule(*DIRECT)
def _elementwise(e: Emit) -> None:
    names, nchw = e.operands()
    e.done(e(DIRECT[e.record.op.name], *names), nchw)


@rule("not_equal")
def _not_equal(e: Emit) -> None:
    names, nchw = e.operands()
    e.done(e("Not", e("Equal", *names)), nchw)


@rule("cast")
def _cast(e: Emit) -> None:
    from onnx import helper

    (x,), nchw = e.operands()
    e.done(e("Cast", x, to=helper.np_dtype_to_tensor_dtype(e.builder.kept(e.out.dtype))), nchw)


# -- convolutions, products ------------------------------------------------------------------------------------------


def window_of(attrs: dict) -> dict:
    (top, bottom), (left, right) = attrs["padding"]
    return {"strides": attrs["stride"], "pads": (top, left, bottom, right)}


def weight_of(e: Emit) -> str:
    """A convolution's weight, HWIO, as OIHW."""
    value = e.inputs[1]
    if value in e.builder.graph.constants:
        return e.builder.constant(e.builder.graph.constants[value].transpose(3, 2, 0, 1))
    return e("Transpose", e.name(1), perm=(3, 2, 0, 1))


def _epilogue(e: Emit, x: str, nchw: bool) -> None:
    """A fused residual and activation, and the end."""
    if len(e.inputs) > 3:
        x = e("Add", x, e.nchw(3) if nchw else e.name(3))
    kind = e.attrs.get("activation")
    e.done(x if kind is None else activate(e, kind, x, {}), nchw)


@rule("conv2d")
def _conv2d(e: Emit) -> None:
    bias = [e.name(2)] if len(e.inputs) > 2 else []
    x = e("Conv", e.nchw(), weight_of(e), *bias, dilations=e.attrs["dilation"], group=e.attrs["groups"],
          kernel_shape=e.inputs[1].shape[:2], **window_of(e.attrs))  # fmt: skip
    _epilogue(e, x, True)


@rule("conv2d_input_grad")
def _conv2d_transpose(e: Emit) -> None:
    attrs, window = e.attrs, window_of(e.attrs)
    extra = [
        n - ((m - 1) * s + (k - 1) * d + 1 - sum(p))
        for n, m, s, k, d, p in zip(attrs["input_shape"][1:3], e.inputs[0].shape[1:3], attrs["stride"], e.inputs[1].shape[:2],
                                    attrs["dilation"], attrs["padding"], strict=True)
    ]  # fmt: skip
    e.done(e("ConvTranspose", e.nchw(), weight_of(e), dilations=attrs["dilation"], group=attrs["groups"], output_padding=extra,
             kernel_shape=e.inputs[1].shape[:2], **window), True)  # fmt: skip


@rule("linear")
def _linear(e: Emit) -> None:
    if e.inputs[0].ndim == 2:
        x = e("Gemm", e.name(0), e.name(1), *([e.name(2)] if len(e.inputs) > 2 else []))
    else:
        x = e("MatMul", e.name(0), e.name(1))
        x = e("Add", x, e.name(2)) if len(e.inputs) > 2 else x
    _epilogue(e, x, False)


@rule("matmul")
def _matmul(e: Emit) -> None:
    e.done(e("MatMul", e.name(0), e.name(1)))


@rule("batch_norm")
def _batch_norm(e: Emit) -> None:
    nchw = e.inputs[0].ndim == 4
    if not nchw and e.inputs[0].ndim != 2:
        raise GraphError(f"export: batch norm of {e.inputs[0].ndim} dimensions has no form in ONNX, in\n    {e.record}")
    vectors = [e.name(i) for i in range(1, 5)]
    e.done(e("BatchNormalization", e.nchw() if nchw else e.name(), *vectors, epsilon=e.attrs["epsilon"]), nchw)


@rule("layer_norm")
def _layer_norm(e: Emit) -> None:
    e.done(e("LayerNormalization", e.name(0), e.name(1), e.name(2), epsilon=e.attrs["epsilon"]))


# -- pooling, reductions ---------------------------------------------------------------------------------------------


@rule("max_pool2d")
def _max_pool(e: Emit) -> None:
    e.done(e("MaxPool", e.nchw(), kernel_shape=e.attrs["window"], **window_of(e.attrs)), True)


@rule("avg_pool2d")
def _avg_pool(e: Emit) -> None:
    count = int(e.attrs["count_padding"])
    e.done(e("AveragePool", e.nchw(), kernel_shape=e.attrs["window"], count_include_pad=count, **window_of(e.attrs)), True)


@rule("sum", "mean", "max", "min", "prod")
def _reduce(e: Emit) -> None:
    kind = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd"}
    axis, keepdims = tuple(e.attrs["axis"]), e.attrs["keepdims"]
    value = e.inputs[0]
    nchw = value in e.builder.channels_first and value not in e.builder.plain
    kept = [a for a in range(value.ndim) if a not in axis]
    if nchw and not keepdims and [NCHW_AXIS[a] for a in kept] != sorted(NCHW_AXIS[a] for a in kept):
        nchw = False  # what is left would come out in another order
    x, axes = (e.nchw(), [NCHW_AXIS[a] for a in axis]) if nchw else (e.name(), list(axis))
    options = {"keepdims": int(keepdims)}
    if e.record.op.name == "sum":
        name = e("ReduceSum", x, e.ints(*axes), **options)
    else:
        name = e(kind[e.record.op.name], x, axes=axes, **options)
    e.done(name, nchw and keepdims)


@rule("argmax", "argmin")
def _arg_reduce(e: Emit) -> None:
    if e.attrs["axis"] is None:
        raise GraphError(f"export: {e.record.op.name} over all dimensions; name an axis, in\n    {e.record}")
    kind = "ArgMax" if e.record.op.name == "argmax" else "ArgMin"
    e.done(e(kind, e.name(), axis=e.attrs["axis"], keepdims=int(e.attrs["keepdims"])))


@rule("softmax", "log_softmax")
def _softmax(e: Emit) -> None:
    e.done(e("Softmax" if e.record.op.name == "softmax" else "LogSoftmax", e.name(), axis=e.attrs["axis"]))


@rule("cumsum")
def _cumsum(e: Emit) -> None:
    e.done(e("CumSum", e.name(), e.ints(e.attrs["axis"])))


# -- movement --------------------------------------------------------------------------------------------------------


@rule("reshape")
def _reshape(e: Emit) -> None:
    x, out = e.inputs[0], e.out
    vector_in = x.ndim == 4 and x.shape[1:3] == (1, 1)  # one position: both layouts are the same memory
    if out.ndim == 4 and out.shape[1:3] == (1, 1) and x.ndim == 2 and x.shape[1] == out.shape[3]:
        e.done(e("Unsqueeze", e.name(), e.ints(2, 3)), True)
    elif vector_in and out.ndim == 2 and out.shape[1] == x.shape[3] and x in e.builder.channels_first:
        e.done(e("Squeeze", e.nchw(), e.ints(2, 3)))
    else:
        e.done(e("Reshape", e.name(), e.builder.shape_constant(out, e.record)))


@rule("broadcast_to")
def _broadcast_to(e: Emit) -> None:
    sizes = [1 if n is None else n for n in e.builder.sizes(e.out)]
    given = e.builder.sizes(e.inputs[0])
    for i, n in enumerate(e.builder.sizes(e.out)):
        at = i - (e.out.ndim - e.inputs[0].ndim)
        if n is None and (at < 0 or given[at] is not None):
            raise GraphError(f"export: a repetition follows the batch in\n    {e.record}\nexport it with dynamic_batch=False")
    e.done(e("Expand", e.name(), e.ints(*sizes)))


@rule("transpose")
def _transpose(e: Emit) -> None:
    e.done(e("Transpose", e.name(), perm=e.attrs["axes"]))


@rule("concat")
def _concat(e: Emit) -> None:
    names, nchw = e.operands()
    axis = e.attrs["axis"]
    e.done(e("Concat", *names, axis=NCHW_AXIS[axis] if nchw else axis), nchw)


@rule("pad")
def _pad(e: Emit) -> None:
    (x,), nchw = e.operands()
    widths = e.attrs["widths"]
    if nchw:
        widths = [widths[i] for i in (0, 3, 1, 2)]
    e.done(e("Pad", x, e.ints(*(a for a, _ in widths), *(b for _, b in widths)), e.scalar(e.attrs["value"])), nchw)


@rule("slice")
def _slice(e: Emit) -> None:
    index = e.attrs["index"]
    numbers = [i for i, p in enumerate(index) if not isinstance(p, slice)]
    nchw = not numbers and e.builder.is_nchw(e.record)
    parts = []
    for axis, p in enumerate(index):
        p = p if isinstance(p, slice) else slice(p, None if p == -1 else p + 1, None)
        if p == slice(None):
            continue
        step = 1 if p.step is None else p.step
        ends = (0, _INT_MAX) if step > 0 else (_INT_MAX, -_INT_MAX)
        start, stop = (end if given is None else given for given, end in zip((p.start, p.stop), ends, strict=True))
        parts.append((start, stop, NCHW_AXIS[axis] if nchw else axis, step))
    name = e.nchw() if nchw else e.name()
    if parts:
        name = e("Slice", name, *(e.ints(*column) for column in zip(*parts, strict=True)))
    e.done(e("Squeeze", name, e.ints(*numbers)) if numbers else name, nchw)


@rule("resize")
def _resize(e: Emit) -> None:
    scales = np.array([1, 1, *(n / m for n, m in zip(e.attrs["size"], e.inputs[0].shape[1:3], strict=True))], np.float32)
    mode = "nearest" if e.attrs["method"] == "nearest" else "linear"
    from onnx import numpy_helper

    e.builder.initializers.append(numpy_helper.from_array(scales, name := f"scales_{len(e.builder.initializers)}"))
    e.done(e("Resize", e.nchw(), "", name, mode=mode, coordinate_transformation_mode="half_pixel",
             nearest_mode="round_prefer_ceil"), True)  # fmt: skip


@rule("gather")
def _gather(e: Emit) -> None:
    e.done(e("Gather", e.name(0), e.name(1), axis=e.attrs["axis"]))


@rule("in_range")
def _in_range(e: Emit) -> None:
    e.done(e("Identity", e.name()))
