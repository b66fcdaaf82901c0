"""The PTX that NVRTC emits for every tensor-core, cp.async and TMA kernel, executed on the CPU and compared with float64."""

import functools

import numpy as np
import pytest
from emulator import tensor_map
from interpreter import Program, PtxError, interpret
from tensor_cores import ConvCase, Gemm, aligned

from graftwork.kernels.cuda import loader, mma, nvrtc, wgmma
from graftwork.kernels.cuda.arguments import BYTES, Requantise

pytestmark = pytest.mark.skipif(not nvrtc.is_available(), reason="no NVRTC (wheel nvidia-cuda-nvrtc), which makes the PTX")
SMALL = mma.TILES[2]


@functools.cache
def program(file: str, kernel: str, defines, arch: str) -> Program:
    compiled = loader.compile_source(loader.Source(file, defines), f"compute_{arch}", ptx=True)
    return Program(compiled.code.decode(), kernel)


def encode(spec, address: int) -> bytes:
    return tensor_map.encode(spec, address, BYTES[spec.dtype])


def execute(launches, arch: str, seed: int = 0) -> None:
    for launch in launches:
        interpret(
            program(launch.file, launch.kernel, launch.defines, arch),
            launch.grid,
            launch.block,
            launch.shared,
            launch.arguments,
            cluster=launch.cluster,
            seed=seed,
            encode=encode,
        )


@pytest.mark.parametrize(
    "dtype, arch, a_k, b_k, sizes",
    [
        ("bfloat16", 80, True, False, (40, 56, 88)),
        ("bfloat16", 80, False, True, (40, 56, 88)),
        ("float16", 80, True, True, (33, 35, 37)),
        ("float32", 80, True, True, (40, 56, 88)),
        ("float32", 80, False, False, (40, 56, 88)),
        ("int8", 80, True, True, (40, 56, 88)),
        ("float16", 75, True, False, (40, 56, 88)),
        ("int8", 75, True, True, (33, 35, 37)),
    ],
)
def test_gemm_mma(dtype, arch, a_k, b_k, sizes):
    case = Gemm(dtype, *sizes, a_k=a_k, b_k=b_k)
    for seed in range(2):
        tile = SMALL._replace(stages=2 if arch < 80 else 4)
        execute(case.launches(mma.gemm, arch=arch, multiprocessors=1, tile=tile, splits=1), str(arch), seed)
        case.check()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_split_k(dtype):
    case = Gemm(dtype, 40, 56, 300)
    finish = mma.Finish(activation="relu")
    case.expected = np.maximum(case.expected, 0)
    execute(case.launches(mma.gemm, arch=80, multiprocessors=1, tile=SMALL, splits=2, finish=finish), "80")
    case.check()


@pytest.mark.parametrize("splits", [1, 2])
def test_requantisation(splits):
    """Scale, factor, rounding, zero point and clamp, as the compiler made them: to the bit."""
    case, rng = Gemm("int8", 40, 48, 160, out_dtype="uint8"), np.random.default_rng(6)
    bias, scale = rng.integers(-500, 500, 48).astype(np.int32), (rng.uniform(0.5, 2, 48) / 64).astype(np.float32)
    real = (case.expected + bias).astype(np.float32) * (scale * np.float32(0.3))
    case.expected = np.clip(np.rint(real) + 100, 20, 255).astype(np.float64)
    finish = mma.Finish(bias, scale=scale, requantise=Requantise(0.3, 100, 20, 255))
    execute(case.launches(mma.gemm, arch=80, multiprocessors=1, tile=SMALL, splits=splits, finish=finish), "80")
    case.check()


@pytest.mark.parametrize("tier", ["mma", "split", "wgmma"])
def test_a_residual_of_bytes_is_added_after_a_rounding(tier):
    """Two products and a sum, each rounded: a contraction to a fused multiply-add would show in the digits of float32."""
    case, rng = Gemm("int8", 40, 48, 160, out_dtype="float32"), np.random.default_rng(6)
    bias, scale = rng.integers(-500, 500, 48).astype(np.int32), (rng.uniform(0.5, 2, 48) / 64).astype(np.float32)
    added = aligned(rng.integers(0, 256, case.out.shape).astype(np.uint8))
    real = (case.expected + bias).astype(np.float32) * (scale * np.float32(0.3))
    case.expected = (real + (added - np.float32(9)) * np.float32(0.7)).astype(np.float64)
    finish = mma.Finish(bias, added, scale, requantise=Requantise(0.3, 0, -np.inf, np.inf, 0.7, 9))
    if tier == "wgmma":
        execute(case.launches(wgmma.gemm, multiprocessors=2, finish=finish), "90a")
    else:
        more = {"tile": SMALL, "splits": 2 if tier == "split" else 1}
        execute(case.launches(mma.gemm, arch=80, multiprocessors=1, finish=finish, **more), "80")
    case.check()


CONV = ("float16", (1, 5, 6, 8), (3, 2, 8, 24), (2, 1), ((1, 1), (0, 1)))


@pytest.mark.parametrize(
    "which, planner", [("forward", mma.conv), ("input", mma.conv_input_grad), ("weight", mma.conv_weight_grad)]
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_conv_mma(which, planner, dtype):
    case = ConvCase(dtype, *CONV[1:])
    run = lambda launches: execute(launches, "80")  # noqa: E731
    case.check(which, planner, run, dtype=dtype, arch=80, multiprocessors=1, tile=SMALL, splits=1)


@pytest.mark.parametrize(
    "dtype, a_k, b_k, sizes, more",
    [
        ("bfloat16", True, True, (136, 72, 200), {"tile_n": 128}),
        ("bfloat16", False, False, (136, 72, 72), {"tile_n": 128}),
        ("float16", True, False, (40, 136, 72), {"tile_n": 256}),
        ("float16", False, True, (264, 64, 72), {"tile_n": 64, "cluster": 1}),
        ("float32", True, True, (40, 72, 88), {}),
        ("int8", True, True, (136, 144, 208), {}),
        ("bfloat16", True, True, (40, 72, 328), {"splits": 2}),
    ],
)
def test_product_wgmma(dtype, a_k, b_k, sizes, more):
    case = Gemm(dtype, *sizes, a_k=a_k, b_k=b_k)
    for seed in range(2):
        execute(case.launches(wgmma.gemm, multiprocessors=2, **more), "90a", seed)
        case.check()


@pytest.mark.parametrize("which", ["forward", "input", "weight"])
def test_conv_wgmma(which):
    planner = {"forward": wgmma.conv, "input": wgmma.conv_input_grad, "weight": wgmma.conv_weight_grad}[which]
    case = ConvCase("bfloat16", (1, 9, 11, 24), (3, 2, 24, 40))
    case.check(which, planner, lambda launches: execute(launches, "90a"), dtype="bfloat16", multiprocessors=2)


# -- what it must refuse -----------------------------------------------------------------------------------------------

PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 k_param_0)
{
  .reg .b32 %r<4>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [k_param_0];
  BODY
  st.global.u32 [%rd1+OFFSET], %r1;
  ret;
}
"""


def tiny(body: str, offset: int = 0) -> np.ndarray:
    y = np.zeros(4, np.uint32)
    interpret(Program(PTX.replace("BODY", body).replace("OFFSET", str(offset)), "k"), 1, 1, 0, [y])
    return y


def test_a_tiny_program_runs():
    assert tiny("mov.u32 %r2, 7;\n mad.lo.s32 %r1, %r2, %r2, -1;")[0] == 48


@pytest.mark.parametrize(
    "body",
    ["clz.b32 %r1, %r1;", "add.cc.u32 %r1, %r1, %r1;", "cvt.rn.satfinite.u32.u32 %r1, %r1;", "ld.global.lu.u32 %r1, [%rd1];"],
)
def test_unknown_instructions_and_modifiers_fail(body):
    with pytest.raises(PtxError, match="unknown"):
        tiny(body)


def test_an_access_out_of_bounds_fails():
    with pytest.raises(PtxError, match="outside of all arrays"):
        tiny("mov.u32 %r1, 1;", 16)


def altered(old: str, new: str, case: Gemm, target: str, planner, **more) -> None:
    """Executes a kernel whose PTX has been altered; the text must contain `old`."""
    (launch,) = case.launches(planner, **more)
    text = loader.compile_source(loader.Source(launch.file, launch.defines), f"compute_{target}", ptx=True).code.decode()
    assert old in text
    interpret(
        Program(text.replace(old, new), launch.kernel),
        launch.grid,
        launch.block,
        launch.shared,
        launch.arguments,
        cluster=launch.cluster,
        encode=encode,
    )


def wrong(case: Gemm) -> bool:
    try:
        case.check()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    "old, new",
    [
        ("ldmatrix.sync.aligned.m8n8.x4.trans.shared", "ldmatrix.sync.aligned.m8n8.x4.shared"),
        ("cp.async.wait_group 2;", ""),
        ("bar.sync \t0;", ""),
    ],
)
def test_faults_in_compiled_code_of_the_mma_tier_are_caught(old, new):
    case = Gemm("bfloat16", 64, 64, 320, b_k=False)
    altered(old, new, case, "80", mma.gemm, arch=80, multiprocessors=1, tile=SMALL, splits=1)
    assert wrong(case)


def test_a_missing_proxy_fence_is_caught():
    with pytest.raises(PtxError, match=r"before fence.proxy.async by its writer"):
        altered("fence.proxy.async.shared::cta;", "", Gemm("bfloat16", 64, 64, 64), "90a", wgmma.gemm, multiprocessors=2)


def test_a_wrong_operand_order_of_wgmma_is_caught():
    case = Gemm("float16", 64, 128, 64, b_k=False)
    with pytest.raises((PtxError, AssertionError)):
        altered(", p, 1, 1, 0, 1;", ", p, 1, 1, 1, 0;", case, "90a", wgmma.gemm, multiprocessors=2)
        case.check()


def test_a_lost_arrival_is_a_deadlock():
    with pytest.raises(PtxError, match="deadlock.*mbarrier.try_wait"):
        altered(
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];",
            "",
            Gemm("bfloat16", 64, 64, 64 * 8),
            "90a",
            wgmma.gemm,
            multiprocessors=2,
            tile_n=128,
        )
