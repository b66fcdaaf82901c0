"""Mistakes planted into copies of the tensor-core kernels: the emulator must catch each, with some seed of a few."""

import re
import shutil

import pytest
from emulator import EmulatorError, compiler, emulate
from emulator.build import KERNELS
from tensor_cores import Gemm, error, given

from graftwork.kernels.cuda import mma, wgmma

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++, which compiles the kernels for the emulator")
SMALL = mma.TILES[2]
SEEDS = range(4)


def outcome(folder, case: Gemm, launches, arch: int, seed: int, asan: bool = False) -> str:
    """What a launch of the kernels in `folder` ends in: "right", "wrong", or the emulator's message."""
    for launch in launches:
        try:
            emulate(
                folder / launch.file,
                launch.kernel,
                launch.grid,
                launch.block,
                launch.shared,
                [given(a) for a in launch.arguments],
                defines=dict(launch.defines),
                cluster=(launch.cluster, 1, 1),
                arch=10 * arch,
                seed=seed,
                asan=asan,
            )
        except EmulatorError as problem:
            return str(problem)
    return "right" if error(case.out, case.expected) < 1e-2 else "wrong"


def plant(tmp_path, file: str, old: str, new: str):
    """A copy of all kernels, with one change."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    for path in [*KERNELS.glob("*.cuh"), *KERNELS.glob("*_mma.cu"), KERNELS / "wgmma.cu"]:
        shutil.copy(path, folder / path.name)
    text = (folder / file).read_text()
    assert text.count(old) == 1, f"{file} no longer has exactly one `{old}`"
    (folder / file).write_text(text.replace(old, new))
    return folder


def mma_outcomes(folder, **more) -> list[str]:
    found = []
    for seed in SEEDS:
        case = Gemm("bfloat16", 64, 64, 456, b_k=False)
        launches = case.launches(mma.gemm, arch=80, multiprocessors=1, tile=SMALL._replace(stages=3), splits=1)
        found.append(outcome(folder, case, launches, 80, seed, **more))
    return found


MMA_FAULTS = {
    "missing barrier": ("mma.cuh", "    __syncthreads();  // the stage has landed", "    // the stage has landed"),
    "missing wait": ("mma.cuh", "cp_async_wait<Tile::STAGES - 2>();", ""),
    "a stage refilled too early": ("mma.cuh", "fill(block + Tile::STAGES - 1);", "fill(block + Tile::STAGES);"),
    "wrong swizzle": ("mma.cuh", "return chunk ^ (row >> 1 & 3);", "return chunk ^ (row >> 1 & 3 & threadIdx.x / 8);"),
    "wrong operand order": (
        "mma.cuh",
        "int half_mn = IS_A ? low : high, half_k = IS_A ? high : low;",
        "int half_mn = low, half_k = high;",
    ),
    "no synchronisation in the epilogue": (
        "mma.cuh",
        "    __syncwarp();\n#pragma unroll\n    for (int pass",
        "#pragma unroll\n    for (int pass",
    ),
}


@pytest.mark.parametrize("name", list(MMA_FAULTS))
def test_faults_of_the_mma_tier_are_caught(tmp_path, name):
    assert any(found != "right" for found in mma_outcomes(plant(tmp_path, *MMA_FAULTS[name])))


def test_the_copies_are_right_without_a_fault(tmp_path):
    folder = plant(tmp_path, "mma.cuh", "// The mma.sync tier:", "// The mma.sync tier, copied:")
    assert mma_outcomes(folder) == ["right"] * len(SEEDS)
    assert wgmma_outcomes(folder) == ["right"] * len(SEEDS)


def test_a_read_out_of_bounds_is_caught_by_address_sanitizer(tmp_path):
    folder = plant(
        tmp_path,
        "mma.cuh",
        "return r < rows && c + j < columns ? source + j : nullptr;",
        "return c + j < columns ? source + j : nullptr;",
    )
    case = Gemm("bfloat16", 40, 64, 64)
    launches = case.launches(mma.gemm, arch=80, multiprocessors=1, tile=SMALL, splits=1)
    assert "AddressSanitizer: heap-buffer-overflow" in outcome(folder, case, launches, 80, 0, asan=True)


def wgmma_outcomes(folder) -> list[str]:
    found = []
    for seed in SEEDS:
        case = Gemm("bfloat16", 264, 128, 64 * 7)
        launches = case.launches(wgmma.gemm, multiprocessors=2, tile_n=128)
        found.append(outcome(folder, case, launches, 90, seed))
    return found


WGMMA_FAULTS = {
    "wrong phase bit": (
        "mbarrier_wait(&full[ring.stage], ring.parity);",
        "mbarrier_wait(&full[ring.stage], 0);",
        "wrong|deadlock|mbarrier",
    ),
    "producer waits for the wrong phase": (
        "mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);",
        "mbarrier_wait(&empty[ring.stage], ring.parity);",
        "deadlock: .*mbarrier",
    ),
    "a stage released too early": (
        "wgmma_wait<1>();  // the stage before has been read",
        "wgmma_wait<4>();",
        "wrong",
    ),
    "missing wait": ("    wgmma_wait<0>();\n", "", "wrong"),
    "one block of the cluster is not released": (
        "if (threadIdx.x % 128 < CLUSTER) {",
        "if (threadIdx.x % 128 < 1) {",
        "deadlock: .*mbarrier",
    ),
    "bytes that never come": (
        "mbarrier_arrive_expect(&full[ring.stage], kStage);",
        "mbarrier_arrive_expect(&full[ring.stage], kStage + 16);",
        "deadlock: .*mbarrier",
    ),
    "wrong swizzle": ("((j + lane / 16) ^ (target & 7)) * 16", "((j + lane / 16) ^ (target & 3)) * 16", "wrong"),
    "wrong step along K": (
        "kStepB = B_K_CONTIGUOUS ? 32 : 16 * kDepth;",
        "kStepB = B_K_CONTIGUOUS ? 64 : 16 * kDepth;",
        "wrong|outside",
    ),
    "a panel overwritten too early": ("tma_store_wait_read<kPanels == 1 ? 0 : 1>();", "tma_store_wait_read<2>();", "wrong"),
}


@pytest.mark.parametrize("name", list(WGMMA_FAULTS))
def test_faults_of_the_wgmma_tier_are_caught(tmp_path, name):

    old, new, expected = WGMMA_FAULTS[name]
    found = wgmma_outcomes(plant(tmp_path, "wgmma.cu", old, new))
    assert any(re.search(expected, result) for result in found), found
