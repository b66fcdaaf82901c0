"""Every form of the tensor-core kernels that the planners can ask for, as launches without arrays, to be compiled.

Needs no GPU. `launches("sm_90a")` goes over types, layouts and tiles of the tiers that the architecture has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from . import mma, wgmma
from .arguments import Launch


class _Aligned:
    """Stands for an array that begins on 16 bytes."""

    alignment = 16


class _Odd:
    """Stands for an array that begins on no particular address, so that the narrowest copies are used."""

    alignment = 1


_LAYOUTS = ((True, False), (True, True), (False, False))  # whether K is contiguous in A and in B
_CONV = mma.Conv((8, 14, 14, 128), (3, 3), (8, 14, 14, 256), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
_TYPES = ("bfloat16", "float16", "float32", "int8")  # float32 stands for tf32


def _gemm(array: Any, dtype: str, out_dtype: str, a_k: bool, b_k: bool) -> dict[str, Any]:
    m, n, k = 1024, 512, 768
    return {
        "a": array,
        "b": array,
        "out": array,
        "m": m,
        "n": n,
        "k": k,
        "dtype": dtype,
        "out_dtype": out_dtype,
        "a_k": a_k,
        "b_k": b_k,
        "lda": k if a_k else m,
        "ldb": k if b_k else n,
        "ldc": n,
        "workspace": lambda size: array,
    }


def _mma(arch: int) -> Iterator[Launch]:
    common: dict[str, Any] = {"arch": arch, "multiprocessors": 1}
    for dtype, shape in itertools.product(_TYPES, mma.TILES):
        if not mma.supported(dtype, arch):
            continue
        tile = shape._replace(stages=2 if arch < 80 else 4)
        for a_k, b_k in ((True, True),) if dtype == "int8" else _LAYOUTS:
            yield from mma.gemm(**_gemm(_Aligned(), dtype, dtype, a_k, b_k), tile=tile, splits=1, **common)
            yield from mma.gemm(**_gemm(_Odd(), dtype, dtype, a_k, b_k), tile=tile, splits=2, **common)
        x = _Aligned()
        more: dict[str, Any] = {"out_dtype": dtype, "workspace": lambda size: _Aligned(), "tile": tile, "splits": 1, **common}
        if dtype == "int8":
            yield from mma.conv_int8(x, x, x, _CONV, **more)
            continue
        for planner in (mma.conv, mma.conv_input_grad, mma.conv_weight_grad):
            yield from planner(x, x, x, _CONV, dtype=dtype, **more)


def _wgmma() -> Iterator[Launch]:
    x = _Aligned()
    more: dict[str, Any] = {"multiprocessors": 132, "workspace": lambda size: x}
    for dtype, tile_n in itertools.product(_TYPES, (256, 128, 64)):
        wide = dtype in ("float32", "int8")  # K contiguous only
        if dtype == "int8" and tile_n == 64:
            continue
        for a_k, b_k in ((True, True),) if wide else (*_LAYOUTS, (False, True)):
            yield from wgmma.gemm(
                **{**_gemm(x, dtype, dtype, a_k, b_k), **more}, tile_n=tile_n, splits=2 if tile_n == 128 else 1
            )
        conv: dict[str, Any] = {"dtype": dtype, "out_dtype": dtype, "tile_n": tile_n, **more}
        yield from wgmma.conv(x, x, x, _CONV, packed=wide, **conv)
        if dtype != "int8":
            yield from wgmma.conv_input_grad(x, x, x, _CONV, **conv)
        if not wide:
            yield from wgmma.conv_weight_grad(x, x, x, _CONV, **conv)


def launches(architecture: str) -> list[Launch]:
    """One launch for each distinct kernel and set of macros on an architecture such as "sm_80"."""
    arch = int(re.sub(r"\D", "", architecture))
    found = [*_mma(arch), *(_wgmma() if architecture == "sm_90a" else ())]
    return list({(step.file, step.defines): step for step in found}.values())
