// pad and slice_scatter: every element of the output asks whether an element of the input lies there. ELEMENT: element type.
#include "scalar.cuh"

struct Form {
  u64 count;
  u32 sizes[8];                       // of the output
  i32 starts[8], steps[8], counts[8];  // of the input's places along each dimension of the output
  i64 strides[8];                     // of the input
  double value;                       // elsewhere
};

extern "C" __global__ void __launch_bounds__(256) place(ELEMENT* out, const ELEMENT* input, const Form form) {
  u64 index = global_thread();
  if (index >= form.count) return;
  u64 rest = index;
  i64 offset = 0;
  bool inside = true;
#pragma unroll
  for (int d = RANK - 1; d >= 0; d--) {
    i32 distance = i32(rest % form.sizes[d]) - form.starts[d];
    rest /= form.sizes[d];
    i32 k = distance / form.steps[d];
    inside = inside && distance >= 0 && k < form.counts[d] && k * form.steps[d] == distance;
    offset += k * form.strides[d];
  }
  out[index] = inside ? input[offset] : narrow<ELEMENT>(form.value);
}
