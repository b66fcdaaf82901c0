"""Loading ResNet-50's weights: Graftwork beside h5py reading the same datasets; time in turns, memory in fresh processes.

    python -m bench.loading [--repeat 15] [--json bench/results/loading.json]

The file is written by `zoo.save_weights`, and read from the page cache. h5py opens it and reads `dataset[()]` for every
dataset; ours is `load_weights` into a model that exists (names and shapes compared, values written into its parameters), and
`read_layers` into new arrays. Memory is what a process has at its peak (VmHWM) above what it had before reading.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MODEL = "resnet50"


def with_h5py(path: str) -> dict:
    import h5py

    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def known_to_h5py(path: str) -> list[str]:
    import h5py

    names: list[str] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def h5py_by_name(path: str, names: list[str]) -> list:
    """The datasets alone, their names being known: the least that h5py needs."""
    import h5py

    with h5py.File(path, "r") as file:
        return [file[name][()] for name in names]


def times(jobs: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Milliseconds of each job, taken in turns; the first turn warms up."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            gc.collect()
            start = time.perf_counter()
            result = job()
            elapsed = 1e3 * (time.perf_counter() - start)
            del result
            if turn:
                found[name].append(elapsed)
    return found


def peak(code: str, path: str) -> int:
    """Bytes that a fresh process needs at its peak beyond what it had when `code` reached its line MARK."""
    program = (
        "import sys\n"
        "def memory(key):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ':'))\n"
        f"path = sys.argv[1]\n{code.replace('MARK', 'before = memory(chr(86) + chr(109) + chr(82) + chr(83) + chr(83))')}\n"
        "print(memory('VmHWM') - before)"
    )
    result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    return int(result.stdout)


PROGRAMS = {
    "h5py": "import h5py\nfrom bench.loading import with_h5py\nMARK\nx = with_h5py(path)",
    "graftwork.read_layers": "from graftwork.zoo import hdf5\nMARK\nx = hdf5.read_layers(path)",
    "graftwork.create and load_weights": f"from graftwork import zoo\nMARK\nx = zoo.create('{MODEL}', weights=path)",
}


def measure(repeat: int, folder: Path) -> dict:
    from graftwork import zoo
    from graftwork.zoo import hdf5

    model = zoo.create(MODEL)
    results: dict = {"model": MODEL, "repeat": repeat, "files": {}}
    for name in ("legacy.h5", "new.weights.h5"):
        path = str(folder / name)
        zoo.save_weights(model, path)
        names = known_to_h5py(path)
        jobs: dict[str, Callable[[], object]] = {
            "h5py": lambda path=path: with_h5py(path),
            "h5py, names known": lambda path=path, names=names: h5py_by_name(path, names),
            "graftwork.load_weights": lambda path=path: zoo.load_weights(model, path),
            "graftwork.read_layers": lambda path=path: hdf5.read_layers(path),
        }
        found = times(jobs, repeat)
        medians = {job: round(statistics.median(values), 2) for job, values in found.items()}
        ratios = {
            f"{job} over {peer}": round(statistics.median(a / b for a, b in zip(found[job], found[peer], strict=True)), 3)
            for job in ("graftwork.load_weights", "graftwork.read_layers") for peer in ("h5py", "h5py, names known")
        }  # fmt: skip
        size = Path(path).stat().st_size
        memory = {job: round(peak(code, path) / size, 3) for job, code in PROGRAMS.items()}
        results["files"][name] = {"bytes": size, "ms": medians, "ratios": ratios, "peak_over_file": memory}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "loading.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.repeat, Path(folder))
    text = json.dumps(results, indent=1)
    print(text)
    options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
