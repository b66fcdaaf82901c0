// Reductions over some dimensions of an array seen as (outer, length, inner), reduced over `length`. Macros:
//   ELEMENT          element type     OPERATION  Sum, Product, Maximum or Minimum     LANES  elements by one access (rows only)
//   PARTIAL          type that partial results are kept in
// Work is shared out in two passes where there are few results: `parts` shares of `length` each write a partial result of type PARTIAL,
// which a second launch (ELEMENT = PARTIAL, parts = 1) reduces.
#include "blocks.cuh"

struct Form {
  u64 outer, length, inner;
  u32 parts;
  double scale;  // of the result: 1 / count for means
};

DEVICE void share_of(u64 length, u32 parts, u32 part, u64& first, u64& last) {
  u64 each = (length + parts - 1) / parts;
  each = (each + LANES - 1) / LANES * LANES;
  first = min(each * part, length);
  last = min(first + each, length);
}

// inner = 1: a block reduces a share of a row. Grid: outer * parts.
extern "C" __global__ void __launch_bounds__(256) reduce_rows(RESULT* out, const ELEMENT* input, const Form form) {
  u64 row = blockIdx.x / form.parts;
  u32 part = u32(blockIdx.x % form.parts);
  u64 first, last;
  share_of(form.length, form.parts, part, first, last);
  const ELEMENT* values = input + row * form.length;
  PARTIAL result = OPERATION::identity<PARTIAL>();
  u64 i = first + threadIdx.x * LANES;
  for (; i + LANES <= last; i += 256 * LANES) {
    Vector<ELEMENT, LANES> found = load<LANES>(values + i);
#pragma unroll
    for (int k = 0; k < LANES; k++) result = OPERATION::of(result, PARTIAL(widen(found.at[k])));
  }
  for (; i < last; i++) result = OPERATION::of(result, PARTIAL(widen(values[i])));
  result = block_reduce<OPERATION, 256>(result);
  if (threadIdx.x == 0) out[row * form.parts + part] = narrow<RESULT>(SCALED ? PARTIAL(result * form.scale) : result);
}

// Short rows (length at most a few hundred): a warp a row.
extern "C" __global__ void __launch_bounds__(256) reduce_short_rows(RESULT* out, const ELEMENT* input, const Form form) {
  u64 row = (u64(blockIdx.x) * 256 + threadIdx.x) / 32;
  if (row >= form.outer) return;
  const ELEMENT* values = input + row * form.length;
  PARTIAL result = OPERATION::identity<PARTIAL>();
  for (u64 i = threadIdx.x % 32; i < form.length; i += 32) result = OPERATION::of(result, PARTIAL(widen(values[i])));
  result = warp_reduce<OPERATION>(result);
  if (threadIdx.x % 32 == 0) out[row] = narrow<RESULT>(SCALED ? PARTIAL(result * form.scale) : result);
}

// inner > 1: threads lie along `inner`, 8 rows of them share the length. Block (32, 8); grid: (inner / 32, parts, outer).
extern "C" __global__ void __launch_bounds__(256) reduce_columns(RESULT* out, const ELEMENT* input, const Form form) {
  __shared__ PARTIAL partial[8][33];
  u64 column = u64(blockIdx.x) * 32 + threadIdx.x;
  for (u64 outer = blockIdx.z; outer < form.outer; outer += gridDim.z) {
    u64 first, last;
    share_of(form.length, form.parts, blockIdx.y, first, last);
    PARTIAL result = OPERATION::identity<PARTIAL>();
    if (column < form.inner)
      for (u64 i = first + threadIdx.y; i < last; i += 8)
        result = OPERATION::of(result, PARTIAL(widen(input[(outer * form.length + i) * form.inner + column])));
    partial[threadIdx.y][threadIdx.x] = result;
    __syncthreads();
    if (threadIdx.y == 0 && column < form.inner) {
#pragma unroll
      for (int y = 1; y < 8; y++) result = OPERATION::of(result, partial[y][threadIdx.x]);
      out[(outer * form.parts + blockIdx.y) * form.inner + column] = narrow<RESULT>(SCALED ? PARTIAL(result * form.scale) : result);
    }
    __syncthreads();
  }
}
