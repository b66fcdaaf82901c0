"""Pictures in every colour mode and state of repair: what they become, and what is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from graftwork.errors import DataError, ShapeError
from graftwork.zoo import images


@pytest.fixture(scope="module")
def pixels():
    """A smooth picture (24 high, 16 wide) that survives JPEG nearly unchanged."""
    y, x = np.mgrid[0:24, 0:16]
    return np.stack([10 * y, 15 * x, 255 - 5 * (x + y)], axis=-1).astype(np.uint8)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def save(tmp_path):
    def save(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


# Colour modes


def test_rgb_is_exact_and_has_no_alpha(pixels, save):
    path = save(Image.fromarray(pixels), "a.png")
    np.testing.assert_array_equal(images.to_array(path, None), pixels)
    assert images.to_array(path, None, channels=1).shape == (24, 16, 1)


def test_grey_becomes_three_equal_channels(pixels, save):
    grey = pixels[:, :, 0]
    for mode in ("L", "P", "1"):
        picture = Image.fromarray(grey).convert(mode)
        found = images.to_array(save(picture, f"{mode}.png"), None)
        assert found.shape == (24, 16, 3) and (found == found[:, :, :1]).all()
        np.testing.assert_array_equal(found[:, :, 0], np.asarray(picture.convert("L")))


def test_cmyk_photograph(pixels, save):
    path = save(Image.fromarray(pixels).convert("CMYK"), "c.jpg", quality=100)
    # conversion to inks and back, and JPEG: 8 levels of 255
    np.testing.assert_allclose(images.to_array(path, None).astype(int), pixels.astype(int), atol=8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(mode, save, pixels):
    if mode == "P":
        picture, options = Image.new("P", (16, 24), 0), {"transparency": 0}
    else:
        grey = Image.fromarray(pixels).convert("L" if mode != "RGBA" else "RGB")
        picture, options = grey.convert(mode), {}
        if mode == "PA":
            picture = grey.convert("P").convert("PA")
        picture.putalpha(0)
    source = picture if mode == "PA" else save(picture, "t.png", **options)  # no file format keeps PA
    assert (images.to_array(source, None) == 255).all()


def test_half_transparent_is_mixed(save):
    path = save(Image.new("RGBA", (2, 2), (200, 100, 0, 128)), "h.png")
    np.testing.assert_allclose(images.to_array(path, None)[0, 0], [227, 177, 127], atol=1)  # 255 + (c - 255) * 128 / 255


@pytest.mark.parametrize("name", ["g.png", "g.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(name, save):
    values = np.linspace(0, 65535, 24 * 16).reshape(24, 16).astype(np.uint16)
    found = images.to_array(save(Image.fromarray(values), name), None, channels=1)[:, :, 0]
    np.testing.assert_allclose(found.astype(float), values / 257, atol=1)
    assert len(np.unique(found)) > 250


def test_sixteen_bit_colour(tmp_path):
    """Pillow writes none, so the PNG is made by hand: one white, one mid-grey-blue pixel."""
    row = b"\0" + struct.pack(">6H", 65535, 65535, 65535, 0x4000, 0x4000, 0x8000)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "c16.png").write_bytes(png)
    assert images.to_array(tmp_path / "c16.png", None).tolist() == [[[255, 255, 255], [64, 64, 128]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, pixels, save):
    stored = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels), 7: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90(pixels, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(stored)), "e.png", exif=exif)
    np.testing.assert_array_equal(images.to_array(path, None), pixels)


def test_animation_gives_its_first_frame(save):
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "blue")]
    path = save(frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert images.to_array(path, None)[0, 0].tolist() == [255, 0, 0]


# Damage


def test_corrupt_files_name_themselves(pixels, tmp_path):
    good = encoded(Image.fromarray(pixels), "JPEG")
    cases = {
        "empty.jpg": b"", "text.jpg": b"this is not a picture\n" * 20, "short.jpg": good[: len(good) // 2],
        "head.jpg": good[:100], "page.png": b"<!doctype html><title>404</title>", "zeros.png": bytes(5000),
        "wrong.png": encoded(Image.fromarray(pixels), "PNG")[:60] + bytes(300),
    }  # fmt: skip
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read as an image .*damaged, truncated or something else"):
            images.to_batch([tmp_path / name], (8, 8))


def test_the_content_decides_not_the_suffix(pixels, tmp_path):
    (tmp_path / "really-a.jpg").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(images.to_array(tmp_path / "really-a.jpg", None), pixels)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="no image at .*nowhere.jpg"):
        images.open_image(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="cannot be read as an image"):
        images.open_image(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="bomb.png.*decompression bomb"):
        images.open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_random_damage_gives_a_picture_or_one_kind_of_error(format, pixels, tmp_path):
    rng, outcomes = np.random.default_rng(7), set()
    good = encoded(Image.fromarray(pixels), format)
    path = tmp_path / "x"
    for _ in range(80):
        data = bytearray(good[: rng.integers(20, len(good) + 1)])
        for place in rng.integers(0, min(len(data), 400), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on damaged metadata
                outcomes.add(images.to_array(path, (8, 8)).shape)
        except DataError:
            outcomes.add("error")
    assert "error" in outcomes and outcomes <= {"error", (8, 8, 3)}


# Arrays, sizes, batches


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)], ids=str)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(DataError, match="expected uint8 of"):
        images.to_batch([array], (4, 4))


def test_batches_of_all_kinds_are_equal(pixels, save):
    path = save(Image.fromarray(pixels), "a.png")
    expected = images.to_batch(path, (12, 8))
    assert expected.shape == (1, 12, 8, 3) and expected.dtype == np.uint8
    for one in (str(path), [path], Image.fromarray(pixels), pixels, pixels[None], iter([path])):
        np.testing.assert_array_equal(images.to_batch(one, (12, 8)), expected)
    with pytest.raises(ShapeError, match="no images given"):
        images.to_batch([], (4, 4))


def test_one_pixel_and_extreme_shapes(save):
    for size in ((1, 1), (1, 300), (300, 1)):
        assert images.to_array(save(Image.new("RGB", size, "red"), "s.png"), (5, 7)).shape == (5, 7, 3)


def test_value_ranges(pixels):
    x = pixels[None]
    assert images.normalise(x, "tf").min() >= -1 and images.normalise(x, "unit").max() <= 1
    np.testing.assert_array_equal(images.normalise(x, "raw"), x.astype(np.float32))
    np.testing.assert_allclose(images.normalise(x, "caffe")[..., 0], x[..., 2] - np.float32(103.939))
    np.testing.assert_allclose(images.normalise(x, "torch")[..., 0], (x[..., 0] / 255 - 0.485) / 0.229, rtol=1e-5, atol=1e-6)
    with pytest.raises(ShapeError, match="unknown preprocessing 'keras'"):
        images.normalise(x, "keras")


# Folders


def test_folders(tmp_path, pixels):
    picture = Image.fromarray(pixels)
    with pytest.raises(DataError, match="no images below"):
        images.list_images(tmp_path)
    with pytest.raises(DataError, match="0 sub-folders with images"):
        images.list_labelled(tmp_path)
    (tmp_path / "cat").mkdir()
    picture.save(tmp_path / "cat" / "1.PNG")
    with pytest.raises(DataError, match="1 sub-folders with images; expected at least two"):
        images.list_labelled(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match="no images in dog"):
        images.list_labelled(tmp_path)
    picture.save(tmp_path / "dog" / "2.jpg")
    picture.save(tmp_path / "dog" / ".hidden.jpg")
    (tmp_path / ".cache").mkdir()
    paths, labels, names = images.list_labelled(tmp_path)
    assert [p.name for p in paths] == ["1.PNG", "2.jpg"] and labels.tolist() == [0, 1] and names == ["cat", "dog"]
    assert images.list_images(tmp_path) == paths
    with pytest.raises(DataError, match="is not a folder"):
        images.list_images(tmp_path / "nothing")
