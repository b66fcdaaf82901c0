"""How to learn from few labels: four strategies at 5, 10, 20 and 50 labelled photographs a class.

    python -m bench.labels PHOTOS WEIGHTS.h5 [--labels 5 10 20 50] [--draws 3] [--steps 120]

PHOTOS has `train`, from which the labelled photographs are drawn, and `validation`, on which all are measured. Every network
trains for about the same number of steps of 16 pictures. Prints a table and writes bench/results/labels.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from graftwork import zoo
from graftwork.plugins.transfer import FeatureExtractor, ImageClassifier, Recipe, fine_tune
from graftwork.zoo.images import list_labelled

from .common import foreign_seconds, write

BATCH = 16
TUNED = Recipe(size=(176, 176), batch_size=BATCH)
STRATEGIES = ("features + logistic regression", "head", "all layers", "from nothing")


class Photographs:
    """Labelled photographs to draw from, and those to measure with."""

    def __init__(self, folder: Path, weights: Path):
        self.paths, self.labels, self.classes = list_labelled(folder / "train")
        self.checks, self.truth, _ = list_labelled(folder / "validation")
        self.weights = weights
        self.check_features = FeatureExtractor(self.network()).transform(self.checks)

    def network(self, trained: bool = True) -> Any:
        weights = self.weights if trained else None
        return zoo.create("squeezenet1_1", include_top=False, pooling="avg", weights=weights)

    def draw(self, each: int, number: int) -> tuple[list[Path], np.ndarray]:
        """`each` photographs of every class, others with every number; the same ones for all strategies."""
        rng = np.random.default_rng((number, each))
        members = [np.flatnonzero(self.labels == c) for c in range(len(self.classes))]
        chosen = np.concatenate([rng.choice(m, min(each, len(m)), replace=False) for m in members])
        return [self.paths[i] for i in chosen], self.labels[chosen]


def by_regression(data: Photographs, paths: list[Path], labels: np.ndarray, seed: int, epochs: int) -> float:
    classifier = ImageClassifier(data.network(), "squeezenet1_1", C=0.01).fit(paths, labels, data.classes)
    return float((classifier.decision(data.check_features).argmax(1) == data.truth).mean())


def by_training(trained: bool, **options: Any) -> Callable:
    """A strategy that trains a network, from ImageNet's weights or from nothing."""

    def learn(data: Photographs, paths: list[Path], labels: np.ndarray, seed: int, epochs: int) -> float:
        from graftwork.nn.rng import seeded

        with seeded(seed):
            trunk = data.network(trained)
        network = fine_tune(trunk, paths, labels, data.classes, recipe=TUNED, seed=seed, epochs=epochs, **options)
        return network.score(data.checks, data.truth)

    return learn


LEARN = dict(zip(STRATEGIES, (
    by_regression,
    by_training(True, strategy="head", head_lr=5e-3),
    by_training(True, strategy="all"),
    by_training(False, strategy="all", trunk_lr=1e-3, head_lr=1e-3, standardise=False),
), strict=True))  # fmt: skip


def measure(data: Photographs, each: int, draws: int, steps: int) -> dict[str, Any]:
    """Accuracies and seconds by strategy, at `each` labels a class."""
    epochs = max(1, round(steps / -(-each * len(data.classes) // BATCH)))
    result: dict[str, Any] = {"labels_a_class": each, "epochs": epochs}
    for name, learn in LEARN.items():
        accuracies, seconds = [], []
        for number in range(draws):
            start = time.perf_counter()
            accuracies.append(learn(data, *data.draw(each, number), number, epochs))
            seconds.append(time.perf_counter() - start)
        result[name] = {"mean": float(np.mean(accuracies)), "deviation": float(np.std(accuracies)),
                        "accuracies": accuracies, "seconds": float(np.median(seconds))}  # fmt: skip
        print(f"{each} a class, {name}: {np.mean(accuracies):.3f} in {np.median(seconds):.0f} s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="strategies for few labels")
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    busy, start = foreign_seconds(), time.perf_counter()
    data = Photographs(arguments.photos, arguments.weights)
    rows = [measure(data, each, arguments.draws, arguments.steps) for each in arguments.labels]
    after = foreign_seconds()
    elsewhere = None if busy is None or after is None else round((after - busy) / (time.perf_counter() - start), 2)
    table = Table("labels a class", *STRATEGIES)
    for row in rows:
        table.add_row(str(row["labels_a_class"]), *[f"{row[s]['mean']:.3f} ± {row[s]['deviation']:.3f}" for s in STRATEGIES])
    Console().print(table)
    kept = {"validation": len(data.checks), "draws": arguments.draws, "steps": arguments.steps,
            "cores_busy_elsewhere": elsewhere, "rows": rows}  # fmt: skip
    print("wrote", write("labels", kept))


if __name__ == "__main__":
    main()
