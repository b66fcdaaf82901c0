"""How quantised networks are written: DequantizeLinear, the float computation, QuantizeLinear (QDQ).

Runtimes with 8-bit kernels see one product, sum or pooling in such a pattern. Every scale and zero point is our own.
"""

from __future__ import annotations

import numpy as np

from ...errors import GraphError
from ...nn.graph import Value
from .rules import RULES, Emit, rule, weight_of, window_of


def _require_float32(e: Emit) -> None:
    if e.builder.dtype != np.float32:
        raise GraphError("export: what computes in 8 bits has float32 scales in ONNX; export with dtype='float32'")


def _real(e: Emit, x: str, scale: float, zero_point: int, dtype=np.uint8) -> str:
    return e("DequantizeLinear", x, e.builder.scalar(scale, np.float32), e.builder.scalar(zero_point, dtype))


def _stored(e: Emit, x: str, scale: float, zero_point: int, dtype=np.uint8) -> str:
    return e("QuantizeLinear", x, e.builder.scalar(scale, np.float32), e.builder.scalar(zero_point, dtype))


def _bounded(e: Emit, x: str) -> str:
    """The clamp of an op's real values, but for a bound where the bytes of the output end anyway."""
    low, high, scale, zero = (e.attrs[k] for k in ("low", "high", "out_scale", "out_zero_point"))
    if scale is not None:
        limits = np.iinfo(e.out.dtype)
        low = None if low is None or round(low / scale) + zero <= limits.min else low
        high = None if high is None or round(high / scale) + zero >= limits.max else high
    bounds = [low, high]
    if bounds == [None, None]:
        return x
    if bounds == [0.0, None]:
        return e("Relu", x)
    return e("Clip", x, *("" if b is None else e.builder.scalar(b, np.float32) for b in bounds))


def _output(e: Emit, x: str, nchw: bool) -> None:
    """The clamp, and the bytes of the output where it has some."""
    x = _bounded(e, x)
    if e.attrs["out_scale"] is not None:
        x = _stored(e, x, e.attrs["out_scale"], e.attrs["out_zero_point"], e.out.dtype)
    e.done(x, nchw)


@rule("quantize")
def _quantize(e: Emit) -> None:
    _require_float32(e)
    (x,), nchw = e.operands()
    e.done(_stored(e, x, e.attrs["scale"], e.attrs["zero_point"]), nchw)


@rule("dequantize")
def _dequantize(e: Emit) -> None:
    _require_float32(e)
    (x,), nchw = e.operands()
    e.done(_real(e, x, e.attrs["scale"], e.attrs["zero_point"]), nchw)


@rule("quantized_conv2d", "quantized_matmul", "quantized_conv2d_add")
def _product(e: Emit) -> None:
    conv, attrs = e.record.op.name != "quantized_matmul", e.attrs
    _require_float32(e)
    scales = e.builder.graph.constants.get(e.inputs[2])
    if scales is None:
        raise GraphError(f"export: the weight's scales are computed, ONNX needs them constant, in\n    {e.record}")
    weight = weight_of(e) if conv else e.name(1)
    x = _real(e, e.nchw() if conv else e.name(), attrs["x_scale"], attrs["x_zero_point"], e.inputs[0].dtype)
    axis, zeros = 0 if conv else e.inputs[1].ndim - 1, np.zeros(scales.shape, np.int8)
    w = e("DequantizeLinear", weight, e.builder.constant(scales), e.builder.constant(zeros), axis=axis)
    bias = [_bias(e, scales)] if len(e.inputs) > 3 else []
    if conv:
        y = e("Conv", x, w, *bias, dilations=attrs["dilation"], group=attrs["groups"], kernel_shape=e.inputs[1].shape[:2],
              **window_of(attrs))  # fmt: skip
    else:
        y = e("MatMul", x, w)
        y = e("Add", y, bias[0]) if bias else y
    if e.record.op.name == "quantized_conv2d_add":
        y = e("Add", y, _real(e, e.nchw(4), attrs["other_scale"], attrs["other_zero_point"]))
    _output(e, y, conv)


def _bias(e: Emit, scales: np.ndarray) -> str:
    units = np.asarray(np.float32(e.attrs["x_scale"]) * scales, np.float32)
    zeros = e.builder.constant(np.zeros(units.shape, np.int32))
    return e("DequantizeLinear", e.name(3), e.builder.constant(units), zeros, axis=0)


@rule("quantized_add")
def _add(e: Emit) -> None:
    (x, y), nchw = e.operands()
    x = _real(e, x, e.attrs["x_scale"], e.attrs["x_zero_point"])
    y = _real(e, y, e.attrs["y_scale"], e.attrs["y_zero_point"])
    _output(e, e("Add", x, y), nchw)


@rule("byte_table")
def _byte_table(e: Emit) -> None:
    """Any function of a byte: ONNX has no pattern for it, so the table is written as it is."""
    from onnx import TensorProto

    nchw = e.builder.is_nchw(e.record)
    x = e.nchw() if nchw else e.name()
    e.done(e("Gather", e.name(1), e("Cast", x, to=TensorProto.INT32), axis=0), nchw)


@rule("quantized_max_pool2d")
def _max_pool(e: Emit) -> None:
    e.done(e("MaxPool", e.nchw(), kernel_shape=e.attrs["window"], **window_of(e.attrs)), True)


@rule("quantized_avg_pool2d")
def _avg_pool(e: Emit) -> None:
    x = _real(e, e.nchw(), e.attrs["x_scale"], e.attrs["x_zero_point"])
    if e.attrs["window"] == e.inputs[0].shape[1:3] and not any(sum(e.attrs["padding"], ())):
        y = e("GlobalAveragePool", x)
    else:
        y = e("AveragePool", x, kernel_shape=e.attrs["window"], count_include_pad=int(e.attrs["count_padding"]),
              **window_of(e.attrs))  # fmt: skip
    e.done(_stored(e, y, e.attrs["out_scale"], e.attrs["out_zero_point"]), True)


@rule("chain")
def _chain(e: Emit) -> None:
    """Fused elementwise steps, one after another."""
    from ...nn.op import OPS

    values: list[Value] = list(e.inputs)
    for name, operands, attrs in e.attrs["program"]:
        step = e.builder.graph.make(OPS[name], [values[o] for o in operands], dict(attrs), e.record.line)
        RULES[name](Emit(e.builder, step))
        values.append(step.output)
    for names in (e.builder.plain, e.builder.channels_first):
        if values[-1] in names:
            names[e.out] = names[values[-1]]
