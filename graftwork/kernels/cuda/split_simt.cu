// Adds the partial sums of a product whose k was split, in order, and finishes them. ELEMENT and ACTIVATION as in gemm_simt.cu.
// Grid: (elements / 256, 1, batch).
#include "simt.cuh"

extern "C" __global__ void __launch_bounds__(256) split_simt(ELEMENT* out, const Wide<ELEMENT>* partial, const ELEMENT* bias,
                                                            const ELEMENT* residual, const Product p) {
  i64 index = i64(global_thread()), size = i64(p.m) * p.n;
  if (index >= size) return;
  u32 m = u32(index / p.n), n = u32(index % p.n);
  Wide<ELEMENT> value = 0;
  for (int split = 0; split < p.splits; split++) value += partial[(i64(split) * gridDim.z + blockIdx.z) * size + index];
  i64 at = blockIdx.z * p.batch_out + row_start(p.rows, m) + n;
  if (bias) value += widen(bias[blockIdx.z * p.batch_bias + n]);
  if (residual) value += widen(residual[at]);
  out[at] = narrow<ELEMENT>(activated(value));
}
