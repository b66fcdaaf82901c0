"""The processes of this run, and how they work together. A script that `graftwork launch` did not start is a group of one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...nn import Tensor, tensor
from ...nn.autograd import mark_written
from . import compress
from .communicator import Communicator, open_communicator
from .timeline import Timeline

LAUNCHED = "GRAFTWORK_LAUNCH"  # what the launcher tells its processes: the settings it was given, as JSON
_BY_OTHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")


@dataclass
class Settings:
    """engine: "mpi", "nccl" or "auto". timeout: seconds that a rank waits for others. bucket_bytes: None measures it.

    compression: None, "fp16", "bf16", or the share of values to send (0.01). overlap: start buckets within the backward pass.
    sync_batch_norm: statistics over all ranks. check_finite: look for NaN in every sum. timeline: a file for Chrome's tracing.
    """

    engine: str = "auto"
    timeout: float = 300.0
    bucket_bytes: int | None = None
    compression: str | float | None = None
    overlap: bool = True
    sync_batch_norm: bool = True
    check_finite: bool = True
    timeline: str | None = None

    def change(self, changes: dict[str, Any]) -> None:
        """Take over some settings; ConfigError for one that does not exist or cannot be."""
        names = [f.name for f in fields(self)]
        unknown = set(changes) - set(names)
        if unknown:
            raise ConfigError(f"data parallel: unknown settings {sorted(unknown)}; expected some of {', '.join(names)}")
        for name, value in changes.items():
            setattr(self, name, value)
        compress.check(self.compression)
        if self.timeout <= 0 or (self.bucket_bytes is not None and self.bucket_bytes < 1):
            raise ConfigError(f"data parallel: timeout={self.timeout}, bucket_bytes={self.bucket_bytes}; both must be positive")


class Group:
    """All ranks of the run, seen from one of them."""

    def __init__(self, comm: Communicator, settings: Settings):
        self.comm, self.settings = comm, settings
        self.timeline = Timeline(settings.timeline is not None)
        self._share = 1.0 / comm.size
        self._shares: dict[str, Tensor] = {}

    @property
    def rank(self) -> int:
        return self.comm.rank

    @property
    def size(self) -> int:
        return self.comm.size

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes, prints and keeps checkpoints."""
        return self.comm.rank == 0

    def share(self, device: str = "cpu") -> Tensor:
        """This rank's share of the current batch, a float64 tensor of shape () that steps read anew."""
        if device not in self._shares:
            self._shares[device] = tensor(np.asarray(self._share, np.float64), device=device)
        return self._shares[device]

    def set_share(self, value: float) -> None:
        """Say which share of the whole batch this rank's next step computes; a share of 0 counts for nothing."""
        if value == self._share:
            return
        self._share = value
        for t in self._shares.values():
            t.data[...] = value
            mark_written(t)

    def log(self, *parts: Any) -> None:
        """Print on rank 0 only."""
        if self.main:
            print(*parts, flush=True)


_group: Group | None = None
_settings = Settings()


def launched() -> bool:
    """Whether `graftwork launch` started this process. ConfigError if another launcher did."""
    if LAUNCHED in os.environ:
        return True
    if any(name in os.environ for name in _BY_OTHERS):
        raise ConfigError("this script was started by mpiexec itself; start it with: graftwork launch -n RANKS script.py "
                          "(which also watches over the ranks)")  # fmt: skip
    return False


def configure(**changes: Any) -> None:
    """Change `Settings` from the script, before the first fit or `start`. What `graftwork launch` was given wins."""
    if _group is not None:
        raise ConfigError("data parallel: the group has started already; call configure() before the first fit or start()")
    _settings.change(changes)


def start() -> Group:
    """This process's group; made at the first call, by all ranks together."""
    global _group
    if _group is None:
        here = launched()
        _settings.change(json.loads(os.environ[LAUNCHED]) if here else {})
        _group = Group(open_communicator(_settings.engine, _settings.timeout, here), _settings)
    return _group


def current() -> Group | None:
    """The group, if it has started."""
    return _group


def described(settings: Settings) -> dict[str, Any]:
    """What must be equal on all ranks."""
    return {k: v for k, v in asdict(settings).items() if k not in ("timeline", "timeout")}
