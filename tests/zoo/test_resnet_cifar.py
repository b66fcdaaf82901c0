"""ResNet-20's embedded weights for CIFAR-10: they load, are what their provenance says, and recognise pictures."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import graftwork as gw
from graftwork import nn, zoo
from graftwork.zoo import hdf5, resnet_cifar

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "cifar10"
FILE = Path(resnet_cifar.__file__).with_name("resnet20_cifar10.h5")
PROVENANCE = FILE.with_suffix(".md").read_text()
LOG = [json.loads(line) for line in (SCRIPTS / "train.log").read_text().splitlines()]
EPOCHS, RESULT = LOG[:-1], LOG[-1]


@pytest.fixture(scope="module")
def model():
    return zoo.create("resnet20", weights="cifar10")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import train
    finally:
        sys.path.remove(str(SCRIPTS))
    return train


def test_the_file_is_small_and_complete(model):
    assert FILE.stat().st_size == RESULT["bytes"] < 1_200_000
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == zoo.find("resnet20").info["sha256"]["cifar10"]
    layers = hdf5.read_layers(FILE)
    assert sum(len(entries) for entries in layers.values()) == len(model.state_dict())
    assert {values.dtype for entries in layers.values() for _, values in entries} == {np.dtype(np.float16)}
    for name, value in model.state_dict().items():
        assert value.dtype == np.float32 and np.isfinite(value).all(), name
        if name.endswith("moving_variance"):
            assert (value > 0).all() and not np.allclose(value, 1), "statistics of an untrained network"


def test_the_classes_stand_in_the_file_and_in_the_table():
    with h5py.File(FILE) as file:
        assert tuple(file.attrs["classes"]) == resnet_cifar.CLASSES
    for name, parameters in (("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)):
        info = zoo.find(name).info
        assert info["classes"] == resnet_cifar.CLASSES
        assert zoo.create(name).count_parameters() == info["parameters"] == parameters
    assert "research use" in zoo.find("resnet20").info["licence"]
    assert not zoo.find("resnet32").weights and not zoo.find("resnet56").weights


def test_the_top_can_be_left_out(model):
    trunk = zoo.create("resnet20", weights="cifar10", include_top=False, pooling="avg")
    assert set(model.state_dict()) - set(trunk.state_dict()) == {"classifier.weight", "classifier.bias"}
    assert trunk(gw.tensor(np.zeros((1, 32, 32, 3), np.float32))).shape == (1, 64)


def test_provenance_says_what_the_log_says(script):
    command = re.search(r"`python (scripts/cifar10/\S+) cifar10-train.h5 --seed (\d+) --epochs (\d+)`", PROVENANCE)
    assert (ROOT / command[1]).is_file() and int(command[2]) == RESULT["seed"] and int(command[3]) == len(EPOCHS)
    for precision in ("float16", "float32"):
        (low, high), accuracy = RESULT[precision]["interval"], RESULT[precision]["accuracy"]
        assert f"in {precision} | {accuracy:.4f} | {low:.4f} to {high:.4f} |" in PROVENANCE
    assert abs(RESULT["float16"]["accuracy"] - RESULT["float32"]["accuracy"]) <= 0.002, "float16 costs accuracy"
    info, stored = zoo.find("resnet20").info, RESULT["float16"]
    assert info["top1"] == pytest.approx(100 * stored["accuracy"], abs=1e-6)
    assert info["top1_interval"] == pytest.approx([100 * v for v in stored["interval"]], abs=1e-6)
    for name, accuracy in RESULT["by_class"].items():
        assert f"| {name} | {accuracy:.3f} |" in PROVENANCE
    assert tuple(RESULT["by_class"]) == resnet_cifar.CLASSES
    assert f"momentum {script.MOMENTUM}, weight decay {script.DECAY}" in PROVENANCE and f"to {script.RATE} in" in PROVENANCE
    assert "research use" in PROVENANCE and re.search(r"sha256 [0-9a-f]{64}\.", PROVENANCE)
    assert RESULT["trained_on"] == 45_000 and RESULT["kept_aside"] == script.VALIDATION == 5_000
    assert [r["epoch"] for r in EPOCHS] == list(range(1, len(EPOCHS) + 1))
    assert RESULT["steps"] == len(EPOCHS) * (45_000 // script.BATCH)


def test_it_recognises_images_that_were_kept_aside(model, script, shared_data):
    """500 of the 5,000; at the accuracy of all of them, 0.899, its standard error is 0.013: the bound is four below."""
    import io

    from PIL import Image

    with h5py.File(shared_data / "cifar10-train.h5") as file:
        offset, labels = file["offset"][-501:], file["label"][-500:]
        data = file["jpeg"][offset[0] :].tobytes()
        assert tuple(file.attrs["classes"]) == resnet_cifar.CLASSES
    pieces = (data[a:b] for a, b in zip(offset[:-1] - offset[0], offset[1:] - offset[0], strict=True))
    pictures = [Image.open(io.BytesIO(piece)) for piece in pieces]
    found = model.predict(pictures).argmax(axis=1)
    assert (found == labels).mean() >= 0.845


def test_the_schedule_is_the_same_for_longer_runs_until_the_descent(script):
    def rates(total):
        optimizer = nn.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.2)
        schedule = script.Trapezoid(optimizer, total, rise=4, fall=total // 2)
        found = []
        for _ in range(total):
            found.append(optimizer.lr)
            schedule.step()
        return np.array(found)

    short, long = rates(20), rates(40)
    np.testing.assert_allclose(short[:5], [0.05, 0.1, 0.15, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(short[:11], long[:11])
    np.testing.assert_allclose(short[10:], 0.2 * np.arange(10, 0, -1) / 10, rtol=1e-6)


def test_half_of_the_images_lose_a_grey_square(script):
    pixels = np.full((400, 32, 32, 3), 200, np.uint8)
    hidden = (script.erase(np.random.default_rng(0), pixels.copy()) == script.GREY).all(axis=3)
    counts = hidden.sum(axis=(1, 2))
    assert set(counts) == {0, script.ERASED**2} and 0.4 < (counts > 0).mean() < 0.6
    for picture in hidden[counts > 0]:
        rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
        assert len(rows) == len(columns) == script.ERASED and np.ptp(rows) == np.ptp(columns) == script.ERASED - 1


def test_augmentation_shifts_mirrors_and_never_invents(script, monkeypatch):
    monkeypatch.setattr(script, "erase", lambda rng, pixels: pixels)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    found = script.augment(np.random.default_rng(1), pixels)
    assert found.shape == pixels.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, script.augment(np.random.default_rng(1), pixels))
    seen = set()
    for before, after in zip(pixels, found, strict=True):
        padded = np.pad(before, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        windows = {
            (top, left, flip): padded[top : top + 32, left : left + 32][:, :: -1 if flip else 1]
            for top in range(9) for left in range(9) for flip in (False, True)
        }  # fmt: skip
        matching = [key for key, window in windows.items() if np.array_equal(window, after)]
        assert len(matching) == 1, "each image is one window of its own padded image"
        seen.add(matching[0])
    assert {key[2] for key in seen} == {False, True} and len({key[0] for key in seen}) == 9


def test_an_interrupted_run_gives_the_same_weights(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "DESCENT", 0.5)  # so that the first two epochs of both lengths are the same
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (script.BATCH, 32, 32, 3), np.uint8), rng.integers(0, 10, script.BATCH)

    def weights(epochs, checkpoint):
        return script.train(pixels, labels, 3, epochs, tmp_path / checkpoint).model.state_dict()

    whole = weights(4, "whole.h5")
    weights(2, "parts.h5")  # the descent of 2 steps begins at step 1, that of 4 at step 2: both rise over step 0
    parts = weights(4, "parts.h5")
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
