// Images of bytes that stand for scale * (byte - zero point): tables and pooling. kernels/reference/byte_images.py defines every
// rounding; sums and changes of form are chains (operations.cuh). Macro: LANES, bytes by one access.
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

// Calls visit(vector) for the part of a window inside the image. A thread computes LANES channels of one pixel of the result.
template <class Visit>
DEVICE void visit_window(const u8* x, const Windows& form, const Place& place, Visit visit) {
  Range rows = inside(i32(place.y) * form.stride_y - form.top, form.window_y, form.height);
  Range columns = inside(i32(place.x) * form.stride_x - form.left, form.window_x, form.width);
  for (i32 y = rows.first; y < rows.last; y++)
    for (i32 x0 = columns.first; x0 < columns.last; x0++)
      visit(load<LANES>(x + input_at(form, place.image, y, x0, place.channel)));
}

// The largest byte of each window.
extern "C" __global__ void __launch_bounds__(256) byte_max_pool(u8* out, const u8* x, const Windows form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  i32 best[LANES] = {};
  visit_window(x, form, place_of(index, form, form.out_height, form.out_width), [&](const Lanes& found) {
#pragma unroll
    for (int i = 0; i < LANES; i++) best[i] = max(best[i], i32(found.at[i]));
  });
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = u8(best[i]);
  store<LANES>(out + index, result);
}

struct Mean {
  float factor;  // x_scale / out_scale
  i32 x_zero;
  float zero, low, high;  // of the result, as stored_byte takes them
};

// The mean of each window.
extern "C" __global__ void __launch_bounds__(256) byte_avg_pool(u8* out, const u8* x, const Windows form, const Mean p) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  Place place = place_of(index, form, form.out_height, form.out_width);
  i32 sum[LANES] = {};
  visit_window(x, form, place, [&](const Lanes& found) {
#pragma unroll
    for (int i = 0; i < LANES; i++) sum[i] += i32(found.at[i]) - p.x_zero;
  });
  float factor = p.factor / float(counted(form, i32(place.y), i32(place.x)));
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = stored_byte(float(sum[i]) * factor, p.zero, p.low, p.high);
  store<LANES>(out + index, result);
}
