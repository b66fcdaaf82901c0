"""Peak memory of a process that loads a network and runs it: `python -m bench.memory`.

Every engine gets a process of its own, which reads the weights from a file, runs three times and reports its peak resident
set. The peak before the weights are read, libraries loaded, is subtracted in a second figure; the weights' size stands beside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from .common import use_threads, write
from .fresh import files_for, run_once
from .layers import NETWORKS

RUNS = 3


def measure_network(network: str, batch: int, threads: int) -> dict:
    """MB (10^6 bytes) by engine, with reasons for engines that are missing."""
    with tempfile.TemporaryDirectory() as folder:
        files, skipped, weights = files_for(network, batch, Path(folder))
        engines = {}
        for engine, file in files.items():
            run_once(engine, network, batch, threads, file, 1)  # fills the kernel cache: compiling takes memory too
            found = run_once(engine, network, batch, threads, file, RUNS)
            own = found["peak"] - found["loaded"]
            engines[engine] = {"peak_mb": round(found["peak"] / 1e6, 1), "without_libraries_mb": round(own / 1e6, 1)}
    return {"network": network, "batch": batch, "weights_mb": round(weights / 1e6, 1), "engines": engines, "skipped": skipped}


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory of inference")
    parser.add_argument("--only", choices=NETWORKS, action="append", help="only this network; prints, and writes nothing")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    use_threads(options.threads)
    found = {"networks": [measure_network(n, options.batch, options.threads) for n in options.only or NETWORKS]}
    print(json.dumps(found, indent=2))
    if not options.only:
        print("wrote", write("memory", found))


if __name__ == "__main__":
    main()
