// Pooling over windows of (N, H, W, C) images. ELEMENT: element type; LANES: channels by one access. A thread computes LANES
// channels of one pixel of the result. Gradients gather: every pixel of the input asks the windows that cover it, in a fixed
// order, so that the result does not depend on the order that blocks run in.
#include "windows.cuh"

using T = ELEMENT;
using A = Wide<T>;
using Lanes = Vector<T, LANES>;

extern "C" __global__ void __launch_bounds__(256) max_pool(T* out, const T* x, const Windows form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  Place p = place_of(index, form, form.out_height, form.out_width);
  Range rows = inside(i32(p.y) * form.stride_y - form.top, form.window_y, form.height);
  Range columns = inside(i32(p.x) * form.stride_x - form.left, form.window_x, form.width);
  A best[LANES];
#pragma unroll
  for (int i = 0; i < LANES; i++) best[i] = Limits<A>::lowest();
  for (i32 y = rows.first; y < rows.last; y++)
    for (i32 x0 = columns.first; x0 < columns.last; x0++) {
      Lanes found = load<LANES>(x + input_at(form, p.image, y, x0, p.channel));
#pragma unroll
      for (int i = 0; i < LANES; i++) best[i] = larger(widen(found.at[i]), best[i]);
    }
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = narrow<T>(best[i]);
  store<LANES>(out + index, result);
}

DEVICE bool same(A x, A y) { return x == y || (is_nan(x) && is_nan(y)); }

// dx: g of every window whose first maximum, in row-major order, is this pixel.
extern "C" __global__ void __launch_bounds__(256) max_pool_grad(T* dx, const T* g, const T* x, const T* y, const Windows form) {
  u64 index = global_thread();
  if (index >= form.count) return;
  Place p = place_of(index, form, form.height, form.width);
  A own = widen(x[index]), sum = A(0);
  Range rows = covering(i32(p.y), form.top, form.window_y, form.stride_y, form.out_height);
  Range columns = covering(i32(p.x), form.left, form.window_x, form.stride_x, form.out_width);
  for (i32 oy = rows.first; oy < rows.last; oy++)
    for (i32 ox = columns.first; ox < columns.last; ox++) {
      u64 at = output_at(form, p.image, oy, ox, p.channel);
      if (!same(own, widen(y[at]))) continue;
      Range tall = inside(oy * form.stride_y - form.top, form.window_y, form.height);
      Range wide = inside(ox * form.stride_x - form.left, form.window_x, form.width);
      bool first = true;
      for (i32 iy = tall.first; iy <= i32(p.y) && first; iy++) {
        i32 end = iy == i32(p.y) ? i32(p.x) : wide.last;
        for (i32 ix = wide.first; ix < end && first; ix++)
          first = !same(widen(x[input_at(form, p.image, iy, ix, p.channel)]), own);
      }
      if (first) sum += widen(g[at]);
    }
  dx[index] = narrow<T>(sum);
}

// out: gg at the first maximum of every window.
extern "C" __global__ void __launch_bounds__(256) max_pool_take(T* out, const T* gg, const T* x, const T* y, const Windows form) {
  u64 index = global_thread();
  if (index >= form.count) return;
  Place p = place_of(index, form, form.out_height, form.out_width);
  Range rows = inside(i32(p.y) * form.stride_y - form.top, form.window_y, form.height);
  Range columns = inside(i32(p.x) * form.stride_x - form.left, form.window_x, form.width);
  A largest = widen(y[index]), result = A(0);
  bool found = false;
  for (i32 iy = rows.first; iy < rows.last && !found; iy++)
    for (i32 ix = columns.first; ix < columns.last && !found; ix++) {
      u64 at = input_at(form, p.image, iy, ix, p.channel);
      found = same(widen(x[at]), largest);
      if (found) result = widen(gg[at]);
    }
  out[index] = narrow<T>(result);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool(T* out, const T* x, const Windows form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  Place p = place_of(index, form, form.out_height, form.out_width);
  Range rows = inside(i32(p.y) * form.stride_y - form.top, form.window_y, form.height);
  Range columns = inside(i32(p.x) * form.stride_x - form.left, form.window_x, form.width);
  A sum[LANES] = {};
  for (i32 y = rows.first; y < rows.last; y++)
    for (i32 x0 = columns.first; x0 < columns.last; x0++) {
      Lanes found = load<LANES>(x + input_at(form, p.image, y, x0, p.channel));
#pragma unroll
      for (int i = 0; i < LANES; i++) sum[i] += widen(found.at[i]);
    }
  A count = A(counted(form, i32(p.y), i32(p.x)));
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = narrow<T>(sum[i] / count);
  store<LANES>(out + index, result);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_grad(T* dx, const T* g, const Windows form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  Place p = place_of(index, form, form.height, form.width);
  Range rows = covering(i32(p.y), form.top, form.window_y, form.stride_y, form.out_height);
  Range columns = covering(i32(p.x), form.left, form.window_x, form.stride_x, form.out_width);
  A sum[LANES] = {};
  for (i32 oy = rows.first; oy < rows.last; oy++)
    for (i32 ox = columns.first; ox < columns.last; ox++) {
      A count = A(counted(form, oy, ox));
      Lanes found = load<LANES>(g + output_at(form, p.image, oy, ox, p.channel));
#pragma unroll
      for (int i = 0; i < LANES; i++) sum[i] += widen(found.at[i]) / count;
    }
  Lanes result;
#pragma unroll
  for (int i = 0; i < LANES; i++) result.at[i] = narrow<T>(sum[i]);
  store<LANES>(dx + index, result);
}
