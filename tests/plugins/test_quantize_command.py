"""The command `graftwork quantize`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from graftwork.cli import main
from graftwork.plugins.manager import manager


@pytest.fixture
def pictures(tmp_path, rng):
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def run(*arguments: object):
    return CliRunner().invoke(main, ["quantize", *map(str, arguments)])


def test_the_plugin_is_registered():
    manager().load()
    assert "quantize" in {p.name for p in manager().list_plugins() if p.status == "loaded" and "register_commands" in p.hooks}


def test_report_layers_and_budget(pictures):
    found = run("glyphnet", "--weights", "glyphs", "--pictures", pictures, "--layers", "--budget", 0, "--json")
    assert found.exit_code == 0, found.output
    row = json.loads(found.output.strip().splitlines()[-1])
    assert row["pictures"] == 20 and not row["met"] and row["missed_by"] > 0  # nothing but float32 costs nothing
    assert 0 < row["relative_error"] < 0.1 and row["layers"] and row["in_bytes"]
    assert set(row["kept_in_float"]) <= set(row["in_float"])
    text = run("glyphnet", "--weights", "glyphs", "--pictures", pictures, "--mode", "dynamic", "--layers")
    assert text.exit_code == 0 and "dynamic quantisation" in text.output and "relative error" in text.output


def test_bad_input_is_explained(pictures, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "one" / "only.png")
    found = run("glyphnet", "--pictures", tmp_path / "one")
    assert found.exit_code == 1 and "1 pictures; expected at least two" in found.output
    found = run("glyphnet", "--pictures", pictures, "--observer", "best")
    assert found.exit_code == 1 and "observer='best'" in found.output
