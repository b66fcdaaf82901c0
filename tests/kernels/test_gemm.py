"""Matrix products on strips: planners and eager kernels against float64, on odd shapes, layouts and numbers of threads.

Tolerance: 2e-6 of the result's norm. A float32 sum of up to 1100 products of numbers near 1 errs by a few 1e-7 of it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from graftwork.kernels.cpu import caches, gemm, runtime, simd, strips
from graftwork.kernels.cpu import matmul as kernels
from graftwork.kernels.plan import Spec, spec_of
from graftwork.kernels.reference import matmul as oracle

SHAPES = [(1, 1, 1), (3, 5, 7), (17, 33, 65), (100, 200, 700), (1, 1000, 512), (300, 17, 30), (50, 100, 1100), (5, 4, 0)]
ACTIVATIONS = (None, "relu", "relu6", "silu", "hard_swish", "sigmoid", "hard_sigmoid", "tanh", "gelu")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = runtime.num_threads()
    runtime.set_num_threads(request.param)
    yield request.param
    runtime.set_num_threads(before)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Relative, by norms; NaN counts as wrong."""
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)) if want.size else 0.0


LAYOUTS = {
    "rows": lambda a: a,
    "columns": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, 1)[:, ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_any_layout(shape, left, right, threads):
    m, n, k = shape
    a, b = numbers(m, k), numbers(k, n)
    out = np.full((m, n), np.nan, np.float32)
    kernels.matmul_gemm(LAYOUTS[left](a), LAYOUTS[right](b), out=out)
    assert error(out, a.astype(np.float64) @ b) < 2e-6


@pytest.mark.parametrize("a, b", [((4, 5, 7), (4, 7, 3)), ((2, 1, 40, 7), (3, 7, 50)), ((3, 4), (2, 4, 5)), ((0, 4), (4, 3))])
def test_batches_broadcast(a, b, threads):
    a, b = numbers(*a), numbers(*b)
    want = a.astype(np.float64) @ b
    for out in (np.full(want.shape, np.nan, np.float32), np.full((*want.shape, 2), np.nan, np.float32)[..., 0]):
        kernels.matmul_gemm(a, b, out=out)
        assert error(out, want) < 2e-6
    plan = gemm.plan_matmul(spec_of(a), spec_of(b), out=Spec(want.shape, np.dtype(np.float32)))
    assert (plan is None) == (want.size == 0)
    if plan is not None:
        out = np.full(want.shape, np.nan, np.float32)
        runtime.call(plan, (a, b), (out,))
        assert error(out, want) < 2e-6


def test_repeated_values_are_not_taken_for_packed_ones():
    a, b = numbers(20, 6), np.broadcast_to(np.float32(1.5), (6, 9))
    out = np.empty((20, 9), np.float32)
    kernels.matmul_gemm(a, b, out=out)
    assert error(out, a.astype(np.float64) @ b) < 2e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 40, 9), (1, 300, 1100), (1, 150, 9), (8, 33, 70), (31, 16, 5), (70, 100, 600)], ids=str)
def test_linear_with_everything_fused(shape, activation, threads):
    m, n, k = shape
    x, w, b, r = numbers(m, k) / 8, numbers(k, n), numbers(n), numbers(m, n)
    want = np.empty((m, n))
    oracle.linear(x.astype(np.float64), w, b, r, out=want, activation=activation)
    wide = np.full((m, n + 5), np.nan, np.float32)
    plan = gemm.plan_linear(*map(spec_of, (x, w, b, r)), out=Spec((m, n), x.dtype), activation=activation)
    assert plan.strided
    runtime.call(plan, (x, w, b, r), (wide[:, 2 : n + 2],))
    assert error(wide[:, 2 : n + 2], want) < 2e-6
    assert np.isnan(wide[:, :2]).all()
    assert np.isnan(wide[:, n + 2 :]).all()
    for kernel in (kernels.linear, kernels.linear_gemm, kernels.linear_blas):
        got = np.full((m, n), np.nan, np.float32)
        kernel(x, w, b, r, out=got, activation=activation)
        assert error(got, want) < 2e-6


def test_rows_may_lie_in_a_wider_array():
    wide, w = numbers(20, 50), numbers(30, 40)
    x = wide[:, 10:40]
    plan = gemm.plan_linear(Spec(x.shape, x.dtype), spec_of(w), out=Spec((20, 40), x.dtype))
    assert 0 in plan.strided_inputs
    packed = np.empty(plan.packs[1].spec.shape, np.float32)
    runtime.run(plan.packs[1].bind(w, packed))
    out = np.empty((20, 40), np.float32)
    workspace = np.empty(plan.workspace, np.uint8) if plan.workspace else None
    runtime.run(plan.bind((x, packed), (out,), workspace))
    assert error(out, x.astype(np.float64) @ w) < 2e-6


def test_a_bound_program_runs_again_and_again():
    """The counter that the parts claim their work from is clear after every run."""
    a, b = numbers(200, 150), numbers(150, 90)
    plan = gemm.plan_linear(spec_of(a), spec_of(b), out=Spec((200, 90), a.dtype))
    packed = np.empty(plan.packs[1].spec.shape, np.float32)
    runtime.run(plan.packs[1].bind(b, packed))
    out = np.empty((200, 90), np.float32)
    workspace = np.empty(plan.workspace, np.uint8) if plan.workspace else None
    program = runtime.Program(plan.bind((a, packed), (out,), workspace))
    for _ in range(50):
        out[...] = np.nan
        program.run()
        assert error(out, a.astype(np.float64) @ b) < 2e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_pass(activation):
    x, w, b = numbers(30, 20), numbers(20, 40), numbers(40)
    x[3, 4], x[5] = np.nan, np.inf
    out = np.empty((30, 40), np.float32)
    with np.errstate(invalid="ignore"):
        kernels.linear_gemm(x, w, b, out=out, activation=activation)
    assert np.isnan(out[3]).all()
    assert np.isfinite(out[[*range(3), 4, *range(6, 30)]]).all()
    if activation is None:
        np.testing.assert_array_equal(out[5], np.where(w.min(axis=0) < 0, np.where(w.max(axis=0) > 0, np.nan, -np.inf), np.inf))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="'sine' cannot be fused"):
        gemm.plan_linear(spec_of(numbers(2, 3)), spec_of(numbers(3, 4)), out=Spec((2, 4), np.dtype("f4")), activation="sine")


def test_no_plan_for_double_precision():
    a = np.ones((20, 20))
    assert gemm.plan_matmul(spec_of(a), spec_of(a), out=spec_of(a)) is None


# -- the machine -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "machine, features, tile",
    [
        ("x86_64-unknown-linux-gnu", "+sse2,+avx2,+fma,+avx512f,+avx512vl", (16, 14)),
        ("x86_64-unknown-linux-gnu", "+avx2,+fma,+avx512f,-avx512f", (8, 6)),
        ("x86_64-unknown-linux-gnu", "+avx2,+fma", (8, 6)),
        ("x86_64-unknown-linux-gnu", "+avx2", (4, 6)),
        ("x86_64-unknown-linux-gnu", "", (4, 6)),
        ("aarch64-unknown-linux-gnu", "+neon", (4, 8)),
        ("arm64-apple-darwin", "", (4, 8)),
    ],
)
def test_register_tile_follows_the_processor(machine, features, tile):
    assert simd.register_tile(machine, features) == tile


@pytest.mark.parametrize("cpu, features, lanes", [("haswell", "+avx2,+fma,-avx512f", 8), ("generic", "", 4)])
def test_narrower_vectors_compute_the_same(cpu, features, lanes, tmp_path):
    """A whole process compiled for a processor without AVX-512 or without AVX2."""
    code = (
        "import numpy as np\n"
        "from graftwork.kernels.cpu import matmul, conv, simd\n"
        f"assert simd.LANES == {lanes}, simd.LANES\n"
        "rng = np.random.default_rng(0)\n"
        "a, b = rng.standard_normal((33, 40)), rng.standard_normal((40, 21))\n"
        "out = np.empty((33, 21), np.float32)\n"
        "matmul.linear_gemm(a.astype('f'), b.astype('f'), out=out, activation='silu')\n"
        "want = a @ b / (1 + np.exp(-(a @ b)))\n"
        "assert np.linalg.norm(out - want) < 2e-6 * np.linalg.norm(want)\n"
    )
    environment = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_cache_sizes_are_read(tmp_path):
    entries = (("Data", 1, "48K"), ("Instruction", 1, "64K"), ("Unified", 2, "2M"), ("?", "x", ""))
    for index, (kind, level, size) in enumerate(entries):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("type", kind), ("level", level), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    found = caches.sizes(tmp_path)
    assert found == caches.Caches(48 << 10, 2 << 20, 8 << 20)
    assert caches.sizes(tmp_path / "nothing") == caches.Caches()


def test_one_strip_for_each_width():
    assert [leaf.name for leaf in strips.STRIPS] == ["_strip1", "_strip2"]
