// Elementwise operations, one after another, in one pass over memory. Macros from `elementwise.py`:
//   RESULT      type of the output's elements
//   LANES    how many neighbouring elements a thread computes, and moves by one access where it can
//   RANK     dimensions that STRIDED inputs are decoded over (0: none are)
//   INPUTS   INPUT(number, type, mode) for every input
//   STEPS    statements that compute `result` from x0, x1, ...
// Modes: FLAT (as the output), SCALAR (one element), ROW (repeats along the leading dimensions), UNIT and ANY (own strides; the
// last one is 1, or anything).
#include "operations.cuh"

struct Form {
  u64 count;    // elements of the output
  u32 columns;  // of a ROW input
  u32 sizes[8];
  i64 strides[MOST_INPUTS][8];
  double parameters[16];
};

enum Mode { FLAT, SCALAR, ROW, UNIT, ANY };

// The offset of an element of a strided input, from its position along each dimension.
inline i64 offset_of(const u32* at, const i64* strides) {
  i64 offset = 0;
#pragma unroll
  for (int d = 0; d < RANK; d++) offset += at[d] * strides[d];
  return offset;
}

template <Mode mode, int N, class T>
inline Vector<T, N> fetch(const T* input, u64 index, const Form& form, const u32* at, const i64* strides) {
  Vector<T, N> found;
  if constexpr (mode == FLAT) return load<N>(input + index);
  if constexpr (mode == ROW) return load<N>(input + index % form.columns);
  if constexpr (mode == UNIT) return load<N>(input + offset_of(at, strides));
  if constexpr (mode == SCALAR) {
#pragma unroll
    for (int i = 0; i < N; i++) found.at[i] = *input;
  }
  if constexpr (mode == ANY) {
    i64 start = offset_of(at, strides);
#pragma unroll
    for (int i = 0; i < N; i++) found.at[i] = input[start + i * strides[RANK ? RANK - 1 : 0]];
  }
  return found;
}

#define INPUT(number, type, mode) const type *input##number,
template <int N>
inline void compute(u64 index, RESULT* out, INPUTS const Form& form) {
#undef INPUT
  u32 at[RANK + 1];
  if constexpr (RANK > 0) {
    u64 rest = index;
#pragma unroll
    for (int d = RANK - 1; d >= 0; d--) {
      at[d] = u32(rest % form.sizes[d]);
      rest /= form.sizes[d];
    }
  }
#define INPUT(number, type, mode) auto vector##number = fetch<mode, N>(input##number, index, form, at, form.strides[number]);
  INPUTS
#undef INPUT
  Vector<RESULT, N> results;
  const double* p = form.parameters;
#pragma unroll
  for (int i = 0; i < N; i++) {
#define INPUT(number, type, mode) const Wide<type> x##number = widen(vector##number.at[i]);
    INPUTS
#undef INPUT
    STEPS
    results.at[i] = narrow<RESULT>(result);
  }
  store<N>(out + index, results);
}

#define INPUT(number, type, mode) const type *input##number,
extern "C" __global__ void __launch_bounds__(256) chain(RESULT* out, INPUTS const Form form) {
#undef INPUT
#define INPUT(number, type, mode) input##number,
  u64 index = global_thread() * LANES;
  if (index + LANES <= form.count)
    compute<LANES>(index, out, INPUTS form);
  else
    for (; index < form.count; index++) compute<1>(index, out, INPUTS form);
#undef INPUT
}
