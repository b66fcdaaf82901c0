// What a .cu file sees of CUDA C++ when g++ compiles it: qualifiers, built-in variables and types, warp functions, atomics and
// mathematical functions. Everything here follows the CUDA C++ programming guide's names.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// Static shared memory: thread-local storage lies in one piece, so that it can be poisoned when a block starts.
// AddressSanitizer puts red zones around ordinary static variables only, and so finds accesses out of bounds there instead.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim
constexpr int warpSize = 32;

struct dim3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(4) char4 {
  signed char x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Barriers and fences. Memory order is sequential here, so a fence does nothing.
inline void __syncthreads() { emulator::barrier(0, 0, true); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::meet_warp("__syncwarp", mask, nullptr, nullptr, nullptr, nullptr); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { emulator::yield(); }

namespace emulator {
// A reduction over the block, between two barriers as the hardware does it.
template <class Function>
int reduce_block(int start, int value, Function function) {
  static int result;
  static int users = 0;
  if (users++ == 0) result = start;
  result = function(result, value);
  __syncthreads();
  int mine = result;
  users = 0;
  __syncthreads();
  return mine;
}
template <class T, class Source>
T shuffle(const char* name, unsigned mask, T value, Source source) {
  return warp_collective<T, T>(name, mask, value, [&](const T* const* in, T* const* out, unsigned members) {
    for (int lane = 0; lane < 32; lane++) {
      if (!(members >> lane & 1)) continue;
      int from = source(lane);
      if (!(members >> from & 1)) fail("%s: lane %d reads lane %d, which does not take part", name, lane, from);
      *out[lane] = *in[from];
    }
  });
}
template <class T, class Result, class Function>
Result combine(const char* name, unsigned mask, T value, Result start, Function function) {
  return warp_collective<T, Result>(name, mask, value, [&](const T* const* in, Result* const* out, unsigned members) {
    Result result = start;
    for (int lane = 0; lane < 32; lane++)
      if (members >> lane & 1) result = function(result, *in[lane], lane);
    for (int lane = 0; lane < 32; lane++)
      if (members >> lane & 1) *out[lane] = result;
  });
}
}  // namespace emulator

inline int __syncthreads_count(int value) {
  return emulator::reduce_block(0, value != 0, [](int a, int b) { return a + b; });
}
inline int __syncthreads_or(int value) {
  return emulator::reduce_block(0, value != 0, [](int a, int b) { return a | b; });
}
inline int __syncthreads_and(int value) {
  return emulator::reduce_block(1, value != 0, [](int a, int b) { return a & b; });
}

// Warp functions.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffle("__shfl_sync", mask, value, [=](int lane) { return (lane & ~(width - 1)) | (source & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return emulator::shuffle("__shfl_xor_sync", mask, value, [=](int lane) {
    int from = lane ^ bits;
    return from / width > lane / width ? lane : from;
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return emulator::shuffle("__shfl_down_sync", mask, value, [=](int lane) {
    return lane % width + int(distance) < width ? lane + int(distance) : lane;
  });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return emulator::shuffle("__shfl_up_sync", mask, value, [=](int lane) {
    return lane % width >= int(distance) ? lane - int(distance) : lane;
  });
}
inline unsigned __ballot_sync(unsigned mask, int value) {
  return emulator::combine("__ballot_sync", mask, value, 0u, [](unsigned r, int v, int lane) { return r | unsigned(v != 0) << lane; });
}
inline int __any_sync(unsigned mask, int value) {
  return emulator::combine("__any_sync", mask, value, 0, [](int r, int v, int) { return int(r || v); });
}
inline int __all_sync(unsigned mask, int value) {
  return emulator::combine("__all_sync", mask, value, 1, [](int r, int v, int) { return int(r && v); });
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return emulator::combine("__reduce_add_sync", mask, value, T(0), [](T r, T v, int) { return T(r + v); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return emulator::combine("__reduce_max_sync", mask, value, value, [](T r, T v, int) { return v > r ? v : r; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return emulator::combine("__reduce_min_sync", mask, value, value, [](T r, T v, int) { return v < r ? v : r; });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return emulator::warp_collective<T, unsigned>("__match_any_sync", mask, value,
                                                [](const T* const* in, unsigned* const* out, unsigned members) {
                                                  for (int i = 0; i < 32; i++)
                                                    for (int j = 0; j < 32; j++)
                                                      if (members >> i & members >> j & 1 && *in[i] == *in[j]) *out[i] |= 1u << j;
                                                });
}

// Atomics: threads are switched only at the calls above, so a plain read-modify-write is atomic.
#define EMULATOR_ATOMIC(name, expression)  \
  template <class T, class V>              \
  T name(T* address, V given) {            \
    T old = *address, value = T(given);    \
    *address = expression;                 \
    return old;                            \
  }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicExch, value)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, value > old ? value : old)
EMULATOR_ATOMIC(atomicAnd, old & value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
#undef EMULATOR_ATOMIC
template <class T>
T atomicCAS(T* address, T expected, T value) {
  T old = *address;
  if (old == expected) *address = value;
  return old;
}

// Loads and stores with cache hints.
template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcs(T* pointer, T value) {
  *pointer = value;
}
template <class T>
void __stcg(T* pointer, T value) {
  *pointer = value;
}

// Bits and integers.
template <class To, class From>
To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline int __mulhi(int a, int b) { return (long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int((signed char)(a >> 8 * i)) * int((signed char)(b >> 8 * i));
  return c;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
template <class A, class B>
constexpr auto min(A a, B b) -> decltype(a + b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr auto max(A a, B b) -> decltype(a + b) {
  return a < b ? b : a;
}

// Floating point. The fast forms compute what the exact ones do.
using std::isfinite;
using std::isinf;
using std::isnan;
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __saturatef(float x) { return x < 0 || x != x ? 0 : x > 1 ? 1 : x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline int __float2int_rn(float x) { return x != x ? 0 : x >= 2147483648.f ? 2147483647 : x < -2147483648.f ? -2147483647 - 1 : int(rintf(x)); }
inline int __float2int_rz(float x) { return x != x ? 0 : x >= 2147483648.f ? 2147483647 : x < -2147483648.f ? -2147483647 - 1 : int(x); }
inline int __float2int_rd(float x) { return __float2int_rz(floorf(x)); }
inline float __int2float_rn(int x) { return float(x); }
