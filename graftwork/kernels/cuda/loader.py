"""From a kernel's source to a function that can be launched.

Sources are files beside this one. They are compiled for the exact architecture of the device and the machine code is kept
on disk, under a name made of everything it depends on: architecture, compiler version, options, and the text of the source
with all it includes. Processes that want the same kernel at once wait for one of them to compile it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DeviceError, KernelError
from ...folders import cache_folder
from . import nvrtc

try:
    import fcntl
except ImportError:  # a system without file locks: two processes may compile the same kernel, which costs time only
    fcntl = None  # type: ignore[assignment]

FOLDER = Path(__file__).parent
LEAST = 75  # Turing: the oldest architecture that kernels are tested for
_MAGIC = b"GRAFTWORK-CUBIN1"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
SLOW = 2.0  # seconds of compiling before the terminal hears about it


class Source(NamedTuple):
    """A kernel file and the macros it is compiled with."""

    file: str
    defines: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        """What the compiler gets: the macros, then the file."""
        return "".join(f"#define {name} {value}\n" for name, value in self.defines) + f'#include "{self.file}"\n'


# -- what the code depends on ------------------------------------------------------------------------------------------


@functools.cache
def _closure(file: str) -> tuple[tuple[str, bytes], ...]:
    """A file and everything it includes with quotes, each with its bytes; read once a process."""
    return _closure_of(file, FOLDER)


def _closure_of(file: str, folder: Path) -> tuple[tuple[str, bytes], ...]:
    found: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = folder / name
        if not path.is_file():
            raise KernelError(f"kernel source {name} (for {file}) is not in {folder}; is the installation complete?")
        found[name] = path.read_bytes()
        waiting.extend(_INCLUDE.findall(found[name].decode()))
    return tuple(sorted(found.items()))


def options(architecture: str) -> tuple[str, ...]:
    """What every kernel is compiled with."""
    return (
        f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", "-DNDEBUG", f"-I{FOLDER}",
        "--ptxas-options=-v",
    )  # fmt: skip


def key(source: Source, architecture: str) -> str:
    """A name for the compiled code: a digest of all that it depends on."""
    digest = hashlib.sha256(_MAGIC)
    flags = [o for o in options(architecture) if not o.startswith("-I")]
    for part in (architecture, *map(str, nvrtc.version()), *flags, source.text()):
        digest.update(part.encode() + b"\0")
    for name, content in _closure(source.file):
        digest.update(name.encode() + b"\0" + content + b"\0")
    return f"{Path(source.file).stem}-{architecture}-{digest.hexdigest()[:32]}"


def compile_source(source: Source, architecture: str, ptx: bool = False) -> nvrtc.Compiled:
    """Compile for an architecture such as "sm_90a" ("compute_90a" with `ptx`), without the cache."""
    return nvrtc.compile(source.text(), f"graftwork:{source.file}", options(architecture), ptx)


# -- the cache on disk -------------------------------------------------------------------------------------------------


def cubin(source: Source, architecture: str) -> bytes:
    """Machine code from the cache, or compiled and put there. A damaged entry is compiled again.

    A folder that cannot be written makes every process compile for itself; the first such call says so.
    """
    path = cache_folder("cuda") / f"{key(source, architecture)}.cubin"
    code = _read(path)
    if code is not None:
        return code
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_suffix(".lock")):
            code = _read(path)  # another process may have compiled it meanwhile
            if code is None:
                code = _compile_telling(source, architecture)
                _write(path, code)
            return code
    except OSError as error:
        _say_once(f"compiled CUDA kernels cannot be kept in {path.parent} ({error}); set GRAFTWORK_CACHE to a folder that can")
        return _compile_telling(source, architecture)


@functools.cache
def _say_once(message: str) -> None:
    print(f"graftwork: {message}", file=sys.stderr)


def _compile_telling(source: Source, architecture: str) -> bytes:
    start = time.monotonic()
    code = compile_source(source, architecture).code
    seconds = time.monotonic() - start
    if seconds > SLOW:
        print(f"graftwork: compiled {source.file} for {architecture} in {seconds:.1f} s (kept for next time)", file=sys.stderr)
    return code


def _read(path: Path) -> bytes | None:
    """An entry's code, or None where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:  # usually not there yet; otherwise it is compiled again, and writing it will say what is wrong
        return None
    head = len(_MAGIC) + 32
    code = content[head:]
    whole = content[: len(_MAGIC)] == _MAGIC and content[len(_MAGIC) : head] == hashlib.sha256(code).digest()
    return code if whole and code else None


def _write(path: Path, code: bytes) -> None:
    """All or nothing: a reader sees the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(code).digest() + code)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that dies."""
    with open(path, "a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- on a device -------------------------------------------------------------------------------------------------------


@functools.cache
def architecture(device: int) -> str:
    """The exact architecture of a GPU, such as "sm_86" or "sm_90a". DeviceError for one that cannot be served."""
    import cupy

    capability = cupy.cuda.Device(device).compute_capability  # "90"
    return architecture_for(int(capability), nvrtc.architectures(), nvrtc.version())


def architecture_for(number: int, known: tuple[int, ...], compiler: tuple[int, int]) -> str:
    """The same from a compute capability (10 * major + minor) and what the compiler knows."""
    if number < LEAST:
        raise DeviceError(
            f"this GPU has compute capability {number / 10:.1f}; Graftwork's kernels need {LEAST / 10:.1f} (Turing) or newer. "
            'Use device="cpu"'
        )
    if number not in known:
        raise DeviceError(
            f"this GPU has compute capability {number / 10:.1f}, which the installed NVRTC {compiler[0]}.{compiler[1]} cannot "
            f"compile for (it knows {', '.join(f'{k / 10:.1f}' for k in known)}); install a newer nvidia-cuda-nvrtc"
        )
    return "sm_90a" if number == 90 else f"sm_{number}"  # wgmma and TMA exist under the exact name only


_modules: dict[tuple[int, Source], Any] = {}
_functions: dict[tuple[int, Source, str], Any] = {}
STATIC_SHARED = 48 * 1024  # bytes; more has to be asked for
_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def function(device: int, source: Source, kernel: str, shared: int = 0) -> int:
    """The handle (CUfunction) of a kernel on a device, which must be the current one; compiled and loaded at first need.

    shared: bytes of dynamic shared memory it will be launched with.
    """
    try:
        found, limit = _functions[device, source, kernel]
    except KeyError:
        found, limit = _module(device, source).get_function(kernel), STATIC_SHARED
        _functions[device, source, kernel] = found, limit
    if shared > limit:
        _raise_limit(device, found, kernel, shared)
        _functions[device, source, kernel] = found, shared
    return found.ptr


def _raise_limit(device: int, found, kernel: str, shared: int) -> None:
    import cupy

    most = cupy.cuda.runtime.getDeviceProperties(device)["sharedMemPerBlockOptin"]
    if shared > most:
        raise KernelError(f"kernel {kernel} wants {shared} bytes of shared memory, a block on this GPU has {most}")
    cupy.cuda.driver.funcSetAttribute(found.ptr, _DYNAMIC_SHARED_SIZE, shared)


def _module(device: int, source: Source):
    if (device, source) not in _modules:
        import cupy

        exact = architecture(device)
        module = cupy.cuda.function.Module()
        try:
            module.load(cubin(source, exact))
        except cupy.cuda.driver.CUDADriverError as error:
            raise DeviceError(explain_load_failure(str(error), exact, nvrtc.version(), _driver_version())) from error
        _modules[device, source] = module
    return _modules[device, source]


def _driver_version() -> tuple[int, int]:
    import cupy

    number = cupy.cuda.runtime.driverGetVersion()
    return number // 1000, number % 1000 // 10


def explain_load_failure(error: str, exact: str, compiler: tuple[int, int], driver: tuple[int, int]) -> str:
    """Why the driver refuses a kernel, and what helps."""
    about = f"the driver refuses code for {exact} ({error})"
    if compiler[0] > driver[0]:
        return (
            f"{about}: it supports CUDA {driver[0]}.{driver[1]}, the kernels were compiled with NVRTC "
            f"{compiler[0]}.{compiler[1]}. "
            f"Install a newer driver, or graftwork[cuda{driver[0]}]"
        )
    versions = f"driver CUDA {driver[0]}.{driver[1]}, NVRTC {compiler[0]}.{compiler[1]}"
    return f"{about}; {versions}. Delete {cache_folder('cuda')} and try again"
