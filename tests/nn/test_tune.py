"""The tuned table: what it knows wins, what is damaged is ignored with a warning, what `tune` measures is kept."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import graftwork as gw
from graftwork import nn
from graftwork.cli import main
from graftwork.kernels.cpu import conv_select, tuning
from graftwork.kernels.plan import Spec
from graftwork.nn import tune

F32 = np.dtype(np.float32)
X, W, OUT = Spec((1, 12, 12, 32), F32), Spec((3, 3, 32, 32), F32), Spec((1, 12, 12, 32), F32)
GEOMETRY = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


@pytest.fixture(autouse=True)
def empty_table(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped.json")
    tuning.table.cache_clear()
    yield
    tuning.table.cache_clear()


def planned():
    return conv_select.plan_conv2d(X, W, out=OUT, **GEOMETRY).variant


@pytest.mark.parametrize("name", conv_select.CANDIDATES)
def test_a_tuned_choice_wins(name):
    tuning.keep({tuning.key(X, W, **GEOMETRY): name})
    words = name.split()
    assert "gemm" in planned() if words[0] == "gemm" else planned() == f"winograd F({words[1]}x{words[1]}) {words[2]}"


@pytest.mark.parametrize("name", conv_select.CANDIDATES)
def test_every_candidate_computes_the_convolution(name, rng):
    layer = nn.Conv2d(32, 32, 3, padding=1)
    x = gw.tensor(rng.random(X.shape, np.float32))
    with gw.no_grad():
        expected = layer.astype("float64")(x.astype("float64")).numpy()
        layer.astype("float32")
        tuning.keep({tuning.key(X, W, **GEOMETRY): name})
        found = gw.compile(layer)(x).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_an_unknown_or_unfit_choice_falls_back_to_the_heuristic():
    usual = planned()
    tuning.keep({tuning.key(X, W, **GEOMETRY): "quantum"})
    assert planned() == usual


def test_ours_goes_over_what_is_shipped():
    key = tuning.key(X, W, **GEOMETRY)
    tuning.keep({key: "winograd 2 tiles"}, tuning.SHIPPED)
    assert planned() == "winograd F(2x2) tiles"
    tuning.keep({key: "gemm"})
    assert "gemm" in planned()
    tuning.keep({key: None})
    assert planned() == "winograd F(2x2) tiles"


BROKEN = "", "{", "[]", '{"format": 99, "choices": {}}', '{"format": 1, "choices": 3}', '{"format": 1}'


@pytest.mark.parametrize("text", BROKEN)
def test_damaged_tables_are_ignored_with_a_warning(text, tmp_path):
    tuning.kept_at().write_text(text)
    usual = conv_select.plan_as("gemm", X, W, None, None, out=OUT, activation=None, **GEOMETRY)
    with pytest.warns(UserWarning, match="graftwork tune"):
        assert planned() and usual is not None


def test_measuring_finds_times_for_every_candidate(rng):
    layer = nn.Conv2d(16, 16, 3, padding=1)
    with gw.no_grad():
        graph = gw.compile(layer).graph(gw.tensor(rng.random((1, 8, 8, 16), np.float32)))
    seen = []
    (choice,) = tune.tune(graph, lambda done, total: seen.append((done, total)))
    assert set(choice.times) == {*conv_select.CANDIDATES, "heuristic"} and min(choice.times.values()) > 0
    assert seen[-1] == (1, 1)
    assert tune.winners([choice]) == {choice.key: choice.best if choice.changed else None}


def test_the_heuristic_wins_ties():
    assert not tune.Choice("k", {"gemm": 99.0, "heuristic": 100.0}, "winograd 2 tiles").changed
    assert not tune.Choice("k", {"gemm": 50.0, "heuristic": 100.0}, "gemm").changed  # the same kernel: noise
    assert tune.Choice("k", {"gemm": 50.0, "heuristic": 100.0}, "winograd 2 tiles").changed


def test_the_command_keeps_what_it_found():
    result = CliRunner().invoke(main, ["tune", "glyphnet"])
    assert result.exit_code == 0, result.output
    assert "choices changed" in result.output and json.loads(tuning.kept_at().read_text())["format"] == 1
