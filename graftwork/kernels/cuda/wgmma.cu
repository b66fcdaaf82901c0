// The sm_90a tier: matrix products and convolutions on wgmma, fed by TMA.
//
// A block has three warpgroups. One thread of the first is the producer: it asks TMA for tiles of A (128 rows) and B (TILE_N), each 128 bytes
// deep along K, into a ring of TILE_STAGES stages. The other two are consumers, each with 64 rows of the output in registers. A stage's `full`
// barrier completes when its bytes have landed, its `empty` barrier when all consumers have left it. Blocks are persistent: each works
// on one tile after another, and the producer runs ahead into the next tile while the consumers store the last one through shared
// memory and TMA. With CLUSTER = 2, two blocks with neighbouring tiles of M share the tile of B: each loads half and sends it to both.
//
// Macros: TYPE, OUT_TYPE, BIAS_TYPE, ACTIVATION; TILE_N (64, 128, 256), TILE_STAGES, CLUSTER;
//   A_K_CONTIGUOUS, B_K_CONTIGUOUS  1 if K is the contiguous axis of the operand (0 for 16-bit types only)
//   A_PATCHES  0: A is a matrix (k, m, batch). 1: A is the matrix of patches of an NHWC image, read by TMA's im2col mode; with
//              A_K_CONTIGUOUS K runs along the patch (forward, input gradient), otherwise along the pixels (weight gradient)
//   B_TAPS     0: B is a matrix (k, n, batch). 1: B is a filter, whose third coordinate is the tap
// Grid: blocks, a multiple of CLUSTER. 384 threads.
#include "epilogue.cuh"
#include "ptx.cuh"

struct WgmmaArguments {
  i32 tiles_m, tiles_n, batch, splits;
  i32 rows, columns;                  // of one product
  i32 blocks, all_blocks;             // tiles along K: of one split, of all
  FastDivide channel_blocks;          // tiles along the channels of a patch
  FastDivide tap_width;
  FastDivide grid_height, grid_width; // of the pixels of the output
  i32 taps, tap_first, tap_step;      // B_TAPS: the filter's tap for tap t of a patch is tap_first + t * tap_step
  i32 stride_y, stride_x, base_y, base_x, dilation_y, dilation_x;
  i64 ld, batch_out;                  // of the residual, as of the output
  i32 wide;
  Requantise requantise;
};

constexpr int kTileM = 128, kConsumers = 2, kDepth = 128;  // rows; warpgroups; bytes along K
constexpr int kDepthElements = kDepth / int(sizeof(TYPE));
constexpr int kBytesA = kTileM * kDepth, kBytesB = TILE_N * kDepth, kStage = kBytesA + kBytesB;
constexpr int kPanel = 64 * kDepth;                         // 64 rows of 128 bytes: what one consumer stores at a time
constexpr int kPanelColumns = 128 / int(sizeof(OUT_TYPE));
constexpr int kPanels = TILE_N / kPanelColumns;             // of a row of the tile; two buffers take turns
static_assert(kPanels * kPanelColumns == TILE_N && (kPanels == 1 || kPanels % 2 == 0), "whole panels, buffers in turn over all tiles");
constexpr int kShared = TILE_STAGES * kStage + 2 * kConsumers * kPanel;  // before the barriers

template <class T>
struct Sum {
  using Type = float;
};
template <>
struct Sum<i8> {
  using Type = i32;
};
using Accumulator = Sum<TYPE>::Type;

struct Work {
  int tile_m, tile_n, batch, first, last;  // tiles along K
  int split;
};
DEVICE Work find_work(const WgmmaArguments& p, int number, int rank) {
  int pairs = (p.tiles_m + CLUSTER - 1) / CLUSTER, per_product = pairs * p.tiles_n;
  int product = number / per_product, tile = number - product * per_product;
  int band = tile / (4 * p.tiles_n), height = min(4, pairs - band * 4), within = tile - band * 4 * p.tiles_n;
  Work w;
  w.tile_m = (band * 4 + within % height) * CLUSTER + rank;
  w.tile_n = within / height;
  w.split = product / p.batch;
  w.batch = product - w.split * p.batch;
  w.first = w.split * p.blocks;
  w.last = min(w.first + p.blocks, p.all_blocks);
  return w;
}
DEVICE int work_count(const WgmmaArguments& p) { return (p.tiles_m + CLUSTER - 1) / CLUSTER * p.tiles_n * p.batch * p.splits; }

// ---------------------------------------------------------------- producer

struct Tap {
  int number, channel, y, x;  // y, x: offset of the pixel
};
DEVICE Tap find_tap(const WgmmaArguments& p, int block) {
  u32 inner, column;
  u32 tap = divide(block, p.channel_blocks, inner);
  u32 row = divide(tap, p.tap_width, column);
  return {int(tap), int(inner) * kDepthElements, int(row) * p.dilation_y, int(column) * p.dilation_x};
}

DEVICE void load_patches(u8* tile, const TensorMap* map, u64* barrier, const WgmmaArguments& p, u32 pixel, const Tap& tap) {
  u32 x, y;
  int n = divide(divide(pixel, p.grid_width, x), p.grid_height, y);
  tma_load_im2col<false>(tile, map, barrier, tap.channel, int(x) * p.stride_x + p.base_x, int(y) * p.stride_y + p.base_y, n, tap.x, tap.y, 0);
}

DEVICE void load_a(u8* tile, const TensorMap* map, u64* barrier, const WgmmaArguments& p, const Work& w, int block) {
#if A_PATCHES && A_K_CONTIGUOUS
  load_patches(tile, map, barrier, p, w.tile_m * kTileM, find_tap(p, block));
#elif A_PATCHES
#pragma unroll
  for (int half = 0; half < 2; half++) {  // 64 channels of one tap each
    Tap tap = find_tap(p, w.tile_m * 2 + half);
    if (tap.number >= p.taps) tap = find_tap(p, 0);  // its rows are not stored
    load_patches(tile + half * kPanel, map, barrier, p, block * kDepthElements, tap);
  }
#elif A_K_CONTIGUOUS
  tma_load_3d<false>(tile, map, barrier, block * kDepthElements, w.tile_m * kTileM, w.batch, 0);
#else
#pragma unroll
  for (int half = 0; half < 2; half++)
    tma_load_3d<false>(tile + half * kPanel, map, barrier, w.tile_m * kTileM + half * 64, block * kDepthElements, w.batch, 0);
#endif
}

// This block's share of the tile of B, sent to all blocks of the cluster.
DEVICE void load_b(u8* tile, const TensorMap* map, u64* barrier, const WgmmaArguments& p, const Work& w, int block, int rank) {
  constexpr bool kMulticast = CLUSTER > 1;
  constexpr int kShare = TILE_N / CLUSTER;
  int k = block * kDepthElements, z = w.batch;
#if B_TAPS
  Tap tap = find_tap(p, block);
  k = tap.channel;
  z = p.tap_first + tap.number * p.tap_step;
#endif
  int first = rank * kShare, n = w.tile_n * TILE_N + first;
  u16 blocks = (1 << CLUSTER) - 1;
#if B_K_CONTIGUOUS
  tma_load_3d<kMulticast>(tile + first * kDepth, map, barrier, k, n, z, blocks);
#else
#pragma unroll
  for (int i = 0; i < kShare; i += 64)
    tma_load_3d<kMulticast>(tile + (first + i) * kDepth, map, barrier, n + i, k, z, blocks);
#endif
}

struct Ring {  // the position in the ring of stages and the parity of its barriers
  int stage = 0;
  u32 parity = 0;
  DEVICE void next() {
    if (++stage == TILE_STAGES) stage = 0, parity ^= 1;
  }
};

DEVICE void produce(u8* shared, u64* full, u64* empty, const TensorMap* map_a, const TensorMap* map_b, const WgmmaArguments& p, int rank) {
  Ring ring;
  for (int number = blockIdx.x / CLUSTER; number < work_count(p); number += gridDim.x / CLUSTER) {
    Work w = find_work(p, number, rank);
    for (int block = w.first; block < w.last; block++, ring.next()) {
      u8* stage = shared + ring.stage * kStage;
      mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
      mbarrier_arrive_expect(&full[ring.stage], kStage);
      load_a(stage, map_a, &full[ring.stage], p, w, block);
      load_b(stage + kBytesA, map_b, &full[ring.stage], p, w, block, rank);
    }
  }
}

// ---------------------------------------------------------------- consumers

// One wgmma for the element type: 64 rows, 32 bytes along K.
constexpr int kTransposeA = !A_K_CONTIGUOUS, kTransposeB = !B_K_CONTIGUOUS;
template <class D>
DEVICE void multiply(bf16_t, D& d, u64 a, u64 b, int accumulate) { wgmma_bf16<kTransposeA, kTransposeB>(d, a, b, accumulate); }
template <class D>
DEVICE void multiply(half_t, D& d, u64 a, u64 b, int accumulate) { wgmma_f16<kTransposeA, kTransposeB>(d, a, b, accumulate); }
template <class D>
DEVICE void multiply(float, D& d, u64 a, u64 b, int accumulate) { wgmma_tf32<kTransposeA, kTransposeB>(d, a, b, accumulate); }
template <class D>
DEVICE void multiply(i8, D& d, u64 a, u64 b, int accumulate) { wgmma_s8<kTransposeA, kTransposeB>(d, a, b, accumulate); }

// 128 bytes along K. K contiguous: 32 bytes further along the row. Otherwise: 16 rows further down.
DEVICE void multiply_stage(const u8* a, const u8* b, Accumulator (&d)[TILE_N / 2], bool accumulate) {
  constexpr int kStepA = A_K_CONTIGUOUS ? 32 : 16 * kDepth, kStepB = B_K_CONTIGUOUS ? 32 : 16 * kDepth;
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kDepth / 32; step++)
    multiply(TYPE{}, d, wgmma_descriptor(a + step * kStepA, 8 * kDepth, kPanel), wgmma_descriptor(b + step * kStepB, 8 * kDepth, kPanel),
             accumulate || step > 0);
  wgmma_commit();
}

DEVICE void release(u64* empty) {  // one thread for the warpgroup, to every block that fills this stage here
  if (threadIdx.x % 128 < CLUSTER) {
    if constexpr (CLUSTER > 1) mbarrier_arrive_remote(empty, threadIdx.x % 128);
    else mbarrier_arrive(empty);
  }
}

DEVICE void store_pair(u8* panel, int row, int column, OUT_TYPE first, OUT_TYPE second) {
  constexpr int kChunk = 16 / int(sizeof(OUT_TYPE));
  OUT_TYPE* place = reinterpret_cast<OUT_TYPE*>(panel + row * 128 + ((column / kChunk) ^ (row & 7)) * 16) + column % kChunk;
  place[0] = first;
  place[1] = second;
}
DEVICE u32 packed(bf16_t a, bf16_t b) { return a.bits | u32(b.bits) << 16; }
DEVICE u32 packed(half_t a, half_t b) { return a.bits | u32(b.bits) << 16; }

struct Place {  // of a consumer's 64 rows in the output
  int row, z, rows;
  i64 offset;  // of row 0 in the residual
  bool stored;
};

// Accumulators PANEL * kPanelColumns ... of the row: finished, converted, written to shared memory in the layout of the tensor map.
template <int PANEL>
DEVICE void fill_panel(u8* panel, const Accumulator (&d)[TILE_N / 2], const Place& place, int column0, const WgmmaArguments& p, const Epilogue& e) {
  const auto* residual = static_cast<const Residual<OUT_TYPE, Accumulator>*>(e.residual);
  int thread = threadIdx.x % 128, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
  auto value = [&](int j, int half, int i) {  // of column j * 8 + lane % 4 * 2 + i of the panel, row + 8 * half
    int column = column0 + j * 8 + lane % 4 * 2 + i, r = place.row + row + 8 * half;
    float added = 0.f;
    bool inside = column < p.columns && r < place.rows;
    if (residual && inside) added = residual_value(residual[place.offset + r * p.ld + column], e.requantise);
    Accumulator sum = d[PANEL * (kPanelColumns / 2) + j * 4 + half * 2 + i];
    return inside ? finished<OUT_TYPE, BIAS_TYPE>(sum, added, column, e) : from_float<OUT_TYPE>(0.f);
  };
#pragma unroll
  for (int j = 0; j < kPanelColumns / 8; j += 2) {
    if constexpr (sizeof(OUT_TYPE) == 2) {
      u32 r[4];
#pragma unroll
      for (int q = 0; q < 4; q++) r[q] = packed(value(j + q / 2, q % 2, 0), value(j + q / 2, q % 2, 1));
      int target = thread / 32 * 16 + lane % 16;
      stmatrix_x4(panel + target * 128 + ((j + lane / 16) ^ (target & 7)) * 16, r);
    } else {
#pragma unroll
      for (int q = 0; q < 4; q++)
        store_pair(panel, row + 8 * (q % 2), (j + q / 2) * 8 + lane % 4 * 2, value(j + q / 2, q % 2, 0), value(j + q / 2, q % 2, 1));
    }
  }
}

template <int PANEL>
DEVICE void store_panels(u8* panels, const Accumulator (&d)[TILE_N / 2], const TensorMap* map, const Place& place, int tile_column,
                         const WgmmaArguments& p, const Epilogue& e, int consumer) {
  if constexpr (PANEL * kPanelColumns < TILE_N) {
    u8* panel = panels + PANEL % 2 * kPanel;
    int column = tile_column + PANEL * kPanelColumns;
    bool elected = threadIdx.x % 128 == 0;
    if (elected) tma_store_wait_read<kPanels == 1 ? 0 : 1>();  // the store that used this panel last has read it
    named_barrier_sync(1 + consumer, 128);
    fill_panel<PANEL>(panel, d, place, column, p, e);
    fence_proxy_async();
    named_barrier_sync(1 + consumer, 128);
    if (elected) {
      if (place.stored) tma_store_3d(map, panel, column, place.row, place.z);
      tma_store_commit();
    }
    store_panels<PANEL + 1>(panels, d, map, place, tile_column, p, e, consumer);
  }
}

DEVICE Place find_place(const WgmmaArguments& p, const Work& w, int consumer) {
#if A_PATCHES && !A_K_CONTIGUOUS
  Tap tap = find_tap(p, w.tile_m * 2 + consumer);
  return {tap.channel, w.split * p.taps + tap.number, p.rows, 0, tap.number < p.taps};
#else
  return {w.tile_m * kTileM + consumer * 64, w.split * p.batch + w.batch, p.rows, w.batch * p.batch_out, true};
#endif
}

DEVICE void consume(u8* shared, u64* full, u64* empty, const TensorMap* map_out, const Epilogue& e, const WgmmaArguments& p, int rank,
                    int consumer) {
  Ring ring;
  Accumulator d[TILE_N / 2];
  for (int number = blockIdx.x / CLUSTER; number < work_count(p); number += gridDim.x / CLUSTER) {
    Work w = find_work(p, number, rank);
    int before = 0;
    for (int block = w.first; block < w.last; block++) {
      const u8* stage = shared + ring.stage * kStage;
      mbarrier_wait(&full[ring.stage], ring.parity);
      multiply_stage(stage + consumer * kPanel, stage + kBytesA, d, block > w.first);
      wgmma_wait<1>();  // the stage before has been read
      if (block > w.first) release(&empty[before]);
      before = ring.stage;
      ring.next();
    }
    wgmma_wait<0>();
    release(&empty[before]);
    u8* panels = shared + TILE_STAGES * kStage + consumer * 2 * kPanel;
    store_panels<0>(panels, d, map_out, find_place(p, w, consumer), w.tile_n * TILE_N, p, e, consumer);
  }
  if (threadIdx.x % 128 == 0) tma_store_wait<0>();
}

#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif

extern "C" __global__ void CLUSTERED __launch_bounds__(384, 1)
product_wgmma(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const __grid_constant__ TensorMap map_out,
              const void* bias, const void* residual, const float* scale, const __grid_constant__ WgmmaArguments p) {
  DYNAMIC_SHARED(shared);
  u64* full = reinterpret_cast<u64*>(shared + kShared);
  u64* empty = full + TILE_STAGES;
  int rank = CLUSTER > 1 ? cluster_rank() : 0, warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&map_a);
    tma_prefetch_map(&map_b);
    tma_prefetch_map(&map_out);
    for (int i = 0; i < TILE_STAGES; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], kConsumers * CLUSTER);
    }
    mbarrier_init_fence();
  }
  if constexpr (CLUSTER > 1) cluster_sync();
  else __syncthreads();
  if (warpgroup == 0) {
    registers_lower<40>();
    if (threadIdx.x == 0) produce(shared, full, empty, &map_a, &map_b, p, rank);
  } else {
    registers_raise<232>();
    consume(shared, full, empty, &map_out, Epilogue{bias, residual, scale, p.wide, p.requantise}, p, rank, warpgroup - 1);
  }
  if constexpr (CLUSTER > 1) cluster_sync();  // no block leaves while another may still write to it
}
