// Images of bytes that stand for scale * (byte - zero point): tables and means. kernels/reference/byte_images.py defines every
// rounding. Sums and changes of form are chains (operations.cuh), maxima are those of pool.cu. Macro: LANES, bytes by one access.
#include "bytes.cuh"
#include "windows.cuh"

using Lanes = Vector<u8, LANES>;

// out = table[x]. Blocks of 256 threads, which fetch the table together.
extern "C" __global__ void __launch_bounds__(256) byte_table(u8* out, const u8* x, const u8* table, u64 count) {
  __shared__ u8 entries[256];
  entries[threadIdx.x] = table[threadIdx.x];
  __syncthreads();
  u64 index = global_thread() * LANES;
  if (index + LANES <= count) {
    Lanes found = load<LANES>(x + index);
#pragma unroll
    for (int i = 0; i < LANES; i++) found.at[i] = entries[found.at[i]];
    store<LANES>(out + index, found);
  } else {
    for (; index < count; index++) out[index] = entries[x[index]];
  }
}

struct Mean {
  float factor;  // x_scale / out_scale
  i32 x_zero;
  float zero, low, high;  // of the result, as stored_byte takes them
};

// The mean of each window. A thread computes LANES channels of one pixel of the result.
extern "C" __global__ void __launch_bounds__(256) byte_avg_pool(u8* out, const u8* x, const Windows form, const Mean p) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  Place place = place_of(index, form, form.out_height, form.out_width);
  Range rows = inside(i32(place.y) * form.stride_y - form.top, form.window_y, form.height);
  Range columns = inside(i32(place.x) * form.stride_x - form.left, form.window_x, form.width);
  i32 sum[LANES] = {};
  for (i32 y = rows.first; y < rows.last; y++)
    for (i32 x0 = columns.first; x0 < columns.last; x0++) {
      Lanes found = load<LANES>(x + input_at(form, place.image, y, x0, place.channel));
#pragma unroll
      for (int i = 0; i < LANES; i++) sum[i] += i32(found.at[i]) - p.x_zero;
    }
  float factor = p.factor / float(counted(form, i32(place.y), i32(place.x)));
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = stored_byte(float(sum[i]) * factor, p.zero, p.low, p.high);
  store<LANES>(out + index, result);
}
