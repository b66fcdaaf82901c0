"""`make gpu-check` as far as it goes without a GPU: its command line, its report, and every part dry on the emulator."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

import graftwork as gw
from bench import gpu_check, gpu_measure, gpu_networks
from graftwork import nn

CHIP = {"name": "NVIDIA Made-Up 1", "capability": 90, "processors": 132, "memory_gib": 141.0, "driver": "13.0", "nvrtc": "13.0"}


def test_arguments():
    assert gpu_check.parse([]).only is None
    assert gpu_check.parse(["--only", "gemm", "--only", "conv"]).only == ["gemm", "conv"]
    for wrong in (["--only", "everything"], ["--scale", "0"]):
        with pytest.raises(SystemExit):
            gpu_check.parse(wrong)


def test_all_parts_together_stay_under_ten_minutes():
    assert sum(gpu_check.SECONDS.values()) <= 600 and set(gpu_check.SECONDS) == set(gpu_check.PARTS)


def test_without_a_gpu_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr(gw.cuda, "_problem", lambda: "there is no driver")
    assert gpu_check.main([]) == 1
    assert "no GPU to check: there is no driver" in capsys.readouterr().out


def test_a_failing_part_does_not_stop_the_others(capsys):
    def broken(seconds):
        raise RuntimeError("this part is broken")

    kept = []
    parts = {
        "gemm": broken,
        "memory": lambda seconds: {"rows": [{"op": "add", "ratio": 1.25}]},
        "sanitizer": lambda s: {"skipped": "none"},
    }
    result = gpu_check.run_parts(list(parts), parts, 1.0, lambda r: kept.append(json.dumps(r)))
    assert result["gemm"]["ok"] is False and "this part is broken" in result["gemm"]["output"]
    assert result["memory"]["ok"] is True and result["sanitizer"]["ok"] is None and len(kept) == 3
    assert "| add | 1.25 |" in capsys.readouterr().out


def test_the_report():
    parts = {
        "tests": {"ok": True, "seconds": 3.0, "output": "....\n12 passed\n"},
        "gemm": {"ok": True, "rows": [{"dtype": "float32", "shape": "8x8x8 nn", "us": 12345.6, "ratio": 0.5}, {"dtype": "tf32",
            "us": 1.0}],
                 "summary": {"mean": "0.5"}, "left_out": 3},
        "conv": {"ok": False, "output": "Traceback: no"},
    }  # fmt: skip
    text = gpu_check.markdown({"machine": {"cpu": "x", "python": "3.11"}, "chip": CHIP, "parts": parts})
    assert text.startswith("# NVIDIA Made-Up 1") and "Compute capability 9.0, 132 multiprocessors, 141 GiB" in text
    assert (
        "| dtype | shape | us | ratio |" in text
        and "| float32 | 8x8x8 nn | 12346 | 0.5 |" in text
        and "| tf32 |  | 1 |  |" in text
    )
    assert "12 passed" in text and "left out for lack of time: 3" in text and "**Failed.**" in text and "Traceback: no" in text
    assert gpu_check.slug("NVIDIA H200 NVL (141 GB)") == "nvidia-h200-nvl-141-gb"


def test_parts_of_the_same_chip_are_kept(tmp_path):
    path = tmp_path / "chip.json"
    path.write_text(json.dumps({"chip": CHIP, "parts": {"gemm": {"ok": True}, "conv": {"ok": True}}}))
    new = {"chip": CHIP, "parts": {"gemm": {"ok": False}}}
    assert gpu_check.merged(new, path)["parts"] == {"gemm": {"ok": False}, "conv": {"ok": True}}
    other = {"chip": {**CHIP, "name": "another"}, "parts": {"gemm": {"ok": False}}}
    assert gpu_check.merged(other, path)["parts"] == {"gemm": {"ok": False}}


class Dry(gpu_measure.Bench):
    """Calls once and claims a millisecond."""

    def __init__(self, cupy):
        self.cupy, self.torch = cupy, None
        self._pool = np.random.default_rng(0).standard_normal(1 << 12, np.float32)

    def supports(self, dtype):
        return dtype != "bfloat16"

    def seconds(self, run, budget=0.05):
        run()
        return 1e-3


@pytest.fixture
def dry(monkeypatch, gpu):
    monkeypatch.setattr(gpu_measure, "copy_bandwidth", lambda bench: 1e12)
    return Dry(gpu)


def run(name: str, bench) -> dict:
    return (gpu_measure.PARTS | gpu_networks.PARTS)[name](bench, gpu_measure.Budget(1000))


def test_gemm_dry(dry, monkeypatch):
    monkeypatch.setattr(gpu_measure, "GEMMS", ((8, 16, 8, "nn"), (8, 8, 16, "tn"), (16, 8, 8, "nt")))
    found = run("gemm", dry)
    assert len(found["rows"]) == 9 and found["left_out"] == 0
    assert found["rows"][0]["tflops"] == pytest.approx(2 * 8 * 16 * 8 / 1e-3 / 1e12)
    assert gpu_measure.gemm(dry, gpu_measure.Budget(-1)) == {"rows": [], "summary": {}, "left_out": 9}


def test_int8_dry(dry, monkeypatch):
    monkeypatch.setattr(gpu_measure, "INT8", ((8, 16, 32), (5, 6, 7)))
    found = run("int8", dry)
    assert [r["wrong_values"] for r in found["rows"]] == [0, 0] and found["rows"][0]["tflops"] > 0


def test_conv_dry(dry, monkeypatch):
    from bench.layers import Call

    geometry = (("dilation", (1, 1)), ("groups", 1), ("padding", ((1, 1), (1, 1))), ("stride", (1, 1)), ("activation", None))
    call = Call("conv2d", ((1, 5, 5, 8), (3, 3, 8, 8)), geometry, (1, 5, 5, 8))
    monkeypatch.setattr(gpu_measure, "conv_layers", lambda batch: [("squeezenet1_1", call)])
    found = run("conv", dry)
    assert [r["pass"] for r in found["rows"]] == ["forward", "input_grad", "weight_grad"] * 2


def test_memory_dry(dry, monkeypatch):
    monkeypatch.setattr(gpu_measure, "TOUCH", 1 << 14)
    found = run("memory", dry)
    assert len(found["rows"]) == 18 and all(r["gbytes_per_second"] > 0 for r in found["rows"])


def small(name="any", **more):
    """One small network stands for all of them; pictures of 8x8."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding="same"),
                         nn.Conv2d(8, 8, 3, padding="same"))  # fmt: skip


@pytest.fixture
def small_networks(monkeypatch):
    for module in (gpu_measure, gpu_networks):
        for name, value in (("build", small), ("picture", lambda batch: np.ones((batch, 8, 8, 3), np.float32)),
                            ("NETWORKS", ("any",)), ("BATCHES", (1, 2)), ("COMPILED_BATCH", 2)):  # fmt: skip
            monkeypatch.setattr(module, name, value, raising=False)


def test_networks_and_layers_dry(dry, small_networks):
    found = run("networks", dry)
    assert [(r["dtype"], r["batch"]) for r in found["rows"]] == [("float32", 1), ("float32", 2), ("float16", 1), ("float16", 2)]
    assert all(r["compiled_ms"] == 1 and r["compiled_gain"] == 1 for r in found["rows"])
    assert found["summary"]["geometric mean of our eager time over our compiled time, float32"] == "1.000"
    layers = gpu_measure.conv_layers(4)
    assert [c.shapes for _, c in layers] == [((4, 8, 8, 3), (3, 3, 3, 8)), ((4, 8, 8, 8), (3, 3, 8, 8))]


def test_compiled_dry(dry, small_networks):
    assert [(r["dtype"], r["batch"]) for r in run("compiled", dry)["rows"]] == [("float16", 2)]
    assert gpu_networks.compiled(dry, gpu_measure.Budget(-1)) == {"rows": [], "summary": {}, "left_out": 1}


def test_training_dry(dry, monkeypatch):
    """A network with batch norm: every kind of op of a training step, eager, compiled and in mixed precision."""
    rng = np.random.default_rng(0)

    def data(name, batch):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm(8), nn.Flatten(), nn.Linear(128, 3))
        return model.train(), rng.standard_normal((batch, 4, 4, 3), np.float32), rng.integers(0, 3, batch)

    monkeypatch.setattr(gpu_networks, "training_data", data)
    monkeypatch.setattr(gpu_networks, "TRAINED", {"resnet20": 2})
    found = run("training", dry)
    assert [(r["network"], r["dtype"], "ms" in r) for r in found["rows"]] == [("resnet20", "float32", True),
                                                                            ("resnet20", "fp16", False)]  # fmt: skip
    assert gpu_networks.training(dry, gpu_measure.Budget(-1))["left_out"] == 2


def test_what_is_trained_on_a_gpu():
    model, pictures, labels = gpu_networks.training_data("resnet20", 4)
    assert model.training and pictures.shape == (4, 32, 32, 3) and labels.max() < 10


def test_what_takes_too_long_is_interrupted():
    with pytest.raises(gpu_measure.OutOfTime), gpu_measure.Budget(0.05).limit():
        while True:
            pass
    with gpu_measure.Budget(100).limit():
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_launch_dry(dry, monkeypatch):
    monkeypatch.setattr(gw.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_measure, "LAUNCHES", 2)
    assert [r["call"] for r in run("launch", dry)["rows"]] == ["kernel function", "op"]


def test_a_difference_and_a_mean():
    assert gpu_measure.difference([1.0, 2.0], [1.0, 2.0]) == 0 and gpu_measure.difference([2.0], [1.0]) == 1
    assert gpu_check.geometric_mean([2.0, 0.5]) == 1 and gpu_check.geometric_mean([]) is None
