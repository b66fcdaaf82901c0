"""Keras 3's layout, types and packing of weights, lazy reading, and files of the newer HDF5 format."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest

from graftwork import nn, zoo
from graftwork.errors import ConfigError, WeightsError
from graftwork.zoo import hdf5, layer_order, weights, writing
from graftwork.zoo.weights_h5 import LayerSpec, counted, snake_case


def small(**options):
    return zoo.create("resnet50", input_shape=(32, 32, 3), include_top=False, **options)


class Two(nn.Module):
    """Two layers of a class, a depthwise one, and a module that stands for a nested model."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.depthwise = nn.DepthwiseConv2d(2, 3, multiplier=2)
        self.norm = nn.BatchNorm(4)
        self.nested = Nested()


class Nested(nn.Module):
    keras_class, keras_inner = "Sequential", (("norm", "LayerNormalization", 2), ("dense", "Dense", 2))

    def __init__(self):
        super().__init__()
        for name in ("gamma", "beta", "kernel", "bias"):
            shape = (3, 3) if name == "kernel" else (3,)
            setattr(self, name, nn.Parameter(np.random.default_rng(len(name)).random(shape, np.float32)))


def strip_names(path):
    with h5py.File(path, "r+") as f:
        f.visititems(lambda _, item: item.attrs.pop("name", None) and None)


def same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


# -- the layout --------------------------------------------------------------------------------------------------------


def test_names_of_groups():
    kinds = ("Conv2D", "BatchNormalization", "Conv2DTranspose", "LSTM", "MultiHeadAttention", "PReLU")
    names = ["conv2d", "batch_normalization", "conv2d_transpose", "lstm", "multi_head_attention", "p_re_lu"]
    assert list(map(snake_case, kinds)) == names
    assert counted(["Dense", "Conv2D", "Dense", "Dense"]) == ["dense", "conv2d", "dense_1", "dense_2"]


@pytest.mark.parametrize("named", [True, False])
def test_round_trip(tmp_path, named):
    path, one, other = tmp_path / "w.weights.h5", Two(), Two()
    zoo.save_weights(one, path)
    with h5py.File(path) as f:
        assert f["layers/dense_1/vars"].attrs["name"] == "second" and f["layers/depthwise_conv2d/vars/0"].shape == (3, 3, 2, 2)
        assert f["layers/sequential/layers/dense/vars/0"].shape == (3, 3)
    if not named:
        strip_names(path)
    assert len(zoo.load_weights(other, path).loaded) == len(one.state_dict())
    same(one, other)
    if named:
        assert zoo.read_weights(path)["second"][0][0] == "0"
    else:
        with pytest.raises(WeightsError, match="does not keep the layers' names"):
            zoo.read_weights(path)


def test_the_era_of_keras_2_13(tmp_path):
    path, one, other = tmp_path / "w.weights.h5", Two(), Two()
    zoo.save_weights(one, path)
    strip_names(path)
    with h5py.File(path, "r+") as f:
        f.move("layers/sequential/layers", "layers/sequential/_layer_checkpoint_dependencies")
        f.move("layers", "_layer_checkpoint_dependencies")
    zoo.load_weights(other, path)
    same(one, other)


def test_more_than_ten_layers_of_a_class_keep_their_order(tmp_path):
    one, other = (nn.Sequential(*[nn.Linear(1, 1) for _ in range(12)]) for _ in range(2))
    zoo.save_weights(one, tmp_path / "w.weights.h5")
    strip_names(tmp_path / "w.weights.h5")
    zoo.load_weights(other, tmp_path / "w.weights.h5")
    same(one, other)


def test_layers_within_layers(tmp_path):
    """As Keras 3.15 lays them: Bidirectional, MultiHeadAttention, TimeDistributed around a model."""
    path = tmp_path / "w.weights.h5"
    groups = {
        "bidirectional/forward_layer/cell": 3, "bidirectional/backward_layer/cell": 3, "time_distributed/layer/layers/dense": 2,
        "time_distributed/layer/layers/dense_1": 2, "dropout/seed_generator": 1,
        **{f"multi_head_attention/{n}_dense": 2 for n in ("key", "output", "query", "value")},
    }  # fmt: skip
    with h5py.File(path, "w") as f:
        for number, (group, count) in enumerate(groups.items()):
            for i in range(count):
                f[f"layers/{group}/vars/{i}"] = np.float32([10 * number + i])
        f["optimizer/vars/0"] = np.ones(1)
    inner = LayerSpec("inner", "Sequential", (LayerSpec("a", "Dense"), LayerSpec("b", "Dense")))
    order = [LayerSpec("attention", "MultiHeadAttention"), LayerSpec("drop", "Dropout"), LayerSpec("both", "Bidirectional"),
             LayerSpec("steps", "TimeDistributed", (inner,))]  # fmt: skip
    found = hdf5.read_layers(path.read_bytes(), order)
    assert list(found) == ["attention", "drop", "both", "steps"] and found["drop"] == []
    assert [n for n, _ in found["attention"]] == [f"{n}_dense/{i}" for n in ("query", "key", "value", "output") for i in (0, 1)]
    assert [n for n, _ in found["both"]] == [f"{n}_layer/cell/{i}" for n in ("forward", "backward") for i in range(3)]
    assert [n for n, _ in found["steps"]] == ["layer/a/0", "layer/a/1", "layer/b/0", "layer/b/1"]
    writing.write_weights_h5(tmp_path / "again.weights.h5", [(spec, found[spec.name]) for spec in order])
    again = hdf5.read_layers(tmp_path / "again.weights.h5", order)
    assert {k: [(n, a.tolist()) for n, a in v] for k, v in again.items()} == {
        k: [(n, a.tolist()) for n, a in v] for k, v in found.items()}  # fmt: skip


def test_what_no_layer_claims_is_listed(tmp_path):
    zoo.save_weights(nn.Sequential(a=nn.Linear(1, 1), b=nn.Conv2d(1, 1, 1)), tmp_path / "w.weights.h5")
    with pytest.raises(WeightsError, match=r"unexpected +layers/conv2d 0"):
        zoo.load_weights(nn.Sequential(a=nn.Linear(1, 1)), tmp_path / "w.weights.h5")


def test_order_of_layers_is_keras_s():
    """The first block of ResNet-50 in `keras.Model.layers`: the shortcut comes after what is farther from the output."""
    model = small()
    specs = layer_order.layer_specs(model, weights.layer_modules(model))
    order = [spec.name.removeprefix("conv2_block1_") for spec in specs]
    assert order[2:10] == ["1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn"]


def test_zoo_networks_without_names(tmp_path):
    one, other = small(), small()
    zoo.save_weights(one, tmp_path / "w.weights.h5")
    strip_names(tmp_path / "w.weights.h5")
    zoo.load_weights(other, tmp_path / "w.weights.h5")
    same(one, other)


def test_groups_that_contain_each_other(tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as f:
        f["layers/dense/vars/0"] = np.ones(1)
        f["layers/dense/again"] = f["layers"]
    with pytest.raises(WeightsError, match="contain each other"):
        zoo.load_weights(nn.Linear(1, 1), tmp_path / "w.weights.h5")


# -- types and packing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["legacy", "weights.h5"])
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_types(tmp_path, layout, compression, dtype, error):
    one, other, path = Two(), Two(), tmp_path / "w.h5"
    if dtype == "bfloat16" and layout == "legacy":
        with pytest.raises(ConfigError, match="newer layout"):
            zoo.save_weights(one, path, layout=layout, dtype=dtype)
        return
    zoo.save_weights(one, path, layout=layout, dtype=dtype, compression=compression)
    lazy = hdf5.read_stored(path)
    assert {a.stored_dtype for a in lazy} == {dtype} and any(a.packed for a in lazy) == (compression is not None)
    zoo.load_weights(other, path)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(b, a, rtol=error, atol=0)  # rounding to nearest: half a unit in the last place


def test_bfloat16_rounds_to_nearest_even_and_keeps_specials():
    values = np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-9), 0, -0.0, np.inf, -np.inf, 1e-40])
    back = writing.from_bfloat16(writing.to_bfloat16(values))
    np.testing.assert_array_equal(back[:8], np.float32([1, 1, 1 + 2**-6, -1, 0, -0.0, np.inf, -np.inf]))
    assert np.signbit(back[5]) and abs(back[8] - 1e-40) <= 2.0**-134
    for bits in (0x7F800001, 0xFFC00000, 0x7FFFFFFF):
        assert np.isnan(writing.from_bfloat16(writing.to_bfloat16(np.uint32([bits]).view(np.float32))))[0]
    assert writing.to_bfloat16(np.float32(3)).shape == ()


def test_what_a_type_cannot_hold(tmp_path):
    model = nn.Linear(1, 1)
    model.weight.data[...] = 1e6
    with pytest.raises(WeightsError, match=r"1e\+06 are beyond float16; save as float32 or bfloat16"):
        zoo.save_weights(model, tmp_path / "w.h5", dtype="float16")
    zoo.save_weights(model, tmp_path / "w.weights.h5", dtype="bfloat16")
    for options in ({"dtype": "int8"}, {"compression": "lzf"}, {"layout": "keras"}):
        with pytest.raises(ConfigError, match="expected"):
            zoo.save_weights(model, tmp_path / "x.h5", **options)
    assert not (tmp_path / "x.h5").exists()


def test_damage_in_packed_values_is_found_before_anything_changes(tmp_path):
    path, model = tmp_path / "w.h5", nn.Sequential(a=nn.Linear(4, 4), b=nn.Linear(40, 40))
    zoo.save_weights(model, path, compression="gzip")
    with h5py.File(path) as f:
        at = f["b/b/kernel:0"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at + 20 : at + 60] = bytes(40)
    path.write_bytes(data)
    model.a.weight.data[...] = 7
    with pytest.raises(WeightsError, match="does not unpack"):
        zoo.load_weights(model, path)
    assert (model.a.weight.numpy() == 7).all()


# -- lazy reading, and what is left to the HDF5 library --------------------------------------------------------------------


def test_lazy(tmp_path, rng):
    values = rng.random((3, 4), np.float32)
    writing.write_layers(tmp_path / "w.h5", {"a": [("k", values), ("big", values.astype(">f8"))]})
    (_, one), (_, two) = zoo.read_weights(tmp_path / "w.h5", lazy=True)["a"]
    assert (one.shape, one.ndim, one.size, two.dtype) == ((3, 4), 2, 12, np.float64)
    np.testing.assert_array_equal(one, values)
    np.testing.assert_array_equal(two.read(np.empty((3, 4))), values.astype(np.float64))
    assert np.asarray(one, np.float16).dtype == np.float16
    with pytest.raises(ValueError, match="still in their file"):
        np.array(one, copy=False)
    with open(tmp_path / "w.h5", "r+b") as file:
        file.truncate(100)
    with pytest.raises(WeightsError, match="should have"):
        zoo.read_weights(tmp_path / "w.h5", lazy=True)
    with pytest.raises(WeightsError, match="has become shorter"):
        two.read()


def test_every_storage_of_the_classic_format(tmp_path, rng):
    a = rng.random((40, 33)).astype("f4")
    with h5py.File(tmp_path / "w.h5", "w") as f:
        packings = ({"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True},
                    {"chunks": (16, 16), "fletcher32": True}, {"chunks": (7, 5), "shuffle": True})  # fmt: skip
        for i, options in enumerate(packings):
            f.create_dataset(f"l/d{i}", data=a, **options)
        f.create_dataset("l/fill", (5, 7), "f8", fillvalue=3.5)
        f.create_dataset("l/part", (50, 7), "f8", fillvalue=3.5, chunks=(10, 7))[:10] = 1
        f["l/bool"], f["l/odd"] = np.array([True, False]), np.arange(7, dtype=">i2")
        f.create_dataset("l/bytes", data=np.arange(7, dtype="u1"), fletcher32=True, chunks=(7,))
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(f["l"].id, b"compact", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3,)), compact)
        f["l/compact"][:] = [1, 2, 3]
        f.attrs["layer_names"], f["l"].attrs["weight_names"] = ["l"], list(f["l"])
        expected = {name: f["l"][name][()] for name in f["l"]}
    for name, value in hdf5.read_layers(tmp_path / "w.h5")["l"]:
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
        assert value.dtype == expected[name].dtype.newbyteorder("=")


def test_newer_files_go_through_a_child_process(tmp_path, rng):
    a = rng.random((20, 3), np.float32)
    with h5py.File(tmp_path / "w.h5", "w", libver="latest") as f:
        f.create_dataset("größe/k", data=a, compression="lzf")
        for i in range(20):  # dense storage of links
            f[f"größe/{i}"] = a[i]
        f.attrs["layer_names"], f["größe"].attrs["weight_names"] = ["größe"], ["k", *map(str, range(20))]
    lazy = zoo.read_weights(tmp_path / "w.h5", lazy=True)["größe"]
    np.testing.assert_array_equal(lazy[0][1], a)
    np.testing.assert_array_equal(np.stack([x for _, x in lazy[1:]]), a)


def test_reduced_fuzzing(tmp_path):
    """300 damaged files; scripts/fuzz_weights.py runs 10,000 (and says how a case is made again)."""
    spec = importlib.util.spec_from_file_location("fuzz_weights", Path(__file__).parents[2] / "scripts" / "fuzz_weights.py")
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    counts, wrong, _ = fuzz.run(range(300), 1, tmp_path, structure=0.05)
    assert wrong == [] and {"read", "refused"} <= set(counts) <= set(fuzz.OUTCOMES)
