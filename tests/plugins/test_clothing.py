"""Transfer learning on real photographs with ImageNet weights: a small part of the whole measurement."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import zoo
from graftwork.plugins.transfer import FeatureExtractor, ImageClassifier, similar
from graftwork.zoo.images import list_labelled

pytest.importorskip("sklearn")
WEIGHTS = "weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
CLASSES = ("dress", "hat", "pants", "shoes")


def part(folder, each):
    """The first `each` photographs of the four classes: paths and class numbers."""
    paths, labels, names = list_labelled(folder)
    wanted = [np.flatnonzero(labels == names.index(c))[:each] for c in CLASSES]
    return [paths[i] for w in wanted for i in w], np.repeat(np.arange(4), [len(w) for w in wanted])


@pytest.fixture(scope="module")
def model(shared_data):
    return zoo.create("squeezenet1_1", weights=shared_data / WEIGHTS, include_top=False, pooling="avg")


def test_twelve_photographs_a_class_are_enough(model, shared_data, tmp_path):
    paths, labels = part(shared_data / "clothing" / "train", 12)
    classifier = ImageClassifier(model, "squeezenet1_1", C=0.01).fit(paths, labels, CLASSES)
    checks, truth = part(shared_data / "clothing" / "validation", 8)
    found = classifier.predict(checks)
    assert (found == truth).mean() > 0.8  # a chance hit is 0.25
    classifier.save(tmp_path / "clothes.h5")
    np.testing.assert_array_equal(ImageClassifier.load(tmp_path / "clothes.h5").predict(checks[:6]), found[:6])


def test_photographs_that_look_alike(model, shared_data):
    paths, labels = part(shared_data / "clothing" / "train", 12)
    features = FeatureExtractor(model).transform(paths)
    indices, _ = similar(features, features, k=2)
    assert (labels[indices[:, 1]] == labels).mean() > 0.6
