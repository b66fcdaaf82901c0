"""Machine words shared between threads, as Numba intrinsics: atomic loads, stores and updates, indirect calls, waiting.

Addresses are plain int64 values. All operations are sequentially consistent.
"""

from __future__ import annotations

import platform
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
WORDS = types.CPointer(types.int64)
ON_LINUX = sys.platform == "linux"
_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)  # number of the system call
_FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 128, 129

_syscall = types.ExternalFunction("syscall", types.int64(*([types.int64] * 7)))
_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))
yield_core = types.ExternalFunction("sched_yield", types.int32())
CAN_WAIT = ON_LINUX and _FUTEX != 0


def _word(builder, address):
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def load(typing_context, address):
    """The int64 at `address`."""

    def code(context, builder, signature, arguments):
        return builder.load_atomic(_word(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), code


@intrinsic
def store(typing_context, address, value):
    """Set the int64 at `address`."""

    def code(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def add(typing_context, address, value):
    """Add to the int64 at `address`; returns what was there before."""

    def code(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def swap_if(typing_context, address, expected, value):
    """Set the int64 at `address` if it equals `expected`; returns whether it did."""

    def code(context, builder, signature, arguments):
        pair = builder.cmpxchg(_word(builder, arguments[0]), arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), code


@intrinsic
def pause(typing_context):
    """Tell the core that it is spinning."""

    def code(context, builder, signature, arguments):
        if _ON_X86:
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VOID, []), name), [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def invoke(typing_context, function, arguments, part):
    """Call the task at address `function` with (pointer to its words, part)."""

    def code(context, builder, signature, values):
        kind = ir.FunctionType(_VOID, [_I64.as_pointer(), _I64])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [_word(builder, values[1]), values[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


def _pointer_to(element):
    """An intrinsic `(words, i)` -> typed pointer: word number `i` of a task's arguments is an array's address."""

    @intrinsic
    def pointer(typing_context, words, i):
        result = types.CPointer(element)

        def code(context, builder, signature, arguments):
            address = builder.load(builder.gep(arguments[0], [arguments[1]]))
            return builder.inttoptr(address, context.get_value_type(result))

        return result(WORDS, types.int64), code

    return pointer


f32 = _pointer_to(types.float32)
f64 = _pointer_to(types.float64)
i8 = _pointer_to(types.int8)
u8 = _pointer_to(types.uint8)
i32 = _pointer_to(types.int32)
i64 = _pointer_to(types.int64)
u64 = _pointer_to(types.uint64)


@intrinsic
def real(typing_context, words, i):
    """Word number `i` of a task's arguments as a number: its bits are those of a float64."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(builder.load(builder.gep(arguments[0], [arguments[1]])), ir.DoubleType())

    return types.float64(WORDS, types.int64), code


def wait_while(address, value):
    """Sleep while the low 32 bits at `address` equal `value`, until woken; may return early. (Compiled by its callers.)"""
    if CAN_WAIT:
        _syscall(_FUTEX, address, _FUTEX_WAIT_PRIVATE, value, 0, 0, 0)
    else:
        _usleep(50)


def wake_all(address):
    """Wake the threads that sleep on `address`. (Compiled by its callers.)"""
    if CAN_WAIT:
        _syscall(_FUTEX, address, _FUTEX_WAKE_PRIVATE, 1 << 30, 0, 0, 0)
