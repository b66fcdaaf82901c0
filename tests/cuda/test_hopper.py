"""The wgmma and TMA tier on the emulator, against float64."""

import numpy as np
import pytest
from emulator import compiler
from tensor_cores import ConvCase, Gemm, aligned, operand, run, stored, values

from graftwork.kernels.cuda import mma, wgmma

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++, which compiles the kernels for the emulator")


def run90(launches, seed=0):
    return run(launches, arch=90, seed=seed)


def product(case: Gemm, seed=0, **more):
    more.setdefault("multiprocessors", 3)
    done = run90(case.launches(wgmma.gemm, **more), seed)
    case.check()
    return done


@pytest.mark.parametrize("a_k", [True, False])
@pytest.mark.parametrize("b_k", [True, False])
def test_gemm_layouts_in_a_cluster(a_k, b_k):
    case = Gemm("bfloat16", 264, 136, 200, a_k=a_k, b_k=b_k)  # two tiles of M a cluster, and one beyond the matrix
    for seed in range(2):
        assert product(case, seed, tile_n=128)[0].cluster == 2


def test_persistent_blocks_walk_over_many_tiles():
    assert product(Gemm("float16", 300, 280, 72, b_k=False, batch=2), tile_n=256)[0].grid[0] == 2


@pytest.mark.parametrize("dtype, out_dtype", [("float32", "float32"), ("int8", "float32"), ("int8", "int8")])
def test_gemm_in_tf32_and_int8(dtype, out_dtype):
    case = Gemm(dtype, 136, 144, 160, out_dtype=out_dtype)
    if out_dtype == "int8":
        case.expected = np.clip(np.rint(case.expected.astype(np.float32) * np.float32(1 / 64)), -128, 127).astype(np.float64)
        product(case, finish=mma.Finish(scale=np.full(144, 1 / 64, np.float32)))
    else:
        product(case)


def test_a_single_panel_waits_for_the_store_of_the_tile_before():
    case = Gemm("bfloat16", 640, 64, 64)
    for seed in range(4):
        product(case, seed, tile_n=64, cluster=1, multiprocessors=1)


def test_more_tiles_along_k_than_stages():
    product(Gemm("float16", 72, 64, 64 * 9 + 8), tile_n=64, cluster=1)


def test_split_k():
    assert len(product(Gemm("bfloat16", 136, 72, 520, b_k=False), splits=3)) == 2


@pytest.mark.parametrize("splits", [1, 2])
def test_fused_epilogue(splits):
    case, rng = Gemm("float16", 136, 72, 136), np.random.default_rng(3)
    bias, residual = stored(rng.normal(size=72), "float16"), aligned(operand(rng, "float16", 1, 136, 72))
    case.expected = np.maximum(case.expected + values(bias) + values(residual), 0)
    product(case, finish=mma.Finish(bias, residual, None, "relu"), splits=splits)


CONVS = {
    "same": ("bfloat16", (2, 9, 11, 24), (3, 3, 24, 40)),
    "dilated, two tiles of channels": ("float16", (3, 9, 11, 72), (3, 2, 72, 72), (1, 1), ((2, 2), (0, 2)), (2, 1)),
    "strided": ("bfloat16", (2, 9, 11, 24), (3, 3, 24, 40), (2, 2), ((0, 1), (0, 1))),
}


@pytest.mark.parametrize("which", ["forward", "input", "weight"])
@pytest.mark.parametrize("name", list(CONVS))
def test_convolution(name, which):
    case = ConvCase(*CONVS[name])
    planner = {"forward": wgmma.conv, "input": wgmma.conv_input_grad, "weight": wgmma.conv_weight_grad}[which]
    if which == "input" and name == "strided":
        with pytest.raises(wgmma.Unsupported, match="strides"):
            case.check(which, planner, run90, dtype=case.dtype, multiprocessors=2)
        return
    case.check(which, planner, run90, dtype=case.dtype, multiprocessors=2)


def test_split_weight_gradient():
    case = ConvCase(*CONVS["dilated, two tiles of channels"])
    case.check("weight", wgmma.conv_weight_grad, run90, dtype=case.dtype, multiprocessors=2, splits=2)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_convolution_with_packed_weights(dtype):
    case = ConvCase(dtype, (2, 9, 11, 32), (3, 3, 32, 48), (2, 1))
    planner = lambda x, w, out, c, **more: wgmma.conv(x, case.packed(), out, c, packed=True, **more)  # noqa: E731
    case.check("forward", planner, run90, dtype=dtype, out_dtype="float32", multiprocessors=2)


@pytest.mark.parametrize(
    "dtype, n, k, b_k, reason", [("bfloat16", 72, 100, True, "multiples of 16"), ("float32", 72, 64, False, "K contiguous")]
)
def test_what_tma_cannot_read_is_refused_with_the_reason(dtype, n, k, b_k, reason):
    with pytest.raises(wgmma.Unsupported, match=reason):
        product(Gemm(dtype, 64, n, k, b_k=b_k))


def test_stages_fit_the_shared_memory_of_a_cluster():
    for tile_n in (64, 128, 256):
        assert wgmma.stages(tile_n) >= 3 and wgmma.shared_bytes(tile_n) <= 206 * 1024
