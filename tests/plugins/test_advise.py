"""The table as an adviser: what is measured, what follows from it, and that `fit` follows it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graftwork import zoo
from graftwork.errors import ConfigError, DataError
from graftwork.plugins.transfer import ImageClassifier
from graftwork.plugins.transfer.advise import (
    Advice,
    advise,
    decide,
    domain_distance,
    duration,
    fit,
    load,
    neighbour_accuracy,
    probe_sample,
)  # fmt: skip
from graftwork.plugins.transfer.finetune import FineTuned

pytest.importorskip("sklearn")


def figures(**changes):
    """What `advise` would measure of a middling dataset."""
    return {
        "images": 1000, "classes": 10, "per_class": 100.0, "fewest": 80, "most": 120, "features_accuracy": 0.8,
        "pixels_accuracy": 0.4, "closed": 0.67, "distance": None, "forward_seconds": 0.01, "probed": 600,
    } | changes  # fmt: skip


LESS = {"images": 100, "per_class": 10.0, "fewest": 10, "most": 10}
STRANGE = {"features_accuracy": 0.42, "closed": 0.03}


@pytest.mark.parametrize(
    "changes, quadrant, strategy, trouble",
    [
        ({}, "more data, same domain", "all", False),
        (LESS, "less data, same domain", "features", False),
        (STRANGE, "more data, different domain", "all", False),
        (LESS | STRANGE, "less data, different domain", "features", True),
        (LESS | {"distance": 0.3}, "less data, same domain", "features", False),
        (LESS | {"distance": 3.0, "closed": 0.3}, "less data, different domain", "features", True),
        (LESS | {"distance": 3.0, "closed": 0.8}, "less data, same domain", "features", False),
    ],
)
def test_the_four_corners(changes, quadrant, strategy, trouble):
    advice = decide(figures(**changes))
    assert (advice.quadrant, advice.strategy, advice.trouble) == (quadrant, strategy, trouble)
    assert ("corner of trouble" in str(advice)) == trouble and quadrant in str(advice)
    assert json.loads(json.dumps(advice.to_dict()))["quadrant"] == quadrant


def test_time_and_budget():
    advice = decide(figures(), epochs=10)
    assert advice.seconds == pytest.approx(1000 * 0.01 * 3 * 10) and advice.options == {"epochs": 10}
    cheap = decide(figures(), budget=60)
    assert cheap.strategy == "features" and cheap.seconds == pytest.approx(10)
    assert "more than the 60 s allowed" in cheap.reasons[-1]
    assert [duration(s) for s in (0.2, 45, 600, 9000)] == ["1 s", "45 s", "10 min", "2.5 h"]


def test_uneven_classes_are_said_and_balanced():
    advice = decide(figures(fewest=10, most=300))
    assert advice.options["balance"] == "weights" and any("uneven (10 to 300" in r for r in advice.reasons)


def test_neighbours():
    values = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [1, 1]], np.float32)
    assert neighbour_accuracy(values, np.array([0, 0, 1, 1, 2])) == 1.0  # a class of one cannot be found and does not count
    assert neighbour_accuracy(values[:4], np.array([0, 1, 0, 1])) == 0.0


def test_the_sample_is_even_where_it_can_be():
    labels = np.repeat([0, 1, 2], [1000, 50, 5])
    assert np.bincount(labels[probe_sample(labels, 65, 0)]).tolist() == [30, 30, 5]
    assert len(probe_sample(labels, 5000, 0)) == 1055


def digits(each=8):
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = np.concatenate([np.flatnonzero(data.target == c)[:each] for c in (1, 4, 7)])
    return list(np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]), np.repeat(np.arange(3), each)


@pytest.fixture(scope="module")
def trunk():
    return zoo.create("glyphnet", weights="glyphs", include_top=False)


def test_distance_from_what_the_weights_hold(trunk, rng):
    noise = list(rng.integers(0, 256, (24, 32, 32, 1)).astype(np.uint8))
    near, far = (domain_distance(trunk, pictures, np.zeros((1, 1))) for pictures in (digits()[0], noise))
    assert 0 < near < far
    assert domain_distance(zoo.create("lenet5", include_top=False), noise, np.zeros((1, 1))) is None


def test_distance_from_reference_pictures(trunk, rng):
    from graftwork.plugins.transfer import FeatureExtractor

    pictures = digits()[0]
    features = FeatureExtractor(trunk).transform(pictures)
    assert domain_distance(trunk, pictures, features, pictures) == pytest.approx(0, abs=1e-4)  # float32
    noise = list(rng.integers(0, 256, (24, 32, 32, 1)).astype(np.uint8))
    assert domain_distance(trunk, pictures, features, noise) > 0.5


def test_advice_on_digits_and_following_it(trunk, tmp_path):
    pictures, labels = digits()
    advice = advise(trunk, pictures, labels)
    assert advice.data == "less" and advice.strategy == "features" and advice.measured["probed"] == 24
    assert advice.measured["features_accuracy"] > 0.7 and advice.seconds > 0
    found = fit(trunk, pictures, labels, ["one", "four", "seven"], "glyphnet")
    assert isinstance(found, ImageClassifier) and isinstance(found.advice, Advice) and found.advice.quadrant == advice.quadrant
    found.save(tmp_path / "features.h5")
    np.testing.assert_array_equal(load(tmp_path / "features.h5").predict(pictures), found.predict(pictures))


def test_fine_tuning_as_told(tmp_path):
    pictures, labels = digits(12)
    model = zoo.create("glyphnet", weights="glyphs", include_top=False)
    advice = decide(figures(), epochs=1)
    options = {"augment": None, "compile": False}
    found = fit(model, pictures, labels, ["one", "four", "seven"], "glyphnet", advice, **options)
    assert isinstance(found, FineTuned) and found.advice is advice and len(found.history) == 1
    assert found.best is not None  # a tenth was put aside to choose the epoch by
    found.save(tmp_path / "tuned.h5")
    np.testing.assert_allclose(load(tmp_path / "tuned.h5").predict_proba(pictures), found.predict_proba(pictures), atol=1e-5)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m: advise(m, [1, 2], [0, 0]), DataError, "2 labels of 1 classes"),
        (lambda m: advise(m, [1, 2], [0, 1]), DataError, "two pictures in one of them"),
        (lambda m: advise(m, [1, 2, 3], [0, 1]), DataError, "3 pictures with 2 labels"),
        (lambda m: advise(m, [1, 2, 3], [0, 1, 1], budget=0), ConfigError, "budget=0"),
        (lambda m: fit(m, [], [], [], "glyphnet", "best"), ConfigError, "strategy='best'; expected auto, features"),
        (lambda m: fit(m, [], [], [], "glyphnet", "all", C=0.1), ConfigError, "C=0.1 is for a model on features"),
        (lambda m: fit(m, [], [], [], "glyphnet", "features", epochs=3), ConfigError, "epochs: options of fine-tuning"),
    ],
)
def test_what_is_refused(trunk, call, error, words):
    with pytest.raises(error, match=words):
        call(trunk)
