"""Weights files: what is read, what is written, and what is refused."""

from __future__ import annotations

import random

import h5py
import numpy as np
import pytest

from graftwork import nn
from graftwork.errors import DataError, ModelError, WeightsError
from graftwork.zoo import hdf5, writing
from graftwork.zoo.matching import Row, compare, listing, plain_name
from graftwork.zoo.weights import load_weights, save_weights

SQUEEZENET = "weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"


def layers_of(rng, count=3):
    return {f"block{i}/conv": [("kernel:0", rng.random((3, 3, 2, 4), np.float32)), ("bias:0", np.zeros(4, np.float32))]
            for i in range(count)}  # fmt: skip


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm(4))
        self.depthwise = nn.DepthwiseConv2d(4, 3, multiplier=2)
        self.separable = nn.SeparableConv2d(8, 5, 3)
        self.up = nn.ConvTranspose2d(5, 6, 2)
        self.classifier = nn.Linear(6, classes)


@pytest.fixture
def file(tmp_path, rng):
    path = tmp_path / "w.h5"
    writing.write_layers(path, {"input": [], **layers_of(rng)}, {"classes": "a b"})
    return path


def refuse(path, words):
    with pytest.raises(WeightsError, match=words) as caught:
        hdf5.read_layers(path)
    assert str(path) in str(caught.value)


def edit(path, change):
    with h5py.File(path, "r+") as f:
        change(f)


# -- reading and writing -----------------------------------------------------------------------------------------------


def test_round_trip(file, rng):
    found = hdf5.read_layers(file)
    assert list(found) == ["input", "block0/conv", "block1/conv", "block2/conv"] and found["input"] == []
    for layer, entries in layers_of(np.random.default_rng(0)).items():
        assert [n for n, _ in found[layer]] == [n for n, _ in entries]
        for (_, got), (_, want) in zip(found[layer], entries, strict=True):
            np.testing.assert_array_equal(got, want)
    assert hdf5.read_origin(file) == ("tensorflow", writing.LAYOUT_VERSION)
    assert hdf5.read_model_config(file) is None


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", ">f4"])
def test_dtypes(tmp_path, dtype):
    writing.write_layers(tmp_path / "w.h5", {"a": [("k", np.arange(6).reshape(2, 3).astype(dtype))]})
    ((_, value),) = hdf5.read_layers(tmp_path / "w.h5")["a"]
    assert value.dtype == np.dtype(dtype).newbyteorder("=") and value.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_scalars_and_empty_tensors_keep_their_shape(tmp_path):
    writing.write_layers(tmp_path / "w.h5", {"a": [("s", np.float32(2)), ("e", np.zeros((0, 3), np.float32))]})
    assert [v.shape for _, v in hdf5.read_layers(tmp_path / "w.h5")["a"]] == [(), (0, 3)]


def test_long_name_lists_are_split(tmp_path):
    layers = {f"layer_{i:04}_{'x' * 90}": [] for i in range(1500)}
    writing.write_layers(tmp_path / "w.h5", layers)
    with h5py.File(tmp_path / "w.h5") as f:
        assert "layer_names" not in f.attrs and {"layer_names0", "layer_names1"} <= set(f.attrs)
        assert all(v.nbytes <= writing.ATTRIBUTE_LIMIT for k, v in f.attrs.items() if k.startswith("layer_names"))
    assert list(hdf5.read_layers(tmp_path / "w.h5")) == list(layers)


def test_str_attributes_and_non_ascii_names(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as f:
        f.attrs["layer_names"] = ["größe"]
        f.create_group("größe").attrs["weight_names"] = ["größe/k"]
        f["größe/größe/k"] = np.ones(2)
    assert list(hdf5.read_layers(tmp_path / "w.h5")) == ["größe"]


def test_published_squeezenet(shared_data):
    found = hdf5.read_layers(shared_data / SQUEEZENET)
    assert sum(a.size for entries in found.values() for _, a in entries) == 722_496
    assert [(n, a.shape) for n, a in found["fire2/expand1x1"]] == [
        ("fire2/expand1x1_3/kernel:0", (1, 1, 16, 64)), ("fire2/expand1x1_3/bias:0", (64,)),
    ]  # fmt: skip
    assert found["pool1"] == []


def test_failed_write_leaves_nothing_and_keeps_the_old_file(file):
    before = file.read_bytes()
    for bad in ({"a": [("k", np.array([object()]))]}, {"": [("k", np.ones(1))]}, {"a\0b": []}):
        with pytest.raises(WeightsError):
            writing.write_layers(file, bad)
    with pytest.raises(ZeroDivisionError), writing.atomic_h5(file) as f:
        f["x"] = 1 / 0
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["w.h5"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        writing.write_layers(tmp_path / "no" / "w.h5", {})


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_what_is_no_hdf5_file(tmp_path):
    refuse(tmp_path, "folder")
    refuse(tmp_path / "none.h5", "no weights file")
    for content, words in ((b"", "empty"), (b"hello world", "not an HDF5"), (b"PK\3\4....", "zip"),
                           (b"version https://git-lfs", "LFS"), (b"\x89HDF\r\n\x1a\n", "damaged")):  # fmt: skip
        (tmp_path / "f.h5").write_bytes(content)
        refuse(tmp_path / "f.h5", words)


def test_truncated(file):
    whole = file.read_bytes()
    for part in (0.01, 0.3, 0.6, 0.99):
        file.write_bytes(whole[: int(len(whole) * part)])
        refuse(file, "truncated")


def test_user_block(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w", userblock_size=512) as f:
        f.attrs["layer_names"] = np.zeros(0)
    refuse(tmp_path / "w.h5", "user block")


def test_links_are_refused_and_not_followed(file, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["secret"] = np.ones(4, np.float32)
    path = "block0/conv/bias:0"

    def soft(f):
        del f[path]
        f[path] = h5py.SoftLink("/block1/conv/bias:0")

    def external(f):
        del f[path]
        f[path] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")

    for change in (soft, external):
        edit(file, change)
        refuse(file, "link")


def test_linked_groups_are_refused(file):
    def change(f):
        f.move("block0", "elsewhere")
        f["block0"] = h5py.SoftLink("/elsewhere")

    edit(file, change)
    refuse(file, "link")


def test_values_in_other_files_are_refused(file, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(16))
    path = "block0/conv/bias:0"

    def external(f):
        del f[path]
        f.create_dataset(path, (4,), "f4", external=[(str(tmp_path / "raw"), 0, 16)])

    def virtual(f):
        del f[path]
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        f.create_virtual_dataset(path, layout)

    for change in (external, virtual):
        edit(file, change)
        refuse(file, "other files")


def test_shape_bombs(file, rng):
    def one(f):
        del f["block0/conv/bias:0"]
        f.create_dataset("block0/conv/bias:0", (1 << 31,), "f4", chunks=(1 << 20,), compression="gzip")

    edit(file, one)
    refuse(file, "declares")


def test_many_small_bombs(file):
    def many(f):
        f["block0/conv"].attrs["weight_names"] = np.array([f"b{i}".encode() for i in range(20)])
        for i in range(20):
            f.create_dataset(f"block0/conv/b{i}", (1 << 28,), "f4", chunks=(1 << 20,))

    edit(file, many)
    refuse(file, "declares")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.attrs.__delitem__("layer_names"), "layer_names"),
        (lambda f: f["block0/conv"].attrs.__delitem__("weight_names"), "weight_names"),
        (lambda f: f.attrs.__setitem__("layer_names", np.array([b"\xff\xfe"])), "UTF-8"),
        (lambda f: f.attrs.__setitem__("layer_names", np.array([1.5])), "text"),
        (lambda f: f.attrs.__setitem__("layer_names", np.array([b"input", b"input"])), "two layers"),
        (lambda f: f.attrs.__setitem__("layer_names", np.array([b"nowhere"])), "no such object"),
        (lambda f: f["block0/conv"].attrs.__setitem__("weight_names", np.array([b"../conv"])), "no such object"),
        (lambda f: f["block0"].attrs.__setitem__("weight_names", 1) or f.__delitem__("block0/conv/bias:0"), "no such object"),
        (lambda f: f.__delitem__("block0/conv/bias:0") or f.create_group("block0/conv/bias:0"), "not a dataset"),
        (lambda f: f.__delitem__("block0/conv/bias:0") or f.__setitem__("block0/conv/bias:0", "text"), "numbers"),
        (lambda f: f.attrs.__delitem__("layer_names") or f.create_group("layers"), "does not keep"),
    ],
)
def test_wrong_contents(file, change, words):
    edit(file, change)
    refuse(file, words)


def test_random_damage_is_always_a_clear_error(file):
    """Truncation, flipped bits and overwritten stretches: a result or our error, and nothing else."""
    whole, dice, outcomes = file.read_bytes(), random.Random(0), set()
    for _ in range(300):
        data = bytearray(whole)
        kind = dice.randrange(3)
        if kind == 0:
            data = data[: dice.randrange(len(data))]
        elif kind == 1:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        else:
            start = dice.randrange(len(data))
            data[start : start + dice.randrange(1, 100)] = bytes([dice.choice((0, 255))])
        file.write_bytes(data)
        try:
            hdf5.read_layers(file)
            outcomes.add("read")
        except WeightsError as error:
            assert str(file) in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]", '"x"', "9" * 5000])
def test_bad_model_configurations(file, text):
    with pytest.raises(ModelError, match="configuration"):
        hdf5.parse_config(text, file)


# -- models ------------------------------------------------------------------------------------------------------------


def test_save_and_load_a_model(tmp_path):
    one, other = Net(), Net()
    for _, buffer in one.named_buffers():
        buffer.data += 0.5
    save_weights(one, tmp_path / "w.h5", {"note": "hi"})
    report = load_weights(other, tmp_path / "w.h5")
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert len(report.loaded) == len(one.state_dict()) and not report.missing
    with h5py.File(tmp_path / "w.h5") as f:
        assert [n.decode() for n in f.attrs["layer_names"]][:2] == ["stem/conv", "stem/norm"]
        assert f["depthwise/depthwise/depthwise_kernel:0"].shape == (3, 3, 4, 2)  # Keras's layout
        assert f["separable/separable/depthwise_kernel:0"].shape == (3, 3, 8, 1)
        assert f.attrs["note"] == "hi"


def test_depthwise_channels_keep_their_order(tmp_path):
    model = nn.Sequential(d=nn.DepthwiseConv2d(2, 1, multiplier=3, bias=False))
    model.d.weight.data[...] = np.arange(6, dtype=np.float32).reshape(1, 1, 1, 6)  # output channel c * 3 + m
    save_weights(model, tmp_path / "w.h5")
    ((_, kernel),) = hdf5.read_layers(tmp_path / "w.h5")["d"]
    assert kernel[0, 0, 1, 2] == 5 and kernel[0, 0, 0, 1] == 1


def test_a_layer_alone_can_be_saved(tmp_path):
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    save_weights(one, tmp_path / "w.h5")
    load_weights(other, tmp_path / "w.h5")
    np.testing.assert_array_equal(one.weight.numpy(), other.weight.numpy())


def test_strict_loading_lists_everything_and_changes_nothing(tmp_path):
    save_weights(Net(classes=4), tmp_path / "w.h5")
    edit(tmp_path / "w.h5", lambda f: f["stem/conv"].attrs.__setitem__("weight_names", np.array([b"stem/conv/kernel:0"])))
    model = Net(classes=3)
    model.extra = nn.Linear(1, 1)
    del model.separable
    before = model.state_dict()
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w.h5")
    text = str(caught.value)
    rows = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert ["missing", "stem/conv", "bias", "expected", "(4,)"] in rows
    assert ["mismatched", "classifier", "bias", "expected", "(3,)", "found", "(4,)"] in rows
    assert sorted({r[0] for r in rows}) == ["mismatched", "missing", "unexpected"]
    assert str(tmp_path / "w.h5") in text and "skip=" in text
    assert len({line.index("expected (") for line in text.splitlines() if "expected (" in line}) == 1  # aligned
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())


def test_new_head_is_asked_for_in_words(tmp_path):
    trained, model = Net(classes=4), Net(classes=3)
    save_weights(trained, tmp_path / "w.h5")
    head = model.classifier.weight.numpy().copy()
    report = load_weights(model, tmp_path / "w.h5", skip=("classifier",))
    assert report.mismatched == report.unexpected == report.missing == ()
    np.testing.assert_array_equal(model.stem.conv.weight.numpy(), trained.stem.conv.weight.numpy())
    np.testing.assert_array_equal(model.classifier.weight.numpy(), head)
    report = load_weights(model, tmp_path / "w.h5", strict=False)
    assert report.mismatched == ("classifier kernel", "classifier bias") and "2 mismatched" in str(report)
    load_weights(Net(4), tmp_path / "w.h5", skip="stem.conv")  # a dotted path, all below it
    with pytest.raises(WeightsError):
        load_weights(model, tmp_path / "w.h5", skip=("classif",))  # not a prefix of letters


def test_names_that_keras_versions_give():
    spellings = {"conv1_3/kernel:0": "kernel", "convolution2d_1_W_1:0": "kernel", "dense_2_b": "bias", "a/b/gamma": "gamma",
                 "batchnormalization_1_running_std:0": "moving_variance", "moving_mean_4:0": "moving_mean",
                 "s/depthwise_kernel:0": "kernel", "s/pointwise_kernel:0": "pointwise_kernel", "tau": "tau"}  # fmt: skip
    assert {name: plain_name(name) for name in spellings} == spellings


def test_tensors_pair_by_name_before_position():
    c = np.zeros(2)
    expected = {"bn": [(n, (2,)) for n in ("gamma", "beta", "moving_mean", "moving_variance")]}
    result = compare(expected, {"bn": [("bn/beta:0", c), ("bn/moving_mean:0", c), ("bn/moving_variance:0", c)]})
    assert [p for _, p, _ in result.matched] == [1, 2, 3] and result.names("missing") == ["bn gamma"]
    result = compare(expected, {"bn": [("w0", c), ("w1", c), ("w2", c)]})  # neither names nor numbers agree: no guess
    assert not result.matched and len(result.names("missing")) == 4 and len(result.names("unexpected")) == 3
    assert len(compare(expected, {"bn": [(f"w{i}", c) for i in range(4)]}).matched) == 4


def test_long_listings_show_every_kind_and_say_what_was_left_out():
    rows = compare({}, {f"l{i}\x1b[2J": [("k", np.zeros(1))] for i in range(60)}).rows
    text = listing(rows)
    assert len(text.splitlines()) == 42 and text.endswith("... and 20 more unexpected") and "\x1b" not in text
    rows = [Row("unexpected", f"u{i}", None, (1,)) for i in range(99)] + [Row("missing", f"m{i}", (1,)) for i in range(99)]
    rows += [Row("mismatched", f"x{i}", (1,), (2,)) for i in range(6)]
    lines = listing(rows).splitlines()
    assert lines[0] == "99 missing, 6 mismatched, 99 unexpected"
    kinds = [line.split()[0] for line in lines[1:] if "..." not in line]
    assert kinds == ["missing"] * 17 + ["mismatched"] * 6 + ["unexpected"] * 17
    assert [line.strip() for line in lines if "..." in line] == ["... and 82 more missing", "... and 82 more unexpected"]
    assert listing([]) == ""
