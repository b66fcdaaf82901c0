// Positions of the largest or smallest element of an array seen as (outer, length, inner), along `length`. The first of equal
// ones counts, and the first NaN. ELEMENT: element type. BEATS(x, y): whether x comes before y.
#include "blocks.cuh"

struct Form {
  u64 outer, length, inner;
};

template <class A>
struct Best {
  A value;
  i64 at;  // -1: none yet
};

template <class A>
DEVICE bool better(A x, i64 at, const Best<A>& best) {
  if (best.at < 0) return at >= 0;
  if (at < 0) return false;
  bool wins = (is_nan(x) && !is_nan(best.value)) || BEATS(x, best.value);
  bool ties = x == best.value || (is_nan(x) && is_nan(best.value));
  return wins || (ties && at < best.at);
}

// A block for every result.
extern "C" __global__ void __launch_bounds__(128) arg_reduce(i64* out, const ELEMENT* input, const Form form) {
  using A = Wide<ELEMENT>;
  __shared__ A values[128];
  __shared__ i64 places[128];
  u64 outer = blockIdx.x / form.inner, column = blockIdx.x % form.inner;
  const ELEMENT* start = input + outer * form.length * form.inner + column;
  Best<A> best{A(0), -1};
  for (u64 i = threadIdx.x; i < form.length; i += 128) {
    A x = widen(start[i * form.inner]);
    if (better(x, i64(i), best)) best = {x, i64(i)};
  }
  values[threadIdx.x] = best.value;
  places[threadIdx.x] = best.at;
  for (int half = 64; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      best = {values[threadIdx.x], places[threadIdx.x]};
      if (better(values[threadIdx.x + half], places[threadIdx.x + half], best)) {
        values[threadIdx.x] = values[threadIdx.x + half];
        places[threadIdx.x] = places[threadIdx.x + half];
      }
    }
  }
  if (threadIdx.x == 0) out[blockIdx.x] = places[0];
}
