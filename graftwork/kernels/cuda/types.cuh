// Integer and floating-point types of the kernels. No header of the toolkit is used, so NVRTC needs no include path.
// Under the emulator of the tests (GRAFTWORK_EMULATOR) the same source is compiled for the CPU.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

#ifdef GRAFTWORK_EMULATOR
#define DYNAMIC_SHARED(name) u8* const name = reinterpret_cast<u8*>(emulator::dynamic_shared())
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]
#endif
// Declares `name`, a u8 pointer to the dynamic shared memory, aligned to 1024 bytes.

#define DEVICE __device__ __forceinline__

// IEEE binary16 and bfloat16: storage only, arithmetic is done in float.
struct alignas(2) half_t {
  u16 bits;
};
struct alignas(2) bf16_t {
  u16 bits;
};

// 16 bytes, the unit of wide loads, stores and copies.
struct alignas(16) Vec16 {
  u32 word[4];
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(double x) { return float(x); }
DEVICE float to_float(i32 x) { return float(x); }
DEVICE float to_float(i8 x) { return float(x); }
DEVICE float to_float(u8 x) { return float(x); }
DEVICE float to_float(bf16_t x) { return __uint_as_float(u32(x.bits) << 16); }

#ifdef GRAFTWORK_EMULATOR
DEVICE float to_float(half_t x) {
  _Float16 h;
  memcpy(&h, &x, 2);
  return float(h);
}
DEVICE half_t to_half(float x) {
  _Float16 h = _Float16(x);
  half_t r;
  memcpy(&r, &h, 2);
  return r;
}
#else
DEVICE float to_float(half_t x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
}
DEVICE half_t to_half(float x) {
  half_t r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
  return r;
}
#endif

// Round to nearest, ties to even; NaN stays NaN.
DEVICE bf16_t to_bf16(float x) {
  bf16_t r;
#if !defined(GRAFTWORK_EMULATOR) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
#else
  u32 bits = __float_as_uint(x);
  r.bits = x != x ? 0x7fff : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
  return r;
}

// from_float<T>: rounds to nearest even; integers saturate.
template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) { return x; }
template <>
DEVICE double from_float<double>(float x) { return x; }
template <>
DEVICE half_t from_float<half_t>(float x) { return to_half(x); }
template <>
DEVICE bf16_t from_float<bf16_t>(float x) { return to_bf16(x); }
template <>
DEVICE i32 from_float<i32>(float x) { return __float2int_rn(x); }
template <>
DEVICE i8 from_float<i8>(float x) { return i8(__float2int_rn(fminf(fmaxf(x, -128.f), 127.f))); }
template <>
DEVICE u8 from_float<u8>(float x) { return u8(__float2int_rn(fminf(fmaxf(x, 0.f), 255.f))); }
