"""Float32 functions as generated code, for scalars and for vectors alike: no branches, no library calls where it can be helped.

Each takes and returns `vector.Value`s. The polynomials are fitted at Chebyshev nodes to the exact functions; relative errors
are below 4e-7 (two or three units in the last place). NaN and infinity go where they should.
"""

from __future__ import annotations

import math

from llvmlite import ir

from .vector import (
    Value,
    as_number,
    bits_of,
    exact_fma,
    fma,
    from_bits,
    greater_of,
    lesser_of,
    llvm,
    narrow,
    select,
    to_float,
    to_int,
    widen,
)


def polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    """Coefficients from the constant upwards (Horner's rule)."""
    *rest, last = coefficients
    value = x.constant(last)
    for c in reversed(rest):
        value = fma(value, x, x.constant(c))
    return value


def absolute(x: Value) -> Value:
    return llvm("fabs", x)


def square_root(x: Value) -> Value:
    return llvm("sqrt", x)


# -- exponentials ------------------------------------------------------------------------------------------------------

_LOWEST, _HIGHEST = -104.0, 89.0  # outside, e^x is 0 or infinite in float32
_GONE = -88.0  # e^x is below the smallest normal number
_LOG2_E = math.log2(math.e)
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2) - _LN2_HIGH
_EXP = (0.5, 0.16666667, 0.041666463, 0.0083332984, 0.0013933884, 0.00019899587)
_BIAS, _MANTISSA = 127, 23  # of float32's exponent, and the bits below it
_ROUNDER = 1.5 * 2.0**_MANTISSA  # added to a small float, it leaves the nearest integer in the low bits of the sum

_ROUNDER_BITS = 0x4B400000


def _power_of_two(n: Value) -> Value:
    """2^n from an integer in the low bits of n: whatever stands above is shifted out."""
    return from_bits((n << _MANTISSA) + (_BIAS << _MANTISSA))


def _reduced_exp(t: Value) -> tuple[Value, Value]:
    """(n, e^r - 1) with t = n ln 2 + r and |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2); n in the low bits of an int."""
    shifted = fma(t, t.constant(_LOG2_E), t.constant(_ROUNDER))
    n = shifted - _ROUNDER
    r = fma(n, n.constant(-_LN2_LOW), fma(n, n.constant(-_LN2_HIGH), t))
    return bits_of(shifted), fma(polynomial(r, _EXP) * r, r, r)


def _within(x: Value) -> Value:
    """x where e^x is neither 0 nor infinite; NaN stays."""
    x = select(x < _LOWEST, _LOWEST, x)
    return select(x > _HIGHEST, _HIGHEST, x)


def _scales(n: Value) -> tuple[Value, Value]:
    """2^n as two factors, because 2^n alone leaves float32 before e^x does."""
    n = n - _ROUNDER_BITS
    half = n >> 1
    return _power_of_two(half), _power_of_two(n - half)


def exp(x: Value) -> Value:
    n, y = _reduced_exp(_within(x))
    first, second = _scales(n)
    return fma(y, first, first) * second


def exp_negative(x: Value) -> Value:
    """e^x for x <= 0; 0 below the smallest normal number."""
    n, y = _reduced_exp(select(x < _GONE, _GONE, x))
    power = _power_of_two(n)
    return fma(y, power, power)


def expm1(x: Value) -> Value:
    """e^x - 1, exact near 0."""
    n, y = _reduced_exp(_within(x))
    first, second = _scales(n)
    power = first * second
    return select(x > 1.0, fma(y, first, first) * second - 1.0, fma(y, power, power - 1.0))


_LOG = (
    0.333333313, -0.24999997, 0.200007156, -0.166678026, 0.142490581, -0.124256872, 0.116854198, -0.114797339, 0.0697161183,
)  # fmt: skip
_SMALLEST_NORMAL, _RAISE = 2.0**-126, 23
_HALF_ROOT = 0x3F3504F3  # the bits of sqrt(1/2)


def log(x: Value) -> Value:
    """log(x) = e ln 2 + log(1 + f) with x = 2^e (1 + f) and 1 + f in [sqrt(1/2), sqrt(2))."""
    tiny = x < _SMALLEST_NORMAL
    bits = bits_of(select(tiny, x * 2.0**_RAISE, x)) - _HALF_ROOT
    e = to_float(bits >> _MANTISSA) - select(tiny, x.constant(float(_RAISE)), 0.0)
    f = from_bits((bits & bits.constant(0x7FFFFF)) + _HALF_ROOT) - 1.0
    square = f * f
    tail = fma(polynomial(f, _LOG) * f, square, fma(square, f.constant(-0.5), e * _LN2_LOW))
    y = fma(e, e.constant(_LN2_HIGH), f + tail)
    y = select(x < math.inf, y, x)  # infinity and NaN
    return select(x > 0.0, y, select(x == 0.0, y.constant(-math.inf), select(x != x, x, math.nan)))


def log1p(x: Value) -> Value:
    """log(1 + x), with what rounding 1 + x lost added back."""
    u = x + 1.0
    lost = x - (u - 1.0)
    inside = (u > 0.0) & (u < math.inf)
    return log(u) + select(inside, lost / u, 0.0)


_TANH = (1.0, -0.33333263, 0.1333115, -0.05372268, 0.02059568, -0.0056647751)
_TANH_NEAR = 0.625


def _with_sign(size: Value, x: Value) -> Value:
    return llvm("copysign", size, x)


def tanh(x: Value) -> Value:
    size = absolute(x)
    small = size < _TANH_NEAR
    inner = select(small, x, 0.0)  # powers of a large one would overflow
    near = inner * polynomial(inner * inner, _TANH)
    e = exp_negative(size * -2.0)
    return select(small, near, _with_sign((1.0 - e) / (e + 1.0), x))


# erf(x) = x P(x^2) for |x| <= 1, and 1 - e^-Q(|x|) beyond, where Q(t) = -log erfc(t).
_ERF = (1.1283791, -0.37612626, 0.11283597, -0.026854329, 0.0051893122, -0.00080188555, 7.8824974e-05)
_LOG_ERFC = (
    0.0007569686276838183, 1.125925898551941, 0.6390933394432068, 0.10331898182630539,
    -0.022621985524892807, 0.0034368676133453846, -0.0003175720339640975, 1.330939085164573e-05,
)  # fmt: skip
_ERF_ONE = 4.0  # erf(4) rounds to 1 in float32


def erf(x: Value) -> Value:
    size = absolute(x)
    small = size <= 1.0
    inner = select(small, x, 0.0)
    near = inner * polynomial(inner * inner, _ERF)
    t = select(size > _ERF_ONE, size.constant(_ERF_ONE), size)
    far = 1.0 - exp_negative(-polynomial(t, _LOG_ERFC))
    return select(small, near, _with_sign(far, x))


# -- circular functions ------------------------------------------------------------------------------------------------

_SIN = (-0.166666642, 0.00833273679, -0.000195853732)
_COS = (0.0416666642, -0.00138882909, 2.45454194e-05)
_QUARTER_HIGH = math.pi / 2
_QUARTER_LOW = 6.123233995736766e-17  # pi / 2 - float64(pi / 2)
_REDUCIBLE = 2.0**30  # quarter turns beyond do not fit int32


def _quarter_turns(x: Value) -> tuple[Value, Value]:
    """(q, r) with x = q pi/2 + r, |r| <= pi/4, reduced in float64."""
    wide = widen(select(absolute(x) < _REDUCIBLE, x, 0.0))
    q = llvm("floor", fma(wide, wide.constant(2 / math.pi), wide.constant(0.5)))
    r = fma(q, q.constant(-_QUARTER_LOW), exact_fma(q, q.constant(-_QUARTER_HIGH), wide))
    return to_int(q), narrow(r)


def _wave(x: Value, shift: int, library: str) -> Value:
    """sin(x + shift pi/2)."""
    q, r = _quarter_turns(x)
    q = q + shift
    square = r * r
    sine = fma(polynomial(square, _SIN) * square, r, r)
    cosine = fma(polynomial(square, _COS), square * square, fma(square, square.constant(-0.5), square.constant(1.0)))
    one, two = q.constant(1), q.constant(2)
    y = select((q & one) == 1, cosine, sine)
    y = select((q & two) == 2, -y, y)
    return _for_large(x, y, library)


def _for_large(x: Value, y: Value, library: str) -> Value:
    """y, but the C library's function where x is too large for the reduction above (rare, so that branches cost nothing)."""
    b = x.builder
    large = ~(absolute(x) < _REDUCIBLE)
    flags = large.ir
    if isinstance(flags.type, ir.VectorType):
        bits = ir.IntType(flags.type.count)
        flags = b.icmp_unsigned("!=", b.bitcast(flags, bits), ir.Constant(bits, 0))
    before = b.block
    with b.if_then(flags, likely=False):
        exact = select(large, llvm(library, x), y)
        inside = b.block
    chosen = b.phi(y.ir.type)
    chosen.add_incoming(y.ir, before)
    chosen.add_incoming(exact.ir, inside)
    return y.new(chosen)


def sin(x: Value) -> Value:
    return _wave(x, 0, "sin")


def cos(x: Value) -> Value:
    return _wave(x, 1, "cos")


# -- activations -------------------------------------------------------------------------------------------------------


def sigmoid(x: Value) -> Value:
    e = exp_negative(-absolute(x))  # e <= 1: nothing overflows
    return select(x >= 0.0, e.constant(1.0), e) / (e + 1.0)


def silu(x: Value) -> Value:
    return x * sigmoid(x)


def softplus(x: Value) -> Value:
    return relu(x) + log1p(exp_negative(-absolute(x)))


def relu(x: Value) -> Value:
    return select(x < 0.0, 0.0, x)


def relu6(x: Value) -> Value:
    return clip(x, x.constant(0.0), x.constant(6.0))


def clip(x: Value, low: Value, high: Value) -> Value:
    """x within [low, high]; NaN stays NaN."""
    x = select(x < low, low, x)
    return select(x > high, high, x)


def hard_sigmoid(x: Value) -> Value:
    return relu6(x + 3.0) * (1 / 6)


def hard_swish(x: Value) -> Value:
    return x * hard_sigmoid(x)


# Phi(-s) = e^-Q(s / sqrt 2) / 2 with the same Q as for erf, here fitted over all of [0, 6] to an absolute 1e-7 of erfc.
_LOG_ERFC_WIDE = (
    1.12838173, 0.636576295, 0.103016973, -0.0197655354, 0.000668009219, 0.00104402914, -0.000374759344, 6.43902677e-05,
    -5.74874684e-06, 2.12387505e-07,
)  # fmt: skip


def gelu(x: Value) -> Value:
    """x * Phi(x): from one tail of the normal distribution, so that nothing cancels."""
    t = absolute(x) * math.sqrt(0.5)
    inner = select(t > 6.0, 6.0, t)
    tail = exp_negative(-(polynomial(inner, _LOG_ERFC_WIDE) * inner)) * 0.5
    tail = select(t > 6.0, 0.0, tail)
    return x * select(x < 0.0, tail, 1.0 - tail)


def gelu_tanh(x: Value) -> Value:
    return x * 0.5 * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0)


def leaky_relu(x: Value, alpha: Value) -> Value:
    return select(x > 0.0, x, x * alpha)


def elu(x: Value, alpha: Value) -> Value:
    return select(x > 0.0, x, expm1(x) * alpha)


# -- plain arithmetic --------------------------------------------------------------------------------------------------


def sign(x: Value) -> Value:
    return select(x > 0.0, x.constant(1.0), select(x < 0.0, x.constant(-1.0), x))


def relu_grad(g: Value, y: Value) -> Value:
    return select(y <= 0.0, 0.0, g)


def relu6_grad(g: Value, y: Value) -> Value:
    return select((y <= 0.0) | (y >= 6.0), 0.0, g)


def leaky_relu_grad(g: Value, y: Value, alpha: Value) -> Value:
    return select(y > 0.0, g, g * alpha)


def power(a: Value, b: Value) -> Value:
    return llvm("pow", a, b)


def truth(x: Value) -> Value:
    """Whether a number stands for true: 0 is false, all others are true."""
    return x != 0.0


# name -> (number of operands, number of parameters, function). Truth values are the numbers 0 and 1.
TABLE = {
    "copy": (1, 0, lambda x: x),
    "negative": (1, 0, lambda x: -x),
    "abs": (1, 0, absolute),
    "exp": (1, 0, exp),
    "log": (1, 0, log),
    "sqrt": (1, 0, square_root),
    "rsqrt": (1, 0, lambda x: 1.0 / square_root(x)),
    "square": (1, 0, lambda x: x * x),
    "reciprocal": (1, 0, lambda x: 1.0 / x),
    "sin": (1, 0, sin),
    "cos": (1, 0, cos),
    "erf": (1, 0, erf),
    "tanh": (1, 0, tanh),
    "log1p": (1, 0, log1p),
    "expm1": (1, 0, expm1),
    "sign": (1, 0, sign),
    "floor": (1, 0, lambda x: llvm("floor", x)),
    "ceil": (1, 0, lambda x: llvm("ceil", x)),
    "round": (1, 0, lambda x: llvm("rint", x)),  # halves to even
    "sigmoid": (1, 0, sigmoid),
    "softplus": (1, 0, softplus),
    "silu": (1, 0, silu),
    "hard_sigmoid": (1, 0, hard_sigmoid),
    "hard_swish": (1, 0, hard_swish),
    "relu": (1, 0, relu),
    "relu6": (1, 0, relu6),
    "gelu": (1, 0, gelu),
    "gelu_tanh": (1, 0, gelu_tanh),
    "leaky_relu": (1, 1, leaky_relu),
    "elu": (1, 1, elu),
    "clip": (1, 2, clip),
    "add": (2, 0, lambda a, b: a + b),
    "subtract": (2, 0, lambda a, b: a - b),
    "multiply": (2, 0, lambda a, b: a * b),
    "divide": (2, 0, lambda a, b: a / b),
    "power": (2, 0, power),
    "maximum": (2, 0, greater_of),
    "minimum": (2, 0, lesser_of),
    "relu_grad": (2, 0, relu_grad),
    "relu6_grad": (2, 0, relu6_grad),
    "leaky_relu_grad": (2, 1, leaky_relu_grad),
    "equal": (2, 0, lambda a, b: as_number(a == b)),
    "not_equal": (2, 0, lambda a, b: as_number(a != b)),
    "less": (2, 0, lambda a, b: as_number(a < b)),
    "less_equal": (2, 0, lambda a, b: as_number(a <= b)),
    "greater": (2, 0, lambda a, b: as_number(a > b)),
    "greater_equal": (2, 0, lambda a, b: as_number(a >= b)),
    "logical_not": (1, 0, lambda x: as_number(~truth(x))),
    "logical_and": (2, 0, lambda a, b: as_number(truth(a) & truth(b))),
    "logical_or": (2, 0, lambda a, b: as_number(truth(a) | truth(b))),
    "truth": (1, 0, lambda x: as_number(truth(x))),
    "where": (3, 0, lambda c, a, b: select(truth(c), a, b)),
}

