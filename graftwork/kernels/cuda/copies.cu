// Copies between layouts. ELEMENT: a plain type of the elements' size. LANES and RANK as in chain.cu.
#include "scalar.cuh"

struct Form {
  u64 count;
  u32 sizes[8];
  i64 source[8], target[8];  // strides
};

// target[...] = source[...], each with strides of its own; LANES neighbours by one access where both are dense along the last
// dimension.
extern "C" __global__ void __launch_bounds__(256) strided(ELEMENT* target, const ELEMENT* source, const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  i64 from = 0, to = 0;
#pragma unroll
  for (int d = RANK - 1; d >= 0; d--) {
    u32 at = u32(index % form.sizes[d]);
    index /= form.sizes[d];
    from += at * form.source[d];
    to += at * form.target[d];
  }
  store<LANES>(target + to, load<LANES>(source + from));
}
