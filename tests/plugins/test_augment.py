"""Augmentation and the data of fine-tuning: every picture is a window of its original, targets carry weights, seeds decide."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import errors, nn, zoo
from graftwork.plugins.transfer import Augmentation
from graftwork.plugins.transfer.augment import colour_jitter, random_crop, resized_crop
from graftwork.plugins.transfer.training_data import TrainingLoader, TrainingSet, decode, targets


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)


def windows(picture, height, width):
    view = np.lib.stride_tricks.sliding_window_view(picture, (height, width), axis=(0, 1))
    return np.moveaxis(view, 2, -1).reshape(-1, height, width, picture.shape[2])


def test_crops_and_flips_are_windows_of_the_picture(rng, pictures):
    flipped = 0
    for _ in range(10):
        for before, after in zip(pictures, Augmentation().pixels(rng, pictures, (8, 9)), strict=True):
            straight = (windows(before, 8, 9) == after).all(axis=(1, 2, 3)).any()
            mirrored = (windows(before, 8, 9) == after[:, ::-1]).all(axis=(1, 2, 3)).any()
            assert straight != mirrored
            flipped += mirrored
    assert 15 < flipped < 45  # of 60, a half each


def test_crops_reach_every_place(rng):
    places = np.arange(20, dtype=np.uint8).reshape(1, 4, 5, 1)
    corners = {int(random_crop(rng, places, (3, 3))[0, 0, 0, 0]) for _ in range(100)}
    assert corners == {0, 1, 2, 5, 6, 7}


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crops(rng, channels):
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, None, :, None], (4, 50, 60, channels))
    whole = resized_crop(rng, ramp, (50, 60), (1.0, 1.0), 1.0)
    np.testing.assert_array_equal(whole, ramp)
    part = resized_crop(rng, ramp, (20, 24), (0.25, 0.25), 1.0)
    assert part.shape == (4, 20, 24, channels)
    spread = part[:, 0, -1, 0].astype(int) - part[:, 0, 0, 0]
    assert (np.abs(spread - 30 * 4 * 23 / 24) < 8).all()  # a half of the width; rounding, and the edges' filter


def test_jitter_changes_colours_and_nothing_else(rng, pictures):
    grey = np.full((2, 4, 4, 3), 100, np.uint8)
    brighter = colour_jitter(np.random.default_rng(1), grey, 0.5)
    assert (brighter == brighter[:, :1, :1, :1]).all() and not np.array_equal(brighter, grey)  # still grey, and even
    np.testing.assert_array_equal(colour_jitter(rng, pictures, 0.0), pictures)
    assert colour_jitter(rng, pictures[..., :1], 0.3).shape == (6, 12, 10, 1)


def test_mixup_mixes_targets_as_inputs(rng):
    x = np.zeros((8, 1, 1, 8), np.float32)
    x[np.arange(8), 0, 0, np.arange(8)] = 1
    mixed, rows = Augmentation(mixup=0.5).mix(rng, x, np.eye(8, dtype=np.float32))
    np.testing.assert_allclose(mixed[:, 0, 0], rows)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
    assert (rows.diagonal() >= 0.5).all() and (rows.diagonal() < 0.999).any()


def test_batches_do_not_depend_on_the_number_of_threads(rng):
    model = zoo.create("squeezenet1_1", include_top=False)
    pixels, labels = rng.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8), rng.integers(0, 3, 20)
    augment = Augmentation(area=(0.5, 1.0), jitter=0.2, mixup=0.3)
    data = TrainingSet(pixels, labels, targets(labels, 3, 0.1, None), model, (10, 10), augment)
    found = []
    for workers in (0, 1, 3):
        loader = TrainingLoader(data, 8, seed=4, workers=workers, balanced=False)
        found.append([[t.numpy() for t in batch] for _ in range(2) for batch in loader])
    for other in found[1:]:
        for batch, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(batch[0], same[0])
            np.testing.assert_array_equal(batch[1], same[1])
    assert not np.array_equal(found[0][0][0], found[0][3][0])  # another epoch, other pictures


def test_rare_classes(rng):
    labels = np.array([0] * 12 + [1] * 6 + [2] * 2)
    rows = targets(labels, 4, 0.0, "weights")  # the fourth class has no pictures
    np.testing.assert_allclose([rows[labels == c].sum() for c in range(3)], 20 / 3, rtol=1e-6)
    np.testing.assert_allclose(targets(labels, 4, 0.2, None)[0], [0.85, 0.05, 0.05, 0.05])
    data = TrainingSet(np.zeros((20, 1)), labels, rows, nn.Linear(1, 1), (1, 1), Augmentation())
    loader = TrainingLoader(data, 8, seed=0, workers=0, balanced=True)
    counts = np.bincount(labels[loader.order(0)])
    assert counts.sum() == 20 and counts.min() >= 6 and set(loader.order(0)) >= {18, 19}
    assert not np.array_equal(loader.order(0), loader.order(1))
    np.testing.assert_array_equal(loader.order(1), TrainingLoader(data, 8, 0, 2, True).order(1))


def test_decoding_keeps_the_order(rng, tmp_path):
    from PIL import Image

    values = rng.permutation(12).astype(np.uint8) * 20
    for i, v in enumerate(values):
        Image.new("L", (5 + i, 6), int(v)).save(tmp_path / f"{i:02}.png")
    found = decode(sorted(tmp_path.iterdir()), (4, 3), 1)
    assert found.shape == (12, 4, 3, 1)
    np.testing.assert_array_equal(found[:, 0, 0, 0], values)


@pytest.mark.parametrize("options", [{"crop": 0.9}, {"area": (0.0, 1.0)}, {"area": (0.9, 0.5)}, {"jitter": 1.0},
                                     {"mixup": -1.0}, {"stretch": 9.0}])  # fmt: skip
def test_augmentation_that_makes_no_sense(options):
    with pytest.raises(errors.ConfigError, match=next(iter(options))):
        Augmentation(**options)
