"""The mma.sync tier on the emulator, against float64: products and convolutions in tf32, fp16, bf16 and int8."""

import numpy as np
import pytest
from emulator import compiler
from tensor_cores import ConvCase, Gemm, aligned, empty, error, operand, run, stored, values

from graftwork.kernels.cuda import mma

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++, which compiles the kernels for the emulator")
SMALL, LARGE = mma.TILES[2], mma.TILES[0]


def product(case: Gemm, arch=80, seed=0, **more):
    more.setdefault("tile", SMALL._replace(stages=2 if arch < 80 else 4))
    more.setdefault("splits", 1)
    done = run(case.launches(mma.gemm, arch=arch, multiprocessors=4, **more), arch=arch, seed=seed)
    case.check()
    return done


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("a_k, b_k", [(True, False), (False, True)])
def test_gemm_layouts(dtype, a_k, b_k):
    case = Gemm(dtype, 72, 88, 104, a_k=a_k, b_k=b_k)
    for seed in range(3):
        case.out[...] = empty(dtype, *case.out.shape)
        product(case, seed=seed)


def test_gemm_on_whole_warps_of_a_large_tile():
    product(Gemm("bfloat16", 136, 136, 72, b_k=False), tile=LARGE)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_gemm_with_odd_sizes(dtype):
    product(Gemm(dtype, 37, 51, 67))


@pytest.mark.parametrize("m, n, k", [(1, 64, 200), (64, 1, 40), (3, 5, 1)])
def test_skinny_gemm(m, n, k):
    product(Gemm("float16", m, n, k, b_k=True))


def test_an_empty_sum_is_zero():
    product(Gemm("float16", 8, 16, 0))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_gemm_of_turing(dtype):
    product(Gemm(dtype, 70, 90, 144), arch=75)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_split_k_is_deterministic(dtype):
    case, results = Gemm(dtype, 40, 56, 520), []
    for seed in range(2):
        assert len(product(case, seed=seed, splits=3)) == 2
        results.append(case.out.copy())
    np.testing.assert_array_equal(results[0], results[1])


def test_batched_gemm():
    product(Gemm("float16", 24, 40, 56, batch=3))
    product(Gemm("float16", 24, 40, 300, batch=2), splits=2)


def test_tiles_and_splits_are_chosen_from_the_shape():
    assert mma.choose_tile(4096, 4096, 1, 80, 108)[:2] == (128, 128)
    assert mma.choose_tile(128, 64, 1, 80, 108)[:2] == (64, 64)
    assert mma.choose_splits(4, 500, 108) == 27 and mma.choose_splits(200, 500, 108) == 1


# -- the epilogue ------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "silu": lambda y: y / (1 + np.exp(-y)),
    "hard_swish": lambda y: y * np.clip(y + 3, 0, 6) / 6,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_fused_bias_residual_and_activation(activation):
    case = Gemm("float16", 40, 56, 24)
    rng = np.random.default_rng(5)
    bias, residual = stored(rng.normal(size=56), "float16"), aligned(stored(rng.normal(size=(1, 40, 56)), "float16"))
    case.expected = ACTIVATIONS[activation](case.expected + values(bias) + values(residual))
    product(case, finish=mma.Finish(bias, residual, None, activation))


def test_split_sums_are_finished_once():
    case = Gemm("float16", 40, 56, 300)
    bias = stored(np.random.default_rng(5).normal(size=56), "float16")
    case.expected = np.maximum(case.expected + values(bias), 0)
    product(case, finish=mma.Finish(bias, activation="relu"), splits=2)


def test_relu_keeps_nan():
    case = Gemm("float16", 8, 16, 16)
    case.a[0, 3, 2] = np.nan
    run(case.launches(mma.gemm, arch=80, multiprocessors=4, tile=SMALL, finish=mma.Finish(activation="relu")))
    assert np.isnan(case.out[0, 3]).all() and np.isfinite(case.out[0, :3]).all()


@pytest.mark.parametrize("splits", [1, 2])
def test_int8_requantisation_is_exact(splits):
    case, rng = Gemm("int8", 40, 48, 160, out_dtype="int8"), np.random.default_rng(6)
    bias, scale = rng.integers(-500, 500, 48).astype(np.int32), (rng.uniform(0.5, 2, 48) / 256).astype(np.float32)
    sums = (case.expected + bias).astype(np.float32) * scale
    case.expected = np.clip(np.rint(np.maximum(sums, 0)), -128, 127).astype(np.float64)
    product(case, finish=mma.Finish(bias, scale=scale, activation="relu"), splits=splits)


def test_int32_sums_come_out_as_they_are():
    product(Gemm("int8", 24, 40, 64, out_dtype="int32"))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="cannot be fused"):
        product(Gemm("float16", 8, 8, 8), finish=mma.Finish(activation="swoosh"))


# -- convolution -------------------------------------------------------------------------------------------------------

CONVS = {
    "same": ("bfloat16", (2, 7, 9, 16), (3, 3, 16, 24)),
    "tf32 strided": ("float32", (2, 7, 9, 12), (3, 3, 12, 24), (2, 2), ((0, 1), (0, 1))),
    "groups, dilation": ("float16", (2, 8, 7, 16), (3, 2, 8, 48), (1, 2), ((2, 2), (0, 2)), (2, 1), 2),
    "odd channels, gaps": ("float16", (2, 9, 9, 3), (2, 2, 3, 5), (3, 3), ((1, 0), (1, 4))),
}


@pytest.mark.parametrize(
    "which, planner", [("forward", mma.conv), ("input", mma.conv_input_grad), ("weight", mma.conv_weight_grad)]
)
@pytest.mark.parametrize("name", list(CONVS))
def test_convolution(name, which, planner):
    case = ConvCase(*CONVS[name])
    case.check(which, planner, run, dtype=case.dtype, arch=80, multiprocessors=4, tile=SMALL, splits=1)


def test_a_split_weight_gradient_with_groups():
    case = ConvCase(*CONVS["groups, dilation"])
    case.check("weight", mma.conv_weight_grad, run, dtype=case.dtype, arch=80, multiprocessors=4, tile=SMALL, splits=2)


def test_int8_convolution():
    case = ConvCase("int8", (2, 7, 9, 32), (3, 3, 16, 24), groups=2)
    planner = lambda x, w, out, c, **more: mma.conv_int8(x, case.packed(), out, c, **more)  # noqa: E731
    case.check("forward", planner, run, out_dtype="float32", arch=80, multiprocessors=4, tile=SMALL, splits=1)


def test_convolution_with_fused_epilogue():
    case, rng = ConvCase(*CONVS["same"]), np.random.default_rng(7)
    bias, residual = operand(rng, "bfloat16", 24), aligned(operand(rng, "bfloat16", *case.conv.out))
    out = aligned(empty("bfloat16", *case.conv.out))
    finish = mma.Finish(bias, residual, None, "relu")
    run(
        mma.conv(
            case.x,
            case.w,
            out,
            case.conv,
            dtype="bfloat16",
            out_dtype="bfloat16",
            finish=finish,
            arch=80,
            multiprocessors=4,
            workspace=None,
            tile=SMALL,
            splits=1,
        )
    )
    assert error(out, np.maximum(case.expected("forward") + values(bias) + values(residual), 0)) < 1e-2


@pytest.mark.parametrize(
    "size, kernel, stride, padding, dilation", [(9, 3, 2, 1, 1), (10, 3, 3, 2, 2), (7, 2, 4, 0, 2), (5, 5, 1, 2, 1)]
)
def test_phases_reach_every_pair_of_input_and_tap(size, kernel, stride, padding, dilation):
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    expected = {
        (y, t, o)
        for y in range(size)
        for t in range(kernel)
        for o in range(outputs)
        if o * stride - padding + t * dilation == y
    }
    found = set()
    for p in mma.phases(size, kernel, stride, padding, dilation):
        for i in range(p.count):
            for j in range(p.taps):
                output = i + p.base + j * p.shift
                if 0 <= output < outputs:
                    found.add((p.start + i * p.step, p.tap + j * p.tap_step, output))
    assert found == expected
