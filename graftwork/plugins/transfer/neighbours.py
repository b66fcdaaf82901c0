"""Similar images and clusters of deep features in one call; the models behind them are in index.py and clusters.py."""

from __future__ import annotations

import numpy as np

from . import require_scikit_learn


def similar(features: np.ndarray, queries: np.ndarray, k: int = 5, metric: str = "cosine") -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `features` for each query: (indices, distances), nearest first, exact."""
    require_scikit_learn()
    from .index import SimilarityIndex

    distances, indices = SimilarityIndex(k, metric).fit(features).kneighbors(queries)
    return indices, distances


def cluster(features: np.ndarray, count: int | None = None, seed: int = 0) -> np.ndarray:
    """Cluster numbers from k-means on unit-length features; the number of clusters is suggested if None."""
    require_scikit_learn()
    from .clusters import Clusters

    return Clusters(n_clusters=count, random_state=seed).fit(features).labels_
