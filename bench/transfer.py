"""From JPEGs to a measured classifier, and again from the cache; and the memory of reading a large folder.

    python -m bench.transfer photos --weights squeezenet_weights.h5 [--model squeezenet1_1] [--json result.json]
    python -m bench.transfer --folder-of 20000

The first: `photos` has `train` and `validation` with a sub-folder for each class. A fresh process makes features, learns a
logistic regression (its strength by cross-validation) and measures it; another one does so again with the features cached.
The cache lies in a temporary folder. The second: small JPEGs are generated and streamed through GlyphNet with a cache, a tenth
of them first, in fresh processes; what a process needs at its peak (VmHWM) must not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from graftwork.nn.files import atomic_path

from .common import machine
from .similar import memory


def learn(photos: str, weights: str, model_name: str, cache: str) -> dict[str, Any]:
    """Seconds from the import of the plugin to a measured classifier, and its accuracy."""
    start = time.perf_counter()
    from graftwork import zoo
    from graftwork.plugins.transfer import ImageClassifier
    from graftwork.zoo.images import list_labelled

    model = zoo.create(model_name, weights=weights, include_top=False, pooling="avg")
    classifier = ImageClassifier(model, model_name, cache=cache)
    paths, labels, classes = list_labelled(Path(photos) / "train")
    classifier.fit(paths, labels, classes)
    learned = time.perf_counter() - start
    checks, truth, _ = list_labelled(Path(photos) / "validation")
    accuracy = classifier.score(checks, truth)
    return {"learned_s": learned, "all_s": time.perf_counter() - start, "accuracy": accuracy, "C": classifier.C_}


def stream(folder: str, count: int, cache: str) -> dict[str, Any]:
    """Peak memory of streaming the first `count` pictures of a folder."""
    from graftwork import zoo
    from graftwork.plugins.transfer import FeatureExtractor

    extractor = FeatureExtractor(zoo.create("glyphnet", weights="glyphs", include_top=False), cache=cache)
    pictures = zoo.images.list_images(folder)
    extractor.transform(pictures[:64])  # compiled
    start, rows = time.perf_counter(), 0
    for block in extractor.stream(pictures[:count]):
        rows += len(block)
    return {"pictures": rows, "seconds": time.perf_counter() - start, "peak_mb": memory(peak=True) / 1e6}


def generate(folder: Path, count: int) -> None:
    """Small JPEGs of noise, no two the same."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"{i // 1000:03}"
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(place / f"{i:06}.jpg")


def fresh(*arguments: object) -> dict[str, Any]:
    """What one of the functions here returns in a process of its own."""
    command = [sys.executable, "-m", "bench.transfer", "--one", json.dumps([str(a) for a in arguments])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?")
    parser.add_argument("--weights")
    parser.add_argument("--model", default="squeezenet1_1")
    parser.add_argument("--folder-of", type=int, metavar="COUNT")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, *rest = json.loads(given.one)
        result = learn(*rest) if name == "learn" else stream(rest[0], int(rest[1]), rest[2])
        print(json.dumps(result))
        return
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        if given.photos:
            for run in ("from JPEGs", "from the cache"):
                found[run] = fresh("learn", given.photos, given.weights, given.model, Path(temporary) / "cache")
                print(f"{run}: {found[run]}", flush=True)
        if given.folder_of:
            pictures = Path(temporary) / "pictures"
            pictures.mkdir()
            generate(pictures, given.folder_of)
            for count in (given.folder_of // 10, given.folder_of):
                found[f"stream {count}"] = fresh("stream", pictures, count, Path(temporary) / f"kept{count}")
                print(f"stream {count}: {found[f'stream {count}']}", flush=True)
    if given.json:
        with atomic_path(given.json) as path:
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
