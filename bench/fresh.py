"""Networks in fresh processes: the files that each engine reads its weights from, and starting the process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import graftwork as gw
from graftwork import zoo

from .layers import build

ENGINES = ("ours_eager", "ours_compiled", "torch_eager", "onnxruntime")
NEEDS = {"torch_eager": ("torch",), "onnxruntime": ("torch", "onnx", "onnxruntime")}


def files_for(network: str, batch: int, folder: Path) -> tuple[dict[str, Path], dict[str, str], int]:
    """The weights' file of each engine that is there, reasons for those that are not, and the weights' bytes."""
    files, skipped = {}, {}
    for engine in ENGINES:
        missing = [p for p in NEEDS.get(engine, ()) if importlib.util.find_spec(p) is None]
        if missing:
            skipped[engine] = f"not installed: {', '.join(missing)}"
        elif engine == "ours_compiled" and not hasattr(gw, "compile"):
            skipped[engine] = "this version has no gw.compile"
        else:
            files[engine] = folder / {"torch_eager": "weights.pt", "onnxruntime": "network.onnx"}.get(engine, "weights.h5")
    model = build(network)
    zoo.save_weights(model, folder / "weights.h5")
    if "torch_eager" in files:
        import torch

        from . import peers

        peer = peers.twin(network, model)
        torch.save(peer.state_dict(), files["torch_eager"])
        if "onnxruntime" in files:
            peers.export_onnx(peer, batch, files["onnxruntime"])
    return files, skipped, sum(value.nbytes for value in model.state_dict().values())


def run_once(engine: str, network: str, batch: int, threads: int, file: Path, runs: int, **environment: str) -> dict[str, int]:
    """What `bench.once` prints. RuntimeError with its output if it fails."""
    command = [sys.executable, "-m", "bench.once", engine, network, str(batch), str(threads), str(file), str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
