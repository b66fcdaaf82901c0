"""The networks of keras.applications against Keras's own: names, shapes, numbers of parameters, outputs.

Both sides fill every weight by the formula in filling.py; `scripts/keras_goldens.py` wrote Keras's outputs and names, a pair of
files for each family. Networks that take long run with GRAFTWORK_PARITY=1 only (`make parity`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import filling
import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, zoo
from graftwork.nn.modules.module import assign
from graftwork.zoo.weights import layer_slots

GOLDENS = Path(__file__).parent / "goldens"
PARITY = os.environ.get("GRAFTWORK_PARITY", "0") not in ("", "0")
FAMILIES = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDENS.glob("*.json")) if path.stem != "layers"}
# A name may have a remark behind it: "mobilenet_v2 alpha=0.35, odd sizes"
FACTS = {name: fact | {"family": family} for family, facts in FAMILIES.items() for name, fact in facts["models"].items()}
FIRST = [next(iter(facts["models"])) for facts in FAMILIES.values()]  # one network of each family, listed layer by layer
PLAIN = [name for name in FACTS if " " not in name]
# Both sides sum in float32 and in different orders, and that noise grows with depth. Measured: at most 3e-6.
SHALLOW, DEEP = 1e-5, 1e-4
SHALLOW_FAMILIES = {"vgg", "mobilenet"}


def each(names):
    """Parameters of a test; large networks are marked to be skipped unless all of parity is asked for."""
    skip = pytest.mark.skipif(not PARITY, reason="a large network; GRAFTWORK_PARITY=1 (make parity) runs it")
    return [pytest.param(name, marks=skip) if FACTS[name].get("large") else name for name in names]


def create(name: str, **more):
    """The golden's network."""
    fact = FACTS[name]
    classes = FAMILIES[fact["family"]]["classes"]
    return zoo.create(name.split()[0], classes=classes, input_shape=(*fact["size"], 3), **fact["options"], **more)


def shapes(model) -> dict[str, list]:
    return {layer: [[s.name, list(s.shape)] for s in slots] for layer, slots in layer_slots(model).items()}


def fill(model) -> None:
    for layer, slots in layer_slots(model).items():
        for slot in slots:
            assign(slot.tensor, filling.values(layer, slot.name, slot.shape).reshape(slot.tensor.shape))


@pytest.mark.parametrize("name", each(FACTS))
def test_names_and_outputs_are_those_of_keras(name):
    model, fact = create(name), FACTS[name]
    found = shapes(model)
    assert len(found) == fact["layers"]
    assert hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() == fact["digest"]
    for kind, error in golden_errors(name, model):
        assert error < (SHALLOW if fact["family"] in SHALLOW_FAMILIES else DEEP), f"{kind}: {error:.1e} of the largest"


def golden_errors(name: str, model=None):
    """(what, largest difference over largest value) for the logits and the features. Both must have the same five largest."""
    model, fact = model or create(name), FACTS[name]
    fill(model)
    raw = model.preprocessing == "raw" and getattr(model, "include_preprocessing", True)
    x = gw.tensor((filling.pixels if raw else filling.pictures)(*fact["size"]))
    with gw.no_grad():
        outputs = {"logits": model(x).numpy(), "features": model.trunk(x).numpy().mean((1, 2))}
    with np.load(GOLDENS / f"{fact['family']}.npz") as golden:
        assert (top5(outputs["logits"]) == top5(golden[f"{name}/logits"])).all(), f"{name}: other top 5"
        for kind, values in outputs.items():
            expected = golden[f"{name}/{kind}"]
            yield kind, float(np.abs(values[:, : expected.shape[1]] - expected).max() / np.abs(expected).max())


def top5(logits):
    return logits.argsort(axis=1)[:, :-6:-1]


@pytest.mark.parametrize("name", each(FIRST))
def test_layers_and_tensors_one_by_one(name):
    """What the digests above cover, in the form that says which name is wrong."""
    expected = {layer: tensors for tensors, layers in FACTS[name]["names"].items() for layer in layers}
    assert {layer: " ".join(tensor for tensor, _ in found) for layer, found in shapes(create(name)).items()} == expected


@pytest.mark.parametrize(("name", "momentum", "epsilon"), [
    ("resnet50", 0.99, 1.001e-5), ("resnet50_v2", 0.99, 1.001e-5), ("mobilenet_v2", 0.999, 1e-3),
    ("mobilenet", 0.99, 1e-3), ("mobilenet_v3_small", 0.999, 1e-3), ("densenet121", 0.99, 1.001e-5),
    ("inception_v3", 0.99, 1e-3), ("xception", 0.99, 1e-3), ("nasnet_mobile", 0.9997, 1e-3),
    ("efficientnet_b0", 0.99, 1e-3), ("efficientnet_v2_b0", 0.9, 1e-3),
])  # fmt: skip
def test_batch_norm_as_keras_sets_it(name, momentum, epsilon):
    """Inference does not show momentum, and hardly the third digit of epsilon."""
    modules = zoo.create(name, include_top=False).modules()
    found = {(m.momentum, m.epsilon) for m in modules if isinstance(m, gw.nn.BatchNorm)}
    assert found == {(momentum, epsilon)}


@pytest.mark.parametrize("name", each(PLAIN))
def test_published_numbers_of_parameters(name):
    """Keras counts moving statistics too. Only VGG's dense layers see the size of images."""
    count = sum(math.prod(slot.shape) for slots in layer_slots(zoo.create(name)).values() for slot in slots)
    assert count == FACTS[name]["parameters"] == zoo.find(name).info["parameters"]


@pytest.mark.parametrize("name", each(FIRST))
def test_without_the_top(name, tmp_path, rng):
    """The trunk takes a file with a top, and images of other sizes; pooling gives one vector an image."""
    whole, path = create(name), tmp_path / "whole.h5"
    fill(whole)
    zoo.save_weights(whole, path)
    height, width = FACTS[name]["size"]
    x = gw.tensor(rng.random((1, width, height, 3), np.float32))
    features = whole.features(x, pooling=None).numpy()
    means, largest = features.mean((1, 2)), features.max((1, 2))
    if name.startswith("convnext"):  # which normalises after pooling
        means, largest = (whole.features(x, pooling).numpy() for pooling in ("avg", "max"))
    for pooling, expected in ((None, features), ("avg", means), ("max", largest)):
        trunk = zoo.create(name, weights=path, include_top=False, pooling=pooling)
        # one network, one input: only the order of sums in the mean differs
        np.testing.assert_allclose(trunk(x).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "first", "last"), [(0.35, 16, 1280), (0.5, 16, 1280), (0.75, 24, 1280), (1.3, 40, 1664)])
def test_width_of_mobilenet(alpha, first, last):
    model = zoo.create("mobilenet_v2", alpha=alpha, classes=3)
    assert model.Conv1.weight.shape == (3, 3, 3, first)
    assert model.predictions.weight.shape == (last, 3)
    assert f"imagenet_{alpha}" in zoo.find("mobilenet_v2").weights


def test_options_of_other_models_are_refused():
    with pytest.raises(errors.ModelError, match=r"resnet50 has no option 'alpha'; its own options: none beside"):
        zoo.create("resnet50", alpha=0.5)
    with pytest.raises(errors.ModelError, match="mobilenet_v2 has no option 'aplha'; its own options: alpha"):
        zoo.create("mobilenet_v2", aplha=0.5)
    with pytest.raises(errors.ConfigError, match="alpha=0"):
        zoo.create("mobilenet_v2", alpha=0)


@pytest.mark.parametrize(("name", "least"), [
    ("vgg16", 32), ("resnet50", 32), ("resnet50_v2", 32), ("mobilenet_v2", 32), ("mobilenet", 32), ("mobilenet_v3_small", 32),
    ("densenet121", 32), ("inception_v3", 75), ("inception_resnet_v2", 75), ("xception", 71), ("nasnet_mobile", 32),
    ("efficientnet_b0", 32), ("efficientnet_v2_s", 32), ("convnext_tiny", 32),
])  # fmt: skip
def test_images_that_are_too_small(name, least):
    with pytest.raises(errors.ShapeError, match=f"at least {least}"):
        zoo.create(name, input_shape=(least - 1, 128, 3))


def test_every_published_file_has_its_facts():
    for name in PLAIN:
        entry = zoo.find(name)
        assert entry.info["licence"] and entry.info["top1"] < entry.info.get("top5", 100)  # not all publish a top-5
        assert {"imagenet", "imagenet_notop"} <= set(entry.weights)
        assert all(url.startswith("https://") and url.endswith(".h5") for url in entry.weights.values())
        sums = {kind: entry.info[kind] for kind in ("md5", "sha256") if kind in entry.info}
        if name in ("mobilenet", "mobilenet_v2"):  # none are published for these
            assert not sums
            continue
        [(kind, by_name)] = sums.items()
        assert set(by_name) == set(entry.weights)
        assert all(len(bytes.fromhex(value)) == {"md5": 16, "sha256": 32}[kind] for value in by_name.values())


@pytest.mark.parametrize(("name", "low", "high"), [
    ("vgg16", -123.68, 151.061), ("resnet50", -123.68, 151.061), ("resnet50_v2", -1, 1), ("mobilenet_v2", -1, 1),
    ("mobilenet", -1, 1), ("mobilenet_v3_small", 0, 255), ("densenet121", -0.485 / 0.229, 0.594 / 0.225),
    ("inception_v3", -1, 1), ("xception", -1, 1), ("nasnet_mobile", -1, 1), ("efficientnet_b0", 0, 255),
    ("efficientnet_v2_b0", 0, 255), ("convnext_tiny", 0, 255),
])  # fmt: skip
def test_preprocessing(name, low, high):
    """Ranges as published: "caffe" subtracts means, "tf" is -1 to 1."""
    model = zoo.create(name, include_top=False)
    black, white = np.zeros((1, 224, 224, 3), np.uint8), np.full((1, 224, 224, 3), 255, np.uint8)
    assert model.normalise(black).numpy().min() == pytest.approx(low)
    assert model.normalise(white).numpy().max() == pytest.approx(high)
