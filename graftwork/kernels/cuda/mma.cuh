// The mma.sync tier: one main loop for matrix products and convolutions, in tf32, fp16, bf16 and int8.
//
// A block computes a BM x BN tile of the output. Tiles of A and B, 64 bytes deep along K, pass through a ring of STAGES stages in
// shared memory: cp.async fills a stage while the tensor cores work on an earlier one. Each warp owns a WM x WN part of the
// output in registers. All types share one shape of fragment, in bytes (see mma_f16 in ptx.cuh), so the loop knows bytes only.
//
// A tile is stored as the operand lies in memory: with K contiguous, one row of 64 bytes for each m or n; with M or N contiguous
// one row for each k. 16-byte chunks are permuted within a row (`swizzle`), so that the eight rows that ldmatrix reads at once lie
// in different banks. A loader is any type with `load(tile, k)`, which copies this thread's chunks of the tile that begins at k.
#pragma once
#include "epilogue.cuh"
#include "ptx.cuh"

template <class T>
struct Accumulates {
  using Type = float;
};
template <>
struct Accumulates<i8> {
  using Type = i32;
};

constexpr int kDepthBytes = 64;  // of a tile along K

template <class T_, int BM_, int BN_, int WARPS_M_, int WARPS_N_, int STAGES_, bool A_K_, bool B_K_>
struct Tile {
  using T = T_;
  using Accumulator = typename Accumulates<T>::Type;
  static constexpr int BM = BM_, BN = BN_, BK = kDepthBytes / int(sizeof(T)), STAGES = STAGES_;
  static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;  // of a warp
  static constexpr bool A_K = A_K_, B_K = B_K_;               // whether K is contiguous
  static constexpr int STAGE_BYTES = (BM + BN) * kDepthBytes;
};

// The place of a 16-byte chunk in a row, in chunks.
template <class T, bool K_CONTIGUOUS, int ROW_BYTES>
DEVICE int swizzle(int row, int chunk) {
  if constexpr (ROW_BYTES == 64) return chunk ^ (row >> 1 & 3);
  else if constexpr (sizeof(T) == 4 && !K_CONTIGUOUS) return chunk ^ (row & 3) << 1;  // read by words: four rows at once
  else return chunk ^ (row & 7);
}

// ---------------------------------------------------------------- loaders

// How a tile of EXTENT rows or columns along M or N is dealt out: each thread copies one column of chunks, every STEP rows.
template <class T_, int EXTENT, bool K_CONTIGUOUS_, int THREADS>
struct TileShape {
  using T = T_;
  static constexpr bool K_CONTIGUOUS = K_CONTIGUOUS_;
  static constexpr int ROWS = K_CONTIGUOUS ? EXTENT : kDepthBytes / int(sizeof(T));
  static constexpr int ROW_BYTES = K_CONTIGUOUS ? kDepthBytes : EXTENT * int(sizeof(T));
  static constexpr int CHUNKS = ROW_BYTES / 16, STEP = THREADS / CHUNKS;
  static constexpr int PER_THREAD = (ROWS + STEP - 1) / STEP;
  static constexpr int PER_CHUNK = 16 / int(sizeof(T));  // elements
  DEVICE static int first_row() { return threadIdx.x / CHUNKS; }
  DEVICE static int chunk() { return threadIdx.x % CHUNKS; }
  DEVICE static u8* place(u8* tile, int row) { return tile + row * ROW_BYTES + swizzle<T, K_CONTIGUOUS, ROW_BYTES>(row, chunk()) * 16; }
};

// Copies one chunk, in pieces of VEC bytes. `find(i)` gives the address of element i of the chunk, or null where zeros belong.
template <class T, int VEC, class Find>
DEVICE void copy_chunk(u8* destination, const T* base, Find find) {
  constexpr int PER_PIECE = VEC / int(sizeof(T));
  if constexpr (VEC >= 4) {
#pragma unroll
    for (int i = 0; i < 16 / VEC; i++) {
      const T* source = find(i * PER_PIECE);
      cp_async<VEC>(destination + i * VEC, source ? source : base, source != nullptr);
    }
  } else {  // too narrow for cp.async: through registers
    union {
      Vec16 vector;
      T element[16 / sizeof(T)];
    } pack;
    pack.vector = Vec16{};
#pragma unroll
    for (int i = 0; i < int(16 / sizeof(T)); i++) {
      const T* source = find(i);
      if (source) pack.element[i] = *source;
    }
    *reinterpret_cast<Vec16*>(destination) = pack.vector;
  }
}

// A matrix in memory, [row][column] with `ld` elements from row to row; zeros outside.
template <class Shape, int VEC>
struct MatrixLoader {
  using T = typename Shape::T;
  const T* base;
  i64 ld;
  int row, column, rows, columns;
  DEVICE MatrixLoader(const T* base, i64 ld, int origin, int extent, int depth)
      : base(base), ld(ld), row(Shape::first_row()), column(Shape::chunk() * Shape::PER_CHUNK) {
    (Shape::K_CONTIGUOUS ? row : column) += origin;
    rows = Shape::K_CONTIGUOUS ? extent : depth;
    columns = Shape::K_CONTIGUOUS ? depth : extent;
  }
  DEVICE void load(u8* tile, int k) const {
    int c = Shape::K_CONTIGUOUS ? column + k : column;
#pragma unroll
    for (int i = 0; i < Shape::PER_THREAD; i++) {
      int local = Shape::first_row() + i * Shape::STEP, r = row + i * Shape::STEP + (Shape::K_CONTIGUOUS ? 0 : k);
      if (Shape::ROWS % Shape::STEP && local >= Shape::ROWS) break;
      const T* source = base + r * ld + c;
      copy_chunk<T, VEC>(Shape::place(tile, local), base, [&](int j) { return r < rows && c + j < columns ? source + j : nullptr; });
    }
  }
};

// Patches of an NHWC image. A patch belongs to a point (n, i, j) of a grid and is made of taps (a, b): the pixel at
// y = i * stride_y + base_y + a * step_y, and x likewise. A forward convolution has base = -padding and step = dilation; an input
// gradient is of the same form (see arguments.py).
struct Patches {
  i32 height, width, channels;  // of the image, channels of one group
  i32 pixel;                    // elements from a pixel to the next
  i32 points;                   // of the grid
  i32 taps;
  i32 stride_y, stride_x, base_y, base_x, step_y, step_x;
  FastDivide grid_height, grid_width, tap_width, by_channels;
};

struct Point {
  int n, y, x;  // x, y: of tap (0, 0)
};
DEVICE Point locate_point(const Patches& p, u32 point) {
  u32 i, j;
  int n = divide(divide(point, p.grid_width, j), p.grid_height, i);
  return {n, int(i) * p.stride_y + p.base_y, int(j) * p.stride_x + p.base_x};
}
struct TapOffset {
  int y, x, channel;
};
DEVICE TapOffset locate_tap(const Patches& p, u32 element) {  // element = tap * channels + channel
  u32 channel, b;
  u32 tap = divide(element, p.by_channels, channel);
  int a = divide(tap, p.tap_width, b);
  return {a * p.step_y, int(b) * p.step_x, int(channel)};
}
template <class T>
DEVICE const T* patch_element(const Patches& p, const T* image, Point point, TapOffset tap) {
  int y = point.y + tap.y, x = point.x + tap.x;
  if (u32(y) >= u32(p.height) || u32(x) >= u32(p.width)) return nullptr;
  return image + ((i64(point.n) * p.height + y) * p.width + x) * p.pixel + tap.channel;
}

// The matrix of patches, [point][tap * channels + channel], with K along the patch (K contiguous: forward, input gradient) or along
// the points (weight gradient). With VEC = 16 a chunk lies within one tap.
template <class Shape, int VEC>
struct PatchLoader {
  using T = typename Shape::T;
  const Patches& patches;
  const T* image;
  int elements;
  int origin;
  Point points[Shape::K_CONTIGUOUS ? Shape::PER_THREAD : 1];
  DEVICE PatchLoader(const Patches& patches, const T* image, int origin) : patches(patches), image(image), origin(origin) {
    elements = patches.taps * patches.channels;
    if constexpr (Shape::K_CONTIGUOUS) {
#pragma unroll
      for (int i = 0; i < Shape::PER_THREAD; i++) points[i] = find_point(origin + Shape::first_row() + i * Shape::STEP);
    }
  }
  DEVICE Point find_point(int number) const {
    if (number >= patches.points) return {0, -(1 << 24), 0};  // outside of every image
    return locate_point(patches, number);
  }
  DEVICE void load(u8* tile, int k) const {
    int column = Shape::chunk() * Shape::PER_CHUNK + (Shape::K_CONTIGUOUS ? k : origin);
    TapOffset tap = locate_tap(patches, column);
#pragma unroll
    for (int i = 0; i < Shape::PER_THREAD; i++) {
      int local = Shape::first_row() + i * Shape::STEP;
      if (Shape::ROWS % Shape::STEP && local >= Shape::ROWS) break;
      Point point;
      if constexpr (Shape::K_CONTIGUOUS) point = points[i];
      else point = find_point(k + local);
      copy_chunk<T, VEC>(Shape::place(tile, local), image, [&](int j) -> const T* {
        if (column + j >= elements) return nullptr;
        return patch_element(patches, image, point, VEC == 16 ? tap : locate_tap(patches, column + j));
      });
    }
  }
};

// The weights of an input gradient, [input channel][tap * outputs + output], where the taps are a sub-grid of the filter's.
struct Filter {
  i32 inputs, outputs;     // channels of one group
  i32 row;                 // elements from an input channel to the next: all output channels
  i32 taps, first;         // number; offset of the first tap in elements
  i32 step_y, step_x;      // elements from a tap of the sub-grid to the next
  FastDivide tap_width, by_outputs;
};
template <class Shape, int VEC>
struct FilterLoader {
  using T = typename Shape::T;
  const Filter& filter;
  const T* weights;
  int origin;
  DEVICE FilterLoader(const Filter& filter, const T* weights, int origin) : filter(filter), weights(weights), origin(origin) {}
  DEVICE const T* element(int row, int column) const {
    u32 output, b;
    u32 tap = divide(column, filter.by_outputs, output);
    int a = divide(tap, filter.tap_width, b);
    if (row >= filter.inputs || int(tap) >= filter.taps) return nullptr;
    return weights + filter.first + a * filter.step_y + int(b) * filter.step_x + i64(row) * filter.row + output;
  }
  DEVICE void load(u8* tile, int k) const {
    int column = Shape::chunk() * Shape::PER_CHUNK + k;
#pragma unroll
    for (int i = 0; i < Shape::PER_THREAD; i++) {
      int local = Shape::first_row() + i * Shape::STEP;
      if (Shape::ROWS % Shape::STEP && local >= Shape::ROWS) break;
      copy_chunk<T, VEC>(Shape::place(tile, local), weights, [&](int j) { return element(origin + local, column + j); });
    }
  }
};

// ---------------------------------------------------------------- fragments

template <class T>
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (sizeof(T) == 4) mma_tf32(d, a, b0, b1);
  else mma_bf16(d, a, b0, b1);
}
template <>
DEVICE void multiply<half_t>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }
template <class T>
DEVICE void multiply(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_s8(d, a, b0, b1); }

template <class T>
DEVICE void round_operands(u32 (&r)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) r[i] = round_tf32(r[i]);
  }
}

// Loads 16 rows along M or N by 32 bytes along K, as four registers of 8 rows by 16 bytes. Register order, by (rows, bytes):
// operand A (0-7, 0-15), (8-15, 0-15), (0-7, 16-31), (8-15, 16-31); operand B (0-7, 0-15), (0-7, 16-31), (8-15, 0-15), (8-15, 16-31).
template <class T, bool K_CONTIGUOUS, bool IS_A, int EXTENT>
DEVICE void load_fragment(u32 (&r)[4], const u8* tile, int first, int step) {
  constexpr int ROW_BYTES = K_CONTIGUOUS ? kDepthBytes : EXTENT * int(sizeof(T));
  int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
  int half_mn = IS_A ? low : high, half_k = IS_A ? high : low;
  if constexpr (K_CONTIGUOUS) {
    int row = first + half_mn * 8 + lane % 8, chunk = step * 2 + half_k;
    ldmatrix_x4(r, tile + row * ROW_BYTES + swizzle<T, true, ROW_BYTES>(row, chunk) * 16);
  } else if constexpr (sizeof(T) == 2) {
    int row = step * 16 + half_k * 8 + lane % 8, chunk = first / 8 + half_mn;
    ldmatrix_x4_trans(r, tile + row * ROW_BYTES + swizzle<T, false, ROW_BYTES>(row, chunk) * 16);
  } else {  // 32-bit elements cannot be transposed by ldmatrix
    static_assert(sizeof(T) == 4, "int8 operands have K contiguous");
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int upper_mn = IS_A ? i % 2 : i / 2, upper_k = IS_A ? i / 2 : i % 2;
      int row = step * 8 + upper_k * 4 + lane % 4, column = first + upper_mn * 8 + lane / 4;
      r[i] = *reinterpret_cast<const u32*>(tile + row * ROW_BYTES + swizzle<T, false, ROW_BYTES>(row, column / 4) * 16 + column % 4 * 4);
    }
  }
  round_operands<T>(r);
}

// ---------------------------------------------------------------- main loop

template <class Tile>
using Accumulators = typename Tile::Accumulator[Tile::WM / 16][Tile::WN / 8][4];

template <class Tile>
DEVICE void multiply_stage(const u8* a_tile, const u8* b_tile, Accumulators<Tile>& acc) {
  using T = typename Tile::T;
  int warp = threadIdx.x / 32, m0 = warp / Tile::WARPS_N * Tile::WM, n0 = warp % Tile::WARPS_N * Tile::WN;
#pragma unroll
  for (int step = 0; step < kDepthBytes / 32; step++) {
    u32 a[Tile::WM / 16][4], b[Tile::WN / 16][4];
#pragma unroll
    for (int i = 0; i < Tile::WM / 16; i++) load_fragment<T, Tile::A_K, true, Tile::BM>(a[i], a_tile, m0 + 16 * i, step);
#pragma unroll
    for (int j = 0; j < Tile::WN / 16; j++) load_fragment<T, Tile::B_K, false, Tile::BN>(b[j], b_tile, n0 + 16 * j, step);
#pragma unroll
    for (int i = 0; i < Tile::WM / 16; i++)
#pragma unroll
      for (int j = 0; j < Tile::WN / 8; j++) multiply<T>(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

// Tiles first to last - 1 along K.
template <class Tile, class LoaderA, class LoaderB>
DEVICE void main_loop(u8* shared, const LoaderA& a, const LoaderB& b, int first, int last, Accumulators<Tile>& acc) {
#pragma unroll
  for (int i = 0; i < Tile::WM / 16; i++)
#pragma unroll
    for (int j = 0; j < Tile::WN / 8; j++)
#pragma unroll
      for (int k = 0; k < 4; k++) acc[i][j][k] = 0;
  auto fill = [&](int block) {  // an empty group keeps the count of groups in step
    if (block < last) {
      u8* stage = shared + (block - first) % Tile::STAGES * Tile::STAGE_BYTES;
      a.load(stage, block * Tile::BK);
      b.load(stage + Tile::BM * kDepthBytes, block * Tile::BK);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int i = 0; i < Tile::STAGES - 1; i++) fill(first + i);
  for (int block = first; block < last; block++) {
    cp_async_wait<Tile::STAGES - 2>();
    __syncthreads();  // the stage has landed for all threads, and all have left the one that is filled next
    fill(block + Tile::STAGES - 1);
    const u8* stage = shared + (block - first) % Tile::STAGES * Tile::STAGE_BYTES;
    multiply_stage<Tile>(stage, stage + Tile::BM * kDepthBytes, acc);
  }
  cp_async_wait<0>();
  __syncthreads();
}

// ---------------------------------------------------------------- output

// Where a block's tile goes. With `partial`, raw accumulators for splits of K: [split][rows][columns], finished by split_k.cu.
struct Output {
  void* out;
  void* partial;
  RowMap rows;
  Epilogue epilogue;
};

// The pointers that end every kernel's list of parameters, and how they become an Output.
#define OUTPUT_POINTERS void *out, void *partial, const void *bias, const void *residual, const float *scale
#define OUTPUT_FROM(form) Output{out, partial, form.rows, {bias, residual, scale, form.wide, form.requantise}}

// Each warp turns 16 rows at a time through shared memory, so that a lane holds 16 bytes of one row.
template <class Tile, class Out, class Bias>
DEVICE void store_tile(u8* shared, const Output& output, Out* out, i64 partial_offset, int m0, int n0, int rows, int columns,
                       const Accumulators<Tile>& acc) {
  using Accumulator = typename Tile::Accumulator;
  constexpr int PITCH = Tile::WN + 8, COUNT = 16 / int(sizeof(Out)), LANES = Tile::WN / COUNT;
  static_assert(Tile::WARPS_M * Tile::WARPS_N * 16 * PITCH * 4 <= Tile::STAGES * Tile::STAGE_BYTES, "fits the stages' memory");
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Accumulator* turn = reinterpret_cast<Accumulator*>(shared) + warp * 16 * PITCH;
  m0 += warp / Tile::WARPS_N * Tile::WM;
  n0 += warp % Tile::WARPS_N * Tile::WN;
#pragma unroll
  for (int i = 0; i < Tile::WM / 16; i++) {
#pragma unroll
    for (int j = 0; j < Tile::WN / 8; j++)
#pragma unroll
      for (int k = 0; k < 4; k++) turn[(lane / 4 + k / 2 * 8) * PITCH + j * 8 + lane % 4 * 2 + k % 2] = acc[i][j][k];
    __syncwarp();
#pragma unroll
    for (int pass = 0; pass < (16 * LANES + 31) / 32; pass++) {
      int item = pass * 32 + lane, row = item / LANES, column = n0 + item % LANES * COUNT, m = m0 + 16 * i + row;
      if (row >= 16 || m >= rows || column >= columns) continue;
      Accumulator value[COUNT];
#pragma unroll
      for (int c = 0; c < COUNT; c++) value[c] = turn[row * PITCH + item % LANES * COUNT + c];
      if (output.partial) {
        Accumulator* partial = static_cast<Accumulator*>(output.partial) + partial_offset + i64(m) * columns + column;
#pragma unroll
        for (int c = 0; c < COUNT; c++)
          if (column + c < columns) partial[c] = value[c];
      } else {
        store_columns<Out, Bias>(out, row_offset(output.rows, m) + column, column, columns, value, output.epilogue);
      }
    }
    __syncwarp();
  }
}

// Tiles in bands of eight rows, so that blocks that run together share operands in the second-level cache.
DEVICE void tile_origin(int number, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
  int band = number / (8 * tiles_n), height = min(8, tiles_m - band * 8), within = number - band * 8 * tiles_n;
  tile_m = band * 8 + within % height;
  tile_n = within / height;
}
