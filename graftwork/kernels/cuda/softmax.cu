// Softmax, its logarithm, their gradients and the cross-entropy. ELEMENT: element type; ROW: threads that share a row (32 or 256).
// MODE: 0 softmax, 1 log_softmax.
#include "blocks.cuh"

using T = ELEMENT;
using A = Wide<T>;

DEVICE float exp_of(float x) { return expf(x); }
DEVICE double exp_of(double x) { return exp(x); }
DEVICE float log_of(float x) { return logf(x); }
DEVICE double log_of(double x) { return log(x); }

struct Form {
  u64 rows, length, inner;  // inner > 1: neighbouring elements of a row lie `inner` apart
  double smoothing;
};

// The largest value and the sum of exponentials relative to it, of what has been seen so far.
struct Running {
  A largest, sum;
  DEVICE void see(A x) {
    if (x > largest || is_nan(x)) {
      sum = largest == Limits<A>::lowest() ? A(1) : sum * exp_of(largest - x) + A(1);
      largest = x;
    } else if (x > Limits<A>::lowest()) {
      sum += exp_of(x - largest);
    }
  }
};

template <class Operation>
DEVICE A row_reduce(A value) {
  if constexpr (ROW == 32)
    return warp_reduce<Operation>(value);
  else
    return block_reduce<Operation, ROW>(value);
}

// Which row this thread works on, and its place in the team that shares it. Blocks have 256 threads.
DEVICE u64 row_of_thread() { return ROW == 32 ? global_thread() / 32 : blockIdx.x; }
DEVICE u32 place_in_row() { return ROW == 32 ? threadIdx.x % 32 : threadIdx.x; }

DEVICE Running statistics_of(const T* row, u64 length) {
  Running running{Limits<A>::lowest(), A(0)};
  for (u64 i = place_in_row(); i < length; i += ROW) running.see(widen(row[i]));
  A largest = row_reduce<Maximum>(running.largest);
  A own = running.sum == A(0) ? A(0) : running.sum * exp_of(running.largest - largest);
  return {largest, row_reduce<Sum>(own)};
}

DEVICE A result_of(A x, const Running& all, A log_sum) {
  return MODE ? (x - all.largest) - log_sum : exp_of(x - all.largest) / all.sum;
}

extern "C" __global__ void __launch_bounds__(256) softmax_rows(T* out, const T* input, const Form form) {
  u64 row = row_of_thread();
  if (row >= form.rows) return;
  input += row * form.length;
  out += row * form.length;
  Running all = statistics_of(input, form.length);
  A log_sum = log_of(all.sum);
  for (u64 i = place_in_row(); i < form.length; i += ROW) out[i] = narrow<T>(result_of(widen(input[i]), all, log_sum));
}

// The softmaxed dimension is not the last one: a thread a row, neighbours side by side in memory.
extern "C" __global__ void __launch_bounds__(256) softmax_columns(T* out, const T* input, const Form form) {
  u64 index = global_thread();
  if (index >= form.rows) return;
  u64 start = index / form.inner * form.length * form.inner + index % form.inner;
  Running all{Limits<A>::lowest(), A(0)};
  for (u64 i = 0; i < form.length; i++) all.see(widen(input[start + i * form.inner]));
  A log_sum = log_of(all.sum);
  for (u64 i = 0; i < form.length; i++) {
    u64 at = start + i * form.inner;
    out[at] = narrow<T>(result_of(widen(input[at]), all, log_sum));
  }
}

// From the output y: y * (g - sum(g * y)), or g - exp(y) * sum(g).
DEVICE A weight_of(A g, A y) { return MODE ? g : g * y; }
DEVICE A gradient_of(A g, A y, A total) { return MODE ? g - exp_of(y) * total : y * (g - total); }

extern "C" __global__ void __launch_bounds__(256) softmax_grad_rows(T* out, const T* g, const T* y, const Form form) {
  u64 row = row_of_thread();
  if (row >= form.rows) return;
  g += row * form.length;
  y += row * form.length;
  out += row * form.length;
  A total = A(0);
  for (u64 i = place_in_row(); i < form.length; i += ROW) total += weight_of(widen(g[i]), widen(y[i]));
  total = row_reduce<Sum>(total);
  for (u64 i = place_in_row(); i < form.length; i += ROW) out[i] = narrow<T>(gradient_of(widen(g[i]), widen(y[i]), total));
}

extern "C" __global__ void __launch_bounds__(256) softmax_grad_columns(T* out, const T* g, const T* y, const Form form) {
  u64 index = global_thread();
  if (index >= form.rows) return;
  u64 start = index / form.inner * form.length * form.inner + index % form.inner;
  A total = A(0);
  for (u64 i = 0; i < form.length; i++) total += weight_of(widen(g[start + i * form.inner]), widen(y[start + i * form.inner]));
  for (u64 i = 0; i < form.length; i++) {
    u64 at = start + i * form.inner;
    out[at] = narrow<T>(gradient_of(widen(g[at]), widen(y[at]), total));
  }
}

// The loss of every row of logits (rows, length); NaN where the label is out of range. LABEL: type of the labels.
extern "C" __global__ void __launch_bounds__(256) cross_entropy(T* out, const T* logits, const LABEL* labels, const Form form) {
  u64 row = row_of_thread();
  if (row >= form.rows) return;
  logits += row * form.length;
  Running all = statistics_of(logits, form.length);
  A log_sum = log_of(all.sum);
  A total = A(0);
  if (form.smoothing > 0) {
    for (u64 i = place_in_row(); i < form.length; i += ROW) total += (widen(logits[i]) - all.largest) - log_sum;
    total = row_reduce<Sum>(total);
  }
  if (place_in_row() == 0) {
    i64 label = i64(labels[row]);
    bool known = label >= 0 && label < i64(form.length);
    A chosen = known ? (widen(logits[label]) - all.largest) - log_sum : A(0) * Limits<A>::highest();
    out[row] = narrow<T>(A(-(1 - form.smoothing)) * chosen - A(form.smoothing) * total / A(form.length));
  }
}
