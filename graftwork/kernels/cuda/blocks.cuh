// What the threads of a warp and of a block compute together.
#pragma once
#include "scalar.cuh"

constexpr u32 kAll = 0xffffffffu;

// The sum, the largest and the smallest of what partial results are combined from. `identity` changes nothing.
struct Sum {
  template <class A>
  static A identity() {
    return A(0);
  }
  template <class A>
  static A of(A x, A y) {
    return x + y;
  }
};
struct Product {
  template <class A>
  static A identity() {
    return A(1);
  }
  template <class A>
  static A of(A x, A y) {
    return x * y;
  }
};
struct Maximum {
  template <class A>
  static A identity() {
    return Limits<A>::lowest();
  }
  template <class A>
  static A of(A x, A y) {
    return larger(x, y);
  }
};
struct Minimum {
  template <class A>
  static A identity() {
    return Limits<A>::highest();
  }
  template <class A>
  static A of(A x, A y) {
    return smaller(x, y);
  }
};

template <class Operation, class A>
DEVICE A warp_reduce(A value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = Operation::of(value, A(__shfl_xor_sync(kAll, value, distance)));
  return value;
}

// Over all threads of a one-dimensional block of THREADS (a multiple of 32); every thread gets the result.
template <class Operation, int THREADS, class A>
DEVICE A block_reduce(A value) {
  __shared__ A partial[32];
  value = warp_reduce<Operation>(value);
  if constexpr (THREADS == 32) return value;
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  constexpr int kWarps = THREADS / 32;
  A result = partial[0];
#pragma unroll
  for (int w = 1; w < kWarps; w++) result = Operation::of(result, partial[w]);
  __syncthreads();  // the next reduction writes `partial` again
  return result;
}
