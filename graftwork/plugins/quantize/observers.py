"""Observers: which range of real values a tensor needs, learnt from batches that pass by; none keeps more than a histogram."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import ConfigError, DataError

BINS = 2048
LEVELS = 255
CANDIDATES = np.linspace(0.3, 1.0, 36)  # shares of the whole range that the searching observers try


class MinMax:
    """The least and the largest value that were seen."""

    def __init__(self) -> None:
        self.low, self.high, self.batches = np.inf, -np.inf, 0

    def update(self, values: np.ndarray) -> None:
        """Look at a batch. Raises DataError for NaN and infinity."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise DataError("an activation holds NaN or infinity; look for a wrong preprocessing or a model that has diverged")
        self._extend(low, high, values)
        self.batches += 1

    def _extend(self, low: float, high: float, values: np.ndarray) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """(low, high) of the values to be represented."""
        return self.low, self.high


class MovingAverage(MinMax):
    """Least and largest value of each batch, averaged with exponentially falling weights (0.1 for the newest)."""

    def _extend(self, low: float, high: float, values: np.ndarray) -> None:
        share = 1.0 if self.batches == 0 else 0.1
        self.low = low if self.batches == 0 else self.low + share * (low - self.low)
        self.high = high if self.batches == 0 else self.high + share * (high - self.high)


class _Histogram(MinMax):
    """Counts in BINS equal bins; when the range grows, they are moved to the bins that their middles fall into."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(BINS, np.float64)

    def _extend(self, low: float, high: float, values: np.ndarray) -> None:
        before = self.low, self.high
        super()._extend(low, high, values)
        if self.high <= self.low:
            return
        if self.batches and before != (self.low, self.high) and before[1] > before[0]:
            self.counts = np.histogram(_middles(*before), BINS, (self.low, self.high), weights=self.counts)[0]
        self.counts += np.histogram(values, BINS, (self.low, self.high))[0]

    def _search(self, loss: Callable[[np.ndarray, np.ndarray, float, float], float]) -> tuple[float, float]:
        """The share of the range with the least loss(middles, counts, low, high)."""
        if self.high <= self.low:
            return self.low, self.high
        middles = _middles(self.low, self.high)
        ends = [(min(self.low * s, 0.0), max(self.high * s, 0.0)) for s in CANDIDATES]
        return min(ends, key=lambda pair: loss(middles, self.counts, *pair))


def _middles(low: float, high: float) -> np.ndarray:
    edges = np.linspace(low, high, BINS + 1)
    return (edges[1:] + edges[:-1]) / 2


class Percentile(_Histogram):
    """All values but the outermost 0.01 percent on either side."""

    share = 1e-4

    def range(self) -> tuple[float, float]:
        if self.high <= self.low:
            return self.low, self.high
        below = np.cumsum(self.counts) / self.counts.sum()
        edges = np.linspace(self.low, self.high, BINS + 1)
        first, last = (int(np.searchsorted(below, share)) for share in (self.share, 1 - self.share))
        return float(edges[first]), float(edges[min(last + 1, BINS)])


class MeanSquaredError(_Histogram):
    """The range whose rounding and clipping cost the least squared error."""

    def range(self) -> tuple[float, float]:
        return self._search(_squared_error)


class Entropy(_Histogram):
    """The range that loses the least information: Kullback-Leibler divergence of the clipped histogram from one with 256 levels
    (Migacz, "8-bit Inference with TensorRT", 2017)."""

    def range(self) -> tuple[float, float]:
        return self._search(_divergence)


def _squared_error(middles: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / LEVELS
    stored = np.clip(np.rint((middles - low) / step), 0, LEVELS) * step + low
    return float(counts @ (middles - stored) ** 2)


def _divergence(middles: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / LEVELS
    level = np.clip(np.rint((middles - low) / step), 0, LEVELS).astype(int)
    inside = (middles >= low) & (middles <= high)
    clipped = np.where(inside, counts, 0.0)
    if not clipped.sum():
        return np.inf
    edge = np.flatnonzero(inside)[[0, -1]]
    clipped[edge[0]] += counts[: edge[0]].sum()
    clipped[edge[1]] += counts[edge[1] + 1 :].sum()
    there = inside & (counts > 0)
    total = np.bincount(level[there], np.where(inside, counts, 0.0)[there], LEVELS + 1)
    shared = np.bincount(level[there], minlength=LEVELS + 1)
    spread = np.where(there, total[level] / np.maximum(shared[level], 1), 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum()
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))


OBSERVERS = {"minmax": MinMax, "moving_average": MovingAverage, "percentile": Percentile, "entropy": Entropy,
             "mse": MeanSquaredError}  # fmt: skip


def make(name: str) -> MinMax:
    """An observer by its name. Raises ConfigError for an unknown one."""
    if name not in OBSERVERS:
        raise ConfigError(f"quantize: observer={name!r}; there are {', '.join(map(repr, OBSERVERS))}")
    return OBSERVERS[name]()
