"""Timing and writing down: medians of alternating runs, machine and versions beside every figure."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

from graftwork.nn.files import atomic_path

RESULTS = Path(__file__).parent / "results"


def alternate(runs: dict[str, Callable[[], object]], rounds: int = 11, repeat: int = 1) -> dict[str, float]:
    """Median seconds a call by name. The runs take turns, so that a slow moment of the machine hits them all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            times[name].append((time.perf_counter() - start) / repeat)
    return {name: float(np.median(values)) for name, values in times.items()}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    versions = {}
    for name in ("graftwork", "numpy", "numba", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    info = Path("/proc/cpuinfo")
    model = (
        next((line.split(":")[1].strip() for line in info.read_text().split("\n") if "model name" in line), "")
        if info.exists()
        else ""
    )
    return {"cpu": model or platform.processor(), "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def write(name: str, result: dict) -> Path:
    """Keep a result as bench/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
