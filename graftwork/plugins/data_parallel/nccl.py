"""NCCL behind the same interface, for one GPU a rank. MPI starts it, and carries everything that is not gradients.

Written from the documentation of NCCL and CuPy; not yet measured, and not yet run on hardware.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ConfigError, MissingDependency
from .communicator import Communicator, MpiCommunicator


class _Event:
    """A CUDA event behind a collective: it has happened when the collective has."""

    def __init__(self, stream: Any):
        self._event = stream.record()

    def test(self) -> bool:
        return bool(self._event.done)


class NcclCommunicator(Communicator):
    """Sums of CuPy arrays over all ranks, in a stream of their own, ordered after the stream that computes."""

    def __init__(self, mpi: MpiCommunicator):
        try:
            import cupy
            from cupy.cuda import nccl
        except ImportError as error:
            raise MissingDependency(
                f"engine='nccl' needs CuPy with NCCL ({error}): pip install 'graftwork[cuda12]'"
            ) from error
        self._mpi, self._cupy, self._nccl = mpi, cupy, nccl
        self.rank, self.size, self.hosts, self.where = mpi.rank, mpi.size, mpi.hosts, mpi.where
        local = sum(host == mpi.hosts[mpi.rank] for host in mpi.hosts[: mpi.rank])  # ranks before this one on this machine
        if local >= cupy.cuda.runtime.getDeviceCount():
            raise ConfigError(f"{self.describe(self.rank)} is number {local + 1} on its machine, which has fewer GPUs; start "
                              "as many ranks as GPUs, or give --engine mpi")  # fmt: skip
        cupy.cuda.Device(local).use()
        self.device = f"cuda:{local}"
        identifier = mpi.gather(list(nccl.get_unique_id()) if self.rank == 0 else None, "NCCL's identifier")[0]
        self._comm = nccl.NcclCommunicator(self.size, tuple(identifier), self.rank)
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def _type(self, array: Any) -> int:
        names = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64", "float16": "NCCL_FLOAT16"}
        if str(array.dtype) not in names:
            raise ConfigError(f"NCCL sums {', '.join(names)}, not {array.dtype}")
        return getattr(self._nccl, names[str(array.dtype)])

    def start_sum(self, send, receive):
        if isinstance(send, np.ndarray):
            return self._mpi.start_sum(send, receive)
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        kind, total = self._type(send), self._nccl.NCCL_SUM
        self._comm.allReduce(send.data.ptr, receive.data.ptr, send.size, kind, total, self._stream.ptr)
        return _Event(self._stream)

    def start_exchange(self, send, receive):
        return self._mpi.start_exchange(_on_host(send), receive)

    def start_gather(self, send, receive):
        return self._mpi.start_gather(_on_host(send), receive)

    def broadcast(self, array, what):
        if isinstance(array, np.ndarray):
            return self._mpi.broadcast(array, what)
        host = array.get()
        self._mpi.broadcast(host, what)
        array.set(host)
        return None

    def wait(self, request, what):
        self._mpi.wait(request, what)

    def gather(self, value, what):
        return self._mpi.gather(value, what)

    def at(self, **where):
        self._mpi.at(**where)


def _on_host(array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ConfigError("compression is for models on the CPU; on GPUs NCCL sums whole gradients: pass compression=None")
    return array
