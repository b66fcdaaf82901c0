"""What the static graph brings over the eager engine, and what it costs: `python -m bench.static`."""

from __future__ import annotations

import json
import time

import numpy as np

import graftwork as gw
from graftwork import zoo
from graftwork.nn import functional as F

from .common import alternate, write

TINY_OPS = 200
NETWORKS = ("squeezenet1_1", "mobilenet_v2", "resnet50", "vgg16")


def measure() -> dict:
    """Ratios static / eager, microseconds a replayed op, seconds to capture, arena over its lower bound."""
    return {"networks": {name: _network(name) for name in NETWORKS}, "tiny_ops": _tiny()}


def _network(name: str) -> dict:
    model = zoo.create(name)
    x = gw.tensor(np.random.default_rng(0).random((1, 224, 224, 3), np.float32))
    fast = gw.compile(model)
    with gw.no_grad():
        model(x)  # kernels compile or load here, not in the capture's time
        start = time.perf_counter()
        executable = fast.executable(x)
        seconds = time.perf_counter() - start
        times = alternate({"eager": lambda: model(x), "static": lambda: fast(x)}, 15)
    return {
        "eager_ms": round(times["eager"] * 1e3, 3), "static_ms": round(times["static"] * 1e3, 3),
        "eager_over_static": round(times["eager"] / times["static"], 2), "capture_passes_plan_s": round(seconds, 3),
        "nodes": len(executable.graph.nodes), "arena_bytes": executable.arena_bytes, "lower_bound_bytes": executable.bound,
        "arena_over_bound": round(executable.arena_bytes / executable.bound, 4),
    }  # fmt: skip


def _chain(multiply, x, y):
    """Products that depend on each other and cannot be fused."""
    for _ in range(TINY_OPS):
        x = multiply(x, y)
    return x


def _tiny() -> dict:
    """4x4 matrices. The share of one op in a long replay, beside PyTorch's eager op, and the price of one call."""
    import torch

    a = np.eye(4, dtype=np.float32)
    x, t = gw.tensor(a), torch.tensor(a)
    long, short = gw.compile(lambda x, y: _chain(F.matmul, x, y)), gw.compile(lambda x, y: F.matmul(x, y))
    with gw.no_grad(), torch.no_grad():
        times = alternate(
            {"long": lambda: long(x, x), "short": lambda: short(x, x), "torch": lambda: _chain(torch.matmul, t, t)}, 31, 20
        )
    per_op = (times["long"] - times["short"]) / (TINY_OPS - 1)
    return {
        "replayed_op_us": round(per_op * 1e6, 3), "call_us": round(times["short"] * 1e6, 2),
        "torch_eager_op_us": round(times["torch"] / TINY_OPS * 1e6, 3),
    }  # fmt: skip


if __name__ == "__main__":
    found = measure()
    print(json.dumps(found, indent=2))
    print("wrote", write("static", found))
