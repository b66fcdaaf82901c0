"""Whole Keras models: published ones against their golden results, built ones against plain arithmetic, bad ones refused."""

from __future__ import annotations

import json
import random
import shutil

import h5py
import numpy as np
import pytest

import graftwork as gw
from graftwork.errors import ModelError, ShapeError, WeightsError
from graftwork.zoo import writing
from graftwork.zoo.keras import build_keras, load_keras
from graftwork.zoo.weights import load_weights, save_weights

TOLERANCE = 1e-5  # float32 sums in another order than Keras's; the outputs are probabilities
XCEPTION = "keras-models/tiny_XCEPTION_KDEF.hdf5"


# -- published models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("animal", "golden"), [("dog", (0.04618423, 0.92035621)), ("cat", (0.90135497, 0.09642436))])
def test_dog_cat(shared_data, animal, golden):
    from PIL import Image

    folder = shared_data / "keras-models" / "dog-cat"
    image = Image.open(folder / f"test_{animal}.jpg").convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    model = load_keras(folder)
    np.testing.assert_allclose(model(gw.tensor(np.asarray(image, np.float32)[None])).numpy()[0], golden, atol=TOLERANCE, rtol=0)


def test_tiny_xception(shared_data):
    model = load_keras(shared_data / XCEPTION)
    x = np.random.default_rng(0).random((2, 64, 64, 1), np.float32)
    golden = [
        (0.07600678, 0.08097506, 0.11319785, 0.27844667, 0.11998046, 0.14852145, 0.18287179),
        (0.07576264, 0.08314668, 0.11031196, 0.29156908, 0.10728372, 0.1480496, 0.18387638),
    ]
    np.testing.assert_allclose(model(gw.tensor(x)).numpy(), golden, atol=TOLERANCE, rtol=0)
    assert (model.input_shape, model.output_shape, model.output_names) == ((64, 64, 1), (7,), ("predictions",))
    assert sum(v.size for v in model.state_dict().values()) == 18_314


def test_whole_model_survives_our_own_file(shared_data, tmp_path):
    model, other = load_keras(shared_data / XCEPTION), load_keras(shared_data / XCEPTION)
    save_weights(model, tmp_path / "w.h5")
    for parameter in other.parameters():
        parameter.data[...] = 0
    load_weights(other, tmp_path / "w.h5")
    load_weights(other, shared_data / XCEPTION)  # the whole-model file itself has the same names
    assert all(np.array_equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# -- configurations of our own -----------------------------------------------------------------------------------------


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, "trainable": True, **config}}


def sequential(*layers, shape=(None, 6, 5, 2)):
    layers[0]["config"].setdefault("batch_input_shape", list(shape))
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


def functional(nodes, outputs, inputs=("a",), shape=(None, 6, 5, 2)):
    """nodes: (layer, names of its inputs)."""
    entries = [{**layer("InputLayer", n, batch_input_shape=list(shape)), "name": n, "inbound_nodes": []} for n in inputs]
    for entry, sources in nodes:
        entries.append({**entry, "name": entry["config"]["name"], "inbound_nodes": [[[s, 0, 0, {}] for s in sources]]})
    ends = {"input_layers": [[n, 0, 0] for n in inputs], "output_layers": [[n, 0, 0] for n in outputs]}
    return {"class_name": "Functional", "config": {"name": "f", "layers": entries, **ends}}


def run(config, weights=None, *inputs, version="2.4.0"):
    found = {name: [(f"w{i}", np.asarray(a, np.float32)) for i, a in enumerate(ws)] for name, ws in (weights or {}).items()}
    result = build_keras(config, found, "test", version)(*(gw.tensor(x) for x in inputs))
    return [r.numpy() for r in result] if isinstance(result, tuple) else result.numpy()


@pytest.fixture
def x(rng):
    return rng.standard_normal((2, 6, 5, 2)).astype(np.float32)


def test_keras1_names(x, rng):
    kernel, bias = rng.random((1, 1, 2, 3), np.float32), np.ones(3, np.float32)
    config = {"class_name": "Sequential", "config": [
        {"class_name": "Convolution2D", "config": {
            "name": "c", "batch_input_shape": [None, 6, 5, 2], "nb_filter": 3, "nb_row": 1, "nb_col": 1, "subsample": [2, 2],
            "border_mode": "same", "dim_ordering": "tf", "bias": True, "activation": "relu"}},
        {"class_name": "Dropout", "config": {"name": "d", "p": 0.5}},
        {"class_name": "Flatten", "config": {"name": "f"}},
        {"class_name": "Dense", "config": {"name": "e", "output_dim": 4, "bias": False, "activation": "linear"}},
    ]}  # fmt: skip
    dense = rng.random((27, 4), np.float32)
    want = np.maximum(x[:, ::2, ::2] @ kernel[0, 0] + bias, 0).reshape(2, -1) @ dense
    np.testing.assert_allclose(run(config, {"c": [kernel, bias], "e": [dense]}, x, version=None), want, rtol=1e-5)


def test_layers_of_keras_own_networks(x):
    """ConvNeXt's classes are in no registry of Keras's; their module says whose they are."""
    ours = {"module": "keras.src.applications.convnext"}
    config = sequential(
        layer("LayerScale", "l", projection_dim=2, init_values=1e-6) | ours | {"registered_name": "LayerScale"},
        layer("StochasticDepth", "s", drop_path_rate=0.5) | ours | {"registered_name": "StochasticDepth"},
    )
    np.testing.assert_array_equal(run(config, {"l": [np.array([2.0, -3.0])]}, x), x * np.float32([2, -3]))


def test_keras3_calls(x):
    def kt(name):
        return {"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": [name, 0, 0]}}

    config = functional([(layer("Add", "s"), ("a", "a"))], ["s"])
    entries = config["config"]["layers"]
    entries[0]["config"]["batch_shape"] = entries[0]["config"].pop("batch_input_shape")
    entries[1] |= {"module": "keras.layers", "registered_name": None}
    entries[1]["inbound_nodes"] = [{"args": [[kt("a"), kt("a")]], "kwargs": {"mask": None}}]
    config["config"] |= {"input_layers": ["a", 0, 0], "output_layers": ["s", 0, 0]}
    np.testing.assert_allclose(run(config, None, x), 2 * x)
    entries[1]["module"] = "my_package"
    with pytest.raises(ModelError, match=r"'s' \(Add, my_package\)"):
        run(config, None, x)
    entries[1]["module"] = "keras.layers"
    del entries[1]["config"]["trainable"]  # only operations on tensors lack it
    entries[1]["inbound_nodes"] = [{"args": [kt("a"), 1.5], "kwargs": {}}]
    np.testing.assert_allclose(run(config, None, x), x + np.float32(1.5))
    entries[1]["class_name"] = "Einsum"
    with pytest.raises(ModelError, match="operation on tensors, 'Einsum'"):
        run(config, None, x)


LEAK = np.float32(0.3)
WITHOUT_WEIGHTS = {
    "pad": (layer("ZeroPadding2D", "l", padding=[[1, 2], [0, 3]]), lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)))),
    "pad 1": (layer("ZeroPadding2D", "l", padding=[1, 2]), lambda x: np.pad(x, ((0, 0), (1, 1), (2, 2), (0, 0)))),
    "crop": (layer("Cropping2D", "l", cropping=[[1, 0], [2, 1]]), lambda x: x[:, 1:, 2:-1]),
    "upsample": (layer("UpSampling2D", "l", size=[2, 3]), lambda x: x.repeat(2, 1).repeat(3, 2)),
    "max pool": (layer("MaxPooling2D", "l", pool_size=[2, 1], strides=None, padding="valid"),
                 lambda x: x.reshape(2, 3, 2, 5, 2).max(2)),
    "average pool": (layer("AveragePooling2D", "l", pool_size=2, padding="same"),
                     lambda x: np.nanmean(np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=np.nan)
                                          .reshape(2, 3, 2, 3, 2, 2), (2, 4))),
    "global": (layer("GlobalMaxPooling2D", "l"), lambda x: x.max((1, 2))),
    "global kept": (layer("GlobalAveragePooling2D", "l", keepdims=True), lambda x: x.mean((1, 2), keepdims=True)),
    "reshape": (layer("Reshape", "l", target_shape=[-1, 6]), lambda x: x.reshape(2, 10, 6)),
    "permute": (layer("Permute", "l", dims=[3, 1, 2]), lambda x: x.transpose(0, 3, 1, 2)),
    "relu": (layer("ReLU", "l", max_value=1.0, negative_slope=0.5, threshold=0.25),
             lambda x: np.minimum(np.where(x >= 0.25, x, (x - 0.25) * 0.5), 1)),
    "leaky": (layer("LeakyReLU", "l", alpha={"type": "ndarray", "value": 0.3}), lambda x: np.where(x > 0, x, x * LEAK)),
    "softmax": (layer("Softmax", "l", axis=[1]), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    "rescale": (layer("Rescaling", "l", scale=2.0, offset=[1.0, -1.0]), lambda x: x * 2 + np.array([1, -1])),
    "dropout": (layer("SpatialDropout2D", "l", rate=0.5), lambda x: x),
    "softsign": (layer("Activation", "l", activation="softsign"), lambda x: x / (1 + abs(x))),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_layers_without_weights(name, x):
    config, reference = WITHOUT_WEIGHTS[name]
    model = build_keras(sequential(json.loads(json.dumps(config))), {}, "test")
    got = model(gw.tensor(x)).numpy()
    np.testing.assert_allclose(got, reference(x), rtol=1e-5, atol=1e-6)  # float32 rounding
    assert model.output_shape == got.shape[1:]


@pytest.mark.parametrize(("version", "value"), [("1.2.2", 0.7), ("2.15.0", 0.7), ("3.1.0", 4 / 6), (None, 0.7)])
def test_hard_sigmoid_is_the_versions_own(version, value):
    config = sequential(layer("Activation", "h", activation="hard_sigmoid"), shape=(None, 1))
    np.testing.assert_allclose(run(config, None, np.ones((1, 1), np.float32), version=version), [[value]], rtol=1e-6)


def test_merges_and_several_outputs(x):
    kinds = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Concatenate")
    config = functional([(layer(k, k), ("a", "b")) for k in kinds], kinds, ("a", "b"))
    y = x[::-1].copy()
    want = [x + y, x - y, x * y, (x + y) / 2, np.maximum(x, y), np.concatenate([x, y], -1)]
    for got, expected in zip(run(config, None, x, y), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_shared_layer_has_one_weight(x):
    config = functional([(layer("Dense", "d", units=3), ("a",)), (layer("Add", "s"), ("d", "d"))], ["s"], ("a", "b"))
    dense, add = config["config"]["layers"][2:]
    dense["inbound_nodes"] = [[["a", 0, 0, {}]], [["b", 0, 0, {}]]]
    add["inbound_nodes"] = [[["d", 0, 0, {}], ["d", 1, 0, {}]]]
    w, b = np.ones((2, 3)), np.zeros(3)
    np.testing.assert_allclose(run(config, {"d": [w, b]}, x, 2 * x), (3 * x) @ w, rtol=1e-5)


def test_names_that_are_no_attributes(x):
    names = ("fire2/squeeze", "fire2.squeeze", "forward", "1st", "_modules", "__class__")
    config = sequential(*(layer("Dense", n, units=2, use_bias=False) for n in names))
    model = build_keras(config, {n: [("kernel", np.eye(2, dtype=np.float32))] for n in names}, "test")
    np.testing.assert_allclose(model(gw.tensor(x)).numpy(), x)
    assert tuple(model.layer_names.values()) == names and model.fire2_squeeze is model.layer("fire2/squeeze")
    with pytest.raises(ModelError, match="no layer 'nothing'"):
        model.layer("nothing")


def test_frozen_layers_and_inference_mode():
    config = sequential(layer("Dense", "d", units=2, trainable=False), layer("Dense", "e", units=2), shape=(None, 2))
    config["config"]["layers"][0]["config"]["trainable"] = False
    w = [("k", np.eye(2)), ("b", np.zeros(2))]
    model = build_keras(config, {"d": w, "e": w}, "test")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True] and not model.training


def test_wrong_inputs_are_named(x):
    model = build_keras(sequential(layer("Flatten", "f")), {}, "test")
    for bad in (x[:, :5], x[0]):
        with pytest.raises(ShapeError, match="expected \\(batch, 6, 5, 2\\)"):
            model(gw.tensor(bad))
    with pytest.raises(ShapeError, match="2 tensors"):
        model(gw.tensor(x), gw.tensor(x))


# -- refusing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (sequential(layer("Flatten", "f"), layer("Lambda", "mine", function="evil"), layer("Blur", "b")), "'mine'.*'b'"),
        (sequential(layer("Activation", "act", activation="my_function")), "'act'.*my_function"),
        (sequential(layer("Conv2D", "cf", filters=1, kernel_size=1, data_format="channels_first")), "channels-first.*'cf'"),
        (sequential(layer("BatchNormalization", "n", axis=1)), "'n'.*channels-first"),
        (sequential(layer("Conv2D", "c", filters=1, kernel_size=[9, 9])), "'c'.*window of 9"),
        (sequential(layer("Conv2D", "c", kernel_size=1)), "'filters'"),
        (sequential(layer("Conv2D", "c", filters="many", kernel_size=1)), "'many'"),
        (sequential(layer("Conv2D", "c", filters=2**40, kernel_size=1)), "filters"),
        (sequential(layer("Conv2D", "c", filters=1, kernel_size=1, padding="full")), "padding"),
        (sequential(layer("Dropout", "d", rate=1.5)), "rate"),
        (sequential(layer("Dense", "d", units=1), shape=(None, None)), "open"),
        (sequential(layer("Dense", "d", units=1), shape=(None, -4)), "positive"),
        (sequential(layer("Reshape", "r", target_shape=[7, 7])), "'r'"),
        (sequential(layer("Flatten", "f"), layer("Flatten", "f")), "two layers"),
        (sequential(layer("Concatenate", "c", axis=7)), "axis"),
        (sequential(layer("LayerScale", "l", projection_dim=3)), "projection_dim=3"),
        ({"class_name": "MyNet", "config": {}}, "MyNet"),
        ({"class_name": "Sequential", "config": []}, "list of layers"),
        ({"class_name": "Sequential", "config": [layer("Dense", "d", units=1)]}, "input's shape"),
        (functional([(layer("Flatten", "f"), ("nowhere",))], ["f"]), "'nowhere'"),
        (functional([(layer("Flatten", "f"), ("a",))], ["gone"]), "'gone'"),
        (functional([(layer("Flatten", "f"), ("a",))], ["f"], ("a", "a")), "two layers"),
        (functional([(layer("Add", "s"), ("a", "t")), (layer("Add", "t"), ("a", "s"))], ["t"]), "cycle.*'s', 't'"),
        (functional([(layer("Flatten", "f"), ("f",))], ["f"]), "cycle"),
        (functional([(layer("Flatten", "f"), ())], ["f"]), "not connected"),
    ],
)
def test_bad_configurations(config, words):
    with pytest.raises(ModelError, match=words):
        build_keras(config, {}, "test")


def test_weights_are_compared_before_anything_is_allocated():
    config = sequential(layer("Dense", "d", units=2**31 - 1, use_bias=False), shape=(None, 2**31 - 1))
    with pytest.raises(WeightsError, match=r"missing\s+d kernel"):
        build_keras(config, {}, "test")
    with pytest.raises(WeightsError, match=r"unexpected\s+other k"):
        build_keras(sequential(layer("Flatten", "f")), {"other": [("k", np.ones(1))]}, "test")


def write_model(path, config, layers):
    attributes = {"model_config": json.dumps(config), "keras_version": "2.15.0"}
    writing.write_layers(path, layers, attributes)


@pytest.fixture
def model_file(tmp_path, rng):
    path = tmp_path / "m.h5"
    config = sequential(layer("Conv2D", "c", filters=3, kernel_size=3, activation="relu"), layer("Flatten", "f"),
                        layer("Dense", "d", units=2))  # fmt: skip
    write_model(path, config, {
        "c": [("kernel", rng.random((3, 3, 2, 3), np.float32)), ("bias", np.zeros(3, np.float32))],
        "d": [("kernel", rng.random((36, 2), np.float32)), ("bias", np.zeros(2, np.float32))],
    })  # fmt: skip
    return path


def test_random_damage_is_always_a_clear_error(model_file):
    """Bits flipped all over a whole-model file: a model or one of our two errors, and nothing else."""
    whole, dice, outcomes = model_file.read_bytes(), random.Random(1), set()
    config = whole.index(b'{"class_name"')
    for i in range(300):
        data = bytearray(whole)
        at = dice.randrange(len(data)) if i % 2 else config + dice.randrange(700)  # half of them in the JSON text
        data[at] ^= 1 << dice.randrange(8)
        model_file.write_bytes(data)
        try:
            load_keras(model_file)
            outcomes.add("model")
        except (WeightsError, ModelError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"model", "WeightsError", "ModelError"}


def test_a_heap_of_strings_that_never_ends(model_file):
    """An entry of size 0 among the strings keeps the HDF5 library busy for ever; our reader says that it cannot be."""
    data = bytearray(model_file.read_bytes())
    at = data.index(b"GCOL") + 16
    while data[at : at + 2] != b"\0\0":  # up to the free space at the heap's end
        at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
    data[at + 8 : at + 16] = (16).to_bytes(8, "little")  # it ends at once, and zeros follow
    model_file.write_bytes(data)
    with pytest.raises(WeightsError, match="heap of strings"):
        load_keras(model_file)


def test_any_json_value_anywhere_is_a_clear_error():
    """Each value of a sound configuration replaced by wrong ones of every type."""
    base = functional(
        [(layer("Conv2D", "c", filters=2, kernel_size=[1, 1], strides=[1, 1], padding="same", activation="relu"), ("a",)),
         (layer("Add", "s"), ("a", "c")), (layer("Reshape", "r", target_shape=[60]), ("s",))], ["r"])  # fmt: skip
    weights = {"c": [("kernel", np.ones((1, 1, 2, 2))), ("bias", np.ones(2))]}
    build_keras(base, weights, "test")

    def places(value, path=()):
        yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from places(inner, (*path, key))

    refused = 0
    for path in list(places(base))[1:]:
        for wrong in (None, True, -1, 10**30, 1.5, "x", [], {}, [[]], [None], {"class_name": "function"}):
            config = json.loads(json.dumps(base))
            target = config
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = wrong
            try:
                build_keras(config, weights, "test")
            except (ModelError, WeightsError):
                refused += 1
    assert refused > 300


def test_files_that_are_no_whole_models(model_file, tmp_path):
    with h5py.File(model_file, "r+") as f:
        text = f.attrs["model_config"]
        del f.attrs["model_config"]
    with pytest.raises(ModelError, match="weights only"):
        load_keras(model_file)
    with pytest.raises(WeightsError, match="no weights file"):
        load_keras(tmp_path / "nothing.h5")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"no weights\.h5"):
        load_keras(folder)
    shutil.copy(model_file, folder / "weights.h5")
    assert load_keras(folder).output_shape == (2,)
    (folder / "model.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ModelError, match="JSON"):
        load_keras(folder)


def test_flipped_kernels_of_theano_are_refused(model_file):
    with h5py.File(model_file, "r+") as f:
        f.attrs["backend"] = "theano"
    with pytest.raises(ModelError, match="Theano"):
        load_keras(model_file)
