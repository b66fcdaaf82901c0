"""Deep features: the scikit-learn protocol, layers, the cache on disk, and images that are damaged, odd or huge."""

from __future__ import annotations

import hashlib
import pickle
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

import graftwork as gw
from graftwork import errors, zoo
from graftwork.plugins.transfer import FeatureExtractor, cache, features
from graftwork.plugins.transfer.cache import CacheWarning

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def trunk():
    return zoo.create("glyphnet", weights="glyphs", include_top=False)


@pytest.fixture
def pictures(tmp_path, rng):
    """Ten grey PNG files with names that are not ASCII; the last has the content of the first."""
    paths = [tmp_path / "bilder" / f"größe {i}.png" for i in range(10)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(path)
    shutil.copy(paths[0], paths[9])
    return paths


@pytest.fixture
def counted(monkeypatch):
    """The number of images that networks were asked about, as it grows."""
    seen = []
    original = FeatureExtractor._computed

    def count(self, *arguments):
        for places, rows in original(self, *arguments):
            seen.extend(places)
            yield places, rows

    monkeypatch.setattr(FeatureExtractor, "_computed", count)
    return seen


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # float32 sums in another order


# scikit-learn's protocol


def test_parameters_clone_and_pickle_share_or_keep_the_model(trunk, pictures):
    from sklearn.base import clone

    extractor = FeatureExtractor(trunk, pooling="max", batch_size=4)
    expected = extractor.transform(pictures)
    twin = clone(extractor)
    assert twin is not extractor and twin.model is trunk and twin.get_params() == extractor.get_params()
    assert twin._compiled is extractor._compiled
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(extractor)).transform(pictures), expected)
    assert extractor.set_params(pooling="avg") is extractor and extractor.get_params()["pooling"] == "avg"
    assert np.abs(extractor.transform(pictures) - expected).max() > 1e-3
    with pytest.raises(errors.ConfigError, match="poling: not an option; there are model, layer, pooling"):
        extractor.set_params(poling="avg")


def test_grid_search_over_pooling_and_regularisation(trunk, rng):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline

    shapes = [np.full((32, 32), 255, np.uint8) for _ in range(12)]
    for i, shape in enumerate(shapes):
        shape[(slice(14, 18), slice(4, 28)) if i % 2 else (slice(4, 28), slice(14, 18))] = rng.integers(0, 60)
    search = GridSearchCV(
        Pipeline([("features", FeatureExtractor(trunk)), ("model", LogisticRegression())]),
        {"features__pooling": ["avg", "max"], "model__C": [0.1, 1.0]}, cv=2,
    )  # fmt: skip
    search.fit(shapes, np.arange(12) % 2)
    assert search.best_score_ == 1.0 and search.best_estimator_["features"].model is trunk


def test_a_layer_of_any_network(pictures):
    gw.manual_seed(0)
    for name, layer in (("glyphnet", "stem"), ("resnet20", "stem")):
        model = zoo.create(name, include_top=False)
        layer = next(n for n, m in model.layers().items() if type(m).__name__ == "Conv2d")
        found = FeatureExtractor(model, layer=layer, pooling="max").transform(pictures[:2])
        expected = model.features(model.preprocess(pictures[:2]), "max", [layer])[layer].numpy()
        close(found, expected)
        assert found.shape[1] != FeatureExtractor(model).transform(pictures[:2]).shape[1]


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"pooling": None}, errors.ConfigError, "pooling=None; expected 'avg' or 'max'"),
        ({"batch_size": 0}, errors.ConfigError, "batch_size=0"),
        ({"layer": "stemm"}, errors.ModelError, "no layer 'stemm'; did you mean stem"),
    ],
)
def test_options_that_do_not_exist(trunk, options, error, words):
    with pytest.raises(error, match=words):
        FeatureExtractor(trunk, **options)


def test_folders_iterables_and_streams_give_the_same_rows(trunk, pictures, monkeypatch):
    extractor = FeatureExtractor(trunk, batch_size=4)
    expected = extractor.transform(pictures)
    np.testing.assert_array_equal(extractor.transform(pictures[0].parent), expected)
    np.testing.assert_array_equal(extractor.transform(p for p in pictures), expected)
    close(extractor.transform(str(pictures[3])), expected[3:4])
    blocks = list(extractor.stream(pictures))
    assert [len(b) for b in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    with pytest.raises(errors.DataError, match="pictures of type int"):
        extractor.transform(7)


# The cache


def test_the_second_run_reads_and_computes_nothing(trunk, pictures, counted):
    extractor = FeatureExtractor(trunk, batch_size=4, cache=True)
    first = extractor.transform(pictures)
    assert sorted(counted) == list(range(9))  # the tenth is the first again
    counted.clear()
    np.testing.assert_array_equal(extractor.transform(pictures), first)
    moved = pictures[2].rename(pictures[2].with_name("elsewhere.png"))
    np.testing.assert_array_equal(extractor.transform([moved, pictures[0]]), first[[2, 0]])
    assert counted == []
    close(first, FeatureExtractor(trunk).transform([*pictures[:2], moved, *pictures[3:]]))
    assert (pictures[0].parent / cache.FOLDER).is_dir()
    assert zoo.images.list_images(pictures[0].parent) == sorted([*pictures[:2], moved, *pictures[3:]])


def test_a_hash_that_ends_in_zeros(trunk, pictures, counted):
    """NumPy drops zero bytes at the end of a string, and one SHA-256 in 256 has some."""
    variants = (pictures[0].read_bytes() + str(i).encode() for i in range(10**5))
    pictures[0].write_bytes(next(data for data in variants if hashlib.sha256(data).digest().endswith(b"\0")))
    for expected in ([0, 1], []):
        counted.clear()
        FeatureExtractor(trunk, cache=True).transform(pictures[:2])
        assert counted == expected


def test_what_changes_the_features_is_computed_again(trunk, pictures, counted, tmp_path):
    where = tmp_path / "kept"
    first = FeatureExtractor(trunk, cache=where).transform(pictures)
    other = zoo.create("glyphnet", weights="glyphs", include_top=False)
    other.load_state_dict({**other.state_dict(), "stem.conv.weight": other.state_dict()["stem.conv.weight"] * 0.5})
    for extractor in (
        FeatureExtractor(other, cache=where), FeatureExtractor(trunk, cache=where, pooling="max"),
        FeatureExtractor(trunk, cache=where, layer="stem"),
    ):  # fmt: skip
        counted.clear()
        found = extractor.transform(pictures)
        assert len(counted) == 9 and (found.shape != first.shape or np.abs(found - first).max() > 1e-4)
    assert len(list(where.iterdir())) == 4
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(pictures[4])
    counted.clear()
    FeatureExtractor(trunk, cache=where).transform(pictures)
    assert counted == [4]


def test_images_in_memory_are_cached_in_a_named_folder(trunk, pictures, counted, tmp_path):
    arrays = [np.asarray(Image.open(p)) for p in pictures]
    extractor = FeatureExtractor(trunk, cache=tmp_path / "kept")
    first = extractor.transform(arrays)
    counted.clear()
    np.testing.assert_array_equal(extractor.transform([Image.open(p) for p in pictures]), first)
    assert counted == []
    with pytest.raises(errors.ConfigError, match="images in memory were given; name a folder"):
        FeatureExtractor(trunk, cache=True).transform(arrays)


def test_a_picture_whose_hash_ends_in_a_zero_is_cached_like_others(trunk, counted, tmp_path):
    blank = np.zeros((8, 8, 3), np.uint8)
    odd = next(
        p for i in range(10_000) if features._hash(p := blank + np.array([0, i // 256, i % 256], np.uint8), 3)[0][-1] == 0
    )
    extractor = FeatureExtractor(trunk, cache=tmp_path / "kept")
    first = extractor.transform([odd])
    counted.clear()
    np.testing.assert_array_equal(extractor.transform([odd]), first)
    assert counted == []


def test_an_interruption_loses_at_most_a_chunk(trunk, pictures, counted, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    extractor = FeatureExtractor(trunk, batch_size=2, cache=True)
    whole = pictures[7].read_bytes()
    pictures[7].write_bytes(whole[:60])
    with pytest.raises(errors.DataError, match="größe 7.png cannot be read as an image"):
        extractor.transform(pictures)
    done = set(counted)
    assert done == set(range(6))
    pictures[7].write_bytes(whole)
    counted.clear()
    found = extractor.transform(pictures)
    assert set(counted) == {6, 7, 8}
    close(found, FeatureExtractor(trunk).transform(pictures))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:3000]), "cannot be read|is damaged"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: edit(p, lambda f: f.attrs.__setitem__("about", "{}")), "of another network"),
        (lambda p: edit(p, lambda f: f.__delitem__("keys")), "parts are missing"),
        (lambda p: edit(p, lambda f: (f.__delitem__("features"), f.__setitem__("features", np.zeros((2, 3))))), "incomplete"),
        (lambda p: edit(p, lambda f: (f.__delitem__("keys"), f.__setitem__("keys", h5py.ExternalLink("x", "/")))), "linked"),
    ],
    ids=["truncated", "empty", "other weights", "no keys", "other rows", "a link"],
)
def test_damaged_and_foreign_blocks_are_computed_again(trunk, pictures, counted, change, words):
    extractor = FeatureExtractor(trunk, cache=True)
    expected = extractor.transform(pictures)
    (block,) = (pictures[0].parent / cache.FOLDER).rglob("*.h5")
    change(block)
    counted.clear()
    with pytest.warns(CacheWarning, match=words):
        found = extractor.transform(pictures)
    assert len(counted) == 9
    np.testing.assert_array_equal(found, expected)


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def test_a_cache_that_cannot_be_written(trunk, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.DataError, match="cannot keep features in .*file: .*name a folder"):
        FeatureExtractor(trunk, cache=tmp_path / "file").transform(pictures)


def test_weights_that_are_not_finite_are_not_cached(pictures, tmp_path):
    model = zoo.create("glyphnet", weights="glyphs", include_top=False)
    state = model.state_dict()
    model.load_state_dict({**state, "stem.conv.weight": state["stem.conv.weight"] * np.nan})
    with pytest.raises(errors.DataError, match="not finite"):
        FeatureExtractor(model, cache=tmp_path / "kept").transform(pictures)
    assert not list((tmp_path / "kept").rglob("*.h5"))


# Images that are odd


def colours(tmp_path):
    """The same picture in many forms: (name, path), the plain one first."""
    base = Image.new("RGB", (40, 24), (200, 40, 90))
    base.paste((20, 180, 60), (0, 0, 20, 12))
    forms = {
        "plain.png": base, "alpha.png": base.convert("RGBA"), "palette.gif": base.quantize(8),
        "cmyk.tif": base.convert("CMYK"), "lossless.webp": base,
    }  # fmt: skip
    for name, image in forms.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    base.save(tmp_path / "animated.gif", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    base.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    return [tmp_path / n for n in (*forms, "animated.gif", "turned.png")]


def test_modes_orientations_and_first_frames_all_count_as_the_plain_picture(tmp_path):
    gw.manual_seed(0)
    model = zoo.create("resnet20", include_top=False)
    paths = colours(tmp_path)
    found = FeatureExtractor(model, cache=tmp_path / "kept").transform(paths)
    scale = np.abs(found[0]).max()
    assert np.abs(found - found[0]).max() < 0.05 * scale  # palettes and CMYK round colours by a step or two
    grey = Image.new("RGB", (40, 24), (128, 128, 128))
    grey.convert("L").save(tmp_path / "grey.png")
    grey.save(tmp_path / "colour.png")
    pair = FeatureExtractor(model).transform([tmp_path / "grey.png", tmp_path / "colour.png"])
    np.testing.assert_array_equal(pair[0], pair[1])


@pytest.mark.parametrize("name", ["truncated.jpg", "text.png", "empty.jpg", "bomb.png", "none.png"])
@pytest.mark.parametrize("kept", [False, True])
def test_unreadable_pictures_are_named(trunk, tmp_path, rng, name, kept):
    path = tmp_path / name
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    if name == "truncated.jpg":
        path.write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    elif name == "bomb.png":
        path.write_bytes(bomb())
    elif name != "none.png":
        path.write_bytes(b"" if name == "empty.jpg" else b"not an image")
    extractor = FeatureExtractor(trunk, cache=tmp_path / "kept" if kept else None)
    with pytest.raises(errors.DataError, match=name):
        extractor.transform([tmp_path / "whole.jpg", path])


def bomb() -> bytes:
    """A PNG file of a few bytes whose header declares 60,000 x 60,000 pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = lambda body: struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(b"\0" * 100)) + chunk(b"IEND")
