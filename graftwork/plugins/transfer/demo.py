"""The demonstration: a network trained on printed characters learns handwritten digits from five examples each."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ...errors import ConfigError
from ...nn import no_grad
from ...nn.files import require_writable
from ...nn.rng import manual_seed
from ...nn.tensor import Tensor
from ...zoo import create
from . import require_scikit_learn
from .classifier import fitted_regression
from .features import FeatureExtractor
from .finetune import fine_tune
from .neighbours import cluster, similar
from .report import Section, bar_chart, picture_grid, table, write_page

LABELS_PER_CLASS = 5
EPOCHS = 24


def run(output: str | Path = "demo-report.html", draws: int = 5) -> dict[str, list[float]]:
    """Compare four ways to learn digits from few labels, look for similar ones, and write one page about it.

    Returns the accuracies by method, one a draw. Needs scikit-learn (for its real handwritten digits).
    """
    from rich.console import Console

    if draws < 1:
        raise ConfigError(f"draws={draws}; expected at least 1")
    require_scikit_learn()
    output, console, start = require_writable(output), Console(), time.perf_counter()
    pixels, labels = load_digits()
    model = create("glyphnet", weights="glyphs", include_top=False)
    console.print(f"{len(pixels)} handwritten digits, {LABELS_PER_CLASS} labels a class, {draws} draws")
    features = FeatureExtractor(model, progress=True).transform(list(pixels))
    scores: dict[str, list[float]] = {}
    for draw in range(draws):
        for name, accuracy in compare(pixels, features, labels, draw).items():
            scores.setdefault(name, []).append(accuracy)
        console.print(f"draw {draw + 1}: " + ", ".join(f"{n} {s[-1]:.3f}" for n, s in scores.items()))
    seconds = time.perf_counter() - start
    write_report(output, pixels, features, labels, scores, seconds)
    _print_scores(console, scores)
    console.print(f"{time.perf_counter() - start:.0f} s; wrote {output}")
    return scores


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 scanned digits as uint8 (n, 8, 8, 1), and their labels."""
    from sklearn.datasets import load_digits as load

    data = load()
    return np.round(data.images * (255 / 16)).astype(np.uint8)[..., None], data.target.astype(np.int64)


def draw_labels(labels: np.ndarray, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the labelled examples (the same number a class) and of all others."""
    rng = np.random.default_rng(draw)
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(labels == c), LABELS_PER_CLASS, replace=False) for c in np.unique(labels)]
    )
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


def compare(pixels, features, labels, draw: int) -> dict[str, float]:
    """Accuracy of the four methods on one draw, on all digits that were not labelled."""
    train, test = draw_labels(labels, draw)
    raw = pixels.reshape(len(pixels), -1) / 255
    return {
        "raw pixels + logistic regression": _regression(raw, labels, train, test, 1.0),
        "the same network from nothing": _network(pixels, labels, train, test, draw, None),
        "deep features + logistic regression": _regression(features, labels, train, test, 0.1),
        "fine-tuned network": _network(pixels, labels, train, test, draw, "glyphs"),
    }


def _regression(x, labels, train, test, strength: float) -> float:
    return float(fitted_regression(strength, x[train], labels[train]).score(x[test], labels[test]))


def _network(pixels, labels, train, test, seed: int, weights: str | None) -> float:
    """Train GlyphNet on the labelled digits from given weights, or from nothing, and measure it on the others."""
    manual_seed(seed)
    trunk = create("glyphnet", weights=weights, include_top=False)
    inputs = trunk.preprocess(list(pixels)).numpy()
    trunk_lr, head_lr = (5e-4, 1e-2) if weights else (4e-3, 4e-3)
    model = fine_tune(trunk, inputs[train], labels[train], 10, epochs=EPOCHS, seed=seed, transform=shift, batch_size=16,
                      freeze_statistics=weights is not None, trunk_lr=trunk_lr, head_lr=head_lr, standardise=False,
                      compile=False).model  # fmt: skip
    right = 0
    with no_grad():
        for i in range(0, len(test), 256):
            part = test[i : i + 256]
            right += int((model(Tensor(inputs[part])).numpy().argmax(1) == labels[part]).sum())
    return right / len(test)


def shift(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Augmentation: every image moved by up to two pixels."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    height, width = images.shape[1:3]
    moves = rng.integers(0, 5, (len(images), 2))
    return np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(padded, moves, strict=True)]), labels


def _print_scores(console, scores) -> None:
    from rich.table import Table

    shown = Table("method", "accuracy", "deviation")
    for name, values in scores.items():
        shown.add_row(name, f"{np.mean(values):.3f}", f"{np.std(values):.3f}")
    console.print(shown)


def write_report(output: Path, pixels, features, labels, scores, seconds: float) -> None:
    """The page: accuracies, similar digits, clusters."""
    rng = np.random.default_rng(3)
    queries = np.array([rng.choice(np.flatnonzero(labels == c)) for c in range(10)])
    found, _ = similar(features, features[queries], k=9)
    clusters = cluster(features, 10)
    rows = [[n, f"{np.mean(s):.3f}", f"{np.std(s):.3f}", ", ".join(f"{v:.3f}" for v in s)] for n, s in scores.items()]
    groups = [np.flatnonzero(clusters == c)[:14] for c in range(10)]
    purity = sum(np.bincount(labels[clusters == c]).max() for c in range(10)) / len(labels)
    sections = [
        Section(
            "Four ways to learn from fifty labels",
            f"{LABELS_PER_CLASS} labelled digits of each class; accuracy on the other {len(labels) - 10 * LABELS_PER_CLASS:,}, "
            f"mean of {len(next(iter(scores.values())))} draws. The pretrained network has never seen handwriting: it learned "
            "printed characters, rendered from fonts.",
            bar_chart({n: (float(np.mean(s)), float(np.std(s))) for n, s in scores.items()})
            + table(["method", "mean", "deviation", "draws"], rows),
        ),
        Section(
            "Similar images",
            "The first of each row is the question; the others are its nearest neighbours by deep features (cosine).",
            picture_grid([pixels[row] for row in found], [labels[row] for row in found]),
        ),
        Section(
            "Clusters without labels",
            f"k-means on the deep features, ten clusters; {purity:.0%} of the digits are in one that is mostly of their kind.",
            picture_grid([pixels[g] for g in groups], [labels[g] for g in groups]),
        ),
    ]
    write_page(output, "A grafted network learns digits", f"Made in {seconds:.0f} seconds on this machine's CPU.", sections)
