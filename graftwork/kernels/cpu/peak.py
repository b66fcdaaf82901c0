"""What this machine can do, measured on the spot: the roof under which kernels are judged.

The rate is that of a matrix product, the bandwidth that of a copy too large for any cache, each with all threads. What a write
has to fetch first is not counted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from . import runtime
from .copies import copy_row
from .gemm import multiply_arrays

SIDE = 1024  # of the matrices: far more work than traffic
VALUES = 1 << 23  # float32, 32 MiB an array


def _best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache
def peak_flops(rounds: int = 15) -> float:
    """float32 operations a second: the faster of NumPy's matrix product and ours. Measured once in a process."""
    a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    out = np.empty_like(a)
    ways = (lambda: np.matmul(a, b, out=out), lambda: multiply_arrays(a, b, out))
    return 2 * SIDE**3 / min(_best(way, rounds) for way in ways)


@functools.cache
def bandwidth(rounds: int = 15) -> float:
    """Bytes a second, read and written together. Measured once in a process."""
    source, target = np.ones(VALUES, np.float32), np.zeros(VALUES, np.float32)
    row = copy_row(source, target)
    assert row is not None  # contiguous arrays always have one
    program = runtime.Program([row])
    return 2 * source.nbytes / _best(program.run, rounds)


__all__ = ["bandwidth", "peak_flops"]
