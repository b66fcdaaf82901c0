// Gather, its adjoint, and one-hot vectors. ELEMENT: element type; INDEX: type of the positions; LANES: elements by one access.
// Positions outside an axis give NaN (floating point) or zero when gathered, and nothing when scattered: a kernel cannot raise.
#include "blocks.cuh"

using T = ELEMENT;

struct Form {
  u64 outer, positions, size, inner;  // x is (outer, size, inner); the index has `positions` entries
};

template <class E>
struct Missing {
  static E value() { return E(0); }
};
template <>
struct Missing<float> {
  static float value() { return __uint_as_float(0x7fc00000u); }
};
template <>
struct Missing<double> {
  static double value() { return double(__uint_as_float(0x7fc00000u)); }
};
template <>
struct Missing<half_t> {
  static half_t value() { return to_half(__uint_as_float(0x7fc00000u)); }
};
template <>
struct Missing<bf16_t> {
  static bf16_t value() { return to_bf16(__uint_as_float(0x7fc00000u)); }
};

// out (outer, positions, inner)
extern "C" __global__ void __launch_bounds__(256) gather(T* out, const T* x, const INDEX* index, const Form form) {
  u64 element = global_thread() * LANES;
  if (element >= form.outer * form.positions * form.inner) return;
  u64 column = element % form.inner, row = element / form.inner;
  i64 at = i64(index[row % form.positions]);
  if (at < 0) at += i64(form.size);
  Vector<T, LANES> found;
  if (at >= 0 && at < i64(form.size)) {
    found = load<LANES>(x + (row / form.positions * form.size + at) * form.inner + column);
  } else {
#pragma unroll
    for (int i = 0; i < LANES; i++) found.at[i] = Missing<T>::value();
  }
  store<LANES>(out + element, found);
}

// out (outer, size, inner) = sums of g (outer, positions, inner). A block computes one place of `size` for 256 columns: it looks
// through the index in order and adds the rows that belong there, so that the sum does not depend on the order of blocks.
extern "C" __global__ void __launch_bounds__(256) scatter_add(T* out, const T* g, const INDEX* index, const Form form) {
  __shared__ u32 matches[8];
  __shared__ i64 rows[256];
  u64 column = blockIdx.y * u64(256) + threadIdx.x;
  u64 outer = blockIdx.x / form.size;
  i64 place = i64(blockIdx.x % form.size);
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Wide<T> sum = Wide<T>(0);
  for (u64 start = 0; start < form.positions; start += 256) {
    u64 k = start + threadIdx.x;
    i64 at = k < form.positions ? i64(index[k]) : i64(form.size);
    if (at < 0) at += i64(form.size);
    u32 vote = __ballot_sync(kAll, at == place);
    if (lane == 0) matches[warp] = vote;
    __syncthreads();
    u32 before = 0, all = 0;
    for (u32 w = 0; w < 8; w++) {
      if (w == warp) before = all;
      all += __popc(matches[w]);
    }
    if (at == place) rows[before + __popc(vote & ((1u << lane) - 1))] = i64(k);
    __syncthreads();
    if (column < form.inner)
      for (u32 m = 0; m < all; m++) sum += widen(g[(outer * form.positions + rows[m]) * form.inner + column]);
    __syncthreads();
  }
  if (column < form.inner) out[u64(blockIdx.x) * form.inner + column] = narrow<T>(sum);
}

// out (positions, size)
extern "C" __global__ void __launch_bounds__(256) one_hot(T* out, const INDEX* index, const Form form) {
  u64 element = global_thread();
  if (element >= form.positions * form.size) return;
  out[element] = narrow<T>(Wide<T>(i64(index[element / form.size]) == i64(element % form.size)));
}
