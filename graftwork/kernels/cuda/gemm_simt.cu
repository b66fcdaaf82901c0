// out = activation(A * B + bias + residual) without tensor cores, batched. Macros: ELEMENT; TILE_M, TILE_N, TILE_K, THREAD_M,
// THREAD_N; A_ALONG_K, B_ALONG_K (1: k is the contiguous direction); VECTOR_A, VECTOR_B, VECTOR_OUT (elements by one access); ACTIVATION (its
// code; of what is written at once, so none where k is split).
// Grid: (tiles, splits, batch).
#include "simt.cuh"

using Loop = Simt<ELEMENT, TILE_M, TILE_N, TILE_K, THREAD_M, THREAD_N, VECTOR_A, VECTOR_B, A_ALONG_K, B_ALONG_K>;
using Shared = Loop::Shared;

extern "C" __global__ void __launch_bounds__(256) gemm_simt(ELEMENT* out, Wide<ELEMENT>* partial, const ELEMENT* a, const ELEMENT* b,
                                                           const ELEMENT* bias, const ELEMENT* residual, const Product p) {
  __shared__ Shared shared;
  int tile_m, tile_n;
  tile_of_block(blockIdx.x, (p.m + TILE_M - 1) / TILE_M, (p.n + TILE_N - 1) / TILE_N, tile_m, tile_n);
  MatrixSource<ELEMENT, A_ALONG_K> left{a + batch_offset(p, p.batch_a, blockIdx.z), p.pitch_a, p.m, p.k};
  MatrixSource<ELEMENT, B_ALONG_K> right{b + batch_offset(p, p.batch_b, blockIdx.z), p.pitch_b, p.n, p.k};
  int first = i32(blockIdx.y) * p.share, last = min(first + p.share, p.k);
  Loop loop;
  loop.run(shared, left, right, tile_m * TILE_M, tile_n * TILE_N, first, last);
  i64 place = blockIdx.z * p.batch_out;
  if (partial) partial += (i64(blockIdx.y) * gridDim.z + blockIdx.z) * p.m * p.n;
  loop.write<VECTOR_OUT>(p, out + place, partial, bias, residual ? residual + place : nullptr, tile_m * TILE_M, tile_n * TILE_N);
}
