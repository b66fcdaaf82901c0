"""Similar images at size: exact neighbours among 100,000 features, beside scikit-learn's search; time and memory.

    python -m bench.similar [--rows 100000] [--values 512] [--queries 1000] [--metric cosine] [--json result.json]

Features are random, rectified and float32, as a network's are. Memory is the peak of a fresh process (VmHWM) while the index
is made and asked, above what it was when the features stood in memory, plus the features themselves; `of_features` is its
ratio to the features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from graftwork.nn.files import atomic_path

from .common import machine


def memory(peak: bool) -> int:
    """Bytes resident in this process, now or at most."""
    word = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(word))
    return 1024 * int(line.split()[1])


def features(rows: int, values: int, seed: int) -> np.ndarray:
    out = np.random.default_rng(seed).standard_normal((rows, values), np.float32)
    return np.maximum(out, 0, out=out)


def measure(which: str, rows: int, values: int, queries: int, metric: str) -> dict:
    """Seconds of making the index and of one search, memory, and a sum that tells whether both found the same."""
    from sklearn.neighbors import NearestNeighbors

    from graftwork.plugins.transfer import SimilarityIndex

    x, q = features(rows, values, 0), features(queries, values, 1)
    before = memory(peak=False)
    start = time.perf_counter()
    index = SimilarityIndex(10, metric) if which == "graftwork" else NearestNeighbors(n_neighbors=10, metric=metric)
    index.fit(x)
    made = time.perf_counter() - start
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        distances, indices = index.kneighbors(q)
        seconds.append(time.perf_counter() - start)
    return {
        "fit_s": made, "search_s": min(seconds), "of_features": (memory(peak=True) - before + x.nbytes) / x.nbytes,
        "nearest": int(np.sort(indices, axis=1).sum()), "distances": float(distances.sum()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--values", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--metric", choices=("cosine", "euclidean"), default="cosine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = (given.rows, given.values, given.queries, given.metric)
    if given.one:
        print(json.dumps(measure(given.one, *sizes)))
        return
    found = {}
    for which in ("graftwork", "scikit-learn"):
        command = [sys.executable, "-m", "bench.similar", "--one", which, "--rows", str(given.rows)]
        command += ["--values", str(given.values), "--queries", str(given.queries), "--metric", given.metric]
        found[which] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{which}: made in {found[which]['fit_s']:.2f} s, 10 neighbours of {given.queries} queries in "
              f"{found[which]['search_s']:.2f} s, memory {found[which]['of_features']:.2f} of the features")  # fmt: skip
    if given.json:
        with atomic_path(given.json) as temporary:
            temporary.write_text(json.dumps({"machine": machine(), "sizes": sizes, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
