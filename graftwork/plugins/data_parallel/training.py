"""One model trained by several ranks: equal at the start, summed gradients in every step, checked at the end of every epoch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import __version__
from ...errors import RankError
from ...nn import Module, Tensor, Trainer, rng
from ...nn.autograd import mode
from ...nn.modules.module import assign
from ...nn.optim import Optimizer
from .communicator import require_equal
from .data import ShardedLoader
from .group import Group, described, start
from .norm import synchronise_batch_norm
from .reducer import Reducer, measure_bucket_bytes
from .residual import Residual, bucket_bytes, collect, hand_out
from .timeline import write

PLUGIN = "data_parallel"  # whose arrays in a checkpoint these are
SEED_STRIDE = 0x9E3779B97F4A7C15  # odd, so that no two ranks draw from one stream


class DataParallel:
    """Model and optimiser, tied to all ranks' others. With a Trainer the plugin makes it; in a loop of one's own:

        parallel = DataParallel(model, optimizer)
        loader = ShardedLoader(loader)
        with parallel:
            for x, target in loader:
                optimizer.zero_grad(); loss = ...; loss.backward()
                parallel.reduce(); optimizer.step(); parallel.step_end()

    Between several backward passes for one update, all but the last stand in `with parallel.no_sync():`. With compression a
    checkpoint needs `parallel.residual()` as well, which a later DataParallel takes as `residual` (rank 0's counts).
    """

    def __init__(self, model: Module, optimizer: Optimizer, group: Group | None = None, facts: dict[str, Any] | None = None,
                 check_finite: bool = True, residual: Residual | None = None):  # fmt: skip
        self.model, self.optimizer, self.group = model, optimizer, group or start()
        self.comm, settings = self.group.comm, self.group.settings
        self.step = 0
        if settings.sync_batch_norm and self.group.size > 1:
            synchronise_batch_norm(model)
        self.comm.at(step=0, tensor="")
        self._handshake(facts or {})
        self._broadcast()
        parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        total = sum(p.size * p.dtype.itemsize for p in parameters.values())
        device = next(model.parameters()).device
        kept = hand_out(self.comm, residual or {})
        size = settings.bucket_bytes or bucket_bytes(kept) or measure_bucket_bytes(self.comm, total)
        self.reducer = Reducer(self.comm, parameters, self.group.share(device), size, settings.compression, settings.overlap,
                               check_finite and settings.check_finite, self.group.timeline, kept)  # fmt: skip
        self._before: Any = None

    def _handshake(self, facts: dict[str, Any]) -> None:
        """Everything that two ranks could have different and that would end in a deadlock or in different models."""
        own = {
            "version of graftwork": __version__, "version of numpy": np.__version__,
            "version of Python": sys.version.split()[0], "settings": described(self.group.settings),
            "optimiser": type(self.optimizer).__name__,
            "device type": sorted({p.device.split(":")[0] for p in self.model.parameters()}), **facts,
        }  # fmt: skip
        found = self.comm.gather(own, "the comparison of all ranks")
        for what in own:
            values = [f.get(what) for f in found]
            require_equal(self.comm, values, what, "start all ranks with the same packages, script and settings")
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        listing = [f"{n} {t.dtype}{list(t.shape)}{'' if t.requires_grad else ' frozen'}" for n, t in named]
        digest = hashlib.sha256("\n".join(listing).encode()).hexdigest()
        if len(set(self.comm.gather(digest, "the comparison of models"))) > 1:
            listings = self.comm.gather(listing, "the listing of models")
            raise RankError(self._first_difference(listings))

    def _first_difference(self, listings: list[list[str]]) -> str:
        for rank, listing in enumerate(listings):
            if listing != listings[0]:
                theirs, ours = ([*x, "nothing more"] for x in (listing, listings[0]))
                i = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b)
                return (f"the models differ: tensor {i} is {theirs[i]} on {self.comm.describe(rank)} and {ours[i]} on "
                        f"{self.comm.describe(0)}; start all ranks with the same script and arguments")  # fmt: skip
        return "the models differ"

    def _state(self) -> dict[str, Any]:
        """Every tensor that all ranks must have equal, by name."""
        state = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        for i, entries in enumerate(self.optimizer.state):
            state |= {f"optimiser's {name}.{i}": t for name, t in entries.items()}
        rates = {f"lr.{i}": g["lr"] for i, g in enumerate(self.optimizer.groups)}
        return state | rates | {"steps": self.optimizer.steps}

    def _broadcast(self) -> None:
        """Rank 0's parameters, buffers, optimiser state and random state, on all ranks."""
        for name, t in self._state().items():
            data = np.ascontiguousarray(t.numpy()).copy()
            self.comm.broadcast(data, f"{name} from rank 0")
            if self.group.rank:
                assign(t, data)
        state = self.comm.gather(rng.get_state() if self.group.main else None, "the random state")[0]
        if self.group.rank:  # the same draws for the same counter would drop out the same units everywhere
            state["ops"][0] = (state["ops"][0] + self.group.rank * SEED_STRIDE) % 2**64
            state.pop("devices", None)
            rng.set_state(state)

    # -- steps -------------------------------------------------------------------------------------------------------
    def __enter__(self) -> DataParallel:
        self._before, mode.ready = mode.ready, self.reducer.ready
        return self

    def __exit__(self, *error: Any) -> None:
        mode.ready = self._before

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside only add to this rank's gradients."""
        before, mode.ready = mode.ready, None
        try:
            yield
        finally:
            mode.ready = before

    def reduce(self) -> None:
        """Wait for the sums of all ranks' gradients; they become the parameters'."""
        self.reducer.finish()

    def step_end(self) -> None:
        self.step += 1
        self.comm.at(step=self.step, tensor="")
        self.group.timeline.step()

    def residual(self) -> Residual:
        """What compression has left for later steps, of all ranks: arrays for a checkpoint. All ranks have to ask for it."""
        return collect(self.reducer)

    # -- epochs ------------------------------------------------------------------------------------------------------
    def verify(self) -> str:
        """Compare all ranks' tensors bit by bit: their common digest. RankError naming the first that differs."""
        state = self._state().items()
        hashes = {name: hashlib.sha256(np.ascontiguousarray(t.numpy()).tobytes()).hexdigest()[:16] for name, t in state}
        digest = hashlib.sha256(json.dumps([self.step, hashes]).encode()).hexdigest()
        found = self.comm.gather([digest, self.step], "the comparison of models")
        if len({d for d, _ in found}) > 1:
            require_equal(self.comm, [s for _, s in found], "number of steps", "give all ranks as many batches")
            everything = self.comm.gather(hashes, "the search for what differs")
            for rank, own in enumerate(everything):
                for name, value in own.items():
                    if value != everything[0][name]:
                        raise RankError(f"{self.comm.describe(rank)} has diverged from rank 0 by step {self.step}: {name} "
                                        "differs; go back to the last checkpoint, and look at that machine")  # fmt: skip
        return digest

    def average(self, record: dict[str, Any], names: tuple[str, ...] = ("loss", "accuracy")) -> None:
        """Means over ranks in the place of this rank's own."""
        found = self.comm.gather({n: record[n] for n in names if n in record}, "the epoch's means")
        for name in names:
            if name in record:
                record[name] = float(np.mean([f[name] for f in found]))

    def keep(self, trainer: Trainer) -> None:
        """Leave the residual with rank 0's trainer, whose checkpoint holds it and whose next fit goes on from it."""
        found = self.residual()
        if self.group.main:
            trainer.kept[PLUGIN] = found

    def write_timeline(self) -> None:
        """Collect all ranks' events and write them, on rank 0."""
        if self.group.settings.timeline:
            ranks = self.comm.gather(self.group.timeline.events(), "the timeline")
            if self.group.main:
                write(self.group.settings.timeline, ranks, list(self.comm.hosts))


def attach(trainer: Trainer) -> DataParallel:
    """Make a trainer that is about to fit one of several: shards of its loader, state of rank 0, one that writes."""
    group = start()
    loader = trainer.loader
    assert loader is not None  # fit has set it
    facts = {
        "Trainer(compile)": trainer.compile, "Trainer(precision)": trainer.precision, "steps an epoch": len(loader),
        "size of the data set": len(loader.dataset), "batch size": loader.batch_size,
    }  # fmt: skip
    parallel = DataParallel(trainer.model, trainer.optimizer, group, facts, trainer.loss_scale is None,
                            trainer.kept.get(PLUGIN))  # fmt: skip
    if not isinstance(loader, ShardedLoader):
        trainer.loader = ShardedLoader(loader, group)
    trainer.main = group.main
    progress = {
        "epoch": trainer.epoch, "step": trainer.step, "history": trainer.history,
        "schedule": trainer.schedule.state_dict() if trainer.schedule else None,
    }  # fmt: skip
    first = group.comm.gather(progress if group.main else None, "the progress of the run")[0]
    if not group.main:
        trainer.epoch, trainer.step, trainer.history = first["epoch"], first["step"], first["history"]
        if trainer.schedule is not None:
            trainer.schedule.load_state_dict(first["schedule"])
    parallel.step = trainer.step
    group.comm.at(step=trainer.step)
    return parallel
