"""Which rank does what: a mesh of data x pipeline x tensor, and the groups of ranks along each of its axes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError, RankError
from ...nn import Tensor
from ..data_parallel.communicator import SPIN, import_mpi
from ..manager import manager

TIMEOUT = 300.0  # seconds that a rank waits for another


class Ranks:
    """The ranks of one line of the mesh, seen from number `rank` of `size`. This class is one rank alone; `MpiRanks` several.

    Arrays are contiguous NumPy arrays of float32, float64 or integers.
    """

    rank, size = 0, 1

    def all_reduce(self, send: np.ndarray, receive: np.ndarray, what: str, largest: bool = False) -> None:
        """The sum (or the largest) of `send` over the ranks, in `receive`."""
        receive[...] = send

    def all_gather(self, send: np.ndarray, receive: np.ndarray, what: str) -> None:
        """Every rank's `send`, one after another, in `receive`."""
        receive.reshape(-1)[...] = send.reshape(-1)

    def send(self, array: np.ndarray, to: int, tag: int) -> None:
        """Begin to send; the array is kept until it has left. `flush` waits for that."""
        raise RankError(f"a group of one rank cannot send to rank {to}")

    def receive(self, array: np.ndarray, source: int, tag: int, what: str) -> None:
        """Fill `array` with what rank `source` sends under this tag."""
        raise RankError(f"a group of one rank cannot receive from rank {source}")

    def flush(self) -> None:
        """Wait until everything sent has left."""


class MpiRanks(Ranks):
    """A sub-communicator of MPI. Every wait polls, sleeps in between, and ends with RankError after `timeout` seconds."""

    def __init__(self, comm: Any, world: Sequence[int], timeout: float):
        self._comm, self._mpi, self.world, self.timeout = comm, import_mpi(), tuple(world), timeout
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._sent: list[tuple[Any, np.ndarray, str]] = []

    def all_reduce(self, send, receive, what, largest=False):
        operation = self._mpi.MAX if largest else self._mpi.SUM
        self._wait(self._comm.Iallreduce(send, receive, operation), what)

    def all_gather(self, send, receive, what):
        self._wait(self._comm.Iallgather(send, receive), what)

    def send(self, array, to, tag):
        what = f"rank {self.world[to]} to take message {tag}"
        self._sent = [entry for entry in self._sent if not entry[0].Test()]
        self._sent.append((self._comm.Isend(array, to, tag), array, what))

    def receive(self, array, source, tag, what):
        self._wait(self._comm.Irecv(array, source, tag), f"{what} from rank {self.world[source]}")

    def flush(self):
        for request, _, what in self._sent:
            self._wait(request, what)
        self._sent.clear()

    def _wait(self, request: Any, what: str) -> None:
        end, polls = time.monotonic() + self.timeout, 0
        while not request.Test():
            polls += 1
            if polls < SPIN:
                os.sched_yield()
                continue
            time.sleep(5e-5)  # the others may need this core to arrive
            if time.monotonic() > end:
                raise RankError(
                    f"rank {self.world[self.rank]} waited {self.timeout:g} s for {what}; of ranks {list(self.world)} one is "
                    "dead, hangs, or runs something else. A longer limit: Mesh(timeout=...)"
                )


GROUPS: dict[str, Ranks] = {"alone": Ranks()}  # by the name that ops carry as an attribute
_numbers = itertools.count()


class Mesh:
    """`data * pipeline * tensor` ranks. Neighbouring ranks share a layer (they talk most), then come copies, then stages.

    data: how many copies of the network, each with its share of the batch. tensor: over how many ranks each split layer goes.
    pipeline: how many stages. timeout: seconds that a rank waits for another. All ranks make the same mesh at the same time.
    Attributes `data`, `tensor`, `pipeline`: this rank's `Ranks` along each axis; `tensor_name` what ops call that group.
    Raises ConfigError if the product is not the number of ranks. A process that no launcher started is a mesh of one.
    """

    def __init__(self, data: int = 1, tensor: int = 1, pipeline: int = 1, timeout: float = TIMEOUT):
        sizes = {"data": data, "tensor": tensor, "pipeline": pipeline}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"Mesh: {name}={size!r}; expected a number of ranks, 1 or more")
        manager().load()  # the kernels of our ops
        self.sizes, self.shape = sizes, (pipeline, data, tensor)
        world = import_mpi().COMM_WORLD if _launched() or data * tensor * pipeline > 1 else None
        self.size: int = 1 if world is None else world.Get_size()
        self.rank: int = 0 if world is None else world.Get_rank()
        if self.size != data * tensor * pipeline:
            raise ConfigError(
                f"Mesh: data={data} x tensor={tensor} x pipeline={pipeline} is {data * tensor * pipeline} ranks, but "
                f"{self.size} run; start it with mpiexec -n {data * tensor * pipeline}, or change the mesh to fit"
            )
        self._settle(lambda line: _group(world, line, timeout))

    def _settle(self, group: Callable[[list[int]], Ranks]) -> None:
        """Find this rank's place, and make the groups that it belongs to."""
        self.stage, self.copy, self.part = (int(i) for i in np.unravel_index(self.rank, self.shape))
        places = np.arange(self.size).reshape(self.shape)
        self.pipeline = group(places[:, self.copy, self.part].tolist())
        self.data = group(places[self.stage, :, self.part].tolist())
        self.tensor = group(places[self.stage, self.copy, :].tolist())
        self.tensor_name = f"mesh{next(_numbers)}.tensor"
        GROUPS[self.tensor_name] = self.tensor

    def shard(self, array: np.ndarray) -> np.ndarray:
        """This copy's share of a batch: rows along the first axis. ConfigError if they do not divide."""
        count = self.sizes["data"]
        if len(array) % count:
            raise ConfigError(f"Mesh: a batch of {len(array)} does not divide among data={count} copies; change the batch size")
        rows = len(array) // count
        return array[self.copy * rows : (self.copy + 1) * rows]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{k}={v}" for k, v in self.sizes.items())
        return f"Mesh({sizes}): rank {self.rank} is stage {self.stage}, copy {self.copy}, part {self.part}"


def _launched() -> bool:
    return any(name in os.environ for name in ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"))


def _group(world: Any, line: list[int], timeout: float) -> Ranks:
    if world is None:
        return Ranks()
    return MpiRanks(world.Split(min(line), world.Get_rank()), line, timeout)


def sum_gradients(parameters: Iterable[Tensor], ranks: Ranks, mean: bool = True) -> None:
    """Add up the gradients over `ranks` (their mean by default), all of one element type in one message.

    A parameter without a gradient counts as zero if another rank may have one, so it gets a gradient here.
    """
    if ranks.size == 1:
        return
    by_type: dict[np.dtype, list[Tensor]] = {}
    for p in parameters:
        if p.requires_grad:
            by_type.setdefault(p.dtype, []).append(p)
    for dtype, group in by_type.items():
        parts = [np.zeros(p.size, dtype) if p.grad is None else p.grad.numpy().reshape(-1) for p in group]
        send = np.concatenate(parts)
        receive = np.empty_like(send)
        ranks.all_reduce(send, receive, "the sum of gradients")
        if mean:
            receive /= ranks.size
        for p, part in zip(group, np.split(receive, np.cumsum([p.size for p in group])[:-1]), strict=True):
            p.grad = Tensor(part.reshape(p.shape))
