"""As much of CuPy as the engine touches, over NumPy memory: with the emulator as the GPU, `device="cuda"` runs on a CPU.

Its arrays are no NumPy arrays and do no arithmetic, so that an engine path that forgets the device fails. Streams run at once,
except while they are captured: then launches (`Driver.launch`) are written down, and what a driver or a careful reader would
forbid raises: allocating, copying to or from the host, waiting. A recorded graph replays the launches on the very addresses,
and raises where one of them no longer belongs to the allocation that it did.
"""

from __future__ import annotations

import ctypes
import itertools
import types
import weakref
from collections.abc import Callable

import numpy as np


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class UnownedMemory:
    pass


class Driver:
    """What there is one of: live allocations, the current stream, the capture that is under way."""

    def __init__(self):
        self.allocations: dict[int, tuple[int, int]] = {}  # serial number -> first address, last address
        self.numbers = itertools.count()
        self.capturing: list | None = None
        self.refuse_capture = False
        self.streams: list[Stream] = []

    def forbid(self, what: str) -> None:
        if self.capturing is not None:
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream is captured")

    def allocate(self, memory: np.ndarray) -> np.ndarray:
        self.forbid("an allocation")
        number, start = next(self.numbers), memory.ctypes.data
        self.allocations[number] = start, start + memory.nbytes
        weakref.finalize(memory, self.allocations.pop, number, None)
        return memory

    def owner(self, pointer: int) -> int | None:
        """The serial number of the allocation that an address lies in. (Of none: an empty array, or foreign memory.)"""
        return next((n for n, (start, stop) in self.allocations.items() if start <= pointer < stop), None)

    def launch(self, run: Callable[[], None], pointers: dict[int, int]) -> None:
        """A kernel launch: now, or written down with the allocations that its pointers belong to."""
        if self.capturing is None:
            run()
        else:
            self.capturing.append((run, {p: self.owner(p) for p in pointers.values()}))


class Graph:
    def __init__(self, driver: Driver, launches: list):
        self.driver, self.launches, self.replays = driver, launches, 0

    def launch(self, stream=None) -> None:
        self.driver.forbid("a graph launch")
        self.replays += 1
        for run, pointers in self.launches:
            for pointer, number in pointers.items():
                if self.driver.owner(pointer) != number:
                    raise AssertionError(f"a recorded launch uses {pointer:#x}, which has been freed since")
            run()


class Stream:
    def __init__(self, driver: Driver, number: int = 0, non_blocking: bool = False):
        self.driver, self.ptr, self.non_blocking = driver, number, non_blocking
        self.waits: list = []

    def __enter__(self) -> Stream:
        self.driver.streams.append(self)
        return self

    def __exit__(self, *exc) -> None:
        self.driver.streams.pop()

    def begin_capture(self, mode=None) -> None:
        if self.driver.refuse_capture or self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
        self.driver.capturing = []

    def end_capture(self) -> Graph:
        launches, self.driver.capturing = self.driver.capturing, None
        return Graph(self.driver, launches)

    def synchronize(self) -> None:
        self.driver.forbid("waiting")

    def record(self, event=None):
        return event or Event(self)

    def wait_event(self, event) -> None:
        self.waits.append(event)


class Event:
    def __init__(self, stream=None):
        self.stream = stream

    def synchronize(self) -> None:
        pass


class Device:
    def __init__(self, id: int = 0):
        self.id = id

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exc) -> None:
        pass


class ndarray:  # noqa: N801 - CuPy's name
    def __init__(self, memory: np.ndarray, base: ndarray | None = None, driver: Driver | None = None, mem=None):
        self.memory = memory
        self.base = None if base is None else base.base or base
        self.driver = base.driver if base is not None else driver
        self.device = Device(0)
        self.data = types.SimpleNamespace(ptr=memory.ctypes.data, mem=base.data.mem if base is not None else mem)

    shape, dtype, strides, size, ndim, itemsize, nbytes = (
        property(lambda self, name=name: getattr(self.memory, name))
        for name in ("shape", "dtype", "strides", "size", "ndim", "itemsize", "nbytes")
    )

    @property
    def __cuda_array_interface__(self) -> dict:
        return self.memory.__array_interface__ | {"version": 3}

    def __dlpack__(self, **given):
        return self.memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def _to_host(self) -> None:
        if self.driver is not None:
            self.driver.forbid("a copy to the host")

    def get(self, stream=None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        self._to_host()
        if out is None:
            return self.memory.copy()
        out[...] = self.memory
        return out

    def set(self, values: np.ndarray, stream=None) -> None:
        if not isinstance(values, np.ndarray) or values.dtype != self.dtype or values.shape != self.shape:
            raise TypeError(f"set() takes a NumPy array of {self.dtype}{self.shape}")
        self.memory[...] = values
        self.set_from = values.ctypes.data, stream

    def item(self):
        self._to_host()
        return self.memory.item()

    def reshape(self, shape) -> ndarray:
        return ndarray(self.memory.reshape(shape), self)

    def view(self, dtype) -> ndarray:
        return ndarray(self.memory.view(dtype), self)

    def transpose(self, axes) -> ndarray:
        return ndarray(self.memory.transpose(axes), self)

    def astype(self, dtype, copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        return ndarray(self.memory.astype(dtype), driver=self.driver)

    def __getitem__(self, index) -> ndarray:
        return ndarray(np.asarray(self.memory[index]), self)

    def __setitem__(self, index, value) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("a NumPy array is assigned to a GPU array")
        self.memory[index] = value.memory if isinstance(value, ndarray) else value

    def __array__(self, *given, **more):
        raise TypeError("implicit conversion to a NumPy array; CuPy forbids it")


ndarray.__module__ = "cupy"


def module(driver: int = 13000, runtime: int = 13000, count: int = 1) -> types.ModuleType:
    """A module to put into sys.modules under the name "cupy". `gpu` is its Driver."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.limit, cupy.gpu = ndarray, 1 << 40, Driver()
    numbers = itertools.count(1)

    def empty(shape, dtype):
        if np.prod(shape, dtype=object) * np.dtype(dtype).itemsize > cupy.limit:
            raise OutOfMemoryError("full")
        raw = cupy.gpu.allocate(np.empty(int(np.prod(shape)) * np.dtype(dtype).itemsize + 256, np.uint8))
        raw[:] = 0xC3
        start = -raw.ctypes.data % 256
        memory = raw[start : start + int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        return ndarray(memory, driver=cupy.gpu)

    def asarray(array):
        if isinstance(array, ndarray):
            return array
        if hasattr(array, "__cuda_array_interface__"):
            memory = np.asarray(types.SimpleNamespace(__array_interface__=array.__cuda_array_interface__))
            return ndarray(memory, driver=cupy.gpu, mem=UnownedMemory())
        made = empty(np.shape(array), np.asarray(array).dtype)
        made.memory[...] = array
        return made

    def get_current_stream() -> Stream:
        return cupy.gpu.streams[-1] if cupy.gpu.streams else default

    def alloc_pinned_memory(nbytes: int):
        made = (ctypes.c_byte * max(nbytes, 1))()
        cupy.pinned.append((ctypes.addressof(made), ctypes.addressof(made) + nbytes))
        return made

    def pointer_attributes(pointer: int):
        return types.SimpleNamespace(type=1 if any(start <= pointer < stop for start, stop in cupy.pinned) else 0)

    default = Stream(cupy.gpu)
    cupy.pinned = []
    cupy.empty, cupy.asarray = empty, asarray
    cupy.from_dlpack = lambda x: ndarray(np.from_dlpack(x.memory), driver=cupy.gpu, mem=UnownedMemory())
    cupy.broadcast_to = lambda x, shape: ndarray(np.broadcast_to(x.memory, shape), x)
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: 3 << 20, total_bytes=lambda: 5 << 20)
    cupy.cuda = types.SimpleNamespace(
        Device=Device, Event=Event, get_current_stream=get_current_stream, alloc_pinned_memory=alloc_pinned_memory,
        Stream=lambda non_blocking=False: Stream(cupy.gpu, next(numbers), non_blocking),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError, UnownedMemory=UnownedMemory),
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
        runtime=types.SimpleNamespace(driverGetVersion=lambda: driver, runtimeGetVersion=lambda: runtime,
                                      getDeviceCount=lambda: count, getDevice=lambda: 0, CUDARuntimeError=CUDARuntimeError,
                                      pointerGetAttributes=pointer_attributes,
                                      memGetInfo=lambda: (7 << 20, 9 << 20)),
    )  # fmt: skip
    return cupy


__all__ = ["module", "ndarray"]
