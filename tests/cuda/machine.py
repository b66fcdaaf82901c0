"""The emulator as a machine for `graftwork.kernels.cuda.launch`: the kernels' own launch code runs on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from emulator import Struct, emulate, tensor_map

from graftwork.kernels.cuda.arguments import BYTES
from graftwork.kernels.cuda.launch import Pointers, Step, View
from graftwork.kernels.cuda.tensor_map import TensorMap


class EmulatorMachine:
    """Runs steps on the CPU. `steps` counts them."""

    launch: Any = None  # takes a launch and its pointers, and may write them down (`fake_cupy.Driver`)

    def __init__(self, capability: int = 90, processors: int = 4, seed: int = 0):
        self.capability, self.processors, self.seed = capability, processors, seed
        self.steps, self.chip = 0, ""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        made = np.empty(shape, dtype)
        made.reshape(-1).view(np.uint8)[:] = 0xC3  # garbage, so that a kernel that relies on zeros is seen
        return made

    def bind(self, step: Step, pointers: dict[int, int]) -> Callable[[], None]:
        def run() -> None:
            self.run(step, pointers)

        return run if self.launch is None else lambda: self.launch(run, pointers)

    def run(self, step: Step, pointers: dict[int, int]) -> None:
        self.steps += 1
        arguments = [_argument(a, pointers) for a in step.arguments]
        emulate(step.source.file, step.kernel, step.grid, step.block, step.shared, arguments, defines=dict(step.source.defines),
                arch=self.capability * 10, seed=self.seed, cluster=(step.cluster, 1, 1))  # fmt: skip


def _argument(value: Any, pointers: dict[int, int]) -> Any:
    if isinstance(value, TensorMap):
        view = value.array
        address = pointers[view.slot] + view.offset * view.dtype.itemsize
        size = BYTES[value.dtype]  # the view may be scratch of bytes
        return Struct(tensor_map.encode(value, address, size))
    if isinstance(value, Pointers):
        return Struct(value.addresses(pointers).tobytes())
    if isinstance(value, View):
        address = pointers[value.slot] + value.offset * value.dtype.itemsize
        return np.ctypeslib.as_array((ctypes.c_byte * 1).from_address(address))
    return Struct(value if isinstance(value, bytes) else value.tobytes()) if isinstance(value, (np.void, bytes)) else value
