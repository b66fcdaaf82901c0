"""`graftwork graph` and `graftwork profile`."""

import json

import numpy as np
import pytest
from test_cli import refuse, run, succeed

from graftwork import zoo


def test_graph_prints_a_line_a_node_and_the_memory():
    lines = succeed("graph", "glyphnet").splitlines()
    assert lines[0] == "GlyphNet(x: float32[1, 32, 32, 1])"
    nodes = [line for line in lines[2:] if " = " in line]
    assert len(nodes) == 25 and all("glyphnet.py:" in line and "float32[1, " in line for line in nodes)
    assert len({line.index("float32[") for line in nodes}) == 1  # aligned
    assert lines[-2].startswith("25 ops a call, ") and "computed ahead" in lines[-2]
    assert lines[-1].startswith("arena ") and "of the lower bound" in lines[-1]
    assert lines[-1].endswith("inputs 4,096, outputs 188")


def test_graph_as_json_and_as_text():
    found = json.loads(succeed("graph", "glyphnet", "--batch", 3, "--json"))
    assert found["model"] == "glyphnet" and found["inputs"] == [{"name": "x", "shape": [3, 32, 32, 1], "dtype": "float32"}]
    assert len(found["nodes"]) == 25 and found["nodes"][0]["op"] == "conv2d" and found["nodes"][0]["flops"] > 0
    assert found["memory"]["lower_bound"] <= found["memory"]["arena"] <= 1.1 * found["memory"]["lower_bound"]
    text = succeed("graph", "glyphnet", "--text")
    assert text.startswith("def GlyphNet(x):") and "stem.conv.weight" in text and "\n    return linear" in text


def test_graph_draws_a_page(tmp_path):
    path = tmp_path / "graph.html"
    assert succeed("graph", "glyphnet", "--html", path).endswith(f"wrote {path}\n")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "Memory plan" in text and "By time" in text
    assert "the folder" in refuse("graph", "glyphnet", "--html", tmp_path / "nowhere" / "graph.html")


def test_graph_with_weights(tmp_path):
    path = tmp_path / "w.h5"
    zoo.save_weights(zoo.create("glyphnet"), path)
    assert "25 ops" in succeed("graph", "glyphnet", "--weights", path)
    assert "25 ops" in succeed("graph", "glyphnet", "--weights", "glyphs")
    assert "no weights named 'nothing'" in refuse("graph", "glyphnet", "--weights", "nothing")


def test_profile_prints_a_line_a_kernel_and_the_roof():
    lines = succeed("profile", "glyphnet", "--repeat", 2).splitlines()
    assert lines[0].split()[:3] == ["op", "kernel", "output"]
    kernels = [line for line in lines if "glyphnet.py:" in line]
    assert len(kernels) == 20 and all("%" in line for line in kernels)
    assert lines[-2].startswith("total ") and "in 20 kernels" in lines[-2] and lines[-1].startswith("roof ")


def test_profile_as_json():
    found = json.loads(succeed("profile", "glyphnet", "--repeat", 1, "--batch", 2, "--json"))
    assert found["batch"] == 2 and len(found["kernels"]) == 20
    assert np.isclose(sum(k["share"] for k in found["kernels"]), 1.0)
    assert {"gflops", "gbytes"} == set(found["peak"]) and found["roofline"] > 0.0


@pytest.mark.parametrize("command", ["graph", "profile"])
def test_what_is_wrong_is_one_sentence(command):
    assert "no model named 'glyphne'; did you mean glyphnet" in refuse(command, "glyphne")
    assert run(command, "glyphnet", "--batch", 0).exit_code == 2
    assert run(command).exit_code == 2
