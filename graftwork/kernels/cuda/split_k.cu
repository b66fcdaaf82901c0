// The second half of a product whose K was split: adds the partial sums in order (so the result is the same every time) and
// finishes them. Macros: ACC_TYPE, OUT_TYPE, BIAS_TYPE, ACTIVATION. Grid: (any, 1, batch or groups); 256 threads.
#include "epilogue.cuh"

struct SplitArguments {
  i64 batch_out;
  i32 rows, columns, splits, by_column;  // by_column: bias and scale continue from one batch to the next (groups)
  OutputForm form;
};

// partial: [split][batch][rows][columns]
extern "C" __global__ void __launch_bounds__(256)
split_k(const ACC_TYPE* partial, OUT_TYPE* out, const void* bias, const void* residual, const float* scale,
        const __grid_constant__ SplitArguments p) {
  i64 size = i64(p.rows) * p.columns, all = size * gridDim.z;
  Epilogue e{bias, residual, scale, p.form.wide, p.form.requantise};
  i64 shift = blockIdx.z * p.batch_out;
  if (p.by_column) {
    if (e.bias) e.bias = static_cast<const BIAS_TYPE*>(e.bias) + shift;
    if (e.scale) e.scale += shift;
  }
  for (i64 i = blockIdx.x * i64(256) + threadIdx.x; i < size; i += i64(gridDim.x) * 256) {
    int row = i / p.columns, column = i - i64(row) * p.columns;
    ACC_TYPE sum = 0;
    for (int split = 0; split < p.splits; split++) sum += partial[split * all + blockIdx.z * size + i];
    i64 offset = shift + row_offset(p.form.rows, row) + column;
    float added = 0.f;
    if (e.residual) added = residual_value(static_cast<const Residual<OUT_TYPE, ACC_TYPE>*>(e.residual)[offset], e.requantise);
    out[offset] = finished<OUT_TYPE, BIAS_TYPE>(sum, added, column, e);
  }
}
