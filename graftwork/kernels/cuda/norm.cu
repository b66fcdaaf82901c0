// Batch and layer normalisation over arrays seen as (rows, channels). ELEMENT: element type; parameters have it too.
#include "blocks.cuh"

using T = ELEMENT;
using A = Wide<T>;

DEVICE float sqrt_of(float x) { return sqrtf(x); }
DEVICE double sqrt_of(double x) { return sqrt(x); }

struct Form {
  u64 rows;
  u32 channels, parts;
  double epsilon;
};

// -- batch norm ----------------------------------------------------------------------------------------------------------
// Blocks are (32, 8): threads lie along channels, 8 rows of them share the rows of a part. Grid: (channels / 32, parts).

// Count, mean and sum of squared distances of some values (Welford, 1962), and of two sets together (Chan et al., 1983).
struct Moments {
  A count, mean, squares;
  DEVICE void see(A x) {
    count += A(1);
    A distance = x - mean;
    mean += distance / count;
    squares += distance * (x - mean);
  }
  DEVICE void join(const Moments& other) {
    A total = count + other.count;
    if (total == A(0)) return;
    A distance = other.mean - mean, share = other.count / total;
    mean += distance * share;
    squares += other.squares + distance * distance * count * share;
    count = total;
  }
};

DEVICE void rows_of_part(const Form& form, u32 part, u64& first, u64& last) {
  u64 each = (form.rows + form.parts - 1) / form.parts;
  first = min(each * part, form.rows);
  last = min(first + each, form.rows);
}

// Partial moments (parts, 3, channels).
extern "C" __global__ void __launch_bounds__(256) batch_moments(A* partial, const T* x, const Form form) {
  __shared__ A shared[8][3][33];
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  u64 first, last;
  rows_of_part(form, blockIdx.y, first, last);
  Moments moments{A(0), A(0), A(0)};
  if (channel < form.channels)
    for (u64 row = first + threadIdx.y; row < last; row += 8) moments.see(widen(x[row * form.channels + channel]));
  shared[threadIdx.y][0][threadIdx.x] = moments.count;
  shared[threadIdx.y][1][threadIdx.x] = moments.mean;
  shared[threadIdx.y][2][threadIdx.x] = moments.squares;
  __syncthreads();
  if (threadIdx.y > 0 || channel >= form.channels) return;
  for (int y = 1; y < 8; y++) moments.join({shared[y][0][threadIdx.x], shared[y][1][threadIdx.x], shared[y][2][threadIdx.x]});
  A* to = partial + u64(blockIdx.y) * 3 * form.channels + channel;
  to[0] = moments.count;
  to[form.channels] = moments.mean;
  to[2 * u64(form.channels)] = moments.squares;
}

// Mean and biased variance of every channel from the partial moments. A thread a channel.
extern "C" __global__ void __launch_bounds__(256) join_moments(T* mean, T* var, const A* partial, const Form form) {
  u64 channel = global_thread();
  if (channel >= form.channels) return;
  Moments moments{A(0), A(0), A(0)};
  for (u32 part = 0; part < form.parts; part++) {
    const A* from = partial + u64(part) * 3 * form.channels + channel;
    moments.join({from[0], from[form.channels], from[2 * u64(form.channels)]});
  }
  mean[channel] = narrow<T>(moments.mean);
  var[channel] = narrow<T>(moments.squares / moments.count);
}

// y = (x - mean) / sqrt(var + epsilon) * gamma + beta; LANES channels by one access.
extern "C" __global__ void __launch_bounds__(256) batch_norm(T* y, const T* x, const T* gamma, const T* beta, const T* mean,
                                                            const T* var, const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.rows * form.channels) return;
  u32 channel = u32(index % form.channels);
  Vector<T, LANES> values = load<LANES>(x + index), g = load<LANES>(gamma + channel), b = load<LANES>(beta + channel);
  Vector<T, LANES> m = load<LANES>(mean + channel), v = load<LANES>(var + channel);
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    A scale = widen(g.at[i]) / sqrt_of(widen(v.at[i]) + A(form.epsilon));
    values.at[i] = narrow<T>((widen(values.at[i]) - widen(m.at[i])) * scale + widen(b.at[i]));
  }
  store<LANES>(y + index, values);
}

// Partial sums (parts, 2, channels) of g and of g * normal, with normal = (x - mean) / sqrt(var + epsilon).
extern "C" __global__ void __launch_bounds__(256) batch_grad_sums(A* partial, const T* g, const T* x, const T* mean,
                                                                 const T* var, const Form form) {
  __shared__ A shared[8][2][33];
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  u64 first, last;
  rows_of_part(form, blockIdx.y, first, last);
  A sum = A(0), weighted = A(0);
  if (channel < form.channels) {
    A m = widen(mean[channel]), rstd = A(1) / sqrt_of(widen(var[channel]) + A(form.epsilon));
    for (u64 row = first + threadIdx.y; row < last; row += 8) {
      A gradient = widen(g[row * form.channels + channel]);
      sum += gradient;
      weighted += gradient * ((widen(x[row * form.channels + channel]) - m) * rstd);
    }
  }
  shared[threadIdx.y][0][threadIdx.x] = sum;
  shared[threadIdx.y][1][threadIdx.x] = weighted;
  __syncthreads();
  if (threadIdx.y > 0 || channel >= form.channels) return;
  for (int y = 1; y < 8; y++) {
    sum += shared[y][0][threadIdx.x];
    weighted += shared[y][1][threadIdx.x];
  }
  partial[u64(blockIdx.y) * 2 * form.channels + channel] = sum;
  partial[(u64(blockIdx.y) * 2 + 1) * form.channels + channel] = weighted;
}

extern "C" __global__ void __launch_bounds__(256) join_grad_sums(T* dgamma, T* dbeta, A* sums, const A* partial,
                                                                const Form form) {
  u64 channel = global_thread();
  if (channel >= form.channels) return;
  A sum = A(0), weighted = A(0);
  for (u32 part = 0; part < form.parts; part++) {
    sum += partial[u64(part) * 2 * form.channels + channel];
    weighted += partial[(u64(part) * 2 + 1) * form.channels + channel];
  }
  dbeta[channel] = narrow<T>(sum);
  dgamma[channel] = narrow<T>(weighted);
  sums[channel] = sum;
  sums[form.channels + channel] = weighted;
}

// dx = gamma * rstd * (g - sum / rows - normal * weighted / rows)
extern "C" __global__ void __launch_bounds__(256) batch_grad(T* dx, const T* g, const T* x, const T* gamma, const T* mean,
                                                            const T* var, const A* sums, const Form form) {
  u64 index = global_thread() * LANES;
  if (index >= form.rows * form.channels) return;
  u32 channel = u32(index % form.channels);
  Vector<T, LANES> gradients = load<LANES>(g + index), values = load<LANES>(x + index), results;
  A share = A(1) / A(form.rows);
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    A rstd = A(1) / sqrt_of(widen(var[channel + i]) + A(form.epsilon));
    A normal = (widen(values.at[i]) - widen(mean[channel + i])) * rstd;
    A rest = sums[channel + i] * share + normal * (sums[form.channels + channel + i] * share);
    results.at[i] = narrow<T>(widen(gamma[channel + i]) * rstd * (widen(gradients.at[i]) - rest));
  }
  store<LANES>(dx + index, results);
}

// -- layer norm ----------------------------------------------------------------------------------------------------------
// A team of TEAM threads (32, or the block's 256) works on a row.

template <class Operation>
DEVICE A team_reduce(A value) {
  if constexpr (TEAM == 32)
    return warp_reduce<Operation>(value);
  else
    return block_reduce<Operation, TEAM>(value);
}
DEVICE u64 team_row() { return TEAM == 32 ? global_thread() / 32 : blockIdx.x; }
DEVICE u32 team_place() { return TEAM == 32 ? threadIdx.x % 32 : threadIdx.x; }

extern "C" __global__ void __launch_bounds__(256) layer_norm(T* y, T* mean, T* rstd, const T* x, const T* gamma, const T* beta,
                                                            const Form form) {
  u64 row = team_row();
  if (row >= form.rows) return;
  x += row * form.channels;
  y += row * form.channels;
  A total = A(0), squares = A(0);
  for (u32 i = team_place(); i < form.channels; i += TEAM) total += widen(x[i]);
  A centre = team_reduce<Sum>(total) / A(form.channels);
  for (u32 i = team_place(); i < form.channels; i += TEAM) {  // a second look, for sums of squares cancel
    A distance = widen(x[i]) - centre;
    squares += distance * distance;
  }
  A scale = A(1) / sqrt_of(team_reduce<Sum>(squares) / A(form.channels) + A(form.epsilon));
  for (u32 i = team_place(); i < form.channels; i += TEAM)
    y[i] = narrow<T>((widen(x[i]) - centre) * scale * widen(gamma[i]) + widen(beta[i]));
  if (team_place() == 0) {
    mean[row] = narrow<T>(centre);
    rstd[row] = narrow<T>(scale);
  }
}

// dx, and g * normal as `weighted`, whose column sums are dgamma.
extern "C" __global__ void __launch_bounds__(256) layer_grad(T* dx, A* weighted, const T* g, const T* x, const T* gamma,
                                                            const T* mean, const T* rstd, const Form form) {
  u64 row = team_row();
  if (row >= form.rows) return;
  u64 start = row * form.channels;
  A centre = widen(mean[row]), scale = widen(rstd[row]), first = A(0), second = A(0);
  for (u32 i = team_place(); i < form.channels; i += TEAM) {
    A normal = (widen(x[start + i]) - centre) * scale, scaled = widen(g[start + i]) * widen(gamma[i]);
    weighted[start + i] = widen(g[start + i]) * normal;
    first += scaled;
    second += scaled * normal;
  }
  first = team_reduce<Sum>(first) / A(form.channels);
  second = team_reduce<Sum>(second) / A(form.channels);
  for (u32 i = team_place(); i < form.channels; i += TEAM) {
    A normal = (widen(x[start + i]) - centre) * scale, scaled = widen(g[start + i]) * widen(gamma[i]);
    dx[start + i] = narrow<T>(scale * (scaled - first - normal * second));
  }
}
