"""Products and convolutions of ops that go to tensor cores, by their own launch code, on the emulator of several
architectures."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import kernels

LIMIT = {"float16": 2e-3, "float32": 1e-3}  # norm-wise; float32 stands for tf32, whose operands have 11 bits as float16's


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / (np.linalg.norm(expected) or 1))


@pytest.fixture(params=[75, 80, 90])
def machine(request, emulated):
    emulated.capability = request.param
    emulated.ran = set()
    run = emulated.run
    emulated.run = lambda step, pointers: (emulated.ran.add(step.kernel), run(step, pointers))
    return emulated


def kernel(op: str, dtype: str):
    return kernels.get(op, device="cuda", variant="tf32" if dtype == "float32" else "cuda")


@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize("shape", [(72, 80, 48), (33, 7, 65)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_products(machine, dtype, shape, turned, rng):
    m, n, k = shape
    a = rng.standard_normal((k, m)).astype(dtype).T if turned else rng.standard_normal((m, k)).astype(dtype)
    b = rng.standard_normal((k, n)).astype(dtype)
    out = np.full((m, n), np.nan, dtype)
    kernel("matmul", dtype)(a, b, out=out)
    assert relative(out, a.astype(np.float64) @ b.astype(np.float64)) < LIMIT[dtype]
    expected = {75: "gemm_mma" if dtype == "float16" else "gemm_simt", 80: "gemm_mma"}.get(machine.capability)
    if expected:
        assert expected in machine.ran
    elif dtype == "float16" and shape[1] % 8 == 0:
        assert "product_wgmma" in machine.ran


def test_a_large_tf32_product_turns_its_weights(machine, rng):
    a, b = rng.standard_normal((520, 36)).astype(np.float32), rng.standard_normal((36, 64)).astype(np.float32)
    out = np.full((520, 64), np.nan, np.float32)
    kernel("matmul", "float32")(a, b, out=out)
    assert relative(out, a.astype(np.float64) @ b.astype(np.float64)) < 1e-3
    assert machine.capability != 90 or {"transpose", "product_wgmma"} <= machine.ran


CONVS = [((1, 9, 8, 16), (3, 3, 16, 24), (1, 1), 1), ((2, 7, 9, 16), (3, 3, 16, 8), (2, 2), 1), ((1, 8, 8, 3), (3, 3, 3, 8),
    (2, 2), 1),
         ((1, 6, 6, 16), (3, 3, 8, 16), (1, 1), 2)]  # fmt: skip


@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize("xs, ws, stride, groups", CONVS, ids=str)
def test_convolution_and_gradients(machine, dtype, xs, ws, stride, groups, rng):
    geometry = {"stride": stride, "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": groups}
    gs = (xs[0], *(-(-n // s) for n, s in zip(xs[1:3], stride, strict=True)), ws[3])
    x, w, bias, g = (rng.standard_normal(s).astype(dtype) for s in (xs, ws, ws[3:], gs))
    for name, inputs, shape, attrs in (
        ("conv2d", (x, w, bias), gs, {"activation": "relu"}), ("conv2d_input_grad", (g, w), xs, {"input_shape": xs}),
        ("conv2d_weight_grad", (x, g), ws, {"kernel_shape": ws[:2]}),
    ):  # fmt: skip
        expected, found = np.zeros(shape), np.full(shape, np.nan, dtype)
        kernels.get(name, variant="reference")(*(i.astype(np.float64) for i in inputs), out=expected, **geometry, **attrs)
        kernel(name, dtype)(*inputs, out=found, **geometry, **attrs)
        assert relative(found, expected) < LIMIT[dtype], name
