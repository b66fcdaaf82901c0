"""Similar images and clusters, on deep features."""

from __future__ import annotations

import numpy as np

from ...errors import DataError
from . import require_scikit_learn


def similar(features: np.ndarray, queries: np.ndarray, k: int = 5, metric: str = "cosine") -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `features` for each query: (indices, distances), nearest first, by scikit-learn's exact search."""
    require_scikit_learn()
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k <= len(features):
        raise DataError(f"k={k} neighbours of {len(features)} images; expected 1 to {len(features)}")
    index = NearestNeighbors(n_neighbors=k, metric=metric).fit(features)
    distances, indices = index.kneighbors(queries)
    return indices, distances


def cluster(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Cluster numbers from k-means on unit-length features."""
    require_scikit_learn()
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    if not 1 <= count <= len(features):
        raise DataError(f"{count} clusters of {len(features)} images; expected 1 to {len(features)}")
    return KMeans(count, n_init=4, random_state=seed).fit_predict(normalize(features))
