"""Timing and writing down: medians of alternating runs, machine and versions beside every figure."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from graftwork.nn.files import atomic_path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "torch", "onnxruntime", "openvino", "onnx")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

BLOCKS = 8  # a candidate's share of the time budget is spent in about this many blocks
LONG = 0.2  # seconds; calls that take longer need no untimed one before them
SLICE, IDLE, PATIENCE = 0.005, 0.1, 0.5  # seconds slept, share of them that may be busy, seconds until giving up


class Timing(NamedTuple):
    """Seconds a call: least, quartiles, and how many calls were timed."""

    minimum: float
    lower: float
    median: float
    upper: float
    calls: int


class Comparison(NamedTuple):
    """timings: by name. order: median in rounds that ran forwards over median in rounds that ran backwards, by name.

    restless: how often the pools of a candidate were still busy when the next one's turn came. disturbance: cores that other
    processes kept busy meanwhile, on average; None where the system does not say.
    """

    timings: dict[str, Timing]
    order: dict[str, float]
    restless: int
    rounds: int
    disturbance: float | None


def summary(seconds: list[float]) -> Timing:
    low, lower, median, upper = np.percentile(seconds, (0, 25, 50, 75))
    return Timing(float(low), float(lower), float(median), float(upper), len(seconds))


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


def compare(runs: dict[str, Callable[[], object]], seconds: float, least: int = 4) -> Comparison:
    """Time candidates with thread pools of their own against each other, for about `seconds` and at least `least` rounds.

    OpenMP's and ONNX Runtime's threads go on spinning for a while after a call and would slow the next candidate down;
    switching the spinning off would slow its owner down. So candidates take turns in short blocks of calls; before each block
    the harness sleeps until the process uses no CPU time, and the block's first call, which wakes the threads and warms the
    caches, is not counted. Every second round runs in reverse order: `order` shows whether the order matters.
    """
    costs = {name: _second_call(run) for name, run in runs.items()}
    repeat = {name: max(1, min(100, int(seconds / len(runs) / BLOCKS / cost))) for name, cost in costs.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    start, foreign, rounds, restless = time.perf_counter(), foreign_seconds(), 0, 0
    while rounds < least or time.perf_counter() < start + seconds:
        backwards = rounds % 2
        for name in sorted(runs, key=list(runs).index, reverse=bool(backwards)):
            restless += not wait_until_quiet()
            if costs[name] < LONG:
                runs[name]()
            times[name][backwards].extend(_timed(runs[name]) for _ in range(repeat[name]))
        rounds += 1
    disturbance = None
    if foreign is not None and (after := foreign_seconds()) is not None:
        disturbance = max(0.0, after - foreign) / (time.perf_counter() - start)
    order = {name: float(np.median(a) / np.median(b)) for name, (a, b) in times.items()}
    return Comparison({name: summary(a + b) for name, (a, b) in times.items()}, order, restless, rounds, disturbance)


def foreign_seconds() -> float | None:
    """Seconds of CPU time that all processes but this one have used since the machine started; None if unknown."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, path.read_text().split("\n")[0].split()[1:9])
    ticks = user + nice + system + sum(interrupts)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _second_call(run: Callable[[], object]) -> float:
    """Seconds of a call that need not compile or allocate any more."""
    run()
    return _timed(run)


def wait_until_quiet() -> bool:
    """Sleep until no thread of this process is busy; False if they still are after half a second."""
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline:
        busy = time.process_time()
        time.sleep(SLICE)
        if time.process_time() - busy < IDLE * SLICE:
            return True
    return False


def use_threads(count: int) -> None:
    """Have every library compute with `count` threads. Pools read their number once, so the process may start again."""
    wanted = dict.fromkeys(THREAD_VARIABLES, str(count))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})
    from graftwork.kernels.cpu.runtime import set_num_threads

    set_num_threads(count)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    import graftwork

    versions: dict[str, str | None] = {"graftwork": graftwork.__version__}
    for name in PACKAGES:
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
    return write_text(f"{name}.json", json.dumps({"machine": machine(), **result}, indent=2) + "\n")


def write_text(file: str, text: str) -> Path:
    path = RESULTS / file
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text)
    return path
