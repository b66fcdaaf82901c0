"""Plans for the mma.sync tier: tiles, splits of K, and the arguments of each launch. Pure arithmetic: needs no GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .arguments import (
    BYTES,
    TYPES,
    ConvArguments,
    FastDivide,
    Filter,
    GemmArguments,
    Launch,
    OutputForm,
    Patches,
    Requantise,
    RowMap,
    SplitArguments,
    activation_code,
    alignment,
    plain_scale,
    widest,
)

Pair = tuple[int, int]
DEPTH = 64  # bytes of a tile along K


class Tile(NamedTuple):
    """A block's tile of the output, its warps, and the stages of its pipeline."""

    m: int
    n: int
    warps_m: int
    warps_n: int
    stages: int

    def shared(self) -> int:
        return self.stages * (self.m + self.n) * DEPTH


TILES = (Tile(128, 128, 2, 4, 4), Tile(128, 64, 4, 2, 4), Tile(64, 64, 2, 2, 4))  # from the fastest for a large product down


def supported(dtype: str, arch: int) -> bool:
    """Whether this tier exists for a type on an architecture (75, 80, 86, ...)."""
    return arch >= 80 or (arch >= 75 and dtype in ("float16", "int8"))


def choose_tile(m: int, n: int, batch: int, arch: int, multiprocessors: int) -> Tile:
    """The largest tile that still gives every multiprocessor a block; the smallest where none does."""
    stages = 2 if arch < 80 else 4
    for tile in TILES:
        if math.ceil(m / tile.m) * math.ceil(n / tile.n) * batch >= multiprocessors:
            return tile._replace(stages=stages)
    return TILES[-1]._replace(stages=stages)


def choose_splits(tiles: int, blocks: int, multiprocessors: int) -> int:
    """Into how many parts K is cut: enough to occupy the device, each of at least eight tiles."""
    if tiles * 2 > multiprocessors:
        return 1
    return max(1, min(multiprocessors // tiles, blocks // 8, 32))


class Finish(NamedTuple):
    """What an epilogue adds. bias: (n,) of the output's type (int32 for int8 products); scale: (n,) float32, and
    requantise: int8 products only; residual: laid out as the output and of its type (uint8 for int8 products)."""

    bias: Any = None
    residual: Any = None
    scale: Any = None
    activation: str | None = None
    requantise: Requantise | None = None


NOTHING = Finish()


class _Output(NamedTuple):
    out: Any
    dtype: str
    rows: RowMap
    batch: int  # elements from one product (or group) to the next
    by_column: bool


def _form(finish: Finish, output: _Output) -> OutputForm:
    item = BYTES[output.dtype]
    starts = [output.rows.ld * item, output.batch * item, alignment(output.out), alignment(finish.residual)]
    return OutputForm(output.rows, int(all(s % 16 == 0 for s in starts)), finish.requantise or plain_scale())


def _defines(dtype: str, out_dtype: str, tile: Tile, vec_a: int, vec_b: int, **more: int) -> tuple[tuple[str, str], ...]:
    bias = "int32" if dtype == "int8" else out_dtype
    names = {
        "TYPE": TYPES[dtype],
        "OUT_TYPE": TYPES[out_dtype],
        "BIAS_TYPE": TYPES[bias],
        "A_VEC": vec_a,
        "B_VEC": vec_b,
        "TILE_M": tile.m,
        "TILE_N": tile.n,
        "TILE_WARPS_M": tile.warps_m,
        "TILE_WARPS_N": tile.warps_n,
        "TILE_STAGES": tile.stages,
        **more,
    }
    return tuple(sorted((k, str(v)) for k, v in names.items()))


def _launches(
    file, kernel, operands, arguments, defines, tile, shape, dtype, output, finish, splits, workspace
) -> Iterator[Launch]:
    """The product, and the sum of its splits where there are several."""
    m, n, k, batch = shape
    tiles = math.ceil(m / tile.m) * math.ceil(n / tile.n)
    blocks = math.ceil(k * BYTES[dtype] / DEPTH)
    arguments.blocks = max(1, math.ceil(blocks / splits))
    splits = max(1, math.ceil(blocks / arguments.blocks))
    arguments.form = _form(finish, output)
    added = finish.bias, finish.residual, finish.scale
    partial = workspace(splits * batch * m * n * 4) if splits > 1 else None
    threads = 32 * tile.warps_m * tile.warps_n
    given = (*operands, output.out, partial, *added, bytes(arguments))
    if partial is None and finish.activation:
        defines = (("ACTIVATION", str(activation_code(finish.activation))), *defines)
    yield Launch(file, kernel, defines, (tiles, splits, batch), threads, tile.shared(), given)
    if partial is not None:
        total = SplitArguments(output.batch, m, n, splits, int(output.by_column), arguments.form)
        yield sum_of_splits(partial, output.out, finish, total, dtype, output.dtype, batch)


def sum_of_splits(partial: Any, out: Any, finish: Finish, total: SplitArguments, dtype: str, out_dtype: str,
                  batch: int) -> Launch:  # fmt: skip
    """What adds the parts of a split product of `dtype` in order, and finishes the sum."""
    macros = (
        ("ACC_TYPE", "i32" if dtype == "int8" else "float"),
        ("ACTIVATION", str(activation_code(finish.activation))),
        ("BIAS_TYPE", TYPES["int32" if dtype == "int8" else out_dtype]),
        ("OUT_TYPE", TYPES[out_dtype]),
    )
    grid = (min(1024, math.ceil(total.rows * total.columns / 256)), 1, batch)
    given = (partial, out, finish.bias, finish.residual, finish.scale, bytes(total))
    return Launch("split_k.cu", "split_k", macros, grid, 256, 0, given)


def plain_rows(ld: int) -> RowMap:
    """Rows of an output that begin `ld` elements apart."""
    return RowMap(ld=ld, plain=1, height=FastDivide.by(1), width=FastDivide.by(1))


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
    arch: int,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile: Tile | None = None,
    splits: int | None = None,
) -> Iterator[Launch]:
    """out[m, n] = finish(A[m, k] B[k, n]), `batch` times.

    a_k, b_k: whether K is the contiguous axis of the operand (int8 needs both). lda, ldb, ldc and batch_strides: elements
    from a stored row, and from a product, to the next. workspace(bytes) returns scratch memory for split sums. With m, n or
    batch of zero there is nothing to launch.
    """
    if min(m, n, batch) == 0:
        return
    item = BYTES[dtype]
    tile = tile or choose_tile(m, n, batch, arch, multiprocessors)
    if splits is None:
        tiles = math.ceil(m / tile.m) * math.ceil(n / tile.n) * batch
        splits = choose_splits(tiles, math.ceil(k * item / DEPTH), multiprocessors)
    vec_a = widest(item, alignment(a), lda * item, batch_strides[0] * item, (k if a_k else m) * item)
    vec_b = widest(item, alignment(b), ldb * item, batch_strides[1] * item, (k if b_k else n) * item)
    arguments = GemmArguments(lda, ldb, *batch_strides, m, n, k)
    output = _Output(out, out_dtype, plain_rows(ldc), batch_strides[2], False)
    defines = _defines(dtype, out_dtype, tile, vec_a, vec_b, A_K_CONTIGUOUS=int(a_k), B_K_CONTIGUOUS=int(b_k))
    yield from _launches(
        "gemm_mma.cu", "gemm_mma", (a, b), arguments, defines, tile, (m, n, k, batch), dtype, output, finish, splits, workspace
    )


# -- convolution -------------------------------------------------------------------------------------------------------


class Conv(NamedTuple):
    """The shapes of a convolution: input (batch, height, width, channels), weights (kh, kw, channels / groups, out)."""

    input: tuple[int, int, int, int]
    kernel: Pair
    out: tuple[int, int, int, int]
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int

    @property
    def inputs(self) -> int:
        return self.input[3] // self.groups

    @property
    def outputs(self) -> int:
        return self.out[3] // self.groups


class _Phase(NamedTuple):
    """Along one axis of an input gradient: input positions start, start + step, ... (count of them) meet the filter's taps tap,
    tap + tap_step, ... (taps of them), and position i meets output row i + base + j * shift at its tap j."""

    start: int
    step: int
    count: int  # type: ignore[assignment]
    tap: int
    tap_step: int
    taps: int
    base: int
    shift: int


def phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    """Input position y and tap t meet output row (y + padding - t * dilation) / stride where that is whole."""
    tap_step = stride // math.gcd(stride, dilation)
    found = []
    for start in range(min(stride, size)):
        count = math.ceil((size - start) / stride)
        tap = next((t for t in range(min(kernel, tap_step)) if (start + padding - t * dilation) % stride == 0), None)
        if tap is None:
            found.append(_Phase(start, stride, count, 0, 1, 0, 0, 0))
            continue
        taps = math.ceil((kernel - tap) / tap_step)
        base = (start + padding - tap * dilation) // stride
        found.append(_Phase(start, stride, count, tap, tap_step, taps, base, -(tap_step * dilation // stride)))
    return found


def _patches(image, channels, groups, grid, kernel_width, taps, stride, base, step) -> Patches:
    divide = FastDivide.by
    return Patches(
        image[1],
        image[2],
        channels,
        channels * groups,
        grid[0] * grid[1] * grid[2],
        taps,
        *stride,
        *base,
        *step,
        divide(grid[1]),
        divide(grid[2]),
        divide(max(kernel_width, 1)),
        divide(channels),
    )


def _forward_patches(c: Conv) -> Patches:
    base = (-c.padding[0][0], -c.padding[1][0])
    return _patches(c.input, c.inputs, c.groups, c.out[:3], c.kernel[1], math.prod(c.kernel), c.stride, base, c.dilation)


def _run_conv(
    passed,
    operands,
    arguments,
    shape,
    c,
    dtype,
    out_dtype,
    vecs,
    output,
    finish,
    arch,
    multiprocessors,
    workspace,
    tile,
    splits,
):
    m, n, k = shape
    tile = tile or choose_tile(m, n, c.groups, arch, multiprocessors)
    if splits is None:
        tiles = math.ceil(m / tile.m) * math.ceil(n / tile.n) * c.groups
        splits = choose_splits(tiles, math.ceil(k * BYTES[dtype] / DEPTH), multiprocessors)
    arguments.m, arguments.n, arguments.k = m, n, k
    defines = _defines(dtype, out_dtype, tile, *vecs, PASS=passed)
    yield from _launches(
        "conv_mma.cu",
        "conv_mma",
        operands,
        arguments,
        defines,
        tile,
        (m, n, k, c.groups),
        dtype,
        output,
        finish,
        splits,
        workspace,
    )


def conv(
    x: Any,
    w: Any,
    out: Any,
    c: Conv,
    *,
    dtype: str,
    out_dtype: str,
    finish: Finish = NOTHING,
    arch: int,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile: Tile | None = None,
    splits: int | None = None,
) -> Iterator[Launch]:
    """The forward convolution of x (NHWC) with w (HWIO); int8 weights must have K contiguous (see `conv_int8`)."""
    if math.prod(c.out) == 0:
        return
    item, outputs = BYTES[dtype], c.out[3]
    vec_x = widest(item, alignment(x), c.inputs * item)
    vec_w = widest(item, alignment(w), c.outputs * item)
    arguments = ConvArguments(c.inputs, c.outputs, c.outputs, outputs, patches=_forward_patches(c))
    output = _Output(out, out_dtype, plain_rows(outputs), c.outputs, True)
    shape = (math.prod(c.out[:3]), c.outputs, math.prod(c.kernel) * c.inputs)
    yield from _run_conv(
        0,
        (x, w),
        arguments,
        shape,
        c,
        dtype,
        out_dtype,
        (vec_x, vec_w),
        output,
        finish,
        arch,
        multiprocessors,
        workspace,
        tile,
        splits,
    )


def conv_int8(
    x: Any,
    w: Any,
    out: Any,
    c: Conv,
    *,
    out_dtype: str,
    finish: Finish = NOTHING,
    arch: int,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile: Tile | None = None,
    splits: int | None = None,
) -> Iterator[Launch]:
    """The forward convolution of int8 x (NHWC) with int8 w, packed as (kh, kw, out, in / groups) so that K is contiguous."""
    if math.prod(c.out) == 0:
        return
    taps = math.prod(c.kernel)
    tap = c.out[3] * c.inputs
    filter = Filter(
        c.outputs, c.inputs, c.inputs, taps, 0, c.kernel[1] * tap, tap, FastDivide.by(c.kernel[1]), FastDivide.by(c.inputs)
    )
    arguments = ConvArguments(c.inputs, c.outputs * c.inputs, c.outputs, 0, patches=_forward_patches(c), filter=filter)
    vecs = widest(1, alignment(x), c.inputs), widest(1, alignment(w), c.inputs)
    output = _Output(out, out_dtype, plain_rows(c.out[3]), c.outputs, True)
    shape = (math.prod(c.out[:3]), c.outputs, taps * c.inputs)
    yield from _run_conv(
        1, (x, w), arguments, shape, c, "int8", out_dtype, vecs, output, finish, arch, multiprocessors, workspace, tile, splits
    )


def conv_input_grad(
    g: Any,
    w: Any,
    out: Any,
    c: Conv,
    *,
    dtype: str,
    out_dtype: str,
    arch: int,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile: Tile | None = None,
    splits: int | None = None,
) -> Iterator[Launch]:
    """The gradient in the input, one launch for each phase of the stride: the input pixels that meet the same taps.
    Pixels that meet none get a launch with an empty sum."""
    if math.prod(c.input) == 0:
        return
    item, outputs = BYTES[dtype], c.out[3]
    vecs = widest(item, alignment(g), c.outputs * item), widest(item, alignment(w), c.outputs * item)
    (top, _), (left, _) = c.padding
    tap = c.inputs * outputs
    for py in phases(c.input[1], c.kernel[0], c.stride[0], top, c.dilation[0]):
        for px in phases(c.input[2], c.kernel[1], c.stride[1], left, c.dilation[1]):
            taps = py.taps * px.taps
            grid = (c.input[0], py.count, px.count)
            patches = _patches(
                c.out, c.outputs, c.groups, grid, px.taps, taps, (1, 1), (py.base, px.base), (py.shift, px.shift)
            )
            filter = Filter(
                c.inputs,
                c.outputs,
                outputs,
                taps,
                (py.tap * c.kernel[1] + px.tap) * tap,
                py.tap_step * c.kernel[1] * tap,
                px.tap_step * tap,
                FastDivide.by(max(px.taps, 1)),
                FastDivide.by(c.outputs),
            )
            rows = RowMap(
                c.input[3],
                0,
                c.input[1],
                c.input[2],
                py.start,
                px.start,
                py.step,
                px.step,
                FastDivide.by(py.count),
                FastDivide.by(px.count),
            )
            arguments = ConvArguments(c.outputs, c.outputs, c.inputs, 0, patches=patches, filter=filter)
            output = _Output(out, out_dtype, rows, c.inputs, True)
            yield from _run_conv(
                1,
                (g, w),
                arguments,
                (math.prod(grid), c.inputs, taps * c.outputs),
                c,
                dtype,
                out_dtype,
                vecs,
                output,
                NOTHING,
                arch,
                multiprocessors,
                workspace,
                tile,
                splits,
            )


def conv_weight_grad(
    x: Any,
    g: Any,
    out: Any,
    c: Conv,
    *,
    dtype: str,
    out_dtype: str,
    arch: int,
    multiprocessors: int,
    workspace: Callable[[int], Any],
    tile: Tile | None = None,
    splits: int | None = None,
) -> Iterator[Launch]:
    """The gradient in the weights; K runs over all output pixels, so it is usually split."""
    taps = math.prod(c.kernel)
    if taps * c.inputs * c.outputs == 0:
        return
    item, outputs = BYTES[dtype], c.out[3]
    vecs = widest(item, alignment(x), c.inputs * item), widest(item, alignment(g), c.outputs * item)
    patches = _forward_patches(c)
    arguments = ConvArguments(c.inputs, c.outputs, c.outputs, outputs, patches=patches)
    output = _Output(out, out_dtype, plain_rows(outputs), c.outputs, True)
    yield from _run_conv(
        2,
        (x, g),
        arguments,
        (taps * c.inputs, c.outputs, math.prod(c.out[:3])),
        c,
        dtype,
        out_dtype,
        vecs,
        output,
        NOTHING,
        arch,
        multiprocessors,
        workspace,
        tile,
        splits,
    )
