"""Measured choices on GPUs: asked, timed in order, kept by chip, and used where they still are an option."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import graftwork as gw
from graftwork import kernels
from graftwork.kernels.cuda import launch, selection, tuning

X, W, OUT = (1, 8, 8, 64), (3, 3, 64, 64), (1, 8, 8, 64)
ATTRS = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
IMPLICIT = ["conv_simt", "split_simt"]  # too few tiles for Winograd's method
METHOD = "Made-Up 1 (driver 13.0): conv2d 3x3 1x8x8 64-64 float32"


class Machine:
    """Runs nothing; knows its name."""

    capability, processors, chip = 80, 4, "Made-Up 1 (driver 13.0)"

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "stand_in", Machine())
    tuning.table.cache_clear()
    yield
    tuning.table.cache_clear()


def described() -> launch.Description:
    arrays = [np.zeros(s, np.float32) for s in (X, W)]
    return tuning.describe(kernels.get("conv2d", device="cuda"), arrays, np.zeros(OUT, np.float32), ATTRS)


def names(description: launch.Description) -> list[str]:
    return [s.kernel for s in description.steps]


def test_a_tuned_choice_wins_on_its_chip(monkeypatch):
    assert names(described()) == IMPLICIT
    tuning.keep({METHOD: "winograd"})
    assert names(described()) == ["winograd_filter", "winograd_input", "gemm_simt", "winograd_output"]
    monkeypatch.setattr(Machine, "chip", "Made-Up 2 (driver 13.0)")
    assert names(described()) == IMPLICIT
    monkeypatch.setattr(Machine, "chip", "")
    assert names(described()) == IMPLICIT


def test_a_choice_that_is_no_option_falls_back_to_the_rule():
    tuning.keep({METHOD: "quantum"})
    assert names(described()) == IMPLICIT


@pytest.mark.parametrize("text", ["{", '{"format": 99, "choices": {}}'])
def test_a_damaged_table_is_ignored_with_a_warning(text):
    tuning.kept_at().write_text(text)
    with pytest.warns(UserWarning, match="graftwork tune"):
        assert names(described()) == IMPLICIT


def test_tiles_and_splits_of_products_are_options():
    arrays = ((64, 1024), (1024, 64))
    key = f"{Machine.chip}: gemm_simt 64x64x1024 b1 float32"
    tuning.keep({key: "128x64 splits 4"})
    steps = _matmul(arrays).steps
    macros = dict(steps[0].source.defines)
    assert (macros["TILE_M"], macros["TILE_N"], steps[0].grid[1]) == ("128", "64", 4) and steps[1].kernel == "split_simt"


def _matmul(shapes, dtype=np.float32) -> launch.Description:
    arrays = [np.zeros(s, dtype) for s in shapes]
    out = np.zeros((shapes[0][0], shapes[1][1]), dtype)
    return tuning.describe(kernels.get("matmul", device="cuda"), arrays, out, {})


def test_tensor_core_tiles_are_options():
    tuning.keep({f"{Machine.chip}: gemm_mma 64x64x1024 b1 float16": "128x64 splits 2"})
    step = _matmul(((64, 1024), (1024, 64)), np.float16).steps[0]
    macros = dict(step.source.defines)
    assert (macros["TILE_M"], macros["TILE_N"], step.grid[1]) == ("128", "64", 2)


def test_questions_are_settled_in_order():
    """Winograd's method is the faster one here, and its product is the fastest by 64 x 64 without splits."""

    def seconds(description):
        product = next(s for s in description.steps if "simt" in s.kernel)
        slow = product.kernel == "conv_simt"
        return 10.0 * slow + len(dict(product.source.defines)["TILE_M"]) + product.grid[1]

    found = tuning.tune(described, seconds)
    assert list(found) == [METHOD, f"{Machine.chip}: gemm_simt 4x64x64 b36 float32"]
    usual, times = found[METHOD]
    assert usual == "implicit" and times["winograd"] < times["implicit"]
    assert min(found[list(found)[1]][1], key=found[list(found)[1]][1].get) == "64x64 splits 1"
    assert names(described()) == IMPLICIT  # nothing was kept


def test_every_option_computes_the_product(emulated, rng):
    """On the emulator: each tile, whole and split, by the name it is kept under."""
    emulated.chip = Machine.chip
    a, b = rng.standard_normal((70, 300)).astype(np.float32), rng.standard_normal((300, 36)).astype(np.float32)
    fn, out = kernels.get("matmul", device="cuda"), np.empty((70, 36), np.float32)

    def describe():
        return tuning.describe(fn, [a, b], out, {})

    seen = []

    def check(description):
        out[...] = np.nan
        launch.run(description, (a, b, out), emulated)
        seen.append(np.abs(out - a @ b).max())
        return 1.0

    tuning.tune(describe, check)
    assert len(seen) == 6 and max(seen) < 1e-4  # three tiles, one or two splits


def test_the_command_says_why_it_cannot(monkeypatch):
    from graftwork.cli import main

    monkeypatch.setattr(gw.cuda, "_problem", lambda: "there is no driver")
    result = CliRunner().invoke(main, ["tune", "glyphnet", "--device", "cuda"])
    assert result.exit_code == 1 and "no GPU to tune for: there is no driver" in result.output


def test_the_command_keeps_what_it_found(monkeypatch):
    from graftwork.cli import main
    from graftwork.nn import tune_cuda

    monkeypatch.setattr(gw.cuda, "_problem", lambda: None)
    monkeypatch.setattr(launch, "empty", np.empty)
    monkeypatch.setattr(tune_cuda, "_random", lambda shape, dtype: np.zeros(shape, dtype))
    options = iter(range(10**6, 0, -1))  # every option is faster than the one before
    monkeypatch.setattr(tune_cuda, "seconds", lambda run: float(next(options)))
    result = CliRunner().invoke(main, ["tune", "glyphnet", "--device", "cuda"])
    assert result.exit_code == 0, result.output
    content = json.loads(tuning.kept_at().read_text())
    assert content["format"] == 1
    assert all(key.startswith("Made-Up 1 (driver 13.0): ") for key in content["choices"])


def test_splits_of_the_rule_are_always_an_option():
    tile = selection.simt_tile(9, 20, 1, 4, 132)
    splits = selection.simt_splits(tile, 9, 20, 1500, 1, 132)

    class Asking:
        chip, processors = "", 132

    assert selection.simt_product(Asking(), "gemm_simt", 9, 20, 1500, 1, np.dtype(np.float32)) == (tile, splits)
