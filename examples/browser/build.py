"""A static page that classifies pictures in the browser, with a network exported in 8 bits.

    python examples/browser/build.py site
    python -m http.server --bind 127.0.0.1 --directory site        # then open http://127.0.0.1:8000

    python examples/browser/build.py site --model squeezenet1_1 --weights w.h5 --classes names.txt --calibrate photos

By default it is ResNet-20 with the weights in the package, for the ten classes of CIFAR-10. The page computes with
onnxruntime-web, which npm fetches once (33 MB; three files of it, 14 MB, go into the site) and which is checked against the
digest below. The site needs no network: any static server will do.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from graftwork import zoo  # noqa: E402 - the path above leads to it
from graftwork.errors import ConfigError, GraftworkError, MissingDependency  # noqa: E402
from graftwork.plugins.onnx import export  # noqa: E402
from graftwork.plugins.quantize import quantize  # noqa: E402
from graftwork.zoo.images import list_images  # noqa: E402
from graftwork.zoo.resnet_cifar import CLASSES  # noqa: E402

RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
DIGEST = (  # sha512 of the package, in base64
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ"
    "ClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "page.css", "page.js", "resize.js")
PICTURES = 200  # that show the quantisation its ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the site; it is made if need be, and files in it are replaced")
    parser.add_argument("--model", default="resnet20", help="a network of the zoo (default: %(default)s)")
    parser.add_argument("--weights", help="a published name or an HDF5 file; for resnet20 those in the package")
    parser.add_argument("--classes", type=Path, help="a text file with the classes, one a line, in the order of the outputs")
    parser.add_argument("--calibrate", type=Path, help="a folder of typical pictures; by default made-up ones stand in")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.model, arguments.weights, arguments.classes, arguments.calibrate)
    except GraftworkError as error:
        sys.exit(f"build.py: {error}")
    print(f"wrote {arguments.out}; look at it with: python -m http.server --bind 127.0.0.1 --directory {arguments.out}")


def build(out: Path, model: str = "resnet20", weights: str | None = None, classes: Path | None = None,
          pictures: Path | None = None) -> Any:  # fmt: skip
    """Write the site; returns the quantised network."""
    cifar = model == "resnet20" and weights is None
    if not cifar and (weights is None or classes is None):
        raise ConfigError(f"{model}: give --weights and --classes (only resnet20 has both in the package)")
    names = list(CLASSES) if classes is None else classes.read_text().split("\n")
    names = [name.strip() for name in names if name.strip()]
    network = zoo.create(model, weights=weights or "cifar10", classes=len(names))
    network.eval()
    runtime = fetch_runtime()
    small = quantize(network, calibration(network, pictures))
    out.mkdir(parents=True, exist_ok=True)
    (out / "runtime").mkdir(exist_ok=True)
    export(small, out / "model.onnx", preprocessing=True)
    for name in PAGE:
        shutil.copyfile(HERE / name, out / name)
    for name in (*FILES, "LICENSE"):
        shutil.copyfile(runtime / name, out / "runtime" / name)
    note = "Its weights are for research use, as CIFAR-10's pictures are." if cifar else ""
    about = {"file": "model.onnx", "title": "ResNet-20" if cifar else model, "size": network.input_shape[:2], "classes": names,
             "note": note}  # fmt: skip
    (out / "model.json").write_text(json.dumps(about, indent=1) + "\n")
    return small


def calibration(network: Any, folder: Path | None) -> list[Any]:
    """Inputs that show the network's layers their ranges."""
    if folder is None:
        return [network.normalise(clouds(PICTURES, network.input_shape[:2]))]
    found = list_images(folder)
    count = min(len(found), PICTURES)
    chosen = [found[i * len(found) // count] for i in range(count)]
    return [network.preprocess(chosen[i : i + 32]) for i in range(0, count, 32)]


def clouds(count: int, size: tuple[int, int]) -> np.ndarray:
    """Made-up pictures, uint8 (count, height, width, 3), with the spectrum of photographs: strength falls as frequency grows
    (Field 1987). They have brightness, contrast and colour of all kinds, and nothing in them."""
    rng = np.random.default_rng(0)
    vertical, horizontal = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])
    strength = 1 / np.maximum(np.hypot(vertical, horizontal), 1 / max(size))
    noise = rng.standard_normal((2, count, 3, *size))
    fields = np.fft.ifft2((noise[0] + 1j * noise[1]) * strength).real
    fields /= fields.std((2, 3), keepdims=True)
    fields = 0.8 * fields[:, :1] + 0.3 * fields  # mostly grey
    middle, contrast = rng.uniform(60, 200, (count, 1, 1, 1)), rng.uniform(30, 80, (count, 1, 1, 1))
    tint = rng.uniform(-40, 40, (count, 3, 1, 1))
    return np.clip(fields * contrast + middle + tint, 0, 255).transpose(0, 2, 3, 1).astype(np.uint8)


def cached_runtime() -> Path:
    """Where the files of onnxruntime-web are kept between builds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "graftwork" / f"{RUNTIME}-{VERSION}"


def fetch_runtime() -> Path:
    """The folder with onnxruntime-web's files, fetched by npm if they are not there yet."""
    folder = cached_runtime()
    if all((folder / name).is_file() for name in (*FILES, "LICENSE")):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependency(f"npm is not installed, which fetches {RUNTIME}; install Node.js")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary)
        done = subprocess.run([npm, "pack", f"{RUNTIME}@{VERSION}", "--silent"], cwd=work, capture_output=True, text=True)
        package = work / f"{RUNTIME}-{VERSION}.tgz"
        if done.returncode or not package.is_file():
            raise MissingDependency(f"npm could not fetch {RUNTIME} {VERSION}: {done.stderr.strip() or 'no file came'}")
        digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if digest != DIGEST:
            raise MissingDependency(f"{RUNTIME} {VERSION} has sha512 {digest}, expected {DIGEST}; it is not what was tested")
        ready = work / "ready"
        ready.mkdir()
        with tarfile.open(package) as archive:
            _extract(archive, ready)
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)
    return folder


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """The files that the page needs, and the licence if the package has it as a file."""
    for name in FILES:
        content = archive.extractfile(f"package/dist/{name}")
        assert content is not None  # the digest says so
        (folder / name).write_bytes(content.read())
    described = archive.extractfile("package/package.json")
    assert described is not None
    licence = json.loads(described.read())["license"]
    (folder / "LICENSE").write_text(f"{RUNTIME} {VERSION}, by Microsoft and contributors. Licence: {licence}\n")


if __name__ == "__main__":
    main()
