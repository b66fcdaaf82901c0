"""How far 8 bits move the outputs of a network with random weights, beside ONNX Runtime's 8 bits of the same network.

    python -m bench.quantized_error efficientnet_v2_b0 [--size 128]

Smooth random pictures, eight for calibration and four others. `normalised`: batch norms hold the statistics of the calibration
pictures, as training would leave them; without that, values grow from block to block. `amplified`: by how much the network
itself multiplies a relative disturbance of 0.001 of its input, all in float32: errors that are made early grow like that.
ONNX Runtime's model is our export, quantised with its own tools (QDQ, a scale a channel, minmax). Writes
bench/results/quantized_error.json, a row a network.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.kernels.cpu.runtime import set_num_threads
from graftwork.nn.files import atomic_path
from graftwork.plugins.onnx import export
from graftwork.plugins.quantize import quantize

from .common import RESULTS, machine
from .quantized import relative_error

DISTURBANCE = 1e-3


def pictures(count: int, size: int, seed: int) -> np.ndarray:
    """Blocks of 16x16 pixels of one colour under noise, 0 to 255."""
    rng = np.random.default_rng(seed)
    blocks = rng.uniform(0, 255, (count, size // 16, size // 16, 3)).repeat(16, 1).repeat(16, 2)
    return (0.7 * blocks + 0.3 * rng.uniform(0, 255, (count, size, size, 3))).astype(np.float32)


def normalise(model: nn.Module, x: np.ndarray) -> None:
    """Give every batch norm the statistics of `x`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm):
            module.momentum = 0.0
    with gw.no_grad():
        model.train()(gw.tensor(x))
    model.eval()


def onnx_runtime(model: nn.Module, known: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The outputs of ONNX Runtime's 8 bits."""
    import onnxruntime
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.rest = ({name: image[None]} for image in known)

        def get_next(self):
            return next(self.rest, None)

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        exact, ready, target = (str(Path(folder) / name) for name in ("exact.onnx", "ready.onnx", "int8.onnx"))
        export(model, exact, gw.tensor(known[:1]))
        name = onnxruntime.InferenceSession(exact).get_inputs()[0].name
        quant_pre_process(exact, ready, skip_symbolic_shape=True)
        q.quantize_static(
            ready, target, Reader(name), quant_format=q.QuantFormat.QDQ, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        )  # fmt: skip
        return onnxruntime.InferenceSession(target).run(None, {name: x})[0]


def measure(name: str, size: int, normalised: bool) -> dict[str, float]:
    """Relative errors of the outputs (Frobenius norm)."""
    gw.manual_seed(0)
    model = zoo.create(name, input_shape=(size, size, 3)).eval()
    known, x = pictures(8, size, 1), pictures(4, size, 5)
    if normalised:
        normalise(model, known)
    exact = gw.compile(model)
    noise = np.random.default_rng(3).standard_normal(x.shape).astype(np.float32)
    noise *= DISTURBANCE * np.linalg.norm(x) / np.linalg.norm(noise)
    with gw.no_grad():
        wanted, disturbed = exact(gw.tensor(x)).numpy(), exact(gw.tensor(x + noise)).numpy()
    return {
        "ours": relative_error(quantize(model, [known])(gw.tensor(x)).numpy(), wanted),
        "onnx_runtime": relative_error(onnx_runtime(model, known, x), wanted),
        "amplified": relative_error(disturbed, wanted) / DISTURBANCE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    set_num_threads(1)  # cores may be shared; no times are taken
    path = RESULTS / "quantized_error.json"
    for name in given.networks:
        row = {"size": given.size, "random": measure(name, given.size, False), "normalised": measure(name, given.size, True)}
        print(name, row, flush=True)
        found = json.loads(path.read_text()) if path.exists() else {}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(found | {"machine": machine(), name: row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
