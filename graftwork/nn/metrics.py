"""What training reports: running averages and classification figures."""

from __future__ import annotations

import numpy as np


class Average:
    """A running mean, weighted by counts."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, value: float, count: int = 1) -> None:
        self.total += value * count
        self.count += count

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of rows whose label is among the k highest scores. scores: (n, classes); labels: (n,)."""
    if not len(labels):
        return float("nan")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == np.asarray(labels)[:, None]).any(axis=1).mean())


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are true labels, columns predictions."""
    return np.bincount(np.asarray(labels) * classes + np.asarray(predicted), minlength=classes * classes).reshape(
        classes, classes
    )
