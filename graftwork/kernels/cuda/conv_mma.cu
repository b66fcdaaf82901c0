// Convolution on mma.sync as implicit matrix product over NHWC images and HWIO weights: no im2col matrix in memory.
//   forward          out[point, o]      = sum over (tap, c) of patches[point, (tap, c)] * weights[(tap, c), o]
//   input gradient   out[point, c]      = sum over (tap, o) of patches of the gradient[point, (tap, o)] * weights[(tap, c), o], for one
//                                         phase: the input pixels that meet the same taps
//   weight gradient  out[(tap, c), o]   = sum over points of patches[point, (tap, c)] * gradient[point, o]
// Macros: PASS (0, 1, 2 in this order) and those of gemm_mma.cu; A_VEC is for the image, B_VEC for the other operand.
// Grid: (tiles, splits, groups).
#include "mma.cuh"

struct ConvArguments {
  i64 group_image, group_other, group_out;  // elements from a group to the next
  i64 ld_other;          // elements from a row of `other` to the next: all output channels
  i32 m, n, k, blocks;
  Patches patches;
  Filter filter;         // input gradient only
  OutputForm form;
};

constexpr bool kPatchDepth = PASS != 2;  // whether K runs along the patch
using ConvTile = Tile<TYPE, TILE_M, TILE_N, TILE_WARPS_M, TILE_WARPS_N, TILE_STAGES, kPatchDepth, PASS == 1>;

// image: the input, or for the input gradient the gradient of the output; other_operand: the weights, or for the weight gradient
// the gradient of the output.
extern "C" __global__ void __launch_bounds__(ConvTile::THREADS, 1)
conv_mma(const TYPE* image, const TYPE* other_operand, OUTPUT_POINTERS, const __grid_constant__ ConvArguments p) {
  DYNAMIC_SHARED(shared);
  using ShapeA = TileShape<TYPE, TILE_M, kPatchDepth, ConvTile::THREADS>;
  using ShapeB = TileShape<TYPE, TILE_N, PASS == 1, ConvTile::THREADS>;
  int tile_m, tile_n;
  tile_origin(blockIdx.x, (p.m + TILE_M - 1) / TILE_M, (p.n + TILE_N - 1) / TILE_N, tile_m, tile_n);
  PatchLoader<ShapeA, A_VEC> a(p.patches, image + blockIdx.z * p.group_image, tile_m * TILE_M);
  const TYPE* other = other_operand + blockIdx.z * p.group_other;
  int first = blockIdx.y * p.blocks, last = min(first + p.blocks, (p.k + ConvTile::BK - 1) / ConvTile::BK);
  Accumulators<ConvTile> acc;
#if PASS == 1
  FilterLoader<ShapeB, B_VEC> b(p.filter, other, tile_n * TILE_N);
#else
  MatrixLoader<ShapeB, B_VEC> b(other, p.ld_other, tile_n * TILE_N, p.n, p.k);
#endif
  main_loop<ConvTile>(shared, a, b, first, last, acc);
  Output output = OUTPUT_FROM(p.form);
  i64 offset = blockIdx.z * p.group_out;
  if (output.epilogue.bias) output.epilogue.bias = static_cast<const BIAS_TYPE*>(output.epilogue.bias) + offset;
  if (output.epilogue.scale) output.epilogue.scale += offset;
  if (output.epilogue.residual) output.epilogue.residual = static_cast<const Residual<OUT_TYPE, ConvTile::Accumulator>*>(output.epilogue.residual) + offset;
  i64 partial_offset = (i64(blockIdx.y) * gridDim.z + blockIdx.z) * p.m * p.n;
  store_tile<ConvTile, OUT_TYPE, BIAS_TYPE>(shared, output, static_cast<OUT_TYPE*>(out) + offset, partial_offset, tile_m * TILE_M, tile_n * TILE_N, p.m, p.n, acc);
}
