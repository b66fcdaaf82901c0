"""Every kernel compiles for every architecture, without spills or unintended local memory, and tensor cores are not
serialised."""

from __future__ import annotations

import pytest

from bench import cuda_resources
from bench.cuda_resources import ARCHITECTURES, Usage, problems, steps_of, usage
from graftwork.kernels.cuda import KERNELS, nvrtc

WHERE_TIERS_DIFFER = ("sm_75", "sm_80", "sm_90a")  # the others launch what sm_80 does
TIERS = ("gemm_mma.cu", "conv_mma.cu", "wgmma.cu", "split_k.cu")  # whose code depends on the architecture
HUNGRY = ("gemm_mma.cu", "gemm_simt.cu", "conv_simt.cu", "winograd.cu", "depthwise.cu")  # with most registers: everywhere


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills(architecture):
    if not nvrtc.is_available():
        pytest.skip("no NVRTC; install nvidia-cuda-nvrtc")
    if architecture == "sm_80":  # `python -m bench.cuda_resources` compiles everything for all of them
        dtypes, files, least = cuda_resources.DTYPES, None, 150
    elif architecture in WHERE_TIERS_DIFFER:
        dtypes, files, least = cuda_resources.DTYPES, {*TIERS, *HUNGRY}, 60
    else:
        dtypes, files, least = ("float32",), HUNGRY, 20
    rows = cuda_resources.measure(architecture, dtypes, files=files)
    assert len(rows) > least and not problems(rows)
    assert all(0 < r["registers"] * r["threads"] <= 65536 for r in rows), "a block does not fit a multiprocessor's registers"


def test_every_op_is_compiled():
    """The list of calls knows every family: each op that is not elementwise, and the chain that holds those."""
    from graftwork.kernels.reference import FAMILIES

    called = {c.op for dtype in cuda_resources.DTYPES for c in cuda_resources.calls(dtype)}
    elementwise = set(FAMILIES["elementwise"].split())
    same_code = {"mean", "min", "argmin", "softmax_grad", "log_softmax", "slice_scatter"}  # as sum, max, argmax, ..., pad
    assert set(KERNELS) - elementwise - same_code <= called


def test_every_kernel_of_every_file_is_launched_somewhere():
    """A kernel that no launch code reaches would be tested by nothing here."""
    import re

    from graftwork.kernels.cuda.loader import FOLDER

    entry = re.compile(r'extern "C" __global__ void\s+(?:CLUSTERED\s+)?(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(')
    written = {name for file in FOLDER.glob("*.cu") for name in entry.findall(file.read_text())}
    launched = {kernel for a in WHERE_TIERS_DIFFER for _, kernel in steps_of(a)}
    also = {"strided", "softmax_columns", "softmax_grad_columns", "scan_columns"}  # tests/cuda/test_simt_ops.py runs these
    assert launched - written == set()
    assert written - launched - also == set()


REPORT = """ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""


def test_the_report_is_read_and_faults_are_seen():
    assert usage(REPORT, "one", dynamic=100) == Usage(32, 1124, 16, 12, ())
    assert usage(REPORT, "two") == Usage(40, 0, 0, 0, ())
    row = {"kernel": "one", "architecture": "sm_80", "macros": "", "local_meant": False, **usage(REPORT, "one")._asdict()}
    assert len(problems([row])) == 1 and problems([{**row, "spills": 0, "stack": 0}]) == []
    assert problems([{**row, "spills": 0, "stack": 0, "warnings": ("C7510",)}])
    with pytest.raises(ValueError, match="no entry"):
        usage(REPORT, "three")
