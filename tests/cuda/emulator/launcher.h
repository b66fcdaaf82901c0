// Turns an array of tagged values from Python into a call of a kernel with its own parameter types.
#pragma once
#include <cstring>
#include <type_traits>
#include <utility>

#include "runtime.h"

namespace emulator {

struct Argument {  // the layout that emulator/__init__.py writes
  long long kind;  // 0: integer, 1: double, 2: address of an array, 3: address of a structure's bytes
  union {
    long long integer;
    double real;
    void* address;
  };
  long long bytes;
};

template <class T>
T convert(const Argument& argument, int position) {
  using Value = std::remove_cv_t<T>;
  if constexpr (std::is_pointer_v<Value>) {
    if (argument.kind != 2 && !(argument.kind == 0 && argument.integer == 0))
      fail("argument %d must be an array or None, for the kernel takes a pointer there", position);
    return reinterpret_cast<Value>(argument.address);
  } else if constexpr (std::is_arithmetic_v<Value>) {
    if (argument.kind > 1) fail("argument %d must be a number", position);
    return argument.kind == 1 ? static_cast<Value>(argument.real) : static_cast<Value>(argument.integer);
  } else {
    if (argument.kind != 3 || argument.bytes != sizeof(Value))
      fail("argument %d must be a structure of %zu bytes, given %lld", position, sizeof(Value), argument.kind == 3 ? argument.bytes : -1);
    Value value;
    memcpy(&value, argument.address, sizeof value);
    return value;
  }
}

template <class... T, size_t... I>
void call(void (*kernel)(T...), void* const* arguments, std::index_sequence<I...>) {
  kernel(convert<T>(*static_cast<const Argument*>(arguments[I + 1]), int(I))...);
}

// arguments[0] holds their number.
template <class... T>
void call(void (*kernel)(T...), void* const* arguments) {
  long given = *static_cast<const long*>(arguments[0]);
  if (given != long(sizeof...(T))) fail("the kernel takes %zu arguments, %ld were given", sizeof...(T), given);
  call(kernel, arguments, std::index_sequence_for<T...>());
}

}  // namespace emulator
