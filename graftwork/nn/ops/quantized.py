"""Products of 8-bit integers with int32 sums and fused requantisation. `kernels/reference/quantized.py` defines every rounding.

They serve inference: there is no gradient.
"""

from __future__ import annotations

import math

import numpy as np

from ...errors import ConfigError, DTypeError, ShapeError
from ..op import Op, Sample
from ..tensor import Tensor, tensor
from .common import normal_padding, pair, require_nhwc, require_shape, window_output
from .conv import GEOMETRIES, _check_weight

OUTPUTS = ("int8", "uint8", "float32")
CLAMPS = {None: (None, None), "relu": (0.0, None), "relu6": (0.0, 6.0)}  # activations, as bounds of the real values


def _check(name, x, w, scale, bias, x_scale, x_zero_point, out_scale, out_zero_point, low, high, dtype):
    if x.dtype not in (np.int8, np.uint8) or w.dtype != np.int8:
        raise DTypeError(f"{name}: input of {x.dtype} and weight of {w.dtype}; expected int8 or uint8, and int8")
    if scale.dtype != np.float32 or (bias is not None and bias.dtype != np.int32):
        given = f"scale of {scale.dtype}" + ("" if bias is None else f", bias of {bias.dtype}")
        raise DTypeError(f"{name}: {given}; expected float32 and int32")
    require_shape(name, "the weight's scale", scale, w.shape[-1:])
    if bias is not None:
        require_shape(name, "the bias", bias, w.shape[-1:])
    if dtype not in OUTPUTS or (out_scale is None) != (dtype == "float32"):
        raise ConfigError(
            f"{name}: dtype={dtype!r} with out_scale={out_scale}; expected int8 or uint8 with a scale, or float32 without one"
        )
    for what, value in (("x_scale", x_scale), ("out_scale", 1.0 if out_scale is None else out_scale)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}: {what}={value}; expected a positive number")
    zeros = [("x_zero_point", x_zero_point, x.dtype)]
    if dtype != "float32":
        zeros.append(("out_zero_point", out_zero_point, np.dtype(dtype)))
    for what, value, kind in zeros:
        if not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            raise ConfigError(f"{name}: {what}={value} is no {kind}")
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{name}: a clamp from {low} to {high}; expected low <= high")


def _matmul_infer(x, w, scale, bias=None, **attrs):
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ShapeError(
            f"quantized_matmul: input {tuple(x.shape)} and weight {tuple(w.shape)}; expected (..., k) and (k, n) with equal k"
        )
    _check("quantized_matmul", x, w, scale, bias, **attrs)
    return (*x.shape[:-1], w.shape[1]), np.dtype(attrs["dtype"])


def _conv_infer(x, w, scale, bias=None, *, stride, padding, dilation, groups, **attrs):
    require_nhwc("quantized_conv2d", x)
    _check_weight("quantized_conv2d", x.shape[3], w, groups)
    _check("quantized_conv2d", x, w, scale, bias, **attrs)
    size = window_output("quantized_conv2d", x.shape[1:3], w.shape[:2], stride, padding, dilation)
    return (x.shape[0], *size, w.shape[3]), np.dtype(attrs["dtype"])


def _conv_add_infer(x, w, scale, bias, other, *, other_scale, other_zero_point, **attrs):
    shape, dtype = _conv_infer(x, w, scale, bias, **attrs)
    if x.dtype != np.uint8 or other.dtype != np.uint8:
        raise DTypeError(f"quantized_conv2d_add: inputs of {x.dtype} and {other.dtype}; expected uint8 for both")
    require_shape("quantized_conv2d_add", "the image to be added", other, shape)
    if not 0 < other_scale < math.inf or not 0 <= other_zero_point <= 255:
        raise ConfigError(
            f"quantized_conv2d_add: other_scale={other_scale}, other_zero_point={other_zero_point}; expected a positive number "
            "and a uint8"
        )
    return shape, dtype


FORMS = (  # input, x_zero_point, output, out_scale, out_zero_point, low, high, bias
    ("int8", 0, "int8", 0.5, 0, None, None, True),
    ("int8", -3, "uint8", 0.25, 7, 0.0, None, True),
    ("uint8", 131, "uint8", 0.3, 128, None, None, False),
    ("uint8", 0, "int8", 0.04, -128, 0.0, 6.0, True),
    ("uint8", 17, "float32", None, 0, 0.0, 6.0, True),
    ("int8", 5, "float32", None, 0, None, None, False),
)


def _form_samples(rng, shape, weight, forms=FORMS):
    """Inputs and attributes for every form. Scales are chosen so that outputs spread over their range and some saturate."""
    for kind, x_zero, dtype, out_scale, out_zero, low, high, biased in forms:
        limits = np.iinfo(kind)
        x = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(kind)
        w = rng.integers(-127, 127, weight, endpoint=True).astype(np.int8)
        scale = (rng.uniform(0.5, 2.0, weight[-1]) / 1000).astype(np.float32)
        bias = (rng.integers(-2000, 2000, weight[-1]).astype(np.int32),) if biased else ()
        attrs = {"x_scale": 0.125, "x_zero_point": x_zero, "out_scale": out_scale, "out_zero_point": out_zero, "low": low,
                 "high": high, "dtype": dtype}  # fmt: skip
        yield (x, w, scale, *bias), attrs


def _matmul_samples(rng):
    for arrays, attrs in _form_samples(rng, (5, 19), (19, 7)):
        yield Sample(arrays, attrs, False)
    for shape in ((2, 3, 32), (0, 32), (32,)):
        for arrays, attrs in _form_samples(rng, shape, (32, 16), FORMS[1:2]):
            yield Sample(arrays, attrs, False)


def _conv_samples(rng):
    for i, (xs, ws, stride, padding, dilation, groups) in enumerate(GEOMETRIES):
        forms = FORMS if i == 0 else (FORMS[1 + i % 5],)
        for arrays, attrs in _form_samples(rng, xs, ws, forms):
            geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            yield Sample(arrays, {**geometry, **attrs}, False)


def _conv_add_samples(rng):
    for sample in _conv_samples(rng):
        if sample.arrays[0].dtype == np.uint8 and len(sample.arrays) == 4:
            shape = _conv_infer(*sample.arrays, **sample.attrs)[0]
            other = rng.integers(0, 256, shape).astype(np.uint8)
            yield Sample((*sample.arrays, other), {**sample.attrs, "other_scale": 0.07, "other_zero_point": 5}, False)


QUANTIZED_MATMUL = Op(
    "quantized_matmul", infer=_matmul_infer, samples=_matmul_samples,
    cost=lambda x, w, *rest, **attrs: 2 * math.prod(x.shape) * w.shape[1],
    doc="Product of int8 or uint8 x (..., k) and int8 w (k, n): inputs x, w, scale (n,) float32, bias (n,) int32 or none.",
)  # fmt: skip
QUANTIZED_CONV2D = Op(
    "quantized_conv2d", infer=_conv_infer, samples=_conv_samples,
    cost=lambda x, w, *rest, **attrs: 2 * math.prod(_conv_infer(x, w, *rest, **attrs)[0]) * math.prod(w.shape[:3]),
    doc="Convolution of int8 or uint8 x (NHWC) and int8 w (HWIO): inputs x, w, scale (out,) float32, bias (out,) int32 or none",
)  # fmt: skip

QUANTIZED_CONV2D_ADD = Op(
    "quantized_conv2d_add", infer=_conv_add_infer, samples=_conv_add_samples,
    cost=lambda x, w, *rest, **attrs: 2 * math.prod(_conv_add_infer(x, w, *rest, **attrs)[0]) * math.prod(w.shape[:3]),
    doc="quantized_conv2d of uint8 x, with a uint8 image of the output's shape added before the rounding and the clamp.",
)  # fmt: skip


def _operands(x: Tensor, weight: Tensor, weight_scale, bias: Tensor | None) -> tuple[Tensor, ...]:
    scale = weight_scale
    if not isinstance(scale, Tensor):
        scale = tensor(np.broadcast_to(np.asarray(scale, np.float32), weight.shape[-1:]).copy(), device=weight.device)
    return (x, weight, scale) if bias is None else (x, weight, scale, bias)


def _attributes(name: str, x_scale, x_zero_point, out_scale, out_zero_point, activation, dtype) -> dict:
    if activation not in CLAMPS:
        raise ConfigError(f"{name}: activation={activation!r}; a fused one is {', '.join(map(repr, CLAMPS))}")
    low, high = CLAMPS[activation]
    return {"x_scale": float(x_scale), "x_zero_point": int(x_zero_point), "dtype": dtype, "low": low, "high": high,
            "out_scale": None if out_scale is None else float(out_scale), "out_zero_point": int(out_zero_point)}  # fmt: skip


def quantized_matmul(x: Tensor, weight: Tensor, weight_scale, bias: Tensor | None = None, *, x_scale: float,
                     x_zero_point: int = 0, out_scale: float | None = None, out_zero_point: int = 0,
                     activation: str | None = None, dtype: str = "float32") -> Tensor:  # fmt: skip
    """A linear layer in 8-bit integers.

    x: (..., k) int8 or uint8, standing for x_scale * (x - x_zero_point). weight: (k, n) int8, symmetric; weight_scale: (n,)
    float32, or one number for all channels. bias: (n,) int32 in units of x_scale * weight_scale[n].
    dtype: "float32" (out_scale None), or "int8" or "uint8" with out_scale and out_zero_point: the real result divided by
    out_scale, rounded half to even, plus the zero point, saturated. activation: None, "relu" or "relu6", fused.
    Returns (..., n). Raises ShapeError, DTypeError or ConfigError naming what does not fit.
    """
    attrs = _attributes("quantized_matmul", x_scale, x_zero_point, out_scale, out_zero_point, activation, dtype)
    return QUANTIZED_MATMUL(*_operands(x, weight, weight_scale, bias), **attrs)


def quantized_conv2d(x: Tensor, weight: Tensor, weight_scale, bias: Tensor | None = None, stride=1, padding="valid",
                     dilation=1, groups: int = 1, *, x_scale: float, x_zero_point: int = 0, out_scale: float | None = None,
                     out_zero_point: int = 0, activation: str | None = None, dtype: str = "float32") -> Tensor:  # fmt: skip
    """A convolution in 8-bit integers: `conv2d`'s geometry, and scales and dtypes as in `quantized_matmul`.

    x: (batch, height, width, channels). weight: (height, width, channels / groups, out). Padding stands for real zeros.
    """
    require_nhwc("quantized_conv2d", x)
    _check_weight("quantized_conv2d", x.shape[3], weight, groups)
    stride, dilation = pair("quantized_conv2d", "stride", stride), pair("quantized_conv2d", "dilation", dilation)
    padding = normal_padding("quantized_conv2d", padding, x.shape[1:3], weight.shape[:2], stride, dilation)
    attrs = _attributes("quantized_conv2d", x_scale, x_zero_point, out_scale, out_zero_point, activation, dtype)
    operands = _operands(x, weight, weight_scale, bias)
    return QUANTIZED_CONV2D(*operands, stride=stride, padding=padding, dilation=dilation, groups=groups, **attrs)
