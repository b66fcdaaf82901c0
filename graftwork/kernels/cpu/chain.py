"""Chains of elementwise ops in one pass over memory: a small vector machine.

The output is computed in blocks that stay in the first-level cache. For each block the steps of a program run one after
another, each a SIMD loop over the block; what lies between two steps never leaves that cache. One compiled task serves every
chain, so that no chain has to be compiled. A single elementwise op is a program of one step.

A program is a tuple of steps (op, operands, attributes): operand i is input i, or from the number of inputs on the result of an
earlier step; attributes are sorted (name, value) pairs. Values are float32; bool arrays become 0 and 1 as they are loaded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic

from ..plan import Plan, Spec
from . import atomic, runtime
from .functions import TABLE
from .jit import njit
from .planning import carry_out, parts_for
from .simd import LANES
from .vector import (
    BYTE,
    FLOAT,
    INT,
    WORD,
    Value,
    fill,
    first_lanes,
    load_at,
    load_bytes,
    load_part,
    load_some,
    splat,
    store_at,
    store_part,
    store_some,
)  # fmt: skip

BLOCK = 1024  # values: 4 KiB, so that a dozen blocks fit in a first-level cache of 48 KiB
_MOST_INPUTS, _MOST_REGISTERS, _MOST_STEPS = 16, 24, 64
_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(bool)
_SIMPLE = ("cast", "copy", "truth", "gelu_tanh")  # names that are not ops, or whose meaning depends on attributes
_CODES = {name: i for i, name in enumerate(TABLE)}
_HEAVY = ("exp", "log", "sin", "cos", "erf", "tanh", "log1p", "expm1", "sigmoid", "softplus", "silu", "gelu", "gelu_tanh",
          "elu", "power")  # fmt: skip
_TRUTHS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_not", "logical_and", "logical_or")
OPS = frozenset(TABLE) - frozenset(_SIMPLE) | {"cast"}


# -- the machine -------------------------------------------------------------------------------------------------------


_PAIR = 2 * LANES  # two vectors side by side hide each other's latencies: the functions are long chains of dependent steps


def _loop(builder: ir.IRBuilder, first: ir.Value, last: ir.Value, step: int, body: Callable[[ir.Value], None]) -> None:
    """`for i in range(first, last, step): body(i)`."""
    entry = builder.block
    head, inside, end = (builder.append_basic_block(n) for n in ("head", "inside", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(WORD)
    index.add_incoming(first, entry)
    builder.cbranch(builder.icmp_signed("<", index, last), inside, end)
    builder.position_at_end(inside)
    body(index)
    index.add_incoming(builder.add(index, WORD(step)), builder.block)
    builder.branch(head)
    builder.position_at_end(end)


def _emit_step(builder, entry, out, operands, count, parameters) -> None:
    """out[i] = function(operands[i]..., parameters...) for i < count."""
    arity, extra, function = entry

    def compute(values, lanes):
        made = [Value(builder, v) for v in values]
        return function(*made, *(Value(builder, splat(builder, p, lanes)) for p in parameters[:extra])).ir

    def whole(index):
        values = [load_at(builder, p, index, FLOAT, _PAIR) for p in operands[:arity]]
        store_at(builder, compute(values, _PAIR), out, index)

    def partial(index):
        mask = first_lanes(builder, builder.sub(count, index))
        values = [load_part(builder, p, index, FLOAT, mask) for p in operands[:arity]]
        store_part(builder, compute(values, LANES), out, index, mask)

    full = builder.and_(count, WORD(-_PAIR))
    _loop(builder, WORD(0), full, _PAIR, whole)
    _loop(builder, full, count, LANES, partial)


@intrinsic
def _step(typing_context, code, out, a, b, c, count, p, q):
    """One step of a program on one block; `out`, `a`, `b` and `c` are addresses."""
    pointers = [types.int64] * 4

    def generate(context, builder, sig, args):
        number, *addresses = args[:5]
        out, *operands = (builder.inttoptr(v, FLOAT.as_pointer()) for v in addresses)
        after = builder.append_basic_block("after")
        switch = builder.switch(number, after)
        for name, entry in TABLE.items():
            block = builder.append_basic_block(name)
            switch.add_case(INT(_CODES[name]), block)
            builder.position_at_end(block)
            _emit_step(builder, entry, out, operands, args[5], args[6:])
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.int32, *pointers, types.int64, types.float32, types.float32), generate


@intrinsic
def _floats(typing_context, address):
    """An address as a pointer to float32."""
    result = types.CPointer(types.float32)
    return result(types.int64), lambda context, builder, sig, args: builder.inttoptr(args[0], FLOAT.as_pointer())


@intrinsic
def _bytes(typing_context, address):
    """An address as a pointer to uint8."""
    result = types.CPointer(types.uint8)
    return result(types.int64), lambda context, builder, sig, args: builder.inttoptr(args[0], BYTE.as_pointer())


@njit(nogil=True)
def _spread_floats(source, rows, columns, row_stride, column_stride, target):
    """target[r, c] = source[r * row_stride + c * column_stride] for column strides of 0 and 1."""
    at = 0
    for r in range(rows):
        if column_stride == 0:
            value = fill(source[r * row_stride])
            for c in range(0, columns, LANES):
                store_some(target, at + c, value, columns - c)
        else:
            for c in range(0, columns, LANES):
                store_some(target, at + c, load_some(source, r * row_stride + c, columns - c), columns - c)
        at += columns


@njit(nogil=True)
def _spread_bytes(source, rows, columns, row_stride, column_stride, target):
    """The same from bytes."""
    at = 0
    for r in range(rows):
        if column_stride == 0:
            value = fill(np.float32(source[r * row_stride]))
            for c in range(0, columns, LANES):
                store_some(target, at + c, value, columns - c)
        else:
            for c in range(0, columns, LANES):
                store_some(target, at + c, load_bytes(source, r * row_stride + c, columns - c), columns - c)
        at += columns


@njit(nogil=True)
def _store_truth(source, target, count):
    for i in range(count):
        target[i] = np.uint8(source[i] != np.float32(0))


# Words of the task: geometry, addresses, then the inputs' addresses. A program's int64 words: for each input its strides
# (image, row, column), item size, and register (-1: read where it lies); then the steps of 8 words.
_PARTS, _STEPS, _INPUTS, _IMAGES, _ROWS, _COLUMNS, _BLOCK_ROWS, _OUT_ITEM, _PROGRAM, _SCRATCH, _SCRATCH_SIZE, _OUT = range(12)
_FIRST_INPUT = 12
_INPUT_WORDS, _STEP_WORDS = 5, 8
_INTO_OUT = -1


@njit(nogil=True)
def _operand(a, program, scratch, number, inputs, image, row, column):
    """Where operand `number` stands for the block that starts at (image, row, column)."""
    if number >= _MOST_INPUTS:
        return scratch + (number - _MOST_INPUTS) * (BLOCK * 4)
    at = number * _INPUT_WORDS
    if program[at + 4] >= 0:
        return scratch + program[at + 4] * (BLOCK * 4)
    return a[_FIRST_INPUT + number] + 4 * (image * program[at] + row * program[at + 1] + column * program[at + 2])


@njit(nogil=True)
def _spread(a, program, scratch, number, image, row, column, rows, columns):
    """Load an input that is not a plain block of float32 values into its register."""
    at = number * _INPUT_WORDS
    offset = image * program[at] + row * program[at + 1] + column * program[at + 2]
    target = _floats(scratch + program[at + 4] * (BLOCK * 4))
    address = a[_FIRST_INPUT + number] + program[at + 3] * offset
    if program[at + 3] == 1:
        _spread_bytes(_bytes(address), rows, columns, program[at + 1], program[at + 2], target)
    else:
        _spread_floats(_floats(address), rows, columns, program[at + 1], program[at + 2], target)


@runtime.task
def run_chain(a, part):
    steps, inputs, images, rows, columns = a[_STEPS], a[_INPUTS], a[_IMAGES], a[_ROWS], a[_COLUMNS]
    block_rows, program = a[_BLOCK_ROWS], atomic.i64(a, _PROGRAM)
    scratch = a[_SCRATCH] + part * a[_SCRATCH_SIZE]
    pieces = 1 if block_rows > 0 else (columns + BLOCK - 1) // BLOCK
    blocks = (rows + block_rows - 1) // block_rows if block_rows > 0 else rows * pieces
    first, last = images * blocks * part // a[_PARTS], images * blocks * (part + 1) // a[_PARTS]
    seen = -1
    for number in range(first, last):
        image, block = number // blocks, number % blocks
        row, column, height, width = block // pieces, block % pieces * BLOCK, 1, columns
        if block_rows > 0:
            row = block * block_rows
            height = min(block_rows, rows - row)
        else:
            width = min(BLOCK, columns - column)
        count, start = height * width, (image * rows + row) * columns + column
        for i in range(inputs):
            at = i * _INPUT_WORDS
            if program[at + 4] >= 0:
                fixed = program[at + 1] == 0 and (block_rows > 0 or program[at + 2] == 0)
                if image != seen or not fixed:  # a fixed one is loaded in full, whatever part of an image comes first
                    if fixed:
                        whole = min(block_rows, rows) if block_rows > 0 else 1
                        _spread(a, program, scratch, i, image, row, column, whole, columns if block_rows > 0 else BLOCK)
                    else:
                        _spread(a, program, scratch, i, image, row, column, height, width)
        seen = image
        at = inputs * _INPUT_WORDS
        for _ in range(steps):
            target = scratch + program[at + 1] * (BLOCK * 4)
            if program[at + 1] == _INTO_OUT:
                target = a[_OUT] + 4 * start
            _step(
                np.int32(program[at]),
                target,
                _operand(a, program, scratch, program[at + 2], inputs, image, row, column),
                _operand(a, program, scratch, program[at + 3], inputs, image, row, column),
                _operand(a, program, scratch, program[at + 4], inputs, image, row, column),
                count,
                _parameter(program[at + 5]),
                _parameter(program[at + 6]),
            )
            at += _STEP_WORDS
        if a[_OUT_ITEM] == 1:
            _store_truth(_floats(scratch + program[at - _STEP_WORDS + 1] * (BLOCK * 4)), _bytes(a[_OUT] + start), count)


@intrinsic
def _parameter(typing_context, word):
    """The float32 whose bits are the low half of a word."""

    def code(context, builder, sig, args):
        return builder.bitcast(builder.trunc(args[0], INT), FLOAT)

    return types.float32(types.int64), code


# -- programs ----------------------------------------------------------------------------------------------------------


def _lowered(name: str, attrs: dict[str, Any], dtypes: list[np.dtype]) -> tuple[str, tuple[float, ...], np.dtype] | None:
    """The machine's name for an op, its parameters and its result's dtype; None if it does not know the op."""
    if name == "cast":
        target = np.dtype(attrs["dtype"])
        if target not in (_FLOAT32, _BOOL):
            return None
        return ("truth" if target == _BOOL and dtypes[0] != _BOOL else "copy"), (), target
    if name not in OPS:
        return None
    logical = name.startswith("logical")
    if any(d != (_BOOL if logical or (name == "where" and i == 0) else _FLOAT32) for i, d in enumerate(dtypes)):
        return None
    parameters: tuple[float, ...] = ()
    if name == "gelu":
        name = "gelu_tanh" if attrs["approximate"] else "gelu"
    elif name == "clip":
        low, high = attrs["low"], attrs["high"]
        parameters = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    elif "alpha" in attrs:
        parameters = (float(attrs["alpha"]),)
    return name, parameters, _BOOL if name in _TRUTHS else _FLOAT32


def elementwise_step(op_name: str, attrs: dict[str, Any] | None = None) -> bool:
    """Whether a chain may hold this op (with float32 operands, and bool ones where the op takes them)."""
    if op_name == "cast":
        return np.dtype((attrs or {})["dtype"]) in (_FLOAT32, _BOOL)
    return op_name in OPS


class _View(NamedTuple):
    """Strides of an input over the output's (images, rows, columns), in elements."""

    image: int
    row: int
    column: int


def _dimensions(shape: tuple[int, ...], inputs: list[tuple[int, ...]]) -> tuple[tuple[int, int, int], list[_View]] | None:
    """The output as (images, rows, columns), as few of them as the inputs' broadcasting allows; None if three do not do."""
    sizes: list[int] = []
    strides: list[list[int]] = []  # of each kept dimension: one number an input
    current = [1] * len(inputs)
    for axis in range(len(shape) - 1, -1, -1):
        n = shape[axis]
        if n == 1:
            continue
        here = []
        for i, given in enumerate(inputs):
            position = axis - (len(shape) - len(given))
            present = position >= 0 and given[position] != 1
            here.append(current[i] if present else 0)
            current[i] *= n if present else 1
        if sizes and all(s == o * sizes[-1] for s, o in zip(here, strides[-1], strict=True)):
            sizes[-1] *= n
        else:
            sizes.append(n)
            strides.append(here)
    if len(sizes) > 3:
        return None
    while len(sizes) < 3:
        sizes.append(1)
        strides.append([0] * len(inputs))
    views = [_View(strides[2][i], strides[1][i], strides[0][i]) for i in range(len(inputs))]
    return (sizes[2], sizes[1], sizes[0]), views


class _Step(NamedTuple):
    code: int
    target: int
    operands: tuple[int, ...]
    parameters: tuple[float, ...]


def _block_rows(rows: int, columns: int) -> int:
    """Rows that a block holds, or 0 where a row is longer than a block."""
    if columns > BLOCK:
        return 0
    whole = max(BLOCK // max(columns, 1), 1)
    even = LANES // math.gcd(columns, LANES)  # rows that fill whole vectors together
    return min(whole // even * even if whole >= even else whole, max(rows, 1))


@functools.lru_cache(4096)
def _compile(specs: tuple[Spec, ...], out: Spec, program: tuple) -> tuple[np.ndarray, tuple[int, ...], int, int] | None:
    """(words of the program, geometry, registers, steps), or None if the machine cannot run it."""
    if len(specs) > _MOST_INPUTS or not 0 < len(program) <= _MOST_STEPS:
        return None
    if any(s.dtype not in (_FLOAT32, _BOOL) for s in specs) or out.dtype not in (_FLOAT32, _BOOL):
        return None
    read = {o for _, operands, _ in program for o in operands}
    shapes = [s.shape if i in read else () for i, s in enumerate(specs)]
    if any(np.broadcast_shapes(s, out.shape) != out.shape for s in shapes):
        return None  # a step that nothing reads is wider than the output
    dimensions = _dimensions(out.shape, shapes)
    if dimensions is None:
        return None
    (images, rows, columns), views = dimensions
    block_rows = _block_rows(rows, columns)
    words: list[int] = []
    registers = 0
    for i, (spec, view) in enumerate(zip(specs, views, strict=True)):
        contiguous = (view.column == 1 or columns == 1) and (view.row == columns or rows == 1 or block_rows in (0, 1))
        direct = (spec.dtype == _FLOAT32 and contiguous) or i not in read
        words += [*view, spec.dtype.itemsize, -1 if direct else registers]
        registers += not direct
    steps = _allocate(specs, out, program, registers)
    if steps is None:
        return None
    for step in steps:
        operands = (*step.operands, 0, 0)[:3]
        bits = [int(np.float32(p).view(np.int32)) for p in (*step.parameters, 0.0, 0.0)[:2]]
        words += [step.code, step.target, *operands, *bits, 0]
    used = max([registers, *(s.target + 1 for s in steps)])
    if used > _MOST_REGISTERS:
        return None
    return np.array(words, np.int64), (images, rows, columns, block_rows), used, len(steps)


def _allocate(specs: tuple[Spec, ...], out: Spec, program: tuple, first_free: int) -> list[_Step] | None:
    """Steps with registers for their results, each freed after its last reader."""
    inputs = len(specs)
    last_use = {o: i for i, (_, operands, _) in enumerate(program) for o in operands}
    dtypes = [s.dtype for s in specs]
    place: dict[int, int] = {}
    free: list[int] = []
    following = first_free
    steps = []
    for i, (name, operands, attrs) in enumerate(program):
        known = _lowered(name, dict(attrs), [dtypes[o] for o in operands])
        if known is None:
            return None
        lowered, parameters, dtype = known
        dtypes.append(dtype)
        reads = tuple(o if o < inputs else _MOST_INPUTS + place[o] for o in operands)
        free += [place[o] for o in set(operands) if o >= inputs and last_use[o] == i]
        if i == len(program) - 1 and out.dtype == _FLOAT32:
            target = _INTO_OUT
        elif free:
            target = free.pop()
        else:
            target, following = following, following + 1
        place[inputs + i] = target
        if i < len(program) - 1 and inputs + i not in last_use:
            free.append(target)
        steps.append(_Step(_CODES[lowered], target, reads, parameters))
    return steps if dtypes[-1] == out.dtype else None


def plan(*specs: Spec, out: Spec, program: tuple) -> Plan | None:
    """Plan of a chain: None for dtypes, broadcasts or ops that the machine does not know."""
    made = _compile(specs, out, program)
    if made is None:
        return None
    words, (images, rows, columns, block_rows), registers, steps = made
    blocks = images * (-(-rows // block_rows) if block_rows else rows * -(-columns // BLOCK))
    parts = parts_for(blocks, out.size * (1 + len(program)))
    scratch = -(-registers * BLOCK * 4 // 64) * 64

    def bind(inputs, outputs, workspace):
        if out.size == 0:
            return []
        return [
            runtime.row(
                run_chain, parts, parts, steps, len(specs), images, rows, columns, block_rows, out.dtype.itemsize, words,
                workspace, scratch, outputs[0], *inputs,
            )
        ]  # fmt: skip

    same = tuple(i for i, s in enumerate(specs) if s == out and out.dtype == _FLOAT32)
    return Plan(bind, workspace=parts * scratch, in_place=same, variant=f"chain of {len(program)}")


def _planner(op: str) -> Callable[..., Plan | None]:
    def plan_step(*specs: Spec, out: Spec, **attrs: Any) -> Plan | None:
        return plan(*specs, out=out, program=((op, tuple(range(len(specs))), tuple(sorted(attrs.items()))),))

    return plan_step


# The planner of each elementwise op: `plan_add`, `plan_relu`, ...
globals().update({f"plan_{op}": _planner(op) for op in OPS})


# -- the eager kernel --------------------------------------------------------------------------------------------------

def chain(*arrays: np.ndarray, out: np.ndarray, program: tuple) -> None:
    """out = the last step of the program; what the machine does not know runs step by step."""
    if carry_out(plan, arrays, (out,), program=program):
        return
    from . import elementwise

    values = list(arrays)
    for i, (name, operands, attributes) in enumerate(program):
        given, attrs = [values[o] for o in operands], dict(attributes)
        shape = np.broadcast_shapes(*(g.shape for g in given))
        dtype = np.dtype(attrs["dtype"]) if name == "cast" else _BOOL if name in _TRUTHS else given[-1].dtype
        result = out if i == len(program) - 1 and out.shape == shape else np.empty(shape, dtype)
        getattr(elementwise, name)(*given, out=result, **attrs)
        values.append(result)
    if values[-1] is not out:
        np.copyto(out, values[-1])
