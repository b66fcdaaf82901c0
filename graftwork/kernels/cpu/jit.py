"""Numba's `njit` with a disk cache that several processes can share, that notices every edit, and that may be missing.

Four gaps in Numba's cache are closed here. It numbers its files without a lock, so two processes that compile different
signatures of one function at once can leave an index that points at the wrong code. It looks at the function's own source
file only, although a kernel is compiled together with functions of its neighbours. It raises where the folder is full or
read-only, although everything would work without it. And it names compiled functions by a count that begins with 1 in every
process: two that were compiled in different processes, from one function with different intrinsics (Winograd's transforms), may
bear one name, and then a third process that loads both runs the first one's code for both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import bytecode, caching

try:
    import fcntl
except ImportError:  # Windows has no flock; the gap stays open there
    fcntl = None  # type: ignore[assignment]

STAMP = tuple(sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in Path(__file__).parent.glob("*.py")))


def count_apart() -> None:
    """Number compiled functions from here on as no other process does."""
    bytecode.FunctionIdentity._unique_ids = itertools.count(secrets.randbits(56))


count_apart()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=count_apart)


class SharedCacheFile(caching.IndexDataCacheFile):
    """Numba's index and data files, read and written under one lock a function."""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            handle = open(f"{self._index_path}.lock", "ab") if fcntl else None  # noqa: SIM115 - closed below
        except OSError:  # a read-only folder: nobody writes there, so reading needs no lock
            handle = None
        try:
            if handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            if handle:
                handle.close()

    def save(self, key: Any, data: Any) -> None:
        with self._locked():
            super().save(key, data)

    def load(self, key: Any) -> Any:
        with self._locked():
            return super().load(key)


caching.IndexDataCacheFile = SharedCacheFile


class ForgivingCache(caching.FunctionCache):
    """Where compiled code cannot be kept, it is compiled anew in every process, and one warning says why."""

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(error.strerror or str(error))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            _warn_once(error.strerror or str(error))
            return None


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"compiled kernels cannot be kept on disk ({problem}); every process compiles them anew. Make the folder writable, "
        "free some space, or set NUMBA_CACHE_DIR to another folder",
        stacklevel=5,
    )


def disk_cache(function: Callable) -> Any:
    """A cache for one function's compiled code that is void as soon as any file of this folder changes."""
    try:
        kept = ForgivingCache(function)
    except RuntimeError:
        _warn_once("there is no folder that may be written to")
        return caching.NullCache()
    files = kept._cache_file
    files._source_stamp = (files._source_stamp, STAMP)
    return kept


def njit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit(**options)`, cached on disk until any file of this folder changes."""

    def compile_lazily(function: Callable) -> Any:
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = disk_cache(function)
        return dispatcher

    return compile_lazily
