"""matmul and linear on the GPU in strict precision: SIMT kernels (`simt.cuh`)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ...errors import KernelError
from . import selection, tensor_cores
from .arguments import activation_code
from .elementwise import broadcast_strides, collapse
from .launch import Builder, View, c_type, ceil_div, dense_strides, kernel, structure, vector_width
from .reduce import accumulator

MOST = 2**31 - 1  # rows, columns and depth are 32-bit numbers


class Operand(NamedTuple):
    """A matrix as stored: which direction is contiguous, the pitch of the other, strides of the batch, widest access."""

    view: View
    along_k: bool
    pitch: int
    batch: tuple[int, int, int]
    lanes: int


class Extent(NamedTuple):
    m: int
    n: int
    k: int
    batch: tuple[int, int, int]

    @property
    def products(self) -> int:
        return math.prod(self.batch)


# -- operands ----------------------------------------------------------------------------------------------------------


def operand(b: Builder, x: View, is_a: bool, batch_shape) -> Operand:
    """A stack of matrices as the kernel takes it; a copy where neither direction is contiguous."""
    inner = x.strides[-2:]
    if not any(s == 1 or n == 1 for s, n in zip(inner, x.shape[-2:], strict=True)) or any(
        s <= 0 for s, n in zip(inner, x.shape[-2:], strict=True) if n > 1
    ):
        x = b.dense(x)
    rows, columns = x.shape[-2:]
    row_stride, column_stride = x.strides[-2:]
    last = column_stride == 1 or columns == 1  # the last axis is the contiguous one
    if last and rows > 1 and row_stride == 1 and column_stride != 1:
        last = False
    pitch = row_stride if last else column_stride
    strides = broadcast_strides(x._replace(shape=x.shape[:-2], strides=x.strides[:-2]), batch_shape)
    return Operand(x, last if is_a else not last, pitch, tuple(strides), 1)  # type: ignore[arg-type]


def fuse_batch(shape, a: Operand, b: Operand) -> tuple[tuple[int, int, int], Operand, Operand]:
    """At most three batch dimensions, neighbours merged where both operands allow it."""
    sizes, (left, right) = collapse(shape, [a.batch, b.batch])
    if len(sizes) > 3:
        raise KernelError(
            f"matmul: batch dimensions {tuple(shape)} that cannot be merged into three; make the operands contiguous"
        )
    def filled(values, filler: int) -> Any:
        return (filler,) * (3 - len(sizes)) + tuple(values)

    return filled(sizes, 1), a._replace(batch=filled(left, 0)), b._replace(batch=filled(right, 0))


def lanes_of(o: Operand, extent: int) -> int:
    """Elements by one access, at most four: addresses, pitch, batch strides and the contiguous extent must allow it."""
    return min(4, vector_width(o.view, runs=[o.pitch, extent, *o.batch]))


# -- the launches ------------------------------------------------------------------------------------------------------


def rows_form(pitch: int, mapping: dict[str, Any] | None = None) -> list:
    """The fields of `Rows`."""
    given = mapping or {"mapped": 0, "height": 0, "width": 0, "start_y": 0, "start_x": 0, "step_y": 0, "step_x": 0,
                        "grid_height": fast_divide(1), "grid_width": fast_divide(1)}  # fmt: skip
    return [
        ("pitch", "i8", pitch),
        *((name, "u4" if name.startswith("grid") else "i4", value) for name, value in given.items()),
    ]


def fast_divide(divisor: int) -> np.ndarray:
    """The fields of `FastDivide`: (divisor, multiplier, shift)."""
    shift = (divisor - 1).bit_length()
    return np.array([divisor, ((1 << 32) * ((1 << shift) - divisor)) // divisor + 1, shift], np.uint32)


class Call(NamedTuple):
    """One product, ready for a tile: what differs between matrices and convolutions."""

    file: str
    kernel: str
    defines: dict[str, Any]
    extent: Extent
    batch_a: tuple[int, int, int]
    batch_b: tuple[int, int, int]
    batch_out: int
    batch_bias: int
    pitch_a: int
    pitch_b: int
    rows: list
    lanes: tuple[int, int, int]  # of A, B and the output
    operands: tuple[View, View]
    structures: tuple[Any, ...] = ()


def launch_product(b: Builder, call: Call, out: View, bias: View | None, residual: View | None, activation: str | None) -> None:
    """Add the launches of a product: the sum, and where k is split the sum of its parts."""
    m, n, k, _ = call.extent
    batch = call.extent.products
    if min(m, n, batch) == 0:
        return
    what = call.kernel + "".join(f" pass {value}" for name, value in call.defines.items() if name == "PASS")
    tile, splits = selection.simt_product(b, what, m, n, k, batch, out.dtype)
    share = ceil_div(ceil_div(k, splits), tile.k) * tile.k
    splits = max(1, ceil_div(k, share)) if share else 1
    form = structure([
        ("m", "i4", m), ("n", "i4", n), ("k", "i4", k), ("share", "i4", share), ("splits", "i4", splits),
        ("batch", "u4", np.array(call.extent.batch, np.uint32)),
        ("batch_a", "i8", np.array(call.batch_a, np.int64)), ("batch_b", "i8", np.array(call.batch_b, np.int64)),
        ("batch_out", "i8", call.batch_out), ("batch_bias", "i8", call.batch_bias), ("pitch_a", "i8", call.pitch_a),
        ("pitch_b", "i8", call.pitch_b), *call.rows,
    ])  # fmt: skip
    kind, code = c_type(out.dtype), activation_code(activation)
    defines = {"ELEMENT": kind, "TILE_M": tile.m, "TILE_N": tile.n, "TILE_K": tile.k, "THREAD_M": tile.thread_m,
               "THREAD_N": tile.thread_n, "VECTOR_A": call.lanes[0], "VECTOR_B": call.lanes[1], "VECTOR_OUT": call.lanes[2],
               "ACTIVATION": code if splits == 1 else 0, **call.defines}  # fmt: skip
    partial = b.empty((splits, batch, m, n), accumulator(out.dtype)) if splits > 1 else None
    grid = (ceil_div(m, tile.m) * ceil_div(n, tile.n), splits, batch)
    b.launch(call.file, call.kernel, defines, grid, 256, out, partial, *call.operands, bias, residual, form, *call.structures)
    if partial is not None:
        b.launch("split_simt.cu", "split_simt", {"ELEMENT": kind, "ACTIVATION": code}, (ceil_div(m * n, 256), 1, batch), 256,
            out,
                 partial, bias, residual, form)  # fmt: skip


def describe_gemm(b: Builder, x: View, y: View, out: View, bias: View | None = None, residual: View | None = None,
                  activation: str | None = None, tf32: bool = False) -> None:  # fmt: skip
    """out = activation(x @ y + bias + residual) for stacks of matrices whose batch dimensions broadcast; out is dense.

    tf32: float32 products may go to tensor cores, which round the operands to 11 bits.
    """
    batch_shape = out.shape[:-2]
    m, n, k = out.shape[-2], out.shape[-1], x.shape[-1]
    sizes, left, right = fuse_batch(batch_shape, operand(b, x, True, batch_shape), operand(b, y, False, batch_shape))
    count = math.prod(sizes)
    if count > 65535:  # a grid's third dimension ends there
        raise KernelError(f"matmul: {count} products in one call, the kernel takes 65535; split the batch")
    if max(m, n, k) > MOST:
        raise KernelError(f"a product of {m} x {n} x {k}: each must be below 2**31")
    if sizes[:2] == (1, 1) and tensor_cores.takes(b, out.dtype.name, tf32):
        tensor_cores.add_gemm(b, left, right, out, Extent(m, n, k, sizes), bias, residual, activation)
        return
    left = left._replace(lanes=lanes_of(left, k if left.along_k else m))
    right = right._replace(lanes=lanes_of(right, k if right.along_k else n))
    extras = [v for v in (bias, residual) if v is not None]
    lanes = min(4, vector_width(out, *extras, runs=[n]))
    call = Call(
        "gemm_simt.cu", "gemm_simt", {"A_ALONG_K": int(left.along_k), "B_ALONG_K": int(right.along_k)}, Extent(m, n, k, sizes),
        left.batch,
        right.batch, m * n, 0, left.pitch, right.pitch, rows_form(n), (left.lanes, right.lanes, lanes), (left.view, right.view),
    )  # fmt: skip
    launch_product(b, call, out, bias, residual, activation)


@kernel
def matmul(b: Builder, x: View, y: View, *, out: View) -> None:
    describe_gemm(b, x, y, out)


def flat_linear(x: View, out: View) -> tuple[View, View]:
    """x and out of a linear layer as matrices; x must be dense."""
    rows = math.prod(x.shape[:-1])
    return (x._replace(shape=(rows, x.shape[-1]), strides=dense_strides((rows, x.shape[-1]))), out.reshape(rows, out.shape[-1]))


@kernel
def matmul_tf32(b: Builder, x: View, y: View, *, out: View) -> None:
    describe_gemm(b, x, y, out, tf32=True)


@kernel
def linear(
    b: Builder, x: View, w: View, bias: View | None = None, residual: View | None = None, *, out: View, activation=None
) -> None:
    _linear(b, x, w, bias, residual, out, activation, False)


@kernel
def linear_tf32(b: Builder, x: View, w: View, bias: View | None = None, residual: View | None = None, *, out: View,
                activation=None) -> None:  # fmt: skip
    _linear(b, x, w, bias, residual, out, activation, True)


def _linear(b: Builder, x: View, w: View, bias, residual, out: View, activation, tf32: bool) -> None:
    extras = [None if v is None else b.dense(v) for v in (bias, residual)]
    matrix, result = flat_linear(b.dense(x), out)
    describe_gemm(b, matrix, w, result, extras[0], extras[1], activation, tf32)
