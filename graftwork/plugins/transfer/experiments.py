"""The loop around a classifier: splits, cross-validation, a small search, learning curves, networks side by side.

All of it works on deep features, which are read once. Whoever chooses something here chooses on the training part alone; the
test part is looked at once, at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...nn import Module
from . import require_scikit_learn
from .classifier import CANDIDATES, fitted_regression, logistic_regression, one_blas_thread
from .evaluation import wilson
from .features import FeatureExtractor


def split(labels: Any, test: float = 0.2, groups: Any = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices to learn from and to test on, in ascending order: each class in proportion, each group on one side only.

    A class of two or more images has at least one on each side; a single image is learned from. groups: one value an image,
    such as the person or the product on it; the shares then hold as nearly as the groups allow. Raises ConfigError for a share
    outside 0 to 1 and DataError for labels or groups that cannot be split so.
    """
    labels = np.asarray(labels)
    if not 0 < test < 1:
        raise ConfigError(f"test={test}; expected a share between 0 and 1, such as 0.2")
    if labels.ndim != 1 or len(labels) < 2 or (groups is not None and len(groups) != len(labels)):
        raise DataError(
            f"labels {list(labels.shape)}{'' if groups is None else f' with {len(groups)} groups'}; expected one label (and "
            "one group) an image, and at least two images"
        )
    if groups is not None:
        return _split_groups(labels, test, np.asarray(groups), seed)
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(test * len(members)), 1), len(members) - 1)
        chosen.append(members[:count])
    picked = np.sort(np.concatenate(chosen))
    if len(picked) == 0:
        raise DataError("every class has a single image, so none can be kept for a test; add pictures")
    return np.setdiff1d(np.arange(len(labels)), picked), picked


def _split_groups(labels: np.ndarray, test: float, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    require_scikit_learn()
    from sklearn.model_selection import StratifiedGroupKFold

    parts = max(round(1 / test), 2)
    if len(np.unique(groups)) < parts:
        raise DataError(f"{len(np.unique(groups))} groups for a test share of {test}; expected at least {parts} groups")
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    return next(folds.split(np.zeros(len(labels)), labels, groups))


def folds_of(labels: Any, folds: int = 5, groups: Any = None, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds as (train, check) indices; no group is on both sides. Fewer folds where a class is too small."""
    require_scikit_learn()
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(labels)
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    most = fewest if groups is None else min(len(np.unique(np.asarray(groups)[labels == c])) for c in np.unique(labels))
    if folds < 2 or most < 2:
        raise DataError(
            f"{folds} folds with {most} {'images' if groups is None else 'groups'} in the smallest class; expected at least "
            "two of both for cross-validation"
        )
    maker = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(maker(min(folds, most), shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups))


@dataclass(frozen=True)
class CrossValidation:
    """Accuracies by fold."""

    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        """Standard deviation between folds (of the sample)."""
        return float(np.std(self.accuracies, ddof=1))


def cross_validate(features: np.ndarray, labels: Any, C: float = 0.01, estimator: Any = None, folds: int = 5,
                   groups: Any = None, seed: int = 0) -> CrossValidation:  # fmt: skip
    """Accuracy of a model on features, on each fold in turn. estimator: any scikit-learn classifier instead of ours."""
    from sklearn.base import clone

    labels = np.asarray(labels)
    model = logistic_regression(C) if estimator is None else estimator
    parts = folds_of(labels, folds, groups, seed)
    with one_blas_thread() if estimator is None else nullcontext():
        return CrossValidation(tuple(
            float(clone(model).fit(features[a], labels[a]).score(features[b], labels[b])) for a, b in parts
        ))  # fmt: skip


@dataclass(frozen=True)
class Search:
    """What a search found. rows: one dict a candidate, the best first; test: accuracy of the best on the part that the search
    never saw, with its 95 % interval."""

    best: dict[str, Any]
    rows: list[dict[str, Any]]
    test: float
    interval: tuple[float, float]
    train_images: int
    test_images: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tune(model: Module, pictures: Sequence[Any], labels: Any, strengths: Sequence[float] = CANDIDATES,
         layers: Sequence[str | None] = (None,), rates: Sequence[float] = (), classes: Sequence[str] | None = None,
         groups: Any = None, test: float = 0.2, folds: int = 3, seed: int = 0, progress: bool = False,
         fine_tuning: Mapping[str, Any] | None = None) -> Search:  # fmt: skip
    """Choose layer, regularisation and, if `rates` are given, the trunk's learning rate, and measure the choice once.

    A fifth (`test`) of the pictures is put aside first. On the others, each layer with each of `strengths` is cross-validated;
    each rate is a fine-tuning run on four fifths of them, measured on the last. layers: names of the model's layers, None for
    the trunk's end. fine_tuning: further options of `fine_tune`, such as epochs. The model is left as it was.
    """
    if not strengths and not rates:
        raise ConfigError("nothing to search: give strengths (C) or rates (learning rates)")
    start, labels = time.perf_counter(), np.asarray(labels)
    train, kept = split(labels, test, groups, seed)
    inner = None if groups is None else np.asarray(groups)[train]
    features = {layer: features_of(model, pictures, layer, progress) for layer in (layers if strengths else ())}
    rows: list[dict[str, Any]] = []
    for layer, values in features.items():
        for C in strengths:
            found = cross_validate(values[train], labels[train], C, None, folds, inner, seed)
            rows.append({"method": "features", "layer": layer, "C": C, "accuracy": found.mean, "deviation": found.deviation})
    options = dict(fine_tuning or {})
    names = list(classes) if classes is not None else [str(c) for c in np.unique(labels)]
    if rates:
        a, b = split(labels[train], test, inner, seed + 1)
        for rate in rates:
            right = _fine_tuned(model, pictures, labels, train[a], train[b], names, rate, seed, options)
            rows.append({"method": "fine-tuning", "trunk_lr": rate, "accuracy": float(right.mean()), "deviation": None})
    rows.sort(key=lambda row: -row["accuracy"])
    best = rows[0]
    if best["method"] == "features":
        values = features[best["layer"]]
        right = fitted_regression(best["C"], values[train], labels[train]).predict(values[kept]) == labels[kept]
    else:
        right = _fine_tuned(model, pictures, labels, train, kept, names, best["trunk_lr"], seed, options)
    interval = wilson(int(right.sum()), len(right))
    return Search(best, rows, float(right.mean()), interval, len(train), len(kept), time.perf_counter() - start)


def _fine_tuned(model: Module, pictures: Sequence[Any], labels: np.ndarray, train: np.ndarray, checks: np.ndarray,
                classes: Sequence[str], rate: float, seed: int, options: Mapping[str, Any]) -> np.ndarray:  # fmt: skip
    """Which checks a run gets right; afterwards the model has its weights back."""
    from .finetune import fine_tune

    before = {name: value.copy() for name, value in model.state_dict().items()}
    try:
        found = fine_tune(model, [pictures[i] for i in train], labels[train], classes, trunk_lr=rate, seed=seed, **options)
        return found.predict([pictures[i] for i in checks]) == labels[checks]
    finally:
        model.load_state_dict(before)


def features_of(model: Module, pictures: Sequence[Any], layer: str | None = None, progress: bool = False) -> np.ndarray:
    """Pooled features (images, values) of the trunk's end, or of a layer of the model."""
    return FeatureExtractor(model, layer=layer, progress=progress).transform(pictures)


def learning_curve(features: np.ndarray, labels: Any, counts: Sequence[int] = (1, 2, 5, 10, 20, 50, 100), draws: int = 5,
                   C: float = 0.01, test: float = 0.2, groups: Any = None, seed: int = 0) -> list[dict[str, Any]]:  # fmt: skip
    """Accuracy on a test part against labels per class: one dict a count, with mean and deviation over draws.

    Counts that the smallest class's training part does not reach are left out.
    """
    labels = np.asarray(labels)
    if draws < 1 or not counts or min(counts) < 1:
        raise ConfigError(f"draws={draws}, counts={list(counts)}; expected at least one draw and positive counts")
    train, kept = split(labels, test, groups, seed)
    members = [train[labels[train] == c] for c in np.unique(labels[train])]
    rows = []
    for count in [c for c in counts if c <= min(map(len, members))]:
        scores = []
        for draw in range(draws):
            rng = np.random.default_rng((seed, draw, count))
            chosen = np.concatenate([rng.choice(m, count, replace=False) for m in members])
            model = fitted_regression(C, features[chosen], labels[chosen])
            scores.append(float(model.score(features[kept], labels[kept])))
        rows.append(
            {"labels": int(count), "accuracy": float(np.mean(scores)), "deviation": float(np.std(scores)), "draws": draws}
        )
    if not rows:
        raise DataError(
            f"the smallest class has {min(map(len, members))} training images; give smaller counts than {min(counts)}"
        )
    return rows


@dataclass(frozen=True)
class Network:
    """A network in a comparison, as measured. bytes: of its weights in float32; seconds: per picture, decoding included."""

    name: str
    accuracy: float
    interval: tuple[float, float]
    parameters: int
    bytes: int
    seconds: float
    features: int
    notes: dict[str, Any] = field(default_factory=dict)


def compare_models(models: Mapping[str, Module], pictures: Sequence[Any], labels: Any, C: float = 0.01, test: float = 0.2,
                   groups: Any = None, seed: int = 0, progress: bool = False) -> list[Network]:  # fmt: skip
    """Networks without top on the same split: accuracy of a logistic regression on their features, time a picture, size; the
    most accurate first."""
    if not models:
        raise ConfigError("no networks to compare; give {name: model}")
    labels, rows = np.asarray(labels), []
    train, kept = split(labels, test, groups, seed)
    for name, model in models.items():
        extractor = FeatureExtractor(model, progress=progress)
        extractor.transform(list(pictures[:1]))  # what is compiled at first use is not the network's speed
        start = time.perf_counter()
        features = extractor.transform(pictures)
        seconds = (time.perf_counter() - start) / len(pictures)
        right = fitted_regression(C, features[train], labels[train]).predict(features[kept]) == labels[kept]
        size = sum(value.nbytes for value in model.state_dict().values())
        rows.append(Network(name, float(right.mean()), wilson(int(right.sum()), len(right)), model.count_parameters(), size,
                            seconds, features.shape[1]))  # fmt: skip
    return sorted(rows, key=lambda row: -row.accuracy)
