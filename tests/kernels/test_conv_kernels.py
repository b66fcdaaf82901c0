"""Convolution and matrix products: every CPU variant against the NumPy reference, and the reference against PyTorch.

All comparisons are in float64, where the kernels differ only in the order of at most a few hundred additions of numbers
near 1: 1e-11 leaves two orders of magnitude above that rounding and none for a wrong tap. float32 gets one test of its
own with 2e-5, which is the same allowance at its 2**29 times coarser rounding, capped by sums of about 100 terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from graftwork.kernels.cpu import conv, matmul
from graftwork.kernels.reference import conv as oracle
from graftwork.kernels.reference import matmul as matmul_oracle

EXACT = {"rtol": 1e-11, "atol": 1e-11}
SINGLE = {"rtol": 2e-5, "atol": 2e-5}


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
    "plain3x3": Case((2, 9, 8, 5), (3, 3, 5, 7), padding=SAME),
    "stem7x7": Case((2, 23, 21, 3), (7, 7, 3, 8), stride=(2, 2), padding=((2, 3), (3, 2))),
    "asymmetric": Case((1, 10, 7, 4), (3, 2, 4, 6), stride=(2, 1), padding=((0, 1), (2, 0))),
    "stride3": Case((2, 11, 13, 3), (2, 4, 3, 5), stride=(3, 2), padding=((1, 0), (0, 2))),
    "dilated": Case((2, 12, 11, 4), (3, 3, 4, 5), padding=((2, 2), (2, 1)), dilation=(2, 2)),
    "dilated_strided": Case((1, 13, 12, 3), (2, 3, 3, 4), stride=(2, 3), padding=((1, 2), (0, 3)), dilation=(3, 2)),
    "grouped": Case((2, 8, 9, 6), (3, 3, 2, 9), padding=SAME, groups=3),
    "grouped_strided": Case((3, 9, 8, 8), (3, 3, 4, 6), stride=(2, 2), padding=((0, 1), (1, 0)), groups=2),
    "depthwise": Case((2, 9, 11, 18), (3, 3, 1, 18), padding=SAME, groups=18),
    "depthwise_strided": Case((2, 10, 9, 6), (5, 4, 1, 6), stride=(2, 3), padding=((1, 2), (2, 2)), groups=6),
    "depthwise_multiplier": Case((2, 8, 7, 5), (3, 3, 1, 10), stride=(1, 2), padding=SAME, dilation=(2, 1), groups=5),
    "pointwise": Case((2, 9, 7, 11), (1, 1, 11, 13)),
    "pointwise_strided": Case((2, 9, 8, 11), (1, 1, 11, 6), stride=(2, 2)),
    "wide_padding": Case((1, 5, 6, 3), (2, 2, 3, 4), padding=((3, 2), (2, 4))),
    "single_channel": Case((1, 6, 6, 1), (3, 3, 1, 4)),
    "whole_image": Case((3, 5, 4, 6), (5, 4, 6, 9)),
    "lines_left_over": Case((2, 10, 9, 3), (2, 3, 3, 4), stride=(4, 4)),
    "empty": Case((0, 8, 8, 4), (3, 3, 4, 5), padding=SAME),
    "empty_depthwise": Case((0, 8, 8, 4), (3, 3, 1, 4), padding=SAME, groups=4),
}


def applicable(case: Case) -> list[str]:
    """The variants whose docstring admits the case."""
    names = ["im2col", "direct"]
    if case.groups > 1 and case.w[2] == 1:
        names.append("depthwise")
    if case.w[:2] == (1, 1) and case.stride == (1, 1):
        names.append("pointwise")
    return names


FORWARD = [(name, v) for name, case in CASES.items() for v in applicable(case)]


def arrays(case: Case, dtype=np.float64) -> tuple[np.ndarray, ...]:
    """x, w, b and an output gradient."""
    rng = np.random.default_rng(7)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in (case.x, case.w, case.w[3:], case.y))


def result(kernel, *inputs, shape, dtype=np.float64, **attributes) -> np.ndarray:
    out = np.full(shape, np.nan, dtype)  # a place that the kernel leaves out shows
    kernel(*inputs, out=out, **attributes)
    return out


@pytest.mark.parametrize(("name", "variant"), FORWARD)
@pytest.mark.parametrize("activation", [None, "relu6", "silu"])
def test_forward_variants(name, variant, activation):
    case = CASES[name]
    x, w, b, g = arrays(case)
    inputs = (x, w, b) if activation == "relu6" else (x, w, b, g)  # g serves as the residual
    expected = result(oracle.conv2d, *inputs, shape=case.y, activation=activation, **case.attributes)
    got = result(conv.FORWARD[variant], *inputs, shape=case.y, activation=activation, **case.attributes)
    np.testing.assert_allclose(got, expected, **EXACT)


@pytest.mark.parametrize(("name", "variant"), FORWARD)
def test_input_gradient_variants(name, variant):
    case = CASES[name]
    _, w, _, g = arrays(case)
    expected = result(oracle.conv2d_input_grad, g, w, shape=case.x, input_shape=case.x, **case.attributes)
    got = result(conv.INPUT_GRAD[variant], g, w, shape=case.x, input_shape=case.x, **case.attributes)
    np.testing.assert_allclose(got, expected, **EXACT)


@pytest.mark.parametrize(("name", "variant"), FORWARD)
def test_weight_gradient_variants(name, variant):
    case = CASES[name]
    x, _, _, g = arrays(case)
    expected = result(oracle.conv2d_weight_grad, x, g, shape=case.w, kernel_shape=case.w[:2], **case.attributes)
    got = result(conv.WEIGHT_GRAD[variant], x, g, shape=case.w, kernel_shape=case.w[:2], **case.attributes)
    np.testing.assert_allclose(got, expected, **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_chosen_kernels_on_views_and_small_chunks(name, monkeypatch):
    """The selecting functions, with the smallest chunks that exist and with inputs no stride of which is natural."""
    monkeypatch.setattr(conv, "CHUNK_BYTES", 1)
    monkeypatch.setattr(conv, "GRADIENT_CHUNK_BYTES", 1)
    monkeypatch.setattr(conv, "DIRECT_BELOW", 0)
    case = CASES[name]
    plain = arrays(case)
    x, w, b, g = (spread(a) for a in plain)
    common = case.attributes
    for got, expected in [
        (
            result(conv.conv2d, x, w, b, shape=case.y, **common),
            result(oracle.conv2d, plain[0], plain[1], plain[2], shape=case.y, **common),
        ),
        (
            result(conv.conv2d_input_grad, g, w, shape=case.x, input_shape=case.x, **common),
            result(oracle.conv2d_input_grad, plain[3], plain[1], shape=case.x, input_shape=case.x, **common),
        ),
        (
            result(conv.conv2d_weight_grad, x, g, shape=case.w, kernel_shape=case.w[:2], **common),
            result(oracle.conv2d_weight_grad, plain[0], plain[3], shape=case.w, kernel_shape=case.w[:2], **common),
        ),
    ]:
        np.testing.assert_allclose(got, expected, **EXACT)


def spread(a: np.ndarray) -> np.ndarray:
    """The same values, read-only, in every second element of a reversed array."""
    wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
    view = wide[(slice(None, None, -2),) * a.ndim]
    view[...] = a
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("name", CASES)
def test_reference_agrees_with_torch(name):
    torch = pytest.importorskip("torch")
    case = CASES[name]
    x, w, b, g = arrays(case)
    ours = (
        result(oracle.conv2d, x, w, b, shape=case.y, **case.attributes),
        result(oracle.conv2d_input_grad, g, w, shape=case.x, input_shape=case.x, **case.attributes),
        result(oracle.conv2d_weight_grad, x, g, shape=case.w, kernel_shape=case.w[:2], **case.attributes),
    )
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    (top, bottom), (left, right) = case.padding
    padded = torch.nn.functional.pad(tx.permute(0, 3, 1, 2), (left, right, top, bottom))
    ty = torch.nn.functional.conv2d(
        padded, tw.permute(3, 2, 0, 1), torch.tensor(b), case.stride, 0, case.dilation, case.groups
    ).permute(0, 2, 3, 1)
    ty.backward(torch.tensor(g))
    for got, expected in zip(ours, (ty.detach(), tx.grad, tw.grad), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), **EXACT)


@pytest.mark.parametrize("name", ["plain3x3", "grouped_strided", "depthwise", "pointwise"])
def test_single_precision(name):
    case = CASES[name]
    x, w, b, g = arrays(case, np.float32)
    common = {"dtype": np.float32, **case.attributes}
    pairs = [
        (conv.conv2d, oracle.conv2d, (x, w, b), {"shape": case.y, "activation": "relu"}),
        (conv.conv2d_input_grad, oracle.conv2d_input_grad, (g, w), {"shape": case.x, "input_shape": case.x}),
        (conv.conv2d_weight_grad, oracle.conv2d_weight_grad, (x, g), {"shape": case.w, "kernel_shape": case.w[:2]}),
    ]
    for kernel, reference, inputs, attributes in pairs:
        got = result(kernel, *inputs, **attributes, **common)
        np.testing.assert_allclose(got, result(reference, *inputs, **attributes, **common), **SINGLE)


@pytest.mark.parametrize("variant", ["im2col", "direct", "depthwise", "pointwise"])
def test_activation_keeps_nan(variant):
    case = CASES["depthwise" if variant == "depthwise" else "pointwise"]
    x, w, b, _ = arrays(case)
    x[0, 2, 3] = np.nan
    y = result(conv.FORWARD[variant], x, w, b, shape=case.y, activation="relu", **case.attributes)
    assert np.isnan(y[0, 2, 3]).all()
    assert (y[1] >= 0).all()


def test_unknown_activation_is_refused():
    case = CASES["pointwise"]
    x, w, b, _ = arrays(case)
    for module in (conv, oracle):
        with pytest.raises(ValueError, match="'sine' cannot be fused"):
            result(module.conv2d, x, w, b, shape=case.y, activation="sine", **case.attributes)


def test_choice_follows_the_shapes():
    none = ((0, 0), (0, 0))
    assert conv.choose_variant((3, 3, 64, 64), 1024, (1, 1), SAME, 1) == "im2col"
    assert conv.choose_variant((1, 1, 64, 64), 1024, (1, 1), none, 1) == "pointwise"
    assert conv.choose_variant((1, 1, 64, 64), 1024, (2, 2), none, 1) == "im2col"
    assert conv.choose_variant((1, 1, 64, 64), 1024, (1, 1), SAME, 1) == "im2col"
    assert conv.choose_variant((3, 3, 1, 64), 1024, (1, 1), SAME, 64) == "depthwise"
    assert conv.choose_variant((3, 3, 2, 4), 16, (1, 1), SAME, 1) == "direct"


MATMULS = {
    "plain": ((5, 7), (7, 3)),
    "batched": ((4, 5, 7), (4, 7, 3)),
    "broadcast": ((2, 1, 5, 7), (3, 7, 4)),
    "no_inner": ((5, 0), (0, 3)),
    "no_rows": ((0, 4), (4, 3)),
    "row": ((1, 6), (6, 9)),
}


@pytest.mark.parametrize("shapes", MATMULS.values(), ids=MATMULS)
@pytest.mark.parametrize("layout", [np.asarray, spread, np.asfortranarray])
def test_matmul(shapes, layout):
    rng = np.random.default_rng(5)
    a, b = (layout(rng.standard_normal(s)) for s in shapes)
    expected = np.einsum("...ik,...kj->...ij", a, b)
    for kernel in (matmul.matmul, matmul_oracle.matmul):
        np.testing.assert_allclose(result(kernel, a, b, shape=expected.shape), expected, **EXACT)


@pytest.mark.parametrize("x_shape", [(6, 5), (2, 3, 4, 5), (5,), (0, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "relu6", "sigmoid"])
def test_linear(x_shape, bias, activation):
    rng = np.random.default_rng(9)
    x, w, b = spread(rng.standard_normal(x_shape)), spread(4 * rng.standard_normal((5, 3))), rng.standard_normal(3)
    r = rng.standard_normal((*x_shape[:-1], 3))
    inputs = (x, w, b, r) if bias else (x, w)
    expected = np.einsum("...i,io->...o", x, w) + (b + r if bias else 0)
    expected = {
        None: expected, "relu": expected.clip(0), "relu6": expected.clip(0, 6), "sigmoid": 1 / (1 + np.exp(-expected)),
    }[activation]  # fmt: skip
    for kernel in (matmul.linear, matmul_oracle.linear):
        np.testing.assert_allclose(result(kernel, *inputs, shape=expected.shape, activation=activation), expected, **EXACT)
