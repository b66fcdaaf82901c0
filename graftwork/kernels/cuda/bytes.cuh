// Bytes that stand for factor * (byte - zero point), in float32 as kernels/reference/byte_images.py defines it.
#pragma once
#include "scalar.cuh"

// The real value, as a product that no compiler contracts with a sum behind it.
DEVICE float real_value(u8 x, float factor, float zero) { return __fmul_rn(float(x) - zero, factor); }

// The byte of a value in steps of the result: clamped to low and high beside the zero point, rounded half to even; NaN is the lowest.
DEVICE u8 stored_byte(float value, float zero, float low, float high) {
  value = value > low ? value : low;
  return u8(i32(rintf(value < high ? value : high) + zero));
}
