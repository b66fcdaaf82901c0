"""The similarity index and clusters, against scikit-learn and by its own checks of estimators."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.estimator_checks import parametrize_with_checks

from graftwork import errors
from graftwork.plugins.transfer import Clusters, SimilarityIndex, TagHead, index

METRICS = ("cosine", "euclidean")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 16)
    monkeypatch.setattr(index, "QUERIES", 7)


@parametrize_with_checks([SimilarityIndex(), Clusters(max_clusters=4), TagHead()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_neighbours_are_those_of_scikit_learn(rng, metric, dtype, small_blocks):
    rows = rng.standard_normal((101, 6)).astype(dtype) + 3
    queries = rng.standard_normal((23, 6)).astype(dtype) + 3
    ours, theirs = SimilarityIndex(4, metric).fit(rows), NearestNeighbors(n_neighbors=4, metric=metric).fit(rows.astype("f8"))
    for given in (queries, None):
        distances, indices = ours.kneighbors(given)
        wanted, expected = theirs.kneighbors(None if given is None else given.astype("f8"))
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_allclose(distances, wanted, atol=1e-12)  # both compute these in float64
        np.testing.assert_array_equal(ours.kneighbors(given, return_distance=False), indices)
    radius = 0.05 if metric == "cosine" else 1.5
    for given in (queries, None):
        distances, indices = ours.radius_neighbors(given, radius)
        wanted, expected = theirs.radius_neighbors(None if given is None else given.astype("f8"), radius, sort_results=True)
        assert sum(map(len, indices)) > 20
        for a, b in zip(indices, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(np.concatenate(distances), np.concatenate(wanted), atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_in_the_worst_order_and_rows_that_are_the_same(metric, small_blocks):
    angles = np.linspace(1.5, 0, 90)
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)  # each is nearer to the query than the one before
    found = SimilarityIndex(5, metric).fit(rows).kneighbors(np.array([[1, 0]], np.float32), return_distance=False)
    assert found.tolist() == [[89, 88, 87, 86, 85]]
    same = SimilarityIndex(3, metric).fit(np.ones((40, 2), np.float32))
    distances, indices = same.kneighbors()
    assert (distances == 0).all() and (indices != np.arange(40)[:, None]).all()
    assert all(len(set(row)) == 3 for row in indices.tolist())


def test_a_vector_of_zeros_is_at_right_angles_to_all_others():
    rows = np.array([[0, 0], [1, 0], [0, 1], [-1, 0]], np.float32)
    distances, indices = SimilarityIndex(3).fit(rows).kneighbors(rows[:1] * 0)
    assert distances.tolist() == [[0, 1, 1]] and indices[0, 0] == 0
    assert SimilarityIndex(1).fit(rows).kneighbors(rows[3:])[0].tolist() == [[0]]


def test_the_graph_joins_both_ways(rng, small_blocks):
    rows = rng.standard_normal((40, 5))
    fitted = SimilarityIndex(3, "euclidean").fit(rows)
    graph = fitted.graph()
    assert (graph != graph.T).nnz == 0 and graph.diagonal().sum() == 0 and (np.diff(graph.indptr) >= 3).all()
    i, j = graph.nonzero()
    np.testing.assert_allclose(np.asarray(graph[i, j]).ravel(), np.linalg.norm(rows[i] - rows[j], axis=1), rtol=1e-12)
    near = fitted.graph(radius=1.5)
    every = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    assert near.nnz == (every <= 1.5).sum() - 40


def test_rows_are_not_copied(rng):
    rows = rng.standard_normal((20, 3)).astype(np.float32)
    assert SimilarityIndex().fit(rows).rows_ is rows


def test_an_index_in_a_file(rng, tmp_path):
    rows = rng.standard_normal((30, 4)).astype(np.float32)
    fitted = SimilarityIndex(2, "euclidean").fit(rows, names=[f"große/{i}.jpg" for i in range(30)])
    fitted.save(tmp_path / "index.h5")
    loaded = SimilarityIndex.load(tmp_path / "index.h5")
    assert loaded.names_ == fitted.names_ and loaded.get_params() == fitted.get_params()
    for a, b in zip(loaded.kneighbors(rows), fitted.kneighbors(rows), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(errors.WeightsError, match="not a saved clusters"):
        Clusters.load(tmp_path / "index.h5")
    with h5py.File(tmp_path / "index.h5", "r+") as file:
        del file["index"]["rows"]
    with pytest.raises(errors.WeightsError, match="it lacks index/rows"):
        SimilarityIndex.load(tmp_path / "index.h5")


def test_what_an_index_refuses(rng):
    rows = rng.standard_normal((10, 3))
    with pytest.raises(errors.ConfigError, match="metric='manhattan'"):
        SimilarityIndex(metric="manhattan").fit(rows)
    with pytest.raises(errors.DataError, match="k=10 neighbours of 9 images"):
        SimilarityIndex(10).fit(rows).kneighbors()
    with pytest.raises(errors.DataError, match="3 names for 10 rows"):
        SimilarityIndex().fit(rows, names=["a", "b", "c"])
    with pytest.raises(errors.ConfigError, match="radius=-1"):
        SimilarityIndex().fit(rows).radius_neighbors(radius=-1)
    with pytest.raises(ValueError, match="3 features"):
        SimilarityIndex().fit(rows).kneighbors(rows[:, :2])


def test_without_faiss_one_sentence(rng, monkeypatch):
    monkeypatch.setattr(index, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingDependency, match="pip install faiss-cpu"):
        SimilarityIndex(approximate=True).fit(rng.standard_normal((10, 3)))


@pytest.mark.parametrize("metric", METRICS)
def test_the_approximate_index_finds_nearly_all(rng, metric):
    pytest.importorskip("faiss")
    rows = rng.standard_normal((500, 8)).astype(np.float32)
    indexes = [SimilarityIndex(5, metric, approximate=a).fit(rows) for a in (False, True)]
    exact, graph = (i.kneighbors(return_distance=False) for i in indexes)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.tolist(), graph.tolist(), strict=True)]) > 0.95


# Clusters


def blobs(rng, count=3, each=30):
    """Well separated directions: rows, and the blob of each."""
    centres = np.eye(count, 8) * 5
    return np.concatenate([c + 0.3 * rng.standard_normal((each, 8)) for c in centres]), np.repeat(np.arange(count), each)


@pytest.mark.parametrize("method", ["kmeans", "agglomerative", "dbscan"])
def test_clusters_find_the_blobs_and_their_number(rng, method, tmp_path):
    from sklearn.metrics import adjusted_rand_score

    rows, truth = blobs(rng)
    clusters = Clusters(method, max_clusters=5).fit(rows)
    assert clusters.n_clusters_ == 3 and adjusted_rand_score(truth, clusters.labels_) > (0.8 if method == "dbscan" else 0.99)
    if method != "dbscan":
        assert max(clusters.silhouettes_, key=clusters.silhouettes_.get) == 3 and set(clusters.silhouettes_) == {2, 3, 4, 5}
    inside = clusters.labels_ >= 0
    np.testing.assert_array_equal(clusters.predict(rows)[inside], clusters.labels_[inside])
    clusters.save(tmp_path / "clusters.h5")
    loaded = Clusters.load(tmp_path / "clusters.h5")
    np.testing.assert_array_equal(loaded.predict(rows), clusters.predict(rows))
    assert loaded.get_params() == clusters.get_params() and loaded.silhouettes_ == clusters.silhouettes_


def test_clusters_of_rows_that_are_all_the_same_and_what_they_refuse(rng):
    assert Clusters().fit(np.ones((6, 3))).n_clusters_ == 1
    assert Clusters().fit(np.eye(2)).labels_.tolist() == [0, 0]
    lonely = Clusters("dbscan", eps=1e-3).fit(rng.standard_normal((20, 6)))
    assert lonely.n_clusters_ == 0 and set(lonely.labels_) == {-1}
    with pytest.raises(errors.DataError, match="choose a larger eps"):
        lonely.predict(np.ones((1, 6)))
    with pytest.raises(errors.ConfigError, match="method='spectral'"):
        Clusters("spectral").fit(np.eye(3))
    with pytest.raises(errors.DataError, match="4 clusters of 3 images"):
        Clusters(n_clusters=4).fit(np.eye(3))


# Tags


def test_tags_of_arrays(rng):
    rows = rng.standard_normal((120, 4))
    truth = np.stack([rows[:, 0] > 0, rows[:, 1] + rows[:, 2] > 0, np.ones(120), np.zeros(120)], 1).astype(int)
    head = TagHead(C=10.0).fit(rows, truth)
    assert (head.predict(rows) == truth).mean() > 0.97
    probabilities = head.predict_proba(rows)
    assert (probabilities[:, 2] > 0.999).all() and (probabilities[:, 3] < 0.001).all()
