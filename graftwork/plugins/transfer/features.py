"""Deep features: what a pretrained trunk says of each image, as one vector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, ModelError
from ...nn import Module, compile, no_grad
from ...zoo import images

BATCH = 32


class FeatureExtractor:
    """Images (paths, Pillow images or uint8 arrays) to deep features (images, values) by a zoo model's trunk.

    A scikit-learn transformer: `fit` learns nothing, `transform` extracts. Decoding runs in threads, ahead of the network,
    which is compiled to a static graph.
    progress: a bar on the terminal. Raises ModelError for a model without `features`.
    """

    def __init__(self, model: Module, pooling: str = "avg", batch_size: int = BATCH, progress: bool = False):
        if not hasattr(model, "features") or not hasattr(model, "normalise"):
            raise ModelError(f"{type(model).__name__} has no deep features; expected an image model of the zoo")
        self.model, self.pooling, self.batch_size, self.progress = model, pooling, batch_size, progress
        self._static = compile(model.features)

    def fit(self, pictures: Any = None, labels: Any = None) -> FeatureExtractor:
        return self

    def transform(self, pictures: Sequence[Any]) -> np.ndarray:
        """float32 features, one row an image, in the order given. Raises DataError for none, or an unreadable one."""
        if len(pictures) == 0:
            raise DataError("no images given; deep features need at least one")
        height, width, channels = self.model.input_shape
        starts = range(0, len(pictures), self.batch_size)
        self.model.eval()

        def decode(start: int) -> np.ndarray:
            return images.to_batch(pictures[start : start + self.batch_size], (height, width), channels)

        rows = []
        with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool, no_grad(), _bar(self.progress) as track:
            ahead = [pool.submit(decode, s) for s in list(starts)[:4]]
            waiting = list(starts)[4:]
            for _ in track(starts):
                pixels = ahead.pop(0).result()
                if waiting:
                    ahead.append(pool.submit(decode, waiting.pop(0)))
                rows.append(self._static(self.model.normalise(pixels), self.pooling).numpy())
        return np.concatenate(rows)

    def fit_transform(self, pictures: Sequence[Any], labels: Any = None) -> np.ndarray:
        return self.transform(pictures)


def _bar(shown: bool):
    """A context manager whose value wraps an iterable: with a rich progress bar, or as it is."""
    if not shown:
        return nullcontext(lambda items: items)
    from rich.progress import Progress

    class Bar(Progress):
        def __enter__(self):
            super().__enter__()
            return lambda items: self.track(items, description="Reading deep features")

    return Bar(transient=True)


def short_name(path: str | Path) -> str:
    """The last two parts of a path, for tables."""
    return "/".join(Path(path).parts[-2:])
