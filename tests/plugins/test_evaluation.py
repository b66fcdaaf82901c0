"""Figures about a classifier: intervals, confusion, mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graftwork.errors import DataError
from graftwork.plugins.transfer.evaluation import Evaluation, wilson


@pytest.fixture
def found():
    """Six images of three classes (none of the third); one cat is taken for a dog, surely; one dog for a cat, less so."""
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.05, 0.95, 0], [0.2, 0.8, 0], [0.55, 0.4, 0.05], [0.1, 0.7, 0.2]]
    )
    return Evaluation(["cat", "dog", "eel"], np.array([0, 0, 0, 1, 1, 1]), probabilities)


@pytest.mark.parametrize(
    "right, total, low, high",
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (289, 341, 0.8055, 0.8818)],
)
def test_wilson_interval(right, total, low, high):
    """Figures from the closed form, as R's prop.test(correct=FALSE) gives them for the first three."""
    assert wilson(right, total) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("right, total", [(3, 2), (-1, 2), (0, 0)])
def test_counts_that_are_none(right, total):
    with pytest.raises(DataError, match="no more successes than trials"):
        wilson(right, total)


def test_confusion_and_accuracy(found):
    assert found.accuracy == pytest.approx(4 / 6) and found.interval == wilson(4, 6)
    np.testing.assert_array_equal(found.confusion, [[2, 1, 0], [1, 2, 0], [0, 0, 0]])
    assert found.most_confused() == [(0, 1, 1), (1, 0, 1)]
    assert found.confident_mistakes().tolist() == [2, 4]
    assert found.confident_mistakes(1).tolist() == [2]


def test_figures_by_class(found):
    cat, dog, eel = found.by_class()
    assert (cat["images"], cat["recall"], cat["precision"], cat["f1"]) == (3, 2 / 3, 2 / 3, 2 / 3)
    assert dog["interval"] == wilson(2, 3)
    assert (eel["images"], eel["recall"], eel["precision"], eel["f1"]) == (0, None, None, None)
    assert found.summary()["by_class"] == {"cat": 2 / 3, "dog": 2 / 3}
    assert json.loads(json.dumps(found.summary()))["confusion"][0] == [2, 1, 0]


def test_calibration_counts_every_image(found):
    bins = found.calibration(5)
    assert sum(b["images"] for b in bins) == 6
    assert sum(b["images"] * b["accuracy"] for b in bins) == pytest.approx(4)
    assert bins[-1] == {"confidence": pytest.approx((0.9 + 0.95 + 0.8) / 3), "accuracy": pytest.approx(2 / 3), "images": 3}


@pytest.mark.parametrize("truth, shape", [([0, 1], (2, 3)), ([], (0, 2)), ([0, 2], (2, 2)), ([0.0, 1.0], (2, 2))])
def test_labels_that_do_not_fit(truth, shape):
    with pytest.raises(DataError, match="expected"):
        Evaluation(["a", "b"], np.array(truth), np.ones(shape))
