"""What this machine can do, measured on the spot, and what share of it a network reaches: `python -m bench.roofline`.

A layer takes at least as long as its operations at the peak rate and its bytes at the peak bandwidth, whichever is more.
A network's ideal time is the sum over its convolutions, dense layers and pools, everything between them riding along. It is a
yardstick, not a bound: Winograd's convolution needs fewer operations than are counted, and caches are faster than memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

import graftwork as gw

from .common import alternate, use_threads, write
from .layers import HEAVY, NETWORKS, Call, build, calls_of, picture

SIDE = 2048  # of the matrices: 16 MiB each, many times more work than traffic
VALUES = 1 << 25  # 128 MiB an array: no cache holds it


class Peak(NamedTuple):
    """Floating-point operations and bytes a second."""

    flops: float
    bandwidth: float


def measure_peak(rounds: int = 7) -> Peak:
    """The faster of two matrix products (NumPy's and ours) and of two ways through memory (copy and triad)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SIDE, SIDE), np.float32)
    out, ta, tb = np.empty_like(a), gw.tensor(a), gw.tensor(b)
    products = {"numpy": lambda: np.matmul(a, b, out=out), "graftwork": lambda: gw.nn.functional.matmul(ta, tb)}
    x, y, z = (np.ones(VALUES, np.float32) for _ in range(3))
    triad = _compiled_triad()
    streams = {"copy": lambda: np.copyto(x, y), "triad": lambda: triad(x, y, z)}
    moved = {"copy": 8 * VALUES, "triad": 12 * VALUES}  # bytes; what a write has to fetch first is not counted
    product = min(alternate(products, rounds).values())
    return Peak(2 * SIDE**3 / product, max(moved[name] / t for name, t in alternate(streams, rounds).items()))


def _compiled_triad():
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def triad(out, a, b):
        for i in numba.prange(out.size):
            out[i] = a[i] + np.float32(3) * b[i]

    return triad


def ideal_seconds(calls: Iterable[Call], peak: Peak) -> float:
    return sum(max(c.flops / peak.flops, c.bytes / peak.bandwidth) for c in calls if c.op in HEAVY)


def profile(network: str, batch: int, peak: Peak) -> dict:
    """A network's operations, least bytes and ideal time."""
    calls = [c for c in calls_of(build(network), gw.tensor(picture(batch))) if c.op in HEAVY]
    return {
        "network": network,
        "batch": batch,
        "gflop": sum(c.flops for c in calls) / 1e9,
        "mbytes": sum(c.bytes for c in calls) / 1e6,
        "ideal_ms": ideal_seconds(calls, peak) * 1e3,
    }


def measure(networks: Iterable[str] = NETWORKS, batches: Iterable[int] = (1, 8)) -> dict:
    peak = measure_peak()
    rows = [profile(network, batch, peak) for network in networks for batch in batches]
    return {"gflops": peak.flops / 1e9, "gbytes_per_second": peak.bandwidth / 1e9, "networks": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="peak compute and bandwidth, and the networks' ideal times")
    parser.add_argument("--threads", type=int, default=2)
    use_threads(parser.parse_args().threads)
    found = measure()
    print(json.dumps(found, indent=2))
    print("wrote", write("roofline", found))


if __name__ == "__main__":
    main()
