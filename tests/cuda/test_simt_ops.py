"""Every op of the table on the emulator, through the kernels' own launch code, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import kernels
from graftwork.nn.op import OPS, all_samples

SAMPLES = list(all_samples())
FIRST = [i for i, (op, _) in enumerate(SAMPLES) if i == 0 or SAMPLES[i - 1][0] is not op]
# Rounding of one operation chain: a few ulp, times the length of the longest sum in the samples (about 100 terms). Results in
# float16 are rounded once to 11 bits, and the larger intermediate values of gradients are rounded too.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 4e-3}


WITHOUT = {"in_range"}  # which stands in captured graphs only


def cases():
    for i, (op, sample) in enumerate(SAMPLES):
        if op.view is not None or op.name in WITHOUT:
            continue
        yield pytest.param(op, sample, "float32", "contiguous", id=f"{op.name}-{i}-float32")
        if i in FIRST:
            yield pytest.param(op, sample, "float64", "contiguous", id=f"{op.name}-{i}-float64")
            yield pytest.param(op, sample, "float32", "strided", id=f"{op.name}-{i}-strided")
            if any(a.dtype == np.float64 for a in sample.arrays):
                yield pytest.param(op, sample, "float16", "contiguous", id=f"{op.name}-{i}-float16")


def arrays_of(sample, dtype):
    return [np.array(a, dtype=dtype if a.dtype == np.float64 else None) for a in sample.arrays]


def strided(a: np.ndarray) -> np.ndarray:
    """The same values in every second place of a larger array."""
    if a.ndim == 0:
        return a
    wide = np.zeros((*a.shape[:-1], a.shape[-1] * 2), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def outputs_of(op, arrays, attrs, fn):
    """Run one kernel on outputs that hold a 3 at first; in-place ops give back what they wrote."""
    arrays = [a.copy(order="K") for a in arrays]
    specs = op.infer(*arrays, **attrs)
    if specs is None:
        fn(*arrays, out=None, **attrs)
        return [arrays[i] for i in op.written(len(arrays))]
    outs = [np.full(shape, 3, dtype) for shape, dtype in (specs if op.multi else [specs])]
    fn(*arrays, out=tuple(outs) if op.multi else outs[0], **attrs)
    return outs + [arrays[i] for i in op.written(len(arrays))]


def test_every_op_has_a_cuda_kernel():
    for op in OPS.values():
        if op.view is None and op.name not in WITHOUT and not op.infer.__module__.startswith("graftwork.plugins"):
            assert any(e.variant == "cuda" for e in kernels.list(op.name, "cuda")), op.name


@pytest.mark.parametrize("op, sample, dtype, layout", list(cases()))
def test_kernels_equal_the_reference(emulated, op, sample, dtype, layout):
    fn = kernels.get(op.name, device="cuda", variant="cuda")
    arrays = arrays_of(sample, dtype)
    if layout == "strided":
        arrays = [a if i in op.written(len(arrays)) else strided(a) for i, a in enumerate(arrays)]
    precise = [a.astype(np.float64) if a.dtype == np.float16 else a for a in arrays]  # float16: from the rounded inputs
    attrs = {**sample.attrs, **({"dtype": "float32"} if dtype == "float16" and op.name == "cast" else {})}
    expected = outputs_of(op, precise, attrs, kernels.get(op.name, variant="reference"))
    found = outputs_of(op, arrays, attrs, fn)
    for e, f in zip(expected, found, strict=True):
        assert e.shape == f.shape and (dtype == "float16" or e.dtype == f.dtype)
        np.testing.assert_allclose(f, e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert emulated.steps or found[0].size == 0, "nothing was launched"


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "bool"])
def test_integer_arithmetic(emulated, dtype, rng):
    a, b = (rng.integers(0, 2 if dtype == "bool" else 7, (3, 5)).astype(dtype) for _ in range(2))
    for name in ("add", "multiply", "maximum", "minimum", "less", *(("subtract", "power") if dtype != "bool" else ())):
        expected, found = (np.empty((3, 5), bool if name == "less" else dtype) for _ in range(2))
        kernels.get(name, variant="reference")(a, b, out=expected)
        kernels.get(name, device="cuda")(a, b, out=found)
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("name", ["relu", "relu6", "clip", "max_pool2d", "maximum", "max", "argmax", "softmax"])
def test_nan_and_infinity(emulated, name):
    x = np.array([[1.0, np.nan, -np.inf, np.inf], [2.0, -3.0, 0.0, -np.inf]], np.float32)
    inputs = {"maximum": (x, x[::-1]), "max_pool2d": (x.reshape(1, 2, 4, 1),)}.get(name, (x,))
    attrs = {
        "clip": {"low": -1.0, "high": 1.5}, "max_pool2d": {"window": (1, 2), "stride": (1, 2), "padding": ((0, 0), (0, 0))},
        "max": {"axis": (1,), "keepdims": False}, "argmax": {"axis": 1, "keepdims": False}, "softmax": {"axis": 1},
    }.get(name, {})  # fmt: skip
    op = OPS[name]
    if name == "softmax":
        inputs = (np.where(np.isinf(x) & (x > 0), 5, x),)
    with np.errstate(invalid="ignore"):
        expected = outputs_of(op, inputs, attrs, kernels.get(name, variant="reference"))
    np.testing.assert_allclose(outputs_of(op, inputs, attrs, kernels.get(name, device="cuda"))[0], expected[0], rtol=1e-6)


SIZES = [(1, 700), (3, 1100), (5, 4099), (700, 3), (40, 33), (2, 3, 5, 7)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", ["sum", "max", "mean", "argmin", "cumsum", "softmax", "log_softmax"])
def test_shapes_of_many_blocks(emulated, name, shape, rng):
    """More than one block, warp and share; the samples are smaller than one."""
    op, x = OPS[name], rng.standard_normal(shape).astype(np.float32)
    for axis in range(len(shape)):
        attrs = {"axis": axis} if name in ("cumsum", "softmax", "log_softmax") else {"axis": axis, "keepdims": False}
        attrs["axis"] = (axis,) if name in ("sum", "max", "mean") else axis
        expected = outputs_of(op, [x], attrs, kernels.get(name, variant="reference"))[0]
        found = outputs_of(op, [x], attrs, kernels.get(name, device="cuda"))[0]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4 if name == "cumsum" else 2e-5)  # sums of 4099 values


@pytest.mark.parametrize("channels", [3, 37, 64])
def test_norms_of_many_rows(emulated, channels, rng):
    """Moments are joined over parts of the rows; a mean far from zero shows cancellation."""
    x = (rng.standard_normal((533, channels)) + 100).astype(np.float32)
    gamma, beta, g = (rng.standard_normal(s).astype(np.float32) for s in ((channels,), (channels,), x.shape))
    for name, inputs in (("batch_norm_train", (x, gamma, beta)), ("layer_norm", (x, gamma, beta)),
                         ("batch_norm_grad", (g, x, gamma, x.mean(0), x.var(0)))):  # fmt: skip
        attrs = {"epsilon": 1e-3}
        expected = outputs_of(OPS[name], inputs, attrs, kernels.get(name, variant="reference"))
        for e, f in zip(expected, outputs_of(OPS[name], inputs, attrs, kernels.get(name, device="cuda")), strict=True):
            np.testing.assert_allclose(f, e, rtol=2e-4, atol=2e-3)  # (x - mean) has lost two digits to the mean of 100


def test_a_chain_of_everything_broadcast(emulated, rng):
    """All five ways of reading an input in one program."""
    x, row, gate, one, column = (rng.standard_normal(s).astype(np.float32) for s in ((2, 6, 8), (8,), (2, 1, 8), (), (6, 1)))
    program = (("multiply", (0, 1), ()), ("add", (5, 2), ()), ("subtract", (6, 3), ()), ("maximum", (7, 4), ()))
    expected, found = np.empty_like(x), np.empty_like(x)
    for variant, device, out in (("reference", "cpu", expected), ("cuda", "cuda", found)):
        kernels.get("chain", device=device, variant=variant)(x, row, gate, one, column, out=out, program=program)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [(1, 0), (0, 2, 1), (2, 0, 1), (3, 1, 2, 0), (0, 3, 1, 2)], ids=str)
def test_transpositions(emulated, axes, rng):
    x = rng.standard_normal((35, 33, 5, 17)[: len(axes)]).astype(np.float32).transpose(axes)
    out = np.empty(x.shape, np.float32)
    kernels.get("contiguous", device="cuda")(x, out=out)
    np.testing.assert_array_equal(out, x)


def test_dropout_has_the_bits_of_the_cpu(emulated, rng):
    for size in (1, 7, 1000):
        x = rng.standard_normal(size).astype(np.float32)
        results = []
        for device in ("cpu", "cuda"):
            state = np.array([12345678901234567890, 2**32 - 2], np.uint64)  # the counter passes 32 bits
            y, mask = np.empty_like(x), np.empty(size, np.uint8)
            kernels.get("dropout", device=device)(x, state, out=(y, mask), rate=0.3)
            results.append((y, mask, state))
        for cpu, cuda in zip(*results, strict=True):
            np.testing.assert_array_equal(cuda, cpu)


def test_a_label_or_position_out_of_range_gives_nan(emulated):
    out = np.zeros(2, np.float32)
    kernels.get("cross_entropy", device="cuda")(np.zeros((2, 3), np.float32), np.array([1, 3]), out=out, label_smoothing=0.0)
    assert np.isfinite(out[0]) and np.isnan(out[1])
    kernels.get("gather", device="cuda")(np.arange(4, dtype=np.float32), np.array([-4, 4]), out=out, axis=0)
    assert out[0] == 0 and np.isnan(out[1])
    whole = np.full(2, 9, np.int32)  # which has no NaN
    kernels.get("gather", device="cuda")(np.arange(5, 9, dtype=np.int32), np.array([-5, 3]), out=whole, axis=0)
    assert whole.tolist() == [0, 8]
    sums = np.full(2, 9, np.float32)  # what belongs nowhere is added nowhere
    kernels.get("scatter_add", device="cuda")(np.ones(4, np.float32), np.array([0, 2, -3, -1]), out=sums, axis=0, size=2)
    assert sums.tolist() == [1, 1]
