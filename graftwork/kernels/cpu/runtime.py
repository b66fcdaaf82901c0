"""Tasks and the threads that run them: how a whole network runs on the CPU without returning to Python.

A **task** is a compiled function `fn(words, part)`. `words` points to its arguments as int64 words (addresses of arrays,
integers, the bits of floats); `part` says which of its independent shares to compute. A **row** is one call: the task, its
words, and how many parts it has. `Program` runs rows one after another in a single call that holds no Python lock, each row's
parts spread over the pool's threads.

The pool's threads are Python threads that never come back from compiled code. They claim parts from one word that holds
(job number, parts, next part), so that a late thread can never claim a part of a job that is over. When idle they spin for
some microseconds, then sleep in the kernel (futex). One caller at a time has the pool; another that runs meanwhile computes
all parts itself, so there are never more busy threads than asked for.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from ...errors import ConfigError
from ..plan import Plan, aligned_empty
from . import atomic
from .jit import disk_cache, njit

_SIGNATURE = normalize_signature(types.void(atomic.WORDS, types.int64))
_OPTIONS = {"boundscheck": False, "error_model": "numpy"}


class _Compiled(CFunc):
    """Says on the terminal when a kernel is compiled and not just loaded: that takes a second or two."""

    def _compile_uncached(self) -> Any:
        shown = sys.stderr is not None and sys.stderr.isatty()
        if shown:
            note = f"\rgraftwork: compiling {self.__name__} (first use on this machine)\033[K"
            print(note, end="", file=sys.stderr, flush=True)
        try:
            return super()._compile_uncached()
        finally:
            if shown:
                print("\r\033[K", end="", file=sys.stderr, flush=True)


class Task:
    """A function of (words, part), compiled at its first use and kept on disk."""

    __slots__ = ("_compiled", "function", "lock")

    def __init__(self, function: Callable):
        self.function, self.lock = function, threading.Lock()
        self._compiled: CFunc | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def address(self) -> int:
        """Of the machine code."""
        if self._compiled is None:
            with self.lock:
                if self._compiled is None:
                    self._compiled = self._compile()
        return self._compiled.address

    def _compile(self) -> CFunc:
        compiled = _Compiled(self.function, _SIGNATURE, {}, dict(_OPTIONS))
        compiled._cache = disk_cache(self.function)
        compiled.compile()
        return compiled

    def __repr__(self) -> str:
        return f"<task {self.name}>"


task = Task  # as a decorator


class Row(NamedTuple):
    """One call of a task. `arrays`: which word is the address of which array."""

    task: Task
    parts: int
    words: np.ndarray
    arrays: tuple[tuple[int, np.ndarray], ...]


def row(task: Task, parts: int, *values: Any) -> Row:
    """A call of `task` with arrays (by address; None is 0), integers and floats (by their bits) as its words."""
    words: list[int] = []
    arrays = []
    for value in values:
        if type(value) is int:
            words.append(value)
        elif isinstance(value, np.ndarray):
            arrays.append((len(words), value))
            words.append(value.__array_interface__["data"][0])
        elif isinstance(value, (float, np.floating)):
            words.append(struct.unpack("<q", struct.pack("<d", value))[0])
        else:
            words.append(int(value or 0))
    return Row(task, max(int(parts), 1), np.array(words, np.int64), tuple(arrays))


class Program:
    """Rows ready to run. `words_of(i)` is where row i's words stand, to be changed between runs."""

    __slots__ = ("count", "rows", "table")

    def __init__(self, rows: Sequence[Row]):
        self.rows, self.count = list(rows), len(rows)
        entries = [(r.task.address, r.words.__array_interface__["data"][0], r.parts) for r in self.rows]
        self.table = np.array(entries, np.int64).reshape(-1, 3)

    def run(self, times: np.ndarray | None = None) -> None:
        """Run all rows. times: int64, one longer than the rows; receives the clock in nanoseconds before each row and
        after the last."""
        _run(self.table, self.count, _pool().address, _NO_TIMES if times is None else times)


_NO_TIMES = np.empty(0, np.int64)


def run(rows: Sequence[Row]) -> None:
    """Run rows once."""
    Program(rows).run()


def call(plan: Plan, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Carry out a plan at once on plain arrays: pack what it wants packed, find it scratch memory, bind and run."""
    rows: list[Row] = []
    ready = [np.ascontiguousarray(a) for a in inputs]
    for i, pack in plan.packs.items():
        packed = aligned_empty(pack.spec.nbytes).view(pack.spec.dtype).reshape(pack.spec.shape)
        rows += pack.bind(ready[i], packed)
        ready[i] = packed
    workspace = aligned_empty(plan.workspace) if plan.workspace else None
    run(rows + plan.bind(ready, outputs, workspace))


# -- the pool ----------------------------------------------------------------------------------------------------------
# Byte offsets of the pool's words; each lies on a cache line of its own.
_TICKET, _FUNCTION, _WORDS, _DONE, _OWNED, _SLEEPERS, _EPOCH, _STOP, _WORKERS = range(0, 9 * 128, 128)
_SPINS = 4000  # some twenty microseconds: the gap between two rows; longer ones are slept through
_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.CPointer(types.int64)))

_wait_while, _wake_all = njit(nogil=True)(atomic.wait_while), njit(nogil=True)(atomic.wake_all)


@njit(nogil=True)
def _claim(pool):
    """The next part of the current job, or -1. Ticket: job number << 32 | parts << 16 | next part."""
    while True:
        ticket = atomic.load(pool + _TICKET)
        following, parts = ticket & 0xFFFF, (ticket >> 16) & 0xFFFF
        if following >= parts:
            return -1
        if atomic.swap_if(pool + _TICKET, ticket, ticket + 1):
            return following


@njit(nogil=True)
def _work(pool):
    """Compute parts of the current job until none is left."""
    while True:
        part = _claim(pool)
        if part < 0:
            return
        atomic.invoke(atomic.load(pool + _FUNCTION), atomic.load(pool + _WORDS), part)
        atomic.add(pool + _DONE, 1)


@njit(nogil=True)
def _worker(pool):
    """The life of a pool's thread."""
    seen = atomic.load(pool + _TICKET) >> 32
    idle = 0
    while atomic.load(pool + _STOP) == 0:
        job = atomic.load(pool + _TICKET) >> 32
        if job != seen:
            seen, idle = job, 0
            _work(pool)
            continue
        idle += 1
        if idle < _SPINS:
            atomic.pause()
            continue
        epoch = atomic.load(pool + _EPOCH)
        atomic.add(pool + _SLEEPERS, 1)
        if atomic.load(pool + _TICKET) >> 32 == seen and atomic.load(pool + _STOP) == 0:
            _wait_while(pool + _EPOCH, epoch & 0xFFFFFFFF)
        atomic.add(pool + _SLEEPERS, -1)
        idle = 0


@njit(nogil=True)
def _share(pool, function, words, parts):
    """Run one job with the pool's threads; returns when all its parts are done."""
    atomic.store(pool + _FUNCTION, function)
    atomic.store(pool + _WORDS, words)
    atomic.store(pool + _DONE, 0)
    job = ((atomic.load(pool + _TICKET) >> 32) + 1) & 0x7FFFFFFF
    atomic.store(pool + _TICKET, (job << 32) | (parts << 16))
    if atomic.load(pool + _SLEEPERS) > 0:
        atomic.add(pool + _EPOCH, 1)
        _wake_all(pool + _EPOCH)
    _work(pool)
    spins = 0
    while atomic.load(pool + _DONE) < parts:
        atomic.pause()
        spins += 1
        if spins > 20000:  # the other thread has lost its core: let it have this one
            atomic.yield_core()


@njit(nogil=True)
def _run(table, count, pool, times):
    shared = atomic.load(pool + _WORKERS) > 0 and atomic.swap_if(pool + _OWNED, 0, 1)
    clock = np.empty(2, np.int64)
    for i in range(count):
        if times.size:
            times[i] = _now(clock)
        function, words, parts = table[i, 0], table[i, 1], table[i, 2]
        if parts > 1 and shared:
            _share(pool, function, words, parts)
        else:
            for part in range(parts):
                atomic.invoke(function, words, part)
    if times.size:
        times[count] = _now(clock)
    if shared:
        atomic.store(pool + _OWNED, 0)


@njit(nogil=True)
def _now(clock):
    _clock(1, clock.ctypes)
    return clock[0] * 1_000_000_000 + clock[1]


class _Pool:
    """`threads - 1` threads beside the caller, and the words they share with it."""

    def __init__(self, threads: int):
        raw = np.zeros(9 * 16 + 16, np.int64)
        self.memory = raw  # kept alive as long as any thread may read it
        self.address = -(-raw.__array_interface__["data"][0] // 128) * 128
        self.threads = threads
        for i in range(threads - 1):
            worker = threading.Thread(target=self._live, daemon=True, name=f"graftwork-{i + 1}")
            worker.start()
        self._set(_WORKERS, threads - 1)

    def _live(self) -> None:
        memory = self.memory  # the last thread to leave frees it
        _worker(self.address)
        del memory

    def _set(self, offset: int, value: int) -> None:
        _store(self.address + offset, value)

    def stop(self) -> None:
        """Let the threads end; the pool must not be used afterwards."""
        self._set(_STOP, 1)
        _store_and_wake(self.address + _EPOCH)


@njit(nogil=True)
def _store(address, value):
    atomic.store(address, value)


@njit(nogil=True)
def _store_and_wake(address):
    atomic.add(address, 1)
    _wake_all(address)


_lock = threading.Lock()
_current: _Pool | None = None
_wanted = 0


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads() -> int:
    """How many threads compute together."""
    return _wanted or available_cores()


def set_num_threads(count: int) -> None:
    """Compute with `count` threads from now on; 1 keeps everything on the caller's. Raises ConfigError below 1.

    More threads than cores are allowed and slow. What was planned for another number of threads still runs.
    """
    global _current, _wanted
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1024:
        raise ConfigError(f"set_num_threads: {count!r}; expected an integer from 1 to 1024")
    with _lock:
        _wanted = count
        if _current is not None and _current.threads != count:
            _current.stop()
            _current = None


def _pool() -> _Pool:
    global _current
    pool = _current
    if pool is None:
        with _lock:
            if _current is None:
                _current = _Pool(num_threads())
            pool = _current
    return pool


def _forget() -> None:
    """In a forked child: the parent's threads do not exist here."""
    global _current, _lock
    _lock, _current = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

__all__ = ["Program", "Row", "Task", "available_cores", "call", "num_threads", "row", "run", "set_num_threads", "task"]
