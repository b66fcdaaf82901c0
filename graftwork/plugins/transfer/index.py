"""Similar images: an exact index over deep features, in blocks, with memory that is bounded; and an approximate one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from ...errors import ConfigError, DataError, MissingDependency
from .saving import load_parts, save_parts

KIND = "graftwork-similarity-index"
BLOCK = 8192  # rows of the index that are compared at a time
QUERIES = 1024  # and with how many queries
PAIRS = 1024  # distances that are computed exactly at a time
SPARE = 8  # candidates beyond those asked for, whose distances are computed exactly before any is left out
METRICS = ("cosine", "euclidean")


class SimilarityIndex(BaseEstimator):
    """The nearest rows of an array, by cosine or Euclidean distance; scikit-learn's conventions of neighbour search.

    Exact: a blocked matrix product finds candidates, whose distances are then computed from differences in float64. The rows
    given to `fit` are referred to, not copied, if they are float32 or float64 in C order. Working memory is a few
    times QUERIES x BLOCK values, whatever the size. approximate: search a graph (HNSW) of the library faiss instead, which
    is faster for millions of rows, misses some neighbours and keeps a copy of the rows.
    """

    def __init__(self, n_neighbors: int = 5, metric: str = "cosine", approximate: bool = False):
        self.n_neighbors, self.metric, self.approximate = n_neighbors, metric, approximate

    def fit(self, X, y=None, names: Sequence[str] | None = None) -> SimilarityIndex:
        """Take rows (n, values) in. names: what the rows are, such as paths; kept in `names_` and in the file."""
        if self.metric not in METRICS:
            raise ConfigError(f"metric={self.metric!r}; expected 'cosine' or 'euclidean'")
        X = validate_data(self, X, dtype=[np.float32, np.float64], order="C")
        if names is not None and len(names) != len(X):
            raise DataError(f"{len(names)} names for {len(X)} rows; expected one a row")
        self.rows_, self.names_ = X, None if names is None else [str(n) for n in names]
        self.norms_ = np.sqrt(np.einsum("ij,ij->i", X, X))
        self._graph = _faiss_graph(X, self.norms_, self.metric) if self.approximate else None
        return self

    def kneighbors(self, X=None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """(distances, indices), both (queries, k), nearest first; or indices alone.

        X: queries (n, values); None for the rows themselves, none of which then counts as its own neighbour. Raises DataError
        for more neighbours than there are.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        most = len(self.rows_) - (X is None)
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= most:
            raise DataError(f"k={k} neighbours of {most} images; expected 1 to {most}")
        queries = self._queries(X)
        indices, distances = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        for start in range(0, len(queries), QUERIES):
            part = slice(start, min(start + QUERIES, len(queries)))
            own = np.arange(part.start, part.stop) if X is None else None
            indices[part], distances[part] = self._nearest(queries[part], k, own)
        return (distances, indices) if return_distance else indices

    def radius_neighbors(self, X=None, radius: float = 0.1, return_distance: bool = True) -> Any:
        """Lists of arrays, one a query: (distances, indices) of all rows at most `radius` away, nearest first; exact always."""
        check_is_fitted(self)
        if not radius >= 0:
            raise ConfigError(f"radius={radius}; expected a distance, zero or more")
        queries = self._queries(X)
        distances: list[np.ndarray] = []
        indices: list[np.ndarray] = []
        for start in range(0, len(queries), QUERIES):
            part = queries[start : start + QUERIES]
            own = np.arange(start, start + len(part)) if X is None else None
            for found, far in self._within(part, radius, own):
                indices.append(found)
                distances.append(far)
        return (distances, indices) if return_distance else indices

    def graph(self, n_neighbors: int | None = None, radius: float | None = None):
        """The similarity graph of the rows: a symmetric SciPy CSR matrix (n, n) of distances between neighbours.

        Two rows are joined if either is among the other's `n_neighbors`, or with `radius` if they are that close.
        """
        from scipy.sparse import csr_matrix

        if radius is not None:
            distances, indices = self.radius_neighbors(radius=radius)
        else:
            distances, indices = self.kneighbors(n_neighbors=n_neighbors)
        starts = np.cumsum([0, *(len(found) for found in indices)])
        values = np.maximum(np.concatenate([*distances]), np.finfo(np.float64).tiny)  # a stored zero would mean: not joined
        half = csr_matrix((values, np.concatenate([*indices]), starts), (len(self.rows_), len(self.rows_)))
        return half.maximum(half.T).tocsr()

    def save(self, path: str | Path) -> None:
        """Write rows and names to one HDF5 file that `load` reads."""
        check_is_fitted(self)
        save_parts(path, KIND, {"index": {"rows": self.rows_}}, {**self.get_params(), "names": self.names_})

    @classmethod
    def load(cls, path: str | Path) -> SimilarityIndex:
        """Read what `save` wrote. Raises CheckpointError or WeightsError for a missing, damaged, foreign or newer file."""
        arrays, info = load_parts(path, KIND, {"index": ("rows",)}, ("n_neighbors", "metric", "approximate", "names"))
        index = cls(info["n_neighbors"], info["metric"], info["approximate"])
        return index.fit(arrays["index"]["rows"], names=info["names"])

    # Searching

    def _queries(self, X: Any) -> np.ndarray:
        if X is None:
            return self.rows_
        return validate_data(self, X, dtype=[self.rows_.dtype], order="C", reset=False)

    def _scores(self, queries: np.ndarray, start: int, stop: int) -> np.ndarray:
        """What grows with distance from each query, cheaply and in the rows' own precision: (queries, stop - start)."""
        products = queries @ self.rows_[start:stop].T
        norms = self.norms_[start:stop]
        if self.metric == "cosine":
            products *= -1 / np.where(norms > 0, norms, 1)
        else:
            products *= -2
            products += norms**2
        return products

    def _distances(self, queries: np.ndarray, owners: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Exact distances (m,) of queries[owners] and rows[found], in float64 and a bounded number at a time."""
        out = np.empty(len(found))
        for start in range(0, len(found), PAIRS):
            part = slice(start, start + PAIRS)
            a, b = queries[owners[part]].astype(np.float64), self.rows_[found[part]].astype(np.float64)
            if self.metric == "cosine":
                a, b = _unit(a), _unit(b)
            far = np.einsum("ij,ij->i", a - b, a - b)
            out[part] = far / 2 if self.metric == "cosine" else np.sqrt(far)  # |a - b|^2 = 2 - 2 cos for unit vectors
            if self.metric == "cosine":  # a vector of zeros has no direction: as far from all others as a right angle
                empty = a.any(axis=1) ^ b.any(axis=1)
                out[part][empty] = 1
        return out

    def _nearest(self, queries: np.ndarray, k: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        wanted = min(k + SPARE, len(self.rows_))
        found = self._candidates(queries, wanted) if self._graph is None else self._approximate(queries, wanted)
        owners = np.repeat(np.arange(len(queries)), wanted)
        far = self._distances(queries, owners, np.maximum(found, 0).ravel()).reshape(found.shape)
        far[found < 0] = np.inf  # the graph found fewer
        if own is not None:
            far[found == own[:, None]] = np.inf
        order = np.lexsort((found, far), axis=1)[:, :k]
        return np.take_along_axis(found, order, 1), np.take_along_axis(far, order, 1)

    def _candidates(self, queries: np.ndarray, wanted: int) -> np.ndarray:
        """Row numbers (queries, wanted) with the least scores. After the first block, only what beats the worst kept counts."""
        count = len(queries)
        best = np.full((count, wanted), np.inf, self.rows_.dtype)
        found = np.full((count, wanted), -1)
        for start in range(0, len(self.rows_), BLOCK):
            stop = min(start + BLOCK, len(self.rows_))
            scores = self._scores(queries, start, stop)
            better = scores < best.max(axis=1)[:, None]
            busy = np.flatnonzero(better.sum(axis=1) > wanted)
            if len(busy):  # too many to sort one by one: the best of this block first
                kept = np.argpartition(scores[busy], wanted - 1, axis=1)[:, :wanted]
                better[busy] = False
                better[busy[:, None], kept] = True
            owners, columns = np.nonzero(better)
            _merge(best, found, owners, scores[owners, columns], columns + start)
        return found

    def _within(self, queries: np.ndarray, radius: float, own: np.ndarray | None):
        """(row numbers, distances) of each query. Candidates are taken with a margin for rounding, then measured exactly."""
        norms = np.sqrt(np.einsum("ij,ij->i", queries, queries))
        margin = 1e-4 if self.rows_.dtype == np.float32 else 1e-9
        owners, found = [], []
        for start in range(0, len(self.rows_), BLOCK):
            stop = min(start + BLOCK, len(self.rows_))
            scores = self._scores(queries, start, stop)
            if self.metric == "cosine":
                near = scores <= (radius - 1 + margin) * np.where(norms > 0, norms, 1)[:, None]
                near |= (norms == 0)[:, None] | (self.norms_[start:stop] == 0)
            else:
                sizes = norms[:, None] ** 2 + self.norms_[start:stop] ** 2
                near = scores <= radius**2 - norms[:, None] ** 2 + margin * (sizes + radius**2)
            rows, columns = np.nonzero(near)
            owners.append(rows)
            found.append(columns + start)
        who, which = np.concatenate(owners), np.concatenate(found)
        far = self._distances(queries, who, which)
        keep = far <= radius
        if own is not None:
            keep &= which != own[who]
        who, which, far = who[keep], which[keep], far[keep]
        order = np.lexsort((which, far, who))
        ends = np.searchsorted(who[order], np.arange(len(queries) + 1))
        return [(which[order[a:b]], far[order[a:b]]) for a, b in pairwise(ends)]

    def _approximate(self, queries: np.ndarray, wanted: int) -> np.ndarray:
        queries = np.ascontiguousarray(queries, np.float32)
        if self.metric == "cosine":
            queries = _unit(queries)
        assert self._graph is not None  # fit made it, for an approximate index
        return self._graph.search(queries, wanted)[1]


def _merge(best: np.ndarray, found: np.ndarray, owners: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    """Put candidates, sorted by owner, among the best kept so far of each owner, in place."""
    if len(owners) == 0:
        return
    who, starts, counts = np.unique(owners, return_index=True, return_counts=True)
    wanted, most = best.shape[1], int(counts.max())
    slot = np.arange(len(owners)) - np.repeat(starts, counts)
    place = np.repeat(np.arange(len(who)), counts)
    new = np.full((len(who), most), np.inf, best.dtype)
    numbers = np.full((len(who), most), -1)
    new[place, slot], numbers[place, slot] = scores, rows
    every, names = np.concatenate([best[who], new], 1), np.concatenate([found[who], numbers], 1)
    kept = np.argpartition(every, wanted - 1, axis=1)[:, :wanted]
    best[who], found[who] = np.take_along_axis(every, kept, 1), np.take_along_axis(names, kept, 1)


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def _faiss_graph(rows: np.ndarray, norms: np.ndarray, metric: str):
    """A graph of nearest neighbours (Malkov and Yashunin 2016) with 32 links a row, by faiss."""
    if find_spec("faiss") is None:
        raise MissingDependency("approximate=True needs faiss, which is not installed: pip install faiss-cpu, or leave it out")
    import faiss

    graph = faiss.IndexHNSWFlat(rows.shape[1], 32)  # unit vectors have the same order by both metrics
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 80, 128
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK].astype(np.float32, copy=False)
        graph.add(_unit(part) if metric == "cosine" else part)
    return graph
