"""All measurements that need no data of their own, one process each: `python -m bench`, or `make bench`."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys

PARTS = ("overhead", "static", "roofline", "coldstart", "memory", "networks", "training")
PEERS = ("torch", "onnx", "onnxruntime", "openvino", "matplotlib")
NEEDS = {"overhead": ("torch",), "static": ("torch",)}  # the other parts skip the peers that are missing


def main() -> int:
    parser = argparse.ArgumentParser(description="run every measurement and keep the results")
    parser.add_argument("--seconds", type=float, default=20, help="for each network and batch size, and training (default 20)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed, so skipped: {', '.join(missing)} (pip install '.[bench]', and a CPU build of torch)")
    failed = []
    for part in PARTS:
        if any(name in missing for name in NEEDS.get(part, ())):
            print(f"== {part}: skipped, needs {', '.join(NEEDS[part])}", flush=True)
            continue
        print(f"== {part}", flush=True)
        arguments = [] if part in ("overhead", "static") else ["--threads", str(options.threads)]
        arguments += ["--seconds", str(options.seconds)] if part in ("networks", "training") else []
        if subprocess.call([sys.executable, "-m", f"bench.{part}", *arguments]):
            failed.append(part)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
