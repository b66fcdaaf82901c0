// What happens to an accumulator between the main loop and memory: scale, bias, residual, activation, conversion, and the place in
// the output. Shared by matrix products and convolutions.
#pragma once
#include "bytes.cuh"

// Codes of the fused activations, as in kernels/cpu/_epilogue.py.
enum Activation { kNone, kRelu, kRelu6, kSilu, kHardSwish, kSigmoid, kHardSigmoid, kTanh, kGelu };

// NaN stays NaN in all of them. The activation is a macro of the kernel: one that is not used costs no code.
#ifndef ACTIVATION
#define ACTIVATION kNone
#endif
template <int A>
DEVICE float activate(float x) {
  [[maybe_unused]] float gate = x + 3.f < 0.f ? 0.f : x + 3.f > 6.f ? 6.f : x + 3.f;  // of the hard forms
  if constexpr (A == kRelu) return x < 0.f ? 0.f : x;
  else if constexpr (A == kRelu6) return x < 0.f ? 0.f : x > 6.f ? 6.f : x;
  else if constexpr (A == kSilu) return x / (1.f + __expf(-x));
  else if constexpr (A == kHardSwish) return x * gate * (1.f / 6.f);
  else if constexpr (A == kSigmoid) return 1.f / (1.f + __expf(-x));
  else if constexpr (A == kHardSigmoid) return gate * (1.f / 6.f);
  else if constexpr (A == kTanh) return tanhf(x);
  else if constexpr (A == kGelu) return 0.5f * x * (1.f + erff(x * 0.70710678f));
  else return x;
}

// n / divisor for 0 <= n < 2^31 without a division (Granlund and Montgomery, 1994). launch arguments; see arguments.py.
struct FastDivide {
  u32 divisor, multiplier, shift;
};
DEVICE u32 divide(u32 n, FastDivide by) { return (__umulhi(n, by.multiplier) + n) >> by.shift; }
DEVICE u32 divide(u32 n, FastDivide by, u32& remainder) {
  u32 quotient = divide(n, by);
  remainder = n - quotient * by.divisor;
  return quotient;
}

// Where row m of the product begins in the output, in elements: m * ld, or, where the rows are the pixels of a sub-grid
// of an image (one phase of a strided convolution's input gradient), the place of that pixel.
struct RowMap {
  i64 ld;               // from a row, or a pixel, to the next
  i32 plain;            // 1: row m begins at m * ld
  i32 image_height, image_width;
  i32 start_y, start_x, step_y, step_x;
  FastDivide height, width;  // of the sub-grid
};
DEVICE i64 row_offset(const RowMap& map, u32 m) {
  if (map.plain) return i64(m) * map.ld;
  u32 x, y;
  u32 n = divide(divide(m, map.width, x), map.height, y);
  return ((i64(n) * map.image_height + map.start_y + map.step_y * i32(y)) * map.image_width + map.start_x + map.step_x * i32(x)) * map.ld;
}

// What an int8 product's accumulator becomes, behind bias and scale: see kernels/reference/quantized.py.
struct Requantise {
  float factor, zero, low, high;         // multiplies each column's scale; zero point and clamp of the output
  float residual_factor, residual_zero;  // the residual's bytes stand for factor * (byte - zero) of the output's steps
};

struct Epilogue {
  const void* bias;      // one for each column, of the output's type (int32 for int8 products), or null
  const void* residual;  // laid out as the output, of type Residual, added before the activation and the rounding, or null
  const float* scale;    // one for each column, multiplies accumulator plus bias, or null: requantisation
  i32 wide;              // 1: rows of the output (and residual) begin on 16 bytes and their length is a multiple of it
  Requantise requantise; // int8 products only
};

// What of an output is not a pointer, passed by value.
struct OutputForm {
  RowMap rows;
  i32 wide;  // as in Epilogue
  Requantise requantise;
};

// What a residual is stored as: uint8 beside the sums of int8 products, otherwise the output's own type.
template <class Out, class Accumulator>
struct ResidualOf {
  using type = Out;
};
template <class Out>
struct ResidualOf<Out, i32> {
  using type = u8;
};
template <class Out, class Accumulator>
using Residual = typename ResidualOf<Out, Accumulator>::type;

// What is added to an accumulator.
template <class T>
DEVICE float residual_value(T x, const Requantise&) {
  return to_float(x);
}
DEVICE float residual_value(u8 x, const Requantise& r) { return real_value(x, r.residual_factor, r.residual_zero); }

// Whether values of a type are rounded to whole numbers.
template <class T>
struct Whole {
  static constexpr bool value = false;
};
template <>
struct Whole<i8> {
  static constexpr bool value = true;
};
template <>
struct Whole<u8> {
  static constexpr bool value = true;
};

template <class Out, class Bias>
DEVICE float finish(float accumulator, float residual, int column, const Epilogue& e) {
  float value = accumulator;
  if (e.bias) value += to_float(static_cast<const Bias*>(e.bias)[column]);
  return activate<ACTIVATION>(value + residual);
}
template <class Out, class Bias>
DEVICE float finish(i32 accumulator, float residual, int column, const Epilogue& e) {
  if (e.bias) accumulator += static_cast<const i32*>(e.bias)[column];  // exact
  float value = to_float(accumulator);
  if (e.scale) value = __fmul_rn(value, e.scale[column] * e.requantise.factor);  // rounded before the residual is added
  value = activate<ACTIVATION>(value + residual);
  if constexpr (Whole<Out>::value) value = rintf(value) + e.requantise.zero;  // to even, and only then the zero point
  return fminf(fmaxf(value, e.requantise.low), e.requantise.high);
}

// The value of the output. int32 sums of int8 products come out as they are, with the bias: float would cut off digits.
template <class Out, class Bias, class Accumulator>
DEVICE Out finished(Accumulator accumulator, float residual, int column, const Epilogue& e) {
  return from_float<Out>(finish<Out, Bias>(accumulator, residual, column, e));
}
template <>
DEVICE i32 finished<i32, i32, i32>(i32 accumulator, float residual, int column, const Epilogue& e) {
  return accumulator + (e.bias ? static_cast<const i32*>(e.bias)[column] : 0);
}

// Finishes COUNT neighbouring columns of a row and stores them; `offset` is that of the first one. COUNT elements are 16 bytes.
template <class Out, class Bias, int COUNT, class Accumulator>
DEVICE void store_columns(Out* out, i64 offset, int column, int columns, const Accumulator (&value)[COUNT], const Epilogue& e) {
  using Added = Residual<Out, Accumulator>;
  const Added* residual = static_cast<const Added*>(e.residual);
  if (e.wide && column + COUNT <= columns) {
    Vector<Added, COUNT> added{};
    if (residual) added = load<COUNT>(residual + offset);
    union Pack {
      Vec16 vector;
      Out element[COUNT];
      DEVICE Pack() {}
    } pack;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      pack.element[i] = finished<Out, Bias>(value[i], residual ? residual_value(added.at[i], e.requantise) : 0.f, column + i, e);
    *reinterpret_cast<Vec16*>(out + offset) = pack.vector;
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    if (column + i < columns)
      out[offset + i] = finished<Out, Bias>(value[i], residual ? residual_value(residual[offset + i], e.requantise) : 0.f, column + i, e);
}
