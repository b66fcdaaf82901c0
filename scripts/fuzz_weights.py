"""Damaged and hostile weights files: whatever is done to a file, reading it is a sound result or a WeightsError.

    python scripts/fuzz_weights.py                        # 10,000 cases; prints counts, exit status 1 if any case went wrong
    python scripts/fuzz_weights.py --cases 300 --seed 7 --json counts.json

Children with little memory (RLIMIT_AS) and processor time (an alarm a case) read many files each; a child that dies or hangs is
replaced and its case reported with the number that makes it again: `--only NUMBER`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parents[1]
OUTCOMES = ("read", "refused", "refused, the library died")
SECONDS = 5.0  # of processor time for one file
MEMORY = 512 << 20  # bytes above what the child has when it begins; files are below 100 kB, so no honest one needs 110 MB


# -- files to begin with -----------------------------------------------------------------------------------------------


def legacy(path: Path, text: bool = False) -> None:
    values = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        names = ["conv1", "bn1", "fire2/squeeze", "dense"]
        f.attrs["layer_names"] = names if text else np.array(names, "S")
        f.attrs["backend"], f.attrs["keras_version"] = b"tensorflow", "2.15.0"
        for name in names:
            tensors = {"kernel:0": (3, 3, 4, 8), "bias:0": (8,)} if "bn" not in name else {"gamma:0": (8,), "beta:0": (8,)}
            group = f.create_group(name)
            full = [f"{name}/{tensor}" for tensor in tensors]
            group.attrs["weight_names"] = full if text else np.array(full, "S")
            for key, shape in zip(full, tensors.values(), strict=True):
                group[key] = values.random(shape, np.float32)


def packed(path: Path) -> None:
    with h5py.File(path, "w") as f:
        f.attrs["layer_names"] = np.array(["a"], "S")
        f.create_group("a").attrs["weight_names"] = np.array([f"w{i}" for i in range(5)], "S")
        a = np.random.default_rng(1).random((40, 30)).astype("f2")
        f["a"].create_dataset("w0", data=a, compression="gzip", shuffle=True)
        f["a"].create_dataset("w1", data=a, chunks=(8, 8), fletcher32=True)
        f["a"].create_dataset("w2", (50, 3), "f8", chunks=(10, 3), fillvalue=2.5)
        f["a"].create_dataset("w3", data=a.astype(">f4"))
        f["a"].create_dataset("w4", data=np.zeros((0, 3), "i4"))


def newer(path: Path) -> None:
    with h5py.File(path, "w") as f:
        for group, shapes in (("conv2d", [(3, 3, 2, 4), (4,)]), ("conv2d_1", [(1, 1, 4, 4), (4,)]), ("dense", [(4, 2), (2,)]),
                              ("bidirectional/forward_layer/cell", [(2, 8), (2, 8), (8,)])):  # fmt: skip
            variables = f.create_group(f"layers/{group}/vars")
            variables.attrs["name"] = f"name of {group}"
            for i, shape in enumerate(shapes):
                variables[str(i)] = np.ones(shape, np.float32)
        half = f["layers/dense/vars"].create_dataset("2", data=np.zeros(3, "V2"))
        half.attrs["dtype"] = "bfloat16"


def whole(path: Path) -> None:
    legacy(path, text=True)
    with h5py.File(path, "r+") as f:
        group = f.create_group("model_weights")
        for key in list(f):
            if key != "model_weights":
                f.move(key, f"model_weights/{key}")
        for name in ("layer_names", "backend", "keras_version"):
            group.attrs[name] = f.attrs[name]
        del f.attrs["layer_names"]
        f.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "x" * 3000, "layers": []}})
        f.create_group("optimizer_weights")["m"] = np.zeros(4)


def latest(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as f:
        f.attrs["layer_names"] = ["a"]
        f.create_group("a").attrs["weight_names"] = ["k", "b"]
        f["a/k"] = np.ones((3, 4), np.float32)
        f["a"].create_dataset("b", data=np.ones(40, np.float32), chunks=(7,), compression="gzip")


SEEDS = {
    "legacy": legacy, "legacy, strings of variable length": lambda p: legacy(p, True), "packed": packed, "weights.h5": newer,
    "whole model": whole, "libver latest": latest,
}  # fmt: skip


# -- what is done to them ----------------------------------------------------------------------------------------------


def flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        data[_anywhere(data, dice)] ^= 1 << dice.randrange(8)


def overwrite(data: bytearray, dice: random.Random) -> None:
    at = _anywhere(data, dice)
    size = min(dice.choice((1, 2, 4, 8, 64)), len(data) - at)
    data[at : at + size] = dice.choice((bytes(size), b"\xff" * size, dice.randbytes(size)))


def number(data: bytearray, dice: random.Random) -> None:
    """An aligned number becomes an address or a size of another kind: sizes blow up, addresses form circles."""
    at = _anywhere(data, dice) // 8 * 8
    size = len(data)
    value = dice.choice((0, 1, at, size, size - 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, dice.randrange(size)))
    data[at : at + 8] = struct.pack("<Q", value)[: len(data) - at]


def swap(data: bytearray, dice: random.Random) -> None:
    size = dice.choice((8, 24, 40, 96))
    a, b = (_anywhere(data, dice) // 8 * 8 for _ in range(2))
    if max(a, b) + size <= len(data):
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def truncate(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def _anywhere(data: bytearray, dice: random.Random) -> int:
    """Half of all places are near a structure's signature, where numbers decide more than among values."""
    if dice.random() < 0.5:
        signature = dice.choice((b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"\x89HDF", b"kernel", b"vars", b"\x01\x00"))
        places = [i for i in range(0, len(data), 8) if data.startswith(signature, i)]
        if places:
            return min(dice.choice(places) + dice.randrange(96), len(data) - 1)
    return dice.randrange(len(data))


BYTES = (flip, flip, overwrite, overwrite, number, number, number, swap, truncate)


def _datasets(f: h5py.File) -> list[str]:
    found: list[str] = []
    f.visititems(lambda name, o: found.append(name) if isinstance(o, h5py.Dataset) else None)
    return found


def attribute(f: h5py.File, dice: random.Random) -> None:
    objects = [f, *[f[name] for name in _groups(f)]]
    owner = dice.choice([o for o in objects if len(o.attrs)] or objects)
    name = dice.choice([*owner.attrs, "layer_names"])
    value = dice.choice((1.5, np.array([b"\xff\xfe"]), np.zeros(0), ["nowhere"], ["..", "/"], ["a"] * 500, "x" * 3000, f.ref,
                         h5py.Empty("f"), np.array([b"conv1", b"conv1"]), np.void(b"abc")))  # fmt: skip
    if dice.random() < 0.2:
        owner.attrs.pop(name, None)
    else:
        owner.attrs[name] = value


def _groups(f: h5py.File) -> list[str]:
    found: list[str] = []
    f.visititems(lambda name, o: found.append(name) if isinstance(o, h5py.Group) else None)
    return found


def link(f: h5py.File, dice: random.Random) -> None:
    name = dice.choice(_datasets(f) + _groups(f))
    targets = (h5py.SoftLink("/" + dice.choice(_datasets(f))), h5py.SoftLink("/" + name), h5py.ExternalLink("/etc/passwd", "/"),
               h5py.ExternalLink("other.h5", "/x"), f["/"], f[dice.choice(_groups(f))])  # fmt: skip
    del f[name]
    f[name] = dice.choice(targets)


def blow_up(f: h5py.File, dice: random.Random) -> None:
    name = dice.choice(_datasets(f))
    del f[name]
    shape = dice.choice(((1 << 40,), (1 << 20, 1 << 20), (1 << 31, 0), (1,) * 32, (1 << 26,), (1 << 14, 1 << 12)))
    chunks = tuple(min(n, 1 << 20) or 1 for n in shape)
    options = dice.choice(({}, {"compression": "gzip"}, {"fillvalue": 1}, {"chunks": chunks}))
    if any(n == 0 for n in shape) or len(shape) > 3:
        options = {}
    f.create_dataset(name, shape, dice.choice(("f4", "f8", "u1")), **options)


def elsewhere(f: h5py.File, dice: random.Random) -> None:
    name = dice.choice(_datasets(f))
    del f[name]
    if dice.random() < 0.5:
        f.create_dataset(name, (4,), "f4", external=[("/etc/hostname", 0, 16)])
    else:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        f.create_virtual_dataset(name, layout)


def strange(f: h5py.File, dice: random.Random) -> None:
    """Filters, types and fill values that weights do not have."""
    name = dice.choice(_datasets(f))
    del f[name]
    kind = dice.randrange(6)
    if kind == 0:
        f.create_dataset(name, data=np.ones((20, 20), "f4"), compression="lzf")
    elif kind == 1:
        f.create_dataset(name, data=np.ones((20, 20), "i4"), scaleoffset=4)
    elif kind == 2:
        f.create_dataset(name, (30, 4), "f4", chunks=(7, 3), fillvalue=float("nan"))
    elif kind == 3:
        f[name] = dice.choice(("text", np.array([b"ab"]), np.ones(3, "c8"), np.zeros(2, [("a", "f4"), ("b", "i2")])))
    elif kind == 4:
        f.create_dataset(name, (3,), h5py.vlen_dtype(np.float32))
    else:
        options = {"compression": "gzip", "compression_opts": 9, "fletcher32": True, "maxshape": (None, 64)}
        f.create_dataset(name, data=np.ones((64, 64), "f4"), **options)


STRUCTURE = (attribute, attribute, link, blow_up, elsewhere, strange)


def make(case: int, seed: int, seeds: dict[str, bytes], folder: Path, structure: float) -> tuple[Path, str]:
    """The file of a case, and what was done to which seed."""
    dice = random.Random(f"{seed}/{case}")
    name = dice.choice(list(seeds))
    if name == "libver latest" and dice.random() < 0.8:  # these are read in a child process each, so they are few
        name = dice.choice([n for n in seeds if n != name])
    path, done = folder / "case.h5", []
    data = bytearray(seeds[name])
    if dice.random() < structure:
        path.write_bytes(data)
        change = dice.choice(STRUCTURE)
        done.append(change.__name__)
        with h5py.File(path, "r+") as f:
            change(f, dice)
        data = bytearray(path.read_bytes())
    if not done or dice.random() < 0.3:
        change = dice.choice(BYTES)
        done.append(change.__name__)
        change(data, dice)
    path.write_bytes(data)
    return path, f"{name}: {', '.join(done)}"


# -- reading them --------------------------------------------------------------------------------------------------------


def child(folder: str) -> None:
    """Read the files named on standard input, one a line; answer each with a line."""
    sys.path.insert(0, str(ROOT))
    from graftwork.errors import ModelError, WeightsError
    from graftwork.zoo import hdf5
    from graftwork.zoo.weights_h5 import LayerSpec

    order = [LayerSpec("c", "Conv2D"), LayerSpec("d", "Conv2D"), LayerSpec("e", "Dense"), LayerSpec("b", "Bidirectional")]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        path = line.rstrip("\n")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # no handler: the process ends
        try:
            layers = hdf5.read_layers(path, order)
            hdf5.read_model_config(path)
            hdf5.read_origin(path)
            tensors = [a for entries in layers.values() for _, a in entries]
            assert all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in tensors)
            answer = "read"
        except (WeightsError, ModelError) as error:
            known = "refused, the library died" if "the HDF5 library" in str(error) else "refused"
            answer = known if path in str(error) else f"nameless: {error}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error!s:.200}".replace("\n", " ")
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


class Child:
    def __init__(self, folder: Path):
        command = [sys.executable, __file__, "--child", str(folder)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.process.stdout.readline()

    def read(self, path: Path) -> str:
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().rstrip("\n")
        if answer:
            return answer
        status = self.process.wait()
        return f"hang (over {SECONDS} s)" if status == -signal.SIGPROF else f"crash with status {status}"

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def run(cases: range, seed: int, folder: Path, keep: Path | None = None,
        structure: float = 0.3) -> tuple[collections.Counter, list[str], float]:  # fmt: skip
    """Counts of outcomes, a line for each case that went wrong, and the longest time of one case in seconds.

    structure: the share of cases whose links, attributes or datasets are altered; many of those need a child process each.
    """
    seeds = {}
    for name, write in SEEDS.items():
        write(folder / "seed.h5")
        seeds[name] = (folder / "seed.h5").read_bytes()
    counts: collections.Counter = collections.Counter()
    wrong: list[str] = []
    longest, reader = 0.0, Child(folder)
    for case in cases:
        path, what = make(case, seed, seeds, folder, structure)
        start = time.perf_counter()
        answer = reader.read(path)
        longest = max(longest, time.perf_counter() - start)
        kind = answer if answer in OUTCOMES else "wrong"
        counts[kind] += 1
        if kind == "wrong":
            wrong.append(f"case {case} ({what}): {answer}")
            print(wrong[-1], flush=True)
        if keep:
            (keep / f"{case}.h5").write_bytes(path.read_bytes())
            print(f"{keep / f'{case}.h5'}: {what}")
        if reader.process.poll() is not None:
            reader = Child(folder)
    reader.close()
    return counts, wrong, longest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case and keep its file as NUMBER.h5 here")
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return 0
    first, count = (options.first, options.cases) if options.only is None else (options.only, 1)
    cases = range(first, first + count)
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong, longest = run(cases, options.seed, Path(folder), Path() if options.only is not None else None)
    found = {"cases": len(cases), "seed": options.seed, **counts, "longest_seconds": round(longest, 3), "wrong_cases": wrong}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
