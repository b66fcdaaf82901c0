"""What one op costs on a 4x4 tensor, beside PyTorch, in one run: `python -m bench.overhead`."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

import graftwork as gw
from graftwork.nn import functional as F

from .common import alternate, write

OPS_A_CHAIN = 8


def chain(x, y):
    """Eight ops: additions and products by turns."""
    for _ in range(OPS_A_CHAIN // 2):
        x = x + y
        x = x * y
    return x


def forward_and_backward(x, y, ones):
    chain(x, y).backward(ones)
    x.grad = y.grad = None


def measure() -> dict:
    """Microseconds an op, forward and forward with backward, for us and PyTorch; and seconds to import."""
    import torch

    a, b = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    ones = np.ones((4, 4), np.float32)
    ours = gw.tensor(a), gw.tensor(b)
    theirs = torch.tensor(a), torch.tensor(b)
    learning = gw.tensor(a, requires_grad=True), gw.tensor(b, requires_grad=True), gw.tensor(ones)
    peer = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True), torch.tensor(ones)
    forward = alternate({"graftwork": lambda: chain(*ours), "torch": lambda: chain(*theirs)}, 31, 300)
    both = alternate(
        {"graftwork": lambda: forward_and_backward(*learning), "torch": lambda: forward_and_backward(*peer)}, 31, 100
    )
    result = {}
    for name, times in (("forward", forward), ("forward_and_backward", both)):
        result[f"{name}_us"] = {k: round(v / OPS_A_CHAIN * 1e6, 3) for k, v in times.items()}
        result[f"{name}_ratio"] = round(times["graftwork"] / times["torch"], 3)
    result["single_ops_us"] = single_ops(*ours, *theirs)
    result["import_s"] = round(min(import_time() for _ in range(5)), 3)
    return result


def single_ops(x, y, u, v) -> dict:
    """Microseconds of one forward call by op: ours, PyTorch's, and the ratio."""
    import torch

    calls = {
        "add": (lambda: x + y, lambda: u + v),
        "exp": (lambda: F.exp(x), lambda: torch.exp(u)),
        "relu": (lambda: F.relu(x), lambda: torch.relu(u)),
        "sigmoid": (lambda: F.sigmoid(x), lambda: torch.sigmoid(u)),
        "sum": (lambda: x.sum(), lambda: u.sum()),
        "softmax": (lambda: F.softmax(x), lambda: torch.softmax(u, -1)),
        "matmul": (lambda: x @ y, lambda: u @ v),
        "reshape": (lambda: x.reshape(16), lambda: u.reshape(16)),
    }
    result = {}
    for name, (ours, theirs) in calls.items():
        times = alternate({"graftwork": ours, "torch": theirs}, 15, 300)
        ratio = times["graftwork"] / times["torch"]
        result[name] = {**{k: round(t * 1e6, 2) for k, t in times.items()}, "ratio": round(ratio, 2)}
    return result


def import_time() -> float:
    code = "import time; t = time.perf_counter(); import graftwork; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    found = measure()
    print(json.dumps(found, indent=2))
    print("wrote", write("overhead", found))
