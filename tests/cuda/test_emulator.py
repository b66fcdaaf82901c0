"""The emulator itself: what it runs, and the mistakes that it must find."""

import numpy as np
import pytest
from emulator import EmulatorError, build, compiler, emulate
from emulator.build import HERE

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++, which compiles the kernels for the emulator")
SAMPLES = HERE / "samples.cu"


def run(kernel, args, grid=1, block=64, shared=0, **more):
    emulate(SAMPLES, kernel, grid, block, shared, args, **more)


def row_sum(seed=0, **more):
    x = np.random.default_rng(0).normal(size=(5, 333)).astype(np.float32)
    y = np.full(5, np.nan, np.float32)
    run("row_sum", [x, y, 333], 5, 128, seed=seed, **more)
    return np.abs(y - x.sum(1, dtype=np.float64)).max()


def test_shuffles_barriers_and_static_shared_memory():
    assert row_sum() < 1e-4


def test_a_missing_barrier_shows_as_poison():
    assert any(np.isnan(row_sum(seed, defines={"MISSING_BARRIER": 1})) for seed in range(4))


def test_atomics_and_grid_loops():
    x = np.random.default_rng(1).integers(0, 7, 1000).astype(np.int32)
    counts = np.zeros(7, np.int32)
    run("histogram", [x, counts, x.size], 3, 64)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=7))


def test_warp_functions():
    y = np.zeros((64, 6), np.uint32)
    run("warp_functions", [y])
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(y[:, 0], 0xAAAAAAAA)
    np.testing.assert_array_equal(y[:, 1], np.where(lane >= 3, lane - 3, lane))
    np.testing.assert_array_equal(y[:, 2], np.where(lane < 29, lane + 3, lane))
    np.testing.assert_array_equal(y[:, 3], lane // 8 * 8 + 5)
    np.testing.assert_array_equal(y[:, 4], np.where(lane < 8, 28, sum(range(8, 32))))
    np.testing.assert_array_equal(y[:, 5], 6)


def test_a_deadlock_names_barriers_and_threads():
    with pytest.raises(EmulatorError, match=r"deadlock: .*threads 0-63 wait at barrier 1; threads 64-127 wait at barrier 2"):
        run("forever_apart", [np.zeros(1, np.int32)], block=128)


def test_a_lane_outside_of_its_mask_is_an_error():
    with pytest.raises(EmulatorError, match="__syncwarp: lane .* is not in its own mask"):
        run("outside_of_the_mask", [np.zeros(1, np.int32)])


def test_lanes_that_meet_at_different_functions_are_an_error():
    with pytest.raises(EmulatorError, match="divergence: lane .* is at __shfl_sync while others wait at __syncwarp"):
        run("divergent", [np.zeros(64, np.int32)])


def test_a_write_beside_shared_memory_is_found():
    with pytest.raises(EmulatorError, match="out-of-bounds write beside the 128 bytes of dynamic shared memory"):
        run("beyond_shared", [np.zeros(64, np.float32)], shared=128)


def test_an_unmapped_address_is_reported():
    with pytest.raises(EmulatorError, match="invalid memory access at address 0x8"):
        run("beyond_everything", [np.zeros(1, np.int32)])


@pytest.mark.parametrize(
    "kernel, args, shared",
    [
        ("beyond_shared", [np.zeros(64, np.float32)], 128),
        ("beyond_global", [np.zeros(64, np.float32), np.zeros(64, np.float32), 1], 0),
    ],
)
def test_address_sanitizer_finds_reads_and_writes(kernel, args, shared):
    with pytest.raises(EmulatorError, match=rf"AddressSanitizer(.|\n)*{kernel}.*samples.cu"):
        run(kernel, args, shared=shared, asan=True)


def test_address_sanitizer_lets_a_correct_kernel_pass():
    assert row_sum(asan=True) < 1e-4


def test_arguments_are_checked_against_the_kernel():
    with pytest.raises(EmulatorError, match="takes 3 arguments, 2 were given"):
        run("row_sum", [np.zeros(1, np.float32), np.zeros(1, np.float32)])
    with pytest.raises(EmulatorError, match="argument 0 must be an array"):
        run("row_sum", [1.5, np.zeros(1, np.float32), 1])
    with pytest.raises(ValueError, match="contiguous"):
        run("row_sum", [np.zeros((4, 4), np.float32)[:, 1], np.zeros(4, np.float32), 1])


def test_a_kernel_that_does_not_compile_says_why():
    with pytest.raises(EmulatorError, match="no_such_kernel"):
        build(SAMPLES, "no_such_kernel")
