"""NVIDIA's run-time compiler, through its C interface: CUDA C++ in, machine code for one exact architecture out.

It needs neither a GPU nor a driver, only `libnvrtc`, which comes with CuPy's and PyTorch's wheels, with the wheel
`nvidia-cuda-nvrtc`, or with the CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import KernelError, MissingDependency

_MAJORS = (13, 12)  # of CUDA, the newest first
_TOOLKITS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/usr/lib/x86_64-linux-gnu")


class Compiled(NamedTuple):
    """Machine code (an ELF file) or PTX text, and what the compiler and the assembler said."""

    code: bytes
    log: str


def _candidates() -> Iterator[str]:
    """Files that may be the library: one named in GRAFTWORK_NVRTC, wheels, the toolkit, the loader's own search."""
    if os.environ.get("GRAFTWORK_NVRTC"):
        yield os.environ["GRAFTWORK_NVRTC"]
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for major in _MAJORS:
        for place in wheels:
            for folder in (place / f"cu{major}" / "lib", place / "cuda_nvrtc" / "lib"):
                yield str(folder / f"libnvrtc.so.{major}")
        roots = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
        for name in (*(os.path.join(root, "lib64") for root in roots), *_TOOLKITS):
            yield os.path.join(name, f"libnvrtc.so.{major}")
    found = ctypes.util.find_library("nvrtc")
    if found:
        yield found


@functools.cache
def library() -> ctypes.CDLL:
    """libnvrtc. Raises MissingDependency where none is found."""
    for path in _candidates():
        if os.path.isabs(path) and not os.path.exists(path):
            continue
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue  # of another machine, or without its companion library; the next may do
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        return found
    raise MissingDependency(
        "no NVRTC library (libnvrtc.so.13 or .12) found, which compiles CUDA kernels; install graftwork[cuda13], the wheel "
        "nvidia-cuda-nvrtc or the CUDA toolkit, or name the file in GRAFTWORK_NVRTC"
    )


def is_available() -> bool:
    """Whether kernels can be compiled here."""
    try:
        library()
    except MissingDependency:
        return False
    return True


def _check(status: int, what: str) -> None:
    if status:
        raise KernelError(f"NVRTC failed at {what}: {library().nvrtcGetErrorString(status).decode()}")


@functools.cache
def version() -> tuple[int, int]:
    """The compiler's (major, minor)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """Compute capabilities, as 10 * major + minor, that this compiler knows."""
    count = ctypes.c_int()
    _check(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    numbers = (ctypes.c_int * count.value)()
    _check(library().nvrtcGetSupportedArchs(numbers), "nvrtcGetSupportedArchs")
    return tuple(numbers)


def compile(text: str, name: str, options: Sequence[str], ptx: bool = False) -> Compiled:
    """Compile CUDA C++ `text`, called `name` in messages. Raises KernelError with the compiler's log."""
    lib, program = library(), ctypes.c_void_p()
    status = lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
    _check(status, "nvrtcCreateProgram")
    try:
        given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = lib.nvrtcCompileProgram(program, len(options), given)
        log = _read(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).rstrip(b"\0").decode(errors="replace")
        if status:
            raise KernelError(f"{name} does not compile with {' '.join(options)}:\n{log}")
        if ptx:
            return Compiled(_read(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX, program).rstrip(b"\0"), log)
        return Compiled(_read(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program), log)
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of, read, program) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)), size_of.__name__)
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer), read.__name__)
    return buffer.raw
