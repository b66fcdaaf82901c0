"""Clusters of images that look alike, on deep features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ...errors import ConfigError, DataError, WeightsError
from .index import SimilarityIndex
from .saving import load_parts, save_parts

KIND = "graftwork-clusters"
METHODS = ("kmeans", "agglomerative", "dbscan")
SAMPLE = 2000  # rows that the silhouette is computed on


class Clusters(ClusterMixin, BaseEstimator):
    """k-means, agglomerative (Ward) or DBSCAN clustering by scikit-learn, with the number of clusters suggested.

    n_clusters: None tries 2 to `max_clusters` and takes the best mean silhouette (Rousseeuw 1987; on at most 2,000 rows);
    DBSCAN finds its own. eps: DBSCAN's radius; None takes the 90 % quantile of the distances to the `min_samples`-th neighbour.
    unit_length: rows are scaled to length 1 first, so that directions count, as for similar images.
    After `fit`: `labels_` (-1: in no cluster), `n_clusters_`, `cluster_centers_` (clusters, values), `silhouettes_` by number.
    """

    def __init__(self, method: str = "kmeans", n_clusters: int | None = None, max_clusters: int = 10, eps: float | None = None,
                 min_samples: int = 5, unit_length: bool = True, random_state: int = 0):  # fmt: skip
        self.method, self.n_clusters, self.max_clusters = method, n_clusters, max_clusters
        self.eps, self.min_samples, self.unit_length, self.random_state = eps, min_samples, unit_length, random_state

    def fit(self, X, y=None) -> Clusters:
        """Find clusters of rows (n, values)."""
        if self.method not in METHODS:
            raise ConfigError(f"method={self.method!r}; expected one of {', '.join(METHODS)}")
        X = self._scaled(validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2))
        self.silhouettes_: dict[int, float] = {}
        if self.method == "dbscan":
            self.labels_ = self._dbscan(X)
        elif self.n_clusters is not None:
            if not 1 <= self.n_clusters <= len(X):
                raise DataError(f"{self.n_clusters} clusters of {len(X)} images; expected 1 to {len(X)}")
            self.labels_ = self._partition(X, self.n_clusters)
        else:
            self.labels_ = self._suggested(X)
        self.n_clusters_ = int(self.labels_.max()) + 1
        centres = [X[self.labels_ == c].mean(axis=0) for c in range(self.n_clusters_)]
        self.cluster_centers_ = np.array(centres, X.dtype).reshape(-1, X.shape[1])
        return self

    def predict(self, X) -> np.ndarray:
        """The cluster of each row: that of the nearest centre. Raises DataError if there are no clusters."""
        check_is_fitted(self)
        X = self._scaled(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        if self.n_clusters_ == 0:
            raise DataError("DBSCAN found no cluster, so nothing can be put into one; choose a larger eps")
        index = SimilarityIndex(1, "euclidean").fit(self.cluster_centers_)
        return index.kneighbors(X, return_distance=False)[:, 0].astype(self.labels_.dtype)

    def save(self, path: str | Path) -> None:
        """Write settings, labels and centres to one HDF5 file that `load` reads."""
        check_is_fitted(self)
        scores = np.array([[k, v] for k, v in self.silhouettes_.items()]).reshape(-1, 2)
        arrays = {"labels": self.labels_, "centers": self.cluster_centers_, "silhouettes": scores}
        save_parts(path, KIND, {"clusters": arrays}, {"params": self.get_params()})

    @classmethod
    def load(cls, path: str | Path) -> Clusters:
        """Read what `save` wrote. Raises CheckpointError or WeightsError for a missing, damaged, foreign or newer file."""
        arrays, info = load_parts(path, KIND, {"clusters": ("labels", "centers", "silhouettes")}, ("params",))
        known = cls().get_params()
        if not isinstance(info["params"], dict) or set(info["params"]) != set(known):
            raise WeightsError(f"{path} is damaged: its settings are not {', '.join(known)}; save the clusters again")
        clusters, parts = cls(**info["params"]), arrays["clusters"]
        clusters.labels_, clusters.cluster_centers_ = parts["labels"], parts["centers"]
        clusters.n_clusters_, clusters.n_features_in_ = parts["centers"].shape
        clusters.silhouettes_ = {int(k): float(v) for k, v in parts["silhouettes"]}
        return clusters

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        if not self.unit_length:
            return X
        from sklearn.preprocessing import normalize

        return normalize(X)

    def _partition(self, X: np.ndarray, count: int) -> np.ndarray:
        from sklearn.cluster import AgglomerativeClustering, KMeans

        if self.method == "kmeans":
            return KMeans(count, n_init=4, random_state=self.random_state).fit_predict(X)
        return AgglomerativeClustering(count).fit_predict(X)

    def _suggested(self, X: np.ndarray) -> np.ndarray:
        """The partition with the best silhouette; with two rows, or rows that are all the same, one cluster."""
        from sklearn.metrics import silhouette_score

        found = {}
        distinct = len(np.unique(X, axis=0))
        for count in range(2, min(self.max_clusters, len(X) - 1, distinct) + 1):
            found[count] = self._partition(X, count)
            rows = np.random.default_rng(self.random_state).permutation(len(X))[:SAMPLE]
            if 1 < len(np.unique(found[count][rows])) < len(rows):
                self.silhouettes_[count] = float(silhouette_score(X[rows], found[count][rows]))
        if not self.silhouettes_:
            return np.zeros(len(X), np.int32)
        return found[max(self.silhouettes_, key=self.silhouettes_.__getitem__)]

    def _dbscan(self, X: np.ndarray) -> np.ndarray:
        from sklearn.cluster import DBSCAN

        eps = self.eps
        if eps is None:
            k = min(self.min_samples, len(X) - 1)
            distances, _ = SimilarityIndex(k, "euclidean").fit(X).kneighbors()
            eps = max(float(np.quantile(distances[:, -1], 0.9)), 1e-6)
        return DBSCAN(eps=eps, min_samples=self.min_samples).fit_predict(X)
