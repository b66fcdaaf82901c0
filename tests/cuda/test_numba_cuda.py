"""The Python twins: compiled to PTX, and run small in Numba's simulator, which needs a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from graftwork.kernels.numba_cuda import KERNELS

ROOT = Path(__file__).parents[2]
SIMULATED = """
import json, sys
import numpy as np
from graftwork import kernels
from graftwork.kernels.numba_cuda import KERNELS
from graftwork.nn.op import all_samples

sys.path.insert(0, "tests/cuda")
from test_simt_ops import arrays_of, outputs_of

worst, seen = {}, {}
for op, sample in all_samples():
    if op.name not in KERNELS or seen.get(op.name, 0) == 2 or (sample.arrays[0].size > 130 and op.name in seen):
        continue
    arrays = arrays_of(sample, "float32")
    expected = outputs_of(op, arrays, sample.attrs, kernels.get(op.name, variant="reference"))
    found = outputs_of(op, arrays, sample.attrs, kernels.get(op.name, device="cuda", variant="numba_cuda"))
    for e, f in zip(expected, found):
        error = np.abs(f.astype(float) - e) / (1 + np.abs(e.astype(float)))
        worst[op.name] = max(worst.get(op.name, 0.0), float(error.max(initial=0)))
    seen[op.name] = seen.get(op.name, 0) + 1
print(json.dumps([worst, seen]))
"""


def test_all_samples_in_the_simulator():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIMULATED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    worst, seen = json.loads(done.stdout)
    assert set(seen) == set(KERNELS)
    assert not {name: error for name, error in worst.items() if not error < 2e-5}


def signatures():
    from numba import boolean, float32, int64
    from numba import types as kinds

    from graftwork.kernels.numba_cuda import elementwise, norm, pool, products, reduce

    a1, a2, a3, a4 = (kinds.Array(float32, n, "C") for n in (1, 2, 3, 4))
    pair = kinds.UniTuple(int64, 2)
    one, two = kinds.void(a1, a1), kinds.void(a1, a1, a1)
    for name, f in elementwise.FUNCTIONS.items():
        count = f.__code__.co_argcount
        if name in ("leaky_relu", "elu", "leaky_relu_grad"):
            yield name, elementwise.with_parameter(name), kinds.void(*(a1,) * count, float32)
        elif name != "where":
            yield name, elementwise.kernel_of(name), one if count == 1 else two
    yield "where", elementwise.kernel_of("where"), kinds.void(a1, kinds.Array(boolean, 1, "C"), a1, a1)
    for name, kernel in reduce.KERNELS.items():
        yield name, kernel, kinds.void(a1, a2, float32)
    yield "softmax", reduce.softmax_rows, kinds.void(a2, a2, boolean)
    yield "normalise", norm.normalise, kinds.void(a2, a2, a1, a1, a1, a1, float32)
    yield "moments", norm.moments, kinds.void(a1, a1, a2)
    yield "layer", norm.layer, kinds.void(a2, a1, a1, a2, a1, a1, float32)
    yield "max_forward", pool.max_forward, kinds.void(a4, a4, pair, pair, pair)
    yield "max_backward", pool.max_backward, kinds.void(a4, a4, a4, a4, pair, pair, pair)
    yield "avg_forward", pool.avg_forward, kinds.void(a4, a4, pair, pair, pair, pair, boolean)
    yield "avg_backward", pool.avg_backward, kinds.void(a4, a4, pair, pair, pair, pair, boolean)
    yield "tiled_product", products.tiled_product, kinds.void(a3, a3, a3, a1, a3, int64)
    yield "direct_convolution", products.direct_convolution, kinds.void(a4, a4, a4, a1, a4, pair, pair, pair, int64, int64)
    for name in ("input_gradient", "weight_gradient"):
        yield name, getattr(products, name), kinds.void(a4, a4, a4, pair, pair, pair, int64)


def test_every_kernel_compiles_to_ptx(monkeypatch):
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed; install graftwork[cuda13]")
    from numba import cuda

    # device functions are compiled for the current device, of which there is none here: say which it would be
    module = sys.modules[type(cuda.jit(lambda: None, device=True)).__module__]
    monkeypatch.setattr(module, "get_current_device", lambda: types.SimpleNamespace(compute_capability=(9, 0)))
    names = []
    for name, kernel, signature in signatures():
        text, _ = cuda.compile_ptx(kernel, signature, cc=(9, 0))
        assert ".visible .entry" in text
        if name not in ("erf", "tanh", "sin", "cos", "power", "gelu", "gelu_tanh", "log", "log1p", "expm1", "softplus"):
            assert ".f64" not in text, f"{name} computes in float64, which is slow on most GPUs"
        names.append(name)
    assert len(names) == len(set(names)) > 55


def test_selection_prefers_the_cpp_kernels():
    from graftwork import kernels

    for op in KERNELS:
        variants = [e.variant for e in kernels.list(op, "cuda")]
        assert variants[0] == "cuda" and "numba_cuda" in variants
        assert next(e for e in kernels.list(op, "cuda") if e.variant == "numba_cuda").dtypes == (str(np.dtype("float32")),)
