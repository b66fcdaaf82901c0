"""Files that name layers otherwise than today's Keras does: former names, and numbers that depend on the session."""

import re

import filling
import numpy as np
import pytest

from graftwork import errors, zoo
from graftwork.nn.modules.module import assign
from graftwork.zoo.matching import recounted, renamed
from graftwork.zoo.weights import layer_slots
from graftwork.zoo.writing import write_layers


def filled(name, **options):
    model = zoo.create(name, classes=3, **options)
    for layer, slots in layer_slots(model).items():
        for slot in slots:
            assign(slot.tensor, filling.values(layer, slot.name, slot.shape).reshape(slot.tensor.shape))
    return model


def write(model, path, rename):
    """The model's weights under other names of layers, last layer first: no order may matter."""
    layers = {
        rename(layer): [(f"{rename(layer)}/{s.name}:0", s.tensor.numpy().reshape(s.shape)) for s in slots]
        for layer, slots in layer_slots(model).items()
    }
    write_layers(path, dict(reversed(layers.items())))


def assert_same(model, other):
    found, expected = other.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], value) for key, value in expected.items())


def later(layer):
    """The name in a session that has built 40 convolutions and 7 normalisations before."""
    match = re.fullmatch(r"(conv2d|batch_normalization)(?:_(\d+))?", layer)
    return f"{match[1]}_{int(match[2] or 0) + {'conv2d': 40, 'batch_normalization': 7}[match[1]]}" if match else layer


@pytest.mark.parametrize("name", ["inception_v3", "xception"])
def test_numbers_of_a_later_session(name, tmp_path):
    """InceptionV3 passes conv2d_99 and conv2d_100, whose order is not that of their letters."""
    model = filled(name)
    write(model, tmp_path / "w.h5", later)
    assert_same(model, zoo.create(name, weights=tmp_path / "w.h5", classes=3))


def keras2_mobilenet_v3(layer):
    """"expanded_conv_1_squeeze_excite_conv_1" was "expanded_conv_1/squeeze_excite/Conv_1", "conv_bn" "Conv/BatchNorm"."""
    layer = re.sub(r"^(expanded_conv(?:_\d+)?)_(?=[a-z])", r"\1/", layer)
    layer = re.sub(r"squeeze_excite_conv", "squeeze_excite/Conv", layer)
    layer = re.sub(r"_bn$", "/BatchNorm", re.sub(r"^conv", "Conv", layer))
    return "Logits" if layer == "logits" else layer


def test_mobilenet_v3_of_keras_2(tmp_path):
    model = filled("mobilenet_v3_small", alpha=0.75)
    names = [keras2_mobilenet_v3(layer) for layer in layer_slots(model)]
    assert {"Conv/BatchNorm", "expanded_conv/depthwise", "expanded_conv_8/expand/BatchNorm", "Conv_2", "Logits",
            "expanded_conv_3/squeeze_excite/Conv_1"} <= set(names)  # fmt: skip
    write(model, tmp_path / "w.h5", keras2_mobilenet_v3)
    assert_same(model, zoo.create("mobilenet_v3_small", weights=tmp_path / "w.h5", classes=3, alpha=0.75))


@pytest.mark.parametrize(("name", "former"), [
    ("densenet121", {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"}),
    ("resnet50", {"predictions": "probs"}),
    ("mobilenet_v2", {"predictions": "Logits"}),
])  # fmt: skip
def test_names_at_the_time_of_publication(name, former, tmp_path):
    model = filled(name)
    write(model, tmp_path / "w.h5", lambda layer: former.get(layer, layer))
    assert_same(model, zoo.create(name, weights=tmp_path / "w.h5", classes=3))


def test_a_missing_counted_layer_is_listed(tmp_path):
    model = filled("xception")
    write(model, tmp_path / "w.h5", lambda layer: "other" if layer == "conv2d_2" else layer)
    with pytest.raises(errors.WeightsError, match="conv2d_2 kernel"):
        zoo.create("xception", weights=tmp_path / "w.h5", classes=3)


def test_recounting_goes_by_numbers_and_leaves_others_alone():
    found = {"conv2d_10": "b", "conv2d_9": "a", "conv2d_transpose_1": "t", "my_conv2d": "m"}
    assert recounted(found, {"conv2d": 0, "conv2d_1": 0}, "conv2d") == {
        "conv2d_1": "b", "conv2d": "a", "conv2d_transpose_1": "t", "my_conv2d": "m",
    }  # fmt: skip
    assert recounted(found, {"conv2d": 0}, "conv2d") == found


def test_two_layers_of_one_name_are_refused():
    with pytest.raises(errors.WeightsError, match=r"'a_b', one of them is 'a/b'"):
        renamed({"a_b": [], "a/b": []}, [("/", "_")])
