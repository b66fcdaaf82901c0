"""Plans of the dense ops: every task against the NumPy reference in float64.

Each plan is bound to memory full of garbage, and the parts of its rows run in a shuffled order, as threads might. Shapes are
odd: nothing, one, and sizes that no vector or block divides. Tolerances: a function of one value is good to 1e-6 of the result,
a sum to 2e-6 of the sum of its terms; what departs from that says why.
"""

from __future__ import annotations

import ctypes
import math
import zlib

import numpy as np
import pytest

from graftwork import kernels
from graftwork.kernels import registry
from graftwork.kernels.cpu import chain, planning, runtime
from graftwork.kernels.plan import Spec, aligned_empty, spec_of
from graftwork.nn.op import OPS, all_samples

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
OWN = {"matmul", "linear", "conv2d", "conv2d_input_grad", "conv2d_weight_grad"}  # planned and tested elsewhere
OWN |= {"increment", "in_range"}  # one number; a check that raises: both are called from Python
OWN |= {"quantized_matmul", "quantized_conv2d", "quantized_conv2d_add"}  # bytes: test_byte_kernels.py
OWN |= {"quantize", "dequantize", "quantized_add", "byte_table", "quantized_max_pool2d", "quantized_avg_pool2d"}
MARGIN = 16


@pytest.fixture(autouse=True)
def many_parts(monkeypatch):
    """Small arrays are cut in many parts, whatever the machine."""
    monkeypatch.setattr(planning, "SERIAL_BELOW", 2)
    before = runtime.num_threads()
    runtime.set_num_threads(3)
    yield
    runtime.set_num_threads(before)


def generator(*key) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def normal(*shape, seed=0):
    return np.asarray(generator(shape, seed).standard_normal(shape), np.float32)


def garbage(shape, dtype):
    """An array inside a longer one, all of it full of what no result looks like."""
    size, dtype = math.prod(shape), np.dtype(dtype)
    memory = aligned_empty((size + 2 * MARGIN) * dtype.itemsize)
    memory[:] = 0xA5
    typed = memory.view(dtype)
    return typed[MARGIN : MARGIN + size].reshape(shape), typed


def run_shuffled(rows) -> None:
    """The parts of each row one after another in a random order, each exactly once."""
    rng = np.random.default_rng(1)
    for row in rows:
        call = FUNCTION(row.task.address)
        for part in rng.permutation(row.parts):
            call(row.words.ctypes.data, int(part))


def specs_of(op, arrays, attrs):
    specs = OPS[op].infer(*arrays, **attrs)
    if specs is None:
        return []
    return [Spec(tuple(s), np.dtype(d)) for s, d in (specs if OPS[op].multi else [specs])]


def plan_for(op, arrays, attrs):
    outs = specs_of(op, arrays, attrs)
    out = None if not outs else outs if OPS[op].multi else outs[0]
    return registry.planner(op, "cpu")(*map(spec_of, arrays), out=out, **attrs), outs


def planned(op, arrays, attrs, run=run_shuffled, outputs=None):
    """Outputs of the plan, then the inputs that the op writes."""
    plan, outs = plan_for(op, arrays, attrs)
    assert plan is not None, f"no plan for {op} {[a.shape for a in arrays]} {attrs}"
    frames = [garbage(*o) for o in outs] if outputs is None else [(o, None) for o in outputs]
    workspace = garbage((plan.workspace,), np.uint8)[0] if plan.workspace else None
    if workspace is not None:
        workspace = aligned_empty(plan.workspace)
        workspace[:] = 0xFF
    arrays = [a.copy() if i in OPS[op].written(len(arrays)) else a for i, a in enumerate(arrays)]
    run(plan.bind(arrays, [o for o, _ in frames], workspace))
    for out, memory in frames:
        if memory is not None:
            edges = np.concatenate([memory[:MARGIN], memory[MARGIN + out.size :]]).view(np.uint8)
            assert (edges == 0xA5).all(), f"{op} wrote beside its output"
    return [*(o for o, _ in frames), *(arrays[i] for i in OPS[op].written(len(arrays)))]


def reference(op, arrays, attrs):
    wide = [np.asarray(a, np.float64) if a.dtype == np.float32 else a for a in arrays]
    wide = [a.copy() if i in OPS[op].written(len(wide)) else a for i, a in enumerate(wide)]
    outs = tuple(np.empty(*o) for o in specs_of(op, wide, attrs))
    with np.errstate(all="ignore"):
        kernels.get(op, variant="reference")(*wide, out=outs if OPS[op].multi else outs[0] if outs else None, **attrs)
    return [*outs, *(wide[i] for i in OPS[op].written(len(wide)))]


def check(op, *arrays, rtol=1e-6, atol=1e-6, **attrs):
    arrays = tuple(map(np.asarray, arrays))  # arithmetic makes scalars of arrays without dimensions
    for got, want in zip(planned(op, arrays, attrs), reference(op, arrays, attrs), strict=True):
        assert got.shape == want.shape
        if got.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


# -- the whole table ---------------------------------------------------------------------------------------------------

SAMPLES = [
    pytest.param(op.name, s, id=f"{op.name}-{i}")
    for i, (op, s) in enumerate(all_samples())
    if op.view is None and op.name not in OWN and not op.infer.__module__.startswith("graftwork.plugins")
]


def test_every_dense_op_has_a_planner():
    for name, op in OPS.items():
        if op.view is None and name not in OWN and not op.infer.__module__.startswith("graftwork.plugins"):
            assert registry.planner(name, "cpu") is not None, name


@pytest.mark.parametrize("op, sample", SAMPLES)
def test_samples_have_plans_that_equal_the_reference(op, sample):
    arrays = [np.array(a, np.float32 if a.dtype == np.float64 else None, order="C") for a in sample.arrays]
    check(op, *arrays, rtol=2e-5, atol=2e-5, **sample.attrs)


def test_other_dtypes_have_no_plan():
    x = np.ones((3, 4))
    for op, attrs in (("add", None), ("relu", {}), ("softmax", {"axis": 1}), ("sum", {"axis": (0,), "keepdims": False})):
        arrays = (x, x) if attrs is None else (x,)
        assert plan_for(op, arrays, attrs or {})[0] is None


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_the_same_bits(threads):
    """Through the pool itself, as a program runs: equal to the shuffled parts to the last bit."""
    x, gamma, beta = normal(37, 11, 19), normal(19, seed=1), normal(19, seed=2)
    cases = (
        ("batch_norm_train", (x, gamma, beta), {"epsilon": 1e-3}),
        ("sum", (x,), {"axis": (0, 1), "keepdims": False}),
        ("softmax", (x,), {"axis": 2}),
        ("gelu", (x,), {"approximate": False}),
    )
    for op, arrays, attrs in cases:
        shuffled = planned(op, arrays, attrs)
        runtime.set_num_threads(threads)
        for a, b in zip(shuffled, planned(op, arrays, attrs, run=runtime.run), strict=True):
            np.testing.assert_array_equal(a, b)


# -- elementwise -------------------------------------------------------------------------------------------------------

SIZES = ((), (1,), (15,), (16,), (17,), (1023,), (1025,), (5000,), (0, 3))
UNARY = [
    "negative", "abs", "exp", "sin", "cos", "erf", "tanh", "sigmoid", "relu", "relu6", "silu", "hard_swish", "hard_sigmoid",
    "softplus", "expm1", "sign", "floor", "ceil", "round", "square",
]  # fmt: skip
POSITIVE = ["log", "sqrt", "rsqrt", "reciprocal", "log1p"]
BROADCASTS = (
    ((5, 7), (5, 7)), ((5, 7), (7,)), ((5, 7), (5, 1)), ((3, 1), (1, 5)), ((), (4,)), ((0, 3), (3,)), ((40, 33), ()),
    ((2, 3000), (3000,)), ((2, 3000), (2, 1)), ((4, 9, 9, 96), (4, 1, 1, 96)), ((4, 9, 9, 6), (4, 1, 1, 1)),
    ((3, 4, 5), (3, 1, 5)), ((2, 7, 3, 1500), (2, 1, 1, 1500)), ((70, 1, 33), (70, 20, 33)), ((1, 1), (1,)), ((300, 3), (3,)),
)  # fmt: skip


@pytest.mark.parametrize("op", UNARY + POSITIVE)
def test_functions_of_one_value(op):
    for shape in SIZES:
        x = 4 * normal(*shape)
        check(op, np.abs(x) + np.float32(0.01) if op in POSITIVE else x, atol=1e-6 if op == "hard_swish" else 1e-30)


@pytest.mark.parametrize("op", UNARY + POSITIVE)
def test_special_values_go_where_they_should(op):
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 150.0, -150.0, 88.6, -87.9, 1e-40, 3e38, -3e38, 1e9, 2.5, -1.5, 1e-30]
    x = np.array(values, np.float32)
    (got,), (want,) = planned(op, (x,), {}), reference(op, (x,), {})
    with np.errstate(all="ignore"):
        want = want.astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-36)  # e^x may be 0 below the smallest normal number, 1.2e-38


@pytest.mark.parametrize(
    "op, attrs",
    [("leaky_relu", {"alpha": 0.2}), ("elu", {"alpha": 0.7}), ("gelu", {"approximate": True}), ("gelu", {"approximate": False}),
     ("clip", {"low": -0.5, "high": None}), ("clip", {"low": None, "high": 1.25}), ("clip", {"low": None, "high": None})],
)  # fmt: skip
def test_functions_with_parameters(op, attrs):
    for shape in SIZES:
        check(op, 3 * normal(*shape), **attrs)


@pytest.mark.parametrize(
    "op", ["add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "less", "equal", "greater_equal"]
)
def test_broadcasting(op):
    for one, two in BROADCASTS:
        a, b = np.abs(normal(*one)) + np.float32(0.1), np.abs(normal(*two, seed=1)) + np.float32(0.1)
        if op == "equal":
            a, b = np.round(a), np.round(b)
        check(op, np.asarray(a), np.asarray(b))
        check(op, np.asarray(b), np.asarray(a))


def test_too_many_broadcasts_have_no_plan():
    assert plan_for("add", (normal(2, 3, 4, 5), normal(2, 1, 4, 1)), {})[0] is None


def test_masks_and_logic():
    a, b = normal(9, 77), normal(9, 77, seed=1)
    for mask in (a > 0, a[:1] > 0, a[:, :1] > 0):
        check("where", mask, a, b)
        check("where", mask, a, np.asarray(np.float32(2)))
    for op in ("logical_and", "logical_or"):
        check(op, a > 0, b[:1] > 0)
    check("logical_not", a > 0)
    for op, attrs in (("relu_grad", {}), ("relu6_grad", {}), ("leaky_relu_grad", {"alpha": 0.1})):
        check(op, a, np.clip(4 * b, 0, 6), **attrs)


def test_maximum_keeps_nan():
    a, b = np.array([np.nan, 1, 2], np.float32), np.array([1, np.nan, 3], np.float32)
    for op, third in (("maximum", 3), ("minimum", 2)):
        (got,) = planned(op, (a, b), {})
        assert np.isnan(got[:2]).all() and got[2] == third


def test_casts():
    x = np.abs(20 * normal(3, 41))
    for target in ("float64", "int32", "int64", "uint8", "bool", "float32"):
        check("cast", x, dtype=target)
        check("cast", x.astype(target), dtype="float32")


PROGRAMS = (
    ((("multiply", (0, 2), ()), ("add", (4, 3), ()), ("add", (5, 1), ()), ("relu", (6,), ())),
     ((6, 7, 35), (6, 7, 35), (35,), (35,))),
    ((("add", (0, 1), ()), ("multiply", (0, 2), ()), ("subtract", (3, 2), ())), ((1300,), (1300,))),
    ((("greater", (0, 1), ()), ("where", (2, 0, 1), ()), ("square", (3,), ()), ("add", (4, 3), ())),
     ((8, 5, 5, 40), (8, 1, 1, 40))),
    ((("cast", (0,), (("dtype", "bool"),)), ("logical_not", (1,), ())), ((2050,),)),
    ((("less", (0, 1), ()), ("cast", (2,), (("dtype", "float32"),)), ("gelu", (3,), (("approximate", True),))), ((3, 9), ())),
    ((("exp", (0,), ()), ("exp", (0,), ()), ("negative", (1,), ())), ((40,),)),
)  # fmt: skip


@pytest.mark.parametrize("program, shapes", PROGRAMS)
def test_chains(program, shapes):
    check("chain", *(normal(*s, seed=i) for i, s in enumerate(shapes)), program=program, rtol=3e-6, atol=3e-6)


def test_chain_writes_over_an_input():
    """What `in_place` promises: each input it names may be the output."""
    program, shapes = PROGRAMS[0]
    arrays = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    plan, _ = plan_for("chain", arrays, {"program": program})
    assert plan.in_place == (0, 1)
    (want,) = reference("chain", arrays, {"program": program})
    for i in plan.in_place:
        copies = [a.copy() for a in arrays]
        planned("chain", copies, {"program": program}, outputs=[copies[i]])
        np.testing.assert_allclose(copies[i], want, rtol=3e-6, atol=3e-6)


def test_long_chain_reuses_registers():
    steps, x = [], normal(1030)
    for i in range(60):
        steps.append(("add" if i % 2 else "multiply", (i, 0), ()))
    check("chain", x / 8, program=tuple(steps))


def test_chain_of_wide_numbers_runs_step_by_step():
    program, shapes = PROGRAMS[2]
    arrays = [normal(*s, seed=i).astype(np.float64) for i, s in enumerate(shapes)]
    got = np.empty(shapes[0])
    kernels.get("chain")(*arrays, out=got, program=program)
    np.testing.assert_allclose(got, reference("chain", arrays, {"program": program})[0], rtol=1e-13)


def test_what_the_machine_knows():
    assert chain.elementwise_step("relu") and chain.elementwise_step("where") and chain.elementwise_step("clip", {"low": 0.0})
    assert chain.elementwise_step("cast", {"dtype": "float32"}) and not chain.elementwise_step("cast", {"dtype": "int32"})
    assert not chain.elementwise_step("sum") and not chain.elementwise_step("copy") and not chain.elementwise_step("gelu_tanh")


# -- moves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16", "bool"])
def test_contiguous_copies_any_view(dtype):
    base = (100 * normal(6, 35, 37, 9)).astype(dtype)
    views = (
        base, base.T, base.transpose(0, 2, 3, 1), base.transpose(0, 3, 1, 2), base[::2, ::-1], base[..., ::3], base[:, 3],
        base[2, 4:, 5:], base[..., None], np.broadcast_to(base[:1, :1], base.shape),
        base[0, 0, 0, :1].reshape(()), base[:0], base.swapaxes(1, 2),
    )  # fmt: skip
    for view in views:
        out, memory = garbage(view.shape, dtype)
        plan = registry.planner("contiguous", "cpu")(spec_of(view), out=spec_of(out))
        assert plan.strided_inputs == (0,)
        run_shuffled(plan.bind([view], [out], None))
        np.testing.assert_array_equal(out, view)
        assert (memory[:MARGIN].view(np.uint8) == 0xA5).all()


def test_concat_and_its_slices():
    for axis in range(4):
        shapes = [tuple(n if i == axis else m for i, m in enumerate((2, 3, 5, 7))) for n in (4, 0, 1, 17)]
        check("concat", *(normal(*s, seed=i) for i, s in enumerate(shapes)), axis=axis)
    check("concat", normal(3), normal(5), axis=0)
    a, b, wide = normal(2, 5, 4), normal(2, 5, 6), np.zeros((2, 5, 20), np.float32)
    plan, _ = plan_for("concat", (a, b), {"axis": 2})
    assert plan.strided
    run_shuffled(plan.bind([a, b], [wide[..., 3:13]], None))
    np.testing.assert_array_equal(wide[..., 3:13], np.concatenate([a, b], 2))
    assert not wide[..., :3].any() and not wide[..., 13:].any()


def test_pad_and_slice_scatter():
    for shape, widths in (
        ((2, 5, 7, 3), ((0, 0), (3, 3), (2, 1), (0, 0))), ((2, 3), ((1, 2), (0, 1))), ((4,), ((2, 0),)),
        ((0, 2), ((2, 0), (1, 1))), ((3, 4, 5, 6), ((1, 0), (0, 2), (1, 1), (2, 3))), ((2, 3), ((0, 0), (0, 0))), ((), ()),
    ):  # fmt: skip
        check("pad", normal(*shape), widths=widths, value=1.5, mode="constant")
        check("pad", np.arange(math.prod(shape), dtype=np.uint8).reshape(shape), widths=widths, value=7, mode="constant")
    every = slice(None)
    for index in ((slice(1, 3), every, slice(None, None, 2)), (2, slice(None, None, -1), -1), (slice(0, 0),) * 3, (0, -1, 2)):
        check("slice_scatter", np.array(normal(4, 5, 6)[index], order="C"), shape=(4, 5, 6), index=index)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_gather_and_its_adjoint(kind):
    cases = (((5, 3), 0, (4,)), ((2, 5, 3), 1, (2, 2)), ((4, 6), 1, ()), ((50, 300), 0, (70,)), ((5, 3), 0, (0,)))
    for shape, axis, places in cases:
        low = 0 if kind is np.uint8 else -shape[axis]
        idx = np.asarray(generator(shape).integers(low, shape[axis], places).astype(kind))
        check("gather", normal(*shape), idx, axis=axis)
        target = (*shape[:axis], *places, *shape[axis + 1 :])
        check("scatter_add", normal(*target, seed=1), idx, axis=axis, size=shape[axis], atol=1e-5)  # up to ten terms
    check("one_hot", np.asarray(generator().integers(0, 9, (7, 5)).astype(kind)), depth=9, dtype="float32")


def test_indices_out_of_range_read_nothing():
    """A plan cannot raise: gather gives NaN, scatter_add leaves out, one_hot gives zeros, cross-entropy NaN."""
    idx = np.array([0, 7, -9, -1])
    (got,) = planned("gather", (normal(5, 3), idx), {"axis": 0})
    np.testing.assert_array_equal(np.isnan(got), [[False] * 3, [True] * 3, [True] * 3, [False] * 3])
    (got,) = planned("scatter_add", (np.ones((4, 2), np.float32), idx), {"axis": 0, "size": 5})
    np.testing.assert_array_equal(got[:, 0], [1, 0, 0, 0, 1])
    (got,) = planned("one_hot", (idx,), {"depth": 5, "dtype": "float32"})
    np.testing.assert_array_equal(got.sum(1), [1, 0, 0, 0])
    (got,) = planned("cross_entropy", (normal(4, 5), idx), {"label_smoothing": 0.0})
    np.testing.assert_array_equal(np.isnan(got), [False, True, True, True])


# -- pooling -----------------------------------------------------------------------------------------------------------

POOLS = [
    ((1, 7, 9, c), window, stride, padding)
    for c in (1, 16, 19, 70)
    for window, stride, padding in (
        ((2, 2), (2, 2), ((0, 0), (0, 0))), ((3, 3), (2, 2), ((1, 1), (1, 1))), ((3, 2), (1, 3), ((0, 2), (1, 0))),
        ((7, 9), (1, 1), ((0, 0), (0, 0))), ((1, 1), (3, 2), ((0, 0), (0, 0))), ((4, 4), (3, 3), ((3, 3), (3, 3))),
    )
] + [((3, 12, 11, 33), (3, 3), (1, 1), ((1, 1), (1, 1))), ((0, 4, 4, 2), (2, 2), (2, 2), ((0, 0), (0, 0)))]  # fmt: skip


@pytest.mark.parametrize("shape, window, stride, padding", POOLS)
def test_pools(shape, window, stride, padding):
    attrs = {"window": window, "stride": stride, "padding": padding}
    x = np.round(2 * normal(*shape)) / 2  # with ties
    if x.size:
        x.flat[x.size // 2] = np.nan
    check("max_pool2d", x, **attrs)
    (y,) = reference("max_pool2d", (x,), attrs)
    y = y.astype(np.float32)
    check("max_pool2d_grad", normal(*y.shape, seed=1), x, y, **attrs)
    check("max_pool2d_take", normal(*shape, seed=2), x, y, **attrs)
    for count in (False, True):
        check("avg_pool2d", normal(*shape), count_padding=count, **attrs)
        check("avg_pool2d_grad", normal(*y.shape, seed=3), input_shape=shape, count_padding=count, **attrs)


def test_pools_between_slices():
    """Input and output as channel slices of wider images."""
    wide, target = normal(2, 8, 7, 40), np.zeros((2, 4, 3, 30), np.float32)
    attrs = {"window": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    for op, extra in (("max_pool2d", {}), ("avg_pool2d", {"count_padding": False})):
        x = wide[..., 5:28]
        plan, _ = plan_for(op, (x,), attrs | extra)
        assert plan.strided and plan.strided_inputs == (0,)
        run_shuffled(plan.bind([x], [target[..., 4:27]], None))
        np.testing.assert_allclose(target[..., 4:27], reference(op, (x,), attrs | extra)[0], rtol=1e-6, atol=1e-6)
        assert not target[..., :4].any() and not target[..., 27:].any()


# -- normalisation -----------------------------------------------------------------------------------------------------

NORMS = ((6, 3), (2, 4, 3, 5), (1, 4), (700, 16), (131, 70), (3, 9, 11, 33), (5, 2100))


@pytest.mark.parametrize("shape", NORMS)
def test_norms_and_their_gradients(shape, monkeypatch):
    monkeypatch.setattr("graftwork.kernels.cpu.norm.BLOCK", 64)
    x, g = 2 * normal(*shape) + np.float32(3), normal(*shape, seed=1)
    gamma, beta = normal(shape[-1], seed=2), normal(shape[-1], seed=3)
    axes = tuple(range(len(shape) - 1))
    mean, var = x.mean(axes), x.var(axes)
    near = {"rtol": 2e-5, "atol": 2e-5}  # x - mean rounds at the size of x and is divided by the deviation
    check("batch_norm", x, gamma, beta, mean, var, epsilon=1e-3, **near)
    check("batch_norm_train", x, gamma, beta, epsilon=1e-3, **near)
    sums = {"rtol": 2e-5, "atol": 2e-6 * math.prod(shape[:-1])}
    check("batch_norm_grad", g, x, gamma, mean, var, epsilon=1e-3, **sums)
    check("layer_norm", x, gamma, beta, epsilon=1e-3, **near)
    check("layer_norm_grad", g, x, gamma, x.mean(-1), 1 / np.sqrt(x.var(-1) + np.float32(1e-3)), **sums)


def test_batch_norm_between_slices_and_in_place():
    wide, target = normal(3, 5, 40), np.zeros((3, 5, 30), np.float32)
    vectors = [np.abs(normal(20, seed=i)) for i in range(4)]
    x = wide[..., 7:27]
    plan, _ = plan_for("batch_norm", (x, *vectors), {"epsilon": 1e-3})
    (want,) = reference("batch_norm", (x, *vectors), {"epsilon": 1e-3})
    workspace = aligned_empty(plan.workspace)
    run_shuffled(plan.bind([x, *vectors], [target[..., 2:22]], workspace))
    np.testing.assert_allclose(target[..., 2:22], want, rtol=1e-5, atol=1e-5)
    run_shuffled(plan.bind([x, *vectors], [x], workspace))
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)


# -- softmax and reductions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, axis", [((3, 5), 1), ((3, 5), 0), ((0, 3), 1), ((7, 1000), 1), ((4, 37, 29), 1), ((1, 1), 1), ((33,), 0)]
)
def test_softmax_family(shape, axis):
    x, g = 5 * normal(*shape), normal(*shape, seed=1)
    near = {"rtol": 4e-6, "atol": 4e-6}  # x - max rounds at the size of x, up to 20
    check("softmax", x, axis=axis, **near)
    check("log_softmax", x, axis=axis, **near)
    check("softmax_grad", g, np.abs(x), axis=axis, rtol=2e-5, atol=2e-5 * 5 * shape[axis])
    check("log_softmax_grad", g, -np.abs(x), axis=axis, rtol=2e-5, atol=2e-5)


def test_softmax_of_nan_and_infinity():
    x = np.array([[1e4, 0, -1e4] * 7, [np.nan, 1, 2] * 7, [-np.inf, 0, 1] * 7], np.float32)
    for op in ("softmax", "log_softmax"):
        (got,), (want,) = planned(op, (x,), {"axis": 1}), reference(op, (x,), {"axis": 1})
        np.testing.assert_allclose(got, want, rtol=4e-6, atol=4e-6)


def test_cross_entropy():
    for rows, classes, kind in ((4, 5, np.int64), (0, 3, np.int64), (11, 1003, np.int32), (9, 10, np.uint8)):
        labels = (np.arange(rows) % classes).astype(kind)
        for smoothing in (0.0, 0.1):
            check("cross_entropy", 3 * normal(rows, classes), labels, label_smoothing=smoothing, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min", "prod"])
@pytest.mark.parametrize(
    "shape, axis",
    [((5, 7), (0,)), ((5, 7), (1,)), ((2, 3), ()), ((), ()), ((4, 9, 11, 19), (0, 1, 2)), ((3, 7, 7, 70), (1, 2)),
     ((9001,), (0,)), ((30, 200), (1,)), ((300, 300), (0,)), ((5, 1, 6), (0, 1, 2)), ((41, 33, 2), (1,)), ((6, 700), (0,))],
)  # fmt: skip
def test_reductions(op, shape, axis):
    x = normal(*shape)
    x = np.asarray(1 + x / 100 if op == "prod" else x)
    count = math.prod(shape[i] for i in axis)
    for keepdims in (False, True):
        check(op, x, axis=axis, keepdims=keepdims, rtol=2e-6, atol=1e-7 * count)


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_reductions_keep_nan(op):
    x = normal(70, 90)
    x[3, 5], x[66, 20] = np.nan, np.inf
    for axis in ((0,), (1,), (0, 1)):
        check(op, x, axis=axis, keepdims=False, rtol=2e-6, atol=1e-5)


def test_large_sums_do_not_lose_digits():
    x = np.full((1 << 20, 3), 0.1, np.float32)
    (got,) = planned("sum", (x,), {"axis": (0,), "keepdims": False}, run=runtime.run)
    np.testing.assert_allclose(got, np.float64(np.float32(0.1)) * (1 << 20), rtol=1e-7)


def test_positions_and_running_sums():
    x = np.round(normal(4, 35, 6))
    x[1, 2, 3] = np.nan
    for op in ("argmax", "argmin"):
        for axis in (None, 0, 1, 2):
            check(op, x, axis=axis, keepdims=False)
        check(op, np.round(normal(9, 1001)), axis=1, keepdims=True)
    for axis in range(3):
        check("cumsum", normal(4, 35, 6), axis=axis, atol=1e-5)


# -- resize, dropout, updates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_resize(method):
    for before, after, c in (((5, 4), (7, 3), 3), ((1, 1), (4, 5), 17), ((9, 8), (3, 16), 40), ((6, 6), (6, 6), 1)):
        check("resize", normal(2, *before, c), size=after, method=method, atol=1e-5)
        check("resize_grad", normal(2, *before, c), input_size=after, method=method, atol=1e-5)


def test_dropout_bits():
    for shape in ((), (3, 5), (0, 2), (61, 67), (4,)):
        x, state = normal(*shape), np.array([0x123456789ABCDEF0, 2**32 - 3], np.uint64)  # the counter crosses its first word
        got = planned("dropout", (x, state), {"rate": 0.4})
        want = reference("dropout", (x, state), {"rate": 0.4})
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(got[2], want[2])
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        check("dropout_grad", x, got[1], rate=0.4)


@pytest.mark.parametrize("size", [1, 33, 1000])
def test_updates(size):
    p, g, b, v = (normal(size, seed=i) for i in range(4))
    rate, step = np.asarray(0.1, np.float32), np.asarray(3, np.float32)
    for momentum, nesterov, decay, dampening in ((0.0, False, 0.0, 0.0), (0.9, False, 0.01, 0.5), (0.9, True, 0.01, 0.0)):
        attrs = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay, "dampening": dampening}
        check("sgd_update", p, g, b, rate, **attrs)
    for decoupled in (False, True):
        attrs = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1, "decoupled": decoupled}
        check("adam_update", p, g, b, np.abs(v), step, rate, rtol=1e-5, atol=1e-5, **attrs)
    check("moving_average", p, g, momentum=0.9)
