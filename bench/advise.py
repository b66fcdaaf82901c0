"""Does following the advice pay? Each way of learning on small and larger draws of several datasets, beside what is advised.

`python -m bench.advise DATA` with a folder that holds `clothing/`, `cifar10-train.h5` and `weights/`;
handwritten digits and textures need no files. Small networks' inputs and few epochs keep it within minutes; the figures compare
ways of learning with each other, they are not the best that any of them can do. Writes
bench/results/advise.json after every case.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from graftwork import zoo
from graftwork.nn.files import atomic_path
from graftwork.nn.rng import manual_seed
from graftwork.plugins.transfer.advise import Advice, advise, fit
from graftwork.plugins.transfer.augment import Augmentation

RESULT = Path(__file__).parent / "results" / "advise.json"
WEIGHTS = "weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
WAYS = ("features", "few", "all")
TEXTURES = 6


def clothing(data: Path, rng: np.random.Generator):
    paths, labels, _ = zoo.images.list_labelled(data / "clothing" / "train")
    return paths, labels


def cifar10(data: Path, rng: np.random.Generator):
    import io

    import h5py
    from PIL import Image

    with h5py.File(data / "cifar10-train.h5") as file:
        count = 4000
        offset, labels = file["offset"][: count + 1], file["label"][:count].astype(np.int64)
        raw = file["jpeg"][: offset[-1]].tobytes()
    decoded = [np.asarray(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in pairwise(offset)]
    return decoded, labels


def digits(data: Path, rng: np.random.Generator):
    from graftwork.plugins.transfer.demo import load_digits

    pixels, labels = load_digits()
    return list(pixels), labels


def textures(data: Path, rng: np.random.Generator):
    """Colour noise smoothed along a class's direction, in random colours: nothing that a photograph shows."""
    count, side = 1200, 64
    labels = np.arange(count) % TEXTURES
    y, x = np.mgrid[:side, :side] / side
    found = []
    for label in labels:
        angle = np.pi * label / TEXTURES + rng.normal(0, 0.12)
        wave = np.sin(2 * np.pi * (9 * (x * np.cos(angle) + y * np.sin(angle)) + rng.random()))
        noise = rng.normal(0, 1.6, (side, side, 1)) + rng.normal(0, 0.6, (side, side, 3))
        colour = rng.uniform(20, 60, 3) * (wave[..., None] + noise) + rng.uniform(80, 170, 3)
        found.append(np.clip(colour, 0, 255).astype(np.uint8))
    return found, labels


CASES = {
    "clothing": (clothing, "squeezenet1_1"), "cifar10": (cifar10, "squeezenet1_1"), "digits": (digits, "glyphnet"),
    "textures": (textures, "squeezenet1_1"),
}  # fmt: skip


def network(name: str, data: Path, side: int):
    """The trunk, with a small input where it is a large network."""
    manual_seed(0)
    if name == "glyphnet":
        return zoo.create("glyphnet", weights="glyphs", include_top=False, pooling="avg")
    return zoo.create(name, weights=data / WEIGHTS, include_top=False, pooling="avg", input_shape=(side, side, 3))


def draw(labels: np.ndarray, each: int, test: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `each` images a class to learn from, and of at most `test` others a class."""
    train, kept = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        train.append(members[:each])
        kept.append(members[each : each + test])
    return np.concatenate(train), np.concatenate(kept)


def case(name: str, each: int, data: Path, side: int, epochs: int, test: int, seed: int) -> dict:
    """One dataset at one size: the advice, and each way's accuracy and seconds."""
    make, network_name = CASES[name]
    rng = np.random.default_rng(seed)
    pictures, labels = make(data, rng)
    train, kept = draw(labels, each, test, rng)
    learn, checks = [pictures[i] for i in train], [pictures[i] for i in kept]
    classes = [str(c) for c in np.unique(labels)]
    advice: Advice = advise(network(network_name, data, side), learn, labels[train], epochs=epochs)
    row = {
        "data": name,
        "labels_per_class": each,
        "seed": seed,
        "test_images": len(kept),
        "advice": advice.to_dict(),
        "ways": {},
    }
    for way in WAYS:
        model, start = network(network_name, data, side), time.perf_counter()
        augment = None if name == "digits" else Augmentation()
        options = {} if way == "features" else {"epochs": epochs, "seed": seed, "augment": augment}
        found = fit(model, learn, labels[train], classes, network_name, way, **options)
        seconds = time.perf_counter() - start
        row["ways"][way] = {"accuracy": float(found.score(checks, labels[kept])), "seconds": round(seconds, 1)}
    best = max(row["ways"], key=lambda w: row["ways"][w]["accuracy"])
    row["best"], row["regret"] = best, row["ways"][best]["accuracy"] - row["ways"][advice.strategy]["accuracy"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", nargs="+", default=["digits:5", "textures:10", "clothing:8", "cifar10:10", "digits:60",
                                                       "textures:80", "clothing:60", "cifar10:80"])  # fmt: skip
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--test", type=int, default=30, help="test images a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    rows = []
    for text in given.cases:
        name, each = text.split(":")
        row = case(name, int(each), given.data, given.side, given.epochs, given.test, given.seed)
        rows.append(row)
        ways = ", ".join(f"{w} {v['accuracy']:.3f} ({v['seconds']:.0f} s)" for w, v in row["ways"].items())
        print(f"{text}: {row['advice']['quadrant']} -> {row['advice']['strategy']}; {ways}", flush=True)
        settings = {"side": given.side, "epochs": given.epochs, "test_per_class": given.test, "seed": given.seed}
        with atomic_path(given.output) as temporary:
            temporary.write_text(json.dumps({"settings": settings, "cases": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
