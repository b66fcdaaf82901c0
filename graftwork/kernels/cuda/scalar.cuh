// Element types, the types that are computed in, and vectors of up to 16 bytes.
#pragma once

#include "types.cuh"

// What values of a type are computed in.
template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<half_t> {
  using type = float;
};
template <>
struct WideOf<bf16_t> {
  using type = float;
};
template <class T>
using Wide = typename WideOf<T>::type;

template <class T>
inline Wide<T> widen(T x) {
  return x;
}
template <>
inline float widen<half_t>(half_t x) {
  return to_float(x);
}
template <>
inline float widen<bf16_t>(bf16_t x) {
  return to_float(x);
}

template <class T>
struct Narrow {
  template <class A>
  static T from(A x) {
    return T(x);
  }
};
template <>
struct Narrow<half_t> {
  template <class A>
  static half_t from(A x) {
    return to_half(float(x));
  }
};
template <>
struct Narrow<bf16_t> {
  template <class A>
  static bf16_t from(A x) {
    return to_bf16(float(x));
  }
};
template <>
struct Narrow<bool> {
  template <class A>
  static bool from(A x) {
    return x != A(0);
  }
};
template <class T, class A>
inline T narrow(A x) {
  return Narrow<T>::from(x);
}

// N neighbouring elements, moved by one access.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};
template <int N, class T>
inline Vector<T, N> load(const T* address) {
  return *reinterpret_cast<const Vector<T, N>*>(address);
}
template <int N, class T>
inline void store(T* address, const Vector<T, N>& value) {
  *reinterpret_cast<Vector<T, N>*>(address) = value;
}

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static float lowest() { return __uint_as_float(0xff800000u); }
  static float highest() { return __uint_as_float(0x7f800000u); }
};
template <>
struct Limits<double> {
  static double lowest() { return __longlong_as_double(0xfff0000000000000ull); }
  static double highest() { return __longlong_as_double(0x7ff0000000000000ull); }
};
template <>
struct Limits<bool> {
  static bool lowest() { return false; }
  static bool highest() { return true; }
};
#define INTEGER_LIMITS(type, low, high)     \
  template <>                               \
  struct Limits<type> {                     \
    static type lowest() { return low; }    \
    static type highest() { return high; }  \
  };
INTEGER_LIMITS(i8, -128, 127)
INTEGER_LIMITS(i16, -32768, 32767)
INTEGER_LIMITS(i32, -2147483647 - 1, 2147483647)
INTEGER_LIMITS(i64, -9223372036854775807ll - 1, 9223372036854775807ll)
INTEGER_LIMITS(u8, 0, 255)
INTEGER_LIMITS(u16, 0, 65535)
INTEGER_LIMITS(u32, 0, 4294967295u)
INTEGER_LIMITS(u64, 0, 18446744073709551615ull)
#undef INTEGER_LIMITS

template <class A>
inline bool is_nan(A x) {
  return x != x;
}
template <class A>
inline A larger(A x, A y) {  // a NaN wins
  return x > y || is_nan(x) ? x : y;
}
template <class A>
inline A smaller(A x, A y) {
  return x < y || is_nan(x) ? x : y;
}

inline u64 global_thread() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }
