"""Shared by the tests of tensor-core kernels: number formats, random operands, running launches on the emulator."""

from __future__ import annotations

import numpy as np
from emulator import Struct, emulate, tensor_map

from graftwork.kernels.cuda.arguments import BYTES
from graftwork.kernels.cuda.mma import Conv
from graftwork.kernels.cuda.tensor_map import TensorMap
from graftwork.kernels.reference import conv as reference

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
            launch.file,
            launch.kernel,
            launch.grid,
            launch.block,
            launch.shared,
            [given(a) for a in launch.arguments],
            defines={**dict(launch.defines), **more.get("defines", {})},
            cluster=(launch.cluster, 1, 1),
            seed=seed,
            arch=10 * arch,
            asan=more.get("asan", False),
        )
        done.append(launch)
    return done


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference relative to the norm of what was expected; a NaN anywhere gives NaN."""
    return float(np.linalg.norm(values(got) - expected) / max(np.linalg.norm(expected), 1e-30))


def check(got: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """int8 products are exact, the others within RTOL."""
    assert error(got, expected) <= RTOL[dtype]


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins on a multiple of 64 bytes, as allocations of a GPU do."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Gemm:
    """Operands, output and float64 result of out[batch, m, n] = A B; `arguments` go to the planners' `gemm`."""

    def __init__(self, dtype, m, n, k, *, a_k=True, b_k=True, batch=1, out_dtype=None, seed=0):
        rng = np.random.default_rng(seed)
        self.dtype, self.out_dtype = dtype, out_dtype or ("float32" if dtype == "int8" else dtype)
        self.a = aligned(operand(rng, dtype, batch, *((m, k) if a_k else (k, m))))
        self.b = aligned(operand(rng, dtype, batch, *((n, k) if b_k else (k, n))))
        self.out = aligned(empty(self.out_dtype, batch, m, n))
        left, right = values(self.a), values(self.b)
        self.expected = (left if a_k else left.transpose(0, 2, 1)) @ (right.transpose(0, 2, 1) if b_k else right)
        self.arguments = {
            "m": m,
            "n": n,
            "k": k,
            "dtype": dtype,
            "out_dtype": self.out_dtype,
            "a_k": a_k,
            "b_k": b_k,
            "lda": self.a.shape[2],
            "ldb": self.b.shape[2],
            "ldc": n,
            "batch": batch,
            "batch_strides": (m * k, n * k, m * n),
            "workspace": Workspace(),
        }

    def launches(self, planner, **more):
        return planner(self.a, self.b, self.out, **self.arguments, **more)

    def check(self) -> None:
        check(self.out, self.expected, self.dtype)


class ConvCase:
    """One convolution: operands, and the three results from the reference kernels in float64."""

    def __init__(self, dtype, x, w, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1, seed=0):
        rng = np.random.default_rng(seed)
        size = [
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(x[1:3], padding, dilation, w[:2], stride, strict=True)
        ]
        self.dtype = dtype
        self.conv = Conv(x, w[:2], (x[0], *size, w[3]), stride, padding, dilation, groups)
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.x, self.w = aligned(operand(rng, dtype, *x)), aligned(operand(rng, dtype, *w))
        self.g = aligned(operand(rng, dtype, *self.conv.out))

    def expected(self, which: str) -> np.ndarray:
        if which == "forward":
            out = np.empty(self.conv.out)
            reference.conv2d(values(self.x), values(self.w), out=out, **self.geometry)
        elif which == "input":
            out = np.empty(self.x.shape)
            reference.conv2d_input_grad(values(self.g), values(self.w), out=out, input_shape=self.x.shape, **self.geometry)
        else:
            out = np.empty(self.w.shape)
            reference.conv2d_weight_grad(
                values(self.x), values(self.g), out=out, kernel_shape=self.w.shape[:2], **self.geometry
            )
        return out

    def check(self, which: str, launches_of, run_launches, out_dtype=None, **more) -> None:
        """launches_of(a, b, out, conv, ...) plans; run_launches runs what it plans."""
        kind = out_dtype or self.dtype
        a, b = {"forward": (self.x, self.w), "input": (self.g, self.w), "weight": (self.x, self.g)}[which]
        expected = self.expected(which)
        out = aligned(empty(kind, *expected.shape))
        run_launches(launches_of(a, b, out, self.conv, out_dtype=kind, workspace=Workspace(), **more))
        check(out, expected, self.dtype)

    def packed(self) -> np.ndarray:
        """The weights as (kh, kw, out, in)."""
        return aligned(np.ascontiguousarray(self.w.transpose(0, 1, 3, 2)))
