"""The GPU, seen from outside: is there one, and if not, why."""

from __future__ import annotations

import functools
import math

import numpy as np

from .errors import DeviceError

_HOST = 1  # cudaMemoryTypeHost: page-locked memory of the host


@functools.cache
def _problem() -> str | None:
    """What stands in the way of using a GPU, as a sentence; None if nothing does."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; install graftwork[cuda13] (or [cuda12] for an older driver)"
    try:
        driver, runtime = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
        if (old := _driver_problem(driver, runtime)) is not None:
            return old
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own hierarchy cannot be named where its libraries are missing
        return f"CuPy finds no usable driver ({error}); install an NVIDIA driver that matches the CUDA version"
    if not count:
        return "the driver reports no GPU; check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    if not _has_compiler():
        return "there is no NVRTC, which compiles the kernels; install the wheel nvidia-cuda-nvrtc"
    return None


def _driver_problem(driver: int, runtime: int) -> str | None:
    """What is wrong with a driver for CUDA `driver`, for a CuPy built on `runtime` (both 1000 * major + 10 * minor)."""
    if driver == 0:
        return "there is no NVIDIA driver on this machine (libcuda.so.1 is missing or does not start); install one"
    if driver // 1000 < runtime // 1000:
        return (
            f"the NVIDIA driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, the installed CuPy needs "
            f"CUDA {runtime // 1000}; install a newer driver, or graftwork[cuda{driver // 1000}]"
        )
    return None


def _has_compiler() -> bool:
    from .kernels.cuda import nvrtc

    return nvrtc.is_available()


def is_available() -> bool:
    """Whether tensors can be placed on a GPU here; `why_not()` says what is missing."""
    return _problem() is None


def why_not() -> str | None:
    """What stands in the way of using a GPU, or None."""
    return _problem()


def device(number: int):
    """A context in which new arrays are made on GPU `number`: `with gw.cuda.device(1): ...`. Ops on tensors of another than the
    current GPU belong inside."""
    _require(number)
    import cupy

    return cupy.cuda.Device(number)


def synchronize() -> None:
    """Wait until the current GPU has done all it was given."""
    _require(0)
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def adopt(array):
    """Someone else's GPU array (`__cuda_array_interface__` or DLPack) as a CuPy array on the same memory."""
    _require(0)
    import cupy

    return cupy.asarray(array) if hasattr(array, "__cuda_array_interface__") else cupy.from_dlpack(array)


def is_foreign(array) -> bool:
    """Whether a CuPy array looks at memory that CuPy does not own (see `adopt`): others may change it at any time."""
    import cupy

    return isinstance(array.data.mem, cupy.cuda.memory.UnownedMemory)


def _require(number: int) -> None:
    if (problem := _problem()) is not None:
        raise DeviceError(f'device "cuda:{number}" is not usable: {problem}')
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    if number >= count:
        raise DeviceError(f'device "cuda:{number}" does not exist: this machine has {count} GPU(s), numbered from 0')


def place(array, number: int = 0, non_blocking: bool = False):
    """Copy an array to GPU `number`. Raises DeviceError where that is not possible, DeviceMemoryError where there is no room.

    An array of the host is copied to page-locked memory first and travels from there, in the order of the current stream, so
    that it may be changed at once. non_blocking: one that is page-locked itself (`pinned_empty`) travels straight from where it
    is, and must not be changed before the stream has come that far.
    """
    _require(number)
    import cupy

    from .kernels.cuda import launch

    with cupy.cuda.Device(number):
        try:
            if non_blocking and is_pinned(array):
                target = launch.empty(array.shape, array.dtype, number)
                target.set(array, cupy.cuda.get_current_stream())
                return target
            return cupy.asarray(array)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise launch.memory_error(array.shape, array.dtype) from error


def fetch(array, non_blocking: bool = False) -> np.ndarray:
    """A GPU's array as a NumPy array. non_blocking: in page-locked memory, filled when the current stream has come that far
    (`synchronize` waits for it)."""
    if not non_blocking:
        return array.get()
    import cupy

    return array.get(stream=cupy.cuda.get_current_stream(), out=pinned_empty(array.shape, array.dtype), blocking=False)


def pinned_empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised NumPy array in page-locked memory, which copies to and from a GPU need not wait for."""
    _require(0)
    import cupy

    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes:
        return np.empty(shape, dtype)
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes).view(dtype).reshape(shape)


def is_pinned(array) -> bool:
    """Whether an array of the host lies, without gaps, in page-locked memory."""
    import cupy

    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.size:
        return False
    attributes = cupy.cuda.runtime.pointerGetAttributes(array.ctypes.data)
    return getattr(attributes, "type", None) == _HOST  # older CuPys do not say: such memory is copied first, as any other
