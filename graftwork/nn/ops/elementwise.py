"""Elementwise ops: one value out for each (broadcast) position."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ...errors import ConfigError, DTypeError
from ..op import BinaryOp, Op, Sample, UnaryOp
from ..tensor import FLOATS, Tensor, as_dtype
from .common import BOOL, broadcast, normal, raise_mixed, require_floats, require_shape, scalar, unbroadcast

# -- shape rules -----------------------------------------------------------------------------------------------------


def _unary_floats(name):
    def infer(x, **attrs):
        if x.dtype not in FLOATS:
            raise DTypeError(f"{name}: got dtype {x.dtype}, expected a floating one; use x.astype('float32')")
        return x.shape, x.dtype

    return infer


def _unary_any(x, **attrs):
    return x.shape, x.dtype


def _binary(name, result=None, needs=None):
    def infer(a, b):
        if a.dtype is not b.dtype and a.dtype != b.dtype:
            raise_mixed(name, (a, b))
        dtype = a.dtype
        if needs is not None and dtype.kind not in needs:
            raise DTypeError(f"{name}: got dtype {dtype}, which it does not take; convert with x.astype(...)")
        shape = a.shape
        if shape != b.shape:
            shape = broadcast(name, shape, b.shape)
        return shape, result or dtype

    return infer


def _cost(*arrays, **attrs):
    return max(math.prod(a.shape) for a in arrays)


# -- samples ---------------------------------------------------------------------------------------------------------


def _unary_samples(positive=False, **attrs):
    def samples(rng):
        for shape in ((3, 4), (2, 3, 5), (), (0, 3)):
            x = normal(rng, *shape)
            yield Sample((np.abs(x) + 0.3 if positive else x,), attrs)

    return samples


def _binary_samples(positive=False, smooth=True):
    def samples(rng):
        for sa, sb in (((3, 4), (3, 4)), ((2, 3, 4), (4,)), ((3, 1), (1, 5)), ((), (2, 2)), ((0, 3), (1, 3))):
            a, b = normal(rng, *sa), normal(rng, *sb)
            yield Sample((np.abs(a) + 0.3, np.abs(b) + 0.3) if positive else (a, b), {}, smooth)

    return samples


# -- unary -----------------------------------------------------------------------------------------------------------


def _unary(name, vjp, doc, *, ufunc=None, keeps_output=False, keeps_inputs=True, positive=False, integers=False):
    return UnaryOp(
        name,
        ufunc,
        infer=_unary_any if integers else _unary_floats(name),
        vjp=vjp,
        keeps_inputs=keeps_inputs,
        keeps_output=keeps_output,
        cost=_cost,
        samples=_unary_samples(positive),
        doc=doc,
    )


def _flat(name, doc):
    """Piecewise constant: the gradient is zero wherever it exists."""
    return _unary(name, lambda g, out, x: (None,), doc, keeps_inputs=False)


negative = _unary("negative", lambda g, out, x: (negative(g),), "-x", keeps_inputs=False, integers=True, ufunc=np.negative)
abs = _unary("abs", lambda g, out, x: (multiply(g, sign(x)),), "Absolute value.", integers=True, ufunc=np.abs)
exp = _unary("exp", lambda g, y, x: (multiply(g, y),), "e to the x.", keeps_output=True, keeps_inputs=False, ufunc=np.exp)
log = _unary("log", lambda g, out, x: (divide(g, x),), "Natural logarithm.", positive=True, ufunc=np.log)
sqrt = _unary(
    "sqrt",
    lambda g, y, x: (divide(g, y + y),),
    "Square root.",
    keeps_output=True,
    keeps_inputs=False,
    positive=True,
    ufunc=np.sqrt,
)
rsqrt = _unary(
    "rsqrt", lambda g, y, x: (multiply(g, y * y * y) * -0.5,), "1 / sqrt(x).",
    keeps_output=True, keeps_inputs=False, positive=True,
)  # fmt: skip
square = _unary("square", lambda g, out, x: (multiply(g, x + x),), "x * x", integers=True, ufunc=np.square)
reciprocal = _unary(
    "reciprocal", lambda g, y, x: (negative(multiply(g, y * y)),), "1 / x",
    keeps_output=True, keeps_inputs=False, positive=True,
)  # fmt: skip
sin = _unary("sin", lambda g, out, x: (multiply(g, cos(x)),), "Sine of x in radians.", ufunc=np.sin)
cos = _unary("cos", lambda g, out, x: (negative(multiply(g, sin(x))),), "Cosine of x in radians.", ufunc=np.cos)
erf = _unary("erf", lambda g, out, x: (multiply(g, exp(negative(square(x)))) * (2 / math.sqrt(math.pi)),), "Error function.")
tanh = _unary(
    "tanh",
    lambda g, y, x: (multiply(g, 1.0 - square(y)),),
    "Hyperbolic tangent.",
    keeps_output=True,
    keeps_inputs=False,
    ufunc=np.tanh,
)
log1p = _unary("log1p", lambda g, out, x: (divide(g, x + 1.0),), "log(1 + x), exact near 0.", positive=True, ufunc=np.log1p)
expm1 = _unary("expm1", lambda g, y, x: (multiply(g, y + 1.0),), "exp(x) - 1, exact near 0.",
               keeps_output=True, keeps_inputs=False, ufunc=np.expm1)  # fmt: skip
sign = _flat("sign", "-1, 0 or 1 by the sign of x; its gradient is zero.")
floor = _flat("floor", "Largest integer not above x; its gradient is zero.")
ceil = _flat("ceil", "Smallest integer not below x; its gradient is zero.")
round = _flat("round", "Nearest integer, halves to even; its gradient is zero.")

sigmoid = _unary(
    "sigmoid", lambda g, y, x: (multiply(g, y * (1.0 - y)),), "1 / (1 + exp(-x)), without overflow.",
    keeps_output=True, keeps_inputs=False,
)  # fmt: skip
softplus = _unary("softplus", lambda g, out, x: (multiply(g, sigmoid(x)),), "log(1 + exp(x)), without overflow.")


def _silu_vjp(g, y, x):
    s = sigmoid(x)
    return (multiply(g, s + y * (1.0 - s)),)


silu = _unary("silu", _silu_vjp, "x * sigmoid(x) (also called swish).", keeps_output=True)


def _inside(x: Tensor, low: float, high: float) -> Tensor:
    """1 where low < x < high, else 0, in x's dtype."""
    return logical_and(x > low, x < high).astype(x.dtype)


hard_sigmoid = _unary(
    "hard_sigmoid", lambda g, out, x: (multiply(g, _inside(x, -3.0, 3.0)) * (1 / 6),),
    "relu6(x + 3) / 6 (as in Keras 3 and PyTorch).",
)  # fmt: skip


def _hard_swish_vjp(g, out, x):
    slope = hard_sigmoid(x) + x * _inside(x, -3.0, 3.0) * (1 / 6)
    return (multiply(g, slope),)


hard_swish = _unary("hard_swish", _hard_swish_vjp, "x * relu6(x + 3) / 6 (MobileNetV3).")


def _gradient_op(name, doc, **attrs):
    """Backward pass of a rectifier, from the output: linear in g, so it is its own gradient."""

    def infer(g, y, **attrs):
        require_floats(name, g, y)
        require_shape(name, "the gradient", g, y.shape)
        return y.shape, y.dtype

    def samples(rng):
        for shape in ((3, 4), (2, 3, 3, 2), (0, 2)):
            yield Sample((normal(rng, *shape), np.maximum(normal(rng, *shape), 0)), attrs, smooth=not attrs)

    return Op(
        name,
        infer=infer,
        vjp=lambda gg, out, g, y, **attrs: (op_by_name[name](gg, y, **attrs), None),
        cost=_cost,
        samples=lambda rng: (Sample(s.arrays, attrs, False) for s in samples(rng)),
        doc=doc,
    )


relu_grad = _gradient_op("relu_grad", "g where y > 0, else 0.")
relu6_grad = _gradient_op("relu6_grad", "g where 0 < y < 6, else 0.")
leaky_relu_grad = _gradient_op("leaky_relu_grad", "g where y > 0, else alpha * g.", alpha=0.2)
op_by_name = {op.name: op for op in (relu_grad, relu6_grad, leaky_relu_grad)}

relu = _unary("relu", lambda g, y, x: (relu_grad(g, y),), "max(x, 0)", keeps_output=True, keeps_inputs=False,
              ufunc=partial(np.maximum, 0.0))  # fmt: skip
relu6 = _unary("relu6", lambda g, y, x: (relu6_grad(g, y),), "min(max(x, 0), 6)", keeps_output=True, keeps_inputs=False)

LEAKY_RELU = Op(
    "leaky_relu",
    infer=_unary_floats("leaky_relu"),
    vjp=lambda g, y, x, alpha: (leaky_relu_grad(g, y, alpha=alpha),),
    keeps_inputs=False,
    keeps_output=True,
    cost=_cost,
    samples=_unary_samples(alpha=0.2),
)


def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """x where positive, else alpha * x (alpha >= 0)."""
    if alpha < 0:
        raise ConfigError(f"leaky_relu: alpha={alpha}, expected at least 0")
    return LEAKY_RELU(x, alpha=float(alpha))


def _elu_vjp(g, y, x, alpha):
    return (where(x > 0.0, g, g * (y + alpha)),)


ELU = Op("elu", infer=_unary_floats("elu"), vjp=_elu_vjp, keeps_output=True, cost=_cost, samples=_unary_samples(alpha=1.0))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where positive, else alpha * (exp(x) - 1)."""
    return ELU(x, alpha=float(alpha))


def _gelu_vjp(g, out, x, approximate):
    if approximate:  # derivative of x/2 (1 + tanh u), u = c (x + 0.044715 x^3)
        c = math.sqrt(2 / math.pi)
        t = tanh((x + square(x) * x * 0.044715) * c)
        slope = (t + 1.0) * 0.5 + x * 0.5 * (1.0 - square(t)) * (square(x) * (3 * 0.044715) + 1.0) * c
    else:  # Phi(x) + x phi(x)
        slope = (erf(x * math.sqrt(0.5)) + 1.0) * 0.5 + x * exp(square(x) * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (multiply(g, slope),)


def _gelu_samples(rng):
    yield from _unary_samples(approximate=False)(rng)
    yield from _unary_samples(approximate=True)(rng)


GELU = Op("gelu", infer=_unary_floats("gelu"), vjp=_gelu_vjp, cost=_cost, samples=_gelu_samples)


def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """Gaussian error linear unit, x * Phi(x) (Hendrycks and Gimpel 2016); `approximate` uses the tanh form."""
    return GELU(x, approximate=bool(approximate))


def _clip_vjp(g, out, x, low, high):
    kept = None
    for bound, compare in ((low, greater_equal), (high, less_equal)):
        if bound is not None:
            inside = compare(x, scalar(bound, x))
            kept = inside if kept is None else logical_and(kept, inside)
    return (multiply(g, kept.astype(g.dtype)),)


CLIP = Op("clip", infer=_unary_any, vjp=_clip_vjp, cost=_cost, samples=_unary_samples(low=-0.5, high=0.8))


def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to [low, high]; None leaves that side open. The gradient is 1 inside and on the bounds, else 0."""
    if low is None and high is None:
        return x
    if low is not None and high is not None and low > high:
        raise ConfigError(f"clip: low={low} is above high={high}")
    return CLIP(x, low=low, high=high)


def _cast_infer(x, dtype):
    return x.shape, as_dtype(dtype)


def _cast_vjp(g, out, x, dtype):
    return (g.astype(x.dtype),) if x.dtype in FLOATS and g.dtype in FLOATS else (None,)


cast = Op("cast", infer=_cast_infer, vjp=_cast_vjp, keeps_inputs=False, cost=_cost,
          samples=lambda rng: (Sample((normal(rng, 3, 4),), {"dtype": d}, False) for d in ("float64", "int32", "bool")),
          doc="x converted to `dtype` (its name).")  # fmt: skip


# -- binary ----------------------------------------------------------------------------------------------------------


def _add_vjp(g, out, a, b):
    return unbroadcast(g, a.shape), unbroadcast(g, b.shape)


def _multiply_vjp(g, out, a, b):
    return lambda: unbroadcast(multiply(g, b), a.shape), lambda: unbroadcast(multiply(g, a), b.shape)


def _power_vjp(g, y, a, b):
    return (
        lambda: unbroadcast(g * b * power(a, b - 1.0), a.shape),
        lambda: unbroadcast(g * y * log(where(a > 0.0, a, scalar(1.0, a))), b.shape),
    )


def _pick_vjp(compare):
    """Maximum and minimum: ties share the gradient equally."""

    def vjp(g, out, a, b):
        tie = equal(a, b).astype(g.dtype) * 0.5
        first = compare(a, b).astype(g.dtype) + tie
        return lambda: unbroadcast(g * first, a.shape), lambda: unbroadcast(g * (1.0 - first), b.shape)

    return vjp


add = BinaryOp("add", np.add, infer=_binary("add"), vjp=_add_vjp, keeps_inputs=False, cost=_cost, samples=_binary_samples(),
         doc="a + b, broadcast.")  # fmt: skip
subtract = BinaryOp(
    "subtract", np.subtract, infer=_binary("subtract", needs="iuf"),
    vjp=lambda g, out, a, b: (unbroadcast(g, a.shape), lambda: unbroadcast(negative(g), b.shape)),
    keeps_inputs=False, cost=_cost, samples=_binary_samples(), doc="a - b, broadcast.",
)  # fmt: skip
multiply = BinaryOp("multiply", np.multiply, infer=_binary("multiply"), vjp=_multiply_vjp, cost=_cost,
                    samples=_binary_samples(),
              doc="a * b, broadcast.")  # fmt: skip
divide = BinaryOp(
    "divide", np.divide, infer=_binary("divide", needs="f"),
    vjp=lambda g, y, a, b: (
        lambda: unbroadcast(divide(g, b), a.shape), lambda: unbroadcast(negative(g * y / b), b.shape)
    ),
    keeps_output=True, cost=_cost, samples=_binary_samples(), doc="a / b, broadcast; floating dtypes only.",
)  # fmt: skip
power = Op("power", infer=_binary("power", needs="iuf"), vjp=_power_vjp, keeps_output=True, cost=_cost,
           samples=_binary_samples(positive=True), doc="a to the b, broadcast; b is differentiated for a > 0.")  # fmt: skip
maximum = BinaryOp("maximum", np.maximum, infer=_binary("maximum"), vjp=_pick_vjp(lambda a, b: greater(a, b)), cost=_cost,
             samples=_binary_samples(), doc="Larger of a and b; NaN if either is.")  # fmt: skip
minimum = BinaryOp("minimum", np.minimum, infer=_binary("minimum"), vjp=_pick_vjp(lambda a, b: less(a, b)), cost=_cost,
             samples=_binary_samples(), doc="Smaller of a and b; NaN if either is.")  # fmt: skip


def _comparison(name, doc):
    def samples(rng):
        for s in _binary_samples(smooth=False)(rng):
            yield Sample((np.round(s.arrays[0]), np.round(s.arrays[1])), {}, False)

    return Op(name, infer=_binary(name, result=BOOL), vjp=None, cost=_cost, samples=samples, doc=doc)


equal = _comparison("equal", "a == b")
not_equal = _comparison("not_equal", "a != b")
less = _comparison("less", "a < b")
less_equal = _comparison("less_equal", "a <= b")
greater = _comparison("greater", "a > b")
greater_equal = _comparison("greater_equal", "a >= b")


def _logical_infer(name):
    def infer(*arrays):
        for a in arrays:
            if a.dtype != BOOL:
                raise DTypeError(f"{name}: got dtype {a.dtype}, expected bool; compare first (x > 0)")
        return broadcast(name, *(a.shape for a in arrays)), BOOL

    return infer


def _logical(name, count, doc):
    def samples(rng):
        yield Sample(tuple(rng.random((3, 4)) > 0.5 for _ in range(count)), {}, False)

    return Op(name, infer=_logical_infer(name), cost=_cost, samples=samples, doc=doc)


logical_not = _logical("logical_not", 1, "Not x, for bool tensors.")
logical_and = _logical("logical_and", 2, "a and b, for bool tensors.")
logical_or = _logical("logical_or", 2, "a or b, for bool tensors.")


def _where_infer(cond, a, b):
    if cond.dtype != BOOL:
        raise DTypeError(f"where: the condition has dtype {cond.dtype}, expected bool; compare first (x > 0)")
    if a.dtype != b.dtype:
        raise_mixed("where", (a, b))
    return broadcast("where", cond.shape, a.shape, b.shape), a.dtype


def _where_vjp(g, out, cond, a, b):
    zero = scalar(0.0, g)
    return (
        None,
        lambda: unbroadcast(where(cond, g, zero), a.shape),
        lambda: unbroadcast(where(cond, zero, g), b.shape),
    )


def _where_samples(rng):
    for sc, sa, sb in (((3, 4), (3, 4), (3, 4)), ((2, 1), (2, 3), ()), ((0, 2), (2,), (1, 2))):
        yield Sample((rng.random(sc) > 0.5, normal(rng, *sa), normal(rng, *sb)))


where = Op("where", infer=_where_infer, vjp=_where_vjp, key=1, cost=_cost, samples=_where_samples,
           doc="a where the bool condition holds, else b; broadcast.")  # fmt: skip
