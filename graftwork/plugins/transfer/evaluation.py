"""What a classifier got right and wrong: accuracy with its interval, confusion, figures by class, the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """The interval for a share of `right` in `total` by Wilson (1927); 95 % by default, sensible also for 0 and for all.

    Raises DataError for counts that are none.
    """
    if not 0 <= right <= total or total < 1:
        raise DataError(f"{right} right of {total}; expected at least one trial and no more successes than trials")
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Evaluation:
    """A classifier's probabilities (images, classes) beside the truth: class numbers, of which some classes may have none."""

    classes: Sequence[str]
    truth: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.truth), len(self.classes))
        if self.probabilities.shape != expected or len(self.truth) == 0:
            raise DataError(f"probabilities {list(self.probabilities.shape)}; expected {list(expected)}, at least one image")
        if not (
            np.issubdtype(np.asarray(self.truth).dtype, np.integer) and 0 <= self.truth.min() <= self.truth.max() < expected[1]
        ):
            raise DataError(f"labels {np.unique(self.truth).tolist()}; expected class numbers from 0 to {expected[1] - 1}")

    @property
    def predicted(self) -> np.ndarray:
        """Class numbers."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.truth

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson)."""
        return wilson(int(self.right.sum()), len(self.truth))

    @property
    def confusion(self) -> np.ndarray:
        """Counts (true class, predicted class)."""
        matrix = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(matrix, (self.truth, self.predicted), 1)
        return matrix

    def by_class(self) -> list[dict[str, Any]]:
        """One dict a class: images, recall with its 95 % interval, precision, f1. What is undefined is None."""
        matrix, rows = self.confusion, []
        for i, name in enumerate(self.classes):
            hits, images, claimed = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
            rows.append({
                "class": name, "images": images, "recall": hits / images if images else None,
                "interval": wilson(hits, images) if images else None,
                "precision": hits / claimed if claimed else None,
                "f1": 2 * hits / (images + claimed) if images + claimed else None,
            })  # fmt: skip
        return rows

    def most_confused(self, count: int = 5) -> list[tuple[int, int, int]]:
        """(true class, predicted class, images), the most frequent mistakes first."""
        matrix = self.confusion
        np.fill_diagonal(matrix, 0)
        order = np.argsort(-matrix, axis=None, kind="stable")[:count]
        found = [(*divmod(int(i), len(self.classes)), int(matrix.flat[i])) for i in order]
        return [entry for entry in found if entry[2]]

    def confident_mistakes(self, count: int = 12) -> np.ndarray:
        """Indices of the wrong images, the surest of themselves first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")][:count]

    def calibration(self, bins: int = 10) -> list[dict[str, float]]:
        """Reliability: for each tenth of confidence that occurs, the mean confidence, the accuracy, and the images in it."""
        sure = self.probabilities.max(axis=1)
        place = np.minimum((sure * bins).astype(int), bins - 1)
        return [
            {"confidence": float(sure[place == b].mean()), "accuracy": float(self.right[place == b].mean()),
             "images": int((place == b).sum())}
            for b in np.unique(place)
        ]  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values; `by_class` is each class's recall, of classes that have images."""
        rows = self.by_class()
        return {
            "accuracy": self.accuracy, "interval": list(self.interval), "images": len(self.truth),
            "by_class": {r["class"]: r["recall"] for r in rows if r["images"]}, "classes": rows,
            "confusion": self.confusion.tolist(),
        }  # fmt: skip
