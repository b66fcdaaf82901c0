"""Elementwise ops on the GPU. Every one is a chain of one step; `chain.cu` is compiled for each program that occurs.

What the program becomes is the only CUDA text that is put together here: one call of a function of `operations.cuh` a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import KernelError
from . import launch
from .launch import Builder, View, c_type, ceil_div, elementwise, structure, vector_width

BLOCK = 256
MOST_DIMENSIONS, MOST_PARAMETERS = 8, 16
_TRUTHS = frozenset({"equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_not", "logical_and",
                     "logical_or"})  # fmt: skip
_PARAMETERS = {
    "leaky_relu": ("alpha",), "leaky_relu_grad": ("alpha",), "elu": ("alpha",), "dequantize": ("factor", "zero"),
    "quantize": ("factor", "zero", "low", "high"),
    "quantized_add": ("x_factor", "x_zero", "y_factor", "y_zero", "zero", "low", "high"),
}  # fmt: skip
_RESULTS = {"quantize": "uint8", "quantized_add": "uint8", "dequantize": "float32"}  # where it is not an operand's dtype

Program = Sequence[tuple[str, Sequence[int], Sequence[tuple[str, Any]]]]


# -- the program as text -----------------------------------------------------------------------------------------------


def statements(program: Program, dtypes: Sequence[np.dtype]) -> tuple[str, list[float], np.dtype]:
    """C++ statements that compute `result` from x0, x1, ..., the parameters p[i] they read, and the result's dtype."""
    names, kinds = [f"x{i}" for i in range(len(dtypes))], list(dtypes)
    lines: list[str] = []
    parameters: list[float] = []
    for i, (op, operands, attributes) in enumerate(program):
        given = [kinds[o] for o in operands]
        kind = np.dtype(bool) if op in _TRUTHS else np.dtype(_RESULTS.get(op, given[-1]))
        attrs = dict(attributes)
        if op == "cast":
            kind = np.dtype(attrs["dtype"])
        lines.append(f"const Wide<{c_type(kind)}> s{i} = {_call(op, attrs, [names[o] for o in operands], kind, parameters)};")
        names.append(f"s{i}")
        kinds.append(kind)
    lines.append(f"const auto result = {names[-1]};")
    if len(parameters) > MOST_PARAMETERS:
        raise KernelError(f"chain: {len(parameters)} parameters in one program, the kernel takes {MOST_PARAMETERS}")
    return " ".join(lines), parameters, kinds[-1]


def _call(op: str, attrs: dict, operands: list[str], kind: np.dtype, parameters: list[float]) -> str:
    """One step as an expression; its attributes are appended to `parameters`."""

    def parameter(value: float) -> str:
        parameters.append(float(value))
        return f"p[{len(parameters) - 1}]"

    if op == "cast":
        return f"widen(narrow<{c_type(kind)}>({operands[0]}))"
    if op == "gelu":
        return f"op::{'gelu_tanh' if attrs['approximate'] else 'gelu'}({operands[0]})"
    if op == "clip":
        inner = operands[0]
        for side in ("low", "high"):
            if attrs[side] is not None:
                inner = f"op::clip_{side}({inner}, {parameter(attrs[side])})"
        return inner
    return f"op::{op}({', '.join([*operands, *(parameter(attrs[name]) for name in _PARAMETERS.get(op, ()))])})"


# -- how the inputs are read -------------------------------------------------------------------------------------------


def broadcast_strides(view: View, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides over `shape`, with zeros where the view is repeated."""
    extra = len(shape) - view.ndim
    own = (0 if n == 1 else s for n, s in zip(view.shape, view.strides, strict=True))
    return (*(0,) * extra, *own)


def collapse(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Neighbouring dimensions merged wherever all arrays allow it, and dimensions of one place left out."""
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for d, n in enumerate(shape):
        if n == 1:
            continue
        if sizes and all(k[-1] == s[d] * n for k, s in zip(kept, strides, strict=True)):
            sizes[-1] *= n
            for k, s in zip(kept, strides, strict=True):
                k[-1] = s[d]
        else:
            sizes.append(n)
            for k, s in zip(kept, strides, strict=True):
                k.append(s[d])
    return (sizes, kept) if sizes else ([1], [[0] for _ in strides])


def _mode(sizes: Sequence[int], strides: Sequence[int], flat: Sequence[int]) -> str:
    if list(strides) == list(flat) or math.prod(sizes) == 1:
        return "FLAT"
    if not any(strides):
        return "SCALAR"
    if len(sizes) > 1 and not any(strides[:-1]) and strides[-1] == 1:
        return "ROW"
    return "UNIT" if strides[-1] == 1 else "ANY"


def describe_chain(b: Builder, inputs: Sequence[View], out: View, program: Program) -> None:
    """Add the launch that computes a program. `out` must be row-major."""
    steps, parameters, _ = statements(program, [v.dtype for v in inputs])
    all_strides = [broadcast_strides(v, out.shape) for v in inputs]
    sizes, kept = collapse(out.shape, [launch.dense_strides(out.shape), *all_strides])
    flat, kept = kept[0], kept[1:]
    modes = [_mode(sizes, s, flat) for s in kept]
    strided = [m in ("UNIT", "ANY") for m in modes]
    if len(sizes) > MOST_DIMENSIONS:
        raise KernelError(f"chain: {len(sizes)} dimensions that cannot be merged, the kernel takes {MOST_DIMENSIONS}")
    wide = [v for v, m in zip(inputs, modes, strict=True) if m in ("FLAT", "ROW", "UNIT")]
    runs = [sizes[-1]] if any(strided) or "ROW" in modes else []
    runs += [s for k, m in zip(kept, modes, strict=True) if m == "UNIT" for s in k[:-1]]  # rows start aligned
    lanes = vector_width(out, *wide, runs=runs)
    rank = len(sizes) if any(strided) else 0
    strides = np.zeros((max(len(inputs), 1), MOST_DIMENSIONS), np.int64)
    for i, k in enumerate(kept):
        strides[i, : len(k)] = k
    form = structure([
        ("count", "u8", out.size), ("columns", "u4", sizes[-1]), ("sizes", "u4", _filled(sizes, MOST_DIMENSIONS, np.uint32)),
        ("strides", "i8", strides), ("parameters", "f8", _filled(parameters, MOST_PARAMETERS, np.float64)),
    ])  # fmt: skip
    defines = {
        "RESULT": c_type(out.dtype), "LANES": lanes, "RANK": rank, "MOST_INPUTS": max(len(inputs), 1), "STEPS": steps,
        "INPUTS": " ".join(f"INPUT({i}, {c_type(v.dtype)}, {m})" for i, (v, m) in enumerate(zip(inputs, modes, strict=True))),
    }  # fmt: skip
    b.launch("chain.cu", "chain", defines, ceil_div(ceil_div(out.size, lanes), BLOCK), BLOCK, out, *inputs, form)


def _filled(values: Sequence, length: int, dtype) -> np.ndarray:
    made = np.zeros(length, dtype)
    made[: len(values)] = values
    return made


# -- the kernels -------------------------------------------------------------------------------------------------------


@elementwise
def chain(b: Builder, *inputs: View, out: View, program: Program) -> None:
    describe_chain(b, inputs, out, program)


def _single(name: str):
    """The kernel of one elementwise op."""

    def describe(b: Builder, *inputs: View, out: View, **attrs: Any) -> None:
        describe_chain(b, inputs, out, ((name, tuple(range(len(inputs))), tuple(sorted(attrs.items()))),))

    describe.__name__ = describe.__qualname__ = name
    return elementwise(describe)


UNARY = (
    "negative abs exp log sqrt rsqrt square reciprocal sin cos erf tanh sigmoid relu relu6 silu hard_swish hard_sigmoid "
    "softplus log1p expm1 sign floor ceil round logical_not leaky_relu elu gelu clip cast"
)
BINARY = (
    "add subtract multiply divide power maximum minimum equal not_equal less less_equal greater greater_equal logical_and "
    "logical_or relu_grad relu6_grad leaky_relu_grad"
)
globals().update({name: _single(name) for name in f"{UNARY} {BINARY} where".split()})
