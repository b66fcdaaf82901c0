// Updates in place: optimiser steps, moving averages, counters. ELEMENT: element type of parameters, gradients and state; RATE:
// type of the learning rate and step count, which lie in device memory so that a recorded step follows them.
#include "scalar.cuh"

using T = ELEMENT;
using A = Wide<T>;

DEVICE float sqrt_of(float x) { return sqrtf(x); }
DEVICE double sqrt_of(double x) { return sqrt(x); }

struct Sgd {
  u64 count;
  double momentum, weight_decay, dampening;
  i32 nesterov;
};
struct Adam {
  u64 count;
  double beta1, beta2, epsilon, weight_decay;
  i32 decoupled;
};
struct Average {
  u64 count;
  double momentum;
};

extern "C" __global__ void __launch_bounds__(256) sgd(T* param, const T* grad, T* buffer, const RATE* rate, const Sgd form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  A lr = A(widen(*rate)), momentum = A(form.momentum);
  Vector<T, LANES> p = load<LANES>(param + index), g = load<LANES>(grad + index), b;
  if (form.momentum != 0) b = load<LANES>(buffer + index);
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
  store<LANES>(param + index, p);
  if (form.momentum != 0) store<LANES>(buffer + index, b);
}

extern "C" __global__ void __launch_bounds__(256) adam(T* param, const T* grad, T* mean, T* square, const RATE* step,
                                                      const RATE* rate, const Adam form) {
  u64 index = global_thread() * LANES;
  if (index >= form.count) return;
  double t = double(widen(*step)), lr = double(widen(*rate));
  A scale = A(lr / (1 - pow(form.beta1, t))), root = A(sqrt(1 - pow(form.beta2, t)));
  A beta1 = A(form.beta1), beta2 = A(form.beta2), rest1 = A(1 - form.beta1), rest2 = A(1 - form.beta2);
  A shrink = form.decoupled ? A(1 - lr * form.weight_decay) : A(1), decay = form.decoupled ? A(0) : A(form.weight_decay);
  Vector<T, LANES> p = load<LANES>(param + index), g = load<LANES>(grad + index);
  Vector<T, LANES> m = load<LANES>(mean + index), v = load<LANES>(square + index);
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    A value = widen(p.at[i]) * shrink, gradient = widen(g.at[i]) + decay * widen(p.at[i]);
    A first = beta1 * widen(m.at[i]) + rest1 * gradient, second = beta2 * widen(v.at[i]) + rest2 * (gradient * gradient);
    m.at[i] = narrow<T>(first);
    v.at[i] = narrow<T>(second);
    p.at[i] = narrow<T>(value - scale * (first / (sqrt_of(second) / root + A(form.epsilon))));
  }
  store<LANES>(param + index, p);
  store<LANES>(mean + index, m);
  store<LANES>(square + index, v);
}

extern "C" __global__ void __launch_bounds__(256) average(T* running, const T* value, const Average form) {
  u64 index = global_thread();
  if (index >= form.count) return;
  running[index] = narrow<T>(A(form.momentum) * widen(running[index]) + A(1 - form.momentum) * widen(value[index]));
}

extern "C" __global__ void count_up(T* counter) {
  if (global_thread() == 0) *counter = narrow<T>(widen(*counter) + A(1));
}
