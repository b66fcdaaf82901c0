"""Inference of four networks beside every peer that is installed, all with the same weights, in one process.

    python -m bench.networks                                      # all networks, batch 1 and 8; writes bench/results/networks.*
    python -m bench.networks --only squeezenet1_1 --batch 1       # a part; prints, and writes nothing
    python -m bench.networks --only vgg16 --batch 8 --merge       # replaces this part in bench/results/networks.*

224x224 pictures, float32. Before anything is timed, every candidate's output is compared with that of our eager engine.
How the turns are taken is described at `common.compare`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import graftwork as gw

from . import report
from .common import RESULTS, Comparison, compare, machine, use_threads, write, write_text
from .layers import NETWORKS, build, calls_of, picture
from .roofline import Peak, ideal_seconds, measure_peak

BATCHES = (1, 8)
TOLERANCE = 1e-4  # of the largest logit: float32 sums in other orders, Winograd included, stay well below it
Run = Callable[[], object]


class Unavailable(Exception):
    """A candidate that cannot run here, with the reason."""


@dataclass
class Case:
    """One network at one batch size, and what candidates share: the twin in PyTorch and the ONNX file are made once."""

    network: str
    batch: int
    threads: int
    folder: Path
    model: gw.nn.Module = field(init=False)
    x: np.ndarray = field(init=False)  # (batch, height, width, channels)

    def __post_init__(self) -> None:
        self.model, self.x = build(self.network), picture(self.batch)

    @functools.cached_property
    def nchw(self) -> np.ndarray:
        return np.ascontiguousarray(self.x.transpose(0, 3, 1, 2))

    @functools.cached_property
    def twin(self):
        require("torch")
        from . import peers

        return peers.twin(self.network, self.model)

    @functools.cached_property
    def onnx(self) -> Path:
        require("torch", "onnx")
        from . import peers

        path = self.folder / f"{self.network}-{self.batch}.onnx"
        peers.export_onnx(self.twin, self.batch, path)
        return path


def require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")


# -- candidates: each makes a function that computes the logits of its case --------------------------------------------------


def ours_eager(case: Case) -> Run:
    x, model = gw.tensor(case.x), case.model

    def run():
        with gw.no_grad():
            return model(x)

    return run


def ours_compiled(case: Case) -> Run:
    if not hasattr(gw, "compile"):
        raise Unavailable("this version has no gw.compile")
    x, fast = gw.tensor(case.x), gw.compile(case.model)

    def run():
        with gw.no_grad():
            return fast(x)

    return run


def torch_eager(case: Case) -> Run:
    return _torch_run(case, case.twin, case.nchw)


def torch_channels_last(case: Case) -> Run:
    require("torch")
    import torch

    return _torch_run(case, copy.deepcopy(case.twin).to(memory_format=torch.channels_last), case.nchw, channels_last=True)


def torch_compile(case: Case) -> Run:
    require("torch")
    import torch

    return _torch_run(case, torch.compile(case.twin), case.nchw)


def _torch_run(case: Case, model, nchw: np.ndarray, channels_last: bool = False) -> Run:
    import torch

    torch.set_num_threads(case.threads)
    x = torch.from_numpy(nchw)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x

    def run():
        with torch.inference_mode():
            return model(x)

    return run


def onnxruntime(case: Case) -> Run:
    require("onnxruntime")
    session = onnx_session(case.onnx, case.threads)
    x = {session.get_inputs()[0].name: case.nchw}
    return lambda: session.run(None, x)[0]


def onnx_session(path: Path, threads: int):
    """An ONNX Runtime session on the CPU with all optimisations, which are its default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def openvino(case: Case) -> Run:
    require("openvino")
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": case.threads, "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would choose bfloat16 where the processor has it
    }  # fmt: skip
    core = openvino.Core()
    request = core.compile_model(core.read_model(case.onnx), "CPU", options).create_infer_request()
    return lambda: request.infer([case.nchw], share_inputs=True, share_outputs=True)[0]


CANDIDATES = (ours_eager, ours_compiled, torch_eager, torch_channels_last, torch_compile, onnxruntime, openvino)


# -- one case ------------------------------------------------------------------------------------------------------------


def logits(run: Run) -> np.ndarray:
    found = run()
    return np.array(found.numpy() if isinstance(found, gw.Tensor) else found)


def prepare(case: Any, candidates: Sequence[Callable] | None = None, outcome: Callable[[Run], np.ndarray] = logits,
            tolerance: float = TOLERANCE) -> tuple[dict[str, Run], dict[str, str], dict[str, float]]:  # fmt: skip
    """Candidates that run and agree with the first one, reasons for those that do not, and largest relative errors.

    candidates: each makes a function from the case. outcome: what such a function computes, as an array to compare.
    """
    runs, skipped, errors = {}, {}, {}
    candidates = CANDIDATES if candidates is None else candidates
    expected = outcome(candidates[0](case))
    for make in candidates:
        name = make.__name__
        try:
            run = make(case)
            values = outcome(run)
        except Exception as error:  # whatever a peer or a compiler raises is a reason to name and to go on
            skipped[name] = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"[:500]
            continue
        errors[name] = float(np.abs(values - expected).max() / np.abs(expected).max())
        if errors[name] < tolerance:
            runs[name] = run
        else:
            skipped[name] = f"WRONG: its output differs from our eager engine's by {errors[name]:.1e} of the largest value"
    return runs, skipped, errors


def measure_case(network: str, batch: int, threads: int, seconds: float, peak: Peak) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        case = Case(network, batch, threads, Path(folder))
        runs, skipped, errors = prepare(case)
        compared = compare(runs, seconds)
        ideal = ideal_seconds(calls_of(case.model, gw.tensor(case.x)), peak)
    return entry(network, batch, compared, skipped, errors, ideal)


def entry(network: str, batch: int, compared: Comparison, skipped: dict[str, str], errors: dict[str, float],
          ideal: float | None = None) -> dict:  # fmt: skip
    """One case as it is kept: milliseconds, ratios, and what may be said against them. ideal: seconds by the roofline."""
    candidates = {}
    for name, t in compared.timings.items():
        quartiles = {"min_ms": t.minimum, "lower_ms": t.lower, "median_ms": t.median, "upper_ms": t.upper}
        candidates[name] = {
            **{key: round(value * 1e3, 3) for key, value in quartiles.items()},
            "calls": t.calls,
            "forwards_over_backwards": round(compared.order[name], 3),
            **({} if ideal is None else {"roofline_share": round(ideal / t.median, 3)}),
            "relative_error": float(f"{errors[name]:.1e}"),
        }
    return {
        "network": network, "batch": batch, "candidates": candidates, "skipped": skipped,
        **({} if ideal is None else {"ideal_ms": round(ideal * 1e3, 3)}),
        "rounds": compared.rounds, "restless": compared.restless,
        "disturbance": None if compared.disturbance is None else round(compared.disturbance, 3),
        "ratios": report.ratios(candidates),
    }  # fmt: skip


# -- the whole -----------------------------------------------------------------------------------------------------------


def measure(networks: list[str], batches: list[int], threads: int, seconds: float) -> dict:
    peak = measure_peak()
    entries = []
    for network in networks:
        for batch in batches:
            found = measure_case(network, batch, threads, seconds, peak)
            entries.append(found)
            print(report.table([found]), flush=True)
            print(f"  {report.fairness([found])}", flush=True)
            for name, reason in found["skipped"].items():
                print(f"  skipped {name}: {reason}", flush=True)
    result = {"threads": threads, "seconds": seconds, "gflops": round(peak.flops / 1e9, 1),
              "gbytes_per_second": round(peak.bandwidth / 1e9, 1), "networks": entries}  # fmt: skip
    return {**result, "geometric_mean": report.geometric_means(entries)}


def merge(new: dict, path: Path) -> dict:
    """The kept result with the cases of `new` in place of its own. SystemExit if it comes from another set-up."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    if old["machine"] != machine() or old["threads"] != new["threads"]:
        raise SystemExit(f"{path} was measured on another machine, with other versions or threads; run all networks again")
    entries = {(e["network"], e["batch"]): e for e in (*old["networks"], *new["networks"])}
    ordered = sorted(entries.values(), key=lambda e: (NETWORKS.index(e["network"]), e["batch"]))
    return {**new, "networks": ordered, "geometric_mean": report.geometric_means(ordered)}


def keep(result: dict) -> None:
    """networks.json, networks.md and, if matplotlib is there, networks.svg."""
    print("wrote", write("networks", result))
    print("wrote", write_text("networks.md", report.markdown({"machine": machine(), **result})))
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
    else:
        print("wrote", report.plot(result, RESULTS / "networks.svg"))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="networks beside peers")
    parser.add_argument("--only", choices=NETWORKS, action="append", help="only this network (may be repeated)")
    parser.add_argument("--batch", type=int, action="append", help="only this batch size (may be repeated)")
    parser.add_argument("--seconds", type=float, default=20, help="for each network and batch size (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="of every candidate (default 2)")
    parser.add_argument("--merge", action="store_true", help="put a part into the kept results")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    use_threads(options.threads)
    networks, batches = options.only or list(NETWORKS), options.batch or list(BATCHES)
    result = measure(networks, batches, options.threads, options.seconds)
    print(report.table(result["networks"]))
    print("geometric means:", result["geometric_mean"])
    if options.merge:
        keep(merge(result, RESULTS / "networks.json"))
    elif options.only is None and options.batch is None:
        keep(result)
    wrong = [name for e in result["networks"] for name, reason in e["skipped"].items() if reason.startswith("WRONG")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
