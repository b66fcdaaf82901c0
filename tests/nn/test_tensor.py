"""Tensors, the tape, and the errors of wrong calls."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn
from graftwork.nn import functional as F


def test_dtypes_are_kept_and_never_mixed():
    assert gw.tensor([1.0, 2.0]).dtype == np.float32
    assert gw.tensor([1, 2]).dtype == np.int64
    assert gw.tensor(np.ones(2)).dtype == np.float64
    x = gw.tensor([1.0, 2.0])
    assert (x * 2).dtype == (x / 3).dtype == np.float32
    with pytest.raises(errors.DTypeError, match=r"add.*float32, float64.*astype"):
        x + gw.tensor(np.ones(2))
    with pytest.raises(errors.DTypeError, match="int64"):
        gw.tensor([1, 2]) * 0.5
    with pytest.raises(errors.DTypeError, match="divide"):
        gw.tensor([1, 2]) / gw.tensor([1, 2])
    with pytest.raises(errors.DTypeError, match="complex"):
        gw.tensor(np.ones(2, complex))


@pytest.mark.parametrize("shape", [(3,), (3, 1, 2), (0, 2)])
def test_wrong_shapes_name_themselves(shape):
    with pytest.raises(errors.ShapeError, match=r"add: shapes .* do not broadcast"):
        gw.tensor(np.zeros((4, 5), np.float32)) + gw.tensor(np.zeros(shape, np.float32))


def test_arrays_are_not_tensors():
    with pytest.raises(errors.DTypeError, match=r"numpy\.ndarray.*graftwork\.tensor"):
        F.exp(np.ones(3))


def test_devices():
    assert gw.tensor([1.0]).device == "cpu"
    with pytest.raises(errors.DeviceError, match="unknown device"):
        gw.tensor([1.0], device="tpu")
    if not gw.cuda.is_available():
        assert gw.cuda.why_not()
        with pytest.raises(errors.DeviceError, match="not usable"):
            gw.tensor([1.0], device="cuda")


def test_in_and_out():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(gw.tensor(a).numpy(), a)
    np.testing.assert_array_equal(np.from_dlpack(gw.tensor(a)), a)
    np.testing.assert_array_equal(np.asarray(gw.tensor(a)), a)
    assert gw.tensor(a).sum().item() == 15
    with pytest.raises(errors.ShapeError, match="item"):
        gw.tensor(a).item()


@pytest.mark.parametrize("index", [
    0, -1, slice(1, None), (slice(None), 1), (..., 2), (None, 0), (slice(None, None, -1), slice(0, 3, 2)),
    np.array([1, 0, 1]), (slice(None), np.array([2, 0])), ([0, 1], 2),
])  # fmt: skip
def test_indexing_is_numpys(index):
    a = np.arange(8, dtype=np.float64).reshape(2, 4)
    x = gw.tensor(a, requires_grad=True)
    y = x[index]
    np.testing.assert_array_equal(y.numpy(), a[index])
    (y * y).sum().backward()
    expected = np.zeros_like(a)
    np.add.at(expected, index, 2 * a[index])
    np.testing.assert_allclose(x.grad.numpy(), expected)


def test_wrong_indices():
    x = gw.tensor(np.zeros((2, 3), np.float32))
    with pytest.raises(IndexError, match="index 2 is out of range for dimension 0 of size 2"):
        x[2]
    with pytest.raises(errors.ShapeError, match="3 indices"):
        x[0, 0, 0]
    with pytest.raises(errors.DTypeError):
        x["a"]
    with pytest.raises(IndexError):
        x[np.array([5])]


def test_gradients_accumulate_and_stop():
    x = gw.tensor([2.0], requires_grad=True)
    (x * x).backward()
    (x * x).backward()
    assert x.grad.item() == 8
    with gw.no_grad():
        assert not (x * x).requires_grad
    assert not x.detach().requires_grad
    with pytest.raises(errors.GradientError, match="no recorded history"):
        x.detach().backward()
    with pytest.raises(errors.GradientError, match="scalar"):
        (gw.tensor([1.0, 2.0], requires_grad=True) * 2).backward()


def test_a_freed_tape_says_so():
    x = gw.tensor([2.0], requires_grad=True)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(errors.GradientError, match="retain_graph"):
        y.backward()


def test_overwritten_inputs_are_noticed():
    p = nn.Parameter(np.ones(3, np.float32))
    y = (p * p).sum()
    y.backward(retain_graph=True)
    nn.optim.SGD([p], lr=0.1).step()
    with pytest.raises(errors.GradientError, match="changed in place"):
        y.backward()


def test_third_derivative():
    x = gw.tensor(np.array(2.0), requires_grad=True)
    y = x * x * x * x
    for expected in (32.0, 48.0, 48.0):
        (y,) = gw.grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(expected)


def test_diamond_sums_paths():
    x = gw.tensor(np.array(3.0), requires_grad=True)
    a = x * x
    b = F.exp(a * 0.01) + a
    (a * b).backward()
    e = np.exp(0.09)
    assert x.grad.item() == pytest.approx(6 * (e + 9) + 9 * 6 * (0.01 * e + 1))


def test_unused_inputs():
    x, z = gw.tensor(np.ones(2), requires_grad=True), gw.tensor(np.ones(2), requires_grad=True)
    with pytest.raises(errors.GradientError, match="do not depend on input 1"):
        gw.grad((x * x).sum(), [x, z])
    assert gw.grad((x * x).sum(), [x, z], allow_unused=True)[1] is None


def test_the_short_path_of_small_arrays_equals_the_common_one(rng):
    from graftwork.nn.op import OPS, BinaryOp, Op, UnaryOp

    for op in OPS.values():
        if isinstance(op, UnaryOp) and op.ufunc is not None:
            count = 2 if isinstance(op, BinaryOp) else 1
            tensors = [gw.tensor(rng.random((3, 4)).astype(np.float32) + 0.5) for _ in range(count)]
            np.testing.assert_allclose(op(*tensors).numpy(), Op.__call__(op, *tensors).numpy(), rtol=2e-6)
