// The CPU half of ptx.cuh: what each PTX instruction does to registers and memory, after NVIDIA's "Parallel Thread Execution ISA".
// Included by ptx.cuh, so the kernels' integer types are known here.
#pragma once

#define __CUDA_ARCH_FEAT_SM90_ALL 1

DEVICE u32 shared_address(const void* pointer) { return emulator::shared_address(pointer); }
DEVICE void named_barrier_sync(int id, int threads) { emulator::barrier(id, threads, true); }
DEVICE void named_barrier_arrive(int id, int threads) { emulator::barrier(id, threads, false); }

namespace ptx {
// Fails unless [pointer, pointer + bytes) is aligned and lies in dynamic shared memory.
inline void check_shared(const char* what, const void* pointer, size_t bytes, size_t alignment) {
  u32 address = emulator::shared_address(pointer);
  if (address % alignment) emulator::fail("%s: shared address %#x is not aligned to %zu bytes", what, address, alignment);
  emulator::shared_pointer(address, bytes);
}

// ---------------------------------------------------------------- matrices of 8x8 16-bit elements

template <bool TRANSPOSED>
void load_matrices(u32 (&r)[4], const void* row) {
  struct Registers {
    u32 word[4];
  };
  check_shared("ldmatrix", row, 16, 16);
  Registers result = emulator::warp_collective<const void*, Registers>(
      "ldmatrix", ~0u, row, [](const void* const* const* in, Registers* const* out, unsigned) {
        for (int lane = 0; lane < 32; lane++)
          for (int j = 0; j < 4; j++) {
            u16 pair[2];
            for (int h = 0; h < 2; h++) {
              int i = lane / 4, k = lane % 4 * 2 + h;
              const u16* source = static_cast<const u16*>(*in[8 * j + (TRANSPOSED ? k : i)]);
              pair[h] = source[TRANSPOSED ? i : k];
            }
            out[lane]->word[j] = pair[0] | u32(pair[1]) << 16;
          }
      });
  memcpy(r, result.word, sizeof r);
}
}  // namespace ptx

DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) { ptx::load_matrices<false>(r, row); }
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { ptx::load_matrices<true>(r, row); }
DEVICE void stmatrix_x4(void* row, const u32 (&r)[4]) {
  struct Lane {
    void* row;
    u32 word[4];
  } mine = {row, {r[0], r[1], r[2], r[3]}};
  ptx::check_shared("stmatrix", row, 16, 16);
  emulator::warp_collective<Lane, int>("stmatrix", ~0u, mine, [](const Lane* const* in, int* const*, unsigned) {
    for (int lane = 0; lane < 32; lane++)
      for (int j = 0; j < 4; j++) static_cast<u32*>(in[8 * j + lane / 4]->row)[lane % 4] = in[lane]->word[j];
  });
}

// ---------------------------------------------------------------- mma.sync

namespace ptx {
// Element types of tensor cores: how many fit into 4 bytes, and their values.
struct F16 {
  static constexpr int kPerWord = 2;
  static float value(u32 word, int i) { return to_float(half_t{u16(word >> 16 * i)}); }
};
struct Bf16 {
  static constexpr int kPerWord = 2;
  static float value(u32 word, int i) { return to_float(bf16_t{u16(word >> 16 * i)}); }
};
struct Tf32 {  // the low 13 bits are ignored
  static constexpr int kPerWord = 1;
  static float value(u32 word, int) { return __uint_as_float(word & 0xffffe000u); }
};
struct S8 {
  static constexpr int kPerWord = 4;
  static i32 value(u32 word, int i) { return i8(word >> 8 * i); }
};

template <class Type, class Accumulator>
void mma(const char* name, Accumulator (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  struct Lane {
    u32 a[4], b[2];
    Accumulator* d;
  } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, d};
  emulator::warp_collective<Lane, int>(name, ~0u, mine, [](const Lane* const* in, int* const*, unsigned) {
    constexpr int kDepth = 8 * Type::kPerWord;
    Accumulator a[16][kDepth], b[kDepth][8];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < Type::kPerWord; i++) {
        int k = lane % 4 * Type::kPerWord + i;
        for (int j = 0; j < 4; j++) a[lane / 4 + 8 * (j % 2)][k + kDepth / 2 * (j / 2)] = Type::value(in[lane]->a[j], i);
        for (int j = 0; j < 2; j++) b[k + kDepth / 2 * j][lane / 4] = Type::value(in[lane]->b[j], i);
      }
    Accumulator product[16][8] = {};
    for (int m = 0; m < 16; m++)
      for (int k = 0; k < kDepth; k++)
        for (int n = 0; n < 8; n++) product[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < 32; lane++)
      for (int j = 0; j < 4; j++) in[lane]->d[j] += product[lane / 4 + 8 * (j / 2)][lane % 4 * 2 + j % 2];
  });
}
}  // namespace ptx

DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { ptx::mma<ptx::F16>("mma.f16", d, a, b0, b1); }
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { ptx::mma<ptx::Bf16>("mma.bf16", d, a, b0, b1); }
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { ptx::mma<ptx::Tf32>("mma.tf32", d, a, b0, b1); }
DEVICE void mma_s8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { ptx::mma<ptx::S8>("mma.s8", d, a, b0, b1); }
DEVICE u32 round_tf32(u32 x) { return (x & 0x7f800000) == 0x7f800000 ? x : (x + 0x1000) & 0xffffe000u; }  // ties away from zero

// ---------------------------------------------------------------- cp.async

namespace ptx {
// Groups of asynchronous operations of one thread: each runs when it is committed or when it is waited for, at random.
class Groups {
 public:
  void add(std::function<void()> operation) { open_.push_back(std::move(operation)); }
  void commit() {
    if (emulator::coin()) run(open_);
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  void wait(size_t pending) {
    while (groups_.size() > pending) {
      run(groups_.front());
      groups_.erase(groups_.begin());
    }
  }

 private:
  using Group = std::vector<std::function<void()>>;
  static void run(Group& group) {
    for (auto& operation : group) operation();
    group.clear();
  }
  Group open_;
  std::vector<Group> groups_;
};

inline Groups& groups(emulator::Slot which) {
  void* kept = emulator::slot(
      which, []() -> void* { return new Groups; }, [](void* p) { delete static_cast<Groups*>(p); });
  return *static_cast<Groups*>(kept);
}
}  // namespace ptx

template <int BYTES>
DEVICE void cp_async(void* destination, const void* source, bool valid) {
  ptx::check_shared("cp.async", destination, BYTES, BYTES);
  if (valid && reinterpret_cast<size_t>(source) % BYTES) emulator::fail("cp.async: source %p is not aligned to %d bytes", source, BYTES);
  auto copy = [=] { valid ? memcpy(destination, source, BYTES) : memset(destination, 0, BYTES); };
  if (__CUDA_ARCH__ < 800) copy();
  else ptx::groups(emulator::Slot::thread_copies).add(copy);
}
DEVICE void cp_async_commit() { ptx::groups(emulator::Slot::thread_copies).commit(); }
template <int PENDING>
DEVICE void cp_async_wait() {
  ptx::groups(emulator::Slot::thread_copies).wait(PENDING);
}

// ---------------------------------------------------------------- mbarriers

namespace ptx {
struct Barrier {  // in the 8 bytes of shared memory; the hardware's layout is its own
  i16 arrivals, pending;
  i32 bytes : 31;
  u32 phase : 1;
};
static_assert(sizeof(Barrier) == 8);

inline Barrier* barrier_at(const void* pointer) {
  check_shared("mbarrier", pointer, 8, 8);
  Barrier* barrier = static_cast<Barrier*>(const_cast<void*>(pointer));
  if (barrier->arrivals <= 0) emulator::fail("mbarrier at shared address %#x is not initialised", emulator::shared_address(pointer));
  return barrier;
}
inline void complete(Barrier* barrier) {
  if (barrier->pending || barrier->bytes) return;
  barrier->phase ^= 1;
  barrier->pending = barrier->arrivals;
}
inline void arrive(Barrier* barrier) {
  if (barrier->pending-- <= 0) emulator::fail("mbarrier: more arrivals in a phase than the %d it was initialised with", barrier->arrivals);
  complete(barrier);
}
inline void land(Barrier* barrier, int bytes) {
  barrier->bytes -= bytes;
  complete(barrier);
}
template <class T>
T* in_block(T* pointer, u32 rank) {  // mapa: the same place in the shared memory of another block of the cluster
  u32 address = (emulator::shared_address(pointer) & 0xffffff) | rank << 24;
  return reinterpret_cast<T*>(emulator::shared_pointer(address, 1));
}
}  // namespace ptx

DEVICE void mbarrier_init(u64* barrier, u32 arrivals) {
  ptx::check_shared("mbarrier.init", barrier, 8, 8);
  *reinterpret_cast<ptx::Barrier*>(barrier) = {i16(arrivals), i16(arrivals), 0, 0};
}
DEVICE void mbarrier_init_fence() {}
DEVICE void mbarrier_arrive(u64* barrier) { ptx::arrive(ptx::barrier_at(barrier)); }
DEVICE void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
  ptx::Barrier* b = ptx::barrier_at(barrier);
  b->bytes += bytes;
  ptx::arrive(b);
}
DEVICE void mbarrier_arrive_remote(u64* barrier, u32 rank) {
  ptx::arrive(reinterpret_cast<ptx::Barrier*>(ptx::in_block(barrier, rank)));
}
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
  ptx::Barrier* b = ptx::barrier_at(barrier);
  emulator::wait_while(reinterpret_cast<const u32*>(b) + 1, 1u << 31, parity << 31,
                       parity ? "mbarrier (parity 1) at shared address" : "mbarrier (parity 0) at shared address", emulator::shared_address(barrier));
}
DEVICE void fence_proxy_async() {}
DEVICE u32 cluster_rank() { return emulator::cluster_rank(); }
DEVICE void cluster_sync() {
  emulator::cluster_arrive();
  emulator::cluster_wait();
}

// ---------------------------------------------------------------- TMA

namespace ptx {
// What stands in a TensorMap here; emulator/tensor_map.py writes it.
struct Map {
  u8* base;
  u8 rank, element_bytes, im2col, swizzled;
  u32 size[4];         // elements, innermost first
  u32 unused;
  i64 stride[3];       // bytes, of dimensions 1, 2, 3
  u16 box[4];          // tiled: elements; im2col: channels, pixels
  u8 step[4];          // element strides
  i8 lower[2], upper[2];  // im2col: corners of the bounding box, x and y
};
static_assert(sizeof(Map) <= 128);

struct Copy {
  Map map;
  int at[4];
  int offset[2];
  u32 shared;   // address
  u32 barrier;  // address, loads only
};

inline u32 swizzle_128(u32 address) { return address ^ (address >> 7 & 7) << 4; }
inline u32 box_bytes(const Map& map) {
  u32 bytes = map.element_bytes;
  for (int i = 0; i < (map.im2col ? 2 : map.rank); i++) bytes *= map.box[i];
  return bytes;
}

inline u8* element(const Map& map, const int (&at)[4]) {
  u8* pointer = map.base + i64(at[0]) * map.element_bytes;
  for (int i = 0; i < map.rank; i++) {
    if (at[i] < 0 || u32(at[i]) >= map.size[i]) return nullptr;
    if (i) pointer += at[i] * map.stride[i - 1];
  }
  return pointer;
}

// Calls visit(element or null, shared address) for every element of the box.
template <class Visit>
void visit_box(const Copy& copy, Visit visit) {
  const Map& map = copy.map;
  u32 offset = 0;
  auto next = [&](const int (&at)[4]) {
    u32 address = copy.shared + offset;
    visit(element(map, at), map.swizzled ? swizzle_128(address) : address);
    offset += map.element_bytes;
  };
  if (map.im2col) {
    int x = copy.at[1], y = copy.at[2], n = copy.at[3];
    for (int pixel = 0; pixel < map.box[1]; pixel++) {
      for (int c = 0; c < map.box[0]; c++) next({copy.at[0] + c, x + copy.offset[0], y + copy.offset[1], n});
      x += map.step[1];
      if (x < int(map.size[1]) + map.upper[0]) continue;
      x = map.lower[0];
      y += map.step[2];
      if (y < int(map.size[2]) + map.upper[1]) continue;
      y = map.lower[1];
      n += 1;
    }
    return;
  }
  int extent[4] = {map.box[0], map.rank > 1 ? map.box[1] : 1, map.rank > 2 ? map.box[2] : 1, map.rank > 3 ? map.box[3] : 1};
  for (int w = 0; w < extent[3]; w++)
    for (int z = 0; z < extent[2]; z++)
      for (int y = 0; y < extent[1]; y++)
        for (int x = 0; x < extent[0]; x++) next({copy.at[0] + x, copy.at[1] + y, copy.at[2] + z, copy.at[3] + w});
}

inline Copy make_copy(const TensorMap* map, u32 shared, u32 barrier, int rank) {
  Copy copy{};
  memcpy(&copy.map, map, sizeof copy.map);
  copy.shared = shared;
  copy.barrier = barrier;
  const Map& m = copy.map;
  if (m.rank != rank) emulator::fail("TMA: the tensor map has %d dimensions, the instruction %d", m.rank, rank);
  if (shared % (m.swizzled ? 1024 : 128)) emulator::fail("TMA: shared address %#x is not aligned to %d bytes", shared, m.swizzled ? 1024 : 128);
  if (m.swizzled && m.box[0] * m.element_bytes != 128) emulator::fail("TMA: rows of a swizzled box must have 128 bytes");
  if (reinterpret_cast<size_t>(m.base) % 16) emulator::fail("TMA: the tensor is not aligned to 16 bytes");
  for (int i = 0; i + 1 < m.rank; i++)
    if (m.stride[i] % 16) emulator::fail("TMA: stride %lld is no multiple of 16 bytes", m.stride[i]);
  emulator::shared_pointer(shared, box_bytes(m));
  return copy;
}

inline void load(const Copy& copy, bool multicast, u32 blocks) {
  if (!multicast) blocks = 1u << (copy.shared >> 24);
  for (u32 rank = 0; rank < 32; rank++) {
    if (!(blocks >> rank & 1)) continue;
    Copy* mine = new Copy(copy);
    mine->shared = (copy.shared & 0xffffff) | rank << 24;
    mine->barrier = (copy.barrier & 0xffffff) | rank << 24;
    emulator::later(
        [](void* context) {
          Copy* copy = static_cast<Copy*>(context);
          u32 bytes = copy->map.element_bytes;
          visit_box(*copy, [&](const u8* source, u32 address) {
            char* target = emulator::shared_pointer(address, bytes);
            source ? memcpy(target, source, bytes) : memset(target, 0, bytes);
          });
          land(reinterpret_cast<Barrier*>(emulator::shared_pointer(copy->barrier, 8)), box_bytes(copy->map));
          delete copy;
        },
        mine);
  }
}
}  // namespace ptx

DEVICE void tma_prefetch_map(const TensorMap*) {}
template <bool MULTICAST>
DEVICE void tma_load_3d(void* destination, const TensorMap* map, u64* barrier, int x, int y, int z, u16 blocks) {
  ptx::barrier_at(barrier);
  ptx::Copy copy = ptx::make_copy(map, shared_address(destination), shared_address(barrier), 3);
  if (copy.map.im2col) emulator::fail("TMA: a tiled load with an im2col map");
  copy.at[0] = x, copy.at[1] = y, copy.at[2] = z;
  ptx::load(copy, MULTICAST, blocks);
}
template <bool MULTICAST>
DEVICE void tma_load_im2col(void* destination, const TensorMap* map, u64* barrier, int c, int x, int y, int n, u16 offset_x,
                            u16 offset_y, u16 blocks) {
  ptx::barrier_at(barrier);
  ptx::Copy copy = ptx::make_copy(map, shared_address(destination), shared_address(barrier), 4);
  if (!copy.map.im2col) emulator::fail("TMA: an im2col load with a tiled map");
  copy.at[0] = c, copy.at[1] = x, copy.at[2] = y, copy.at[3] = n;
  copy.offset[0] = offset_x, copy.offset[1] = offset_y;
  ptx::load(copy, MULTICAST, blocks);
}
DEVICE void tma_store_3d(const TensorMap* map, const void* source, int x, int y, int z) {
  ptx::Copy copy = ptx::make_copy(map, shared_address(source), 0, 3);
  copy.at[0] = x, copy.at[1] = y, copy.at[2] = z;
  ptx::groups(emulator::Slot::thread_stores).add([copy] {
    u32 bytes = copy.map.element_bytes;
    ptx::visit_box(copy, [&](u8* target, u32 address) {
      if (target) memcpy(target, emulator::shared_pointer(address, bytes), bytes);
    });
  });
}
DEVICE void tma_store_commit() { ptx::groups(emulator::Slot::thread_stores).commit(); }
template <int PENDING>
DEVICE void tma_store_wait_read() {
  ptx::groups(emulator::Slot::thread_stores).wait(PENDING);
}
template <int PENDING>
DEVICE void tma_store_wait() {
  ptx::groups(emulator::Slot::thread_stores).wait(PENDING);
}

// ---------------------------------------------------------------- wgmma

template <int REGISTERS>
DEVICE void registers_raise() {}
template <int REGISTERS>
DEVICE void registers_lower() {}

namespace ptx {
// One wgmma of a warpgroup, run when it is waited for: so a stage that is overwritten too early shows.
struct Product {
  void* d[128];
  u64 a, b;
  int n, accumulate;
  bool ta, tb;
  void (*run)(const Product&);
};
struct Products {
  std::vector<Product> open;
  std::vector<std::vector<Product>> groups;
};
inline Products& products() {
  void* kept = emulator::slot(
      emulator::Slot::warpgroup_products, []() -> void* { return new Products; }, [](void* p) { delete static_cast<Products*>(p); });
  return *static_cast<Products*>(kept);
}

// Element (row of M or N, k) of an operand; `block` holds the rank of the thread's block for the address.
template <class Type>
auto operand(u64 descriptor, bool mn_contiguous, int row, int k, u32 block) {
  constexpr u32 kBytes = 4 / Type::kPerWord, kPerLine = 128 / kBytes;
  u32 start = (descriptor & 0x3fff) << 4, far = (descriptor >> 16 & 0x3fff) << 4, near = (descriptor >> 32 & 0x3fff) << 4;
  u32 address = mn_contiguous ? start + row / kPerLine * far + k / 8 * near + k % 8 * 128 + row % kPerLine * kBytes
                              : start + row / 8 * near + row % 8 * 128 + k * kBytes;
  u32 word = 0;
  memcpy(&word, emulator::shared_pointer(block | swizzle_128(address), kBytes), kBytes);
  return Type::value(word, 0);
}

template <class Type, class Accumulator>
void run_product(const Product& p) {
  constexpr int kDepth = 8 * Type::kPerWord;
  static Accumulator a[64][kDepth], b[kDepth][256], d[64][256];
  u32 block = emulator::cluster_rank() << 24;
  for (int k = 0; k < kDepth; k++) {
    for (int m = 0; m < 64; m++) a[m][k] = operand<Type>(p.a, p.ta, m, k, block);
    for (int n = 0; n < p.n; n++) b[k][n] = operand<Type>(p.b, p.tb, n, k, block);
  }
  memset(d, 0, sizeof d);
  for (int m = 0; m < 64; m++)
    for (int k = 0; k < kDepth; k++)
      for (int n = 0; n < p.n; n++) d[m][n] += a[m][k] * b[k][n];
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < p.n / 2; i++) {
      Accumulator& target = static_cast<Accumulator*>(p.d[t])[i];
      Accumulator product = d[t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2)][i / 4 * 8 + t % 4 * 2 + i % 2];
      target = p.accumulate ? target + product : product;
    }
}

template <class Type, int TA, int TB, class Accumulator, int COUNT>
void wgmma(const char* name, Accumulator (&d)[COUNT], u64 a, u64 b, int accumulate) {
  if (a >> 62 != 1 || b >> 62 != 1) emulator::fail("%s: the descriptor does not say 128-byte swizzle", name);
  Product mine = {{}, a, b, 2 * COUNT, accumulate, TA != 0, TB != 0, run_product<Type, Accumulator>};
  mine.d[0] = d;
  emulator::meet_warpgroup(
      name, &mine, nullptr,
      [](void*, void* const* inputs, void* const*, unsigned) {
        Product all = *static_cast<const Product*>(inputs[0]);
        for (int t = 0; t < 128; t++) {
          const Product& other = *static_cast<const Product*>(inputs[t]);
          if (other.a != all.a || other.b != all.b || other.accumulate != all.accumulate)
            emulator::fail("wgmma: the threads of the warpgroup have different descriptors");
          all.d[t] = other.d[0];
        }
        products().open.push_back(all);
      },
      nullptr);
}
inline void settle(size_t pending) {
  Products& all = products();
  while (all.groups.size() > pending) {
    for (auto& product : all.groups.front()) product.run(product);
    all.groups.erase(all.groups.begin());
  }
}
}  // namespace ptx

DEVICE void wgmma_fence() { emulator::meet_warpgroup("wgmma.fence", nullptr, nullptr, nullptr, nullptr); }
DEVICE void wgmma_commit() {
  emulator::meet_warpgroup(
      "wgmma.commit_group", nullptr, nullptr,
      [](void*, void* const*, void* const*, unsigned) {
        ptx::products().groups.push_back(std::move(ptx::products().open));
        ptx::products().open.clear();
      },
      nullptr);
}
template <int PENDING>
DEVICE void wgmma_wait() {
  emulator::meet_warpgroup(
      "wgmma.wait_group", nullptr, nullptr, [](void*, void* const*, void* const*, unsigned) { ptx::settle(PENDING); }, nullptr);
}
template <int TA, int TB, int COUNT>
DEVICE void wgmma_bf16(float (&d)[COUNT], u64 a, u64 b, int accumulate) {
  ptx::wgmma<ptx::Bf16, TA, TB>("wgmma.bf16", d, a, b, accumulate);
}
template <int TA, int TB, int COUNT>
DEVICE void wgmma_f16(float (&d)[COUNT], u64 a, u64 b, int accumulate) {
  ptx::wgmma<ptx::F16, TA, TB>("wgmma.f16", d, a, b, accumulate);
}
template <int TA, int TB, int COUNT>
DEVICE void wgmma_tf32(float (&d)[COUNT], u64 a, u64 b, int accumulate) {
  ptx::wgmma<ptx::Tf32, TA, TB>("wgmma.tf32", d, a, b, accumulate);
}
template <int TA, int TB, int COUNT>
DEVICE void wgmma_s8(i32 (&d)[COUNT], u64 a, u64 b, int accumulate) {
  ptx::wgmma<ptx::S8, TA, TB>("wgmma.s8", d, a, b, accumulate);
}
