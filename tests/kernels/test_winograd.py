"""Winograd convolution against the NumPy reference in float64.

Tolerance: relative error in the norm of 1e-5, a tenth of what is promised; F(6x6) on these sizes shows 2e-6, a wrong tap 1e-1.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from graftwork.kernels.cpu import runtime, winograd
from graftwork.kernels.cpu.winograd_transforms import matrices
from graftwork.kernels.plan import spec_of
from graftwork.kernels.reference import conv as oracle

TOLERANCE = 1e-5
SAME = ((1, 1), (1, 1))
CHOICES = [(m, order) for m in (2, 4, 6) for order in ("tiles", "panels")]
SIZES = {  # images, height, width, channels, output channels, padding
    "odd": ((3, 9, 11, 20, 50), SAME),
    "one_pixel": ((1, 1, 1, 16, 16), SAME),
    "one_channel": ((2, 7, 5, 1, 1), SAME),
    "unpadded": ((1, 8, 9, 33, 17), ((0, 0), (0, 0))),
    "lopsided": ((1, 6, 13, 16, 48), ((2, 0), (0, 3))),
    "several_tiles": ((2, 26, 25, 16, 32), SAME),
}
ACTIVATIONS = {
    None: lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "relu6": lambda v: np.clip(v, 0, 6),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "hard_swish": lambda v: v * np.clip(v + 3, 0, 6) / 6,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "hard_sigmoid": lambda v: np.clip(v + 3, 0, 6) / 6,
    "tanh": np.tanh,
    "gelu": lambda v: v / 2 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
}


@pytest.fixture
def threads():
    """Sets the number of threads; what it was before comes back."""
    before = runtime.num_threads()
    yield runtime.set_num_threads
    runtime.set_num_threads(before)


def geometry(padding=SAME):
    return {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1}


def arrays(size, padding, seed=0):
    """(x, w, b, r) of a convolution; r has the output's shape."""
    n, h, w, c, cout = size
    rng = np.random.default_rng(seed)
    shapes = (n, h, w, c), (3, 3, c, cout), (cout,), (n, h + sum(padding[0]) - 2, w + sum(padding[1]) - 2, cout)
    x, k, b, r = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x, k / np.float32(math.sqrt(9 * c)), b, r


def expected(x, w, b=None, r=None, *, padding=SAME, activation=None):
    shape = (x.shape[0], x.shape[1] + sum(padding[0]) - 2, x.shape[2] + sum(padding[1]) - 2, w.shape[3])
    out = np.empty(shape)
    oracle.conv2d(*(None if a is None else a.astype(float) for a in (x, w, b)), out=out, **geometry(padding))
    return ACTIVATIONS[activation](out if r is None else out + r)


def run(inputs, out, padding=SAME, activation=None, **choice):
    specs = [None if a is None else spec_of(a) for a in inputs]
    plan = winograd.plan(*specs, out=spec_of(out), activation=activation, **geometry(padding), **choice)
    runtime.call(plan, [a for a in inputs if a is not None], [out])
    return plan


def error(got, want) -> float:
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("m", [2, 4, 6])
def test_matrices_compute_a_correlation_exactly(m):
    at, g, bt = (np.array(matrix, object) for matrix in matrices(m))
    d, taps = np.arange(1, m + 3), np.array([2, -3, 5])
    assert list(at @ ((g @ taps) * (bt @ d))) == [sum(d[i + k] * taps[k] for k in range(3)) for i in range(m)]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("m, order", CHOICES)
def test_every_tile_size_and_order_against_the_reference(m, order, name):
    size, padding = SIZES[name]
    x, w, b, r = arrays(size, padding)
    out = np.full(r.shape, np.nan, np.float32)
    run((x, w, b, r), out, padding, "relu", m=m, order=order)
    assert error(out, expected(x, w, b, r, padding=padding, activation="relu")) < TOLERANCE


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cout", [32, 21])
def test_activations_with_and_without_bias_and_residual(activation, cout):
    x, w, b, r = arrays((1, 9, 8, 16, cout), SAME)
    for bias, residual in ((b, r), (b, None), (None, r), (None, None)):
        out = np.full(r.shape, np.nan, np.float32)
        run((x, w, bias, residual), out, activation=activation, m=4)
        assert error(out, expected(x, w, bias, residual, activation=activation)) < TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("m, order", CHOICES)
def test_any_number_of_threads_gives_the_same_values(m, order, count, threads):
    x, w, b, _ = arrays((2, 30, 29, 24, 72), SAME)
    outs = []
    for n in (1, count):
        threads(n)
        outs.append(np.empty((2, 30, 29, 72), np.float32))
        run((x, w, b), outs[-1], m=m, order=order)
    assert np.array_equal(*outs)


@pytest.mark.parametrize("order", ["tiles", "panels"])
def test_plan_for_many_threads_runs_on_few_and_the_other_way_round(order, threads):
    x, w, b, r = arrays((1, 20, 20, 16, 64), SAME)
    for planned, running in ((3, 1), (1, 3)):
        threads(planned)
        plan = winograd.plan(*map(spec_of, (x, w, b)), out=spec_of(r), order=order, m=4, **geometry())
        threads(running)
        out = np.full(r.shape, np.nan, np.float32)
        runtime.call(plan, [x, w, b], [out])
        assert error(out, expected(x, w, b)) < TOLERANCE


@pytest.mark.parametrize("cout", [32, 20])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_writes_into_a_channel_slice_and_nothing_else(m, cout):
    x, w, b, _ = arrays((2, 7, 9, 16, cout), SAME)
    wide = np.full((2, 7, 9, cout + 29), 7, np.float32)
    run((x, w, b), wide[..., 5 : 5 + cout], m=m)
    assert error(wide[..., 5 : 5 + cout], expected(x, w, b)) < TOLERANCE
    assert np.all(wide[..., :5] == 7) and np.all(wide[..., 5 + cout :] == 7)


@pytest.mark.parametrize("cout", [32, 20])
def test_residual_may_be_overwritten_by_the_output(cout):
    x, w, b, r = arrays((1, 9, 10, 16, cout), SAME)
    out = r.copy()
    plan = run((x, w, b, out), out, activation="relu", m=4)
    assert plan.in_place == (3,)
    assert error(out, expected(x, w, b, r, activation="relu")) < TOLERANCE


@pytest.mark.parametrize("m", [2, 4, 6])
def test_nan_and_infinity_reach_the_outputs_they_belong_to(m):
    x, w, b, _ = arrays((1, 24, 24, 16, 16), SAME)
    x[0, 20, 20, 3] = np.nan
    out = np.zeros((1, 24, 24, 16), np.float32)
    run((x, w, b), out, activation="relu", m=m)
    assert np.isnan(out[0, 19:22, 19:22]).all()
    assert np.isfinite(out[0, :12, :12]).all()
    b[5] = np.inf
    run((x, w, b), out, m=m)
    assert np.isinf(out[0, :12, :12, 5]).all() and np.isfinite(out[0, :12, :12, 6]).all()


@pytest.mark.parametrize("padding", [SAME, ((0, 0), (0, 0)), ((2, 1), (0, 2))])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_input_gradient_against_the_reference(m, padding):
    x, w, _, g = arrays((2, 10, 9, 20, 33), padding)
    out = np.full(x.shape, np.nan, np.float32)
    attributes = {"input_shape": x.shape, **geometry(padding)}
    plan = winograd.plan_input_grad(spec_of(g), spec_of(w), out=spec_of(out), m=m, **attributes)
    runtime.call(plan, [g, w], [out])
    want = np.empty(x.shape)
    oracle.conv2d_input_grad(g.astype(float), w.astype(float), out=want, **attributes)
    assert error(out, want) < TOLERANCE


def test_accuracy_on_many_channels():
    x, w, b, _ = arrays((1, 14, 14, 512, 32), SAME)
    errors = {}
    for m in (2, 4, 6):
        out = np.empty((1, 14, 14, 32), np.float32)
        run((np.maximum(x, 0), w, b), out, m=m)
        errors[m] = error(out, expected(np.maximum(x, 0), w, b))
    assert errors[2] < 1e-6 and errors[4] < 2e-6 and errors[6] < 1e-5  # measured: 2e-7, 4e-7, 2e-6


def spec(*shape, dtype=np.float32):
    return spec_of(np.empty(shape, dtype))


def test_supports_where_it_is_expected_to_be_faster():
    plain = ((1, 1), SAME, (1, 1), 1)
    assert winograd.supports(spec(1, 56, 56, 256), spec(3, 3, 256, 256), *plain)
    assert winograd.supports(spec(8, 14, 14, 512), spec(3, 3, 512, 512), *plain)
    assert not winograd.supports(spec(1, 224, 224, 3), spec(3, 3, 3, 64), *plain)  # the transforms would cost most
    assert not winograd.supports(spec(1, 1, 1, 512), spec(3, 3, 512, 512), *plain)  # the weights would


@pytest.mark.parametrize(
    "x, w, attributes",
    [
        ((1, 9, 9, 64), (3, 3, 64, 64), {"stride": (2, 2)}),
        ((1, 9, 9, 64), (3, 3, 64, 64), {"dilation": (1, 2)}),
        ((1, 9, 9, 64), (3, 3, 32, 64), {"groups": 2}),
        ((1, 9, 9, 64), (1, 1, 64, 64), {}),
        ((0, 9, 9, 64), (3, 3, 64, 64), {}),
        ((1, 9, 9, 0), (3, 3, 0, 64), {}),
    ],
)
def test_no_plan_for_what_it_cannot_do(x, w, attributes):
    attributes = geometry() | attributes
    assert winograd.plan(spec(*x), spec(*w), out=spec(x[0], 9, 9, w[3]), **attributes) is None
    assert not winograd.supports(spec(*x), spec(*w), *attributes.values())


def test_no_plan_for_float64():
    x, w = spec(1, 9, 9, 64, dtype=np.float64), spec(3, 3, 64, 64, dtype=np.float64)
    assert winograd.plan(x, w, out=spec(1, 9, 9, 64, dtype=np.float64), **geometry()) is None


def test_no_plan_for_an_unknown_activation():
    assert (
        winograd.plan(spec(1, 9, 9, 64), spec(3, 3, 64, 64), out=spec(1, 9, 9, 64), activation="swoosh", **geometry()) is None
    )
