// The table of elementwise operations: one function an op, over the types that are computed in (float, double, integers, bool).
// `chain.cu` composes them. Parameters that are attributes of an op come as double.
#pragma once
#include "bytes.cuh"

// The two precisions under one name.
#define BOTH_PRECISIONS(name, single, full)         \
  inline float math_##name(float x) { return single(x); } \
  inline double math_##name(double x) { return full(x); }
BOTH_PRECISIONS(exp, expf, exp)
BOTH_PRECISIONS(log, logf, log)
BOTH_PRECISIONS(sqrt, sqrtf, sqrt)
BOTH_PRECISIONS(rsqrt, rsqrtf, rsqrt)
BOTH_PRECISIONS(sin, sinf, sin)
BOTH_PRECISIONS(cos, cosf, cos)
BOTH_PRECISIONS(erf, erff, erf)
BOTH_PRECISIONS(tanh, tanhf, tanh)
BOTH_PRECISIONS(log1p, log1pf, log1p)
BOTH_PRECISIONS(expm1, expm1f, expm1)
BOTH_PRECISIONS(floor, floorf, floor)
BOTH_PRECISIONS(ceil, ceilf, ceil)
BOTH_PRECISIONS(rint, rintf, rint)
#undef BOTH_PRECISIONS

namespace op {

#define UNARY(name, expression) \
  template <class A>            \
  inline A name(A x) {          \
    return A(expression);       \
  }
#define BINARY(name, expression) \
  template <class A>             \
  inline A name(A x, A y) {      \
    return A(expression);        \
  }
#define COMPARISON(name, expression) \
  template <class A>                 \
  inline bool name(A x, A y) {       \
    return expression;               \
  }

UNARY(negative, -x)
UNARY(abs, x < A(0) ? -x : x == A(0) ? A(0) : x)
UNARY(exp, math_exp(x))
UNARY(log, math_log(x))
UNARY(sqrt, math_sqrt(x))
UNARY(rsqrt, A(1) / math_sqrt(x))
UNARY(square, x * x)
UNARY(reciprocal, A(1) / x)
UNARY(sin, math_sin(x))
UNARY(cos, math_cos(x))
UNARY(erf, math_erf(x))
UNARY(tanh, math_tanh(x))
UNARY(log1p, math_log1p(x))
UNARY(expm1, math_expm1(x))
UNARY(sign, x > A(0) ? A(1) : x < A(0) ? A(-1) : x)
UNARY(floor, math_floor(x))
UNARY(ceil, math_ceil(x))
UNARY(round, math_rint(x))
UNARY(sigmoid, A(1) / (A(1) + math_exp(-x)))
UNARY(relu, x < A(0) ? A(0) : x)  // NaN stays
UNARY(relu6, x < A(0) ? A(0) : x > A(6) ? A(6) : x)
UNARY(silu, x / (A(1) + math_exp(-x)))
UNARY(hard_sigmoid, relu6(x + A(3)) / A(6))
UNARY(hard_swish, x * (relu6(x + A(3)) / A(6)))
UNARY(softplus, relu(x) + math_log1p(math_exp(x < A(0) ? x : -x)))
UNARY(gelu, x * (A(0.5) * (A(1) + math_erf(x * A(0.70710678118654752)))))
UNARY(gelu_tanh, x * (A(0.5) * (A(1) + math_tanh(A(0.79788456080286536) * (x + A(0.044715) * x * x * x)))))

template <class A>
inline A leaky_relu(A x, double alpha) {
  return x > A(0) ? x : A(alpha) * x;
}
template <class A>
inline A elu(A x, double alpha) {
  return x > A(0) ? x : A(alpha) * math_expm1(x);
}
template <class A>
inline A clip_low(A x, double low) {
  return x < A(low) ? A(low) : x;
}
template <class A>
inline A clip_high(A x, double high) {
  return x > A(high) ? A(high) : x;
}

BINARY(add, x + y)
BINARY(subtract, x - y)
BINARY(multiply, x * y)
BINARY(divide, x / y)
BINARY(maximum, larger(x, y))
BINARY(minimum, smaller(x, y))
BINARY(relu_grad, y <= A(0) ? A(0) : x)
BINARY(relu6_grad, y <= A(0) || y >= A(6) ? A(0) : x)
COMPARISON(equal, x == y)
COMPARISON(not_equal, x != y)
COMPARISON(less, x < y)
COMPARISON(less_equal, x <= y)
COMPARISON(greater, x > y)
COMPARISON(greater_equal, x >= y)
inline bool logical_not(bool x) { return !x; }
inline bool logical_and(bool x, bool y) { return x && y; }
inline bool logical_or(bool x, bool y) { return x || y; }

template <class A>
inline A leaky_relu_grad(A g, A y, double alpha) {
  return y > A(0) ? g : A(alpha) * g;
}
template <class A>
inline A where(bool condition, A x, A y) {
  return condition ? x : y;
}

inline float power(float x, float y) { return powf(x, y); }
inline double power(double x, double y) { return pow(x, y); }
template <class A>
inline A power(A x, A y) {  // integers, y >= 0: by squaring
  A result = 1;
  for (; y > 0; y /= 2, x *= x)
    if (y % 2 == 1) result *= x;
  return result;
}

inline u8 quantize(float x, double factor, double zero, double low, double high) {
  return stored_byte(x * float(factor), float(zero), float(low), float(high));
}
inline float dequantize(u8 x, double factor, double zero) { return real_value(x, float(factor), float(zero)); }
inline u8 quantized_add(u8 x, u8 y, double x_factor, double x_zero, double y_factor, double y_zero, double zero, double low, double high) {
  float sum = real_value(x, float(x_factor), float(x_zero)) + real_value(y, float(y_factor), float(y_zero));
  return stored_byte(sum, float(zero), float(low), float(high));
}

template <class A>
inline A copy(A x) {
  return x;
}

#undef UNARY
#undef BINARY
#undef COMPARISON
}  // namespace op
