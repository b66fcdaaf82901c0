"""Times by kernel, GRAFTWORK_DEBUG, and the text of graphs."""

import numpy as np
import pytest

import graftwork as gw
from graftwork import nn
from graftwork.kernels.cpu import peak
from graftwork.nn import functional as F
from graftwork.nn import graph_text, profiling
from graftwork.nn.graph import Graph
from graftwork.nn.op import OPS

X = gw.tensor(np.ones((1, 8, 8, 3), np.float32))


def layers():
    gw.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 2))


@pytest.fixture(scope="module")
def executable():
    with gw.no_grad():
        return gw.compile(layers()).executable(X)


def test_rows_are_the_steps_in_order(executable):
    rows = profiling.profile(executable, [X.data], 3)
    assert [r.node.op.name for r in rows] == ["conv2d", "mean", "linear"]
    assert sum(r.share for r in rows) == pytest.approx(1.0) and all(r.nanoseconds > 0 for r in rows)
    conv = rows[0]
    assert conv.node.flops == 2 * 4 * 4 * 4 * 27 and conv.output == "float32[1, 4, 4, 4]" and conv.variant
    assert conv.gflops == pytest.approx(conv.node.flops / conv.nanoseconds)
    assert conv.gbytes == pytest.approx(conv.node.bytes_moved / conv.nanoseconds)
    assert conv.ideal(1e9, 1e30) == pytest.approx(conv.node.flops)
    assert conv.ideal(1e30, 1e9) == pytest.approx(conv.node.bytes_moved)
    assert "conv2d" in conv.line() and "GFLOP/s" in conv.line() and "GB/s" in conv.line()


def test_updates_say_what_they_change():
    counter = gw.tensor(np.zeros(3, np.float32))
    executable = gw.compile(lambda: OPS["increment"](counter)).executable()
    (row,) = profiling.profile(executable, [], 1)
    assert row.output == "float32[3] in place"
    assert counter.numpy().tolist() == [3.0] * 3  # one replay that is measured, two that are not


def test_debug_prints_a_line_for_each_kernel(monkeypatch, capsys):
    monkeypatch.setenv("GRAFTWORK_DEBUG", "2")
    with gw.no_grad():
        loud = gw.compile(layers())
        expected = loud(X).numpy()
        monkeypatch.delenv("GRAFTWORK_DEBUG")  # it is read when a function is compiled
        quiet = gw.compile(layers())
        capsys.readouterr()
        np.testing.assert_array_equal(loud(X).numpy(), expected)
        lines = capsys.readouterr().err.splitlines()
        quiet(X)
        assert capsys.readouterr().err == ""
    assert lines[0].startswith("Sequential: ") and "in 3 kernels" in lines[0] and len(lines) == 4
    assert all("GFLOP/s" in line and "GB/s" in line and " us " in line for line in lines[1:])
    assert "conv2d" in lines[1] and "test_profiling.py:" in lines[1]


def test_debug_reports_backward_passes_and_still_fills_times(monkeypatch, capsys):
    monkeypatch.setenv("GRAFTWORK_DEBUG", "2")
    g = gw.compile(layers())
    g(X).sum().backward()
    assert "Sequential_backward: " in capsys.readouterr().err
    times: dict = {}
    executable = g.executable(X)
    executable.run([X.data], times)
    executable.run([X.data], times)
    assert len(times) == len(executable.steps) and all(t > 0 for t in times.values())


def test_the_machines_roof():
    peak.peak_flops.cache_clear(), peak.bandwidth.cache_clear()
    assert 1e8 < peak.peak_flops(1) < 1e15 and 1e8 < peak.bandwidth(1) < 1e13
    assert peak.peak_flops(1) == peak.peak_flops(1)  # measured once


def test_a_summary_adds_up(executable):
    found = profiling.summary(profiling.profile(executable, [X.data], 2))
    assert found["us"] == pytest.approx(sum(k["us"] for k in found["kernels"]))
    assert found["gflop"] == pytest.approx(sum(k["gflops"] * k["us"] for k in found["kernels"]) / 1e6)
    assert found["ideal_us"] == pytest.approx(sum(k["roofline"] * k["us"] for k in found["kernels"]))


def test_a_description_is_plain_data(executable):
    found = profiling.describe(executable)
    assert [n["op"] for n in found["nodes"]] == ["conv2d", "mean", "linear"] and found["states"] == 4
    assert found["memory"]["arena"] == executable.arena_bytes >= found["memory"]["lower_bound"] > 0
    assert found["memory"]["inputs"] == X.data.nbytes and found["memory"]["outputs"] == 8


def test_text_is_aligned_and_short():
    with gw.no_grad():
        graph = gw.compile(layers()).graph(X)
    lines = str(graph).splitlines()
    assert lines[0].startswith("def Sequential(x):") and lines[-1] == "    return linear"
    assert len({line.index(" = ") for line in lines[1:-1]}) == 1 and len({line.index("  # ") for line in lines[:-1]}) == 1
    conv = next(line for line in lines if "= conv2d(" in line)
    assert "conv2d(x, 0.weight, 0.bias, stride=2, padding=1, activation='relu')" in conv  # no dilation, no groups
    assert "float32[1, 4, 4, 4]" in conv and "test_profiling.py:" in conv
    assert "dilation=(1, 1)" in repr(graph.nodes[0])  # all of it, where an error shows a node


def test_chains_print_as_what_they_compute():
    def f(x):
        y = F.exp(x) * 2.0
        return F.sigmoid(y) + y

    with gw.no_grad():
        graph = gw.compile(f).graph(X)
    (chain,) = graph.nodes
    assert chain.op.name == "chain"
    assert graph_text.call(chain) == "t0 = multiply(exp(x), constant); add(sigmoid(t0), t0)"


def test_names_are_numbered_in_order_and_never_twice():
    exp_2 = gw.tensor(np.float32(1.0))

    def f(x):
        for _ in range(3):
            x = F.matmul(F.exp(x), F.exp(x + 1.0)) * exp_2
        return x

    with gw.no_grad():
        graph = gw.compile(f).graph(gw.tensor(np.eye(3, dtype=np.float32)))
    names = [v.name for v in (*graph.inputs, *graph.states, *graph.constants, *(v for n in graph.nodes for v in n.outputs))]
    assert len(set(names)) == len(names) and any(v.name.startswith("exp_2") for v in graph.states)
    assert [n.output.name for n in graph.nodes if n.op.name == "matmul"] == ["matmul", "matmul_2", "matmul_3"]
    graph = Graph("g")
    assert [graph.fresh(stem) for stem in ("a_2", "a", "a", "a", "a_2")] == ["a_2", "a", "a_3", "a_4", "a_2_2"]
