// Matrix product on mma.sync: out[m, n] = finish(sum over k of A[m, k] * B[k, n]), batched, K in splits.
// Macros: TYPE, OUT_TYPE, BIAS_TYPE (element types), A_K_CONTIGUOUS, B_K_CONTIGUOUS (1: K contiguous), A_VEC, B_VEC (bytes of the
// widest aligned copy), TILE_M, TILE_N, TILE_WARPS_M, TILE_WARPS_N, TILE_STAGES,
// ACTIVATION. Grid: (tiles of M * tiles of N, splits, batch). Dynamic shared memory: TILE_STAGES * (TILE_M + TILE_N) * 64 bytes.
#include "mma.cuh"

struct GemmArguments {
  i64 lda, ldb;                       // elements from a row to the next, as stored
  i64 batch_a, batch_b, batch_out;    // elements from a product to the next
  i32 m, n, k, blocks;                // blocks: tiles along K of one split
  OutputForm form;
};

using GemmTile = Tile<TYPE, TILE_M, TILE_N, TILE_WARPS_M, TILE_WARPS_N, TILE_STAGES, A_K_CONTIGUOUS, B_K_CONTIGUOUS>;

extern "C" __global__ void __launch_bounds__(GemmTile::THREADS, 1)
gemm_mma(const TYPE* a_matrix, const TYPE* b_matrix, OUTPUT_POINTERS, const __grid_constant__ GemmArguments p) {
  DYNAMIC_SHARED(shared);
  using ShapeA = TileShape<TYPE, TILE_M, A_K_CONTIGUOUS, GemmTile::THREADS>;
  using ShapeB = TileShape<TYPE, TILE_N, B_K_CONTIGUOUS, GemmTile::THREADS>;
  int tile_m, tile_n;
  tile_origin(blockIdx.x, (p.m + TILE_M - 1) / TILE_M, (p.n + TILE_N - 1) / TILE_N, tile_m, tile_n);
  MatrixLoader<ShapeA, A_VEC> a(a_matrix + blockIdx.z * p.batch_a, p.lda, tile_m * TILE_M, p.m, p.k);
  MatrixLoader<ShapeB, B_VEC> b(b_matrix + blockIdx.z * p.batch_b, p.ldb, tile_n * TILE_N, p.n, p.k);
  int first = blockIdx.y * p.blocks, last = min(first + p.blocks, (p.k + GemmTile::BK - 1) / GemmTile::BK);
  Accumulators<GemmTile> acc;
  main_loop<GemmTile>(shared, a, b, first, last, acc);
  Output output = OUTPUT_FROM(p.form);
  i64 offset = blockIdx.z * p.batch_out;
  if (output.epilogue.residual) output.epilogue.residual = static_cast<const Residual<OUT_TYPE, GemmTile::Accumulator>*>(output.epilogue.residual) + offset;
  i64 partial_offset = (i64(blockIdx.y) * gridDim.z + blockIdx.z) * p.m * p.n;
  store_tile<GemmTile, OUT_TYPE, BIAS_TYPE>(shared, output, static_cast<OUT_TYPE*>(out) + offset, partial_offset, tile_m * TILE_M, tile_n * TILE_N, p.m, p.n, acc);
}
