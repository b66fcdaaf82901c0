"""Kernels for bytes: the same bits as the reference on odd shapes, and whichever instructions multiply."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftwork import kernels
from graftwork.kernels.cpu import byte_conv, runtime
from graftwork.kernels.cpu.simd import byte_tile
from graftwork.kernels.plan import Spec, spec_of
from graftwork.nn.op import OPS

NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))
BYTE_OPS = ("quantize", "dequantize", "quantized_add", "byte_table", "quantized_max_pool2d", "quantized_avg_pool2d",
            "quantized_conv2d_add", "quantized_conv2d", "quantized_matmul")  # fmt: skip
CASES = (  # input, weight, stride, padding, dilation, groups
    ((1, 15, 15, 8), (1, 1, 8, 50), (1, 1), NONE, (1, 1), 1),  # a product of rows
    ((2, 9, 8, 3), (7, 7, 3, 33), (2, 2), ((3, 3), (2, 3)), (1, 1), 1),  # runs that are no multiple of four
    ((1, 15, 15, 8), (1, 1, 8, 16), (2, 2), NONE, (1, 1), 1),
    ((1, 15, 15, 8), (3, 3, 8, 24), (1, 1), NONE, (1, 1), 1),  # read where it is
    ((1, 15, 15, 8), (3, 2, 8, 24), (1, 2), ONE, (2, 2), 1),
    ((1, 9, 9, 8), (3, 3, 4, 24), (1, 1), ONE, (1, 1), 2),
    ((1, 9, 17, 37), (3, 3, 1, 37), (1, 1), ONE, (1, 1), 37),
    ((1, 9, 17, 37), (3, 3, 1, 37), (2, 2), ((0, 1), (0, 1)), (1, 1), 37),
    ((1, 9, 17, 20), (5, 5, 1, 20), (1, 1), ((2, 2), (2, 2)), (1, 1), 20),
    ((1, 9, 11, 20), (5, 5, 1, 20), (2, 2), ((2, 2), (2, 2)), (1, 1), 20),
    ((2, 3, 11, 20), (1, 1, 1, 20), (1, 1), NONE, (1, 1), 20),
)
FORMS = (("uint8", 0.3, 17, None, 6.0), ("int8", 0.3, -3, None, None), ("float32", None, 0, 0.0, None))


def bits_agree(case, form, biased: bool) -> bool:
    """Whether the plan's result equals the reference's for random bytes."""
    shape, kernel, stride, padding, dilation, groups = case
    dtype, out_scale, out_zero, low, high = form
    rng = np.random.default_rng(len(shape) + kernel[-1])
    x, w = rng.integers(0, 256, shape).astype(np.uint8), rng.integers(-128, 128, kernel).astype(np.int8)
    arrays = [x, w, (rng.uniform(0.5, 2, kernel[-1]) / 3000).astype(np.float32)]
    arrays += [rng.integers(-2000, 2000, kernel[-1]).astype(np.int32)] if biased else []
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "x_scale": 0.125,
             "x_zero_point": 77, "out_scale": out_scale, "out_zero_point": out_zero, "low": low, "high": high,
             "dtype": dtype}  # fmt: skip
    out = Spec(*OPS["quantized_conv2d"].infer(*arrays, **attrs))
    found, wanted = (np.zeros(*out) for _ in range(2))
    plan = byte_conv.plan_quantized_conv2d(*map(spec_of, arrays), out=out, **attrs)
    runtime.call(plan, arrays, [found])
    kernels.get("quantized_conv2d", variant="reference")(*arrays, out=wanted, **attrs)
    return np.array_equal(found, wanted) and wanted.std() > 0


@pytest.mark.parametrize("case", CASES)
def test_any_geometry_and_form_gives_the_references_bits(case):
    for form in FORMS:
        for biased in (True, False):
            assert bits_agree(case, form, biased), (form, biased)


@pytest.mark.parametrize("name", BYTE_OPS)
def test_samples_give_the_references_bits(name, rng):
    for sample in OPS[name].samples(rng):
        out = OPS[name].infer(*sample.arrays, **sample.attrs)
        found, wanted = (np.zeros(*out) for _ in range(2))
        for variant, result in (("numba", found), ("reference", wanted)):
            kernels.get(name, variant=variant)(*sample.arrays, out=result, **sample.attrs)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("cpu, features", [("haswell", ""), ("x86-64", "+sse2"), ("skylake-avx512", "")])
def test_other_instructions_give_the_same_bits(cpu, features, tmp_path):
    """Widened pairs (AVX2, AVX-512BW) and plain multiplications, in a process that compiles for another processor."""
    code = (
        "from test_byte_kernels import CASES, FORMS, bits_agree\n"
        "assert all(bits_agree(CASES[i], FORMS[0], True) for i in (1, 5, 6))\n"
    )
    environment = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path),
                   "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_which_instruction_multiplies():
    x86 = "x86_64-unknown-linux-gnu"
    assert byte_tile(x86, "+avx2,+fma,+avx512f,+avx512bw,+avx512vnni") == ("vnni", 14)
    assert byte_tile(x86, "+avx2,+fma,+avx512f,+avx512bw") == ("madd", 12)
    assert byte_tile(x86, "+avx2,+fma,+avxvnni") == ("vnni", 6)
    assert byte_tile(x86, "+avx2,+fma") == ("madd", 4)
    assert byte_tile("aarch64-linux", "")[0] == "plain"
