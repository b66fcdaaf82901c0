// Convolution with 3 x 3 filters and stride 1 in strict float32 by Winograd's F(4x4, 3x3) (Lavin and Gray, 2016): 36
// multiplications for 16 results instead of 144. Three transforms here; between them 36 matrix products (gemm_simt.cu):
//   u[36][c][o] = G w G^T        v[36][tile][c] = B^T x B        m[e] = v[e] u[e]        out = A^T m A
// Neighbouring threads take neighbouring channels, so that every access is coalesced. Macro: ACTIVATION.
#include "epilogue.cuh"
#include "scalar.cuh"

constexpr int kIn = 6, kOut = 4;  // a tile of the input and of the output, along an axis

DEVICE void transform_filter(const float (&g)[3], float (&r)[kIn]) {
  float ends = g[0] + g[2], outer = g[0] * (1.f / 24) + g[2] * (1.f / 6);
  r[0] = g[0] * 0.25f;
  r[1] = (ends + g[1]) * (-1.f / 6);
  r[2] = (ends - g[1]) * (-1.f / 6);
  r[3] = outer + g[1] * (1.f / 12);
  r[4] = outer - g[1] * (1.f / 12);
  r[5] = g[2];
}
DEVICE void transform_input(const float (&d)[kIn], float (&r)[kIn]) {
  r[0] = 4 * d[0] - 5 * d[2] + d[4];
  r[1] = d[4] + d[3] - 4 * (d[2] + d[1]);
  r[2] = d[4] - d[3] - 4 * (d[2] - d[1]);
  r[3] = d[4] - d[2] + 2 * (d[3] - d[1]);
  r[4] = d[4] - d[2] - 2 * (d[3] - d[1]);
  r[5] = 4 * d[1] - 5 * d[3] + d[5];
}
DEVICE void transform_output(const float (&m)[kIn], float (&r)[kOut]) {
  float sum12 = m[1] + m[2], sum34 = m[3] + m[4], difference12 = m[1] - m[2], difference34 = m[3] - m[4];
  r[0] = m[0] + sum12 + sum34;
  r[1] = difference12 + 2 * difference34;
  r[2] = sum12 + 4 * sum34;
  r[3] = difference12 + 8 * difference34 + m[5];
}

struct FilterForm {
  i64 tap_y, tap_x, input, output;  // strides of the weights; negative along the taps where the filter is turned round
  i32 inputs, outputs;
};

extern "C" __global__ void __launch_bounds__(256) winograd_filter(float* u, const float* w, const FilterForm p) {
  u64 index = global_thread(), count = u64(p.inputs) * p.outputs;
  if (index >= count) return;
  w += i64(index / p.outputs) * p.input + i64(index % p.outputs) * p.output;
  float rows[3][kIn];
#pragma unroll
  for (int a = 0; a < 3; a++) {
    float taps[3];
#pragma unroll
    for (int b = 0; b < 3; b++) taps[b] = w[a * p.tap_y + b * p.tap_x];
    transform_filter(taps, rows[a]);
  }
#pragma unroll
  for (int b = 0; b < kIn; b++) {
    float column[3] = {rows[0][b], rows[1][b], rows[2][b]}, done[kIn];
    transform_filter(column, done);
#pragma unroll
    for (int a = 0; a < kIn; a++) u[u64(a * kIn + b) * count + index] = done[a];
  }
}

struct InputForm {
  i32 height, width, channels, tiles_y, tiles_x, base_y, base_x;  // base: of the first tile in the image
  u64 count;                                                      // tiles * channels
};

extern "C" __global__ void __launch_bounds__(256) winograd_input(float* v, const float* x, const InputForm p) {
  u64 index = global_thread();
  if (index >= p.count) return;
  u64 tile = index / p.channels;
  i32 left = i32(tile % p.tiles_x) * kOut + p.base_x;
  tile /= p.tiles_x;
  i32 top = i32(tile % p.tiles_y) * kOut + p.base_y;
  x += tile / p.tiles_y * p.height * p.width * p.channels + index % p.channels;
  float rows[kIn][kIn];
#pragma unroll
  for (int a = 0; a < kIn; a++) {
    i32 y = top + a;
    float line[kIn];
#pragma unroll
    for (int b = 0; b < kIn; b++) {
      i32 column = left + b;
      bool inside = y >= 0 && y < p.height && column >= 0 && column < p.width;
      line[b] = inside ? x[(i64(y) * p.width + column) * p.channels] : 0.f;
    }
    transform_input(line, rows[a]);
  }
#pragma unroll
  for (int b = 0; b < kIn; b++) {
    float column[kIn], done[kIn];
#pragma unroll
    for (int a = 0; a < kIn; a++) column[a] = rows[a][b];
    transform_input(column, done);
#pragma unroll
    for (int a = 0; a < kIn; a++) v[u64(a * kIn + b) * p.count + index] = done[a];
  }
}

struct OutputTiles {
  i32 height, width, outputs, tiles_y, tiles_x;
  u64 count;  // tiles * outputs
};

extern "C" __global__ void __launch_bounds__(256) winograd_output(float* out, const float* m, const float* bias,
                                                                 const float* residual, const OutputTiles p) {
  u64 index = global_thread();
  if (index >= p.count) return;
  u32 output = u32(index % p.outputs);
  u64 tile = index / p.outputs;
  i32 left = i32(tile % p.tiles_x) * kOut;
  tile /= p.tiles_x;
  i32 top = i32(tile % p.tiles_y) * kOut;
  u64 image = tile / p.tiles_y * p.height * p.width;
  float columns[kOut][kIn], offset = bias ? bias[output] : 0.f;
#pragma unroll
  for (int b = 0; b < kIn; b++) {
    float column[kIn], done[kOut];
#pragma unroll
    for (int a = 0; a < kIn; a++) column[a] = m[u64(a * kIn + b) * p.count + index];
    transform_output(column, done);
#pragma unroll
    for (int a = 0; a < kOut; a++) columns[a][b] = done[a];
  }
#pragma unroll
  for (int a = 0; a < kOut; a++) {
    float row[kOut];
    transform_output(columns[a], row);
#pragma unroll
    for (int b = 0; b < kOut; b++) {
      if (top + a >= p.height || left + b >= p.width) continue;
      u64 place = (image + u64(top + a) * p.width + left + b) * p.outputs + output;
      out[place] = activate<ACTIVATION>(row[b] + offset + (residual ? residual[place] : 0.f));
    }
  }
}
