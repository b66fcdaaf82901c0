"""Compiling and launching Python kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import cuda
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)  # the simulator has a Python thread for every CUDA thread
BLOCK = 8 if SIMULATED else 256
TREE = 8 if SIMULATED else 128  # threads of a block that reduces


@functools.cache
def compiled(kernel: Callable, **options) -> Callable:
    """A kernel that can be launched."""
    return cuda.jit(kernel, **options)


def launch(kernel: Callable, grid, block, *arguments) -> None:
    """Run a kernel on the current stream. An empty grid does nothing."""
    if 0 in (grid if isinstance(grid, tuple) else (grid,)):
        return
    if any(isinstance(a, np.ndarray) for a in arguments):  # the simulator
        compiled(kernel)[grid, block](*arguments)
        return
    import cupy

    stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
    compiled(kernel)[grid, block, stream](*arguments)


def over(size: int) -> int:
    """Blocks of BLOCK threads for so many elements."""
    return math.ceil(size / BLOCK)


def library(array):
    """NumPy or CuPy, whichever made the array."""
    if isinstance(array, np.ndarray):
        return np
    import cupy

    return cupy


def dense(array):
    """The array itself or a row-major copy."""
    return library(array).ascontiguousarray(array)


def rows(array, axis: int):
    """A copy or view with `axis` last and the others as one: (rows, length), row-major."""
    moved = library(array).moveaxis(array, axis, -1)
    return dense(moved).reshape(-1, array.shape[axis])


def spread(array, shape):
    """The array broadcast to a shape, row-major."""
    return dense(array) if array.shape == tuple(shape) else library(array).broadcast_to(array, shape).copy()
