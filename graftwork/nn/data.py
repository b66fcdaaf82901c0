"""Feeding batches: datasets, and a loader whose workers prepare the next batches while the current one trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, DataError
from .rng import generator
from .tensor import Tensor, tensor


class Dataset(Protocol):
    """Anything with a length whose entries are tuples of arrays and numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple: ...


class ArrayDataset:
    """Arrays of equal length, entry by entry; `batch(indices)` picks many at once.

    transform(generator, *arrays) -> arrays: applied to each batch (augmentation), off the main thread with workers.
    """

    def __init__(self, *arrays: np.ndarray, transform: Callable | None = None):
        lengths = {len(a) for a in arrays}
        if len(lengths) != 1:
            raise DataError(f"ArrayDataset: arrays have lengths {[len(a) for a in arrays]}; they must be equal")
        self.arrays, self.transform = arrays, transform

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple:
        return tuple(a[index] for a in self.arrays)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple:
        picked = tuple(a[indices] for a in self.arrays)
        return picked if self.transform is None else tuple(self.transform(rng, *picked))


class DataLoader:
    """Batches of tensors from a dataset.

    batch_size: entries a batch; the last one may be smaller unless `drop_last`. shuffle: a new order each epoch, drawn
    from `seed` and the epoch's number, so that a resumed run sees the same batches. workers: threads that prepare up to
    `2 * workers` batches ahead (decoding and NumPy release the interpreter lock); 0 prepares them in place. device: where the
    tensors are put; to a GPU they are copied in the current stream's order, and nothing waits for that.
    """

    def __init__(self, dataset: Dataset, batch_size: int = 32, shuffle: bool = False, drop_last: bool = False,
                 workers: int = 0, seed: int | None = None, device: str | None = None):  # fmt: skip
        if batch_size < 1 or workers < 0:
            raise ConfigError(f"DataLoader: batch_size={batch_size}, workers={workers}; expected at least 1 and 0")
        if len(dataset) == 0:
            raise DataError("DataLoader: the dataset is empty; it needs at least one entry")
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.drop_last, self.workers, self.device = drop_last, workers, device
        self.seed = int(generator().integers(2**31)) if seed is None else int(seed)
        self.epoch = 0

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The entries' order in an epoch."""
        n = len(self.dataset)
        return np.random.default_rng((self.seed, epoch)).permutation(n) if self.shuffle else np.arange(n)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = self.order(epoch)
        jobs = [
            (order[i * self.batch_size : (i + 1) * self.batch_size], np.random.default_rng((self.seed, epoch, i)))
            for i in range(len(self))
        ]
        batches = map(self._load, jobs) if self.workers == 0 else _prefetch(self._load, jobs, self.workers)
        return (tuple(tensor(a, device=self.device) for a in batch) for batch in batches)

    def _load(self, job) -> tuple[np.ndarray, ...]:
        indices, rng = job
        if hasattr(self.dataset, "batch"):
            return self.dataset.batch(indices, rng)
        entries = [self.dataset[int(i)] for i in indices]
        return tuple(np.stack([np.asarray(v) for v in column]) for column in zip(*entries, strict=True))


def _prefetch(load: Callable[[Any], Any], jobs: Sequence, workers: int) -> Iterator:
    """Results of `load` in order, prepared ahead by threads; a worker's error surfaces at its place."""
    ahead: queue.Queue = queue.Queue(maxsize=2 * workers)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ahead.put(item, timeout=0.1)
            except queue.Full:
                continue

    with ThreadPoolExecutor(workers, thread_name_prefix="graftwork-data") as pool:

        def feed() -> None:
            for job in jobs:
                if stop.is_set():
                    return
                put(pool.submit(load, job))
            put(None)

        feeder = threading.Thread(target=feed, daemon=True, name="graftwork-data-feeder")
        feeder.start()
        try:
            while (future := ahead.get()) is not None:
                yield future.result()
        finally:
            stop.set()
            feeder.join()
