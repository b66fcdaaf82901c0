"""Shards of batches, and learning rates for larger ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...errors import ConfigError, DataError
from ...nn import DataLoader, Tensor, tensor
from ...nn.data import _prefetch
from ...nn.optim import Optimizer
from ...nn.schedule import Schedule
from .group import Group, start


class ShardedLoader(DataLoader):
    """A rank's parts of a loader's batches. All ranks draw the loader's order from its seed (rank 0's) and the epoch, and take
    consecutive parts of every batch, so that together they compute the batches that one process would.

    Parts of an uneven batch differ by one entry, and each counts by its length. A rank that a last batch has no entry for
    computes its first one with the share 0: it takes part in what all ranks do together, and changes nothing.
    """

    def __init__(self, loader: DataLoader, group: Group | None = None):
        self.group = group or start()
        size = self.group.size
        if len(loader.dataset) < size:
            raise DataError(f"the data set has {len(loader.dataset)} entries for {size} ranks; start at most as many ranks")
        if loader.batch_size < size:
            raise ConfigError(f"a batch of {loader.batch_size} entries for {size} ranks leaves some without; batch_size is "
                              "that of all ranks together, give at least one entry a rank")  # fmt: skip
        seed = self.group.comm.gather(loader.seed, "the loader's seed")[0]
        super().__init__(loader.dataset, loader.batch_size, loader.shuffle, loader.drop_last, loader.workers, seed,
                         loader.device)  # fmt: skip
        self.epoch = loader.epoch

    def part(self, whole: np.ndarray) -> tuple[np.ndarray, float]:
        """This rank's entries of a batch, and their share of it."""
        own = np.array_split(whole, self.group.size)[self.group.rank]
        return (own, len(own) / len(whole)) if len(own) else (whole[:1], 0.0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = self.order(epoch)
        jobs, shares = [], []
        for i in range(len(self)):
            indices, share = self.part(order[i * self.batch_size : (i + 1) * self.batch_size])
            jobs.append((indices, np.random.default_rng((self.seed, epoch, i, self.group.rank))))
            shares.append(share)
        batches = map(self._load, jobs) if self.workers == 0 else _prefetch(self._load, jobs, self.workers)
        for share, batch in zip(shares, batches, strict=True):
            self.group.set_share(share)
            yield tuple(tensor(a, device=self.device) for a in batch)


class ScaledLR(Schedule):
    """A learning rate for a larger batch: the optimiser's own times a factor that is reached by a linear warm-up.

    rule: "linear" (Goyal et al. 2017), for SGD: batch / base_batch; "sqrt" (Krizhevsky 2014), for Adam: its square root.
    after: another schedule's factors, applied as well (its steps count from the start).
    """

    def __init__(self, optimizer: Optimizer, batch: int, base_batch: int = 256, rule: str = "linear", warmup_steps: int = 0,
                 after: Schedule | None = None):  # fmt: skip
        if rule not in ("linear", "sqrt") or batch < 1 or base_batch < 1 or warmup_steps < 0:
            raise ConfigError(f"ScaledLR: rule={rule!r}, batch={batch}, base_batch={base_batch}, warmup_steps={warmup_steps}; "
                              "expected 'linear' or 'sqrt', batches of at least 1, and no negative steps")  # fmt: skip
        ratio = batch / base_batch
        self.scale, self.warmup, self.after = ratio if rule == "linear" else math.sqrt(ratio), warmup_steps, after
        super().__init__(optimizer)
        if after is not None:
            self.base = list(after.base)
            self._apply()

    def factor(self, step: int) -> float:
        rise = min((step + 1) / (self.warmup + 1), 1.0)
        return (1.0 + (self.scale - 1.0) * rise) * (self.after.factor(step) if self.after is not None else 1.0)
