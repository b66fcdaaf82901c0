"""Plans for the sm_90a tier: which products it can take, tiles, tensor maps and arguments of the launch. Needs no GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

from .arguments import (
    BYTES,
    TYPES,
    FastDivide,
    Launch,
    OutputForm,
    Requantise,
    SplitArguments,
    activation_code,
    alignment,
    plain_scale,
)
from .mma import NOTHING, Conv, Finish, plain_rows, sum_of_splits
from .tensor_map import TensorMap

TILE_M, DEPTH, PANEL = 128, 128, 64 * 128  # rows of a tile; bytes along K; bytes of a panel of the epilogue
_I, _L = ctypes.c_int32, ctypes.c_int64


class WgmmaArguments(ctypes.Structure):
    """Mirrors the structure of wgmma.cu."""

    _fields_ = [
        ("tiles_m", _I),
        ("tiles_n", _I),
        ("batch", _I),
        ("splits", _I),
        ("rows", _I),
        ("columns", _I),
        ("blocks", _I),
        ("all_blocks", _I),
        ("channel_blocks", FastDivide),
        ("tap_width", FastDivide),
        ("grid_height", FastDivide),
        ("grid_width", FastDivide),
        ("taps", _I),
        ("tap_first", _I),
        ("tap_step", _I),
        ("stride_y", _I),
        ("stride_x", _I),
        ("base_y", _I),
        ("base_x", _I),
        ("dilation_y", _I),
        ("dilation_x", _I),
        ("ld", _L),
        ("batch_out", _L),
        ("wide", _I),
        ("requantise", Requantise),
    ]


def stages(tile_n: int) -> int:
    """As many as fit, with the epilogue's panels, into what a block of a cluster may use (206 KiB)."""
    return min(6, (206 * 1024 - 4 * PANEL - 256) // ((TILE_M + tile_n) * DEPTH))


def shared_bytes(tile_n: int) -> int:
    return stages(tile_n) * (TILE_M + tile_n) * DEPTH + 4 * PANEL + 16 * stages(tile_n)


def choose_tile_n(columns: int, rows: int, batch: int, multiprocessors: int, out_dtype: str) -> int:
    """256 columns where that fills the device, fewer for narrow or small products; at least 128 bytes of the output."""
    for tile_n in (256, 128):
        tiles = math.ceil(columns / tile_n) * math.ceil(rows / TILE_M) * batch
        if columns > tile_n // 2 and tiles >= multiprocessors:
            return tile_n
    return 128 if columns > 64 or BYTES[out_dtype] == 1 else 64


class Unsupported(ValueError):
    """This tier cannot take the product; the mma.sync tier can. The message says why."""


def _require(*maps: TensorMap) -> None:
    for made in maps:
        if (problem := made.problem()) or alignment(made.array) < 16:
            raise Unsupported(problem or "a tensor is not aligned to 16 bytes")


def _matrix(array, dtype, inner, outer, batch, ld, batch_stride, box) -> TensorMap:
    item = BYTES[dtype]
    stride = batch_stride * item if batch > 1 else max(outer * ld * item, 16)  # of a single product it is never used
    return TensorMap(array, dtype, (inner, outer, batch), (ld * item, stride), (*box, 1))


def _operand(array, dtype, k_contiguous, extent, k, batch, ld, batch_stride, rows) -> TensorMap:
    """K contiguous: boxes of 128 bytes along K by `rows`. Otherwise 64 elements along M or N by 128 bytes' worth of K."""
    depth = DEPTH // BYTES[dtype]
    if k_contiguous:
        return _matrix(array, dtype, k, extent, batch, ld, batch_stride, (depth, rows))
    if BYTES[dtype] != 2:
        raise Unsupported(f"{dtype} operands of wgmma have K contiguous")
    return _matrix(array, dtype, extent, k, batch, ld, batch_stride, (depth, depth))


def _finish_launches(
    maps,
    out_map,
    arguments: WgmmaArguments,
    dtype,
    out_dtype,
    tile_n,
    cluster,
    finish: Finish,
    multiprocessors,
    splits,
    workspace,
    out,
    out_rows,
    batch_out,
    **macros: int,
) -> Iterator[Launch]:
    """The product and, with several splits, the sum of the parts. out_map(array, dtype, splits) describes the output."""
    arguments.requantise = finish.requantise or plain_scale()
    arguments.blocks = max(1, math.ceil(arguments.all_blocks / splits))
    arguments.splits = splits = max(1, math.ceil(arguments.all_blocks / arguments.blocks))
    total = math.prod(out_rows)
    sums = "int32" if dtype == "int8" else "float32"
    partial = workspace(splits * total * 4) if splits > 1 else None
    target, kind = (out, out_dtype) if partial is None else (partial, sums)
    out_tma = out_map(target, kind, splits)
    _require(*maps, out_tma)
    added = (finish.bias, finish.residual, finish.scale)
    bias = "int32" if dtype == "int8" else out_dtype
    names = {
        "TYPE": TYPES[dtype],
        "OUT_TYPE": TYPES[kind],
        "BIAS_TYPE": TYPES[bias],
        "TILE_N": tile_n,
        "TILE_STAGES": stages(tile_n),
        "CLUSTER": cluster,
        "ACTIVATION": activation_code(finish.activation) if partial is None else 0,
        **macros,
    }
    pairs = math.ceil(arguments.tiles_m / cluster)
    count = pairs * arguments.tiles_n * arguments.batch * splits
    grid = cluster * min(count, max(multiprocessors // cluster, 1))
    defines = tuple(sorted((k, str(v)) for k, v in names.items()))
    given = (*maps, out_tma, *(added if partial is None else (None, None, None)), bytes(arguments))
    yield Launch("wgmma.cu", "product_wgmma", defines, (grid, 1, 1), 384, shared_bytes(tile_n), given, cluster)
    if partial is not None:
        columns = out_rows[-1]
        form = OutputForm(plain_rows(columns), 0, arguments.requantise)
        last = SplitArguments(batch_out, total // columns, columns, splits, 0, form)
        yield sum_of_splits(partial, out, finish, last, dtype, out_dtype, 1)


def _panel_map(array, dtype, columns, rows, batch, ld, batch_stride) -> TensorMap:
    return _matrix(array, dtype, columns, rows, batch, ld, batch_stride, (128 // BYTES[dtype], 64))


def gemm(
    a: Any,
    b: Any,
    out: Any,
    *,
    m: int,
    n: int,
    k: int,
    dtype: str,
    out_dtype: str,
    a_k: bool,
    b_k: bool,
    lda: int,
    ldb: int,
    ldc: int,
    batch: int = 1,
    batch_strides: tuple[int, int, int] = (0, 0, 0),
    finish: Finish = NOTHING,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile_n: int | None = None,
    cluster: int = 2,
    splits: int = 1,
) -> Iterator[Launch]:
    """out[m, n] = finish(A[m, k] B[k, n]); arguments as in `mma.gemm`. Raises Unsupported where TMA cannot serve an operand."""
    if min(m, n, batch) == 0:
        return
    if k == 0 or (batch > 1 and splits > 1) or (splits > 1 and ldc != n):
        raise Unsupported("an empty sum, or splits of a batch or of a strided output")
    tile_n = tile_n or choose_tile_n(n, m, batch, multiprocessors, out_dtype)
    map_a = _operand(a, dtype, a_k, m, k, batch if batch_strides[0] else 1, lda, batch_strides[0], TILE_M)
    map_b = _operand(b, dtype, b_k, n, k, batch if batch_strides[1] else 1, ldb, batch_strides[1], tile_n // cluster)
    if batch > 1 and 0 in batch_strides:
        raise Unsupported("an operand shared by a batch")
    if not b_k and tile_n // cluster < 64:
        cluster, map_b = 1, _operand(b, dtype, b_k, n, k, batch, ldb, batch_strides[1], tile_n)
    depth = DEPTH // BYTES[dtype]
    one = FastDivide.by(1)
    arguments = WgmmaArguments(
        math.ceil(m / TILE_M),
        math.ceil(n / tile_n),
        batch,
        1,
        m,
        n,
        0,
        math.ceil(k / depth),
        one,
        one,
        one,
        one,
        ld=ldc,
        batch_out=batch_strides[2],
    )

    def out_map(array, kind, parts):
        if parts > 1:
            return _panel_map(array, kind, n, m, parts, n, m * n)
        return _panel_map(array, kind, n, m, batch, ldc, batch_strides[2])

    yield from _finish_launches(
        (map_a, map_b),
        out_map,
        arguments,
        dtype,
        out_dtype,
        tile_n,
        cluster,
        finish,
        multiprocessors,
        splits,
        workspace,
        out,
        (m, n),
        0,
        A_K_CONTIGUOUS=int(a_k),
        B_K_CONTIGUOUS=int(b_k),
        A_PATCHES=0,
        B_TAPS=0,
    )


# -- convolution -------------------------------------------------------------------------------------------------------


def _image_map(image, dtype, shape, pixels, base, grid, stride, offsets) -> TensorMap:
    """The im2col map of an NHWC image for a grid of pixels: grid position i is at i * stride + base."""
    n, height, width, channels = shape
    item = BYTES[dtype]
    upper = tuple((g - 1) * s + 1 + b - size for g, s, b, size in zip(grid, stride, base, (height, width), strict=True))
    if max(offsets) > 255 or max(stride) > 8:
        raise Unsupported(f"taps at offsets {offsets} or strides {stride} beyond TMA's im2col mode")
    return TensorMap(
        image,
        dtype,
        (channels, width, height, n),
        (channels * item, width * channels * item, height * width * channels * item),
        (DEPTH // item, pixels),
        (1, stride[1], stride[0], 1),
        (base[1], base[0]),
        (upper[1], upper[0]),
    )


def _conv_arguments(m, n, tile_n, channels, dtype, kernel, grid, stride, base, dilation, ld) -> WgmmaArguments:
    divide = FastDivide.by
    blocks = math.ceil(channels / (DEPTH // BYTES[dtype]))
    taps = math.prod(kernel)
    return WgmmaArguments(
        math.ceil(m / TILE_M),
        math.ceil(n / tile_n),
        1,
        1,
        m,
        n,
        0,
        taps * blocks,
        divide(blocks),
        divide(kernel[1]),
        divide(grid[0]),
        divide(grid[1]),
        taps,
        0,
        1,
        *stride,
        *base,
        *dilation,
        ld,
        0,
    )


def _filter_map(w, dtype, k_contiguous, taps, inner, outer, rows) -> TensorMap:
    depth = DEPTH // BYTES[dtype]
    if not k_contiguous and BYTES[dtype] != 2:
        raise Unsupported(f"{dtype} operands of wgmma have K contiguous; pack the weights as (kh, kw, out, in)")
    return _matrix(w, dtype, inner, outer, taps, inner, inner * outer, (depth, rows if k_contiguous else depth))


def conv(
    x: Any,
    w: Any,
    out: Any,
    c: Conv,
    *,
    dtype: str,
    out_dtype: str,
    packed: bool = False,
    finish: Finish = NOTHING,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile_n: int | None = None,
    cluster: int = 2,
    splits: int = 1,
) -> Iterator[Launch]:
    """The forward convolution through TMA's im2col mode, groups = 1. w: HWIO, or with `packed` (kh, kw, out, in),
    which tf32 and int8 need. Raises Unsupported where TMA cannot serve it."""
    if math.prod(c.out) == 0:
        return
    if c.groups != 1:
        raise Unsupported("groups")
    m, n, taps = math.prod(c.out[:3]), c.out[3], math.prod(c.kernel)
    tile_n = tile_n or choose_tile_n(n, m, 1, multiprocessors, out_dtype)
    cluster = cluster if packed or tile_n // cluster >= 64 else 1
    base = (-c.padding[0][0], -c.padding[1][0])
    offsets = tuple((k - 1) * d for k, d in zip(c.kernel, c.dilation, strict=True))
    image = _image_map(x, dtype, c.input, TILE_M, base, c.out[1:3], c.stride, offsets)
    inner, outer = (c.input[3], n) if packed else (n, c.input[3])
    weights = _filter_map(w, dtype, packed, taps, inner, outer, tile_n // cluster)
    arguments = _conv_arguments(m, n, tile_n, c.input[3], dtype, c.kernel, c.out[1:3], c.stride, base, c.dilation, n)
    yield from _finish_launches(
        (image, weights),
        lambda array, kind, parts: _panel_map(array, kind, n, m, parts, n, m * n),
        arguments,
        dtype,
        out_dtype,
        tile_n,
        cluster,
        finish,
        multiprocessors,
        splits,
        workspace,
        out,
        (m, n),
        0,
        A_K_CONTIGUOUS=1,
        B_K_CONTIGUOUS=int(packed),
        A_PATCHES=1,
        B_TAPS=1,
    )


def conv_input_grad(
    g: Any,
    w: Any,
    out: Any,
    c: Conv,
    *,
    dtype: str,
    out_dtype: str,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile_n: int | None = None,
    cluster: int = 2,
    splits: int = 1,
) -> Iterator[Launch]:
    """The gradient in the input for stride 1 and groups = 1: a convolution of g with the taps in reverse order."""
    if math.prod(c.input) == 0:
        return
    if c.groups != 1 or c.stride != (1, 1):
        raise Unsupported("groups or strides")
    m, n, taps = math.prod(c.input[:3]), c.input[3], math.prod(c.kernel)
    tile_n = tile_n or choose_tile_n(n, m, 1, multiprocessors, out_dtype)
    offsets = tuple((k - 1) * d for k, d in zip(c.kernel, c.dilation, strict=True))
    base = (c.padding[0][0] - offsets[0], c.padding[1][0] - offsets[1])
    image = _image_map(g, dtype, c.out, TILE_M, base, c.input[1:3], (1, 1), offsets)
    weights = _filter_map(w, dtype, True, taps, c.out[3], n, tile_n // cluster)
    arguments = _conv_arguments(m, n, tile_n, c.out[3], dtype, c.kernel, c.input[1:3], (1, 1), base, c.dilation, n)
    arguments.tap_first, arguments.tap_step = taps - 1, -1
    yield from _finish_launches(
        (image, weights),
        lambda array, kind, parts: _panel_map(array, kind, n, m, parts, n, m * n),
        arguments,
        dtype,
        out_dtype,
        tile_n,
        cluster,
        NOTHING,
        multiprocessors,
        splits,
        workspace,
        out,
        (m, n),
        0,
        A_K_CONTIGUOUS=1,
        B_K_CONTIGUOUS=1,
        A_PATCHES=1,
        B_TAPS=1,
    )


def conv_weight_grad(
    x: Any,
    g: Any,
    out: Any,
    c: Conv,
    *,
    dtype: str,
    out_dtype: str,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile_n: int | None = None,
    cluster: int = 2,
    splits: int = 1,
) -> Iterator[Launch]:
    """The gradient in the weights for 16-bit types and groups = 1: the image's patches with their pixels along K."""
    taps, channels, n = math.prod(c.kernel), c.input[3], c.out[3]
    if taps * channels * n == 0:
        return
    if c.groups != 1 or BYTES[dtype] != 2 or math.prod(c.out[:3]) == 0:
        raise Unsupported("groups, operands without K contiguous that have not 16 bits, or an empty sum")
    pixels = math.prod(c.out[:3])
    blocks, depth = math.ceil(channels / 64), DEPTH // BYTES[dtype]
    m = taps * blocks * 64
    tile_n = tile_n or choose_tile_n(n, m, 1, multiprocessors, out_dtype)
    cluster = cluster if tile_n // cluster >= 64 else 1
    base = (-c.padding[0][0], -c.padding[1][0])
    offsets = tuple((k - 1) * d for k, d in zip(c.kernel, c.dilation, strict=True))
    image = _image_map(x, dtype, c.input, depth, base, c.out[1:3], c.stride, offsets)
    gradient = _operand(g, dtype, False, n, pixels, 1, n, 0, 0)
    arguments = _conv_arguments(m, n, tile_n, channels, dtype, c.kernel, c.out[1:3], c.stride, base, c.dilation, n)
    arguments.all_blocks, arguments.rows = math.ceil(pixels / depth), channels
    yield from _finish_launches(
        (image, gradient),
        lambda array, kind, parts: _panel_map(array, kind, n, channels, taps * parts, n, channels * n),
        arguments,
        dtype,
        out_dtype,
        tile_n,
        cluster,
        NOTHING,
        multiprocessors,
        splits,
        workspace,
        out,
        (taps, channels, n),
        0,
        A_K_CONTIGUOUS=0,
        B_K_CONTIGUOUS=0,
        A_PATCHES=1,
        B_TAPS=0,
    )
