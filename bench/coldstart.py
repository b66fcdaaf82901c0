"""Seconds from the start of a process to the first output of a network: `python -m bench.coldstart`.

Once with an empty kernel cache (a fresh NUMBA_CACHE_DIR), then with the warm one, beside PyTorch and ONNX Runtime. The time
ends when the process does, right after its first output. Weights come from files, read once beforehand so that the disk
counts for nobody.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from .common import use_threads, write
from .fresh import files_for, run_once
from .layers import NETWORKS

WARM_RUNS = 3


def seconds(engine: str, network: str, threads: int, file: Path, cache: Path) -> float:
    file.read_bytes()
    start = time.perf_counter()
    run_once(engine, network, 1, threads, file, 1, NUMBA_CACHE_DIR=str(cache))
    return time.perf_counter() - start


def measure(network: str, threads: int) -> dict:
    """Seconds by engine, with an empty cache and (best of three) with a warm one; the peers keep no cache of kernels."""
    result: dict = {"network": network, "empty_cache_s": {}, "warm_cache_s": {}}
    with tempfile.TemporaryDirectory() as folder:
        files, result["skipped"], _ = files_for(network, 1, Path(folder))
        for engine, file in files.items():
            cache = Path(folder) / f"cache-{engine}"
            if engine.startswith("ours"):
                result["empty_cache_s"][engine] = round(seconds(engine, network, threads, file, cache), 2)
            warm = min(seconds(engine, network, threads, file, cache) for _ in range(WARM_RUNS))
            result["warm_cache_s"][engine] = round(warm, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="from the start of a process to the first output")
    parser.add_argument("--only", choices=NETWORKS, help="another network than ResNet-50; prints, and writes nothing")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    use_threads(options.threads)
    found = measure(options.only or "resnet50", options.threads)
    print(json.dumps(found, indent=2))
    if not options.only:
        print("wrote", write("coldstart", found))


if __name__ == "__main__":
    main()
