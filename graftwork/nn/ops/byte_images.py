"""Images of uint8 that stand for scale * (x - zero_point): between float32 and bytes, sums, tables, pooling.

With `quantized.py` they are what a quantised network is made of. They serve inference: there is no gradient.
`kernels/reference/byte_images.py` defines every rounding.
"""

from __future__ import annotations

import math

import numpy as np

from ...errors import ConfigError, DTypeError
from ..op import Op, Sample
from .common import require_nhwc, require_shape
from .pool import GEOMETRIES, _out_shape

UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


def _require(name: str, what: str, x, dtype: np.dtype) -> None:
    if x.dtype != dtype:
        raise DTypeError(f"{name}: {what} of {x.dtype}; expected {dtype}")


def _check_forms(name: str, **given) -> None:
    """Scales must be positive, zero points bytes."""
    for what, value in given.items():
        if what.endswith("scale") and not 0 < value < math.inf:
            raise ConfigError(f"{name}: {what}={value}; expected a positive number")
        if what.endswith("zero_point") and not 0 <= value <= 255:
            raise ConfigError(f"{name}: {what}={value} is no uint8")


def _quantize_infer(x, *, scale, zero_point):
    _require("quantize", "input", x, FLOAT32)
    _check_forms("quantize", scale=scale, zero_point=zero_point)
    return tuple(x.shape), UINT8


def _dequantize_infer(x, *, scale, zero_point):
    _require("dequantize", "input", x, UINT8)
    _check_forms("dequantize", scale=scale, zero_point=zero_point)
    return tuple(x.shape), FLOAT32


def _add_infer(x, y, *, low, high, **forms):
    _require("quantized_add", "first input", x, UINT8)
    _require("quantized_add", "second input", y, UINT8)
    require_shape("quantized_add", "the second input", y, x.shape)
    _check_forms("quantized_add", **forms)
    return tuple(x.shape), UINT8


def _table_infer(x, table):
    _require("byte_table", "input", x, UINT8)
    _require("byte_table", "table", table, UINT8)
    require_shape("byte_table", "the table", table, (256,))
    return tuple(x.shape), UINT8


def _max_infer(x, *, window, stride, padding):
    require_nhwc("quantized_max_pool2d", x)
    _require("quantized_max_pool2d", "input", x, UINT8)
    return _out_shape("quantized_max_pool2d", x.shape, window, stride, padding), UINT8


def _avg_infer(x, *, window, stride, padding, count_padding, **forms):
    require_nhwc("quantized_avg_pool2d", x)
    _require("quantized_avg_pool2d", "input", x, UINT8)
    _check_forms("quantized_avg_pool2d", **forms)
    return _out_shape("quantized_avg_pool2d", x.shape, window, stride, padding), UINT8


def _bytes(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def _quantize_samples(rng):
    for shape in ((2, 3, 5), (7,), (0, 3)):
        yield Sample(((4 * rng.standard_normal(shape)).astype(np.float32),), {"scale": 0.03, "zero_point": 120}, False)


def _dequantize_samples(rng):
    for shape in ((2, 3, 5), (7,), (0, 3)):
        yield Sample((_bytes(rng, *shape),), {"scale": 0.03, "zero_point": 120}, False)


_FORMS = {"x_scale": 0.02, "x_zero_point": 3, "out_scale": 0.05, "out_zero_point": 11}


def _add_samples(rng):
    for shape, low, high in (((2, 3, 5), None, None), ((4, 33), 0.0, None), ((3, 1), 0.0, 6.0)):
        forms = {**_FORMS, "y_scale": 0.07, "y_zero_point": 200, "low": low, "high": high}
        yield Sample((_bytes(rng, *shape), _bytes(rng, *shape)), forms, False)


def _table_samples(rng):
    yield Sample((_bytes(rng, 2, 3, 5), _bytes(rng, 256)), {}, False)


def _max_samples(rng):
    for shape, window, stride, padding in GEOMETRIES:
        yield Sample((_bytes(rng, *shape),), {"window": window, "stride": stride, "padding": padding}, False)


def _avg_samples(rng):
    for sample in _max_samples(rng):
        for count in (False, True):
            yield Sample(sample.arrays, {**sample.attrs, "count_padding": count, **_FORMS}, False)


def _pool_cost(x, *, window, **attrs):
    return math.prod(x.shape) * math.prod(window)


QUANTIZE = Op("quantize", infer=_quantize_infer, samples=_quantize_samples, cost=lambda x, **attrs: 2 * x.size,
              doc="float32 to uint8 with a scale and a zero point; what does not fit saturates, NaN is the least.")  # fmt: skip
DEQUANTIZE = Op("dequantize", infer=_dequantize_infer, samples=_dequantize_samples, cost=lambda x, **attrs: 2 * x.size,
                doc="uint8 to float32: (x - zero_point) * scale.")  # fmt: skip
QUANTIZED_ADD = Op("quantized_add", infer=_add_infer, samples=_add_samples, cost=lambda x, *rest, **attrs: 4 * x.size,
                   doc="The sum of two uint8 images of one shape with forms of their own, clamped.")  # fmt: skip
BYTE_TABLE = Op("byte_table", infer=_table_infer, samples=_table_samples, cost=lambda x, *rest: x.size,
                doc="Any function of a uint8 image, as a table (256,) of results.")  # fmt: skip
QUANTIZED_MAX_POOL2D = Op("quantized_max_pool2d", infer=_max_infer, samples=_max_samples, cost=_pool_cost,
                          doc="The largest byte of each window, per channel; the form stays.")  # fmt: skip
QUANTIZED_AVG_POOL2D = Op("quantized_avg_pool2d", infer=_avg_infer, samples=_avg_samples, cost=_pool_cost,
                          doc="The mean of each window, per channel, stored with a form of its own.")  # fmt: skip
