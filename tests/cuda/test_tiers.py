"""bfloat16 forms of the tensor-core kernels with the most registers compile without spills (test_compile_all.py has the other
types); all forms fit their architecture."""

import pytest

from bench.cuda_resources import usage
from graftwork.kernels.cuda import loader, mma, nvrtc, tiers, wgmma


def heaviest(architecture: str) -> list:
    """The largest tile of each kernel, type and kind of operand."""
    large = {"TILE_M": str(mma.TILES[0].m), "TILE_N": "128"} if architecture != "sm_90a" else {"TILE_N": "256"}
    chosen = []
    for step in tiers.launches(architecture):
        macros = dict(step.defines)
        narrow = int(macros.get("A_VEC", 16)) < 16
        if macros.get("TYPE") == "bf16_t" and not narrow and all(macros.get(k) == v for k, v in large.items()):
            chosen.append(step)
    return chosen


@pytest.mark.parametrize("architecture, most", [("sm_80", 3), ("sm_90a", 3)])
def test_the_largest_tiles_do_not_spill(architecture, most):
    if not nvrtc.is_available():
        pytest.skip("no NVRTC; install nvidia-cuda-nvrtc")
    steps = heaviest(architecture)
    assert len(steps) >= most
    for step in steps[:: max(1, len(steps) // most)]:
        log = loader.compile_source(loader.Source(step.file, step.defines), architecture).log
        found = usage(log, step.kernel, step.shared)
        assert (found.spills, found.stack) == (0, 0), step.defines
        assert not {"C7508", "C7510"} & set(found.warnings), step.defines
        assert found.registers * step.block <= 65536


def test_tiers_exist_where_their_instructions_do():
    types = {a: {dict(s.defines)["TYPE"] for s in tiers.launches(a) if s.file == "gemm_mma.cu"} for a in ("sm_75", "sm_80")}
    assert types == {"sm_75": {"half_t", "i8"}, "sm_80": {"half_t", "bf16_t", "float", "i8"}}
    assert {s.file for s in tiers.launches("sm_100")} == {"gemm_mma.cu", "conv_mma.cu", "split_k.cu"}
    assert "wgmma.cu" in {s.file for s in tiers.launches("sm_90a")}


@pytest.mark.parametrize(
    "architecture, most", [("sm_75", 64 << 10), ("sm_80", 163 << 10), ("sm_86", 99 << 10), ("sm_90a", 227 << 10)]
)
def test_shared_memory_fits_the_architecture(architecture, most):
    for step in tiers.launches(architecture):
        assert step.shared <= most
        assert step.cluster == 1 or step.shared <= 206 << 10
    assert wgmma.shared_bytes(256) > 48 << 10  # so the limit has to be raised before the launch
