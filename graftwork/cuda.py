"""The GPU, seen from outside: is there one, and if not, why."""

from __future__ import annotations

import functools

from .errors import DeviceError


@functools.cache
def _problem() -> str | None:
    """What stands in the way of using a GPU, as a sentence; None if nothing does."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; install graftwork[cuda13] (or [cuda12] for an older driver)"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own hierarchy cannot be named where its libraries are missing
        return f"CuPy finds no usable driver ({error}); install an NVIDIA driver that matches the CUDA version"
    return None if count else "the driver reports no GPU; check `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def is_available() -> bool:
    """Whether tensors can be placed on a GPU here; `why_not()` says what is missing."""
    return _problem() is None


def why_not() -> str | None:
    """What stands in the way of using a GPU, or None."""
    return _problem()


def place(array, number: int = 0):
    """Copy an array to GPU `number`. Raises DeviceError where that is not possible."""
    if (problem := _problem()) is not None:
        raise DeviceError(f'device "cuda:{number}" is not usable: {problem}')
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    if number >= count:
        raise DeviceError(f'device "cuda:{number}" does not exist: this machine has {count} GPU(s), numbered from 0')
    with cupy.cuda.Device(number):
        return cupy.asarray(array)
