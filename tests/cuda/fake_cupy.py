"""As much of CuPy as the engine touches, over NumPy memory: with the emulator as the GPU, `device="cuda"` runs on a CPU.

Its arrays are no NumPy arrays and do no arithmetic, so that an engine path that forgets the device fails.
"""

from __future__ import annotations

import types

import numpy as np


class Device:
    def __init__(self, id: int = 0):
        self.id = id

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exc) -> None:
        pass


class ndarray:  # noqa: N801 - CuPy's name
    def __init__(self, memory: np.ndarray):
        self.memory = memory
        self.device = Device(0)
        self.data = types.SimpleNamespace(ptr=memory.ctypes.data)

    shape, dtype, strides, size, ndim, itemsize, nbytes = (
        property(lambda self, name=name: getattr(self.memory, name))
        for name in ("shape", "dtype", "strides", "size", "ndim", "itemsize", "nbytes")
    )

    @property
    def __cuda_array_interface__(self) -> dict:
        return self.memory.__array_interface__ | {"version": 3}

    def get(self) -> np.ndarray:
        return self.memory.copy()

    def item(self):
        return self.memory.item()

    def reshape(self, shape) -> ndarray:
        return ndarray(self.memory.reshape(shape))

    def transpose(self, axes) -> ndarray:
        return ndarray(self.memory.transpose(axes))

    def astype(self, dtype, copy: bool = True) -> ndarray:
        return ndarray(self.memory.astype(dtype, copy=copy))

    def __getitem__(self, index) -> ndarray:
        return ndarray(np.asarray(self.memory[index]))

    def __setitem__(self, index, value) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("a NumPy array is assigned to a GPU array")
        self.memory[index] = value.memory if isinstance(value, ndarray) else value

    def __array__(self, *given, **more):
        raise TypeError("implicit conversion to a NumPy array; CuPy forbids it")


ndarray.__module__ = "cupy"


class OutOfMemoryError(MemoryError):
    pass


def module(driver: int = 13000, runtime: int = 13000, count: int = 1) -> types.ModuleType:
    """A module to put into sys.modules under the name "cupy"."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.limit = ndarray, 1 << 40

    def empty(shape, dtype):
        if np.prod(shape, dtype=object) * np.dtype(dtype).itemsize > cupy.limit:
            raise OutOfMemoryError("full")
        memory = np.empty(shape, dtype)
        memory.reshape(-1).view(np.uint8)[:] = 0xC3
        return ndarray(memory)

    def asarray(array):
        if isinstance(array, ndarray):
            return array
        if hasattr(array, "__cuda_array_interface__"):
            return ndarray(np.asarray(types.SimpleNamespace(__array_interface__=array.__cuda_array_interface__)))
        return ndarray(np.array(array))

    cupy.empty, cupy.asarray = empty, asarray
    cupy.broadcast_to = lambda x, shape: ndarray(np.broadcast_to(x.memory, shape))
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: 3 << 20, total_bytes=lambda: 5 << 20)
    cupy.cuda = types.SimpleNamespace(
        Device=Device, memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(driverGetVersion=lambda: driver, runtimeGetVersion=lambda: runtime,
            getDeviceCount=lambda: count,
                                      getDevice=lambda: 0, memGetInfo=lambda: (7 << 20, 9 << 20)),
    )  # fmt: skip
    return cupy


__all__ = ["module", "ndarray"]
