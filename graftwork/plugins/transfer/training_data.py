"""Pictures for training: decoded once to small arrays, augmented in threads, with targets that carry smoothing and weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...nn import DataLoader, Module
from ...zoo import images
from .augment import Augmentation

BALANCES = (None, "weights", "sampling")


def threads() -> int:
    return max(os.cpu_count() or 1, 1)


def decode(pictures: Sequence[Any], size: tuple[int, int], channels: int) -> np.ndarray:
    """Pictures (paths, Pillow images, uint8 arrays) as uint8 (n, height, width, channels), stretched to `size`, in threads.

    Raises DataError for none, or naming one that cannot be read.
    """
    if len(pictures) == 0:
        raise DataError("no pictures given; expected at least one")
    result = np.empty((len(pictures), *size, channels), np.uint8)

    def one(i: int) -> None:
        result[i] = images.to_array(pictures[i], size, channels)

    with ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(one, range(len(pictures))):
            pass
    return result


class PictureSet:
    """Pictures that are decoded as they are needed, whole, at one size: a dataset for inference."""

    def __init__(self, pictures: Sequence[Any], model: Module, size: tuple[int, int]):
        if len(pictures) == 0:
            raise DataError("no pictures given; expected at least one")
        self.pictures, self.model, self.size = pictures, model, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple:
        return tuple(a[0] for a in self.batch(np.array([index]), np.random.default_rng(0)))

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple:
        chosen = [self.pictures[i] for i in indices]
        return (images.normalise(images.to_batch(chosen, self.size, self.model.input_shape[2]), self.model.preprocessing),)


class TrainingSet:
    """Pixels or inputs with targets: (x, target rows) a batch.

    pixels: uint8, larger than or as large as `size`, which are augmented and normalised; or float inputs, which are used as
    they are. target: (n, classes), smoothed and weighted. transform(rng, x, labels) -> (x, labels): of the caller's, on inputs.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, target: np.ndarray, model: Module, size: tuple[int, int],
                 augment: Augmentation, transform: Any = None):  # fmt: skip
        self.pixels, self.labels, self.target = pixels, labels, target
        self.model, self.size, self.augment, self.transform = model, size, augment, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple:
        return tuple(a[0] for a in self.batch(np.array([index]), np.random.default_rng(0)))

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple:
        x = self.pixels[indices]
        if x.dtype == np.uint8:
            x = images.normalise(self.augment.pixels(rng, x, self.size), self.model.preprocessing)
        if self.transform is not None:
            x, _ = self.transform(rng, x, self.labels[indices])
        return self.augment.mix(rng, x, self.target[indices])


class TrainingLoader(DataLoader):
    """A loader over labelled pictures; balanced, it draws every class equally often in an epoch of the same length."""

    def __init__(self, dataset: TrainingSet, batch_size: int, seed: int, workers: int, balanced: bool):
        super().__init__(dataset, batch_size, shuffle=True, workers=workers, seed=seed, device=dataset.model.device)
        self.balanced = balanced

    def order(self, epoch: int) -> np.ndarray:
        if not self.balanced:
            return super().order(epoch)
        rng = np.random.default_rng((self.seed, epoch))
        labels = self.dataset.labels  # type: ignore[attr-defined]
        found = np.unique(labels)
        share = -(-len(labels) // len(found))
        drawn = [_rounds(rng, np.flatnonzero(labels == c), share) for c in found]
        return rng.permutation(np.concatenate(drawn))[: len(labels)]


def _rounds(rng: np.random.Generator, members: np.ndarray, count: int) -> np.ndarray:
    """`count` of these, none of them drawn again before all have been."""
    return np.concatenate([rng.permutation(members) for _ in range(-(-count // len(members)))])[:count]


def targets(labels: np.ndarray, classes: int, smoothing: float, balance: str | None) -> np.ndarray:
    """Target rows (n, classes): smoothed, and with balance="weights" each class's rows weigh the same in total."""
    if balance not in BALANCES:
        raise ConfigError(f"balance={balance!r}; expected None, 'weights' or 'sampling'")
    rows = np.full((len(labels), classes), smoothing / classes, np.float32)
    rows[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
    if balance == "weights":
        counts = np.bincount(labels, minlength=classes)
        rows *= (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels, None].astype(np.float32)
    return rows


def check_labels(labels: Any, count: int, classes: int | Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Class numbers as int64, and the classes' names. Raises DataError for labels that do not fit."""
    found = np.asarray(labels)
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DataError(f"labels are {found.dtype}{list(found.shape)} for {count} pictures; expected one class number each")
    if len(names) < 2 or (count and not 0 <= found.min() <= found.max() < len(names)):
        raise DataError(
            f"labels from {found.min()} to {found.max()} for {len(names)} classes; expected at least two classes and numbers "
            f"from 0 to {len(names) - 1}"
        )
    return found.astype(np.int64), names
