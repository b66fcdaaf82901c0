"""`zoo.save` and `zoo.load`: a network from nothing but its file, pruned or not, in every layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.plugins.prune import MagnitudePruner, prune_channels
from graftwork.zoo import catalogue

SHARED = Path(os.environ.get("GRAFTWORK_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
KERAS = SHARED / "keras-models"


@pytest.fixture(scope="module")
def x():
    return gw.tensor(np.random.default_rng(0).random((2, 32, 32, 1), np.float32))


@pytest.fixture(scope="module")
def pruned(x):
    model = zoo.create("glyphnet", weights="glyphs")
    return prune_channels(model, x, amount=0.3).model


def same(a, b, x):
    with gw.no_grad():
        return np.array_equal(a(x).numpy(), b(x).numpy())


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "packed"])
def test_a_pruned_network_comes_back_from_its_file_alone(pruned, x, tmp_path, name):
    zoo.save(pruned, tmp_path / name, layout="packed" if name == "packed" else None)
    again = zoo.load(tmp_path / name)
    assert type(again) is type(pruned) and not again.training
    assert same(again, pruned, x) and again.labels == pruned.labels
    zoo.save(again, tmp_path / "again.h5")
    assert same(zoo.load(tmp_path / "again.h5"), pruned, x)


def test_options_are_kept(tmp_path):
    model = zoo.create("mobilenet_v2", alpha=0.35, classes=3, input_shape=(32, 32, 3))
    zoo.save(model, tmp_path / "w.h5")
    again = zoo.load(tmp_path / "w.h5")
    assert again.input_shape == (32, 32, 3)
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}


def test_packed_weights_load_like_any_others_and_are_smaller(tmp_path, x):
    model = zoo.create("glyphnet", weights="glyphs")
    MagnitudePruner(model, 0.7)
    zoo.save_weights(model, tmp_path / "plain.h5")
    zoo.save_weights(model, tmp_path / "packed.h5", layout="packed")
    assert (tmp_path / "packed.h5").stat().st_size < 0.4 * (tmp_path / "plain.h5").stat().st_size
    assert same(zoo.create("glyphnet", weights=tmp_path / "packed.h5"), model, x)
    facts = catalogue.verify(tmp_path / "packed.h5", "glyphnet")
    assert facts["layout"] == "packed" and "sparse float32" in facts["dtypes"]
    facts = catalogue.convert(tmp_path / "plain.h5", tmp_path / "again.h5", "glyphnet", "packed")
    assert facts["layout"] == "packed" and facts["bytes"] == (tmp_path / "packed.h5").stat().st_size
    catalogue.convert(tmp_path / "packed.h5", tmp_path / "back.h5")
    assert same(zoo.create("glyphnet", weights=tmp_path / "back.h5"), model, x)
    with pytest.raises(errors.ConfigError, match="packed files are exact"):
        zoo.save_weights(model, tmp_path / "half.h5", layout="packed", dtype="float16")
    with pytest.raises(errors.WeightsError, match="does not fit LeNet5"):
        zoo.create("lenet5", weights=tmp_path / "packed.h5")


def test_graphs_and_keras_models_are_read_too(tmp_path, x):
    model = zoo.create("glyphnet", weights="glyphs")
    with gw.no_grad():
        gw.compile(model).graph(x).save(tmp_path / "graph.h5")
    with gw.no_grad():  # a graph has its batch norms folded
        assert np.allclose(zoo.load(tmp_path / "graph.h5")(x).numpy(), model(x).numpy(), rtol=1e-3, atol=1e-4)
    keras = KERAS / "tiny_XCEPTION_KDEF.hdf5"
    if keras.exists():
        assert zoo.load(keras).count_parameters() == zoo.load_keras(keras).count_parameters()


def damage(path, **changes):
    with h5py.File(path, "a") as file:
        found = json.loads(file.attrs["graftwork_model"])
        file.attrs["graftwork_model"] = json.dumps({**found, **changes}).encode()


@pytest.mark.parametrize("changes, message", [
    ({"name": "nobody"}, "no model named"), ({"options": {"weights": "/etc/passwd"}}, "elsewhere; refused"),
    ({"options": {"wings": 2}}, "no option 'wings'"), ({"shapes": [[1]]}, "soundly"), ({"options": 3}, "soundly"),
])  # fmt: skip
def test_descriptions_that_make_no_sense_are_errors(pruned, tmp_path, changes, message):
    zoo.save(pruned, tmp_path / "w.h5")
    damage(tmp_path / "w.h5", **changes)
    with pytest.raises(errors.WeightsError, match=message):
        zoo.load(tmp_path / "w.h5")


def test_shapes_only_shrink(pruned, tmp_path):
    zoo.save(pruned, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        shapes = json.loads(file.attrs["graftwork_model"])["shapes"]
    shapes[0] = [3, 3, 1, 1 << 30]
    damage(tmp_path / "w.h5", shapes=shapes)
    with pytest.raises(errors.WeightsError, match="expected at most"):
        zoo.load(tmp_path / "w.h5")


def test_what_does_not_say_what_it_is(tmp_path):
    with pytest.raises(errors.ModelError, match="not made by zoo.create"):
        zoo.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.h5")
    zoo.save_weights(zoo.create("lenet5"), tmp_path / "w.h5")
    with pytest.raises(errors.WeightsError, match="does not say of which network"):
        zoo.load(tmp_path / "w.h5")
    with pytest.raises(errors.WeightsError, match="no weights file"):
        zoo.load(tmp_path / "nothing.h5")
