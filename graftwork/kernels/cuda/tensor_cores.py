"""Which products and convolutions go to tensor cores, and by which tier: wgmma with TMA (sm_90a) where it can take them,
else mma.sync.

16-bit dtypes always do. float32 does only as the variant "tf32", for its products are rounded to 11 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from . import mma, selection, wgmma
from .arguments import Launch
from .launch import Builder, View

WORTH_TURNING = 512  # rows or columns of the product from which it pays to store the other operand with K contiguous


def takes(b: Builder, dtype: str, tf32: bool = False) -> bool:
    """Whether a tensor-core tier exists here for this dtype."""
    return (dtype in ("float16", "bfloat16") or (tf32 and dtype == "float32")) and mma.supported(dtype, b.capability)


def _add(b: Builder, launches: list[Launch]) -> None:
    for step in launches:
        b.launch(step.file, step.kernel, dict(step.defines), step.grid, step.block, *step.arguments, shared=step.shared,
                 cluster=step.cluster)  # fmt: skip


def _first_that_can(b: Builder, fast: Callable[[], Iterator[Launch]], general: Callable[[], Iterator[Launch]]) -> None:
    """The launches of the sm_90a tier, or of mma.sync where there is none or it cannot take the operands."""
    if b.capability == 90:
        kept = len(b.scratch)
        try:
            _add(b, list(fast()))
            return
        except wgmma.Unsupported:
            del b.scratch[kept:]
    _add(b, list(general()))


def _workspace(b: Builder) -> Callable[[int], View]:
    return lambda size: b.empty((size,), "uint8")


def _mma_choice(b: Builder, what: str, m: int, n: int, k: int, batch: int, dtype: str) -> dict[str, Any]:
    """Tile and splits of a product on mma.sync: the rule's, or tuned ones."""
    usual = mma.choose_tile(m, n, batch, b.capability, b.processors)
    count = math.ceil(m / usual.m) * math.ceil(n / usual.n) * batch
    splits = mma.choose_splits(count, math.ceil(k * mma.BYTES[dtype] / mma.DEPTH), b.processors)
    tiles = [t._replace(stages=usual.stages) for t in mma.TILES]
    tile, splits = selection.mma_product(b, what, m, n, k, batch, dtype, tiles, usual, splits)
    return {"tile": tile, "splits": splits}


def _mma_conv_choice(b: Builder, conv: mma.Conv, dtype: str) -> dict[str, Any]:
    k = math.prod(conv.kernel) * conv.inputs
    return _mma_choice(b, "conv_mma", math.prod(conv.out[:3]), conv.outputs, k, conv.groups, dtype)


def _splits(m: int, n: int, k: int, itemsize: int, processors: int) -> int:
    """Cuts of a long sum whose tiles (128 x 128) leave most of the device idle."""
    tiles = math.ceil(m / 128) * math.ceil(n / 128)
    blocks = math.ceil(k * itemsize / wgmma.DEPTH)
    return 1 if tiles * 2 > processors else max(1, min(processors // tiles, blocks // 4, 32))


def add_gemm(b: Builder, left: Any, right: Any, out: View, extent, bias, residual, activation) -> None:
    """out = activation(A B + bias + residual); `left` and `right` are `gemm.Operand`s, `extent` a `gemm.Extent` of one
    batch stride."""
    m, n, k, sizes = extent
    dtype, batch = out.dtype.name, math.prod(sizes)
    strides = (left.batch[2], right.batch[2], m * n)
    finish = mma.Finish(bias, residual, None, activation)
    common: dict[str, Any] = {"m": m, "n": n, "k": k, "dtype": dtype, "out_dtype": dtype, "ldc": n, "batch": batch,
        "batch_strides": strides,
                              "finish": finish, "multiprocessors": b.processors, "workspace": _workspace(b)}  # fmt: skip

    def general():
        return mma.gemm(left.view, right.view, out, a_k=left.along_k, b_k=right.along_k, lda=left.pitch, ldb=right.pitch,
            arch=b.capability,
                        **_mma_choice(b, "gemm_mma", m, n, k, batch, dtype), **common)  # fmt: skip

    def fast():
        a, c = left, right
        if dtype == "float32" and batch == 1:  # tf32 operands of wgmma have K contiguous
            a = _turned(b, a, m, k) if n >= WORTH_TURNING else a
            c = _turned(b, c, n, k) if m >= WORTH_TURNING else c
        splits = _splits(m, n, k, out.dtype.itemsize, b.processors) if batch == 1 else 1
        return wgmma.gemm(a.view, c.view, out, a_k=a.along_k, b_k=c.along_k, lda=a.pitch, ldb=c.pitch, splits=splits, **common)

    _keeping_steps(b, fast, general)


def _keeping_steps(b: Builder, fast, general) -> None:
    """`fast` may add copies before it finds that it cannot take the product: they are taken back then."""
    steps, scratch = len(b.steps), len(b.scratch)

    def guarded():
        try:
            yield from fast()
        except wgmma.Unsupported:
            del b.steps[steps:], b.scratch[scratch:]
            raise

    _first_that_can(b, guarded, general)


def _turned(b: Builder, o: Any, rows: int, k: int) -> Any:
    """The operand with K contiguous."""
    if o.along_k:
        return o
    with b.made_of(o.view):
        turned = b.dense(o.view._replace(shape=(rows, k), strides=(1, o.pitch)))
    return o._replace(view=turned, along_k=True, pitch=k)


def add_conv(b: Builder, x: View, w: View, out: View, conv: mma.Conv, bias, residual, activation) -> None:
    dtype, finish = out.dtype.name, mma.Finish(bias, residual, None, activation)
    common: dict[str, Any] = {
        "dtype": dtype,
        "out_dtype": dtype,
        "finish": finish,
        "multiprocessors": b.processors,
        "workspace": _workspace(b),
    }

    def fast():
        packed = dtype == "float32"
        with b.made_of(w):
            weights = b.dense(_swapped(w)) if packed else w
        return wgmma.conv(x, weights, out, conv, packed=packed, splits=_conv_splits(b, conv, out), **common)

    _keeping_steps(
        b, fast, lambda: mma.conv(x, w, out, conv, arch=b.capability, **_mma_conv_choice(b, conv, dtype), **common)
    )


def _swapped(w: View) -> View:
    """(kh, kw, in, out) seen as (kh, kw, out, in)."""
    (a, c, i, o), (sa, sc, si, so) = w.shape, w.strides
    return w._replace(shape=(a, c, o, i), strides=(sa, sc, so, si))


def _conv_splits(b: Builder, conv: mma.Conv, out: View) -> int:
    k = math.prod(conv.kernel) * conv.inputs
    return _splits(math.prod(conv.out[:3]), conv.out[3], k, out.dtype.itemsize, b.processors)


def add_conv_input_grad(b: Builder, g: View, w: View, out: View, conv: mma.Conv) -> None:
    dtype = out.dtype.name
    common: dict[str, Any] = {"dtype": dtype, "out_dtype": dtype, "multiprocessors": b.processors, "workspace": _workspace(b)}
    _first_that_can(b, lambda: wgmma.conv_input_grad(g, w, out, conv, **common),
                    lambda: mma.conv_input_grad(g, w, out, conv, arch=b.capability, **common))  # fmt: skip


def add_conv_weight_grad(b: Builder, x: View, g: View, out: View, conv: mma.Conv) -> None:
    dtype = out.dtype.name
    common: dict[str, Any] = {"dtype": dtype, "out_dtype": dtype, "multiprocessors": b.processors, "workspace": _workspace(b)}
    m, k = math.prod(conv.kernel) * conv.inputs, math.prod(conv.out[:3])
    splits = _splits(m, conv.outputs, k, out.dtype.itemsize, b.processors)
    _first_that_can(b, lambda: wgmma.conv_weight_grad(x, g, out, conv, splits=splits, **common),
                    lambda: mma.conv_weight_grad(x, g, out, conv, arch=b.capability, **common))  # fmt: skip


# -- int8 --------------------------------------------------------------------------------------------------------------


def add_gemm_int8(b: Builder, left: View, right: View, out: View, extent: tuple[int, int, int], finish: mma.Finish) -> None:
    """out (m, n) = finish(A B) with int32 sums; left: (m, k) and right: (n, k), dense int8."""
    m, n, k = extent
    common: dict[str, Any] = {"m": m, "n": n, "k": k, "dtype": "int8", "out_dtype": out.dtype.name, "a_k": True, "b_k": True,
                              "lda": k, "ldb": k, "ldc": n, "batch_strides": (m * k, n * k, m * n), "finish": finish,
                              "multiprocessors": b.processors, "workspace": _workspace(b)}  # fmt: skip
    splits = _splits(m, n, k, 1, b.processors)
    _first_that_can(b, lambda: wgmma.gemm(left, right, out, splits=splits, **common),
                    lambda: mma.gemm(left, right, out, arch=b.capability, **_mma_choice(b, "gemm_mma", m, n, k, 1, "int8"),
                                     **common))  # fmt: skip


def add_conv_int8(b: Builder, x: View, w: View, out: View, conv: mma.Conv, finish: mma.Finish) -> None:
    """out = finish(convolution) with int32 sums; x: dense int8 NHWC, w: dense int8 HWIO."""
    common: dict[str, Any] = {"out_dtype": out.dtype.name, "finish": finish, "multiprocessors": b.processors,
                              "workspace": _workspace(b)}  # fmt: skip
    with b.made_of(w):
        packed = b.dense(_swapped(w))
    _first_that_can(
        b, lambda: wgmma.conv(x, packed, out, conv, dtype="int8", packed=True, splits=_conv_splits(b, conv, x), **common),
        lambda: mma.conv_int8(x, packed, out, conv, arch=b.capability, **_mma_conv_choice(b, conv, "int8"), **common),
    )  # fmt: skip
