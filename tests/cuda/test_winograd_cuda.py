"""Winograd's convolution on the emulator: odd sizes, paddings, the epilogue, slices of the batch, the input gradient."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import kernels
from graftwork.kernels.cuda import selection, winograd

LIMIT = 5e-6  # norm-wise; F(4x4, 3x3) in float32 multiplies by up to 8 and 1/24, which costs two to three bits


@pytest.fixture
def always(monkeypatch, emulated):
    monkeypatch.setattr(selection, "winograd_pays", lambda *given: True)
    emulated.ran = []
    run = emulated.run
    emulated.run = lambda step, pointers: (emulated.ran.append(step.kernel), run(step, pointers))
    return emulated


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def geometry(padding):
    return {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1}


CASES = [
    ((2, 7, 9, 5), 11, ((1, 1), (1, 1))),
    ((1, 4, 5, 33), 3, ((0, 0), (0, 0))),
    ((1, 3, 6, 8), 8, ((2, 1), (0, 2))),
    ((3, 1, 1, 4), 6, ((1, 1), (1, 1))),
]


@pytest.mark.parametrize("xs, outputs, padding", CASES, ids=str)
def test_forward_and_input_gradient(always, xs, outputs, padding, rng):
    out = (xs[0], *(n + sum(p) - 2 for n, p in zip(xs[1:3], padding, strict=True)), outputs)
    shapes = (xs, (3, 3, xs[3], outputs), (outputs,), out, out)
    x, w, bias, residual, g = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    for op, inputs, shape, attrs in (("conv2d", (x, w, bias, residual), out, {"activation": "relu"}),
                                     ("conv2d_input_grad", (g, w), xs, {"input_shape": xs})):  # fmt: skip
        expected, found = np.empty(shape), np.full(shape, np.nan, np.float32)
        precise = [i.astype(np.float64) for i in inputs]
        kernels.get(op, variant="reference")(*precise, out=expected, **geometry(padding), **attrs)
        kernels.get(op, device="cuda")(*inputs, out=found, **geometry(padding), **attrs)
        assert relative(found, expected) < LIMIT, op
    assert always.ran == ["winograd_filter", "winograd_input", "gemm_simt", "winograd_output"] * 2


def test_a_large_batch_goes_in_slices(always, monkeypatch, rng):
    monkeypatch.setattr(winograd, "SCRATCH", 36 * 2 * (6 + 8) * 4 * 2)  # two images of 4 x 8 pixels
    x, w = rng.standard_normal((5, 4, 8, 6)).astype(np.float32), rng.standard_normal((3, 3, 6, 8)).astype(np.float32)
    expected, found = np.empty((5, 4, 8, 8)), np.full((5, 4, 8, 8), np.nan, np.float32)
    kernels.get("conv2d", variant="reference")(x.astype(np.float64), w, out=expected, **geometry(((1, 1), (1, 1))))
    kernels.get("conv2d", device="cuda")(x, w, out=found, **geometry(((1, 1), (1, 1))))
    assert relative(found, expected) < LIMIT and always.ran.count("winograd_output") == 3


def test_where_it_is_chosen():
    assert selection.winograd_pays(32, 56, 56, 64, 64) and selection.winograd_pays(32, 14, 14, 256, 256)
    assert not selection.winograd_pays(32, 224, 224, 3, 64)  # few channels
    assert not selection.winograd_pays(1, 7, 7, 512, 512)  # few tiles
    assert not selection.winograd_pays(64, 5, 5, 512, 512)  # tiles mostly empty
    assert winograd.fits(_weight(3), (1, 1), (1, 1), 1)
    for window, stride, dilation, groups in ((1, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 1), (3, 1, 1, 2)):
        assert not winograd.fits(_weight(window), (stride, stride), (dilation, dilation), groups)


def _weight(window: int):
    from graftwork.kernels.cuda.launch import view_of

    return view_of(0, np.zeros((window, window, 64, 64), np.float32))
