"""Whole models as .keras archives and .h5 files, written and read; hostile archives; layer classes of one's own."""

from __future__ import annotations

import json
import struct
import zipfile

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn, plugins, zoo
from graftwork.errors import ConfigError, ModelError, WeightsError
from graftwork.plugins import hookimpl
from graftwork.zoo.keras import Built, build_keras, unregister_keras_layer, variables


def entry(kind, name, **config):
    return {"module": "keras.layers", "class_name": kind, "registered_name": None,
            "config": {"name": name, "trainable": True, **config}}  # fmt: skip


def sequential(*layers, shape=(None, 4, 3), **top):
    start = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": list(shape), "name": "in"},
             "registered_name": None}  # fmt: skip
    config = {"name": "s", "trainable": True, "layers": [start, *layers]}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": "Sequential", **top}


def small(rng):
    inner = sequential(entry("BatchNormalization", "n"), entry("Dense", "d", units=2), shape=(None, 6))
    inner["config"]["name"] = "inner"
    config = sequential(entry("Bidirectional", "b", layer=entry("LSTM", "l", units=3), merge_mode="concat"), inner)
    del inner["config"]["layers"][0]["config"]["batch_shape"]
    inner["config"]["layers"].pop(0)
    weights = {
        "b": [(str(i), rng.standard_normal(s).astype(np.float32)) for i, s in enumerate([(3, 12), (3, 12), (12,)] * 2)],
        "inner": [(str(i), rng.random(s, np.float32)) for i, s in enumerate([(6,), (6,), (6, 2), (2,), (6,), (6,)])],
    }
    return build_keras(config, weights, "test", "3.5.0")


@pytest.fixture
def archive(tmp_path, rng):
    path = tmp_path / "m.keras"
    zoo.save_keras(small(rng), path)
    return path


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_written_and_read(name, tmp_path, rng):
    model, x = small(rng), gw.tensor(rng.random((2, 4, 3), np.float32))
    zoo.save_keras(model, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "no-suffix")  # content decides
    again = zoo.load_keras(tmp_path / "no-suffix")
    np.testing.assert_array_equal(again(x).numpy(), model(x).numpy())
    assert again.config == model.config and again.version == "3.5.0"


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5"])
def test_weights_alone(name, tmp_path, rng):
    model, other = small(rng), small(rng)
    zoo.save_weights(model, tmp_path / name)
    zoo.load_weights(other, tmp_path / name)
    assert all(np.array_equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_not_written(tmp_path, rng):
    with pytest.raises(ModelError, match="save_weights"):
        zoo.save_keras(nn.Linear(2, 2), tmp_path / "m.h5")
    model = small(rng)
    del model.config["module"]
    with pytest.raises(ModelError, match=r"\.h5"):
        zoo.save_keras(model, tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


# -- archives of strangers ---------------------------------------------------------------------------------------------


def members(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def rewrite(path, contents, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in contents.items():
            file.writestr(name, content)


def test_foreign_members_are_never_touched(archive, tmp_path):
    rewrite(archive, {"../../evil": b"x", "/abs": b"x", "assets/f": b"x", **members(archive)}, zipfile.ZIP_DEFLATED)
    assert zoo.load_keras(archive).output_shape == (2,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.keras"]


def test_bombs_and_lies(archive):
    whole = members(archive)
    rewrite(archive, {**whole, "model.weights.h5": bytes(70 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="declares 73,400,320 bytes"):
        zoo.load_keras(archive)
    rewrite(archive, {k: v for k, v in whole.items() if k != "metadata.json"})
    with pytest.raises(WeightsError, match=r"without metadata\.json"):
        zoo.load_keras(archive)
    rewrite(archive, whole)
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    at = data.index(b"PK\x01\x02", at + 1) if data[at + 46 : at + 57] != b"config.json" else at
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 20, 1 << 20)  # both sizes of config.json
    archive.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        zoo.load_keras(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(archive):
    whole = members(archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("config.json", whole["config.json"])
    with pytest.raises(WeightsError, match=r"'config\.json' twice"):
        zoo.load_keras(archive)


def test_random_damage_to_an_archive(archive):
    whole, outcomes, dice = archive.read_bytes(), set(), np.random.default_rng(3)
    for i in range(150):
        data = bytearray(whole[: dice.integers(1, len(whole))] if i % 5 == 0 else whole)
        for at in dice.integers(0, len(data), 1 + i % 4):
            data[at] ^= 1 << int(dice.integers(8))
        archive.write_bytes(data)
        try:
            zoo.load_keras(archive)
            outcomes.add("model")
        except (WeightsError, ModelError) as error:
            outcomes.add(type(error).__name__)
    assert "WeightsError" in outcomes


def test_missing_and_unexpected_tensors_are_named(archive, rng, tmp_path):
    whole = members(archive)
    config = json.loads(whole["config.json"])
    config["config"]["layers"].append(entry("Dense", "more", units=2))
    rewrite(archive, {**whole, "config.json": json.dumps(config)})
    with pytest.raises(WeightsError, match="more kernel"):
        zoo.load_keras(archive)
    config["config"]["layers"][2:] = []
    rewrite(archive, {**whole, "config.json": json.dumps(config)})
    with pytest.raises(WeightsError, match="unexpected.*sequential"):
        zoo.load_keras(archive)


def test_deep_nesting_is_refused(archive):
    model = sequential(entry("Flatten", "f"))
    for i in range(40):
        model = sequential(model)
        model["config"]["name"] = f"m{i}"
    with pytest.raises(ModelError, match="nested more than"):
        build_keras(model, {}, "test")
    text = '{"class_name": "Sequential", "config": {"layers": ' + "[" * 900 + "]" * 900 + "}}"
    rewrite(archive, {**members(archive), "config.json": text})
    with pytest.raises(ModelError):
        zoo.load_keras(archive)


def test_everything_unknown_is_named_at_once():
    inner = sequential(entry("Lambda", "code"), entry("Wobble", "w"))
    inner["config"]["name"] = "inner"
    config = sequential(inner, entry("TimeDistributed", "t", layer=entry("Blur", "blur")), {**entry("Dense", "mine", units=2),
                        "module": "my_package", "registered_name": "mine>Dense"})  # fmt: skip
    with pytest.raises(ModelError, match=r"Dense, my_package.*inner/code.*never run.*inner/w.*t/blur"):
        build_keras(config, {}, "test")


# -- classes of one's own ----------------------------------------------------------------------------------------------


class Scale(nn.Module):
    def __init__(self, size, power=1.0):
        super().__init__()
        self.power, self.factor = power, nn.Parameter(np.ones(size, np.float32))

    def forward(self, x):
        return (x * self.factor) ** self.power


def custom(**settings):
    return sequential({**entry("Scale", "mine", **settings), "module": "my_package", "registered_name": "pkg>Scale"})


def test_a_class_of_ones_own(tmp_path):
    config, weights = custom(size=3, power=2.0), {"mine": [("factor", np.full(3, 2, np.float32))]}
    with pytest.raises(ModelError, match="'mine'"):
        build_keras(config, weights, "test", "3.0.0")
    zoo.register_keras_layer("Scale", Scale)
    try:
        model = build_keras(config, weights, "test", "3.0.0")
        np.testing.assert_allclose(model(gw.tensor(np.ones((1, 4, 3), np.float32))).numpy(), 4)
        zoo.save_keras(model, tmp_path / "m.keras")
        assert zoo.load_keras(tmp_path / "m.keras").mine.power == 2.0
        with pytest.raises(ConfigError, match="known already"):
            zoo.register_keras_layer("Scale", Scale)
        with pytest.raises(ModelError, match="does not take its settings"):
            build_keras(custom(size=3, wrong=1), weights, "test")
    finally:
        unregister_keras_layer("Scale")
    with pytest.raises(ConfigError, match="'Dense' is known"):
        zoo.register_keras_layer("Dense", Scale)


def test_a_function_of_ones_own():
    def builder(c, shapes):
        return Built(lambda: Scale(c.integer("size")), (shapes[0],), variables(("factor", (c.integer("size"),))))

    zoo.register_keras_layer("Scale", builder)
    try:
        model = build_keras(custom(size=3), {"mine": [("factor", np.full(3, 2, np.float32))]}, "test")
        np.testing.assert_allclose(model(gw.tensor(np.ones((1, 4, 3), np.float32))).numpy(), 2)
        with pytest.raises(ModelError, match="'mine'.*size"):
            build_keras(custom(size="many"), {}, "test")
    finally:
        unregister_keras_layer("Scale")


def test_a_plugins_class():
    class Plugin:
        @hookimpl
        def register_modules(self, register):
            register("Scale", Scale)

    with plugins.registered(Plugin(), "scales"):
        assert build_keras(custom(size=3), {"mine": [("factor", np.ones(3))]}, "test").output_shape == (4, 3)
    with pytest.raises(ModelError, match="'mine'"):
        build_keras(custom(size=3), {}, "test")
