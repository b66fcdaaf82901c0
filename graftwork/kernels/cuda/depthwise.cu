// Depthwise convolution, NHWC: output channel o comes from input channel o / multiplier. A thread computes LANES neighbouring
// channels of one pixel. Macros: ELEMENT, KERNEL_Y, KERNEL_X, LANES (1 unless multiplier is 1), ACTIVATION.
#include "simt.cuh"

using T = ELEMENT;
using W = Wide<T>;
using Lanes = Vector<T, LANES>;

struct Form {
  i32 height, width, channels, multiplier, out_height, out_width;  // channels: of the input
  i32 stride_y, stride_x, top, left, dilation_y, dilation_x;
  u32 parts;
  u64 count;
};

extern "C" __global__ void __launch_bounds__(256) depthwise(T* out, const T* x, const T* weights, const T* bias, const T* residual,
                                                           const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  u32 outputs = u32(form.channels * form.multiplier), o = u32(index % outputs), c = o / u32(form.multiplier);
  u64 pixel = index / outputs;
  i32 ox = i32(pixel % u32(form.out_width));
  pixel /= u32(form.out_width);
  i32 oy = i32(pixel % u32(form.out_height));
  const T* image = x + pixel / u32(form.out_height) * form.height * form.width * form.channels + c;
  W sum[LANES] = {};
#pragma unroll
  for (int a = 0; a < KERNEL_Y; a++) {
    i32 y = oy * form.stride_y - form.top + a * form.dilation_y;
    if (u32(y) >= u32(form.height)) continue;
#pragma unroll
    for (int b = 0; b < KERNEL_X; b++) {
      i32 column = ox * form.stride_x - form.left + b * form.dilation_x;
      if (u32(column) >= u32(form.width)) continue;
      Lanes values = load<LANES>(image + (i64(y) * form.width + column) * form.channels);
      Lanes factors = load<LANES>(weights + u64(a * KERNEL_X + b) * outputs + o);
#pragma unroll
      for (int i = 0; i < LANES; i++) sum[i] += widen(values.at[i]) * widen(factors.at[i]);
    }
  }
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    if (bias) sum[i] += widen(bias[o + i]);
    if (residual) sum[i] += widen(residual[index + i]);
    result.at[i] = narrow<T>(activated(sum[i]));
  }
  store<LANES>(out + index, result);
}

// dx[y, x, c]: every output pixel and multiplier that pixel (y, x) was used for.
extern "C" __global__ void __launch_bounds__(256) depthwise_input_grad(T* dx, const T* g, const T* weights, const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  u32 outputs = u32(form.channels * form.multiplier), c = u32(index % u32(form.channels));
  u64 pixel = index / u32(form.channels);
  i32 x = i32(pixel % u32(form.width));
  pixel /= u32(form.width);
  i32 y = i32(pixel % u32(form.height));
  const T* image = g + pixel / u32(form.height) * form.out_height * form.out_width * outputs;
  W sum[LANES] = {};
#pragma unroll
  for (int a = 0; a < KERNEL_Y; a++) {
    i32 row = y + form.top - a * form.dilation_y, oy = row / form.stride_y;
    if (row < 0 || oy >= form.out_height || oy * form.stride_y != row) continue;
#pragma unroll
    for (int b = 0; b < KERNEL_X; b++) {
      i32 column = x + form.left - b * form.dilation_x, ox = column / form.stride_x;
      if (column < 0 || ox >= form.out_width || ox * form.stride_x != column) continue;
      const T* gradients = image + (i64(oy) * form.out_width + ox) * outputs;
      const T* factors = weights + u64(a * KERNEL_X + b) * outputs;
      for (i32 j = 0; j < form.multiplier; j++) {
        u32 o = c * u32(form.multiplier) + j;
        Lanes values = load<LANES>(gradients + o), weight = load<LANES>(factors + o);
#pragma unroll
        for (int i = 0; i < LANES; i++) sum[i] += widen(values.at[i]) * widen(weight.at[i]);
      }
    }
  }
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = narrow<T>(sum[i]);
  store<LANES>(dx + index, result);
}

// Partial sums (parts, taps, outputs) of the weight gradient: threads lie along output channels, 8 rows of them share the pixels
// of a part, and each keeps a sum for every tap. Block (32, 8); grid (outputs / 32, parts). count: output pixels.
extern "C" __global__ void __launch_bounds__(256) depthwise_weight_grad(W* partial, const T* x, const T* g, const Form form) {
  constexpr int kTaps = KERNEL_Y * KERNEL_X;
  __shared__ W shared[8][33];
  u32 outputs = u32(form.channels * form.multiplier), o = blockIdx.x * 32 + threadIdx.x, c = o / u32(form.multiplier);
  u64 each = (form.count + form.parts - 1) / form.parts;
  u64 first = min(each * blockIdx.y, form.count), last = min(first + each, form.count);
  W sum[kTaps] = {};
  if (o < outputs)
    for (u64 point = first + threadIdx.y; point < last; point += 8) {
      W gradient = widen(g[point * outputs + o]);
      i32 ox = i32(point % u32(form.out_width));
      u64 rest = point / u32(form.out_width);
      i32 oy = i32(rest % u32(form.out_height));
      const T* image = x + rest / u32(form.out_height) * form.height * form.width * form.channels + c;
#pragma unroll
      for (int t = 0; t < kTaps; t++) {
        i32 y = oy * form.stride_y - form.top + t / KERNEL_X * form.dilation_y;
        i32 column = ox * form.stride_x - form.left + t % KERNEL_X * form.dilation_x;
        bool inside = u32(y) < u32(form.height) && u32(column) < u32(form.width);
        if (inside) sum[t] += gradient * widen(image[(i64(y) * form.width + column) * form.channels]);
      }
    }
#pragma unroll
  for (int t = 0; t < kTaps; t++) {
    shared[threadIdx.y][threadIdx.x] = sum[t];
    __syncthreads();
    if (threadIdx.y == 0 && o < outputs) {
      W total = shared[0][threadIdx.x];
      for (int row = 1; row < 8; row++) total += shared[row][threadIdx.x];
      partial[(u64(blockIdx.y) * kTaps + t) * outputs + o] = total;
    }
    __syncthreads();
  }
}
