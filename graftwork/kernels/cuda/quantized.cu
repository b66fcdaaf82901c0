// What products of 8-bit integers need beside the int8 tensor-core kernels (mma.cuh, wgmma.cu). kernels/reference/quantized.py
// defines every rounding. Macros: ELEMENT (i8 or u8, of the input), OUT_TYPE (i8, u8, float), LANES.
#include "epilogue.cuh"

struct Image {
  i32 height, width, channels, out_height, out_width, top, left;
  i32 zero;  // what stands beside the image: the zero point, as stored
  u64 count;
};

// The image with its zero point around it, as int8: from uint8 128 is taken off. The tensor-core kernels would pad with a stored 0.
extern "C" __global__ void __launch_bounds__(256) signed_image(i8* out, const ELEMENT* x, const Image p) {
  u64 index = global_thread() * LANES;
  if (index >= p.count) return;
  u32 channel = u32(index % p.channels);
  u64 pixel = index / p.channels;
  i32 column = i32(pixel % p.out_width) - p.left;
  pixel /= p.out_width;
  i32 row = i32(pixel % p.out_height) - p.top;
  u64 n = pixel / p.out_height;
  bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
  constexpr i32 kShift = ELEMENT(-1) > ELEMENT(0) ? 128 : 0;
  Vector<ELEMENT, LANES> value{};
  if (inside) value = load<LANES>(x + ((n * p.height + row) * p.width + column) * p.channels + channel);
  Vector<i8, LANES> result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = i8((inside ? i32(value.at[i]) : p.zero) - kShift);
  store<LANES>(out + index, result);
}

struct Columns {
  i32 rows, columns, zero;
};

// out[n] = bias[n] - zero * sum over k of w[k, n]: takes the zero point out of a product of stored values.
// Blocks of 32 x 8 threads, 32 columns.
extern "C" __global__ void __launch_bounds__(256) zero_point_bias(i32* out, const i8* w, const i32* bias, const Columns p) {
  __shared__ i32 sums[8][32];
  i32 column = blockIdx.x * 32 + threadIdx.x, sum = 0;
  if (column < p.columns)
    for (i32 k = threadIdx.y; k < p.rows; k += 8) sum += w[i64(k) * p.columns + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= p.columns) return;
  for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
  out[column] = (bias ? bias[column] : 0) - p.zero * sum;
}

struct Window {
  i32 height, width, channels, group_inputs, group_outputs, out_height, out_width, outputs;
  i32 kernel_y, kernel_x, stride_y, stride_x, top, left, dilation_y, dilation_x, zero;
  u64 count;
  Requantise requantise;
};

// Convolution with few channels a group (depthwise ones above all), directly: a thread a value, neighbouring threads in
// neighbouring output channels.
extern "C" __global__ void __launch_bounds__(256) quantized_direct(OUT_TYPE* out, const ELEMENT* x, const i8* w, const i32* bias,
                                                                  const float* scale, const u8* other, const Window p) {
  u64 index = global_thread();
  if (index >= p.count) return;
  i32 output = i32(index % p.outputs);
  u64 pixel = index / p.outputs;
  i32 left = i32(pixel % p.out_width) * p.stride_x - p.left;
  pixel /= p.out_width;
  i32 top = i32(pixel % p.out_height) * p.stride_y - p.top;
  const ELEMENT* image = x + pixel / p.out_height * p.height * p.width * p.channels + output / p.group_outputs * p.group_inputs;
  i32 sum = 0;
  for (i32 a = 0; a < p.kernel_y; a++) {
    i32 row = top + a * p.dilation_y;
    if (row < 0 || row >= p.height) continue;
    for (i32 b = 0; b < p.kernel_x; b++) {
      i32 column = left + b * p.dilation_x;
      if (column < 0 || column >= p.width) continue;
      const ELEMENT* values = image + (i64(row) * p.width + column) * p.channels;
      const i8* weights = w + i64(a * p.kernel_x + b) * p.group_inputs * p.outputs + output;
      for (i32 c = 0; c < p.group_inputs; c++) sum += (i32(values[c]) - p.zero) * i32(weights[i64(c) * p.outputs]);
    }
  }
  Epilogue e{bias, other, scale, 0, p.requantise};
  out[index] = finished<OUT_TYPE, i32>(sum, other ? residual_value(other[index], p.requantise) : 0.f, output, e);
}
