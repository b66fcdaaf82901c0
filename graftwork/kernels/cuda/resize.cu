// Resizing images (N, H, W, C) with half-pixel centres, and its adjoint. ELEMENT: element type; LANES: channels by one access;
// BILINEAR: 0 or 1. Positions are computed in integers, so they are exact; twice the
// product of an axis before and after must stay below 2^31.
#include "scalar.cuh"

using T = ELEMENT;
using A = Wide<T>;
using Lanes = Vector<T, LANES>;

struct Form {
  u32 height, width, out_height, out_width, channels;  // resize goes from (height, width) to (out_height, out_width)
  u64 count;                                           // elements of the result
};

// The two pixels that make pixel i of an axis, and the weight of the second one.
struct Sources {
  u32 low, high;
  A share;
};
DEVICE Sources sources_of(u32 i, u32 before, u32 after) {
  i32 unit = 2 * i32(after), centre = (2 * i32(i) + 1) * i32(before), last = i32(before) - 1;  // the centre in 1 / unit pixels
  if (!BILINEAR) {
    u32 nearest = u32(min(centre / unit, last));
    return {nearest, nearest, A(0)};
  }
  i32 position = max(min(centre - i32(after), last * unit), 0), low = position / unit;
  return {u32(low), u32(min(low + 1, last)), A(position - low * unit) / A(unit)};
}
DEVICE A weight_at(const Sources& s, u32 k) { return (s.low == k ? A(1) - s.share : A(0)) + (s.high == k ? s.share : A(0)); }

extern "C" __global__ void __launch_bounds__(256) resize(T* out, const T* x, const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  u32 channel = u32(index % form.channels);
  u64 pixel = index / form.channels;
  Sources column = sources_of(u32(pixel % form.out_width), form.width, form.out_width);
  pixel /= form.out_width;
  Sources row = sources_of(u32(pixel % form.out_height), form.height, form.out_height);
  const T* image = x + pixel / form.out_height * form.height * form.width * form.channels + channel;
  Lanes corners[4];
  corners[0] = load<LANES>(image + (u64(row.low) * form.width + column.low) * form.channels);
  if (BILINEAR) {
    corners[1] = load<LANES>(image + (u64(row.low) * form.width + column.high) * form.channels);
    corners[2] = load<LANES>(image + (u64(row.high) * form.width + column.low) * form.channels);
    corners[3] = load<LANES>(image + (u64(row.high) * form.width + column.high) * form.channels);
#pragma unroll
    for (int i = 0; i < LANES; i++) {
      A left = widen(corners[0].at[i]) * (A(1) - row.share) + widen(corners[2].at[i]) * row.share;
      A right = widen(corners[1].at[i]) * (A(1) - row.share) + widen(corners[3].at[i]) * row.share;
      corners[0].at[i] = narrow<T>(left * (A(1) - column.share) + right * column.share);
    }
  }
  store<LANES>(out + index, corners[0]);
}

// The pixels of the larger axis that may have pixel k among their sources; a little more than needed at the ends.
DEVICE void candidates(u32 k, u32 before, u32 after, u32& first, u32& last) {
  i32 low = (i32(k) - 1) * i32(after) / i32(before) - 1, high = (i32(k) + 2) * i32(after) / i32(before) + 2;
  first = u32(max(low, 0));
  last = u32(min(high, i32(after)));
  if (k == 0) first = 0;
  if (k + 1 == before) last = after;
}

// g is (N, out_height, out_width, C), dx (N, height, width, C).
extern "C" __global__ void __launch_bounds__(256) resize_grad(T* dx, const T* g, const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  u32 channel = u32(index % form.channels);
  u64 pixel = index / form.channels;
  u32 x = u32(pixel % form.width);
  pixel /= form.width;
  u32 y = u32(pixel % form.height);
  const T* image = g + pixel / form.height * form.out_height * form.out_width * form.channels + channel;
  u32 first_row, last_row, first_column, last_column;
  candidates(y, form.height, form.out_height, first_row, last_row);
  candidates(x, form.width, form.out_width, first_column, last_column);
  A sum[LANES] = {};
#pragma unroll 1  // unrolled, the positions of several pixels would not fit into registers
  for (u32 oy = first_row; oy < last_row; oy++) {
    A tall = weight_at(sources_of(oy, form.height, form.out_height), y);
    if (tall == A(0)) continue;
#pragma unroll 1
    for (u32 ox = first_column; ox < last_column; ox++) {
      A weight = tall * weight_at(sources_of(ox, form.width, form.out_width), x);
      if (weight == A(0)) continue;
      Lanes found = load<LANES>(image + (u64(oy) * form.out_width + ox) * form.channels);
#pragma unroll
      for (int i = 0; i < LANES; i++) sum[i] += weight * widen(found.at[i]);
    }
  }
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = narrow<T>(sum[i]);
  store<LANES>(dx + index, result);
}
