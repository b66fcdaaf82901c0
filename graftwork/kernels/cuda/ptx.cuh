// Every PTX instruction that a kernel uses, behind one function each. The other half of this file, for the CPU, is
// ptx_emulated.h of the tests' emulator. Sources: NVIDIA, "Parallel Thread Execution ISA" 8.x.
#pragma once
#include "types.cuh"

// A TMA tensor map: 128 opaque bytes, made by cuTensorMapEncodeTiled or cuTensorMapEncodeIm2col, passed as __grid_constant__.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

#ifdef GRAFTWORK_EMULATOR
#include GRAFTWORK_EMULATOR  // the path of the other half
#else

// The address of a pointer to shared memory within the shared window, which PTX instructions take.
DEVICE u32 shared_address(const void* pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

// Named barriers (1 to 15; 0 is __syncthreads). `threads` counts all that arrive or wait.
DEVICE void named_barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---------------------------------------------------------------- warp matrices (sm_75)

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. Register j of lane l holds
// elements (l / 4, l % 4 * 2) and the next of matrix j; with _trans those of the transposed matrix.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The inverse of ldmatrix_x4 (sm_90).
DEVICE void stmatrix_x4(void* row, const u32 (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

// d[16x8] += a[16 x 32 bytes] * b[32 bytes x 8]: in every form, register j of a holds 4 bytes of row lane / 4 + 8 * (j % 2) at byte
// lane % 4 * 4 + 16 * (j / 2), and register j of b those of column lane / 4 at the same bytes.
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
DEVICE void mma_s8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#pragma unroll
  for (int half = 0; half < 2; half++) {  // of the 16 rows
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(d[2 * half]), "+r"(d[2 * half + 1])
                 : "r"(a[half]), "r"(b0));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(d[2 * half]), "+r"(d[2 * half + 1])
                 : "r"(a[2 + half]), "r"(b1));
  }
#endif
}
// Before sm_80 there is neither bf16 nor tf32: the functions exist so that templates may name them, and stop the kernel.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}
// The tensor core ignores the low 13 bits of its operands: round them first (round_tf32).
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}
DEVICE u32 round_tf32(u32 x) {
#if __CUDA_ARCH__ >= 800
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(x)));
  return r;
#else
  __trap();
  return x;
#endif
}

// ---------------------------------------------------------------- asynchronous copies (sm_80)

// Copies 16, 8 or 4 bytes to shared memory, or writes zeros there where `valid` is false (the source is then not read).
// Before sm_80 these are ordinary loads and stores.
template <int BYTES>
DEVICE void cp_async(void* destination, const void* source, bool valid) {
#if __CUDA_ARCH__ >= 800
  int size = valid ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(destination)), "l"(source), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(destination)), "l"(source), "n"(BYTES), "r"(size)
                 : "memory");
#else
  struct alignas(BYTES) Chunk {
    u32 word[BYTES / 4];
  };
  Chunk chunk = {};
  if (valid) chunk = *static_cast<const Chunk*>(source);
  *static_cast<Chunk*>(destination) = chunk;
#endif
}
DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// ---------------------------------------------------------------- mbarriers (sm_90)

DEVICE void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine and to the cluster; a barrier between threads must follow.
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and expects so many bytes of asynchronous copies in this phase.
DEVICE void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Arrives at the same barrier of block `rank` of the cluster.
DEVICE void mbarrier_arrive_remote(u64* barrier, u32 rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// Waits until the phase with this parity (0 for the first) is complete.
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}
// Orders ordinary writes to shared memory before reads by the copy engine and by wgmma.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---------------------------------------------------------------- clusters (sm_90)

DEVICE u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// ---------------------------------------------------------------- TMA (sm_90)

DEVICE void tma_prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// One thread asks for a box of the tensor whose first element is at the coordinates (innermost first). What lies outside becomes
// zero. The barrier is told when the bytes have landed. With MULTICAST, they land at the same place in every block of `blocks`.
template <bool MULTICAST>
DEVICE void tma_load_3d(void* destination, const TensorMap* map, u64* barrier, int x, int y, int z, u16 blocks) {
  if constexpr (MULTICAST)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(destination)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(blocks)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(destination)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// The im2col form over an NHWC tensor: pixels in order of the bounding box, beginning at pixel (n, y, x), each moved by the
// offset of the filter tap; c is the first channel.
template <bool MULTICAST>
DEVICE void tma_load_im2col(void* destination, const TensorMap* map, u64* barrier, int c, int x, int y, int n, u16 offset_x,
                            u16 offset_y, u16 blocks) {
  if constexpr (MULTICAST)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(shared_address(destination)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(n), "h"(offset_x), "h"(offset_y), "h"(blocks)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(destination)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(n), "h"(offset_x), "h"(offset_y)
        : "memory");
}
// One thread writes a box from shared memory to the tensor; what lies outside is left out.
DEVICE void tma_store_3d(const TensorMap* map, const void* source, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most PENDING groups of this thread's stores still read shared memory, or (tma_store_wait) are unfinished.
template <int PENDING>
DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
template <int PENDING>
DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif

// ---------------------------------------------------------------- wgmma (sm_90a)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int REGISTERS>
DEVICE void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
DEVICE void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define REGISTERS_8(how, d, i) \
  how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3]), how(d[i + 4]), how(d[i + 5]), how(d[i + 6]), how(d[i + 7])
#define REGISTERS_32(how, d, i) REGISTERS_8(how, d, i), REGISTERS_8(how, d, i + 8), REGISTERS_8(how, d, i + 16), REGISTERS_8(how, d, i + 24)
#define REGISTERS_64(how, d, i) REGISTERS_32(how, d, i), REGISTERS_32(how, d, i + 32)
#define REGISTERS_128(how, d, i) REGISTERS_64(how, d, i), REGISTERS_64(how, d, i + 64)
#define PLACES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// wgmma_<form>(d, a, b, accumulate): d[64 x N] (+)= a[64 x 32 bytes] * b[32 bytes x N], both in shared memory, described by `a` and
// `b`. TA and TB are 1 for an operand stored with M or N contiguous (16-bit types only).
// Register i of thread t of the warpgroup is row t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2), column i / 4 * 8 + t % 4 * 2 + i % 2.
#define WGMMA_16(name, shape, type, count, a_place, b_place, p_place, ta_place, tb_place)                                      \
  template <int TA, int TB>                                                                                                    \
  DEVICE void name(float (&d)[count], u64 a, u64 b, int accumulate) {                                                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_place ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." type "." type \
                 " {" PLACES_##count "}, " a_place ", " b_place ", p, 1, 1, " ta_place ", " tb_place ";\n}"                    \
                 : REGISTERS_##count("+f", d, 0)                                                                               \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB));                                                         \
  }
#define WGMMA_TF32(name, shape, count, a_place, b_place, p_place)                                                          \
  template <int TA, int TB>                                                                                                \
  DEVICE void name(float (&d)[count], u64 a, u64 b, int accumulate) {                                                      \
    static_assert(TA == 0 && TB == 0, "tf32 operands have K contiguous");                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_place ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32.tf32.tf32 " \
                 "{" PLACES_##count "}, " a_place ", " b_place ", p, 1, 1;\n}"                                             \
                 : REGISTERS_##count("+f", d, 0)                                                                           \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                       \
  }
#define WGMMA_S8(name, shape, count, a_place, b_place, p_place)                                                        \
  template <int TA, int TB>                                                                                            \
  DEVICE void name(i32 (&d)[count], u64 a, u64 b, int accumulate) {                                                    \
    static_assert(TA == 0 && TB == 0, "int8 operands have K contiguous");                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_place ", 0;\nwgmma.mma_async.sync.aligned." shape ".s32.s8.s8 " \
                 "{" PLACES_##count "}, " a_place ", " b_place ", p;\n}"                                               \
                 : REGISTERS_##count("+r", d, 0)                                                                       \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                   \
  }
WGMMA_16(wgmma_bf16, "m64n64k16", "bf16", 32, "%32", "%33", "%34", "%35", "%36")
WGMMA_16(wgmma_f16, "m64n64k16", "f16", 32, "%32", "%33", "%34", "%35", "%36")
WGMMA_TF32(wgmma_tf32, "m64n64k8", 32, "%32", "%33", "%34")
WGMMA_S8(wgmma_s8, "m64n64k32", 32, "%32", "%33", "%34")
WGMMA_16(wgmma_bf16, "m64n128k16", "bf16", 64, "%64", "%65", "%66", "%67", "%68")
WGMMA_16(wgmma_f16, "m64n128k16", "f16", 64, "%64", "%65", "%66", "%67", "%68")
WGMMA_TF32(wgmma_tf32, "m64n128k8", 64, "%64", "%65", "%66")
WGMMA_S8(wgmma_s8, "m64n128k32", 64, "%64", "%65", "%66")
WGMMA_16(wgmma_bf16, "m64n256k16", "bf16", 128, "%128", "%129", "%130", "%131", "%132")
WGMMA_16(wgmma_f16, "m64n256k16", "f16", 128, "%128", "%129", "%130", "%131", "%132")
WGMMA_TF32(wgmma_tf32, "m64n256k8", 128, "%128", "%129", "%130")
WGMMA_S8(wgmma_s8, "m64n256k32", 128, "%128", "%129", "%130")
#endif  // sm_90a
#endif  // GRAFTWORK_EMULATOR

// The descriptor of an operand in shared memory with 128-byte swizzle, whose rows of 128 bytes come in groups of eight.
// K contiguous: `group_bytes` from one group of eight rows of M or N to the next; `block_bytes` is unused.
// M or N contiguous: `group_bytes` from one group of eight rows of K to the next, `block_bytes` from 64 elements of M or N to the next.
DEVICE u64 wgmma_descriptor(const void* start, u32 group_bytes, u32 block_bytes) {
  return u64((shared_address(start) & 0x3ffff) >> 4) | u64(block_bytes >> 4) << 16 | u64(group_bytes >> 4) << 32 | u64(1) << 62;
}
