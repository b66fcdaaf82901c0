"""Matrix products and convolutions without tensor cores, on shapes that are no multiple of any tile, on the emulator."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import kernels
from graftwork.kernels.cuda import selection

GEMM = kernels.get("matmul", device="cuda", variant="cuda")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / (np.linalg.norm(expected) or 1))


def product(a, b) -> np.ndarray:
    return a.astype(np.float64) @ b.astype(np.float64)


@pytest.fixture
def tile(request, monkeypatch):
    """Every product of a test with one tile."""
    monkeypatch.setattr(selection, "simt_tile", lambda *given: request.param)
    return request.param


TILES = pytest.mark.parametrize("tile", [selection.LARGE, selection.TALL, selection.SMALL], indirect=True, ids=str)



@TILES
@pytest.mark.parametrize("transposed", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("shape", [(131, 140, 37), (5, 129, 64)], ids=str)
def test_transpositions_and_edges(emulated, tile, transposed, shape, rng):
    m, n, k = shape
    m += tile == selection.LARGE  # other shapes for every tile: descriptions are kept by shape
    n += 4 * (tile == selection.TALL)
    a = rng.standard_normal((k, m) if transposed[0] == "t" else (m, k)).astype(np.float32)
    b = rng.standard_normal((n, k) if transposed[1] == "t" else (k, n)).astype(np.float32)
    a, b = (a.T if transposed[0] == "t" else a), (b.T if transposed[1] == "t" else b)
    out = np.full((m, n), np.nan, np.float32)
    GEMM(a, b, out=out)
    assert relative(out, product(a, b)) < 1e-6  # float32 sums of at most 64 products


def test_split_sums(emulated, rng):
    """Few tiles and a long sum: k is cut, and the parts are added up by a second kernel."""
    emulated.processors = 132
    a, b = rng.standard_normal((9, 1500)).astype(np.float32), rng.standard_normal((1500, 20)).astype(np.float32)
    out = np.full((9, 20), np.nan, np.float32)
    GEMM(a, b, out=out)
    assert emulated.steps == 2 and relative(out, product(a, b)) < 1e-6


@pytest.mark.parametrize("dtype, limit", [("float16", 2e-3), ("float64", 1e-14)])
def test_other_dtypes(emulated, dtype, limit, rng):
    a, b = rng.standard_normal((70, 33)).astype(dtype), rng.standard_normal((33, 66)).astype(dtype)
    out = np.full((70, 66), np.nan, dtype)
    GEMM(a, b, out=out)
    assert relative(out, product(a, b)) < limit


@pytest.mark.parametrize(
    "left, right", [((3, 1, 5, 6), (4, 6, 7)), ((2, 3, 4, 5, 6), (2, 1, 4, 6, 3)), ((5, 6), (9, 6, 2))], ids=str
)
def test_batches_broadcast(emulated, left, right, rng):
    a, b = rng.standard_normal(left).astype(np.float32), rng.standard_normal(right).astype(np.float32)
    expected = product(a, b)
    out = np.full(expected.shape, np.nan, np.float32)
    GEMM(a, b, out=out)
    assert relative(out, expected) < 1e-6


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "silu", "hard_swish", "sigmoid", "tanh", "gelu"])
def test_linear_with_its_epilogue(emulated, activation, rng):
    x, w, bias, residual = (rng.standard_normal(s).astype(np.float32) for s in ((2, 9, 21), (21, 13), (13,), (2, 9, 13)))
    out = np.full((2, 9, 13), np.nan, np.float32)
    kernels.get("linear", device="cuda")(x, w, bias, residual, out=out, activation=activation)
    y = product(x, w) + bias + residual
    if activation:
        expected = np.empty_like(y)
        attrs = {"approximate": False} if activation == "gelu" else {}
        kernels.get(activation, variant="reference")(y, out=expected, **attrs)
        y = expected
    assert relative(out, y) < 2e-6


CONVS = [  # input, weight, stride, padding, dilation, groups
    ((2, 9, 11, 3), (7, 7, 3, 20), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),  # the stem
    ((2, 7, 9, 16), (3, 3, 16, 36), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 13, 9, 8), (3, 3, 8, 72), (2, 2), ((0, 1), (0, 1)), (1, 1), 1),
    ((1, 9, 9, 8), (3, 3, 8, 8), (2, 3), ((2, 2), (2, 2)), (2, 2), 1),
    ((2, 5, 5, 12), (1, 1, 12, 10), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 6, 7, 12), (3, 3, 4, 21), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    ((2, 9, 8, 36), (3, 3, 1, 36), (2, 2), ((1, 1), (0, 1)), (1, 1), 36),
    ((2, 9, 8, 5), (5, 5, 1, 10), (1, 1), ((2, 2), (2, 2)), (1, 1), 5),
    ((1, 7, 7, 6), (7, 7, 1, 6), (1, 1), ((3, 3), (3, 3)), (1, 1), 6),  # more taps than the direct weight gradient takes
]


@pytest.mark.parametrize("xs, ws, stride, padding, dilation, groups", CONVS, ids=str)
def test_convolution_and_gradients(emulated, xs, ws, stride, padding, dilation, groups, rng):
    from graftwork.nn.ops.common import window_output

    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    size = window_output("conv2d", xs[1:3], ws[:2], stride, padding, dilation)
    x, w, bias, g = (rng.standard_normal(s).astype(np.float32) for s in (xs, ws, ws[3:], (xs[0], *size, ws[3])))
    calls = [
        ("conv2d", (x, w, bias), g.shape, {"activation": "relu"}), ("conv2d_input_grad", (g, w), xs, {"input_shape": xs}),
        ("conv2d_weight_grad", (x, g), ws, {"kernel_shape": ws[:2]}),
    ]  # fmt: skip
    for name, inputs, shape, attrs in calls:
        expected, found = np.zeros(shape), np.full(shape, np.nan, np.float32)
        kernels.get(name, variant="reference")(*(i.astype(np.float64) for i in inputs), out=expected, **geometry, **attrs)
        kernels.get(name, device="cuda", variant="cuda")(*inputs, out=found, **geometry, **attrs)
        assert relative(found, expected) < 1e-6, name


@TILES
def test_convolution_with_every_tile(emulated, tile, rng):
    xs, ws = (1, 13, 12 + tile.n // 64, 8), (3, 3, 8, 132 + 4 * (tile.m // 64))
    x, w = rng.standard_normal(xs).astype(np.float32), rng.standard_normal(ws).astype(np.float32)
    geometry = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    shape = (*xs[:3], ws[3])
    residual = rng.standard_normal(shape).astype(np.float32)
    expected, found = np.zeros(shape), np.full(shape, np.nan, np.float32)
    kernels.get("conv2d", variant="reference")(x.astype(np.float64), w.astype(np.float64), out=expected, **geometry)
    bias = np.ones(ws[3], np.float32)
    kernels.get("conv2d", device="cuda", variant="cuda")(x, w, bias, residual, out=found, activation="relu6", **geometry)
    assert relative(found, np.clip(expected + 1 + residual, 0, 6)) < 1e-6
