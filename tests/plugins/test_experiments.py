"""Splits, cross-validation, search, learning curves: on features made by hand, and on digits through a network."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graftwork import zoo
from graftwork.errors import ConfigError, DataError
from graftwork.plugins.transfer import experiments
from graftwork.plugins.transfer.experiments import compare_models, cross_validate, folds_of, learning_curve, split, tune

pytest.importorskip("sklearn")


def blobs(rng, each=20, classes=3, noise=1.0):
    """Features around a centre a class, in two dimensions of eight."""
    labels = np.repeat(np.arange(classes), each)
    angle = 2 * np.pi * labels / classes
    values = rng.normal(0, noise, (len(labels), 8))
    values[:, :2] += 4 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return values.astype(np.float32), labels


# Splits


def test_split_is_stratified_and_repeats():
    labels = np.repeat([0, 1, 2], [50, 30, 5])
    train, test = split(labels)
    assert np.bincount(labels[test]).tolist() == [10, 6, 1]
    assert sorted([*train, *test]) == list(range(85))
    np.testing.assert_array_equal(split(labels)[1], test)
    assert not np.array_equal(split(labels, seed=1)[1], test)


def test_small_classes_have_an_image_on_each_side_where_they_can():
    labels = np.array([0, 0, 1, 2, 2, 2])
    train, test = split(labels, 0.1)
    assert np.bincount(labels[test], minlength=3).tolist() == [1, 0, 1] and 2 in train


def test_groups_stay_together(rng):
    labels, groups = np.tile([0, 1], 40), np.repeat(np.arange(20), 4)
    train, test = split(labels, 0.2, groups)
    assert not set(groups[train]) & set(groups[test]) and len(test) == 16
    assert np.bincount(labels[test]).tolist() == [8, 8]
    for a, b in folds_of(labels, 4, groups):
        assert not set(groups[a]) & set(groups[b])


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([0, 0, 1, 1], 1.0), ConfigError, "test=1.0; expected a share between 0 and 1"),
        (([0],), DataError, "at least two images"),
        (([0, 1, 2],), DataError, "every class has a single image"),
        (([0, 0, 1, 1], 0.2, [1, 2]), DataError, "with 2 groups"),
        (([0, 0, 1, 1], 0.2, [1, 1, 2, 2]), DataError, "2 groups for a test share of 0.2; expected at least 5"),
    ],
)
def test_splits_that_cannot_be(arguments, error, words):
    with pytest.raises(error, match=words):
        split(*arguments)


def test_folds_are_fewer_where_a_class_is_small():
    assert len(folds_of([0, 0, 0, 1, 1, 1], 5)) == 3
    with pytest.raises(DataError, match="5 folds with 1 images in the smallest class"):
        folds_of([0, 0, 1], 5)


# Measuring


def test_cross_validation_of_what_is_separable_and_of_noise(rng):
    features, labels = blobs(rng)
    good = cross_validate(features, labels, 0.1)
    assert len(good.accuracies) == 5 and good.mean > 0.95 and good.deviation == np.std(good.accuracies, ddof=1)
    assert cross_validate(rng.normal(size=(60, 8)), labels).mean < 0.7  # a chance hit is 1/3, a deviation of 0.06


def test_cross_validation_of_another_estimator(rng):
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = blobs(rng)
    assert cross_validate(features, labels, estimator=KNeighborsClassifier(1)).mean > 0.9


def test_learning_curve_rises(rng):
    features, labels = blobs(rng, each=50, noise=2.5)
    rows = learning_curve(features, labels, (1, 5, 30, 1000), draws=6, C=0.1)
    assert [r["labels"] for r in rows] == [1, 5, 30] and rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.05
    with pytest.raises(DataError, match="has 40 training images"):
        learning_curve(features, labels, (1000,))
    with pytest.raises(ConfigError, match="draws=0"):
        learning_curve(features, labels, draws=0)


class Blind:
    """Pictures of which some must not be looked at while choosing."""

    def __init__(self, monkeypatch, features):
        self.features = features
        monkeypatch.setattr(experiments, "features_of", lambda model, pictures, layer, progress: features[layer])


def test_search_takes_the_better_layer_and_never_learns_from_the_test_part(rng, monkeypatch):
    good, labels = blobs(rng, each=30)
    poor = rng.normal(size=good.shape).astype(np.float32)
    _, kept = split(labels)
    Blind(monkeypatch, {None: poor, "good": good})
    found = tune(None, range(90), labels, (0.01, 0.1), (None, "good"))
    assert found.best["layer"] == "good" and len(found.rows) == 4 and found.test > 0.9
    assert (found.train_images, found.test_images) == (72, 18) and found.interval[0] < found.test <= found.interval[1]
    # whatever the test part holds, the candidates' figures stay
    broken = {name: values.copy() for name, values in ((None, poor), ("good", good))}
    for values in broken.values():
        values[kept] = 1e3
    Blind(monkeypatch, broken)
    again = tune(None, range(90), labels, (0.01, 0.1), (None, "good"))
    assert again.rows == found.rows and again.test < found.test
    assert json.loads(json.dumps(found.to_dict()))["best"]["layer"] == "good"


def test_search_of_nothing():
    with pytest.raises(ConfigError, match="nothing to search"):
        tune(None, [], [], strengths=())


# With a network


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = np.concatenate([np.flatnonzero(data.target == c)[:12] for c in (1, 4, 7)])
    return list(np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]), np.repeat(np.arange(3), 12)


def test_networks_side_by_side(digits):
    trained = zoo.create("glyphnet", weights="glyphs", include_top=False)
    rows = compare_models({"trained": trained, "random": zoo.create("glyphnet", include_top=False)}, *digits, test=0.5)
    by_name = {r.name: r for r in rows}
    assert by_name["trained"].accuracy > 0.8 and rows[0].accuracy >= rows[1].accuracy
    assert by_name["trained"].parameters == trained.count_parameters() and by_name["trained"].features == 192
    assert by_name["trained"].seconds > 0 and by_name["trained"].bytes > 4 * by_name["trained"].parameters
    with pytest.raises(ConfigError, match="no networks"):
        compare_models({}, *digits)


def test_search_over_layers_and_rates_of_a_network(digits):
    model = zoo.create("glyphnet", weights="glyphs", include_top=False)
    before = model.state_dict()
    before = {name: value.copy() for name, value in before.items()}
    options = {"epochs": 1, "augment": None, "compile": False}
    found = tune(model, *digits, strengths=(0.1,), layers=(None, "fire3"), rates=(1e-3,), test=0.5, fine_tuning=options)
    assert {r["method"] for r in found.rows} == {"features", "fine-tuning"} and len(found.rows) == 3
    assert found.test > 0.6
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
