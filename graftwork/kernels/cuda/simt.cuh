// Matrix products without tensor cores: strict float32 (and float64; 16-bit types are widened to float32).
//
// A block of 256 threads computes BLOCK_M x BLOCK_N of the output, BLOCK_K steps of the sum at a time. While a tile of A and B lies in
// shared memory and is multiplied, the next one is on its way from device memory into registers; two buffers in shared memory let
// one barrier a tile do. Each thread holds PART_M x PART_N results: for one step of the sum it reads PART_M + PART_N values
// from shared memory and does PART_M * PART_N multiply-adds.
//
// Where the operands come from is a Source: `load<N>(slot, row, k)` gives N neighbouring elements, along k or along the rows (m or
// n). A plain matrix, the patches of an image and the filter of an input gradient are sources, so convolutions share this loop.
#pragma once
#include "epilogue.cuh"
#include "scalar.cuh"

constexpr int kThreads = 256;

// Where row m of the product begins in the output: m * pitch, or for one phase of an input gradient the pixel that it stands for.
struct Rows {
  i64 pitch;
  i32 mapped, height, width, start_y, start_x, step_y, step_x;
  FastDivide grid_height, grid_width;
};
DEVICE i64 row_start(const Rows& rows, u32 m) {
  if (!rows.mapped) return i64(m) * rows.pitch;
  u32 x, y;
  u32 n = divide(divide(m, rows.grid_width, x), rows.grid_height, y);
  i64 pixel = (i64(n) * rows.height + rows.start_y + i32(y) * rows.step_y) * rows.width + rows.start_x + i32(x) * rows.step_x;
  return pixel * rows.pitch;
}

struct Product {
  i32 m, n, k;
  i32 share;            // steps of the sum that one split computes; a multiple of BLOCK_K
  i32 splits;
  u32 batch[3];         // sizes; blockIdx.z runs over all of them
  i64 batch_a[3], batch_b[3];
  i64 batch_out;        // from a product to the next in the output, the residual and (convolution: bias too)
  i64 batch_bias;
  i64 pitch_a, pitch_b; // from a row of the stored matrix to the next
  Rows rows;
};

DEVICE i64 batch_offset(const Product& p, const i64* strides, u32 index) {
  u32 last = index % p.batch[2], rest = index / p.batch[2];
  return (rest / p.batch[1]) * strides[0] + (rest % p.batch[1]) * strides[1] + last * strides[2];
}

// The fused activation (macro ACTIVATION); in double the forms that are exact, others in float.
DEVICE float activated(float x) { return activate<ACTIVATION>(x); }
DEVICE double activated(double x) {
  if constexpr (ACTIVATION == kNone) return x;
  else if constexpr (ACTIVATION == kRelu) return x < 0 ? 0 : x;
  else if constexpr (ACTIVATION == kRelu6) return x < 0 ? 0 : x > 6 ? 6 : x;
  else return activate<ACTIVATION>(float(x));
}

// -- sources -------------------------------------------------------------------------------------------------------------

template <int N, class T>
DEVICE Vector<T, N> load_or_zero(const T* address) {
  if (address) return load<N>(address);
  Vector<T, N> zero{};
  return zero;
}

// A stored matrix. ALONG_K: k is the contiguous direction.
template <class T, bool ALONG_K>
struct MatrixSource {
  const T* base;
  i64 pitch;
  int rows, depth;
  template <int N>
  DEVICE Vector<T, N> load(int slot, int row, int k) const {
    bool inside = row < rows && k < depth;
    return load_or_zero<N>(inside ? base + (ALONG_K ? row * pitch + k : k * pitch + row) : nullptr);
  }
};

// Patches of an NHWC image: point (n, i, j) of a grid and tap (a, b) meet at pixel y = i * stride_y + base_y + a * step_y, and x
// likewise. The forward convolution has base = -padding and step = dilation; input gradients have the same form.
struct Patches {
  i32 height, width, pixel, points, elements;  // pixel: from a pixel to the next; elements: taps * channels of a group
  i32 stride_y, stride_x, base_y, base_x, step_y, step_x;
  FastDivide grid_height, grid_width, tap_width, by_channels;
};

struct Point {
  i32 n, y, x;
};
DEVICE Point point_of(const Patches& p, u32 number) {
  if (i32(number) >= p.points) return {0, -(1 << 28), 0};  // outside of every image
  u32 i, j;
  u32 n = divide(divide(number, p.grid_width, j), p.grid_height, i);
  return {i32(n), i32(i) * p.stride_y + p.base_y, i32(j) * p.stride_x + p.base_x};
}
template <class T>
DEVICE const T* pixel_at(const Patches& p, const T* image, const Point& point, u32 element) {
  u32 channel, b;
  u32 a = divide(divide(element, p.by_channels, channel), p.tap_width, b);
  i32 y = point.y + i32(a) * p.step_y, x = point.x + i32(b) * p.step_x;
  if (i32(element) >= p.elements || u32(y) >= u32(p.height) || u32(x) >= u32(p.width)) return nullptr;
  return image + ((i64(point.n) * p.height + y) * p.width + x) * p.pixel + channel;
}

// Rows are points, k runs along the patch.
template <class T, int SLOTS>
struct PatchSource {
  const Patches& patches;
  const T* image;
  Point points[SLOTS];  // of this thread's slots, which keep their rows
  template <int N>
  DEVICE Vector<T, N> load(int slot, int row, int k) const {
    return load_or_zero<N>(pixel_at(patches, image, points[slot], u32(k)));
  }
};

// Rows run along the patch, k over the points.
template <class T>
struct PatchAcrossSource {
  const Patches& patches;
  const T* image;
  template <int N>
  DEVICE Vector<T, N> load(int slot, int row, int k) const {
    return load_or_zero<N>(pixel_at(patches, image, point_of(patches, u32(k)), u32(row)));
  }
};

// The filter of an input gradient: rows are input channels, k runs over (tap, output channel), where the taps are a sub-grid.
struct Filter {
  i32 inputs, elements, row, first, step_y, step_x;  // elements: taps * outputs; row: from an input channel to the next
  FastDivide tap_width, by_outputs;
};
template <class T>
struct FilterSource {
  const Filter& filter;
  const T* weights;
  template <int N>
  DEVICE Vector<T, N> load(int slot, int row, int k) const {
    u32 output, b;
    u32 a = divide(divide(u32(k), filter.by_outputs, output), filter.tap_width, b);
    bool inside = row < filter.inputs && k < filter.elements;
    return load_or_zero<N>(inside ? weights + filter.first + i32(a) * filter.step_y + i32(b) * filter.step_x + i64(row) * filter.row + output
                                  : nullptr);
  }
};

// -- tiles ---------------------------------------------------------------------------------------------------------------

// The part of one operand's tile, ROWS x DEPTH, that a thread moves: vectors of N elements, along k or along the rows.
template <class T, int ROWS, int DEPTH, int N, bool ALONG_K>
struct Share {
  static constexpr int kSlots = ROWS * DEPTH / (N * kThreads);
  static_assert(kSlots * N * kThreads == ROWS * DEPTH, "the tile is divided evenly");
  static constexpr int kPitch = ROWS + 4;  // columns of ALONG_K stores fall into different banks
  Vector<T, N> held[kSlots];

  DEVICE static int row(int slot) {
    int at = threadIdx.x + slot * kThreads;
    return ALONG_K ? at / (DEPTH / N) : at % (ROWS / N) * N;
  }
  DEVICE static int depth(int slot) {
    int at = threadIdx.x + slot * kThreads;
    return ALONG_K ? at % (DEPTH / N) * N : at / (ROWS / N);
  }
  template <class Source>
  DEVICE void fetch(const Source& source, int first_row, int first_k) {
#pragma unroll
    for (int s = 0; s < kSlots; s++) held[s] = source.template load<N>(s, first_row + row(s), first_k + depth(s));
  }
  DEVICE void put(Wide<T>* tile) const {
#pragma unroll
    for (int s = 0; s < kSlots; s++) {
      if constexpr (ALONG_K) {
#pragma unroll
        for (int i = 0; i < N; i++) tile[(depth(s) + i) * kPitch + row(s)] = widen(held[s].at[i]);
      } else {
        Vector<Wide<T>, N> wide;
#pragma unroll
        for (int i = 0; i < N; i++) wide.at[i] = widen(held[s].at[i]);
        store<N>(tile + depth(s) * kPitch + row(s), wide);
      }
    }
  }
};

// A thread's rows (or columns) of the block's tile: runs of four, half a tile apart where there are two. Neighbouring threads then
// read neighbouring runs, without bank conflicts.
template <int TILE, int THREAD>
DEVICE int own(int place, int i) {
  return (i / 4) * (TILE / (THREAD / 4)) + place * 4 + i % 4;
}

// -- the loop ------------------------------------------------------------------------------------------------------------

template <class T, int BLOCK_M, int BLOCK_N, int BLOCK_K, int PART_M, int PART_N, int LANES_A, int LANES_B, bool A_RUNS_K,
          bool B_RUNS_K>
struct Simt {
  using W = Wide<T>;
  using ShareA = Share<T, BLOCK_M, BLOCK_K, LANES_A, A_RUNS_K>;
  using ShareB = Share<T, BLOCK_N, BLOCK_K, LANES_B, B_RUNS_K>;
  static_assert((BLOCK_M / PART_M) * (BLOCK_N / PART_N) == kThreads, "one thread for each part");
  static constexpr int kColumns = BLOCK_N / PART_N;  // threads along n
  struct Shared {
    alignas(16) W a[2][BLOCK_K * ShareA::kPitch];
    alignas(16) W b[2][BLOCK_K * ShareB::kPitch];
  };
  W sum[PART_M][PART_N];

  // A warp covers 4 x 8 threads, so that it reads few distinct values.
  DEVICE static int thread_row() { return threadIdx.x / 32 / (kColumns / 8) * 4 + threadIdx.x % 32 / 8; }
  DEVICE static int thread_column() { return threadIdx.x / 32 % (kColumns / 8) * 8 + threadIdx.x % 8; }

  DEVICE void multiply(const W* a, const W* b) {
#pragma unroll
    for (int k = 0; k < BLOCK_K; k++) {
      W left[PART_M], right[PART_N];
#pragma unroll
      for (int i = 0; i < PART_M; i += 4) {
        Vector<W, 16 / sizeof(W)> run = load<16 / sizeof(W)>(a + k * ShareA::kPitch + own<BLOCK_M, PART_M>(thread_row(), i));
#pragma unroll
        for (int j = 0; j < int(16 / sizeof(W)); j++) left[i + j] = run.at[j];
        if constexpr (sizeof(W) == 8) {
          run = load<16 / sizeof(W)>(a + k * ShareA::kPitch + own<BLOCK_M, PART_M>(thread_row(), i + 2));
          left[i + 2] = run.at[0];
          left[i + 3] = run.at[1];
        }
      }
#pragma unroll
      for (int i = 0; i < PART_N; i += 4) {
        Vector<W, 16 / sizeof(W)> run = load<16 / sizeof(W)>(b + k * ShareB::kPitch + own<BLOCK_N, PART_N>(thread_column(), i));
#pragma unroll
        for (int j = 0; j < int(16 / sizeof(W)); j++) right[i + j] = run.at[j];
        if constexpr (sizeof(W) == 8) {
          run = load<16 / sizeof(W)>(b + k * ShareB::kPitch + own<BLOCK_N, PART_N>(thread_column(), i + 2));
          right[i + 2] = run.at[0];
          right[i + 3] = run.at[1];
        }
      }
#pragma unroll
      for (int i = 0; i < PART_M; i++)
#pragma unroll
        for (int j = 0; j < PART_N; j++) sum[i][j] += left[i] * right[j];
    }
  }

  template <class SourceA, class SourceB>
  DEVICE void run(Shared& shared, const SourceA& a, const SourceB& b, int first_m, int first_n, int first_k, int last_k) {
#pragma unroll
    for (int i = 0; i < PART_M; i++)
#pragma unroll
      for (int j = 0; j < PART_N; j++) sum[i][j] = W(0);
    if (first_k >= last_k) return;
    ShareA share_a;
    ShareB share_b;
    share_a.fetch(a, first_m, first_k);
    share_b.fetch(b, first_n, first_k);
    share_a.put(shared.a[0]);
    share_b.put(shared.b[0]);
    __syncthreads();
    int buffer = 0;
    for (int k = first_k; k < last_k; k += BLOCK_K) {
      bool more = k + BLOCK_K < last_k;
      if (more) {
        share_a.fetch(a, first_m, k + BLOCK_K);
        share_b.fetch(b, first_n, k + BLOCK_K);
      }
      multiply(shared.a[buffer], shared.b[buffer]);
      if (more) {
        share_a.put(shared.a[buffer ^ 1]);
        share_b.put(shared.b[buffer ^ 1]);
      }
      __syncthreads();
      buffer ^= 1;
    }
  }

  // With `partial` the raw sums of a split, [m][n]; otherwise the finished output. N: columns by one access.
  template <int N>
  DEVICE void write(const Product& p, T* out, W* partial, const T* bias, const T* residual, int first_m, int first_n) const {
#pragma unroll
    for (int i = 0; i < PART_M; i++) {
      int m = first_m + own<BLOCK_M, PART_M>(thread_row(), i);
      if (m >= p.m) continue;
      i64 start = partial ? i64(m) * p.n : row_start(p.rows, u32(m));
#pragma unroll
      for (int j = 0; j < PART_N; j += N) {
        int n = first_n + own<BLOCK_N, PART_N>(thread_column(), j);
        if (n >= p.n) continue;
        if (partial) {
#pragma unroll
          for (int c = 0; c < N; c++) partial[start + n + c] = sum[i][j + c];
          continue;
        }
        Vector<T, N> added{}, offset{}, result;
        if (bias) offset = load<N>(bias + n);
        if (residual) added = load<N>(residual + start + n);
#pragma unroll
        for (int c = 0; c < N; c++) {
          W value = sum[i][j + c];
          if (bias) value += widen(offset.at[c]);
          if (residual) value += widen(added.at[c]);
          result.at[c] = narrow<T>(activated(value));
        }
        store<N>(out + start + n, result);
      }
    }
  }
};

// Tiles in bands of eight rows, so that blocks that run together share operands in the second-level cache.
DEVICE void tile_of_block(u32 number, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
  int band = i32(number) / (8 * tiles_n), height = min(8, tiles_m - band * 8), within = i32(number) - band * 8 * tiles_n;
  tile_m = band * 8 + within % height;
  tile_n = within / height;
}
