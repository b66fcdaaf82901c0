"""The NumPy and Numba kernels of the elementwise, reduce, softmax, index, norm, update and random families.

Every CPU kernel is held against the reference, evaluated in float64, on both sides of the size from which it runs in
parallel. Tolerances: float32 has 1.2e-7 relative per rounding, our polynomials err by 3e-7, and a chain of a few roundings
stays below 2e-6; float64 likewise below 1e-13. Where a sum cancels, the bound is relative to the terms, not to the result.
"""

import importlib
import itertools
import math
import warnings

import numpy as np
import pytest

SMALL, LARGE = (5, 7), (5, 113, 131)  # 74015 elements are above every PARALLEL_FROM
RTOL = {"float32": 2e-6, "float64": 1e-13}
DTYPES = ("float32", "float64")
UNARY = [
    "negative", "abs", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "tanh", "sigmoid",
    "relu", "relu6", "silu", "hard_swish", "hard_sigmoid", "softplus", "log1p", "expm1", "sign", "floor", "ceil",
    "round",
]  # fmt: skip
POSITIVE = {"log", "sqrt", "rsqrt", "log1p"}
WITH_ATTRIBUTES = [
    ("leaky_relu", {"alpha": 0.2}),
    ("elu", {"alpha": 0.7}),
    ("gelu", {"approximate": True}),
    ("gelu", {"approximate": False}),
    ("clip", {"low": -0.5, "high": None}),
    ("clip", {"low": None, "high": 1.25}),
    ("clip", {"low": -1.0, "high": 1.0}),
    ("clip", {"low": None, "high": None}),
]
ARITHMETIC = ["add", "subtract", "multiply", "divide", "power", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]


def kernel(backend, family, op):
    return getattr(importlib.import_module(f"graftwork.kernels.{backend}.{family}"), op)


def both(family, op, arrays, shapes_dtypes, **attrs):
    """Run the CPU kernel as given and the reference in float64 -> two lists of outputs."""

    def run(backend, cast):
        ins = [cast(a) for a in arrays]
        outs = [np.empty(s, cast(np.empty(0, d)).dtype) for s, d in shapes_dtypes]
        for o in outs:
            o.fill(77)  # an output that is not written shows
        kernel(backend, family, op)(*ins, out=outs[0] if len(outs) == 1 else tuple(outs), **attrs)
        return outs

    wide = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a  # noqa: E731
    return run("cpu", lambda a: a), run("reference", wide)


def close(got, want, rtol, atol=None):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol if atol is None else atol)


def normal(seed, shape, dtype="float32", scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def strided(x):
    """The same values in memory that is not contiguous."""
    base = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    base[..., ::2] = x
    return base[..., ::2]


# -- elementwise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op, attrs", [(op, {}) for op in UNARY] + WITH_ATTRIBUTES)
def test_unary_matches_reference(op, attrs, dtype):
    for shape in ((), (0, 3), SMALL) + ((LARGE,) if dtype == "float32" else ()):
        x = np.asarray(normal(1, shape, dtype))
        x = np.abs(x) + x.dtype.type(0.01) if op in POSITIVE else x
        for source in (x, strided(x)) if x.ndim and x.size else (x,):
            (got,), (want,) = both("elementwise", op, [source], [(shape, dtype)], **attrs)
            close(got, want, RTOL[dtype])


@pytest.mark.parametrize("op", ["relu", "sigmoid", "tanh", "sqrt"])
def test_large_float64(op):
    x = np.abs(normal(2, LARGE, "float64"))
    (got,), (want,) = both("elementwise", op, [x], [(LARGE, "float64")])
    close(got, want, RTOL["float64"])


@pytest.mark.parametrize("size", [16, 70000])
@pytest.mark.parametrize(
    "op",
    ["exp", "tanh", "erf", "sigmoid", "relu", "relu6",
     "silu", "hard_sigmoid", "softplus", "gelu", "elu", "sign", "sqrt"],
)  # fmt: skip
def test_special_values(op, size):
    """NaN stays NaN and infinities go where the limit is, without a warning and on either path."""
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 150.0, -150.0, 1e-30], np.float32)
    if op in ("silu", "gelu"):  # -inf * 0 is NaN in their formulas
        values[2] = -150
    x = np.resize(np.abs(values) if op == "sqrt" else values, size)
    attrs = {"gelu": {"approximate": True}, "elu": {"alpha": 1.0}}.get(op, {})
    with warnings.catch_warnings():
        if op != "exp":  # NumPy rightly reports that e^150 overflows float32
            warnings.simplefilter("error")
        got = np.empty_like(x)
        with np.errstate(over="ignore" if op == "exp" else "warn"):
            kernel("cpu", "elementwise", op)(x, out=got, **attrs)
    want = np.empty_like(x)
    kernel("reference", "elementwise", op)(x, out=want, **attrs)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("op, low, high", [("exp", -86, 88), ("tanh", -10, 10), ("erf", -5, 5)])
def test_float32_polynomials_over_their_range(op, low, high):
    x = np.linspace(low, high, 200_003, dtype=np.float32)
    (got,), (want,) = both("elementwise", op, [x], [(x.shape, "float32")])
    assert np.max(np.abs(got / np.where(want == 0, 1, want) - (want != 0))) < 4e-7  # the bound that functions.py states


@pytest.mark.parametrize("op", ARITHMETIC)
def test_binary_matches_reference(op):
    cases = [
        (SMALL, SMALL), (SMALL, (7,)), ((3, 1), (1, 5)), ((), (4,)), ((0, 3), (3,)),
        (LARGE, LARGE), (LARGE, (131,)), ((131,), LARGE), (LARGE, ()), ((1,), LARGE), (LARGE, (113, 1)),
    ]  # fmt: skip
    for sa, sb in cases:
        for dtype in DTYPES if math.prod(sa) < 100 and math.prod(sb) < 100 else ("float32",):
            a, b = (np.asarray(np.abs(normal(i, s, dtype, 1)) + np.dtype(dtype).type(0.1)) for i, s in enumerate((sa, sb)))
            shape = np.broadcast_shapes(sa, sb)
            (got,), (want,) = both("elementwise", op, [a, b], [(shape, dtype)])
            close(got, want, RTOL[dtype])
    a, b = strided(normal(3, LARGE)), np.abs(normal(4, LARGE)) + 1
    (got,), (want,) = both("elementwise", op, [np.abs(a), b], [(LARGE, "float32")])
    close(got, want, RTOL["float32"])


@pytest.mark.parametrize("op", ["add", "subtract", "multiply", "maximum", "minimum"])
def test_integers(op):
    a, b = np.arange(-20, 20, dtype=np.int32), np.arange(40, dtype=np.int32) % 7
    (got,), (want,) = both("elementwise", op, [a, b], [(a.shape, "int32")])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [9, 70000])
def test_maximum_minimum_propagate_nan(size):
    a, b = (np.resize(np.array(v, np.float32), size) for v in ([np.nan, 1, 2], [1, np.nan, 3]))
    for op, third in (("maximum", 3), ("minimum", 2)):
        got = np.empty_like(a)
        kernel("cpu", "elementwise", op)(a, b, out=got)
        assert np.isnan(got[:2]).all() and got[2] == third


@pytest.mark.parametrize("op", COMPARISONS)
def test_comparisons(op):
    a, b = np.round(normal(5, SMALL)), np.round(normal(6, (7,)))
    a[0, 0] = np.nan
    for pair in ((a, b), (a.astype(np.float64), b.astype(np.float64))):
        (got,), (want,) = both("elementwise", op, pair, [(SMALL, "bool")])
        np.testing.assert_array_equal(got, want)


def test_logic_where_cast():
    a, b = normal(7, SMALL) > 0, normal(8, (7,)) > 0
    for op, arrays in (("logical_and", (a, b)), ("logical_or", (a, b)), ("logical_not", (a,))):
        (got,), (want,) = both("elementwise", op, arrays, [(SMALL, "bool")])
        np.testing.assert_array_equal(got, want)
    (got,), (want,) = both("elementwise", "where", (b, normal(1, SMALL), normal(2, (5, 1))), [(SMALL, "float32")])
    np.testing.assert_array_equal(got, want)
    for target in ("int32", "bool", "uint8", "float16"):
        got = np.empty(SMALL, target)
        kernel("cpu", "elementwise", "cast")(np.abs(normal(3, SMALL)), out=got, dtype=target)
        np.testing.assert_array_equal(got, np.abs(normal(3, SMALL)).astype(target))


@pytest.mark.parametrize("op, attrs", [("relu_grad", {}), ("relu6_grad", {}), ("leaky_relu_grad", {"alpha": 0.1})])
def test_rectifier_gradients(op, attrs):
    for shape, dtype in itertools.product(((0, 2), SMALL, LARGE), DTYPES):
        g, y = normal(1, shape, dtype), np.clip(normal(2, shape, dtype), -1, 6)
        if y.size:
            g.flat[0], y.flat[0] = np.inf, 0.0  # blocked, so 0 and not inf * 0
        for pair in ((g, y), (strided(g), y)) if y.size else ((g, y),):
            (got,), (want,) = both("elementwise", op, pair, [(shape, dtype)], **attrs)
            close(got, want, RTOL[dtype])


def test_rounding_is_half_to_even_and_sign_keeps_nan():
    got = np.empty(5, np.float32)
    kernel("cpu", "elementwise", "round")(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), out=got)
    np.testing.assert_array_equal(got, [0, 2, 2, 0, -2])
    kernel("cpu", "elementwise", "sign")(np.array([np.nan, 2, -3, 0, np.inf], np.float32), out=got)
    np.testing.assert_array_equal(got, [np.nan, 1, -1, 0, 1])


@pytest.mark.parametrize("op", ["gelu", "silu", "softplus", "hard_swish", "hard_sigmoid", "elu", "leaky_relu", "erf"])
def test_activations_against_torch(op):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    name = {"hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid"}.get(op, op)
    attrs = {"gelu": {"approximate": False}, "elu": {"alpha": 1.0}, "leaky_relu": {"alpha": 0.01}}.get(op, {})
    x = normal(9, LARGE, scale=2)
    got = np.empty_like(x)
    kernel("cpu", "elementwise", op)(x, out=got, **attrs)
    want = (torch.erf if op == "erf" else getattr(functional, name))(torch.from_numpy(x)).numpy()
    close(got, want, 2e-6)


# -- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min", "prod"])
def test_reductions_match_reference(op):
    cases = [((5, 7), (0,)), ((5, 7), (1,)), ((3, 4, 5), (0, 2)), ((2, 3), ()), ((), ()),
             ((2, 40, 41, 19), (0, 1, 2)), ((7, 25, 25, 11), (1, 2)), ((3, 20000), (0,)), ((41000,), (0,)),
             ((300, 200), (1,)), ((2, 150, 3, 90), (0, 2)), ((9, 5000), (0, 1))]  # fmt: skip
    for (shape, axis), keepdims, dtype in itertools.product(cases, (False, True), DTYPES):
        x = np.asarray(normal(1, shape, dtype, 1.0))
        x = 1 + x / 1000 if op == "prod" else x  # thousands of factors stay finite
        x = x.astype(dtype)
        kept = tuple(1 if i in axis else n for i, n in enumerate(shape))
        target = kept if keepdims else tuple(n for i, n in enumerate(shape) if i not in axis)
        (got,), (want,) = both("reduce", op, [x], [(target, dtype)], axis=axis, keepdims=keepdims)
        count = math.prod(shape[i] for i in axis)
        # A naive sum of n terms errs by up to n units; NumPy's pairwise and our float64 sums stay near sqrt(n) of them.
        spread = math.sqrt(count) if op != "mean" else 1
        rtol = RTOL[dtype] * (math.sqrt(count) if op == "prod" else 1)
        close(got, want, rtol, atol=RTOL[dtype] * spread)


def test_large_sums_do_not_lose_digits():
    """A float32 running sum of 0.1 over 2^20 rows is off by parts in a thousand; float64 accumulation is not."""
    x = np.full((1 << 20, 3), 0.1, np.float32)
    got = np.empty(3, np.float32)
    kernel("cpu", "reduce", "sum")(x, out=got, axis=(0,), keepdims=False)
    close(got, np.full(3, np.float64(np.float32(0.1)) * (1 << 20)), 1e-7)


def test_reductions_of_nothing_nan_and_strides():
    x = np.zeros((0, 3), np.float32)
    for op, want in (("sum", 0), ("prod", 1), ("mean", np.nan)):
        for backend in ("cpu", "reference"):
            got = np.full(3, 7, np.float32)
            kernel(backend, "reduce", op)(x, out=got, axis=(0,), keepdims=False)
            np.testing.assert_array_equal(got, np.full(3, want))
    x = normal(1, (200, 300))
    x[3, 4] = np.nan
    for op in ("sum", "mean", "max", "min"):
        (got,), (want,) = both("reduce", op, [x], [((300,), "float32")], axis=(0,), keepdims=False)
        assert np.isnan(got[4]) and np.isnan(got).sum() == 1
        (got,), (want,) = both("reduce", op, [strided(x).T], [((200,), "float32")], axis=(0,), keepdims=False)
        close(got, want, 1e-5)
    i = np.arange(12, dtype=np.int64).reshape(3, 4)
    for op in ("sum", "max", "min", "prod"):
        (got,), (want,) = both("reduce", op, [i], [((4,), "int64")], axis=(0,), keepdims=False)
        np.testing.assert_array_equal(got, want)


def test_arg_extremes_and_cumsum():
    x = np.round(normal(1, (4, 5, 6)))
    x[1, 2, 3] = np.nan
    for op, axis, keepdims in itertools.product(("argmax", "argmin"), (None, 0, 1, 2), (False, True)):
        shape = np.empty(x.shape).argmax(axis, keepdims=keepdims).shape
        (got,), (want,) = both("reduce", op, [x], [(shape, "int64")], axis=axis, keepdims=keepdims)
        np.testing.assert_array_equal(got, want)
    for axis, dtype in itertools.product((0, 1, 2), DTYPES):
        y = normal(2, (4, 5, 6), dtype)
        (got,), (want,) = both("reduce", "cumsum", [y], [(y.shape, dtype)], axis=axis)
        close(got, want, RTOL[dtype], atol=10 * RTOL[dtype])


# -- softmax ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "softmax_grad", "log_softmax_grad"])
def test_softmax_family(op, dtype):
    for shape, axis in (((3, 5), 1), ((3, 5), 0), ((0, 3), 1), ((97, 101), 1), ((11, 37, 29), 1), ((1, 9001), 1)):
        x = normal(1, shape, dtype, 10)
        y = normal(2, shape, dtype, 1)
        if op == "softmax_grad":
            y = np.abs(y) / max(1, shape[axis])
        arrays = [x] if not op.endswith("_grad") else [x, y]
        for source in (arrays, [strided(a) for a in arrays]) if x.size else (arrays,):
            (got,), (want,) = both("softmax", op, source, [(shape, dtype)], axis=axis)
            close(got, want, 4 * RTOL[dtype], atol=40 * RTOL[dtype])  # values reach 50, and the sum cancels against them


@pytest.mark.parametrize("rows", [2, 200])
def test_softmax_of_huge_and_nan_rows(rows):
    x = np.resize(np.array([[1e4, 0, -1e4, 1e4], [np.nan, 1, 2, 3]], np.float32), (rows, 4)).repeat(11, axis=1)
    got = np.empty_like(x)
    kernel("cpu", "softmax", "softmax")(x, out=got, axis=1)
    close(got[0].reshape(4, 11), [[1 / 22] * 11, [0] * 11, [0] * 11, [1 / 22] * 11], 1e-6)
    assert np.isnan(got[1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(dtype, smoothing):
    torch = pytest.importorskip("torch")
    for rows, classes, kind in ((4, 5, np.int64), (0, 3, np.int64), (101, 103, np.int32)):
        logits, labels = normal(1, (rows, classes), dtype), np.arange(rows).astype(kind) % classes
        (got,), (want,) = both("softmax", "cross_entropy", [logits, labels], [((rows,), dtype)], label_smoothing=smoothing)
        close(got, want, 5 * RTOL[dtype], atol=5 * RTOL[dtype])
        theirs = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits), torch.from_numpy(labels).long(), reduction="none", label_smoothing=smoothing
        )
        close(got, theirs.numpy(), 5 * RTOL[dtype], atol=5 * RTOL[dtype])
    for backend in ("cpu", "reference"):
        with pytest.raises(IndexError, match=r"label 3 .* 3 classes"):
            kernel(backend, "softmax", "cross_entropy")(
                np.zeros((2, 3)), np.array([0, 3]), out=np.empty(2), label_smoothing=0.0
            )


# -- index ------------------------------------------------------------------------------------------------------------


def test_gather_and_its_adjoint():
    for shape, axis, idx_shape in (((5, 3), 0, (4,)), ((2, 5, 3), 1, (2, 2)), ((4, 6), 1, ()), ((50, 300), 0, (70,)),
                                   ((3, 40, 80), 1, (9, 9)), ((5, 3), 0, (0,)), ((7, 2000), 0, (9,))):  # fmt: skip
        for kind, dtype in ((np.int64, "float32"), (np.int32, "float64"), (np.int64, "int32")):
            x = normal(1, shape, "float64", 10).astype(dtype)
            idx = np.asarray(np.random.default_rng(2).integers(-shape[axis], shape[axis], idx_shape).astype(kind))
            target = (*shape[:axis], *idx_shape, *shape[axis + 1 :])
            (got,), (want,) = both("index", "gather", [x, idx], [(target, dtype)], axis=axis)
            np.testing.assert_array_equal(got, want)
            g = np.asarray(normal(3, target, "float64", 10).astype(dtype))
            attrs = {"axis": axis, "size": shape[axis]}
            (got,), (want,) = both("index", "scatter_add", [g, idx], [(shape, dtype)], **attrs)
            close(got, want, 2e-6, atol=2e-5)  # up to ten terms of size 30


def test_gather_one_hot_out_of_range():
    for backend in ("cpu", "reference"):
        with pytest.raises(IndexError, match=r"index 5 .* size 5"):
            kernel(backend, "index", "gather")(np.zeros(5), np.array([0, 5]), out=np.empty(2), axis=0)
        with pytest.raises(IndexError, match=r"index -6 .* size 5"):
            kernel(backend, "index", "scatter_add")(np.zeros(1), np.array([-6]), out=np.empty(5), axis=0, size=5)
        out = np.full((3, 3), np.nan)
        kernel(backend, "index", "one_hot")(np.array([-1, 2, 3]), out=out, depth=3, dtype="float64")
        np.testing.assert_array_equal(out, [[0, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_one_hot_concat_pad_slice_scatter():
    for idx, dtype in ((np.array([[0, 2], [1, 1]]), "float32"), (np.zeros(0, np.int32), "int64"), (np.array(1), "bool")):
        (got,), (want,) = both("index", "one_hot", [idx], [((*idx.shape, 3), dtype)], depth=3, dtype=dtype)
        np.testing.assert_array_equal(got, want)
    xs = [normal(i, (2, n, 3)) for i, n in enumerate((4, 0, 1))]
    (got,), (want,) = both("index", "concat", xs, [((2, 5, 3), "float32")], axis=1)
    np.testing.assert_array_equal(got, want)
    for x, widths in ((normal(1, (2, 3)), ((1, 2), (0, 1))), (normal(1, (0, 2)), ((2, 0), (1, 1))),
                      (np.arange(6).reshape(2, 3), ((0, 0), (0, 0)))):  # fmt: skip
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, widths, strict=True))
        attrs = {"widths": widths, "value": 4.0, "mode": "constant"}
        (got,), (want,) = both("index", "pad", [x], [(shape, x.dtype)], **attrs)
        np.testing.assert_array_equal(got, want)
    index = (slice(None, None, -2), 1)
    attrs = {"shape": (5, 3, 4), "index": index}
    (got,), (want,) = both("index", "slice_scatter", [normal(1, (3, 4))], [((5, 3, 4), "float32")], **attrs)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got[::-2, 1], normal(1, (3, 4)))


# -- norm -------------------------------------------------------------------------------------------------------------

NORM_SHAPES = ((6, 3), (2, 4, 3, 5), (3, 30, 31, 17), (5000, 2), (2, 9000), (1, 4))


def norm_inputs(shape, dtype, offset=0.0):
    x = normal(1, shape, dtype, 2) + np.dtype(dtype).type(offset)
    gamma, beta = (normal(i, shape[-1:], dtype, 1) for i in (2, 3))
    return x, gamma, beta


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_norms_match_reference(shape, dtype):
    tol = 10 * RTOL[dtype]  # a rounding of x - mean is divided by the deviation
    x, gamma, beta = norm_inputs(shape, dtype)
    vector, rows = (shape[-1:], dtype), (shape[:-1], dtype)
    got, want = both("norm", "batch_norm_train", [x, gamma, beta], [(shape, dtype), vector, vector], epsilon=1e-3)
    for a, b in zip(got, want, strict=True):
        close(a, b, tol)
    mean, var = got[1:]
    (got,), (want,) = both("norm", "batch_norm", [strided(x), gamma, beta, mean, var], [(shape, dtype)], epsilon=1e-3)
    close(got, want, tol)
    got, want = both("norm", "layer_norm", [strided(x), gamma, beta], [(shape, dtype), rows, rows], epsilon=1e-3)
    for a, b in zip(got, want, strict=True):
        close(a, b, tol, atol=tol * max(1, np.abs(b).max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_norm_gradients_match_reference(shape, dtype):
    x, gamma, _ = norm_inputs(shape, dtype)
    g = normal(4, shape, dtype, 1)
    axes = tuple(range(len(shape) - 1))
    vector = (shape[-1:], dtype)
    batch = [g, x, gamma, x.mean(axes), x.var(axes)]
    row = [strided(g), x, gamma, x.mean(-1), 1 / np.sqrt(x.var(-1) + np.dtype(dtype).type(1e-3))]
    for op, arrays, attrs in (("batch_norm_grad", batch, {"epsilon": 1e-3}), ("layer_norm_grad", row, {})):
        got, want = both("norm", op, arrays, [(shape, dtype), vector, vector], **attrs)
        for a, b in zip(got, want, strict=True):  # sums of thousands of terms: relative to the largest result
            close(a, b, 20 * RTOL[dtype], atol=20 * RTOL[dtype] * max(1.0, np.abs(b).max()))


def test_batch_variance_survives_a_large_mean():
    """The textbook E[x^2] - E[x]^2 in float32 gives noise of size 1e3 here; shifting by a sample keeps six digits."""
    x = (normal(1, (3000, 4), "float64", 1) + 1e5).astype(np.float32)
    got, want = both("norm", "batch_norm_train", [x, np.ones(4, np.float32), np.zeros(4, np.float32)],
                     [(x.shape, "float32"), ((4,), "float32"), ((4,), "float32")], epsilon=1e-3)  # fmt: skip
    close(got[2], want[2], 2e-6)


def test_empty_norms():
    x, vectors = np.zeros((0, 3), np.float32), [np.ones(3, np.float32)] * 4
    kernel("cpu", "norm", "batch_norm")(x, *vectors, out=np.empty_like(x), epsilon=1e-3)
    outs = (np.empty_like(x), np.empty(0, np.float32), np.empty(0, np.float32))
    kernel("cpu", "norm", "layer_norm")(x, *vectors[:2], out=outs, epsilon=1e-3)
    grads = (np.empty_like(x), np.empty(3, np.float32), np.empty(3, np.float32))
    kernel("cpu", "norm", "layer_norm_grad")(x, x, vectors[0], *outs[1:], out=grads)
    np.testing.assert_array_equal(grads[1], np.zeros(3))


def test_layer_norm_against_torch():
    torch = pytest.importorskip("torch")
    x, gamma, beta = norm_inputs((50, 190), "float32")
    y, mean, rstd = np.empty_like(x), np.empty(50, np.float32), np.empty(50, np.float32)
    kernel("cpu", "norm", "layer_norm")(x, gamma, beta, out=(y, mean, rstd), epsilon=1e-3)
    want = torch.nn.functional.layer_norm(*map(torch.from_numpy, (x,)), (190,), *map(torch.from_numpy, (gamma, beta)), 1e-3)
    close(y, want.numpy(), 5e-6)


# -- updates ----------------------------------------------------------------------------------------------------------


def test_moving_average():
    for backend in ("cpu", "reference"):
        running = np.array([1, 2], np.float32)
        kernel(backend, "update", "moving_average")(running, np.array([3, 6], np.float32), out=None, momentum=0.75)
        np.testing.assert_array_equal(running, [1.5, 3.0])


SGD = [dict(zip(("momentum", "nesterov", "weight_decay", "dampening"), v, strict=True)) for v in
       ((0.0, False, 0.0, 0.0), (0.9, False, 0.01, 0.0), (0.9, True, 0.01, 0.0), (0.8, False, 0.0, 0.0))]  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [33, 10007])
@pytest.mark.parametrize("attrs", SGD)
def test_sgd_is_torch_sgd(attrs, size, backend):
    torch = pytest.importorskip("torch")
    param, buf = normal(1, size), np.zeros(size, np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(param.copy()))
    optimiser = torch.optim.SGD([theirs], lr=0.1, **attrs)
    for step in range(3):
        grad = normal(step + 2, size)
        theirs.grad = torch.from_numpy(grad.copy())
        optimiser.step()
        kernel(backend, "update", "sgd_update")(param, grad, buf, np.array(0.1, np.float32), out=None, **attrs)
    close(param, theirs.detach().numpy(), 5e-6)


def test_sgd_dampening_matches_reference():
    for size in (33, 10007):
        state = {b: [normal(1, size), normal(2, size), normal(3, size)] for b in ("cpu", "reference")}
        for backend, arrays in state.items():
            kernel(backend, "update", "sgd_update")(
                *arrays, np.array(0.1), out=None, momentum=0.9, nesterov=False, weight_decay=0.1, dampening=0.5
            )
        for got, want in zip(state["cpu"], state["reference"], strict=True):
            close(got, want, 2e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [33, 10007])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_is_torch_adam(decoupled, size, backend):
    torch = pytest.importorskip("torch")
    param, m, v = normal(1, size), np.zeros(size, np.float32), np.zeros(size, np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(param.copy()))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimiser = kind([theirs], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    attrs = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1, "decoupled": decoupled}
    for step in range(1, 4):
        grad = normal(step + 2, size)
        theirs.grad = torch.from_numpy(grad.copy())
        optimiser.step()
        kernel(backend, "update", "adam_update")(
            param, grad, m, v, np.array(step, np.float32), np.array(0.01, np.float32), out=None, **attrs
        )
    close(param, theirs.detach().numpy(), 5e-6)


# -- random -----------------------------------------------------------------------------------------------------------

# Known answers for philox4x32-10 that its authors publish with the Random123 library: counter, key, words.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("counter, key, words", PHILOX)
def test_philox_known_answers(counter, key, words):
    counter, key, words = (np.array([int(w, 16) for w in text.split()], np.uint64) for text in (counter, key, words))
    np.testing.assert_array_equal(kernel("reference", "random", "philox4x32")(counter[None], key)[0], words)
    assert list(kernel("cpu", "random", "philox4x32")(*counter, *key)) == list(words)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (0, 2), (), (101, 103), (7, 8, 4)])
def test_dropout_bits(shape, dtype):
    x = np.asarray(normal(1, shape, dtype))
    results = {}
    for backend in ("cpu", "reference"):
        state = np.array([0x123456789ABCDEF0, 2**32 - 3], np.uint64)  # the counter crosses its first word
        y, mask = np.empty(shape, dtype), np.empty(shape, np.uint8)
        kernel(backend, "random", "dropout")(x, state, out=(y, mask), rate=0.4)
        assert state[1] == 2**32 - 3 + math.ceil(x.size / 4)
        results[backend] = y, mask
    for got, want in zip(results["cpu"], results["reference"], strict=True):
        np.testing.assert_array_equal(got, want)
    y, mask = results["cpu"]
    close(y, x * mask / 0.6, RTOL[dtype])


def test_dropout_rate_and_gradient():
    g = normal(1, (300, 400))
    y, mask = np.empty_like(g), np.empty(g.shape, np.uint8)
    for rate in (0.0, 0.25, 1.0):
        kernel("cpu", "random", "dropout")(g, np.array([7, 0], np.uint64), out=(y, mask), rate=rate)
        assert abs(mask.mean() - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / g.size) + 1e-12  # five deviations
    kernel("cpu", "random", "dropout")(g, np.array([7, 0], np.uint64), out=(y, mask), rate=0.25)
    for part in (slice(None), slice(0, 2)):
        (got,), _ = both("random", "dropout_grad", [g[part], mask[part]], [(g[part].shape, "float32")], rate=0.25)
        np.testing.assert_array_equal(got, y[part])
