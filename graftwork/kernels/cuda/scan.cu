// Running sums of an array seen as (outer, length, inner), along `length`. ELEMENT: element type. PARTIAL: type of the sums.
#include "blocks.cuh"

struct Form {
  u64 outer, length, inner;
};

// inner = 1: a block a row, in chunks of 256 elements; within a chunk warps scan, then the warps' totals are added up.
extern "C" __global__ void __launch_bounds__(256) scan_rows(ELEMENT* out, const ELEMENT* input, const Form form) {
  __shared__ PARTIAL totals[8];
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  input += u64(blockIdx.x) * form.length;
  out += u64(blockIdx.x) * form.length;
  PARTIAL before = PARTIAL(0);
  for (u64 start = 0; start < form.length; start += 256) {
    u64 i = start + threadIdx.x;
    PARTIAL sum = i < form.length ? PARTIAL(widen(input[i])) : PARTIAL(0);
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
      PARTIAL other = __shfl_up_sync(kAll, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) totals[warp] = sum;
    __syncthreads();
    PARTIAL all = PARTIAL(0);
#pragma unroll
    for (u32 w = 0; w < 8; w++) {
      if (w == warp) sum += before + all;
      all += totals[w];
    }
    before += all;
    if (i < form.length) out[i] = narrow<ELEMENT>(sum);
    __syncthreads();
  }
}

// inner > 1: a thread a column, neighbours side by side in memory.
extern "C" __global__ void __launch_bounds__(256) scan_columns(ELEMENT* out, const ELEMENT* input, const Form form) {
  u64 index = global_thread();
  if (index >= form.outer * form.inner) return;
  u64 start = index / form.inner * form.length * form.inner + index % form.inner;
  PARTIAL sum = PARTIAL(0);
  for (u64 i = 0; i < form.length; i++) {
    sum += PARTIAL(widen(input[start + i * form.inner]));
    out[start + i * form.inner] = narrow<ELEMENT>(sum);
  }
}
