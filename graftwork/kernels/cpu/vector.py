"""Vectors of `LANES` numbers as values of compiled code, so that loops are SIMD by construction.

Numba's own loops become SIMD only where LLVM can prove that arrays do not overlap, which it cannot for a result that is written
over an input. Here a kernel loads, computes and stores vectors itself. Two layers:

- `Value` wraps an LLVM value while code is being generated; operators append instructions. Functions written in it
  (`functions.py`) serve scalars and vectors alike, in compiled kernels and in code that writes LLVM IR itself.
- `F32`, `F64`, `I32` and `MASK` are Numba types of vectors, with operators, `load`, `store`, `select` and the like.

Loads and stores need no alignment. Products and sums may be contracted to fused multiply-adds; NaN and infinity are kept.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic, lower_builtin, models, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from .simd import LANES

FLOAT, DOUBLE, BIT, BYTE = ir.FloatType(), ir.DoubleType(), ir.IntType(1), ir.IntType(8)
INT, WORD = ir.IntType(32), ir.IntType(64)
_CONTRACT = ("contract",)
_SUFFIX = {"float": "f32", "double": "f64", "i1": "i1", "i8": "i8", "i32": "i32", "i64": "i64"}


def vector_of(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


def element_of(kind: ir.Type) -> ir.Type:
    return kind.element if isinstance(kind, ir.VectorType) else kind


def like(kind: ir.Type, element: ir.Type) -> ir.Type:
    """`element`, or a vector of it where `kind` is a vector."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def constant(kind: ir.Type, value) -> ir.Constant:
    """A number in every lane."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def type_name(kind: ir.Type) -> str:
    """As LLVM's intrinsics spell it: v16f32."""
    name = _SUFFIX[str(element_of(kind))]
    return f"v{kind.count}{name}" if isinstance(kind, ir.VectorType) else name


class Value:
    """A number, vector or mask in code that is being generated."""

    __slots__ = ("builder", "ir")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value):
        self.builder, self.ir = builder, value

    @property
    def floating(self) -> bool:
        return element_of(self.ir.type) in (FLOAT, DOUBLE)

    def new(self, value: ir.Value) -> Value:
        return Value(self.builder, value)

    def constant(self, value) -> Value:
        return self.new(constant(self.ir.type, value))

    def _pair(self, other) -> tuple[ir.Value, ir.Value]:
        return self.ir, other.ir if isinstance(other, Value) else constant(self.ir.type, other)

    def _arithmetic(self, other, floating: str, integer: str, swapped: bool = False) -> Value:
        a, b = self._pair(other)
        if swapped:
            a, b = b, a
        if self.floating:
            return self.new(getattr(self.builder, floating)(a, b, flags=_CONTRACT))
        return self.new(getattr(self.builder, integer)(a, b))

    def __add__(self, other):
        return self._arithmetic(other, "fadd", "add")

    __radd__ = __add__

    def __sub__(self, other):
        return self._arithmetic(other, "fsub", "sub")

    def __rsub__(self, other):
        return self._arithmetic(other, "fsub", "sub", True)

    def __mul__(self, other):
        return self._arithmetic(other, "fmul", "mul")

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self._arithmetic(other, "fdiv", "sdiv")

    def __rtruediv__(self, other):
        return self._arithmetic(other, "fdiv", "sdiv", True)

    def __neg__(self):
        return self.new(self.builder.fneg(self.ir))

    def _compare(self, sign: str, other) -> Value:
        a, b = self._pair(other)
        if not self.floating:
            return self.new(self.builder.icmp_signed(sign, a, b))
        compare = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        return self.new(compare(sign, a, b))

    def __lt__(self, other):
        return self._compare("<", other)

    def __le__(self, other):
        return self._compare("<=", other)

    def __gt__(self, other):
        return self._compare(">", other)

    def __ge__(self, other):
        return self._compare(">=", other)

    def __eq__(self, other):  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other):  # type: ignore[override]
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other):
        return self.new(self.builder.and_(*self._pair(other)))

    def __or__(self, other):
        return self.new(self.builder.or_(*self._pair(other)))

    def __xor__(self, other):
        return self.new(self.builder.xor(*self._pair(other)))

    def __invert__(self):
        return self.new(self.builder.not_(self.ir))

    def __lshift__(self, count: int):
        return self.new(self.builder.shl(*self._pair(count)))

    def __rshift__(self, count: int):
        return self.new(self.builder.ashr(*self._pair(count)))


def select(mask: Value, a, b) -> Value:
    """a where the mask is set, else b; one of the two may be a plain number."""
    a = a if isinstance(a, Value) else b.constant(a)
    b = b if isinstance(b, Value) else a.constant(b)
    return a.new(a.builder.select(mask.ir, a.ir, b.ir))


def greater_of(a: Value, b: Value) -> Value:
    """The larger one; a NaN wins."""
    return select((a > b) | (a != a), a, b)


def lesser_of(a: Value, b: Value) -> Value:
    """The smaller one; a NaN wins."""
    return select((a < b) | (a != a), a, b)


def llvm(name: str, *values: Value) -> Value:
    """The LLVM intrinsic llvm.<name>, overloaded on the type of its arguments."""
    first = values[0]
    kind = first.ir.type
    declared = ir.FunctionType(kind, [v.ir.type for v in values])
    function = cgutils.get_or_insert_function(first.builder.module, declared, f"llvm.{name}.{type_name(kind)}")
    return first.new(first.builder.call(function, [v.ir for v in values]))


def fma(a: Value, b: Value, c: Value) -> Value:
    """a * b + c, in one rounding where the machine has an instruction for that."""
    return llvm("fmuladd", a, b, c)


def exact_fma(a: Value, b: Value, c: Value) -> Value:
    """a * b + c in one rounding, at whatever price."""
    return llvm("fma", a, b, c)


def to_int(x: Value) -> Value:
    """float -> int32, towards zero. The value must fit."""
    return x.new(x.builder.fptosi(x.ir, like(x.ir.type, INT)))


def to_float(n: Value) -> Value:
    """int32 -> float."""
    return n.new(n.builder.sitofp(n.ir, like(n.ir.type, FLOAT)))


def widen(x: Value) -> Value:
    """float -> double."""
    return x.new(x.builder.fpext(x.ir, like(x.ir.type, DOUBLE)))


def narrow(x: Value) -> Value:
    """double -> float."""
    return x.new(x.builder.fptrunc(x.ir, like(x.ir.type, FLOAT)))


def bits_of(x: Value) -> Value:
    """The bits of floats as int32."""
    return x.new(x.builder.bitcast(x.ir, like(x.ir.type, INT)))


def from_bits(n: Value) -> Value:
    """Floats with the given bits."""
    return n.new(n.builder.bitcast(n.ir, like(n.ir.type, FLOAT)))


def as_number(mask: Value, element: ir.Type = FLOAT) -> Value:
    """1 where the mask is set, else 0."""
    kind = like(mask.ir.type, element)
    return select(mask, mask.new(constant(kind, 1)), mask.new(constant(kind, 0)))


def splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int = LANES) -> ir.Value:
    """A scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT, lanes), [0] * lanes))


def pointer_to(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    """A pointer to a vector that starts at element `offset`."""
    return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())


def load_at(
    builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value, element: ir.Type, lanes: int = LANES
) -> ir.Value:
    loaded = builder.load(pointer_to(builder, pointer, offset, ir.VectorType(element, lanes)))
    loaded.align = 1 if element is BYTE else element.get_abi_size(_TARGET)
    return loaded


def store_at(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, offset: ir.Value) -> None:
    stored = builder.store(value, pointer_to(builder, pointer, offset, value.type))
    stored.align = value.type.element.get_abi_size(_TARGET)


def first_lanes(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """A mask of the first `count` (int64) lanes."""
    numbers = ir.Constant(vector_of(INT), list(range(LANES)))
    return builder.icmp_signed("<", numbers, splat(builder, builder.trunc(count, INT)))


def load_part(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value, element: ir.Type, mask: ir.Value) -> ir.Value:
    """The lanes of the mask, zeros elsewhere; memory behind the others is not touched."""
    kind = vector_of(element)
    address = pointer_to(builder, pointer, offset, kind)
    declared = ir.FunctionType(kind, [address.type, INT, mask.type, kind])
    function = cgutils.get_or_insert_function(builder.module, declared, f"llvm.masked.load.{type_name(kind)}.p0")
    size = ir.Constant(INT, element.get_abi_size(_TARGET))
    return builder.call(function, [address, size, mask, constant(kind, 0)])


def store_part(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, offset: ir.Value, mask: ir.Value) -> None:
    """Write the lanes of the mask only."""
    address = pointer_to(builder, pointer, offset, value.type)
    declared = ir.FunctionType(ir.VoidType(), [value.type, address.type, INT, mask.type])
    function = cgutils.get_or_insert_function(builder.module, declared, f"llvm.masked.store.{type_name(value.type)}.p0")
    size = ir.Constant(INT, value.type.element.get_abi_size(_TARGET))
    builder.call(function, [value, address, size, mask])


def _target():
    import llvmlite.binding as binding

    return binding.create_target_data("e-m:e-p:64:64-i64:64-n8:16:32:64-S128")  # sizes of numbers, the same everywhere


_TARGET = _target()


# -- Numba types -------------------------------------------------------------------------------------------------------


class VectorType(types.Type):
    """`LANES` numbers of one type in a register."""

    def __init__(self, element: types.Type, code: ir.Type):
        self.element, self.code = element, code
        super().__init__(name=f"vector({element}, {LANES})")


F32, F64 = VectorType(types.float32, FLOAT), VectorType(types.float64, DOUBLE)
I32, MASK = VectorType(types.int32, INT), VectorType(types.boolean, BIT)
_VECTORS = {t.element: t for t in (F32, F64, I32)}


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, vector_of(kind.code))


def _as_vector(context, builder, value, given: types.Type, wanted: VectorType) -> Value:
    if not isinstance(given, VectorType):
        value = splat(builder, context.cast(builder, value, given, wanted.element))
    return Value(builder, value)


def _operator(function: Callable, comparison: bool) -> None:
    """`a function b` for two vectors of a type, or for one and a number."""

    @infer_global(function)
    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) != 2 or kws or not any(isinstance(a, VectorType) for a in args):
                return None
            vector = next(a for a in args if isinstance(a, VectorType))
            if any(a != vector and not isinstance(a, types.Number) for a in args):
                return None
            return signature(MASK if comparison else vector, *args)

    def lower(context, builder, sig, args):
        vector = next(a for a in sig.args if isinstance(a, VectorType))
        a, b = (_as_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True))
        return function(a, b).ir

    lower_builtin(function, VectorType, VectorType)(lower)
    lower_builtin(function, VectorType, types.Number)(lower)
    lower_builtin(function, types.Number, VectorType)(lower)


for _function in (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.and_, operator.or_, operator.iadd, operator.isub,
    operator.imul, operator.itruediv, operator.iand, operator.ior,
):  # fmt: skip
    _operator(_function, False)
for _function in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
    _operator(_function, True)


@infer_global(operator.neg)
class _Negative(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if isinstance(args[0], VectorType) else None


@lower_builtin(operator.neg, VectorType)
def _lower_negative(context, builder, sig, args):
    return (-Value(builder, args[0])).ir


@infer_global(operator.invert)
class _Invert(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if args[0] == MASK else None


@lower_builtin(operator.invert, VectorType)
def _lower_invert(context, builder, sig, args):
    return (~Value(builder, args[0])).ir


# -- functions of compiled code ----------------------------------------------------------------------------------------


def compiled(emit: Callable[..., Value], arity: int = 1) -> Callable:
    """A function of Values as one that compiled code may call, on float32 scalars and vectors; all arguments of one type."""

    def code(context, builder, sig, args):
        return emit(*(Value(builder, v) for v in args)).ir

    if arity == 1:

        @intrinsic
        def function(typing_context, x):
            return x(x), code
    elif arity == 2:

        @intrinsic
        def function(typing_context, x, y):
            return x(x, x), code
    else:

        @intrinsic
        def function(typing_context, x, y, z):
            return x(x, x, x), code

    return function


@intrinsic
def load(typing_context, pointer, offset):
    """LANES values from element `offset` on."""
    result = _VECTORS[pointer.dtype]

    def code(context, builder, sig, args):
        return load_at(builder, args[0], args[1], result.code)

    return result(pointer, types.int64), code


@intrinsic
def store(typing_context, pointer, offset, value):
    """Write LANES values from element `offset` on."""

    def code(context, builder, sig, args):
        store_at(builder, args[2], args[0], args[1])
        return context.get_dummy_value()

    return types.void(pointer, types.int64, _VECTORS[pointer.dtype]), code


@intrinsic
def load_some(typing_context, pointer, offset, count):
    """The first `count` values from element `offset` on; zeros in the other lanes. A count above LANES loads them all."""
    result = _VECTORS[pointer.dtype]

    def code(context, builder, sig, args):
        pointer, offset, count = args
        full = builder.icmp_signed(">=", count, WORD(LANES))
        with builder.if_else(full, likely=True) as (then, otherwise):  # a masked access is slower than a branch foretold
            with then:
                plain, plain_block = load_at(builder, pointer, offset, result.code), builder.block
            with otherwise:
                part = load_part(builder, pointer, offset, result.code, first_lanes(builder, count))
                part_block = builder.block
        loaded = builder.phi(plain.type)
        loaded.add_incoming(plain, plain_block)
        loaded.add_incoming(part, part_block)
        return loaded

    return result(pointer, types.int64, types.int64), code


@intrinsic
def store_some(typing_context, pointer, offset, value, count):
    """Write the first `count` lanes from element `offset` on; all of them for a count above LANES."""

    def code(context, builder, sig, args):
        pointer, offset, value, count = args
        full = builder.icmp_signed(">=", count, WORD(LANES))
        with builder.if_else(full, likely=True) as (then, otherwise):  # a load does not see a masked store before it is done
            with then:
                store_at(builder, value, pointer, offset)
            with otherwise:
                store_part(builder, value, pointer, offset, first_lanes(builder, count))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, _VECTORS[pointer.dtype], types.int64), code


@intrinsic
def load_bytes(typing_context, pointer, offset, count):
    """The first `count` uint8 values from `offset` on as float32; zeros in the other lanes."""

    def code(context, builder, sig, args):
        loaded = load_part(builder, args[0], args[1], BYTE, first_lanes(builder, args[2]))
        return builder.uitofp(loaded, vector_of(FLOAT))

    return F32(pointer, types.int64, types.int64), code


@intrinsic
def fill(typing_context, number):
    """A float32 in every lane."""

    def code(context, builder, sig, args):
        return splat(builder, args[0])

    return F32(types.float32), code


@intrinsic
def fill64(typing_context, number):
    """A float64 in every lane."""

    def code(context, builder, sig, args):
        return splat(builder, args[0])

    return F64(types.float64), code


@intrinsic
def where(typing_context, mask, a, b):
    """a where the mask is set, else b."""

    def code(context, builder, sig, args):
        return builder.select(*args)

    return a(MASK, a, a), code


@intrinsic
def lanes_below(typing_context, count):
    """A mask of the first `count` lanes."""

    def code(context, builder, sig, args):
        return first_lanes(builder, args[0])

    return MASK(types.int64), code


@intrinsic
def double(typing_context, x):
    """float32 lanes as float64."""
    return F64(F32), lambda context, builder, sig, args: builder.fpext(args[0], vector_of(DOUBLE))


@intrinsic
def single(typing_context, x):
    """float64 lanes as float32."""
    return F32(F64), lambda context, builder, sig, args: builder.fptrunc(args[0], vector_of(FLOAT))


def _reduction(name: str, *start: float) -> Callable:
    @intrinsic
    def function(typing_context, x):
        def code(context, builder, sig, args):
            kind = args[0].type
            extra = [ir.Constant(kind.element, v) for v in start]
            declared = ir.FunctionType(kind.element, [*(e.type for e in extra), kind])
            reduce = cgutils.get_or_insert_function(
                builder.module, declared, f"llvm.vector.reduce.{name}.{type_name(kind)}"
            )
            return builder.call(reduce, [*extra, args[0]], fastmath=("reassoc",) if start else ())

        return x.element(x), code

    return function


total = _reduction("fadd", -0.0)  # sum over the lanes
product = _reduction("fmul", 1.0)
largest = _reduction("fmax")  # over the lanes; may or may not notice a NaN

sqrt = compiled(lambda x: llvm("sqrt", x))
multiply_add = compiled(fma, 3)
maximum = compiled(greater_of, 2)  # a NaN wins
