"""SqueezeNet 1.1 with the real ImageNet weights against the published features."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import errors, zoo

GOLDEN = {  # mean, L2 norm, argmax, non-zeros of the 512 features (ONNX Runtime on the same file)
    "cat.jpeg": (2.452904, 104.2330, 426, 459),
    "elephant.jpg": (2.279684, 88.8556, 211, 449),
}
FILE = "weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"


@pytest.fixture(scope="module")
def model(shared_data):
    return zoo.create("squeezenet1_1", weights=shared_data / FILE, include_top=False, pooling="avg")


@pytest.mark.parametrize("name", GOLDEN)
def test_features_of_photographs(model, shared_data, name):
    features = model(model.preprocess(shared_data / "photos" / name)).numpy()[0]
    mean, norm, best, positive = GOLDEN[name]
    assert features.shape == (512,)
    # the golden figures are given to seven and six digits
    assert features.mean() == pytest.approx(mean, abs=2e-5)
    assert np.linalg.norm(features) == pytest.approx(norm, abs=2e-3)
    assert features.argmax() == best
    assert np.count_nonzero(features) == positive


def test_parameter_count(model):
    assert model.count_parameters() == 722_496


def test_weights_of_another_network_are_refused(shared_data):
    with pytest.raises(errors.WeightsError) as caught:
        zoo.create("resnet20", weights=shared_data / FILE)
    head, counts, *rows, advice = str(caught.value).splitlines()
    assert "does not fit ResNetCifar" in head and "skip=" in advice
    assert "missing" in counts and "mismatched" in counts and "unexpected" in counts
    shown = [row.split() for row in rows]
    assert ["unexpected", "fire2/squeeze1x1"] in [row[:2] for row in shown]
    assert ["mismatched", "conv1", "kernel", "expected", "(3,", "3,", "3,", "16)", "found", "(3,", "3,", "3,", "64)"] in shown
    assert sum(row[0] == "missing" for row in shown) > 10


def test_the_top_is_asked_for_in_words(shared_data):
    with pytest.raises(errors.WeightsError, match="conv10"):
        zoo.create("squeezenet1_1", weights=shared_data / FILE)


def test_unknown_names():
    with pytest.raises(errors.ModelNotFound, match="did you mean squeezenet1_1"):
        zoo.create("squeezenet11")
    with pytest.raises(errors.ModelError, match="no weights named 'imagnet'"):
        zoo.create("squeezenet1_1", weights="imagnet")
    with pytest.raises(errors.ModelError, match="pooling"):
        zoo.create("squeezenet1_1", pooling="mean")
