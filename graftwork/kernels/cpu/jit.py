"""Numba's `njit` with a disk cache that several processes can share and that notices every edit.

Two gaps in Numba's cache are closed here. It numbers its files without a lock, so two processes that compile different
signatures of one function at once can leave an index that points at the wrong code. And it looks at the function's own
source file only, although a kernel is compiled together with functions of its neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

try:
    import fcntl
except ImportError:  # Windows has no flock; the gap stays open there
    fcntl = None  # type: ignore[assignment]

STAMP = tuple(sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in Path(__file__).parent.glob("*.py")))


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


def njit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit(**options)`, cached on disk until any file of this folder changes."""

    def compile_lazily(function: Callable) -> Any:
        dispatcher = numba.njit(cache=True, **options)(function)
        files = dispatcher._cache._cache_file
        files._source_stamp = (files._source_stamp, STAMP)
        return dispatcher

    return compile_lazily
