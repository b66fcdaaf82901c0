"""A few inferences in a fresh process, and what they took: `python -m bench.once ENGINE NETWORK BATCH THREADS FILE RUNS`.

The child of `bench.memory` and `bench.coldstart`. It imports nothing but what the engine needs, so that a peer is not charged
for our libraries. Prints JSON: bytes of the peak resident set at the end ("peak") and before the weights were read ("loaded").
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def peak_rss() -> int:
    """Bytes of this process's largest resident set so far. (`ru_maxrss` would count the parent before exec as well.)"""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def ours(engine: str, network: str, threads: int, file: str, x: np.ndarray, runs: int) -> int:
    import h5py  # noqa: F401 - libraries are loaded before the first figure is taken
    import numba  # noqa: F401

    import graftwork as gw
    from graftwork import zoo
    from graftwork.kernels.cpu.runtime import set_num_threads

    loaded = peak_rss()
    set_num_threads(threads)
    model = zoo.create(network, weights=file, input_shape=x.shape[1:])
    run = gw.compile(model) if engine == "ours_compiled" else model
    with gw.no_grad():
        for _ in range(runs):
            run(gw.tensor(x))
    return loaded


def torch_eager(network: str, threads: int, file: str, x: np.ndarray, runs: int) -> int:
    import torch

    from . import peers

    loaded = peak_rss()
    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = peers.TWINS[network]()
    model.load_state_dict(torch.load(file), assign=True)
    model.eval()
    with torch.inference_mode():
        for _ in range(runs):
            model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return loaded


def onnxruntime(threads: int, file: str, x: np.ndarray, runs: int) -> int:
    import onnxruntime

    loaded = peak_rss()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: x.transpose(0, 3, 1, 2).copy()})
    return loaded


def main(engine: str, network: str, batch: str, threads: str, file: str, runs: str) -> None:
    x = np.random.default_rng(0).standard_normal((int(batch), 224, 224, 3), np.float32)
    if engine == "onnxruntime":
        loaded = onnxruntime(int(threads), file, x, int(runs))
    elif engine == "torch_eager":
        loaded = torch_eager(network, int(threads), file, x, int(runs))
    else:
        loaded = ours(engine, network, int(threads), file, x, int(runs))
    print(json.dumps({"peak": peak_rss(), "loaded": loaded}))


if __name__ == "__main__":
    main(*sys.argv[1:])
