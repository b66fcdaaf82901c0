"""8-bit inference beside our own float32 and ONNX Runtime's 8 bits, batch 1, 224x224, taking turns in one process.

    python -m bench.quantized                      # four networks, a table
    python -m bench.quantized --only resnet50 --json   # the last line is one JSON object

ONNX Runtime's model is quantised with its own tools: QDQ, int8 weights with a scale a channel, uint8 activations, calibrated
with the same random pictures. `ours_int8_over_float` and `ours_over_ort_int8` are ratios of times: below 1 ours in
8 bits is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
from pathlib import Path

import numpy as np

import graftwork as gw
from graftwork.plugins.quantize import quantize

from .common import compare, use_threads
from .layers import NETWORKS, picture
from .networks import Case, Unavailable, onnx_session, ours_compiled, require

CALIBRATION = 8  # pictures


def ort_int8(case: Case, pictures: np.ndarray):
    """A function that runs the twin in ONNX Runtime with 8 bits."""
    require("torch", "onnx", "onnxruntime")
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))

        def get_next(self):
            image = next(self.rest, None)
            return None if image is None else {"pictures": image[None]}

    logging.getLogger().setLevel(logging.ERROR)
    ready, target = case.folder / "ready.onnx", case.folder / "int8.onnx"
    quant_pre_process(str(case.onnx), str(ready), skip_symbolic_shape=True)
    q.quantize_static(
        str(ready), str(target), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
    )  # fmt: skip
    session = onnx_session(target, case.threads)
    return lambda: session.run(None, {"pictures": case.nchw})[0]


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def measure(network: str, threads: int, seconds: float) -> dict:
    """Milliseconds of each candidate, ratios, and relative errors against our float32."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(network, 1, threads, Path(folder))
        case.model.eval()
        pictures = picture(CALIBRATION, seed=1)
        model = quantize(case.model, [pictures])
        x = gw.tensor(case.x)
        runs = {"ours_float32": ours_compiled(case), "ours_int8": lambda: model(x)}
        try:
            runs["ort_int8"] = ort_int8(case, pictures)
        except Unavailable as error:
            print(f"{network}: no ONNX Runtime: {error}")
        wanted = np.array(runs["ours_float32"]().numpy())
        results = {name: run() for name, run in runs.items()}
        errors = {
            name: relative_error(r.numpy() if isinstance(r, gw.Tensor) else r, wanted)
            for name, r in results.items() if name != "ours_float32"
        }  # fmt: skip
        compared = compare(runs, seconds)
    times = {name: timing.median * 1e3 for name, timing in compared.timings.items()}
    row = {"network": network, "ms": times, "relative_error": errors, "disturbance": compared.disturbance,
           "ours_int8_over_float": times["ours_int8"] / times["ours_float32"], "float_only_nodes": model.in_float}  # fmt: skip
    if "ort_int8" in times:
        row["ours_over_ort_int8"] = times["ours_int8"] / times["ort_int8"]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="only this network (may be repeated)")
    parser.add_argument("--seconds", type=float, default=20, help="for each network (default 20)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    use_threads(options.threads)
    rows = []
    for network in options.only or NETWORKS:
        rows.append(measure(network, options.threads, options.seconds))
        row = rows[-1]
        print(network, *(f"{name} {ms:.2f} ms" for name, ms in row["ms"].items()), sep="  ", flush=True)
        print("   relative errors", {name: round(e, 4) for name, e in row["relative_error"].items()}, flush=True)
    ratios = [row["ours_over_ort_int8"] for row in rows if "ours_over_ort_int8" in row]
    summary = {
        "networks": rows,
        "geomean_int8_over_float": _geomean([row["ours_int8_over_float"] for row in rows]),
        "geomean_vs_ort_int8": _geomean(ratios),
    }
    print(f"geometric means: int8 over float32 {summary['geomean_int8_over_float']:.3f}", end="")
    print(f", over ONNX Runtime int8 {summary['geomean_vs_ort_int8']:.3f}" if ratios else "")
    if options.json:
        print(json.dumps(summary))
    return 0


def _geomean(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


if __name__ == "__main__":
    raise SystemExit(main())
