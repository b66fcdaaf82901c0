"""The measuring harness: that its parts load, takes turns fairly, and renders a result. What it measures is not tested."""

from __future__ import annotations

import importlib
import json
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import graftwork as gw

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import common, layers, networks, report, roofline, training  # noqa: E402 - the harness is not part of the package


def made_up(network: str, batch: int, ours: float, compiled: float, torch: float, ort: float, **skipped: str) -> dict:
    """A case with these medians in milliseconds."""
    seconds = {"ours_eager": ours, "ours_compiled": compiled, "torch_eager": torch, "onnxruntime": ort}
    timings = {name: common.summary([ms / 1e3] * 3) for name, ms in seconds.items()}
    compared = common.Comparison(timings, dict.fromkeys(timings, 1.0), 0, 3, 0.01)
    return networks.entry(network, batch, compared, skipped, dict.fromkeys(timings, 1e-6), ideal=ort / 2e3)


@pytest.fixture
def result() -> dict:
    entries = [
        made_up("squeezenet1_1", 1, 8.0, 2.0, 16.0, 4.0, openvino="not installed: openvino"),
        made_up("vgg16", 8, 200.0, 50.0, 100.0, 50.0),
    ]
    about = {"machine": common.machine(), "threads": 2, "seconds": 1, "gflops": 100.0, "gbytes_per_second": 10.0}
    return {**about, "networks": entries, "geometric_mean": report.geometric_means(entries)}


@pytest.mark.parametrize(
    "part",
    ["advise", "coldstart", "compress", "finetune", "labels", "memory", "networks", "once", "overhead", "roofline", "training"],
)
def test_parts_load(part):
    """`python -m bench` runs these, all but those that need data of their own."""
    module = importlib.import_module(f"bench.{part}")
    assert callable(getattr(module, "measure", None) or module.main)


def test_ratios_and_their_means(result):
    first, second = (e["ratios"] for e in result["networks"])
    assert first == {"ours_eager/best_peer": 2.0, "ours_eager/torch_eager": 0.5, "ours_compiled/best_peer": 0.5,
                     "ours_compiled/torch_eager": 0.125}  # fmt: skip
    assert second["ours_eager/best_peer"] == 4.0
    assert result["geometric_mean"]["ours_eager/best_peer"] == pytest.approx(8**0.5, abs=1e-3)
    assert result["geometric_mean"]["ours_compiled/best_peer"] == pytest.approx(0.5**0.5, abs=1e-3)


def test_markdown(result):
    text = report.markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| squeezenet1_1, 1 | 8.0 | **2.0** | 16.0 | 4.0 | 2.00 | 0.50 | 0.50 | 0.12 |" in rows
    assert "| squeezenet1_1, 1 | 2.0 | 25% | 100% |" in rows
    assert "squeezenet1_1, 1: openvino: not installed: openvino" in text
    assert "other processes kept 0.01 cores busy\n" in text
    result["networks"][1]["disturbance"] = 0.5
    assert "kept 0.50 cores busy (DOUBTFUL" in report.markdown(result)
    result["networks"][1]["disturbance"] = 0.01
    assert json.loads(json.dumps(result)) == result


def test_plot(result, tmp_path):
    pytest.importorskip("matplotlib")
    path = report.plot(result, tmp_path / "networks.svg")
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_parts_are_merged_by_network_and_batch(result, tmp_path):
    path = tmp_path / "networks.json"
    path.write_text(json.dumps(result))
    part = {**result, "networks": [made_up("vgg16", 8, 100.0, 25.0, 100.0, 50.0)]}
    merged = networks.merge(part, path)
    assert [(e["network"], e["ratios"]["ours_compiled/best_peer"]) for e in merged["networks"]] == [
        ("squeezenet1_1", 0.5), ("vgg16", 0.5),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="another machine"):
        networks.merge({**part, "threads": 3}, path)


def test_compare_runs_both_ways_and_counts_what_it_times():
    seen = []
    runs = {name: lambda name=name: (seen.append(name), time.sleep(0.001)) for name in "abc"}
    found = common.compare(runs, seconds=0.1)
    assert found.rounds >= 4 and set(found.timings) == set(found.order) == set("abc")
    blocks = "".join(name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name)
    assert blocks.startswith("abcabcba")  # each once to warm up, forwards, and backwards
    timed = sum(t.calls for t in found.timings.values())
    assert len(seen) == timed + 3 * (2 + found.rounds)  # two calls to warm up, and one at the head of each block


def test_calls_of_a_network_have_costs():
    x, conv = gw.tensor(np.zeros((1, 8, 8, 3), np.float32)), gw.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    first, second = layers.calls_of(lambda x: gw.nn.functional.relu(conv(x)), x)
    assert (first.op, second.op) == ("conv2d", "relu")
    assert first.flops == 2 * (4 * 4 * 4) * (3 * 3 * 3)
    assert first.bytes == 4 * (8 * 8 * 3 + 3 * 3 * 3 * 4 + 4 + 4 * 4 * 4)
    assert str(first) == "conv2d 1x8x8x3 3x3x3x4 stride 2"
    peak = roofline.Peak(flops=1e3, bandwidth=1e12)  # so slow at computing that memory does not matter
    assert roofline.ideal_seconds([first, second], peak) == pytest.approx(first.flops / 1e3)


def test_candidates_that_fail_or_are_wrong_are_named_and_not_timed(monkeypatch, tmp_path):
    def wrong(case):
        return lambda: 1.001 * networks.ours_eager(case)().numpy()

    def broken(case):
        raise RuntimeError("no compiler")

    def absent(case):
        raise networks.Unavailable("not installed: peer")

    monkeypatch.setattr(networks, "CANDIDATES", (networks.ours_eager, wrong, broken, absent))
    runs, skipped, errors = networks.prepare(networks.Case("squeezenet1_1", 1, 2, tmp_path))
    assert list(runs) == ["ours_eager"] and errors["ours_eager"] == 0
    assert skipped["wrong"].startswith("WRONG: its output differs from our eager engine's by 1.0e-03")
    assert (skipped["broken"], skipped["absent"]) == ("RuntimeError: no compiler", "not installed: peer")


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(networks.Unavailable, match="not installed: torch, onnx"):
        networks.require("torch", "onnx")


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "resnet50"])
def test_twins_compute_the_same(name):
    torch = pytest.importorskip("torch")
    from bench import peers

    model, x = layers.build(name), layers.picture(1)
    with gw.no_grad():
        ours = model(gw.tensor(x)).numpy()
    with torch.inference_mode():
        theirs = peers.twin(name, model)(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    # sums in other orders over at most fifty layers
    assert np.abs(ours - theirs).max() < networks.TOLERANCE * np.abs(ours).max()


def test_training_steps_agree_and_wrong_ones_are_named():
    pytest.importorskip("torch")

    def wrong(case):
        case.classes = (case.classes + 1) % 10
        return training.torch_eager(case)

    candidates = (training.ours_eager, training.ours_compiled, training.torch_eager, training.torch_channels_last, wrong)
    runs, skipped, errors = networks.prepare(training.Case(2, 2), candidates, training.losses, training.TOLERANCE)
    assert list(runs) == ["ours_eager", "ours_compiled", "torch_eager", "torch_channels_last"]
    assert max(errors[name] for name in runs) < training.TOLERANCE and skipped["wrong"].startswith("WRONG")
    compared = common.compare({name: lambda: time.sleep(1e-4) for name in runs}, seconds=0.01)
    row = report.table([networks.entry("resnet20", 2, compared, skipped, errors)]).splitlines()[-1]
    assert row.startswith("| resnet20, 2 | ")
