"""Every op of the table by its samples: kernels against the reference, gradients against finite differences."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import graftwork as gw
from graftwork import kernels
from graftwork.nn.op import OPS, all_samples
from graftwork.nn.tensor import Tensor

SAMPLES = [pytest.param(op, s, id=f"{op.name}-{i}") for i, (op, s) in enumerate(all_samples())]
GRADIENTS = [p for p in SAMPLES if p.values[0].vjp is not None and p.values[1].smooth]


def arrays_of(sample, dtype=np.float64):
    return [np.array(a, dtype=dtype if a.dtype == np.float64 else None) for a in sample.arrays]


def outputs_of(op, arrays, attrs, fn):
    """Run one kernel on fresh output arrays; in-place ops give back what they wrote."""
    arrays = [a.copy(order="K") for a in arrays]
    specs = op.infer(*arrays, **attrs)
    if specs is None:
        fn(*arrays, out=None, **attrs)
        return [arrays[i] for i in op.written(len(arrays))]
    many = specs if op.multi else [specs]
    outs = [np.full(shape, 3, dtype) for shape, dtype in many]  # not zeros: a kernel that skips a place is seen
    fn(*arrays, out=tuple(outs) if op.multi else outs[0], **attrs)
    return outs + [arrays[i] for i in op.written(len(arrays))]


def test_every_op_has_samples_kernels_and_a_reference():
    for op in OPS.values():
        if op.infer.__module__.startswith("graftwork.plugins"):
            continue  # communication between ranks, where another test has loaded its plugin
        assert op.samples is not None, f"{op.name} has no samples"
        if op.view is None:
            variants = {e.variant for e in kernels.list(op.name, "cpu")}
            assert "reference" in variants and len(variants) > 1, f"{op.name} has only {variants}"


def test_attributes_of_kernels_match_the_reference():
    for op in OPS.values():
        if op.view is None:
            names = [set(inspect.signature(e.function()).parameters) for e in kernels.list(op.name, "cpu")]
            assert all("out" in n for n in names), op.name


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("op, sample", SAMPLES)
def test_kernels_equal_the_reference(op, sample, layout, dtype):
    if op.view is not None:
        pytest.skip("a view has no kernel")
    arrays = arrays_of(sample, dtype)
    if layout == "strided":
        arrays = [a if i in op.written(len(arrays)) else strided(a) for i, a in enumerate(arrays)]
    expected = outputs_of(op, arrays, sample.attrs, kernels.get(op.name, variant="reference"))
    # rounding of one operation chain: a few ulp, times the length of the longest sum in the samples (about 100 terms)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for entry in kernels.list(op.name, "cpu"):
        if entry.variant in ("reference", *SPECIAL) or not entry.accepts(np.dtype(dtype)):
            continue
        for e, f in zip(expected, outputs_of(op, arrays, sample.attrs, entry.function()), strict=True):
            assert e.dtype == f.dtype and e.shape == f.shape
            np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance, err_msg=f"{op.name}/{entry.variant}")


SPECIAL = ("pointwise", "depthwise", "im2col", "winograd")  # take only some shapes: their own tests choose them


def strided(a: np.ndarray) -> np.ndarray:
    """The same values in every second place of a larger array."""
    if a.ndim == 0:
        return a
    wide = np.zeros((*a.shape[:-1], a.shape[-1] * 2), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def floating(arrays):
    return [i for i, a in enumerate(arrays) if a.dtype == np.float64]


def call(op, arrays, attrs, differentiated):
    tensors = [Tensor(a) for a in arrays]
    for i in differentiated:
        tensors[i].requires_grad = True
    outs = op(*tensors, **attrs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return [tensors[i] for i in differentiated], [o for o in outs if o.dtype == np.float64 and o.requires_grad]


def finite_difference(f, a, step=1e-6):
    """Central differences of a scalar function with respect to every entry of an array that it reads."""
    g = np.zeros_like(a)
    for k in np.ndindex(a.shape):
        kept = a[k]
        a[k] = kept + step
        above = f()
        a[k] = kept - step
        below = f()
        a[k] = kept
        g[k] = (above - below) / (2 * step)
    return g


def weighted(outs, weights):
    return sum(float((o.data * w).sum()) for o, w in zip(outs, weights, strict=True))


@pytest.mark.parametrize("op, sample", GRADIENTS)
def test_gradients_and_their_gradients(op, sample, rng):
    arrays = arrays_of(sample)
    inputs = floating(arrays)
    tensors, outs = call(op, arrays, sample.attrs, inputs)
    weights = [rng.standard_normal(o.shape) for o in outs]
    first = gw.grad(outs, tensors, [Tensor(w) for w in weights], create_graph=True, allow_unused=True)
    for i, g in zip(inputs, first, strict=True):
        numeric = finite_difference(lambda: weighted(call(op, arrays, sample.attrs, inputs)[1], weights), arrays[i])
        # central differences in float64 with a step of 1e-6 are good to about 1e-9 times the third derivative
        np.testing.assert_allclose(0 * numeric if g is None else g.data, numeric, rtol=1e-5, atol=1e-6)

    recorded = [(g, i) for g, i in zip(first, inputs, strict=True) if g is not None and g.requires_grad]
    if not recorded:
        return
    outer = [rng.standard_normal(g.shape) for g, _ in recorded]

    def gradient_sum():
        tensors, outs = call(op, arrays, sample.attrs, inputs)
        gs = gw.grad(outs, tensors, [Tensor(w) for w in weights], create_graph=True, allow_unused=True)
        return weighted([gs[inputs.index(i)] for _, i in recorded], outer)

    second = gw.grad([g for g, _ in recorded], tensors, [Tensor(w) for w in outer], allow_unused=True)
    for i, g in zip(inputs, second, strict=True):
        numeric = finite_difference(gradient_sum, arrays[i])
        np.testing.assert_allclose(0 * numeric if g is None else g.data, numeric, rtol=1e-4, atol=1e-5)


def test_a_wrong_gradient_would_be_seen(rng):
    """The check above can fail: halve a gradient and it does."""
    from graftwork.nn.ops import elementwise

    op, right = elementwise.sin, elementwise.sin.vjp
    op.vjp = lambda g, out, x: (right(g, out, x)[0] * 0.5,)
    try:
        with pytest.raises(AssertionError):
            test_gradients_and_their_gradients(op, next(op.samples(rng)), rng)
    finally:
        op.vjp = right
