"""Packed arrays: exact whatever they hold, small where they are simple, and refused where they are damaged."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from graftwork import errors
from graftwork.nn import checkpoint, packing


def rng():
    return np.random.default_rng(0)


def multiples():
    """Weights rounded to 8 bits, a scale a channel."""
    w = rng().standard_normal((3, 3, 8, 16)).astype(np.float32)
    scale = np.abs(w).max((0, 1, 2)) / np.float32(127)
    return np.rint(w / scale) * scale


def sparse(array, share=0.8):
    """With that share of zeros; the largest values stay, as in magnitude pruning."""
    return np.where(np.abs(array) <= np.quantile(np.abs(array), share), np.float32(0), array)


def clustered():
    return rng().standard_normal(32).astype(np.float32)[rng().integers(0, 32, (3, 3, 8, 16))]


ARRAYS = {
    "raw": (rng().standard_normal((30, 7)).astype(np.float32), "float32"),
    "sparse": (sparse(rng().standard_normal((300, 7)).astype(np.float32)), "sparse float32"),
    "int8": (multiples(), "int8"),
    "sparse int8": (sparse(multiples()), "sparse int8"),
    "codebook": (clustered(), "codebook"),
    "sparse codebook": (sparse(clustered()), "sparse codebook"),
    "long gaps": (np.eye(1, 2000, 1500, dtype=np.float32), "sparse codebook"),
    "no value": (np.zeros((600, 3), np.float32), "sparse int8"),
    "half": (np.linspace(-1, 1, 700).astype(np.float16).astype(np.float32), "half"),
    "one": (np.full((4, 4), np.float32(np.pi)), "codebook"),
    "scalar": (np.array(np.float32(1.1)), "float32"),
    "empty": (np.zeros((0, 3), np.float32), "half"),
    "nan": (np.array([np.nan, 1, 1, 1, 1, 1, 1, 1], np.float32), "float32"),
    "bytes": (rng().integers(-128, 128, (9, 5)).astype(np.int8), "int8"),
    "sparse bytes": (np.eye(20, 30, 3, dtype=np.uint8) * 255, "sparse uint8"),
    "integers": (np.arange(5), "int64"),
    "doubles": (rng().standard_normal(5), "float64"),
    "subnormal scale": (np.full((40, 2), 1e-44, np.float32), "codebook"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_array_comes_back_exactly_in_the_form_that_suits_it(name):
    array, form = ARRAYS[name]
    packed = packing.entries(packing.pack({name: array}))[name]
    assert packed.stored_dtype == form and packed.shape == array.shape and packed.dtype == array.dtype
    assert np.array_equal(packed.read(), array, equal_nan=array.dtype.kind == "f")
    out = np.empty(array.shape, array.dtype)
    assert packed.read(out) is out and np.array_equal(out, np.asarray(packed), equal_nan=array.dtype.kind == "f")


def test_all_arrays_share_the_streams(tmp_path):
    arrays = {name: array for name, (array, _) in ARRAYS.items()}
    for name, found in packing.unpack(packing.pack(arrays)).items():
        assert np.array_equal(found, arrays[name], equal_nan=arrays[name].dtype.kind == "f"), name
    checkpoint.save(tmp_path / "c.h5", {"weights": arrays, "other": {"a/b": np.arange(3)}}, {}, packed=("weights",))
    groups, _ = checkpoint.load(tmp_path / "c.h5")
    assert np.array_equal(groups["other"]["a/b"], np.arange(3)) and list(groups["weights"]) == list(arrays)
    assert all(np.array_equal(groups["weights"][n], a, equal_nan=a.dtype.kind == "f") for n, a in arrays.items())


def test_codes_are_small(tmp_path):
    w = rng().standard_normal(16).astype(np.float32)[rng().integers(0, 16, (64, 4096))]
    w = np.where(np.random.default_rng(1).random(w.shape) < 0.7, np.float32(0), w)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        packing.write_streams(file, packing.pack({"w": w}))
    # zero or not: 0.88 bits; which of 16: 4 bits for three in ten: 2.08; HDF5's own tables take some 12 KB
    assert ((tmp_path / "w.h5").stat().st_size - 13_000) * 8 < 2.15 * w.size
    with h5py.File(tmp_path / "w.h5") as file:  # the HDF5 library reads what was compressed here
        found = packing.unpack(packing.read_streams(lambda name: file[name][()], file))
    assert np.array_equal(found["w"], w)


def damaged(change):
    array, _ = ARRAYS["sparse codebook"]
    streams = packing.pack({"w": array})
    index = json.loads(bytes(streams["index"]))
    change(streams, index)
    streams["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    return streams


@pytest.mark.parametrize("change, message", [
    (lambda s, i: i[0].update(shape=[3, 3, 8, 17]), "do not fit its size"),
    (lambda s, i: i[0].update(codes=i[0]["codes"] + 1), "cut off"),
    (lambda s, i: i[0].update(codes=i[0]["codes"] - 1), "do not fit its values"),
    (lambda s, i: i[0].update(floats=3), "beyond its codebook"),
    (lambda s, i: i[0].update(form="int8"), "scales"),
    (lambda s, i: i[0].update(form="zip"), "unknown form"),
    (lambda s, i: i[0].update(dtype="object"), "object"),
    (lambda s, i: i[0].update(shape=[-1]), "damaged"),
    (lambda s, i: i[0].pop("form"), "index"),
    (lambda s, i: i[0].update(form="raw", dtype="float64"), "do not fit|stores"),
    (lambda s, i: i[0].update(shape=[1 << 20, 1 << 20]), "refused"),
    (lambda s, i: s.update(gaps=s["gaps"] // 2), "do not fit"),
])  # fmt: skip
def test_damage_is_named(change, message):
    with pytest.raises(errors.WeightsError, match=message):
        packing.unpack(damaged(change))


def test_a_damaged_checkpoint_says_which_file(tmp_path):
    checkpoint.save(tmp_path / "c.h5", {"weights": {"w": ARRAYS["codebook"][0]}}, {}, packed=("weights",))
    with h5py.File(tmp_path / "c.h5", "a") as file:
        del file["weights/codes"]
    with pytest.raises(errors.CheckpointError, match=r"c\.h5: packed array 'w' is cut off"):
        checkpoint.load(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["weights"].attrs["packed"] = 9
    with pytest.raises(errors.CheckpointError, match=r"does not know \(9\)"):
        checkpoint.load(tmp_path / "c.h5")
