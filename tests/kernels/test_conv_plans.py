"""Plans of convolutions and their gradients against the reference in float64.

Every plan runs between marks: its packs, its outputs and its workspace are surrounded by values that must not change.
Tolerance: 3e-6 of the result's norm for at most a few thousand terms in float32; 1e-4 where the choice may be Winograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from graftwork.kernels.cpu import conv, conv_gemm, conv_grads, conv_select, runtime
from graftwork.kernels.plan import Plan, Spec, spec_of
from graftwork.kernels.reference import conv as oracle

MARK, MARGIN = np.float32(123.25), 256
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def attributes(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def y(self) -> tuple[int, int, int, int]:
        sizes = [
            (size + sum(pad) - d * (k - 1) - 1) // s + 1
            for size, pad, d, k, s in zip(self.x[1:3], self.padding, self.dilation, self.w[:2], self.stride, strict=True)
        ]
        return (self.x[0], *sizes, self.w[3])


SAME = ((1, 1), (1, 1))
CASES = {
    "pointwise": Case((3, 9, 7, 11), (1, 1, 11, 33)),
    "pointwise, small image, many channels": Case((1, 7, 7, 130), (1, 1, 130, 260)),
    "pointwise, conflicting rows": Case((1, 13, 9, 256), (1, 1, 256, 100)),
    "pointwise, stride 2": Case((2, 9, 8, 11), (1, 1, 11, 40), stride=(2, 2)),
    "pointwise, padded": Case((1, 5, 4, 6), (1, 1, 6, 7), padding=SAME),
    "3x3": Case((3, 8, 9, 16), (3, 3, 16, 16), padding=SAME),
    "3x3, stride 2": Case((3, 9, 8, 16), (3, 3, 16, 40), padding=SAME, stride=(2, 2)),
    "3x3, no padding": Case((2, 10, 9, 5), (3, 3, 5, 20)),
    "3x3, several images at once": Case((9, 5, 5, 7), (3, 3, 7, 33), padding=SAME),
    "3x3, several chunks of an image": Case((2, 40, 40, 17), (3, 3, 17, 33), padding=SAME),
    "3x3, weights beyond a cache": Case((1, 6, 5, 300), (3, 3, 300, 50), padding=SAME),
    "stem 7x7": Case((2, 33, 31, 3), (7, 7, 3, 64), stride=(2, 2), padding=((2, 3), (3, 3))),
    "stem 3x3": Case((1, 34, 31, 3), (3, 3, 3, 32), stride=(2, 2), padding=((0, 1), (0, 1))),
    "uneven": Case((1, 10, 7, 4), (3, 2, 4, 6), stride=(2, 1), padding=((0, 1), (2, 0))),
    "stride beyond the window": Case((2, 10, 11, 3), (2, 1, 3, 4), stride=(3, 3)),
    "dilated": Case((2, 12, 11, 4), (3, 3, 4, 5), padding=((2, 2), (2, 1)), dilation=(2, 2)),
    "dilated, strided": Case((1, 13, 12, 3), (2, 3, 3, 4), stride=(2, 3), padding=((1, 2), (0, 3)), dilation=(3, 2)),
    "grouped": Case((2, 8, 9, 6), (3, 3, 2, 9), padding=SAME, groups=3),
    "grouped, whole vectors": Case((2, 1, 10, 16), (2, 3, 8, 32), stride=(3, 3), padding=((2, 3), (1, 3)), groups=2),
    "wide padding": Case((1, 5, 6, 3), (2, 2, 3, 4), padding=((3, 2), (2, 4))),
    "one pixel": Case((1, 1, 1, 1), (1, 1, 1, 1)),
    "whole image": Case((3, 5, 4, 6), (5, 4, 6, 9)),
}


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"], autouse=True)
def threads(request):
    before = runtime.num_threads()
    runtime.set_num_threads(request.param)
    yield request.param
    runtime.set_num_threads(before)


def arrays(case: Case) -> tuple[np.ndarray, ...]:
    """x, w, b and an output gradient, which also serves as a residual."""
    rng = np.random.default_rng(7)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in (case.x, case.w, case.w[3:], case.y))


def marked(size: int) -> tuple[np.ndarray, np.ndarray]:
    """An array of `size` values, 64-byte aligned, and the marked array that it is the middle of."""
    whole = np.full(size + 2 * MARGIN + 16, MARK, np.float32)
    start = MARGIN + -whole[MARGIN:].ctypes.data // 4 % 16
    return whole[start : start + size], whole


def run(plan: Plan, inputs, shape) -> np.ndarray:
    """The plan's output, with marks around all memory that it may write."""
    ready, rows, guards = list(inputs), [], []
    out, whole = marked(int(np.prod(shape)))
    out[...] = np.nan
    guards.append((out, whole))
    for i, pack in plan.packs.items():
        packed, whole = marked(pack.spec.size)
        guards.append((packed, whole))
        rows += pack.bind(ready[i], packed.reshape(pack.spec.shape))
        ready[i] = packed.reshape(pack.spec.shape)
    workspace, whole = marked(-(-plan.workspace // 4))
    guards.append((workspace, whole))
    result = out.reshape(shape)
    runtime.run(rows + plan.bind(ready, [result], workspace.view(np.uint8) if plan.workspace else None))
    for inside, whole in guards:
        start = (inside.ctypes.data - whole.ctypes.data) // 4
        assert (whole[:start] == MARK).all()
        assert (whole[start + inside.size :] == MARK).all()
    return result


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def expected(kernel, *inputs, shape, **attributes) -> np.ndarray:
    want = np.empty(shape)
    kernel(*(a.astype(np.float64) for a in inputs), out=want, **attributes)
    return want


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_forward(name, activation):
    case = CASES[name]
    x, w, b, r = arrays(case)
    for inputs in ((x, w), (x, w, b), (x, w, b, r)):
        want = expected(oracle.conv2d, *inputs, shape=case.y, activation=activation, **case.attributes)
        for planner, tolerance in ((conv_gemm.plan_forward, 3e-6), (conv_select.plan_conv2d, 1e-4)):
            plan = planner(*map(spec_of, inputs), out=Spec(case.y, FLOAT32), activation=activation, **case.attributes)
            assert_close(run(plan, inputs, case.y), want, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_input_gradient(name):
    case = CASES[name]
    _, w, _, g = arrays(case)
    attributes = {"input_shape": case.x, **case.attributes}
    want = expected(oracle.conv2d_input_grad, g, w, shape=case.x, **attributes)
    for planner, tolerance in ((conv_grads.plan_input_grad, 3e-6), (conv_select.plan_conv2d_input_grad, 1e-4)):
        plan = planner(spec_of(g), spec_of(w), out=Spec(case.x, FLOAT32), **attributes)
        assert_close(run(plan, (g, w), case.x), want, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_weight_gradient(name):
    case = CASES[name]
    x, _, _, g = arrays(case)
    attributes = {"kernel_shape": case.w[:2], **case.attributes}
    want = expected(oracle.conv2d_weight_grad, x, g, shape=case.w, **attributes)
    for planner, tolerance in ((conv_grads.plan_weight_grad, 3e-6), (conv_select.plan_conv2d_weight_grad, 1e-4)):
        plan = planner(spec_of(x), spec_of(g), out=Spec(case.w, FLOAT32), **attributes)
        assert_close(run(plan, (x, g), case.w), want, tolerance)


def test_weight_gradient_does_not_depend_on_luck():
    """Shares of the pixels are fixed and are added in a fixed order: the same bits every time."""
    case = CASES["3x3, several images at once"]
    x, _, _, g = arrays(case)
    plan = conv_grads.plan_weight_grad(
        spec_of(x), spec_of(g), out=Spec(case.w, FLOAT32), kernel_shape=case.w[:2], **case.attributes
    )
    first = run(plan, (x, g), case.w)
    for _ in range(10):
        np.testing.assert_array_equal(run(plan, (x, g), case.w), first)


@pytest.mark.parametrize("name", ["pointwise", "3x3", "stem 7x7", "grouped"])
def test_channel_slices_as_outputs(name):
    case = CASES[name]
    x, w, b, r = arrays(case)
    wide = np.full((*case.y[:3], case.y[3] + 9), MARK, np.float32)
    slice_ = wide[..., 4:-5]
    plan = conv_gemm.plan_forward(*map(spec_of, (x, w, b, r)), out=Spec(case.y, FLOAT32), activation="relu", **case.attributes)
    assert plan.strided
    runtime.call(plan, (x, w, b, r), (slice_,))
    assert_close(slice_, expected(oracle.conv2d, x, w, b, r, shape=case.y, activation="relu", **case.attributes), 3e-6)
    assert (wide[..., :4] == MARK).all()
    assert (wide[..., -5:] == MARK).all()


@pytest.mark.parametrize("name", ["pointwise", "3x3", "stem 3x3"])
def test_nan_stays_where_it_is_seen(name):
    case = CASES[name]
    x, w, b, _ = arrays(case)
    x[0, 2, 3] = np.nan
    plan = conv_gemm.plan_forward(*map(spec_of, (x, w, b)), out=Spec(case.y, FLOAT32), activation="relu6", **case.attributes)
    got = run(plan, (x, w, b), case.y)
    want = expected(oracle.conv2d, x, w, b, shape=case.y, activation="relu6", **case.attributes)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize("shapes", [((0, 8, 8, 4), (3, 3, 4, 5)), ((2, 0, 8, 4), (1, 1, 4, 5))], ids=str)
def test_empty_arrays_have_no_plan_and_are_computed(shapes):
    x, w = (np.ones(s, np.float32) for s in shapes)
    case = Case(*shapes, padding=SAME if shapes[1][0] == 3 else ((0, 0), (0, 0)))
    assert conv_select.plan_conv2d(spec_of(x), spec_of(w), out=Spec(case.y, FLOAT32), **case.attributes) is None
    for variant in ("implicit_gemm", "direct"):
        conv.FORWARD[variant](x, w, out=np.empty(case.y, np.float32), **case.attributes)
        dw = np.full(case.w, np.nan, np.float32)
        g = np.empty(case.y, np.float32)
        conv.WEIGHT_GRAD[variant](x, g, out=dw, kernel_shape=case.w[:2], **case.attributes)
        assert (dw == 0).all()


def test_a_variant_that_does_not_fit_says_so():
    x, w = np.ones((1, 8, 8, 4), np.float32), np.ones((5, 5, 4, 3), np.float32)
    with pytest.raises(ValueError, match="'winograd' cannot compute a convolution of"):
        conv.conv2d_winograd(
            x, w, out=np.empty((1, 4, 4, 3), np.float32), stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1
        )


def test_choice_follows_the_shapes():
    def variant(x, w, stride=(1, 1), padding=SAME, groups=1):
        case = Case(x, w, stride, padding, groups=groups)
        plan = conv_select.plan_conv2d(Spec(x, FLOAT32), Spec(w, FLOAT32), out=Spec(case.y, FLOAT32), **case.attributes)
        return plan.variant

    none = ((0, 0), (0, 0))
    assert variant((1, 14, 14, 64), (1, 1, 64, 64), padding=none) == "gemm"
    assert variant((1, 14, 14, 64), (3, 3, 64, 64), stride=(2, 2)) == "implicit_gemm"
    assert variant((1, 224, 224, 3), (3, 3, 3, 64)) == "implicit_gemm"
    assert variant((1, 56, 56, 64), (3, 3, 64, 64)).startswith("winograd")
    assert variant((1, 56, 56, 64), (3, 3, 1, 64), groups=64).startswith("depthwise")
