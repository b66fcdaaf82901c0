"""Single kernels on the layers of the four networks and on plain sizes: `pytest bench/test_kernels.py --benchmark-only`.

A group is one layer or size, with PyTorch (two threads as well) beside ours where it is installed.
`-k` picks: `-k "conv and vgg16"`, `-k gemm`. The extra columns of the JSON hold GFLOP/s and GB/s.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import numpy as np
import pytest

from graftwork import kernels
from graftwork import tensor as gw_tensor
from graftwork.kernels.cpu.runtime import set_num_threads
from graftwork.nn.op import OPS

from .common import wait_until_quiet
from .layers import HEAVY, NETWORKS, Call, build, calls_of, picture

THREADS = 2
ENGINES = ["graftwork", *(["torch"] if importlib.util.find_spec("torch") else [])]
GEMMS = ((256, 256, 256), (1024, 1024, 1024), (2048, 2048, 2048), (1, 25088, 4096), (8, 25088, 4096), (8, 2048, 1000),
         (3136, 64, 256), (196, 1024, 256), (49, 512, 2048))  # fmt: skip
MAPS = ((1, 112, 112, 64), (8, 28, 28, 256), (1, 7, 7, 2048))  # feature maps for what is limited by memory


def layers_of(network: str) -> list[tuple[str, Call]]:
    """A network's different convolutions and pools at batch 1. Its dense layers are among the matrix products."""
    found = dict.fromkeys(c for c in calls_of(build(network, include_top=False), gw_tensor(picture(1))) if c.op in HEAVY)
    return [(network, call) for call in found]


@functools.cache
def all_layers() -> list[tuple[str, Call]]:
    return [pair for network in NETWORKS for pair in layers_of(network)]


def pytest_generate_tests(metafunc):
    if "layer" in metafunc.fixturenames:
        pairs = all_layers()
        metafunc.parametrize("layer", [call for _, call in pairs], ids=[f"{network}: {call}" for network, call in pairs])
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ENGINES)


@pytest.fixture(autouse=True)
def two_threads():
    set_num_threads(THREADS)
    if "torch" in ENGINES:
        import torch

        torch.set_num_threads(THREADS)


def kernel_run(call: Call, rng: np.random.Generator) -> tuple[Callable, list[np.ndarray]]:
    """Our kernel for a call, with its output allocated once, and the arrays it reads."""
    arrays = [rng.standard_normal(shape, np.float32) for shape in call.shapes]
    out, kernel, attrs = np.empty(call.output, np.float32), kernels.get(call.op, "cpu", dtype="float32"), dict(call.attrs)

    def run():
        kernel(*arrays, out=out, **attrs)
        return out

    return run, arrays


def torch_layer(call: Call, arrays: list[np.ndarray]) -> Callable:
    """The same layer in PyTorch, channels last, with explicit padding taken out of the timed part."""
    import torch
    from torch.nn import functional as F

    attrs = dict(call.attrs)
    (top, bottom), (left, right) = attrs["padding"]
    fill = -np.inf if call.op == "max_pool2d" else 0.0
    x = F.pad(torch.from_numpy(arrays[0].transpose(0, 3, 1, 2)), (left, right, top, bottom), value=fill)
    x = x.contiguous(memory_format=torch.channels_last)
    if call.op == "max_pool2d":
        return lambda: F.max_pool2d(x, attrs["window"], attrs["stride"])
    w = torch.from_numpy(arrays[1].transpose(3, 2, 0, 1).copy()).contiguous(memory_format=torch.channels_last)
    b = torch.from_numpy(arrays[2]) if len(arrays) > 2 else None
    return lambda: F.conv2d(x, w, b, attrs["stride"], 0, attrs["dilation"], attrs["groups"])


def report(benchmark, run: Callable, group: str, flops: int = 0, moved: int = 0) -> None:
    benchmark.group = group
    wait_until_quiet()  # the other engine's threads may still be spinning
    benchmark(run)
    if benchmark.stats is not None:  # --benchmark-disable runs once and times nothing
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["gflops"] = round(flops / seconds / 1e9, 1)
        benchmark.extra_info["gbytes_per_second"] = round(moved / seconds / 1e9, 1)


def close(found, expected) -> None:
    """Engines sum in different orders: 1e-4 of the largest value."""
    found = found.permute(0, 2, 3, 1).numpy() if hasattr(found, "permute") and found.ndim == 4 else np.asarray(found)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_layer(benchmark, layer, engine):
    run, arrays = kernel_run(layer, np.random.default_rng(0))
    if engine == "torch":
        ours, run = run, torch_layer(layer, arrays)
        close(run(), ours())
    report(benchmark, run, str(layer), layer.flops, layer.bytes)


@pytest.mark.parametrize("size", GEMMS, ids=lambda s: "x".join(map(str, s)))
def test_gemm(benchmark, size, engine):
    m, k, n = size
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    out = np.empty((m, n), np.float32)
    kernel = kernels.get("matmul", "cpu", dtype="float32")
    run = functools.partial(kernel, a, b, out=out)
    if engine == "torch":
        import torch

        run()
        run = functools.partial(torch.matmul, torch.from_numpy(a), torch.from_numpy(b))
        close(run(), out)
    report(benchmark, run, f"gemm {m}x{k}x{n}", 2 * m * k * n, 4 * (m * k + k * n + m * n))


def elementwise(name: str, shape: tuple[int, ...]) -> tuple[Callable, Callable, int]:
    """Our kernel's run, PyTorch's, and how many arrays of `shape` are read and written."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, *shape), np.float32)
    channels = [rng.uniform(0.5, 1.5, shape[-1]).astype(np.float32) for _ in range(4)]
    arrays, attrs, moved = {
        "relu": ((x,), {}, 2),
        "add": ((x, y), {}, 3),
        "batch_norm": ((x, *channels), {"epsilon": 1e-3}, 2),
        "layer_norm": ((x, *channels[:2]), {"epsilon": 1e-3}, 2),
        "softmax": ((x,), {"axis": -1}, 2),
        "mean": ((x,), {"axis": (1, 2), "keepdims": False}, 1),
    }[name]
    specs, several = OPS[name].infer(*arrays, **attrs), OPS[name].multi  # layer norm gives its statistics too
    out = tuple(np.empty(*spec) for spec in specs) if several else np.empty(*specs)
    kernel = kernels.get(name, "cpu", dtype="float32")

    def run():
        kernel(*arrays, out=out, **attrs)
        return out[0] if several else out

    def peer():
        import torch
        from torch.nn import functional as F

        tx, ty, (gamma, beta, mean, var) = torch.from_numpy(x), torch.from_numpy(y), map(torch.from_numpy, channels)
        nchw = tx.permute(0, 3, 1, 2)  # these strides are what PyTorch calls channels last
        return {
            "relu": lambda: torch.relu(tx),
            "add": lambda: tx + ty,
            "batch_norm": lambda: F.batch_norm(nchw, mean, var, gamma, beta, eps=1e-3),
            "layer_norm": lambda: F.layer_norm(tx, (shape[-1],), gamma, beta, eps=1e-3),
            "softmax": lambda: torch.softmax(tx, -1),
            "mean": lambda: tx.mean((1, 2)),
        }[name]

    return run, peer, moved


@pytest.mark.parametrize("shape", MAPS, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("name", ["relu", "add", "batch_norm", "layer_norm", "softmax", "mean"])
def test_elementwise(benchmark, name, shape, engine):
    run, peer, moved = elementwise(name, shape)
    if engine == "torch":
        ours, run = run, peer()
        found = run()
        close(found if name == "batch_norm" else found.numpy(), ours())
    report(benchmark, run, f"{name} {'x'.join(map(str, shape))}", 0, 4 * moved * int(np.prod(shape)))
