"""What 8-bit products mean: roundings, zero points, clamps, and agreement with real arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import kernels
from graftwork.errors import ConfigError, DTypeError, ShapeError
from graftwork.kernels.reference.quantized import requantisation
from graftwork.nn import functional as F


def one(values, weight=1, **attrs) -> list:
    """A product with one weight."""
    x = gw.tensor(np.array(values, np.int8)[:, None])
    return F.quantized_matmul(x, gw.tensor(np.array([[weight]], np.int8)), 1.0, **attrs).numpy().ravel().tolist()


def test_halves_go_to_even_and_the_zero_point_comes_after():
    given = {"x_scale": 0.5, "out_scale": 1.0, "dtype": "int8"}
    assert one([1, 3, 5, -1, -3], **given) == [0, 2, 2, 0, -2]
    assert one([1, 3, 5, -1, -3], out_zero_point=1, **given) == [1, 3, 3, 1, -1]


def test_outputs_saturate_and_clamp():
    given = {"x_scale": 1.0, "out_scale": 0.5}
    assert one([100, -100], dtype="int8", **given) == [127, -128]
    assert one([100, -100, 2], dtype="uint8", out_zero_point=10, **given) == [210, 0, 14]
    assert one([100, -100, 2], dtype="uint8", out_zero_point=10, activation="relu", **given) == [210, 10, 14]
    assert one([100, -100, 2], dtype="int8", out_zero_point=-5, activation="relu6", **given) == [7, -5, -1]
    assert one([100, -100, 2], dtype="float32", x_scale=0.5, activation="relu6") == [6.0, 0.0, 1.0]
    assert requantisation(1.0, 0.5, 10, 0.0, 6.0, "uint8") == (2.0, 10, 10.0, 22.0)


@pytest.mark.parametrize("variant", ["reference", "numba"])
def test_a_quantised_convolution_is_near_the_real_one(variant, rng):
    """Zero points, padding and scales mean what they should: the float result is exact up to float32's rounding."""
    x, w = rng.integers(0, 255, (1, 6, 5, 4)).astype(np.uint8), rng.integers(-127, 127, (3, 3, 2, 6)).astype(np.int8)
    scale, bias = rng.uniform(0.001, 0.01, 6).astype(np.float32), rng.integers(-99, 99, 6).astype(np.int32)
    geometry = {"stride": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 1), "groups": 2}
    expected = np.empty((1, 3, 4, 6))
    kernels.get("conv2d", variant="reference")(0.02 * (x - 120.0), w * scale.astype(np.float64), out=expected, **geometry)
    found = np.empty(expected.shape, np.float32)
    kernels.get("quantized_conv2d", variant=variant)(
        x, w, scale, bias, out=found, x_scale=0.02, x_zero_point=120, out_scale=None, out_zero_point=0, low=None, high=None,
        dtype="float32", **geometry,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected + bias * 0.02 * scale, rtol=1e-6, atol=1e-5)


def test_wrong_calls_are_explained():
    x, w = gw.tensor(np.zeros((2, 3), np.int8)), gw.tensor(np.zeros((3, 4), np.int8))
    with pytest.raises(DTypeError, match="expected int8 or uint8, and int8"):
        F.quantized_matmul(gw.tensor(np.zeros((2, 3), np.float32)), w, 1.0, x_scale=1.0)
    with pytest.raises(ShapeError, match=r"equal k"):
        F.quantized_matmul(x, gw.tensor(np.zeros((4, 4), np.int8)), 1.0, x_scale=1.0)
    with pytest.raises(ConfigError, match="int8 or uint8 with a scale"):
        F.quantized_matmul(x, w, 1.0, x_scale=1.0, dtype="int8")
    with pytest.raises(ConfigError, match="x_zero_point=200 is no int8"):
        F.quantized_matmul(x, w, 1.0, x_scale=1.0, x_zero_point=200)
    with pytest.raises(ConfigError, match="x_scale=0"):
        F.quantized_matmul(x, w, 1.0, x_scale=0)
    with pytest.raises(ConfigError, match="activation='gelu'"):
        F.quantized_matmul(x, w, 1.0, x_scale=1.0, activation="gelu")
    with pytest.raises(ShapeError, match="the bias"):
        F.quantized_matmul(x, w, 1.0, gw.tensor(np.zeros(3, np.int32)), x_scale=1.0)
