"""On hardware: every op's samples against the reference, the emulator against the GPU, CuPy's and Numba's streams."""

from __future__ import annotations

import numpy as np
import pytest
from test_compiled import train_eager_and_compiled
from test_simt_ops import TOLERANCE, arrays_of, cases, outputs_of

import graftwork as gw
from graftwork import kernels
from graftwork.kernels.cuda import launch
from graftwork.nn import functional as F

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gw.cuda.is_available(), reason=f"no GPU: {gw.cuda.why_not()}")]
LIMIT = {"tf32": 2e-3, "numba_cuda": 5e-5}  # of other variants; tf32 rounds operands to 11 bits
SANITIZED = ("sum", "softmax", "batch_norm_train", "matmul", "conv2d", "cumsum", "scatter_add", "contiguous", "layer_norm",
             "byte_table")  # fmt: skip


def on_gpu(op, arrays, attrs, fn):
    """`outputs_of` with copies on the GPU; results on the host."""
    import cupy

    arrays = [cupy.asarray(a) for a in arrays]
    specs = op.infer(*arrays, **attrs)
    outs = None if specs is None else [cupy.full(shape, 3, dtype) for shape, dtype in (specs if op.multi else [specs])]
    fn(*arrays, out=None if outs is None else tuple(outs) if op.multi else outs[0], **attrs)
    return [o.get() for o in [*(outs or []), *(arrays[i] for i in op.written(len(arrays)))]]


@pytest.mark.parametrize("op, sample, dtype, layout", [c for c in cases() if c.values[3] == "contiguous"])
def test_samples(op, sample, dtype, layout):
    arrays = arrays_of(sample, dtype)
    precise = [a.astype(np.float64) if a.dtype == np.float16 else a for a in arrays]
    attrs = {**sample.attrs, **({"dtype": "float32"} if dtype == "float16" and op.name == "cast" else {})}
    expected = outputs_of(op, precise, attrs, kernels.get(op.name, variant="reference"))
    for entry in kernels.list(op.name, "cuda"):
        if not entry.accepts(np.dtype(dtype)):
            continue
        tolerance = max(TOLERANCE[dtype], LIMIT.get(entry.variant, 0))
        for e, f in zip(expected, on_gpu(op, arrays, attrs, entry.function()), strict=True):
            np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance, err_msg=entry.variant)


@pytest.mark.parametrize("op, sample, dtype, layout", [c for c in cases() if c.values[2:] == ("float32", "contiguous")][::4])
def test_the_emulator_computes_what_the_gpu_does(emulated, monkeypatch, op, sample, dtype, layout):
    """Up to the rounding of functions (exp, sin, ...) and of fused multiply-adds, which differ."""
    arrays, fn = arrays_of(sample, dtype), kernels.get(op.name, device="cuda", variant="cuda")
    emulated.capability, emulated.processors = launch.gpu(0).capability, launch.gpu(0).processors
    simulated = outputs_of(op, arrays, sample.attrs, fn)
    monkeypatch.setattr(launch, "stand_in", None)
    for s, f in zip(simulated, on_gpu(op, arrays, sample.attrs, fn), strict=True):
        np.testing.assert_allclose(f, s, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", SANITIZED)
def test_sanitized(name):
    """What compute-sanitizer looks at: kernels with shared memory and barriers."""
    case = next(c for c in cases() if c.values[0].name == name)
    op, sample = case.values[:2]
    arrays = arrays_of(sample, "float32")
    expected = outputs_of(op, arrays, sample.attrs, kernels.get(name, variant="reference"))
    for e, f in zip(expected, on_gpu(op, arrays, sample.attrs, kernels.get(name, device="cuda")), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-4)


def test_a_recorded_training_step_equals_eager_steps(rng):
    replay = train_eager_and_compiled(rng)
    assert replay.recorded is not None and replay.why_not is None


def test_a_replay_on_another_stream(rng):
    import cupy

    weight = gw.tensor(rng.standard_normal((64, 64)).astype(np.float32), device="cuda")
    fast = gw.compile(lambda x: F.relu(x @ weight) @ weight)
    results = []
    for _ in range(4):
        x = gw.tensor(rng.standard_normal((32, 64)).astype(np.float32), device="cuda")
        expected = F.relu(x @ weight) @ weight
        gw.cuda.synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            results.append((fast(x), expected))
        stream.synchronize()
    for ours, eager in results:
        np.testing.assert_allclose(ours.numpy(), eager.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision, tolerance", [("fp16", 1e-2), ("bf16", 6e-2)])
def test_mixed_precision(rng, precision, tolerance):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    weight = gw.tensor(rng.standard_normal((64, 64)).astype(np.float32), device="cuda")
    x = gw.tensor(rng.standard_normal((32, 64)).astype(np.float32), device="cuda")
    expected = F.relu(x @ weight).numpy()
    ours = gw.compile(lambda x: F.relu(x @ weight), precision)(x)
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours.numpy() - expected) < tolerance * np.linalg.norm(expected)


def test_copies_that_do_not_wait():
    pinned = gw.cuda.pinned_empty((1000, 3), np.float32)
    pinned[:] = 7
    assert gw.cuda.is_pinned(pinned) and not gw.cuda.is_pinned(np.ones(3))
    back = (gw.tensor(pinned).to("cuda", non_blocking=True) * 2.0).to("cpu", non_blocking=True)
    gw.cuda.synchronize()
    assert (back.numpy() == 14).all()


def test_out_of_memory_says_how_much():
    from graftwork.errors import DeviceMemoryError

    with pytest.raises(DeviceMemoryError, match="MiB are free"):
        launch.empty((1 << 45,), np.float32)
