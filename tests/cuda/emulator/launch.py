"""Launches a kernel of a built library with NumPy arrays."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from .build import HERE, EmulatorError, build, compiler


class Struct(bytes):
    """The bytes of a structure that a kernel takes by value."""


class _Argument(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_longlong), ("value", ctypes.c_byte * 8), ("bytes", ctypes.c_longlong)]


def _three(value) -> tuple[int, int, int]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return (*value, *(1,) * (3 - len(value)))


def _argument(value, keep: list) -> _Argument:
    argument = _Argument()
    kind, fmt, content = 0, ctypes.c_longlong, 0
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError(f"a kernel takes contiguous arrays; given strides {value.strides} for shape {value.shape}")
        kind, content, argument.bytes = 2, value.ctypes.data, value.nbytes
    elif isinstance(value, (bytes, bytearray)):
        buffer = ctypes.create_string_buffer(bytes(value), len(value))
        keep.append(buffer)
        kind, content, argument.bytes = 3, ctypes.addressof(buffer), len(value)
    elif isinstance(value, (float, np.floating)):
        kind, fmt, content = 1, ctypes.c_double, float(value)
    elif value is not None:
        content = int(value)
        content = content - (1 << 64) if content >= 1 << 63 else content
    argument.kind = kind
    ctypes.memmove(argument.value, ctypes.byref(fmt(content)), 8)
    return argument


_recent: dict[Path, ctypes.CDLL] = {}
_KEPT = 24  # libraries that keep the stacks of their fibers; each takes up to 2048 of the process's 65530 mappings


def _opened(library: Path) -> ctypes.CDLL:
    """The library, now the most recent; the one that was not used for longest gives back its stacks."""
    handle = _recent.pop(library, None) or ctypes.CDLL(str(library))
    _recent[library] = handle
    if len(_recent) > _KEPT:
        _recent.pop(next(iter(_recent))).emulator_release()
    return handle


def _run(library: Path, symbol: str, grid, block, shared_bytes, args, cluster, seed) -> None:
    handle = _opened(library)
    count, keep = ctypes.c_long(len(args)), []
    arguments = [_argument(value, keep) for value in args]
    pointers = (ctypes.c_void_p * (len(args) + 1))(ctypes.addressof(count), *map(ctypes.addressof, arguments))
    sizes = [(ctypes.c_uint * 3)(*_three(v)) for v in (grid, block, cluster)]
    error = ctypes.create_string_buffer(4000)
    body = ctypes.cast(getattr(handle, symbol), ctypes.c_void_p)
    failed = handle.emulator_launch(
        body, pointers, *sizes, ctypes.c_size_t(shared_bytes), ctypes.c_uint(seed), error, ctypes.c_size_t(len(error))
    )
    if failed:
        raise EmulatorError(error.value.decode(errors="replace"))


def emulate(
    file,
    kernel: str,
    grid,
    block,
    shared_bytes: int = 0,
    args=(),
    *,
    defines: dict | None = None,
    cluster=(1, 1, 1),
    seed: int = 0,
    arch: int = 900,
    asan: bool = False,
) -> None:
    """Runs one launch of `kernel` from the .cu `file` on the CPU; arrays in `args` are read and written in place.

    grid, block, cluster: an integer or up to three. args: NumPy arrays for pointers, None for a null pointer, numbers
    (converted to the parameter's type), `Struct` bytes for a structure by value. `seed` picks the order of blocks and warps
    and the delays of asynchronous copies. Raises EmulatorError: compile errors, divergence, deadlock, accesses out of
    bounds.
    """
    library, symbol = build(file, kernel, defines, arch=arch, asan=asan)
    if asan:
        _run_sanitized(library, symbol, grid, block, shared_bytes, args, cluster, seed)
    else:
        _run(library, symbol, grid, block, shared_bytes, args, cluster, seed)


def _run_sanitized(library, symbol, grid, block, shared_bytes, args, cluster, seed) -> None:
    """The same in a child process under AddressSanitizer, each array in an allocation of exactly its size."""
    runtime = subprocess.run(
        [compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=99",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder) / "request", Path(folder) / "reply"
        request.write_bytes(pickle.dumps((str(library), symbol, grid, block, shared_bytes, args, cluster, seed)))
        done = subprocess.run(
            [sys.executable, "-m", f"{HERE.name}.launch", str(request), str(reply)],
            cwd=HERE.parent,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = [
                line
                for line in done.stderr.splitlines()
                if "ERROR: AddressSanitizer" in line or " #0 " in line or " #1 " in line
            ]
            raise EmulatorError("\n".join(lines[:3]) or done.stderr[-2000:])
        error, arrays = pickle.loads(reply.read_bytes())
    if error:
        raise EmulatorError(error)
    for mine, theirs in zip(args, arrays, strict=True):
        if isinstance(mine, np.ndarray) and mine.flags.writeable:
            mine[...] = theirs


def _exact_copy(array: np.ndarray, libc) -> np.ndarray:
    """A copy in memory from malloc, with red zones at both ends."""
    address = libc.malloc(ctypes.c_size_t(max(array.nbytes, 1)))
    memory = np.frombuffer((ctypes.c_byte * array.nbytes).from_address(address), array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def _child(request: str, reply: str) -> None:
    library, symbol, grid, block, shared_bytes, args, cluster, seed = pickle.loads(Path(request).read_bytes())
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    args = [_exact_copy(a, libc) if isinstance(a, np.ndarray) and a.size else a for a in args]
    error = None
    try:
        _run(library, symbol, grid, block, shared_bytes, args, cluster, seed)
    except EmulatorError as problem:
        error = str(problem)
    arrays = [np.array(a) if isinstance(a, np.ndarray) else None for a in args]
    Path(reply).write_bytes(pickle.dumps((error, arrays)))


if __name__ == "__main__":
    _child(*sys.argv[1:])
