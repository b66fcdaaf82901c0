"""Depthwise convolution and its gradients against the NumPy reference in float64.

Tolerance: relative error in the norm of 2e-6; sums of up to a few thousand float32 products show 3e-7, a wrong tap 1e-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from graftwork.kernels.cpu import depthwise, runtime
from graftwork.kernels.plan import spec_of
from graftwork.kernels.reference import conv as oracle

TOLERANCE = 2e-6
SAME = ((1, 1), (1, 1))
TWO = ((2, 2), (2, 2))


@dataclass(frozen=True)
class Case:
    """x: (N, H, W, C); window: (kh, kw)."""

    x: tuple[int, int, int, int]
    window: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple = SAME
    dilation: tuple[int, int] = (1, 1)
    multiplier: int = 1

    @property
    def attributes(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.x[3]}

    @property
    def w(self) -> tuple[int, int, int, int]:
        return (*self.window, 1, self.x[3] * self.multiplier)

    @property
    def y(self) -> tuple[int, int, int, int]:
        sizes = [
            (size + sum(pad) - d * (k - 1) - 1) // s + 1
            for size, pad, d, k, s in zip(self.x[1:3], self.padding, self.dilation, self.window, self.stride, strict=True)
        ]
        return (self.x[0], *sizes, self.w[3])


CASES = {
    "3x3": Case((2, 9, 11, 32)),
    "3x3_many_parts": Case((3, 28, 29, 96)),
    "3x3_part_of_a_vector": Case((1, 10, 7, 40)),
    "3x3_stride_2": Case((2, 13, 12, 32), stride=(2, 2)),
    "3x3_stride_2_keras": Case((1, 14, 14, 20), stride=(2, 2), padding=((0, 1), (0, 1))),
    "3x3_unpadded": Case((1, 12, 11, 16), padding=((0, 0), (0, 0))),
    "5x5": Case((1, 9, 14, 48), (5, 5), padding=TWO),
    "5x5_stride_2": Case((2, 11, 10, 24), (5, 5), (2, 2), ((1, 2), (2, 2))),
    "7x7": Case((1, 12, 11, 16), (7, 7), padding=((3, 3), (3, 3))),
    "one_pixel": Case((1, 1, 1, 16)),
    "padding_beyond_the_window": Case((1, 3, 2, 16), padding=((5, 0), (0, 7))),
    "few_channels": Case((2, 9, 8, 5)),
    "one_channel": Case((1, 9, 8, 1), multiplier=8),
    "dilated": Case((2, 9, 11, 18), padding=TWO, dilation=(2, 2)),
    "odd_everything": Case((2, 13, 11, 20), (4, 3), (3, 2), ((1, 2), (0, 1)), (2, 3)),
    "multiplier": Case((2, 9, 8, 6), (3, 2), (1, 2), multiplier=3),
    "multiplier_of_vectors": Case((1, 6, 7, 16), multiplier=2),
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


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def error(got, want) -> float:
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def forward(case, x, w, b=None, r=None, out=None, activation=None):
    if out is None:
        out = np.full(case.y, np.nan, np.float32)
    specs = [None if a is None else spec_of(a) for a in (x, w, b, r)]
    plan = depthwise.plan(*specs, out=spec_of(out), activation=activation, **case.attributes)
    runtime.call(plan, [a for a in (x, w, b, r) if a is not None], [out])
    return out


def expected(case, x, w, b=None, r=None, activation=None):
    out = np.empty(case.y)
    oracle.conv2d(*(None if a is None else a.astype(float) for a in (x, w, b)), out=out, **case.attributes)
    return ACTIVATIONS[activation](out if r is None else out + r)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward_against_the_reference(case):
    x, w, b, r = normal(*case.x), normal(*case.w), normal(case.w[3]), normal(*case.y)
    assert error(forward(case, x, w), expected(case, x, w)) < TOLERANCE
    assert error(forward(case, x, w, b, r, activation="relu6"), expected(case, x, w, b, r, "relu6")) < TOLERANCE


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_input_gradient_against_the_reference(case):
    g, w = normal(*case.y), normal(*case.w)
    out, attributes = np.full(case.x, np.nan, np.float32), {"input_shape": case.x, **case.attributes}
    plan = depthwise.plan_input_grad(spec_of(g), spec_of(w), out=spec_of(out), **attributes)
    runtime.call(plan, [g, w], [out])
    want = np.empty(case.x)
    oracle.conv2d_input_grad(g.astype(float), w.astype(float), out=want, **attributes)
    assert error(out, want) < TOLERANCE


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weight_gradient_against_the_reference(case, count, threads):
    threads(count)
    x, g = normal(*case.x), normal(*case.y)
    out, attributes = np.full(case.w, np.nan, np.float32), {"kernel_shape": case.window, **case.attributes}
    plan = depthwise.plan_weight_grad(spec_of(x), spec_of(g), out=spec_of(out), **attributes)
    runtime.call(plan, [x, g], [out])
    want = np.empty(case.w)
    oracle.conv2d_weight_grad(x.astype(float), g.astype(float), out=want, **attributes)
    assert error(out, want) < TOLERANCE


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["3x3", "3x3_part_of_a_vector", "few_channels"])
def test_activations_with_bias_and_residual(name, activation):
    case = CASES[name]
    x, w, b, r = normal(*case.x), normal(*case.w), normal(case.w[3]), normal(*case.y)
    for residual in (None, r):
        got = forward(case, x, w, b, residual, activation=activation)
        assert error(got, expected(case, x, w, b, residual, activation)) < TOLERANCE


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["3x3_many_parts", "3x3_stride_2", "5x5", "7x7"])
def test_any_number_of_threads_gives_the_same_values(name, count, threads):
    case = CASES[name]
    x, w = normal(*case.x), normal(*case.w)
    threads(2)
    want = forward(case, x, w)
    threads(count)
    assert np.array_equal(forward(case, x, w), want)


@pytest.mark.parametrize("name", ["3x3", "3x3_stride_2_keras", "few_channels"])
def test_writes_into_a_channel_slice_and_nothing_else(name):
    case = CASES[name]
    x, w, b, c = normal(*case.x), normal(*case.w), normal(case.w[3]), case.w[3]
    wide = np.full((*case.y[:3], c + 19), 7, np.float32)
    forward(case, x, w, b, out=wide[..., 3 : 3 + c], activation="silu")
    assert error(wide[..., 3 : 3 + c], expected(case, x, w, b, activation="silu")) < TOLERANCE
    assert np.all(wide[..., :3] == 7) and np.all(wide[..., 3 + c :] == 7)


@pytest.mark.parametrize("name", ["3x3", "3x3_stride_2", "5x5", "7x7", "few_channels"])
def test_nan_reaches_the_outputs_it_belongs_to_and_no_other(name):
    case = CASES[name]
    x, w = normal(*case.x), normal(*case.w)
    x[0, 0, 0, 2], x[-1, -1, -1, 1] = np.nan, np.inf
    got, want = forward(case, x, w, activation="relu"), expected(case, x, w, activation="relu")
    assert np.array_equal(np.isnan(got), np.isnan(want)) and np.isnan(want).any()
    assert np.array_equal(np.isinf(got), np.isinf(want))


def test_no_plan_for_what_it_cannot_do():
    case = CASES["3x3"]
    x, w, y = (spec_of(normal(*shape)) for shape in (case.x, case.w, case.y))
    wide = spec_of(np.empty(case.x))
    assert depthwise.plan(wide, w, out=y, **case.attributes) is None
    assert depthwise.plan(x, w, out=y, activation="swoosh", **case.attributes) is None
    assert depthwise.plan(x, w, out=y, **case.attributes | {"groups": 1}) is None
    empty = spec_of(np.empty((0, *case.x[1:]), np.float32))
    assert depthwise.plan(empty, w, out=spec_of(np.empty((0, *case.y[1:]), np.float32)), **case.attributes) is None
