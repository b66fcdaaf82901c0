"""What can be checked and measured on a machine with a GPU, from a plain checkout: `make gpu-check`, or
`python -m bench.gpu_check --only gemm --only conv`.

Parts: tests (marked gpu: every op's samples on hardware against the reference, the emulator against hardware), sanitizer
(compute-sanitizer on a subset, where it is installed), gemm, conv, memory, launch, networks (eager and compiled), compiled
(beside torch.compile), training (steps of ResNet-20 and ResNet-50), all beside PyTorch where it is installed. Each part has a
share of ten minutes and says what it left out; a part that fails does not stop the others. Results go to results/<chip>.json
and .md, after every part.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import graftwork as gw

from .common import RESULTS, machine, write, write_text

ROOT = Path(__file__).parents[1]
SECONDS = {"tests": 110, "sanitizer": 40, "gemm": 50, "int8": 15, "conv": 90, "memory": 25, "launch": 10, "networks": 85,
           "compiled": 90, "training": 65}  # fmt: skip
MEASURED = ("gemm", "int8", "conv", "memory", "launch", "networks", "compiled", "training")


# -- parts in processes of their own -----------------------------------------------------------------------------------


def run_tests(seconds: float) -> dict:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-x", "-p", "no:cacheprovider", "tests"]
    return _subprocess(command, seconds)


def run_sanitizer(seconds: float) -> dict:
    """A few kernels with shared memory and barriers under compute-sanitizer: accesses out of bounds, and races."""
    if shutil.which("compute-sanitizer") is None:
        return {"skipped": "compute-sanitizer is not installed (it comes with the CUDA toolkit)"}
    found = {}
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-m", "gpu",
            "-q", "-x",
                   "-p", "no:cacheprovider", "tests/cuda/test_gpu.py", "-k", "sanitized"]  # fmt: skip
        found[tool] = _subprocess(command, seconds / 2)
    return {"ok": all(f["ok"] for f in found.values()), **found}


def _subprocess(command: list[str], seconds: float) -> dict:
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return {"ok": False, "seconds": seconds, "output": f"{text[-2000:]}\nstopped after {seconds:.0f} s"}
    return {
        "ok": done.returncode == 0,
        "seconds": round(time.perf_counter() - start, 1),
        "output": (done.stdout + done.stderr)[-4000:],
    }


def _measured(name: str) -> Callable[[float], dict]:
    def part(seconds: float) -> dict:
        from . import gpu_measure, gpu_networks

        budget = gpu_measure.Budget(seconds)  # what the bench itself takes is in it
        return (gpu_measure.PARTS | gpu_networks.PARTS)[name](gpu_measure.Bench(), budget)

    return part


PARTS: dict[str, Callable[[float], dict]] = {
    "tests": run_tests, "sanitizer": run_sanitizer, **{name: _measured(name) for name in MEASURED},
}  # fmt: skip


def run_parts(names: list[str], parts: dict[str, Callable[[float], dict]], scale: float, keep: Callable[[dict], None]) -> dict:
    """Run parts one after another; `keep` gets what there is after each. A part that raises is recorded with its traceback."""
    result: dict = {}
    for name in names:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            result[name] = parts[name](SECONDS[name] * scale)
        except Exception:  # whatever it is, the other parts still have their say; the traceback is in the result
            result[name] = {"ok": False, "output": traceback.format_exc()[-4000:]}
        result[name].setdefault("ok", "skipped" not in result[name] or None)
        result[name]["part_seconds"] = round(time.perf_counter() - start, 1)
        print(part_text(name, result[name]), flush=True)
        keep(result)
    return result


# -- the report --------------------------------------------------------------------------------------------------------


def part_text(name: str, part: dict) -> str:
    """One part in Markdown."""
    if part.get("skipped"):
        return f"Skipped: {part['skipped']}."
    lines = [] if part.get("ok") else ["**Failed.**", ""]
    if "rows" in part:
        lines += [rows_table(part["rows"]), ""]
    for key, value in part.get("summary", {}).items():
        lines.append(f"- {key}: {value}")
    if part.get("left_out"):
        lines.append(f"- left out for lack of time: {part['left_out']}")
    if "output" in part and not part.get("ok"):
        lines += ["", "```", part["output"].strip(), "```"]
    elif "output" in part:
        lines.append(f"- {part['output'].strip().splitlines()[-1] if part['output'].strip() else 'no output'}")
    return "\n".join(lines)


def rows_table(rows: list[dict]) -> str:
    """Rows as a Markdown table; columns in the order they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(c.replace('_', ' ') for c in columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(c)) for c in columns)} |" for row in rows]
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def geometric_mean(values: list[float]) -> float | None:
    """None of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def markdown(result: dict) -> str:
    """The whole result for readers."""
    about = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about.items() if k not in ("cpu", "cores") and v)
    lines = [
        f"# {result['chip']['name']}",
        "",
        f"Written by `make gpu-check`. {chip_text(result['chip'])}",
        "",
        f"Versions: {versions}.",
        "",
    ]
    for name, part in result["parts"].items():
        lines += [f"## {name}", "", part_text(name, part), ""]
    return "\n".join(lines)


def chip_text(chip: dict) -> str:
    return (
        f"Compute capability {chip['capability'] / 10:.1f}, {chip['processors']} multiprocessors, "
        f"{chip['memory_gib']:.0f} GiB, "
        f"driver CUDA {chip['driver']}, NVRTC {chip['nvrtc']}."
    )


def slug(name: str) -> str:
    """A chip's name as a file name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def chip() -> dict:
    """What the GPU is."""
    import cupy

    from graftwork.kernels.cuda import nvrtc

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    driver = cupy.cuda.runtime.driverGetVersion()
    return {
        "name": properties["name"].decode(), "capability": properties["major"] * 10 + properties["minor"],
        "processors": properties["multiProcessorCount"], "memory_gib": properties["totalGlobalMem"] / 2**30,
        "driver": f"{driver // 1000}.{driver % 1000 // 10}", "nvrtc": ".".join(map(str, nvrtc.version())),
    }  # fmt: skip


# -- the command -------------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="check and measure the CUDA kernels on this machine's GPU")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="only this part (may be repeated)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="time of every part, in shares of its own (default 1: ten minutes in all)"
    )
    options = parser.parse_args(arguments)
    if options.scale <= 0:
        parser.error(f"--scale {options.scale}: expected a positive number")
    return options


def merged(new: dict, path: Path) -> dict:
    """Parts measured now over those kept from before, if they come from the same chip."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    kept = old.get("parts", {}) if old.get("chip") == new["chip"] else {}
    everything = {**kept, **new["parts"]}
    return {**new, "parts": {name: everything[name] for name in SECONDS if name in everything}}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not gw.cuda.is_available():
        print(f"no GPU to check: {gw.cuda.why_not()}")
        return 1
    about = chip()
    print(about["name"], chip_text(about))
    name = slug(about["name"])

    def keep(parts: dict) -> None:
        result = merged({"machine": machine(), "chip": about, "parts": parts}, RESULTS / f"{name}.json")
        write(name, {"chip": result["chip"], "parts": result["parts"]})
        write_text(f"{name}.md", markdown(result))

    names = options.only or list(PARTS)
    result = run_parts(names, PARTS, options.scale, keep)
    failed = [part for part, found in result.items() if found["ok"] is False]
    print(f"wrote {RESULTS / name}.json and .md" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
