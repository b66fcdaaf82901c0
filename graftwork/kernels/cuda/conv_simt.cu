// Convolution without tensor cores, as an implicit matrix product over NHWC images and HWIO weights: no im2col matrix in memory.
//   PASS 0, forward          out[point, o]     = sum over (tap, c) of patches[point, (tap, c)] * weights[(tap, c), o]
//   PASS 1, input gradient   out[point, c]     = sum over (tap, o) of patches of g[point, (tap, o)] * weights[(tap, c), o], for the
//                                                input pixels that meet the same taps (one phase of the stride)
//   PASS 2, weight gradient  out[(tap, c), o]  = sum over points of patches[point, (tap, c)] * g[point, o]
// Other macros as in gemm_simt.cu. Grid: (tiles, splits, groups).
#include "simt.cuh"

constexpr bool kAlongPatch = PASS != 2;
using Loop = Simt<ELEMENT, TILE_M, TILE_N, TILE_K, THREAD_M, THREAD_N, VECTOR_A, VECTOR_B, kAlongPatch, PASS == 1>;
using Shared = Loop::Shared;

extern "C" __global__ void __launch_bounds__(256) conv_simt(ELEMENT* out, Wide<ELEMENT>* partial, const ELEMENT* image,
                                                           const ELEMENT* other, const ELEMENT* bias, const ELEMENT* residual,
                                                           const Product p, const Patches patches, const Filter filter) {
  __shared__ Shared shared;
  int tile_m, tile_n;
  tile_of_block(blockIdx.x, (p.m + TILE_M - 1) / TILE_M, (p.n + TILE_N - 1) / TILE_N, tile_m, tile_n);
  image += blockIdx.z * p.batch_a[2];
  other += blockIdx.z * p.batch_b[2];
  int first_m = tile_m * TILE_M, first_n = tile_n * TILE_N;
  int first = i32(blockIdx.y) * p.share, last = min(first + p.share, p.k);
  Loop loop;
#if PASS == 1
  FilterSource<ELEMENT> right{filter, other};
#else
  MatrixSource<ELEMENT, false> right{other, p.pitch_b, p.n, p.k};
#endif
#if PASS == 2
  PatchAcrossSource<ELEMENT> left{patches, image};
#else
  PatchSource<ELEMENT, Loop::ShareA::kSlots> left{patches, image};
#pragma unroll
  for (int s = 0; s < Loop::ShareA::kSlots; s++) left.points[s] = point_of(patches, u32(first_m + Loop::ShareA::row(s)));
#endif
  loop.run(shared, left, right, first_m, first_n, first, last);
  i64 place = blockIdx.z * p.batch_out;
  if (partial) partial += (i64(blockIdx.y) * gridDim.z + blockIdx.z) * p.m * p.n;
  loop.write<VECTOR_OUT>(p, out + place, partial, bias ? bias + blockIdx.z * p.batch_bias : nullptr,
                         residual ? residual + place : nullptr, first_m, first_n);
}
