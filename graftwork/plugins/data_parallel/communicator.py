"""What ranks say to each other: non-blocking collectives with waits that end.

`Communicator` is the interface, `Alone` a run of one process, `MpiCommunicator` MPI through mpi4py; `nccl.py` holds NCCL's.
Every wait polls. While it does, it answers other ranks that ask where this one is; when its time is over it asks them. Who does
not answer is dead or hangs, who answers from elsewhere runs something else: both are named, and nobody waits for ever.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...errors import ConfigError, MissingDependency, RankError
from .supervisor import FOLDER, Status

GRACE = 2.0  # seconds for answers, once a wait has taken too long
SPIN = 200  # polls before a wait gives its core away: other ranks may need it to arrive


class Request(Protocol):
    """A collective under way."""

    def test(self) -> bool: ...


class Communicator:
    """One process of `size`, number `rank`. Arrays are contiguous; those of one collective have equal sizes on all ranks."""

    rank, size = 0, 1
    hosts: Sequence[str] = ("localhost",)
    device = "cpu"
    where: dict[str, Any] = {}

    def start_sum(self, send: Any, receive: Any) -> Request:
        """Begin to add up `send` over all ranks into `receive`."""
        raise NotImplementedError(f"{type(self).__name__} cannot sum")

    def start_exchange(self, send: np.ndarray, receive: np.ndarray) -> Request:
        """Begin to send part i of `send` (equal parts) to rank i; the parts for this rank arrive in `receive`, by rank."""
        raise NotImplementedError(f"{type(self).__name__} cannot exchange")

    def start_gather(self, send: np.ndarray, receive: np.ndarray) -> Request:
        """Begin to collect every rank's `send` in `receive` (size times as long), by rank."""
        raise NotImplementedError(f"{type(self).__name__} cannot gather")

    def broadcast(self, array: Any, what: str) -> None:
        """Overwrite `array` with rank 0's."""

    def wait(self, request: Request, what: str) -> None:
        """Wait for a collective. Raises RankError, with the ranks that are missing, when that takes too long."""

    def gather(self, value: Any, what: str) -> list[Any]:
        """Every rank's JSON-able `value`, by rank."""
        return [value]

    def at(self, **where: Any) -> None:
        """Note where this rank is (step, tensor), for those who look for it."""

    def describe(self, rank: int) -> str:
        return f"rank {rank} (host {self.hosts[rank]})"


class Done:
    """A request that was never needed."""

    def test(self) -> bool:
        return True


class Alone(Communicator):
    """A run of one process: sums are copies."""

    def start_sum(self, send, receive):
        receive[...] = send
        return Done()

    start_exchange = start_gather = start_sum


class _MpiRequest:
    def __init__(self, request: Any):
        self.test = request.Test


class MpiCommunicator(Communicator):
    """All processes of MPI's world. timeout: seconds that a wait may take."""

    INQUIRY, ANSWER = 71, 72

    def __init__(self, timeout: float = 300.0):
        mpi = import_mpi()
        self._world, self._mpi = mpi.COMM_WORLD.Dup(), mpi
        # Apart from the data, so that a rank that compares models meets nobody who sums gradients: both wait, and are named
        self._control, self._talk = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self.rank, self.size, self.timeout = self._world.Get_rank(), self._world.Get_size(), timeout
        self._failed = Path(folder) / "failed" if (folder := os.environ.get(FOLDER)) else None
        self._status = Status(folder, self.rank)
        self._sent: list[Any] = []
        self.where = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "step": 0, "tensor": ""}
        self.hosts = [self.where["host"]] * self.size
        self.at()
        self.hosts = self.gather(self.where["host"], "the start of all ranks")

    def start_sum(self, send, receive):
        return self._begin(self._world.Iallreduce, send, receive)

    def start_exchange(self, send, receive):
        return self._begin(self._world.Ialltoall, _raw(send), _raw(receive))

    def start_gather(self, send, receive):
        return self._begin(self._world.Iallgather, _raw(send), _raw(receive))

    def broadcast(self, array, what):
        self.wait(self._begin(self._control.Ibcast, _raw(array)), what)

    def gather(self, value, what):
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self.wait(self._collect(np.array([text.size], np.int64), lengths), what)
        longest = int(lengths.max())
        padded, received = np.zeros(longest, np.uint8), np.empty((self.size, longest), np.uint8)
        padded[: text.size] = text
        self.wait(self._collect(padded, received), what)
        return [json.loads(row[:n].tobytes()) for row, n in zip(received, lengths, strict=True)]

    def _collect(self, send: np.ndarray, receive: np.ndarray) -> Request:
        return self._begin(self._control.Iallgather, _raw(send), _raw(receive))

    def _begin(self, collective: Callable[..., Any], *arrays: Any) -> Request:
        try:
            return _MpiRequest(collective(*arrays))
        except self._mpi.Exception as error:
            raise self._broken(f"{collective.__name__} to begin", error) from error

    def at(self, **where):
        self.where.update(where)
        self._status.write(self.where)

    # -- waiting -----------------------------------------------------------------------------------------------------
    def wait(self, request, what):
        start, polls = time.monotonic(), 0
        while not self._arrived(request, what):
            polls += 1
            if polls < SPIN:
                os.sched_yield()
                continue
            time.sleep(5e-5)
            if polls % 64 == 0:
                self._answer(what)
                self._ask_launcher(what)
                if time.monotonic() - start > self.timeout:
                    raise RankError(self._missing(what))

    def _arrived(self, request: Request, what: str) -> bool:
        try:
            return request.test()
        except self._mpi.Exception as error:
            raise self._broken(what, error) from error

    def _broken(self, what: str, error: Exception) -> RankError:
        """What to say when a connection broke; raises what the launcher says, which may know more in a moment."""
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            self._ask_launcher(what)
            time.sleep(0.05)
        return RankError(f"{self.describe(self.rank)} waits for {what} in step {self.where['step']}; MPI says: {error}; "
                         "another rank is gone, or the network is")  # fmt: skip

    def _answer(self, what: str) -> None:
        """Tell whoever asks where this rank waits."""
        while self._talk.Iprobe(tag=self.INQUIRY):
            source = self._talk.recv(tag=self.INQUIRY)
            here = {"step": self.where["step"], "waits": what}
            self._sent = [*self._sent[-64:], self._talk.isend(here, dest=source, tag=self.ANSWER)]

    def _ask_launcher(self, what: str) -> None:
        if self._failed is not None and self._failed.exists():
            raise RankError(f"{self.describe(self.rank)} stops, waiting for {what}: {self._failed.read_text()}")

    def _missing(self, what: str) -> str:
        """Ask all ranks where they are, and say who is not here."""
        others = [r for r in range(self.size) if r != self.rank]
        self._sent += [self._talk.isend(self.rank, dest=r, tag=self.INQUIRY) for r in others]
        found: dict[int, dict] = {}
        status, end = self._mpi.Status(), time.monotonic() + GRACE
        while len(found) < len(others) and time.monotonic() < end:
            self._answer(what)
            if self._talk.Iprobe(tag=self.ANSWER, status=status):
                found[status.Get_source()] = self._talk.recv(source=status.Get_source(), tag=self.ANSWER)
            time.sleep(1e-3)
        silent = [self.describe(r) for r in others if r not in found]
        elsewhere = [f"{self.describe(r)} waits for {w['waits']} of step {w['step']}"
                     for r, w in found.items() if w["waits"] != what]  # fmt: skip
        blame = [f"no answer from {', '.join(silent)}: dead, or it hangs"] if silent else []
        blame += [f"{'; '.join(elsewhere)}: it runs something else"] if elsewhere else []
        return (f"{self.describe(self.rank)} waited {self.timeout:g} s for {what} in step {self.where['step']}; "
                f"{'; '.join(blame) or 'all ranks answer, so the network is slow or stuck'}. "
                "A longer limit: graftwork launch --timeout SECONDS")  # fmt: skip


def _raw(array: np.ndarray) -> Any:
    """The bytes of a contiguous array: MPI need not know its element type."""
    return array.reshape(-1).view(np.uint8)


def import_mpi() -> Any:
    """mpi4py's MPI. Raises MissingDependency where it or the MPI library is not installed."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise MissingDependency(
            f"several processes need mpi4py and an MPI library ({error}): pip install 'graftwork[mpi]'"
        ) from error
    return MPI


def open_communicator(engine: str = "auto", timeout: float = 300.0, launched: bool = True) -> Communicator:
    """The communicator of this process. engine: "mpi", "nccl", or "auto": NCCL where every rank has a GPU, MPI otherwise."""
    if engine not in ("auto", "mpi", "nccl"):
        raise ConfigError(f"engine={engine!r}; expected 'mpi', 'nccl' or 'auto'")
    if not launched:
        return Alone()
    mpi = MpiCommunicator(timeout)
    if engine == "mpi" or mpi.size == 1:
        return mpi
    from ... import cuda

    engines = mpi.gather("nccl" if engine == "nccl" or cuda.is_available() else "mpi", "the choice of an engine")
    require_equal(mpi, engines, "engine", "give --engine mpi, or start it on machines of one kind")
    if engines[0] == "mpi":
        return mpi
    from .nccl import NcclCommunicator

    return NcclCommunicator(mpi)


def require_equal(comm: Communicator, values: Sequence[Any], what: str, advice: str) -> None:
    """RankError naming the first rank whose value is not rank 0's."""
    for rank, value in enumerate(values):
        if value != values[0]:
            found, first = _short(value), _short(values[0])
            raise RankError(f"{what}: {comm.describe(rank)} has {found}, {comm.describe(0)} has {first}; {advice}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:197] + "..."


