// Transpositions. ELEMENT: a plain type of the elements' size.
#include "scalar.cuh"

struct Form {
  u32 rows, columns;  // the source runs along rows, the target along columns
  u32 batch[2];
  i64 source_pitch, target_pitch;
  i64 source_batch[2], target_batch[2];
};

// A tile of 32 x 32 through shared memory, padded by a column so that both directions are free of bank conflicts.
extern "C" __global__ void __launch_bounds__(256) transpose(ELEMENT* target, const ELEMENT* source, const Form form) {
  __shared__ ELEMENT tile[32][33];
  u32 row_tiles = (form.rows + 31) / 32, column_tiles = (form.columns + 31) / 32;
  u32 block = blockIdx.x;
  u32 row = block % row_tiles * 32;
  block /= row_tiles;
  u32 column = block % column_tiles * 32;
  block /= column_tiles;
  u32 inner = block % form.batch[1], outer = block / form.batch[1];
  source += outer * form.source_batch[0] + inner * form.source_batch[1];
  target += outer * form.target_batch[0] + inner * form.target_batch[1];
  for (u32 j = threadIdx.y; j < 32; j += 8) {
    u32 r = row + threadIdx.x, c = column + j;
    if (r < form.rows && c < form.columns) tile[j][threadIdx.x] = source[c * form.source_pitch + r];
  }
  __syncthreads();
  for (u32 j = threadIdx.y; j < 32; j += 8) {
    u32 r = row + j, c = column + threadIdx.x;
    if (r < form.rows && c < form.columns) target[r * form.target_pitch + c] = tile[threadIdx.x][j];
  }
}
