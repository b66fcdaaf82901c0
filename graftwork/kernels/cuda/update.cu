// Updates in place: optimiser steps, moving averages, counters. ELEMENT: element type of parameters, gradients and state; RATE:
// type of the learning rate and step count, which lie in device memory so that a recorded step follows them; TENSORS: how many tensors a
// table has room for; LANES: elements by one access.
#include "scalar.cuh"

using T = ELEMENT;
using A = Wide<T>;

DEVICE float sqrt_of(float x) { return sqrtf(x); }
DEVICE double sqrt_of(double x) { return sqrt(x); }

// Updates take many tensors in one launch: a table of their arrays, how many elements each has, and at which block it begins.
template <int ARRAYS>
struct Table {
  void* at[TENSORS][ARRAYS];
};
struct Spread {
  u64 count[TENSORS];
  u32 first[TENSORS];
  u32 tensors;
};
constexpr u32 kChunk = 256 * LANES * 4;  // elements of a block

DEVICE u32 tensor_of(const Spread& spread, u32 block) {
  u32 low = 0, high = spread.tensors;
  while (high - low > 1) {
    u32 middle = (low + high) / 2;
    if (spread.first[middle] <= block) low = middle;
    else high = middle;
  }
  return low;
}

// Calls body(index, count) for the block's elements: LANES at a time, fewer at a tensor's end.
template <class Body>
DEVICE void each(const Spread& spread, u32 tensor, Body body) {
  u64 start = u64(blockIdx.x - spread.first[tensor]) * kChunk + threadIdx.x * LANES, count = spread.count[tensor];
#pragma unroll 1
  for (int i = 0; i < 4; i++) {
    u64 index = start + u64(i) * 256 * LANES;
    if (index < count) body(index, int(min(count - index, u64(LANES))));
  }
}
DEVICE Vector<T, LANES> take(const void* array, u64 index, int count) {
  const T* from = static_cast<const T*>(array) + index;
  if (count == LANES) return load<LANES>(from);
  Vector<T, LANES> some{};
#pragma unroll
  for (int i = 0; i < LANES; i++)
    if (i < count) some.at[i] = from[i];
  return some;
}
DEVICE void put(void* array, u64 index, int count, const Vector<T, LANES>& value) {
  T* to = static_cast<T*>(array) + index;
  if (count == LANES) {
    store<LANES>(to, value);
    return;
  }
#pragma unroll
  for (int i = 0; i < LANES; i++)
    if (i < count) to[i] = value.at[i];
}

struct Sgd {
  Spread spread;
  double momentum, weight_decay, dampening;
  i32 nesterov;
};
struct Adam {
  Spread spread;
  double beta1, beta2, epsilon, weight_decay;
  i32 decoupled;
};
struct Average {
  u64 count;
  double momentum;
};

// Arrays: parameter, gradient, momentum buffer.
extern "C" __global__ void __launch_bounds__(256) sgd(const __grid_constant__ Table<3> table, const RATE* rate,
                                                     const __grid_constant__ Sgd form) {
  u32 tensor = tensor_of(form.spread, blockIdx.x);
  void *param = table.at[tensor][0], *grad = table.at[tensor][1], *buffer = table.at[tensor][2];
  A lr = A(widen(*rate)), momentum = A(form.momentum);
  each(form.spread, tensor, [&](u64 index, int count) {
    Vector<T, LANES> p = take(param, index, count), g = take(grad, index, count), b{};
    if (form.momentum != 0) b = take(buffer, index, count);
#pragma unroll
    for (int i = 0; i < LANES; i++) {
      A step = widen(g.at[i]) + A(form.weight_decay) * widen(p.at[i]);
      if (form.momentum != 0) {
        A moved = momentum * widen(b.at[i]) + A(1 - form.dampening) * step;
        b.at[i] = narrow<T>(moved);
        step = form.nesterov ? step + momentum * moved : moved;
      }
      p.at[i] = narrow<T>(widen(p.at[i]) - lr * step);
    }
    put(param, index, count, p);
    if (form.momentum != 0) put(buffer, index, count, b);
  });
}

// Arrays: parameter, gradient, mean, mean square, step count.
extern "C" __global__ void __launch_bounds__(256) adam(const __grid_constant__ Table<5> table, const RATE* rate,
                                                      const __grid_constant__ Adam form) {
  __shared__ double scale_of, root_of;  // powers in double, which is slow on most GPUs: once a block
  u32 tensor = tensor_of(form.spread, blockIdx.x);
  double lr = double(widen(*rate));
  if (threadIdx.x == 0) {
    double t = double(widen(*static_cast<const RATE*>(table.at[tensor][4])));
    scale_of = lr / (1 - pow(form.beta1, t));
    root_of = sqrt(1 - pow(form.beta2, t));
  }
  __syncthreads();
  void *param = table.at[tensor][0], *grad = table.at[tensor][1], *mean = table.at[tensor][2], *square = table.at[tensor][3];
  A scale = A(scale_of), root = A(root_of);
  A beta1 = A(form.beta1), beta2 = A(form.beta2), rest1 = A(1 - form.beta1), rest2 = A(1 - form.beta2);
  A shrink = form.decoupled ? A(1 - lr * form.weight_decay) : A(1), decay = form.decoupled ? A(0) : A(form.weight_decay);
  each(form.spread, tensor, [&](u64 index, int count) {
    Vector<T, LANES> p = take(param, index, count), g = take(grad, index, count);
    Vector<T, LANES> m = take(mean, index, count), v = take(square, index, count);
#pragma unroll
    for (int i = 0; i < LANES; i++) {
      A value = widen(p.at[i]) * shrink, gradient = widen(g.at[i]) + decay * widen(p.at[i]);
      A first = beta1 * widen(m.at[i]) + rest1 * gradient, second = beta2 * widen(v.at[i]) + rest2 * (gradient * gradient);
      m.at[i] = narrow<T>(first);
      v.at[i] = narrow<T>(second);
      p.at[i] = narrow<T>(value - scale * (first / (sqrt_of(second) / root + A(form.epsilon))));
    }
    put(param, index, count, p);
    put(mean, index, count, m);
    put(square, index, count, v);
  });
}

extern "C" __global__ void __launch_bounds__(256) average(T* running, const T* value, const Average form) {
  u64 index = global_thread();
  if (index >= form.count) return;
  running[index] = narrow<T>(A(form.momentum) * widen(running[index]) + A(1 - form.momentum) * widen(value[index]));
}

extern "C" __global__ void count_up(const __grid_constant__ Table<1> table, u32 counters) {
  if (threadIdx.x >= counters) return;
  T* counter = static_cast<T*>(table.at[threadIdx.x][0]);
  *counter = narrow<T>(widen(*counter) + A(1));
}
