"""8-bit products by the tensor-core tiers and the direct kernel, to the bit, on the emulator of several architectures."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import kernels

SCALES = {"x_scale": 0.125, "out_scale": 0.3, "out_zero_point": 7, "low": 0.0, "high": None}


@pytest.fixture(params=[75, 80, 90])
def machine(request, emulated):
    emulated.capability, emulated.ran = request.param, []
    run = emulated.run
    emulated.run = lambda step, pointers: (emulated.ran.append(step.kernel), run(step, pointers))
    return emulated


def operands(rng, kind, xs, ws, biased=True):
    limits = np.iinfo(kind)
    x = rng.integers(limits.min, limits.max, xs, endpoint=True).astype(kind)
    w = rng.integers(-127, 127, ws, endpoint=True).astype(np.int8)
    bias = (rng.integers(-2000, 2000, ws[-1]).astype(np.int32),) if biased else ()
    return x, w, (rng.uniform(0.5, 2, ws[-1]) / 1000).astype(np.float32), *bias


def both(op, arrays, shape, dtype, **attrs):
    attrs |= SCALES | {"dtype": dtype} | ({"out_scale": None} if dtype == "float32" else {})
    expected, found = np.empty(shape, dtype), np.full(shape, 3, dtype)
    kernels.get(op, variant="reference")(*arrays, out=expected, **attrs)
    kernels.get(op, device="cuda")(*arrays, out=found, **attrs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(140, 64, 144), (33, 37, 18)], ids=str)  # with and without aligned rows
@pytest.mark.parametrize("kind, zero, dtype", [("int8", -9, "uint8"), ("uint8", 131, "int8"), ("uint8", 128, "float32")])
def test_matmul(machine, shape, kind, zero, dtype, rng):
    m, k, n = shape
    both("quantized_matmul", operands(rng, kind, (m, k), (k, n)), (m, n), dtype, x_zero_point=zero)
    fast = machine.capability == 90 and k % 16 == 0
    assert ("product_wgmma" if fast else "gemm_mma") in machine.ran
    assert ("zero_point_bias" in machine.ran) == (zero != 128) and ("signed_image" in machine.ran) == (kind == "uint8")


def test_split_sums(machine, rng):
    machine.processors = 132
    both("quantized_matmul", operands(rng, "int8", (9, 2048), (2048, 16)), (9, 16), "int8", x_zero_point=0)
    assert "split_k" in machine.ran


CONVS = [  # input, weight, stride, dilation, groups
    ((1, 7, 9, 16), (3, 3, 16, 144), (1, 1), (1, 1), 1),
    ((2, 9, 8, 32), (3, 3, 16, 12), (2, 1), (2, 1), 2),
    ((1, 9, 8, 12), (3, 3, 1, 12), (2, 2), (1, 1), 12),
]


@pytest.mark.parametrize("kind, zero, dtype", [("int8", 0, "int8"), ("int8", 5, "float32"), ("uint8", 100, "uint8")])
@pytest.mark.parametrize("xs, ws, stride, dilation, groups", CONVS, ids=str)
def test_convolution(machine, xs, ws, stride, dilation, groups, kind, zero, dtype, rng):
    from graftwork.nn.ops.common import window_output

    padding = ((1, 2), (2, 0))  # stands for real zeros, whatever the zero point
    size = window_output("conv2d", xs[1:3], ws[:2], stride, padding, dilation)
    both("quantized_conv2d", operands(rng, kind, xs, ws, biased=dtype != "int8"), (xs[0], *size, ws[3]), dtype,
         x_zero_point=zero, stride=stride, padding=padding, dilation=dilation, groups=groups)  # fmt: skip
    if groups == 12:
        assert machine.ran == ["quantized_direct"]
    else:
        assert ("product_wgmma" if machine.capability == 90 and groups == 1 else "conv_mma") in machine.ran


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
@pytest.mark.parametrize("xs, ws, stride, dilation, groups", CONVS, ids=str)
def test_convolution_that_adds_an_image(machine, xs, ws, stride, dilation, groups, dtype, rng):
    """The image's bytes have a scale and zero point of their own; rows of 12 and 144 bytes are read narrow and wide."""
    from graftwork.nn.ops.common import window_output

    padding = ((1, 2), (2, 0))
    shape = (xs[0], *window_output("conv2d", xs[1:3], ws[:2], stride, padding, dilation), ws[3])
    other = rng.integers(0, 256, shape).astype(np.uint8)
    both("quantized_conv2d_add", (*operands(rng, "uint8", xs, ws), other), shape, dtype, x_zero_point=100, stride=stride,
         padding=padding, dilation=dilation, groups=groups, other_scale=0.07, other_zero_point=5)  # fmt: skip
    fast = machine.capability == 90 and groups == 1
    assert machine.ran[-1] == ("quantized_direct" if groups == 12 else "product_wgmma" if fast else "conv_mma")


def test_split_convolution_that_adds_an_image(machine, rng):
    machine.processors = 132
    x, w, scale, bias = operands(rng, "uint8", (1, 4, 4, 512), (3, 3, 512, 16))
    other = rng.integers(0, 256, (1, 2, 2, 16)).astype(np.uint8)
    both("quantized_conv2d_add", (x, w, scale, bias, other), other.shape, "uint8", x_zero_point=3, stride=(1, 1), groups=1,
         dilation=(1, 1), padding=((0, 0), (0, 0)), other_scale=0.4, other_zero_point=200)  # fmt: skip
    assert machine.ran[-1] == "split_k"


def test_int32_sums_keep_all_digits(machine):
    """A sum of 2^24 + 1, which float32 has no number for: the bias takes it back to 1."""
    k = 1041
    x, w = np.full((1, k), 127, np.int8), np.full((k, 16), 127, np.int8)
    bias = np.full(16, 1 - 127 * 127 * k, np.int32)
    out = np.empty((1, 16), np.float32)
    attrs = {"x_scale": 1.0, "x_zero_point": 0, "out_scale": None, "out_zero_point": 0, "low": None, "high": None}
    for processors in (1, 132):  # whole and split
        machine.processors = processors
        kernels.get("quantized_matmul", device="cuda")(x, w, np.ones(16, np.float32), bias, out=out, dtype="float32", **attrs)
        assert (out == 1).all()
