"""Shared by the tests of tensor-core kernels: number formats, random operands, running launches on the emulator."""

from __future__ import annotations

import numpy as np
from emulator import Struct, emulate, tensor_map

from graftwork.kernels.cuda.arguments import BYTES
from graftwork.kernels.cuda.tensor_map import TensorMap

RTOL = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2, "int8": 0}  # norm-wise, against float64; float32 stands for tf32


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """An array of numbers as a kernel takes it."""
    return to_bf16(x) if dtype == "bfloat16" else np.ascontiguousarray(x, dtype)


def values(x: np.ndarray) -> np.ndarray:
    """The float64 values of an array as a kernel takes it (uint16 holds bfloat16)."""
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if x.dtype == np.uint16 else x.astype(np.float64)


def operand(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    return rng.integers(-20, 20, shape).astype(np.int8) if dtype == "int8" else stored(rng.normal(size=shape), dtype)


def empty(dtype: str, *shape: int) -> np.ndarray:
    """An output full of what no kernel writes."""
    array = np.empty(shape, np.uint16 if dtype == "bfloat16" else dtype)
    array.view(np.uint8)[...] = 0xFF if dtype != "int8" else 0x55
    return array


class Workspace:
    """Hands out scratch memory and keeps it alive."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []

    def __call__(self, size: int) -> np.ndarray:
        self.kept.append(np.full(size, 0xFF, np.uint8))
        return self.kept[-1]


def given(argument):
    """An argument of a Launch as the emulator takes it."""
    if isinstance(argument, TensorMap):
        return Struct(tensor_map.encode(argument, argument.array.ctypes.data, BYTES[argument.dtype]))
    return Struct(argument) if isinstance(argument, bytes) else argument


def run(launches, *, arch: int = 80, seed: int = 0, **more) -> list:
    """Runs launches on the emulator; returns them."""
    done = []
    for launch in launches:
        emulate(
            launch.file, launch.kernel, launch.grid, launch.block, launch.shared, [given(a) for a in launch.arguments],
            defines={**dict(launch.defines), **more.get("defines", {})}, cluster=(launch.cluster, 1, 1), seed=seed, arch=10 * arch,
            asan=more.get("asan", False),
        )  # fmt: skip
        done.append(launch)
    return done


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference relative to the norm of what was expected; a NaN anywhere gives NaN."""
    return float(np.linalg.norm(values(got) - expected) / max(np.linalg.norm(expected), 1e-30))


def check(got: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """int8 products are exact, the others within RTOL."""
    assert error(got, expected) <= RTOL[dtype]
