"""Compiles a .cu file with g++ into a shared library, cached by the content of everything that goes into it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[2] / "graftwork" / "kernels" / "cuda"
CACHE = Path(tempfile.gettempdir()) / f"graftwork-emulator-{os.getuid()}"

_FLAGS = [
    "-std=c++17", "-fPIC", "-w", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-stack-protector",
    "-U_FORTIFY_SOURCE", "-DNDEBUG", '-DGRAFTWORK_EMULATOR="ptx_emulated.h"',
]  # fmt: skip
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*|__cluster_dims__\s*\([^)]*\)\s*)*(\w+)\s*\('
)


class EmulatorError(Exception):
    """A kernel that does not compile, reads or writes where it must not, diverges, or never ends."""


def compiler() -> str | None:
    """The path of g++, or None where there is none (tests are then skipped)."""
    return shutil.which("g++")


@functools.cache
def _closure(file: Path, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """`file` and everything that it includes with quotes."""
    seen: dict[Path, None] = {}
    stack = [file]
    while stack:
        path = stack.pop()
        if path in seen:
            continue
        seen[path] = None
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            found = next((f / name for f in (path.parent, *folders) if (f / name).exists()), None)
            if found is not None:
                stack.append(found.resolve())
    return tuple(seen)


def _key(parts: list[str], files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(repr(parts).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(command: list[str], target: Path) -> None:
    """Runs the compiler into a temporary name and renames, so that two processes may build the same file at once."""
    CACHE.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        temporary = Path(folder) / target.name
        done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
        if done.returncode:
            raise EmulatorError(f"g++ refuses the kernel:\n{done.stderr[-4000:]}")
        temporary.replace(target)


RUNTIME = (HERE / "runtime.cpp", HERE / "runtime.h")


def _runtime(flags: list[str]) -> Path:
    target = CACHE / f"runtime-{_key(flags, RUNTIME)}.o"
    if not target.exists():
        _compile([compiler() or "g++", *flags, "-O2", "-c", str(RUNTIME[0])], target)
    return target


def build(
    file: str | Path, kernel: str, defines: dict | None = None, *, arch: int = 900, asan: bool = False
) -> tuple[Path, str]:
    """Builds `file` (a path, or a name in graftwork/kernels/cuda). Returns the library and the symbol that calls `kernel`.

    `kernel` is the name of an `extern "C"` kernel or an expression such as "scale<float, 4>". `defines` become -D options,
    `arch` becomes __CUDA_ARCH__ (750, 800, 900, ...). With `asan` the code is instrumented by AddressSanitizer.
    """
    path = Path(file) if Path(file).exists() else KERNELS / file
    path = path.resolve()
    flags = [*_FLAGS, f"-D__CUDA_ARCH__={arch}", *(f"-D{k}={v}" for k, v in sorted((defines or {}).items()))]
    if asan:
        flags += ["-fsanitize=address", "-g1"]
    includes = (path.parent, KERNELS, HERE)
    names = _KERNEL.findall(path.read_text())
    symbol = f"call_{kernel}" if kernel in names else "call_given"
    kernels = {f"call_{name}": name for name in names} if kernel in names else {"call_given": kernel}
    files = (
        *_closure(path, includes),
        *(_closure(HERE / "launcher.h", includes)),
        *_closure(HERE / "cuda_language.h", includes),
        HERE / "ptx_emulated.h",
        *RUNTIME,
    )
    calls = "".join(f'extern "C" void {s}(void* const* a) {{ emulator::call(&{k}, a); }}\n' for s, k in kernels.items())
    # A namespace without a name: two libraries in one process share nothing, not even the static variables of templates.
    source = f'#include "cuda_language.h"\n#include "launcher.h"\nnamespace {{\n#include "{path}"\n}}\n{calls}'
    target = CACHE / f"{path.stem}-{_key([*flags, source], files)}.so"
    if not target.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", suffix=".cpp", dir=CACHE) as unit:
            unit.write(source)
            unit.flush()
            include = [option for folder in includes for option in ("-I", str(folder))]
            runtime = _runtime([f for f in flags if not f.startswith("-D")])
            _compile([compiler() or "g++", *flags, *include, "-shared", unit.name, str(runtime)], target)
    return target, symbol
